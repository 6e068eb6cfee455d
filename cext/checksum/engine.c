// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>
#include "engine.h"
#include "mapping.h"

void engine_open(struct engine *e, const struct checksum_options *options, struct checksum_progress *progress,
		 struct checksum_error *error)
{
	memset(e, 0, sizeof(*e));
	memset(error, 0, sizeof(*error));
	e->options = options;
	e->progress = progress;
	e->error = error;
	e->sending.filled_ns = e->reading.filled_ns = now_ns();
	pthread_mutex_init(&e->lock, NULL);
	mapping_guard();
	if (only_load(&e->only, options))
		engine_fail(e, ENOMEM, "out of memory");
	int code = -parts_open(&e->parts, options->root_fd);

	if (code)
		engine_fail(e, code, "the directories cannot be opened: %s", strerror(code));
}

void engine_close(struct engine *e)
{
	only_free(&e->only);
	parts_close(&e->parts);
	pthread_mutex_destroy(&e->lock);
}

int engine_fail(struct engine *e, int code, const char *format, ...)
{
	va_list arguments;

	pthread_mutex_lock(&e->lock);
	if (!e->failed) {
		e->error->code = code;
		va_start(arguments, format);
		vsnprintf(e->error->text, sizeof(e->error->text), format, arguments);
		va_end(arguments);
	}
	__atomic_store_n(&e->failed, 1, __ATOMIC_RELEASE);
	pthread_mutex_unlock(&e->lock);
	return -1;
}

int engine_stopping(struct engine *e)
{
	if (__atomic_load_n(&e->failed, __ATOMIC_ACQUIRE))
		return 1;
	if (!__atomic_load_n(&e->progress->stop, __ATOMIC_RELAXED))
		return 0;
	engine_fail(e, ECANCELED, "stopped by the caller");
	return 1;
}

void engine_report(struct engine *e, uint32_t finding, int code, const char *folder, const char *name)
{
	char path[PATH_ROOM + NAME_ROOM];
	int length = snprintf(path, sizeof(path), "%s%s%s", folder, *folder && *name ? "/" : "", name);
	uint32_t head[3] = {(uint32_t)length, finding, (uint32_t)code};
	struct iovec parts[2] = {{head, sizeof(head)}, {path, (size_t)length}};

	COUNT(e, files_differing, finding != CHECKSUM_UNREADABLE && finding != CHECKSUM_CHANGING);
	COUNT(e, files_changing, finding == CHECKSUM_CHANGING);
	COUNT(e, errors, finding == CHECKSUM_UNREADABLE);
	if (e->options->report_fd < 0)
		return;
	pthread_mutex_lock(&e->lock);
	ssize_t wrote = writev(e->options->report_fd, parts, 2);
	pthread_mutex_unlock(&e->lock);
	if (wrote != (ssize_t)(sizeof(head) + (size_t)length))
		engine_fail(e, wrote < 0 ? errno : ENOSPC, "the report cannot be written");
}

// Whether `bytes` may pass now; then they are taken, on credit if must be, so that anything passes once.
static int bucket_take(struct engine *e, struct bucket *bucket, uint64_t rate, size_t bytes)
{
	double burst = (double)rate / 20 + FRAME_MAX; // 50 ms, and always one frame

	pthread_mutex_lock(&e->lock);
	uint64_t now = now_ns();

	bucket->tokens += (double)rate * (double)(now - bucket->filled_ns) / 1e9;
	bucket->tokens = bucket->tokens > burst ? burst : bucket->tokens;
	bucket->filled_ns = now;
	int may = bucket->tokens >= 0;

	bucket->tokens -= may ? (double)bytes : 0;
	pthread_mutex_unlock(&e->lock);
	return may;
}

// The limit may change while this waits.
static void pace(struct engine *e, struct bucket *bucket, const uint64_t *limit, size_t bytes)
{
	for (;;) {
		uint64_t rate = __atomic_load_n(limit, __ATOMIC_RELAXED);

		if (!rate || engine_stopping(e) || bucket_take(e, bucket, rate, bytes))
			return;
		nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
	}
}

void engine_pace_sending(struct engine *e, size_t bytes)
{
	pace(e, &e->sending, &e->progress->rate_bytes_s, bytes);
}

void engine_pace_reading(struct engine *e, size_t bytes)
{
	pace(e, &e->reading, &e->progress->read_bytes_s, bytes);
}

uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

int path_join(char to[PATH_ROOM], const char *folder, const char *name)
{
	int length = snprintf(to, PATH_ROOM, "%s%s%s", folder, *folder && *name ? "/" : "", name);

	return length < 0 || (unsigned int)length >= PATH_ROOM ? -1 : 0;
}
