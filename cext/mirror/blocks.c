// SPDX-License-Identifier: Apache-2.0
// What a failback does with contents on both sides, and Python should not: digests of blocks, and holes.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>
#if defined(__x86_64__)
#include <xxh_x86dispatch.h> // the fastest variant of this processor, chosen at run time
#endif
#include "api.h"
#include "../bulk.h"

static ssize_t read_block(int fd, char *buffer, size_t size, uint64_t offset)
{
	size_t have = 0;

	while (have < size) {
		ssize_t got = pread(fd, buffer + have, size - have, (off_t)(offset + have));

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return -errno;
		if (got == 0)
			break;
		have += (size_t)got;
	}
	return (ssize_t)have;
}

int mirror_digest_blocks(int fd, uint64_t offset, uint32_t block, uint32_t count, uint8_t *digests)
{
	char *buffer = bulk_room(block);
	int done = 0;

	if (!buffer)
		return -ENOMEM;
	for (; (uint32_t)done < count; done++) {
		ssize_t got = read_block(fd, buffer, block, offset + (uint64_t)done * block);
		XXH128_canonical_t digest;

		if (got <= 0) {
			done = got < 0 ? (int)got : done;
			break;
		}
		XXH128_canonicalFromHash(&digest, XXH3_128bits(buffer, (size_t)got));
		memcpy(digests + (size_t)done * sizeof(digest), &digest, sizeof(digest));
	}
	free(buffer);
	return done;
}

int mirror_punch(int fd, uint64_t offset, uint64_t length)
{
	return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)length) ? -errno : 0;
}
