// SPDX-License-Identifier: Apache-2.0
// The bench's view of one core: reading and hashing, without a peer.
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
#include "abi.h"
#include "digest.h"
#include "engine.h"
#include "mapping.h"
#include "pool.h"

static void add_blocks(struct digest *sum, const struct secret *secret, const unsigned char *data, size_t length)
{
	for (size_t block = 0; block < length; block += BLOCK_SIZE)
		digest_add(sum,
			   digest_of(secret, data + block, length - block < BLOCK_SIZE ? length - block : BLOCK_SIZE));
}

static int read_all(int fd, uint64_t length, const struct secret *secret, struct digest *sum)
{
	unsigned char *data = aligned_alloc(4096, IO_SIZE);

	if (!data)
		return -1;
	for (uint64_t at = 0; at < length;) {
		ssize_t got = pread(fd, data, IO_SIZE, (off_t)at);

		if (got <= 0)
			break;
		add_blocks(sum, secret, data, (size_t)got);
		at += (uint64_t)got;
	}
	free(data);
	return 0;
}

// Part by part, as a run does it. -1 if one could not be mapped: then a run would read it.
static int map_all(int fd, uint64_t length, const struct secret *secret, struct digest *sum)
{
	int result = 0;

	mapping_guard();
	for (uint64_t at = 0; at < length && !result; at += SEGMENT) {
		size_t size = length - at < SEGMENT ? (size_t)(length - at) : SEGMENT;
		struct mapping *mapping = mapping_open(fd, at, size);

		if (mapping)
			add_blocks(sum, secret, mapping->data, size);
		result = mapping_holds(mapping) ? 0 : -1;
		mapping_close(mapping);
	}
	return result;
}

int64_t checksum_measure_hash(int fd, uint64_t length, int mapped)
{
	struct secret secret;
	struct digest sum = {0, 0};
	struct timespec from, to;

	secret_make(&secret, "measure", 7);
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &from);
	if ((mapped ? map_all : read_all)(fd, length, &secret, &sum))
		return -1;
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &to);
	return (to.tv_sec - from.tv_sec) * 1000000000ll + to.tv_nsec - from.tv_nsec + (sum.low == 1);
}
