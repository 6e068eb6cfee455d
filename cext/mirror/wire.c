// SPDX-License-Identifier: Apache-2.0
#include <string.h>
#include <xxhash.h>
#if defined(__x86_64__)
#include <xxh_x86dispatch.h> // the fastest variant of this processor, chosen at run time
#endif
#include "wire.h"

uint64_t wire_hash(uint64_t session, const void *data, size_t size)
{
	return XXH3_64bits_withSeed(size ? data : "", size, session);
}

uint64_t wire_frame_sum(uint64_t session, const struct frame *frame, uint64_t payload_hash)
{
	struct frame copy = *frame;

	copy.sum = payload_hash;
	return wire_hash(session, &copy, sizeof(copy));
}

uint64_t wire_ack_sum(uint64_t session, const struct ack *ack)
{
	return wire_hash(session, ack, offsetof(struct ack, sum));
}

static int op_has_name(int op)
{
	return op == WIRE_BIND || (op >= WIRE_CREATE && op <= WIRE_SYMLINK) || (op >= WIRE_LINK && op <= WIRE_RENAME);
}

static int is_entry_name(const char *name, size_t len)
{
	if (len == 0 || len > WIRE_NAME || memchr(name, '/', len) || memchr(name, 0, len))
		return 0;
	return !(name[0] == '.' && (len == 1 || (len == 2 && name[1] == '.')));
}

const char *wire_check(const struct frame *frame, uint64_t seq, uint64_t epoch)
{
	if (frame->magic != WIRE_MAGIC)
		return "this is not a replication frame";
	if (frame->op < WIRE_PING || frame->op >= WIRE_OPS)
		return "an operation that this version does not know";
	if (frame->size > WIRE_PAYLOAD)
		return "a frame longer than any that we send";
	if ((uint64_t)frame->name_len + frame->second_len > frame->size)
		return "names longer than their frame";
	if (frame->epoch != epoch)
		return "a frame of another epoch";
	if (frame->seq != seq)
		return "a frame is missing or came twice";
	return NULL;
}

const char *wire_check_payload(const struct frame *frame, const char *payload, uint64_t session)
{
	uint64_t hash = wire_hash(session, payload, frame->size);

	if (frame->sum != wire_frame_sum(session, frame, hash))
		return "a frame's checksum is wrong";
	if (op_has_name(frame->op) && !is_entry_name(payload, frame->name_len))
		return "a name that no directory can hold";
	if (frame->op == WIRE_RENAME && !is_entry_name(payload + frame->name_len, frame->second_len))
		return "a new name that no directory can hold";
	if ((frame->op == WIRE_SETXATTR || frame->op == WIRE_DELXATTR || frame->op == WIRE_SYMLINK) &&
	    memchr(payload, 0, (size_t)frame->name_len + frame->second_len))
		return "a NUL in a text";
	return NULL;
}

const char *wire_op_name(int op)
{
	static const char *const names[WIRE_OPS] = {
	    [WIRE_PING] = "ping",	[WIRE_BIND] = "bind",	      [WIRE_UNBIND] = "unbind",
	    [WIRE_CREATE] = "create",	[WIRE_MKDIR] = "mkdir",	      [WIRE_MKNOD] = "mknod",
	    [WIRE_SYMLINK] = "symlink", [WIRE_TMPFILE] = "tmpfile",   [WIRE_LINK] = "link",
	    [WIRE_UNLINK] = "unlink",	[WIRE_RMDIR] = "rmdir",	      [WIRE_RENAME] = "rename",
	    [WIRE_WRITE] = "write",	[WIRE_TRUNCATE] = "truncate", [WIRE_ALLOCATE] = "fallocate",
	    [WIRE_COPY] = "copy",	[WIRE_MODE] = "chmod",	      [WIRE_OWNER] = "chown",
	    [WIRE_TIMES] = "times",	[WIRE_SETXATTR] = "setxattr", [WIRE_DELXATTR] = "removexattr",
	    [WIRE_SYNC] = "fsync",	[WIRE_SYNCFS] = "syncfs",
	};

	return op > 0 && op < WIRE_OPS && names[op] ? names[op] : "?";
}
