// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// SipHash-1-3 (Aumasson and Bernstein, 2012), and the bucket of a client. The same text is compiled for the kernel and
// for Python; its oracle is farmd/model/siphash.py. Words are little-endian, as the machines that we run on are.
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

// The first word of a message: the rest of the first round.
static __always_inline struct siphash siphash_start(const struct farm_hash *hash, __u64 word)
{
	struct siphash s = {hash->v0, hash->v1, hash->v2, hash->v3 ^ word};

	s.v2 += s.v3;
	s.v3 = siphash_rotl(s.v3, 16) ^ s.v2;
	s.v0 += s.v3;
	s.v3 = siphash_rotl(s.v3, 21) ^ s.v0;
	s.v2 += s.v1;
	s.v1 = hash->v1_turned ^ s.v2;
	s.v2 = siphash_rotl(s.v2, 32);
	s.v0 ^= word;
	return s;
}

static __always_inline __u64 siphash_end(struct siphash *s)
{
	s->v2 ^= 0xff;
	siphash_round(s);
	siphash_round(s);
	siphash_round(s);
	return s->v0 ^ s->v1 ^ s->v2 ^ s->v3;
}

// What SipHash says of a short message, in one word: up to seven bytes, and their number in the last.
static __always_inline __u32 bucket_of_word(const struct farm_hash *hash, __u64 word)
{
	struct siphash s = siphash_start(hash, word);

	return siphash_end(&s) % FARM_BUCKETS;
}

// The bucket of an IPv4 client. What is hashed are 6 bytes as they lie in the packet: the address, then `extra`, which
// is the client's port, the packet's identification or 0, as the affinity wants it.
static __always_inline __u32 farm_bucket_ipv4(const struct farm_hash *hash, __be32 address, __be16 extra)
{
	return bucket_of_word(hash, 6ULL << 56 | (__u64)extra << 32 | address);
}

// 32 bits that stand for an IPv6 address: pair-multiply-shift (Thorup, "High Speed Hashing for Integers and Strings",
// 2015, 3.3; its idea is that of NH in Black et al., "UMAC", 1999). Two addresses meet in the same 32 bits with
// probability 2^-32, whichever they are, because the factors are secret.
static __always_inline __u32 shorten_ipv6(const struct farm_hash *hash, const __u64 address[2])
{
	__u64 first = (hash->factors[0] + (__u32)address[0]) * (hash->factors[1] + (address[0] >> 32));
	__u64 second = (hash->factors[2] + (__u32)address[1]) * (hash->factors[3] + (address[1] >> 32));

	return (first + second + hash->factors[4]) >> 32;
}

// The bucket of an IPv6 client: SipHash over 7 bytes, the shortened address, `extra` and the number 6. A PRF of a
// universal hash is again a PRF, but for the chance that two addresses meet (q of them: below q * q / 2^33); two that
// do share a bucket, as one pair in 4096 does anyway. It spares two of SipHash's words.
static __always_inline __u32 farm_bucket_ipv6(const struct farm_hash *hash, const __u64 address[2], __be16 extra)
{
	return bucket_of_word(hash, 7ULL << 56 | 6ULL << 48 | (__u64)extra << 32 | shorten_ipv6(hash, address));
}

#endif
