// SPDX-License-Identifier: Apache-2.0
// Hashes. XXH3-128 of libxxhash (BSD-2-Clause), with a secret of the session: it is not collision-resistant against
// somebody who knows the secret, so nobody who writes files may know it in advance.
#ifndef CHECKSUM_DIGEST_H
#define CHECKSUM_DIGEST_H

#include <stddef.h>
#include <stdint.h>
#include <xxhash.h>

#define BLOCK_SIZE  65536u
#define SECRET_SIZE 192u

struct digest {
	uint64_t low, high;
};

struct secret {
	unsigned char bytes[SECRET_SIZE];
	struct digest zero_block; // of a whole block of zeros
};

void secret_make(struct secret *secret, const void *seed, size_t length);
struct digest digest_of(const struct secret *secret, const void *data, size_t length);
// Of `length` zeros, at most a block.
struct digest digest_of_zeros(const struct secret *secret, size_t length);
int all_zero(const void *data, size_t length);

// Sums do not depend on the order, so a directory needs no sorting. With a secret, nobody can aim at a sum.
static inline void digest_add(struct digest *sum, struct digest one)
{
	sum->low += one.low;
	sum->high += one.high + (sum->low < one.low);
}

static inline int digest_same(struct digest a, struct digest b)
{
	return a.low == b.low && a.high == b.high;
}

// A digest of something long, piece by piece.
struct digest_stream {
	XXH3_state_t *state;
};
int digest_begin(struct digest_stream *stream, const struct secret *secret);
void digest_more(struct digest_stream *stream, const void *data, size_t length);
struct digest digest_end(struct digest_stream *stream);

#endif
