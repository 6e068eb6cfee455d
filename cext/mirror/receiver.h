// SPDX-License-Identifier: Apache-2.0
// The secondary's side: frames are checked, applied in order below one directory, and acknowledged.
//
// What a hostile primary can do is bounded by this: a name is one component and is never followed if it is a symlink;
// an inode is one that was found or made by name below the directory, on the same mount; data goes to regular files.
#ifndef FARM_MIRROR_RECEIVER_H
#define FARM_MIRROR_RECEIVER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include "api.h"
#include "inode.h"
#include "transport.h"
#include "wire.h"

#define FID_BUCKETS 65536
#define HELPERS	    2
#define OPEN_FILES  65536 // at most, and no more than half of what the process may have

struct known { // an inode that the primary may name
	struct known *next;
	uint64_t fid;
	struct inode_handle handle;
	uint32_t type; // S_IFMT
	int fd;	       // O_PATH or, if `writable`, for reading and writing; -1: opened by handle when needed
	bool writable;
};

struct sync_job {
	struct sync_job *next;
	uint64_t seq;
	int fd;
	int op;
	bool data_only;
};

struct intake {
	char *buffer;
	size_t start, end; // what is here and not applied
	size_t quiet;	   // bytes since the last ack
	bool wanted;	   // somebody waits for one
	uint64_t heard_ms;
};

struct receiver {
	const struct receiver_config *config;
	struct receiver_result *result;
	struct transport link;
	int root;
	struct parts parts;
	struct known **table;
	int open_files, open_limit;
	struct intake intake; // whoever reads has it
	_Atomic uint64_t acked;
	pthread_mutex_t send_lock; // acks come from several threads
	// Of turns.c, under turn_lock.
	pthread_mutex_t turn_lock;
	pthread_cond_t turn_wake;
	struct sync_job *jobs, **jobs_end;
	int job_count, idle;
	bool reading, ended;
	pthread_t helpers[HELPERS];
	int helper_count, helpers_ready, helper_error;
};

// fids.c
int fids_start(struct receiver *receiver);
void fids_free(struct receiver *receiver);
struct known *fid_find(struct receiver *receiver, uint64_t fid);
// Remembers `fd`, which it takes over, under a new fid.
int fid_add(struct receiver *receiver, uint64_t fid, int part, int fd, bool data);
void fid_drop(struct receiver *receiver, uint64_t fid);
// A descriptor for one operation, given back with fid_put.
int fid_get(struct receiver *receiver, struct known *known);
int fid_get_data(struct receiver *receiver, struct known *known);
void fid_put(struct known *known, int fd);

// apply.c: 0 or -errno
int apply_frame(struct receiver *receiver, const struct frame *frame, const char *payload);

// turns.c
int turns_start(struct receiver *receiver);
// Until the end of the stream.
void turns_run(struct receiver *receiver);
void turns_end(struct receiver *receiver);
// By the thread that reads: an fsync that it has met. Takes `fd` over.
int sync_later(struct receiver *receiver, const struct frame *frame, int fd);

// receiver.c
int send_ack(struct receiver *receiver, int kind, uint64_t seq, int op, int code);
// The primary knows that all is applied up to this one.
void has_acked(struct receiver *receiver, uint64_t seq);
// Reads what is here and applies it, or waits a little. Whether it goes on.
bool receiver_take_in(struct receiver *receiver);

#endif
