// SPDX-License-Identifier: Apache-2.0
// Frames over a stream of bytes. A frame is {u32 length, u8 type, u8[3] 0, u64 check, payload}; the check covers type,
// place in the stream and payload, keyed for the session: a damaged, lost, repeated or moved frame ends the run.
#ifndef CHECKSUM_LINK_H
#define CHECKSUM_LINK_H

#include <sys/uio.h>
#include "bytes.h"
#include "engine.h"

#define PROTOCOL_VERSION 1u
#define LINK_MAGIC	 0x314b48434d524146ull // "FARMCHK1"
#define LINK_READ_ROOM	 (2u * FRAME_MAX)

enum frame_type {
	FRAME_HELLO = 1,
	FRAME_PING, // nothing to say, but alive
	FRAME_FAIL, // u32 errno, string: why the sender ends the run
	// target to source
	FRAME_START,   // u8 pass, digest id of the record to begin, digest id of the record to trust
	FRAME_LIST,    // u32 request, string folder
	FRAME_SEGMENT, // see message.h
	FRAME_PROBE,   // u32 bytes
	FRAME_COMMIT,  // the target is equal and durable: keep your record
	FRAME_BYE,
	// source to target
	FRAME_FOLDER,	   // string folder, u64 names, digest sum, u8 flags
	FRAME_SCANNED,	   // all folders were sent
	FRAME_ENTRIES,	   // u32 request, u8 flags, entries
	FRAME_BLOCKS,	   // u32 request, u64 offset, data
	FRAME_ZEROS,	   // u32 request, u64 offset, u64 length, u8 hole
	FRAME_SEGMENT_END, // u32 request, u8 status, u32 errno, u64 bytes that differ
	FRAME_PROBE_DATA,
	FRAME_COMMITTED,
	FRAME_TROUBLE, // u32 finding, u32 errno, string folder, string name
	FRAME_TYPES
};

struct frame {
	uint8_t type;
	struct reader body;
};

struct link {
	struct engine *engine;
	int in, out;
	int in_flags, out_flags; // as the caller had them
	pthread_mutex_t lock;	 // of what is sent
	struct buffer waiting;	 // frames that may wait for company
	uint64_t send_key, send_number, last_sent_ns;
	uint64_t receive_key, receive_number, last_heard_ns;
	unsigned char *data; // received, not yet taken
	size_t first, count;
	pthread_t pinger;
	int pinging, closing;
	pthread_cond_t closed;
};

// Says hello and hears the peer's. `ids` are this side's record and unfinished record; the peer's come back in
// `theirs`.
int link_open(struct link *link, struct engine *engine, int is_source, const struct digest ids[2],
	      struct digest theirs[2]);
void link_close(struct link *link);
int link_send(struct link *link, uint8_t type, const struct buffer *body);
// May wait for the next frames of its kind, or for any other: a system call and a wake-up cost more than a small frame.
int link_send_lazily(struct link *link, uint8_t type, const struct buffer *body);
int link_send_with(struct link *link, uint8_t type, const struct buffer *body, const void *data, size_t length);
// Waits for the next frame; its body is good until the next call. -1: the run has failed.
int link_receive(struct link *link, struct frame *frame);
// Checks a complete frame at `data`; returns its size, 0 if more is needed, -1 if it is not one.
int64_t frame_parse(const unsigned char *data, size_t length, uint64_t key, uint64_t number, struct frame *frame);
uint64_t frame_check(uint64_t key, uint64_t number, uint8_t type, const void *a, size_t a_length, const void *b,
		     size_t b_length);

#endif
