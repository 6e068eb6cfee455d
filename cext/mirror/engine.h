// SPDX-License-Identifier: Apache-2.0
// The primary's side: a FUSE file system over the backing directory, and the stream of its changes to the peer.
//
// Order. The kernel holds the inode locks of an operation until we reply, and we reply no earlier than its frames are
// in the stream; so the stream's order is the local order wherever order matters. Two things escape those locks and
// have their own: a copy_file_range reads a file that others may be writing (struct stripe), and names are looked at
// by frames of other inodes (`stream_lock` guards node->parent and node->name, which follow the stream, not the disk).
#ifndef FARM_MIRROR_ENGINE_H
#define FARM_MIRROR_ENGINE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <linux/fuse.h>
#include "api.h"
#include "inode.h"
#include "transport.h"
#include "wire.h"

#define MAX_WRITE   (1 << 20)
#define DEVICE_ROOM (MAX_WRITE + 65536)
#define MAX_WORKERS 64
#define STRIPES	    256
#define EVENT_RING  16384

struct zone_set {
	uint64_t *bits;
	uint64_t words;
};

#define NODE_BUCKETS (1 << 18)

struct node {
	struct node *next; // in its hash chain
	struct node *parent;
	char *name;		// with `parent`: where the stream may find it; NULL if it has no name that we know
	struct node *name_next; // in its chain of names
	struct node *times_next, **times_at;
	uint64_t lookups; // what the kernel holds
	uint64_t refs;	  // children, the list of times; under stream_lock
	uint64_t fid;
	uint64_t bound; // the session in which the peer knows `fid`
	uint64_t ino;	// as programs see it
	struct inode_handle handle;
	int path_fd; // O_PATH, or -1: opened by handle when needed
	_Atomic uint32_t mode;
	bool excluded;
	atomic_bool times_dirty;
	bool names_told, inode_told, whole_told;
	bool fine_inode_told, fine_whole_told;
	bool measured, large; // see dirty.c
	uint64_t told;	      // the generation that all of these, and the zones, are of
	struct zone_set zones, fine;
};

// An operation whose reply may have to wait: for the local file system, the peer, a confirmed event.
struct op {
	uint64_t unique;
	int device;
	struct slot *slot; // instead of `device`, if the request came over io_uring
	atomic_int waits;
	atomic_int error;
	struct node *entry; // its lookup count goes down again if the kernel does not take the reply
	uint64_t started_ns;
	bool sync;
	uint32_t size;
	char reply[sizeof(struct fuse_entry_out) + sizeof(struct fuse_open_out)];
};

// A frame that the peer has not acknowledged.
struct pending {
	struct pending *next;
	struct op *op; // NULL: nobody waits
	uint64_t seq;
	uint64_t sent_ns;
	uint64_t checkpoint; // number of the last event that it covers, or 0
	uint32_t bytes;
	bool durable; // waits for the peer's disk
};

struct chunk { // bytes that the socket had no room for
	struct chunk *next;
	size_t size, done;
	char data[];
};

struct event_ring {
	pthread_mutex_t lock;
	int fd;
	pthread_cond_t wake; // something was confirmed
	uint64_t head, tail, number, confirmed;
	uint64_t asked; // the last event that a change waits for
	bool overflow, closed;
	struct mirror_event *slots;
};

struct mirror {
	struct mirror_config config;
	char *mount_point;
	char *patterns;
	int root_fd, device, workers;
	struct parts parts;
	struct uring *uring; // NULL: only /dev/fuse
	uint64_t mount_id;
	pthread_t threads[MAX_WORKERS], sender, acks, clock;
	atomic_bool stopping;
	atomic_int alive;

	pthread_mutex_t nodes_lock; // the table, lookups, refs
	struct node *root, **table;
	uint64_t node_count, next_fid;
	uint64_t named; // nodes with a name; under stream_lock
	atomic_int open_paths;
	int open_limit;
	pthread_rwlock_t stripes[STRIPES];
	pthread_rwlock_t gate; // read: a change, from its event to its frame; write: a checkpoint between two changes

	pthread_mutex_t stream_lock; // everything below
	pthread_cond_t stream_wake, idle_wake, thaw_wake;
	bool frozen; // changes wait before they begin
	int state, ack;
	struct transport link;
	pthread_mutex_t acks_lock; // before stream_lock: who reads acknowledgements
	char ack_bytes[256 * sizeof(struct ack)];
	size_t ack_have;
	_Atomic uint64_t write_ns, sync_ns; // moving averages
	_Atomic uint64_t acks_from;	    // the session and its socket, for whoever waits with poll; 0: no peer
	atomic_uint acks_read_beside;	    // by rings, so that the ack thread need not wake up as well
	uint64_t session, epoch, seq, applied, lag_bytes, lag_frames, queued;
	uint64_t said_ns, heard_ns, lost_ns;
	bool threads_on;
	struct chunk *queue, **queue_end;
	struct pending *first, **last;
	struct pending *syncs; // of `first`, already applied, waiting for the disk
	struct node *times;
	uint64_t generation; // of events that were told already
	struct node **names;
	struct mirror_stats stats;

	struct event_ring events;
};

struct worker {
	struct mirror *fs;
	int device;
	struct slot *slot; // instead of `device`, if the request came over io_uring
	char *memory;	   // with `device`: where the request is read to, so that the data of a write begins on a page
	char *room;	   // for an answer, behind the request's own names
	struct fuse_in_header *in;
	const char *body; // after the header
	size_t size;	  // of body
	struct op *op;	  // begun, and deferred
};

// node.c
struct node *node_of(struct mirror *fs, uint64_t id);
uint64_t node_id(const struct mirror *fs, const struct node *node);
// Counts one look-up for the kernel. `name` may be NULL: a file without one.
int node_from_fd(struct mirror *fs, struct node *parent, const char *name, int fd, struct stat *st, struct node **out);
// The same for an O_PATH descriptor, which it takes over.
int node_from_path(struct mirror *fs, struct node *parent, const char *name, int fd, struct stat *st,
		   struct node **out);
void node_forget(struct mirror *fs, struct node *node, uint64_t count);
// Ends the node, and its parents, if neither the kernel nor anything of ours uses it. Lock of the stream held.
void node_retire(struct mirror *fs, struct node *node);
int nodes_start(struct mirror *fs);
void nodes_free(struct mirror *fs);
// A descriptor of the node for one operation; give it back with node_put.
int node_get(struct mirror *fs, struct node *node);
void node_put(struct node *node, int fd);
uint64_t node_ino(int part, uint64_t ino);
pthread_rwlock_t *node_stripe(struct mirror *fs, const struct node *node);

// exclude.c
bool excluded_name(struct mirror *fs, struct node *parent, const char *name);
// A directory whose move could change what is excluded below it.
bool excluded_below(struct mirror *fs, struct node *parent, const char *name);

// event.c
int events_start(struct event_ring *ring);
void events_free(struct event_ring *ring);
void event_say(struct mirror *fs, int kind, int code, const char *text);
void event_checkpoint(struct mirror *fs, uint64_t number);
// A change begins: tells what it will touch and waits for the confirmation. False: changes are refused, it answered
// EIO.
bool change_begin(struct worker *worker, int kind, struct node *node, uint64_t offset, uint64_t length);
void change_also(struct mirror *fs, int kind, struct node *node, uint64_t offset, uint64_t length);
void change_end(struct mirror *fs);
// Marks the zones of a range; true if one of them is new. Lock of the stream held.
bool mark_zones(struct zone_set *set, uint64_t first, uint64_t last);
uint64_t event_put(struct mirror *fs, struct mirror_event *event);
// With `confirm` no event may be lost: whoever changes waits for room, and for what must be durable first.
void event_wait_room(struct event_ring *ring);
void event_wait(struct event_ring *ring, uint64_t number);

// dirty.c: with `confirm`, what is told of a change. Lock of the stream held. The number to wait for.
uint64_t dirty_tell(struct mirror *fs, int kind, struct node *node, uint64_t offset, uint64_t length);
// A name is about to come, go or change its meaning; `deep`: it is, or will be, a directory. No lock held.
void dirty_place(struct mirror *fs, struct node *dir, const char *name, bool deep);
void dirty_link(struct mirror *fs, struct node *dir, const char *name, struct node *node);
void dirty_move(struct mirror *fs, struct node *from, const char *name, struct node *to, const char *new_name);

// op.c
struct op *op_new(struct worker *worker);
// One thing less to wait for; the last one replies.
void op_done(struct mirror *fs, struct op *op, int error);
void reply(struct worker *worker, int error, const void *data, size_t size);
uint64_t clock_ns(void);

// tree.c: under stream_lock, names as the stream has them
struct node *tree_find(struct mirror *fs, struct node *parent, const char *name);
void tree_name(struct mirror *fs, struct node *node, struct node *parent, const char *name);
void tree_unname(struct mirror *fs, struct node *node);

// stream.c
enum wait_for {
	WAIT_NOTHING,
	WAIT_WRITE,
	WAIT_NAMES,
	WAIT_RENAME,
	WAIT_SYNC
};
struct change {
	struct frame frame;
	const char *name, *second;
	const void *data;
	size_t data_len;
	struct node *node;  // frame.fid
	struct node *other; // frame.other
	bool makes;	    // `other` is made by this frame
	struct op *op;
	enum wait_for wait;
	uint64_t checkpoint;
};
void stream_change(struct mirror *fs, struct change *change);
void stream_change_locked(struct mirror *fs, struct change *change);
// The peer must know the node before a frame takes its name away. Lock held.
void stream_bind(struct mirror *fs, struct node *node);
void stream_unbind(struct mirror *fs, struct node *node);
bool stream_push(struct mirror *fs); // lock held: sends from the queue what the socket takes; true if it is empty
void stream_drop_queue(struct mirror *fs);
bool stream_idle(struct mirror *fs); // lock held: everything is acknowledged
void stream_ping(struct mirror *fs); // lock held

// times.c: modification times follow their file at close, at fsync and once a second
void times_mark(struct mirror *fs, struct node *node);
void times_send(struct mirror *fs, struct node *node);
void times_send_all(struct mirror *fs);

// peer.c
void peer_lost(struct mirror *fs, int code, const char *why); // lock held
void *peer_sender(void *fs);
void *peer_acks(void *fs);
void peer_look_for_acks(struct mirror *fs); // does not wait
void *peer_clock(void *fs);
struct pending *peer_take_pending(struct mirror *fs); // lock held
void peer_finish(struct mirror *fs, struct pending *list, int error);

// device.c
int device_mount(struct mirror *fs, char *error, int error_size);
void *device_worker(void *worker);
void device_serve(struct worker *worker);
void device_ended(struct mirror *fs); // one of those who serve requests is at its end
// 0 or -errno. What else is mounted at the same place is left alone: below may be the directory's own file system.
int device_unmount(struct mirror *fs, int flags);
void device_abort(struct mirror *fs);
int device_clone(struct mirror *fs);

// uring.c
struct uring *uring_new(struct mirror *fs); // NULL: the kernel does not allow it
int uring_start(struct uring *all);
void uring_join(struct uring *all);
void uring_free(struct uring *all);
int uring_answer(struct slot *slot, uint64_t unique, int error, const void *data, size_t size);
// The request is served again from its beginning where it may block. False: it may block here.
bool uring_defer(struct worker *worker);

// engine.c
int thread_start(pthread_t *thread, void *(*run)(void *), void *context);

// what the worker calls, by opcode: names.c, files.c, ranges.c, attrs.c, listing.c
typedef void handler(struct worker *worker);
handler do_lookup, do_create, do_mknod, do_mkdir, do_symlink, do_link, do_unlink, do_rmdir, do_rename, do_rename2;
handler do_tmpfile, do_readlink;
handler do_open, do_release, do_read, do_write, do_fsync, do_fallocate, do_lseek, do_copy, do_flush, do_syncfs;
handler do_getattr, do_setattr, do_statfs, do_getxattr, do_setxattr, do_listxattr, do_removexattr;
handler do_opendir, do_readdir, do_readdirplus, do_releasedir, do_fsyncdir;

struct open_file {
	int fd;
	struct node *node;
};
// As a lookup of the kernel's: one more for node_forget.
int names_look_up(struct mirror *fs, struct node *parent, const char *name, struct stat *st, struct node **node);
void fill_attr(struct fuse_attr *attr, const struct stat *st);
void fill_entry(struct mirror *fs, struct fuse_entry_out *out, struct node *node, const struct stat *st);
// As the kernel does for a write by somebody without CAP_FSETID: the set-user-ID bits go, here and at the peer.
void drop_privileges(struct worker *worker, struct node *node);

#endif
