// SPDX-License-Identifier: Apache-2.0
// What this side remembers of the last run, so that a quick pass need not read everything.
//
// A record is a list of tokens. A token is a keyed 128-bit hash of a path and of everything that the kernel changes
// when the inode changes: inode number, birth time, ctime, mtime, size, mode, owner, link count, device. A name whose
// token is in the records of *both* sides, under the same id, was equal then and is unchanged since: both copies are
// equal now. Nothing else is ever believed; mtime alone least of all.
//
// Why a token may be believed:
// - ctime moves with every write, truncate, chmod, chown, link, rename and setxattr, and no call sets it.
// - Two changes within one tick of the clock can have one ctime (kernels before 6.13: 1 to 10 ms). The source records
//   only what changed at least SLACK before the run began; the target, which is written by nobody else meanwhile,
//   does the same, and waits for SLACK after its own changes.
// - Stores through a shared mapping move ctime only when the page was clean before. The source therefore calls
//   syncfs before it looks: that makes pages clean and write-protected, so that the next store moves ctime. Only file
//   systems that do this are trusted, see TRUSTED: tmpfs, network and FUSE file systems are not.
// - After a power loss data may be newer than the ctime beside it. A record is good within one boot and one mount,
//   unless the caller knows that the file system was cleanly unmounted (`trust_restart`).
// - An interrupted run can be continued under its id. Each continuation has a number, and a name is believed only if
//   both sides know it from the same one: else a source that changed between two attempts would be taken for equal to
//   the copy that the first attempt verified.
// - A reused inode number has another birth time. ext4 with 128-byte inodes has neither that nor nanoseconds: not
//   trusted.
// Not seen by any of this: a clock that was set back so that a later change has the very nanosecond of the earlier
// one, writes to the block device below the file system, and rotting disks. The contents pass sees those.
#ifndef CHECKSUM_RECORD_H
#define CHECKSUM_RECORD_H

#include <stdio.h>
#include "tree.h"

#define SLACK_NS 20000000ll

struct record_set { // tokens of one file, open addressing
	struct digest id;
	unsigned int runs; // continuations that are in it
	struct digest *slots;
	size_t mask, count;
};

#define RUNS_MAX 16u // then a run begins afresh

struct record {
	struct engine *engine;
	struct secret key;  // of this side's tokens
	int trusted_system; // the file system keeps ctime as we need it
	struct record_set kept, partial;
	const struct record_set *believed; // one of them, or NULL
	unsigned int run, believed_runs;
	uint64_t mount_id, device;
	int64_t before_ns; // only what changed before this is recorded
	int fd;		   // the partial record that is being written
	pthread_mutex_t lock;
	unsigned char pending[1 << 16];
	size_t pending_used;
};

// Loads what there is. Without a path in the options everything below does nothing. -1: the run has failed.
int record_open(struct record *record, struct engine *engine);
void record_close(struct record *record);
struct record_plan {
	struct digest id;	// of the record to write; the partial one's: it is continued
	struct digest believed; // of the record to believe, 0: none
	uint8_t run, believed_runs;
};
// Carries out what the target has planned.
int record_begin(struct record *record, const struct record_plan *plan, int is_source);
// `record_knows` will be asked for this token in a moment.
void record_expect(const struct record *record, struct digest token);
// In which run this token was first recorded; 0: unknown.
unsigned int record_knows(const struct record *record, struct digest token);
struct digest record_token(const struct record *record, struct digest folder, const struct entry *entry);
struct digest record_folder(const struct record *record, const char *folder);
// Whether an unchanged token will prove an unchanged inode.
int record_may(const struct record *record, const struct entry *entry);
// Takes over `tokens`, one digest after the other.
void record_add(struct record *record, const struct buffer *tokens);
// Makes the partial record durable; then the one that counts.
int record_flush(struct record *record);
int record_commit(struct record *record);

#endif
