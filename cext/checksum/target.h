// SPDX-License-Identifier: Apache-2.0
// The side that becomes equal. It drives: compares directories by digest, asks for the lists of those that differ, then
// for the blocks of files that may differ. One thread talks and writes; others read and hash.
#ifndef CHECKSUM_TARGET_H
#define CHECKSUM_TARGET_H

#include "apply.h"
#include "hashset.h"
#include "link.h"
#include "links.h"
#include "scan.h"

// Directories that must be listed, each once.
struct todo {
	char **folders;
	size_t count, room, next;
	struct hashset known;
};

// A directory that is being made equal.
struct folder {
	char *path;
	uint32_t files; // with contents still to compare
	int listed;	// its list is complete
	int unsettled;	// something in it was moving: not to be recorded
};

struct file_job {
	struct file_job *next;
	struct folder *folder;
	struct meta meta;
	uint64_t version;
	struct buffer xattrs;
	int set_meta, compare_meta; // what remains to be done or said at the end
	int is_new;
	int fd;
	uint64_t inode; // of the target's file
	uint64_t at;	// the next byte to ask for
	uint64_t differing;
	uint32_t asked; // requests under way
	int moved, other_size;
	char name[];
};

struct listing {
	struct folder *folder;
	int fd; // -1: the target has no such directory (a comparison)
	struct hashset seen;
	struct meta self;
	struct buffer self_xattrs;
	int have_self;
};

// A request under way.
struct slot {
	uint32_t number;
	int busy;
	int asked; // the request is on its way, so that an answer may come
	struct listing *listing;
	struct file_job *job;
	uint64_t offset, length;
	uint8_t flags;
};

struct target {
	struct engine engine;
	struct record record;
	struct link link;
	struct pool scanners, hashers;
	struct scratch scratch; // of the talking thread
	pthread_mutex_t lock;	// of todo
	struct todo todo, again;
	unsigned int round;
	struct hashset made;		   // directories that this run made: not to be called different as well
	struct links links[1 + PARTS_MAX]; // of each part: inode numbers are those of a file system
	struct slot slots[WINDOW];
	unsigned int busy;
	uint32_t next_number;
	struct file_job *first_job, *last_job; // with bytes still to ask for
	size_t jobs;
	int writes; // not only a comparison
	int scanned, committed;
	uint64_t probed;
};

int todo_add(struct todo *todo, const char *folder);
void todo_free(struct todo *todo);

// settle.c: the entries of a list
struct listing *listing_begin(struct target *target, const char *path);
int listing_entry(struct target *target, struct listing *listing, const struct entry_message *wanted);
// Deletes what the source does not have, and gives the directory its own metadata.
int listing_end(struct target *target, struct listing *listing, uint8_t flags);
void listing_free(struct listing *listing);
// If nothing of it is left to do, remembers it as equal and frees it.
void folder_done(struct target *target, struct folder *folder);
// It was moving: list it in the next round, or say so after the last.
int folder_again(struct target *target, struct folder *folder, const char *name);
int target_fail(struct target *target, int code, const char *doing, const char *folder, const char *name);
// target.c: remembers all that is in a directory as equal. Others do it, and it ends before the run does.
void scan_for_record(struct target *target, const char *folder);

// contents.c: the contents of files
int job_begin(struct target *target, struct listing *listing, const struct entry_message *wanted,
	      const struct entry *mine, int is_new, int meta_differs);
// Takes the next part of the oldest job into `slot`. 1 if it was asked for, 0 if the job turned out to be over.
int job_ask(struct target *target, struct slot *slot);
void hash_segment(void *context, void *item, struct scratch *scratch);
int contents_blocks(struct target *target, struct slot *slot, struct reader *body);
int contents_zeros(struct target *target, struct slot *slot, struct reader *body);
int contents_end(struct target *target, struct slot *slot, struct reader *body);
void jobs_free(struct target *target);

#endif
