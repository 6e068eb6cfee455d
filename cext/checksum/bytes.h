// SPDX-License-Identifier: Apache-2.0
// Reading and writing the payloads of frames. Little-endian, no padding. A reader never passes its end: it goes bad,
// and what it then returns is 0 or empty, so that a decoder may look once, at the end.
#ifndef CHECKSUM_BYTES_H
#define CHECKSUM_BYTES_H

#include <endian.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include "digest.h"

struct reader {
	const unsigned char *at, *end;
	int bad;
};

struct buffer {
	unsigned char *data;
	size_t used, room;
	int failed; // out of memory
};

static inline const void *take(struct reader *r, size_t length)
{
	const void *found = r->at;

	if (r->bad || (size_t)(r->end - r->at) < length) {
		r->bad = 1;
		return NULL;
	}
	r->at += length;
	return found;
}

#define DEFINE_TAKE(bits)                                                                                              \
	static inline uint##bits##_t take_u##bits(struct reader *r)                                                    \
	{                                                                                                              \
		uint##bits##_t value = 0;                                                                              \
		const void *found = take(r, sizeof(value));                                                            \
                                                                                                                       \
		if (found)                                                                                             \
			memcpy(&value, found, sizeof(value));                                                          \
		return le##bits##toh(value);                                                                           \
	}
DEFINE_TAKE(16)
DEFINE_TAKE(32)
DEFINE_TAKE(64)

static inline uint8_t take_u8(struct reader *r)
{
	const unsigned char *found = take(r, 1);

	return found ? *found : 0;
}

static inline struct digest take_digest(struct reader *r)
{
	struct digest d;

	d.low = take_u64(r);
	d.high = take_u64(r);
	return d;
}

// A string with its length in 16 bits before it, copied with a 0 behind it. Refused if it is longer than `room` - 1.
static inline size_t take_string(struct reader *r, char *to, size_t room)
{
	size_t length = take_u16(r);
	const void *found = length < room ? take(r, length) : NULL;

	if (!found) {
		r->bad = 1;
		length = 0;
	} else {
		memcpy(to, found, length);
	}
	to[length] = 0;
	return length;
}

// Room for `length` bytes that the caller writes; NULL without memory.
static inline unsigned char *put_space(struct buffer *b, size_t length)
{
	if (!b->data || b->used + length > b->room) {
		size_t room = (b->used + length) * 2 + 256;
		unsigned char *larger = b->failed ? NULL : realloc(b->data, room);

		if (!larger) {
			b->failed = 1;
			return NULL;
		}
		b->data = larger;
		b->room = room;
	}
	b->used += length;
	return b->data + b->used - length;
}

static inline struct reader read_buffer(const struct buffer *b)
{
	return b->used ? (struct reader){b->data, b->data + b->used, 0} : (struct reader){NULL, NULL, 0};
}

static inline void put(struct buffer *b, const void *data, size_t length)
{
	unsigned char *to = put_space(b, length);

	if (to && length)
		memcpy(to, data, length);
}

#define DEFINE_PUT(bits)                                                                                               \
	static inline void put_u##bits(struct buffer *b, uint##bits##_t value)                                         \
	{                                                                                                              \
		value = htole##bits(value);                                                                            \
		put(b, &value, sizeof(value));                                                                         \
	}
DEFINE_PUT(16)
DEFINE_PUT(32)
DEFINE_PUT(64)

static inline void put_u8(struct buffer *b, uint8_t value)
{
	put(b, &value, 1);
}

static inline void put_digest(struct buffer *b, struct digest d)
{
	put_u64(b, d.low);
	put_u64(b, d.high);
}

static inline void put_string(struct buffer *b, const char *text, size_t length)
{
	put_u16(b, (uint16_t)length);
	put(b, text, length);
}

#endif
