// SPDX-License-Identifier: Apache-2.0
#include <string.h>
#if defined(__x86_64__)
#include <xxh_x86dispatch.h> // the fastest variant of this processor, chosen at run time
#endif
#include "digest.h"

static const unsigned char zeros[BLOCK_SIZE];

static struct digest from_xxh(XXH128_hash_t hash)
{
	return (struct digest){.low = hash.low64, .high = hash.high64};
}

void secret_make(struct secret *secret, const void *seed, size_t length)
{
	// Counter mode over the keyed hash: XXH3_generateSecret is newer than some distributions' library.
	for (uint64_t i = 0; i < SECRET_SIZE / 16; i++) {
		XXH128_hash_t first = XXH3_128bits_withSeed(seed, length, i + 1);

		memcpy(secret->bytes + 16 * i, &first, 16);
	}
	secret->zero_block = digest_of(secret, zeros, BLOCK_SIZE);
}

struct digest digest_of(const struct secret *secret, const void *data, size_t length)
{
	return from_xxh(XXH3_128bits_withSecret(data, length, secret->bytes, SECRET_SIZE));
}

struct digest digest_of_zeros(const struct secret *secret, size_t length)
{
	return length == BLOCK_SIZE ? secret->zero_block : digest_of(secret, zeros, length);
}

int all_zero(const void *data, size_t length)
{
	const unsigned char *bytes = data;

	return length == 0 || (bytes[0] == 0 && memcmp(bytes, zeros, length < BLOCK_SIZE ? length : BLOCK_SIZE) == 0);
}

int digest_begin(struct digest_stream *stream, const struct secret *secret)
{
	stream->state = XXH3_createState();
	if (!stream->state)
		return -1;
	XXH3_128bits_reset_withSecret(stream->state, secret->bytes, SECRET_SIZE);
	return 0;
}

void digest_more(struct digest_stream *stream, const void *data, size_t length)
{
	XXH3_128bits_update(stream->state, data, length);
}

struct digest digest_end(struct digest_stream *stream)
{
	struct digest result = from_xxh(XXH3_128bits_digest(stream->state));

	XXH3_freeState(stream->state);
	return result;
}
