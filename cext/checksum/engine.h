// SPDX-License-Identifier: Apache-2.0
// What all parts of one run share: its options, counters, secret, and the first failure.
#ifndef CHECKSUM_ENGINE_H
#define CHECKSUM_ENGINE_H

#include <pthread.h>
#include <stdarg.h>
#include "abi.h"
#include "digest.h"
#include "only.h"
#include "../parts.h"

#define FRAME_MAX  (1u << 20) // payload of a frame
#define SEGMENT	   (8u << 20) // bytes of a file that one request compares
#define SMALL_FILE (1u << 20) // up to here contents are part of the directory's digest
#define WINDOW	   32u	      // requests under way at most
#define PATH_ROOM  4096u      // the longest path below the directory, its 0 included
#define NAME_ROOM  256u
#define XATTRS_MAX (256u << 10) // of one inode, all together
#define ROUNDS	   3		// how often a directory that changes under us is tried

// A token bucket; in debt nothing passes. All are under the engine's lock.
struct bucket {
	double tokens; // bytes
	uint64_t filled_ns;
};

struct engine {
	const struct checksum_options *options;
	struct checksum_progress *progress;
	struct checksum_error *error;
	pthread_mutex_t lock; // of error and report
	int failed;
	struct secret secret;
	struct only only;
	struct parts parts;
	struct bucket sending, reading;
};

#define COUNT(engine, field, amount) __atomic_fetch_add(&(engine)->progress->field, (amount), __ATOMIC_RELAXED)

void engine_open(struct engine *e, const struct checksum_options *options, struct checksum_progress *progress,
		 struct checksum_error *error);
void engine_close(struct engine *e);
// The first failure wins; always returns -1.
int engine_fail(struct engine *e, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));
// Something failed, or the caller wants the run to end.
int engine_stopping(struct engine *e);
void engine_report(struct engine *e, uint32_t finding, int code, const char *folder, const char *name);
// Wait until the caller's limits let so much be sent, or be read from the disk.
void engine_pace_sending(struct engine *e, size_t bytes);
void engine_pace_reading(struct engine *e, size_t bytes);
uint64_t now_ns(void);
// "folder/name" in `to`; "" is the directory itself. -1 if it does not fit.
int path_join(char to[PATH_ROOM], const char *folder, const char *name);

#endif
