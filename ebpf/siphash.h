// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// SipHash-1-3 (Aumasson and Bernstein, 2012) over whole 64-bit words, and the bucket of a client. The same text is
// compiled for the kernel and for Python; its oracle is farmd/model/siphash.py.
#ifndef FARM_SIPHASH_H
#define FARM_SIPHASH_H

#include "farm_abi.h"

struct siphash {
	__u64 v0, v1, v2, v3;
};

static __always_inline __u64 siphash_rotl(__u64 value, int bits)
{
	return value << bits | value >> (64 - bits);
}

static __always_inline void siphash_round(struct siphash *s)
{
	s->v0 += s->v1;
	s->v1 = siphash_rotl(s->v1, 13) ^ s->v0;
	s->v0 = siphash_rotl(s->v0, 32);
	s->v2 += s->v3;
	s->v3 = siphash_rotl(s->v3, 16) ^ s->v2;
	s->v0 += s->v3;
	s->v3 = siphash_rotl(s->v3, 21) ^ s->v0;
	s->v2 += s->v1;
	s->v1 = siphash_rotl(s->v1, 17) ^ s->v2;
	s->v2 = siphash_rotl(s->v2, 32);
}

static __always_inline struct siphash siphash_start(const __u64 key[2])
{
	struct siphash s = {
	    key[0] ^ 0x736f6d6570736575ULL,
	    key[1] ^ 0x646f72616e646f6dULL,
	    key[0] ^ 0x6c7967656e657261ULL,
	    key[1] ^ 0x7465646279746573ULL,
	};

	return s;
}

static __always_inline void siphash_word(struct siphash *s, __u64 word)
{
	s->v3 ^= word;
	siphash_round(s);
	s->v0 ^= word;
}

// Ends the message: `bytes` is its length.
static __always_inline __u64 siphash_end(struct siphash *s, __u64 bytes)
{
	siphash_word(s, bytes << 56);
	s->v2 ^= 0xff;
	siphash_round(s);
	siphash_round(s);
	siphash_round(s);
	return s->v0 ^ s->v1 ^ s->v2 ^ s->v3;
}

// The bucket of an IPv4 client: address in network order, port in host order (0 for the affinity client-ip).
static __always_inline __u32 farm_bucket_ipv4(const __u64 key[2], __u32 address, __u16 port)
{
	struct siphash s = siphash_start(key);

	siphash_word(&s, (__u64)port << 32 | address);
	return siphash_end(&s, 8) % FARM_BUCKETS;
}

// The bucket of an IPv6 client: the address as it lies in memory, in two words.
static __always_inline __u32 farm_bucket_ipv6(const __u64 key[2], const __u64 address[2], __u16 port)
{
	struct siphash s = siphash_start(key);

	siphash_word(&s, address[0]);
	siphash_word(&s, address[1]);
	siphash_word(&s, port);
	return siphash_end(&s, 24) % FARM_BUCKETS;
}

#endif
