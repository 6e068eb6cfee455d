// SPDX-License-Identifier: Apache-2.0
// The replication stream: frames from the primary, acknowledgements from the secondary. Little-endian, as is every
// machine that farmd supports. An inode is named by `fid`, a number that the primary hands out for one session: 1 is
// the replicated directory, every other is made by a frame that creates it or by BIND, which finds it by its name.
#ifndef FARM_MIRROR_WIRE_H
#define FARM_MIRROR_WIRE_H

#include <stdint.h>
#include <stddef.h>

#define WIRE_MAGIC   0x324d5246u // "FRM2"
#define ACK_MAGIC    0x31414d46u
#define ROOT_FID     1
#define WIRE_CHUNK   (128 * 1024) // data of one frame: verified and applied while it is still in the cache
#define WIRE_PAYLOAD (WIRE_CHUNK + 1024)
#define WIRE_NAME    255

enum wire_op {
	WIRE_PING = 1, // nothing: keeps the connection alive
	WIRE_BIND,     // `other` is the inode called name in directory `fid`
	WIRE_UNBIND,   // `fid` is not used again
	WIRE_CREATE,   // regular file `other`, name in `fid`, mode, umask, uid, gid
	WIRE_MKDIR,
	WIRE_MKNOD,   // + rdev
	WIRE_SYMLINK, // second name: the target
	WIRE_TMPFILE, // without a name
	WIRE_LINK,    // inode `other` gets a name in `fid`
	WIRE_UNLINK,
	WIRE_RMDIR,
	WIRE_RENAME,   // name in `fid` becomes second name in `other`; mode = RENAME_* flags
	WIRE_WRITE,    // data at offset
	WIRE_TRUNCATE, // to length
	WIRE_ALLOCATE, // fallocate: mode, offset, length
	WIRE_COPY,     // length bytes of `other` at `source` to offset
	WIRE_MODE,
	WIRE_OWNER,
	WIRE_TIMES,
	WIRE_SETXATTR, // name, value; mode = XATTR_* flags
	WIRE_DELXATTR,
	WIRE_SYNC,   // fsync; flag WIRE_DATA_ONLY: fdatasync
	WIRE_SYNCFS, // the whole file system
	WIRE_OPS
};

enum wire_flag {
	WIRE_WANT_ACK = 1, // somebody waits for this frame
	WIRE_DATA_ONLY = 2,
	WIRE_SET_ATIME = 4,
	WIRE_SET_MTIME = 8
};

struct frame {
	uint32_t magic;
	uint16_t op;
	uint16_t flags;
	uint64_t seq; // 1, 2, 3, ... in a session
	uint64_t epoch;
	uint64_t fid;
	uint64_t other;
	uint64_t offset;
	uint64_t length;
	uint64_t source;
	int64_t atime_ns;
	int64_t mtime_ns;
	uint32_t mode;
	uint32_t umask;
	uint32_t uid;
	uint32_t gid;
	uint32_t rdev;
	uint32_t size;	   // payload: name, second, data
	uint32_t name_len; // first name
	uint32_t second_len;
	uint64_t unused; // makes 128 of it: see bulk.h for what copies to odd addresses cost
	uint64_t sum;	 // XXH3-64, seeded with the session, of the payload and then of this header
};

enum ack_kind {
	ACK_APPLIED = 1, // everything up to seq is in the secondary's file system
	ACK_DURABLE,	 // the same, and the sync that is frame seq is on the secondary's disk
	ACK_ERROR	 // frame seq failed with `code`; the secondary applies nothing more
};

struct ack {
	uint32_t magic;
	uint16_t kind;
	uint16_t op;
	int32_t code;
	uint32_t unused;
	uint64_t seq;
	uint64_t sum;
};

// What the sum covers: the payload's hash stands in `sum` while the header is hashed.
uint64_t wire_hash(uint64_t session, const void *data, size_t size);
uint64_t wire_frame_sum(uint64_t session, const struct frame *frame, uint64_t payload_hash);
uint64_t wire_ack_sum(uint64_t session, const struct ack *ack);

// NULL, or what is wrong with this header: checked before a byte of its payload is believed.
const char *wire_check(const struct frame *frame, uint64_t seq, uint64_t epoch);
// The same for the payload, once it is here.
const char *wire_check_payload(const struct frame *frame, const char *payload, uint64_t session);
const char *wire_op_name(int op);

#endif
