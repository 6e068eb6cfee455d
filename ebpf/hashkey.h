// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// What user space computes once from the farm's key and puts into the tables, so that the filter need not.
#ifndef FARM_HASHKEY_H
#define FARM_HASHKEY_H

#include "siphash.h"

// What can be computed before there is a message: the state under `key`, and the part of the first round that the
// message does not touch.
static __always_inline struct farm_hash siphash_prepare(const __u64 key[2])
{
	__u64 v0 = key[0] ^ 0x736f6d6570736575ULL;
	__u64 v1 = key[1] ^ 0x646f72616e646f6dULL;
	struct farm_hash hash = {.v2 = key[0] ^ 0x6c7967656e657261ULL, .v3 = key[1] ^ 0x7465646279746573ULL};

	v0 += v1;
	hash.v1 = siphash_rotl(v1, 13) ^ v0;
	hash.v0 = siphash_rotl(v0, 32);
	hash.v1_turned = siphash_rotl(hash.v1, 17);
	return hash;
}

static __always_inline void siphash_word(struct siphash *s, __u64 word)
{
	s->v3 ^= word;
	siphash_round(s);
	s->v0 ^= word;
}

// A factor of shorten_ipv6(): SipHash-1-3 of the 8 bytes "address" and its number, a message that no client makes.
static __always_inline __u64 farm_factor(const struct farm_hash *hash, __u32 number)
{
	struct siphash s = siphash_start(hash, (__u64)number << 56 | 0x73736572646461ULL);

	siphash_word(&s, 8ULL << 56);
	return siphash_end(&s);
}

// Everything that is computed once from the farm's key.
static __always_inline struct farm_hash farm_hash_of(const __u64 key[2])
{
	struct farm_hash hash = siphash_prepare(key);

	for (__u32 i = 0; i < FARM_FACTORS; i++)
		hash.factors[i] = farm_factor(&hash, i);
	return hash;
}

#endif
