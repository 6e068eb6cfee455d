// SPDX-License-Identifier: Apache-2.0
// What Python sees of the mirror's data path: the single declaration for C and cffi. Plain C types, no macros.
#ifndef FARM_MIRROR_API_H
#define FARM_MIRROR_API_H

#include <stdint.h>

enum mirror_ack {
	MIRROR_STRICT,
	MIRROR_BARRIER,
	MIRROR_ASYNC
};

// alone: acknowledges what only this node has. paired: every change goes to the peer. undecided: the peer is lost,
// changes are made here but acknowledged to nobody. refusing: changes fail with EIO.
enum mirror_state {
	MIRROR_ALONE,
	MIRROR_PAIRED,
	MIRROR_UNDECIDED,
	MIRROR_REFUSING
};

enum mirror_event_kind {
	MIRROR_EVENT_LOST,    // the peer is gone; code = errno, text = why
	MIRROR_EVENT_REFUSED, // nobody decided within decide_ms: changes fail from now on
	// About to change, and reported once between two checkpoints. Zones are 16 MiB while paired (what the activity
	// log wants), 64 KiB otherwise. With `confirm` see dirty.c: changes wait for mirror_confirm(number) of the
	// coarse events, and the fine ones come beside them while the peer is away.
	MIRROR_EVENT_DATA,	 // bytes [offset, offset + length) of `handle`, rounded to zones
	MIRROR_EVENT_INODE,	 // attributes or size of `handle`
	MIRROR_EVENT_NAMES,	 // entries of the directory `handle`
	MIRROR_EVENT_OVERFLOW,	 // events up to `number` were dropped: anything may have changed
	MIRROR_EVENT_CHECKPOINT, // whatever the events up to `offset` announced is on both disks
	MIRROR_EVENT_UNMOUNTED,	 // the file system is gone
	MIRROR_EVENT_WHOLE,	 // all of the file `handle`: it was cut, moved or linked (`confirm` only)
	MIRROR_EVENT_PLACE,	 // the name `text` in the directory `handle`, and what is below (`confirm` only)
	MIRROR_EVENT_RETOLD,	 // what mirror_retell was asked for: every zone is told again behind this event
	MIRROR_EVENT_ATTACHED	 // a peer is attached: the copies were equal, and what comes behind this goes to both
};

struct mirror_event {
	int kind;
	int code;
	uint64_t number;
	uint64_t offset;
	uint64_t length;
	int waits; // a change waits until this event is confirmed
	uint32_t handle_type;
	uint32_t handle_size;
	uint8_t handle[64];
	// With `confirm`, for a file that has a name: the directory that it is in, and its name there in `text`.
	uint32_t parent_type;
	uint32_t parent_size;
	uint8_t parent[64];
	char text[256];
};

struct mirror_handle {
	uint32_t type;
	uint32_t size;
	uint8_t bytes[64];
};

struct mirror_config {
	int backing;		 // directory fd, opened before the mount; or what mirror_compose gave
	const char *mount_point; // where applications see it; may be the same path
	const char *excluded;	 // patterns not replicated, one a line (exclude.h)
	int workers;
	int ack;	    // enum mirror_ack
	int state;	    // enum mirror_state at the start: alone or undecided
	uint32_t peer_ms;   // silence after which the peer is lost
	uint32_t decide_ms; // time in `undecided` after which changes are refused; 0: for ever
	uint64_t lag_bytes; // barrier, async: beyond this much unacknowledged, operations wait
	int confirm;	    // no change before its event is confirmed
	int uring;	    // FUSE over io_uring, if the kernel allows it
};

struct mirror_stats {
	int state;
	int ack;
	uint64_t requests;
	uint64_t frames;
	uint64_t bytes_sent;
	uint64_t bytes_written;
	uint64_t sent_seq;
	uint64_t applied_seq;
	uint64_t lag_bytes;
	uint64_t lag_frames;
	uint64_t waiting;
	uint64_t events;
	uint64_t nodes;
	uint64_t lag_us;   // age of the oldest frame that the peer has not acknowledged
	uint64_t write_us; // what changes and what syncs took of late, until they were answered (moving average)
	uint64_t sync_us;
	int uring;		 // requests come over io_uring
	uint64_t replies_us[32]; // replies that waited for the peer, by log2 of microseconds
};

struct mirror;
struct mirror_tls;

struct mirror_tls_config {
	const char *certificate; // PEM files of this node, and of the farm's own authority
	const char *key;
	const char *authority;
	const char *peer_name; // the name that the peer's certificate must carry
	int server;
	uint32_t timeout_ms;
};

// Whether the entry at `path` below the directory, or a directory that it is in, is not replicated.
int mirror_excludes(const char *patterns, const char *path);
struct mirror *mirror_start(const struct mirror_config *config, char *error, int error_size);
int mirror_stop(struct mirror *fs, int force);
void mirror_free(struct mirror *fs);
int mirror_attach(struct mirror *fs, int fd, struct mirror_tls *tls, uint64_t session, uint64_t epoch);
int mirror_go_alone(struct mirror *fs);
int mirror_refuse(struct mirror *fs);
// Holds back every change that has not begun and returns when none is under way: the tree stands still, for the last
// round of a resync and the attach behind it. Ends with mirror_thaw, and when the mirror is stopped.
int mirror_freeze(struct mirror *fs);
int mirror_thaw(struct mirror *fs);
// Files that have a name and none that is known here (nameless.c): at most `room` of them. Before a peer is attached
// somebody looks for their names, and looks each path up, or a change of such a file would lose the peer.
int mirror_nameless(struct mirror *fs, struct mirror_handle *out, int room);
int mirror_look_up(struct mirror *fs, const char *path);
int mirror_set_ack(struct mirror *fs, int ack);
int mirror_settle(struct mirror *fs, uint32_t timeout_ms);
int mirror_detach(struct mirror *fs);
int mirror_event_fd(struct mirror *fs);
int mirror_next_events(struct mirror *fs, struct mirror_event *events, int room);
// Starts a checkpoint and syncs this side; MIRROR_EVENT_CHECKPOINT follows when both sides are done. Not to be called
// by the thread that confirms events: changes that wait for a confirmation hold it up.
int mirror_checkpoint(struct mirror *fs);
void mirror_confirm(struct mirror *fs, uint64_t number);
// Every zone is told again from a point between two changes on, which MIRROR_EVENT_RETOLD marks. Not to be called by
// the thread that confirms events.
int mirror_retell(struct mirror *fs);
void mirror_read_stats(struct mirror *fs, struct mirror_stats *stats);

// TLS 1.3 over a connected socket, both sides with a certificate of the farm. NULL and a sentence on failure.
struct mirror_tls *mirror_tls_open(int fd, const struct mirror_tls_config *config, char *error, int error_size);
void mirror_tls_close(struct mirror_tls *tls);

// XXH3-128 of each `block` bytes of the file from `offset` on; `digests` has room for `count` of 16 bytes. Returns how
// many blocks there were (the last may be short), or -errno.
int mirror_digest_blocks(int fd, uint64_t offset, uint32_t block, uint32_t count, uint8_t *digests);
// Frees the blocks of a range, which reads as zeros then; the size stays. 0 or -errno.
int mirror_punch(int fd, uint64_t offset, uint64_t length);

struct receiver_config {
	int backing;
	int fd;
	struct mirror_tls *tls;
	int stop_fd; // readable: end
	uint64_t session;
	uint64_t epoch;
	uint32_t silence_ms; // nothing heard for so long: the primary is gone; 0: for ever
};

struct receiver_result {
	int code; // 0: the primary closed the stream; else errno
	uint64_t seq;
	uint64_t frames;
	uint64_t bytes;
	uint64_t syncs;
	char text[160];
};

struct confine_config {
	int root;	      // the replicated directory; the same number is another mount of it afterwards
	int records;	      // a directory that may be written as well, or -1
	const char *readable; // paths that the process goes on seeing, read-only, one a line
};

// One root over several directories (../parts.h): `names[i]` in it is `directories[i]`. An O_PATH descriptor, which
// must stay open as long as the root is used, or -errno.
int mirror_compose(const char *const *names, const int *directories, int count, char *error, int error_size);

// Before the process applies anything that a peer sends, and while it has one thread: see confine.c. 0 or -errno; after
// a failure the process must end.
int mirror_confine(const struct confine_config *config, char *error, int error_size);

// Applies the stream below `backing` until it ends. Returns result->code.
int receiver_run(const struct receiver_config *config, struct receiver_result *result);

#endif
