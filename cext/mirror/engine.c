// SPDX-License-Identifier: Apache-2.0
// Start, stop and steer: what api.h promises for the primary.
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <time.h>
#include <unistd.h>
#include "../bulk.h"
#include "engine.h"

int thread_start(pthread_t *thread, void *(*run)(void *), void *context)
{
	sigset_t all, before;
	int error;

	// Signals are Python's affair.
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = pthread_create(thread, NULL, run, context);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return -error;
}

static int start_worker(struct mirror *fs)
{
	struct worker *worker = calloc(1, sizeof(*worker));
	int error = -ENOMEM;

	if (!worker)
		return error;
	worker->fs = fs;
	worker->memory = bulk_room(DEVICE_ROOM);
	worker->device = worker->memory ? device_clone(fs) : -ENOMEM;
	error = worker->device < 0 ? worker->device : 0;
	atomic_fetch_add(&fs->alive, 1);
	if (!error)
		error = thread_start(&fs->threads[fs->workers], device_worker, worker);
	if (error) {
		atomic_fetch_sub(&fs->alive, 1);
		free(worker->memory);
		free(worker);
		return error;
	}
	fs->workers++;
	return 0;
}

static int prepare(struct mirror *fs, const struct mirror_config *config)
{
	pthread_rwlockattr_t fair;

	fs->config = *config;
	fs->mount_point = strdup(config->mount_point);
	fs->patterns = strdup(config->excluded ? config->excluded : "");
	fs->root_fd = fcntl(config->backing, F_DUPFD_CLOEXEC, 3);
	fs->state = config->state;
	fs->ack = config->ack;
	fs->generation = 1;
	fs->link.fd = -1;
	fs->device = -1;
	fs->last = &fs->first;
	fs->queue_end = &fs->queue;
	pthread_mutex_init(&fs->stream_lock, NULL);
	pthread_mutex_init(&fs->acks_lock, NULL);
	pthread_cond_init(&fs->stream_wake, NULL);
	pthread_cond_init(&fs->idle_wake, NULL);
	pthread_cond_init(&fs->thaw_wake, NULL);
	// A checkpoint must get its turn while others go on changing; nobody is in the gate twice.
	pthread_rwlockattr_init(&fair);
	pthread_rwlockattr_setkind_np(&fair, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&fs->gate, &fair);
	if (!fs->mount_point || !fs->patterns || fs->root_fd < 0)
		return fs->root_fd < 0 ? -EBADF : -ENOMEM;
	return events_start(&fs->events);
}

struct mirror *mirror_start(const struct mirror_config *config, char *error, int error_size)
{
	struct mirror *fs = calloc(1, sizeof(*fs));
	int wanted = config->workers < 1 ? 1 : config->workers > MAX_WORKERS ? MAX_WORKERS : config->workers;
	int code;

	if (!fs)
		return NULL;
	snprintf(error, (size_t)error_size, "out of memory");
	fs->events.fd = -1;
	code = prepare(fs, config);
	if (!code) {
		code = nodes_start(fs);
		if (code)
			snprintf(error, (size_t)error_size, "the directory's file system has no file handles: %s",
				 strerror(-code));
	}
	if (!code && config->uring)
		fs->uring = uring_new(fs);
	if (!code)
		code = device_mount(fs, error, error_size);
	if (code) {
		mirror_free(fs);
		return NULL;
	}
	while (!code && fs->workers < wanted)
		code = start_worker(fs);
	if (!code && fs->uring)
		code = uring_start(fs->uring);
	if (!code)
		code = thread_start(&fs->clock, peer_clock, fs);
	if (code) {
		snprintf(error, (size_t)error_size, "threads cannot be started: %s", strerror(-code));
		mirror_stop(fs, 1);
		mirror_free(fs);
		return NULL;
	}
	return fs;
}

static void end_threads(struct mirror *fs)
{
	if (!fs->threads_on)
		return;
	pthread_join(fs->sender, NULL);
	pthread_join(fs->acks, NULL);
	pthread_mutex_lock(&fs->acks_lock);
	close(fs->link.fd);
	fs->link.fd = -1;
	fs->ack_have = 0;
	pthread_mutex_unlock(&fs->acks_lock);
	fs->threads_on = false;
}

// Ends the wait of everything that waits, with `error`.
static int change_state(struct mirror *fs, int state, int error)
{
	struct pending *list;

	pthread_mutex_lock(&fs->stream_lock);
	if (fs->state == MIRROR_PAIRED) {
		pthread_mutex_unlock(&fs->stream_lock);
		return -EISCONN;
	}
	fs->state = state;
	fs->generation++;
	list = peer_take_pending(fs);
	pthread_mutex_unlock(&fs->stream_lock);
	peer_finish(fs, list, error);
	return 0;
}

int mirror_go_alone(struct mirror *fs)
{
	return change_state(fs, MIRROR_ALONE, 0);
}

int mirror_refuse(struct mirror *fs)
{
	return change_state(fs, MIRROR_REFUSING, -EIO);
}

static void forget_times(struct mirror *fs)
{
	while (fs->times) {
		struct node *node = fs->times;

		fs->times = node->times_next;
		atomic_store(&node->times_dirty, false);
		node->refs--;
		node_retire(fs, node);
	}
}

int mirror_attach(struct mirror *fs, int fd, struct mirror_tls *tls, uint64_t session, uint64_t epoch)
{
	struct pending *list;
	int code;

	pthread_mutex_lock(&fs->stream_lock);
	code = fs->state == MIRROR_PAIRED ? -EISCONN : !session || session == fs->session ? -EINVAL : 0;
	pthread_mutex_unlock(&fs->stream_lock);
	if (code)
		return code;
	end_threads(fs);
	fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (fd < 0)
		return -errno;
	transport_prepare(fd);
	// Between two changes: none may be half in the old session.
	pthread_rwlock_wrlock(&fs->gate);
	pthread_mutex_lock(&fs->stream_lock);
	forget_times(fs);
	fs->link = (struct transport){fd, tls};
	fs->session = session;
	fs->epoch = epoch;
	fs->seq = fs->applied = 0;
	fs->generation++;
	fs->said_ns = clock_ns();
	list = peer_take_pending(fs);
	fs->state = MIRROR_PAIRED;
	if (fs->config.confirm)
		event_say(fs, MIRROR_EVENT_ATTACHED, 0, "");
	atomic_store(&fs->acks_from, session << 20 | (uint64_t)fd);
	code = thread_start(&fs->sender, peer_sender, fs);
	if (!code)
		code = thread_start(&fs->acks, peer_acks, fs);
	fs->threads_on = !code;
	if (code)
		fs->state = MIRROR_UNDECIDED;
	pthread_mutex_unlock(&fs->stream_lock);
	pthread_rwlock_unlock(&fs->gate);
	peer_finish(fs, list, 0);
	return code;
}

static void until(struct timespec *end, uint32_t timeout_ms)
{
	clock_gettime(CLOCK_REALTIME, end);
	end->tv_sec += timeout_ms / 1000;
	end->tv_nsec += timeout_ms % 1000 * 1000000l;
	if (end->tv_nsec >= 1000000000l) {
		end->tv_sec++;
		end->tv_nsec -= 1000000000l;
	}
}

int mirror_settle(struct mirror *fs, uint32_t timeout_ms)
{
	struct timespec end;
	int code = 0;

	until(&end, timeout_ms);
	times_send_all(fs);
	pthread_mutex_lock(&fs->stream_lock);
	if (fs->state == MIRROR_PAIRED)
		stream_ping(fs);
	while (fs->state == MIRROR_PAIRED && !stream_idle(fs) && !code)
		code = -pthread_cond_timedwait(&fs->idle_wake, &fs->stream_lock, &end);
	if (fs->state != MIRROR_PAIRED)
		code = -ENOTCONN;
	pthread_mutex_unlock(&fs->stream_lock);
	return code;
}

int mirror_detach(struct mirror *fs)
{
	pthread_mutex_lock(&fs->stream_lock);
	peer_lost(fs, 0, "detached");
	pthread_mutex_unlock(&fs->stream_lock);
	end_threads(fs);
	return 0;
}

int mirror_checkpoint(struct mirror *fs)
{
	struct change change = {.frame = {.op = WIRE_SYNCFS, .flags = WIRE_WANT_ACK}, .node = fs->root};
	uint64_t number;
	int code;

	pthread_rwlock_wrlock(&fs->gate);
	pthread_mutex_lock(&fs->stream_lock);
	number = fs->events.number;
	code = fs->state == MIRROR_PAIRED ? 0 : -ENOTCONN;
	if (!code)
		fs->generation++;
	pthread_mutex_unlock(&fs->stream_lock);
	pthread_rwlock_unlock(&fs->gate);
	// The times of all that was told up to here are part of it.
	times_send_all(fs);
	if (!code)
		code = parts_sync(&fs->parts);
	// The peer after this side: its answer then speaks for both.
	change.checkpoint = number + !number;
	if (!code)
		stream_change(fs, &change);
	return code;
}

int mirror_retell(struct mirror *fs)
{
	struct mirror_event event = {.kind = MIRROR_EVENT_RETOLD};

	pthread_rwlock_wrlock(&fs->gate);
	pthread_mutex_lock(&fs->stream_lock);
	event_put(fs, &event);
	fs->generation++;
	pthread_mutex_unlock(&fs->stream_lock);
	pthread_rwlock_unlock(&fs->gate);
	return 0;
}

int mirror_freeze(struct mirror *fs)
{
	pthread_mutex_lock(&fs->stream_lock);
	fs->frozen = !atomic_load(&fs->stopping);
	pthread_mutex_unlock(&fs->stream_lock);
	// Whoever was in before is out now; whoever comes sees the flag.
	pthread_rwlock_wrlock(&fs->gate);
	pthread_rwlock_unlock(&fs->gate);
	return 0;
}

int mirror_thaw(struct mirror *fs)
{
	pthread_mutex_lock(&fs->stream_lock);
	fs->frozen = false;
	pthread_cond_broadcast(&fs->thaw_wake);
	pthread_mutex_unlock(&fs->stream_lock);
	return 0;
}

int mirror_set_ack(struct mirror *fs, int ack)
{
	if (ack < MIRROR_STRICT || ack > MIRROR_ASYNC)
		return -EINVAL;
	pthread_mutex_lock(&fs->stream_lock);
	fs->ack = ack;
	pthread_mutex_unlock(&fs->stream_lock);
	return 0;
}

void mirror_read_stats(struct mirror *fs, struct mirror_stats *stats)
{
	pthread_mutex_lock(&fs->stream_lock);
	*stats = fs->stats;
	stats->state = fs->state;
	stats->ack = fs->ack;
	stats->sent_seq = fs->seq;
	stats->applied_seq = fs->applied;
	stats->lag_bytes = fs->lag_bytes;
	stats->lag_frames = fs->lag_frames;
	stats->lag_us = fs->first && fs->first->seq ? (clock_ns() - fs->first->sent_ns) / 1000 : 0;
	stats->write_us = atomic_load(&fs->write_ns) / 1000;
	stats->sync_us = atomic_load(&fs->sync_ns) / 1000;
	stats->uring = fs->uring != NULL;
	pthread_mutex_lock(&fs->nodes_lock);
	stats->nodes = fs->node_count;
	pthread_mutex_unlock(&fs->nodes_lock);
	pthread_mutex_unlock(&fs->stream_lock);
}

int mirror_stop(struct mirror *fs, int force)
{
	int code;

	mirror_thaw(fs);
	// Over several directories it is mounted at more places, whose users keep it alive.
	code = force && fs->parts.count ? -EBUSY : device_unmount(fs, 0);
	if (code && code != -EINVAL && code != -ENOTCONN) {
		if (!force)
			return code;
		// Whoever waits for a reply must get one before the device goes.
		mirror_detach(fs);
		mirror_refuse(fs);
		device_abort(fs);
	}
	if (atomic_load(&fs->alive))
		mirror_settle(fs, 5000);
	atomic_store(&fs->stopping, true);
	return 0;
}

void mirror_free(struct mirror *fs)
{
	atomic_store(&fs->stopping, true);
	pthread_mutex_lock(&fs->events.lock);
	fs->events.closed = true;
	pthread_cond_broadcast(&fs->events.wake);
	pthread_mutex_unlock(&fs->events.lock);
	for (int i = 0; i < fs->workers; i++)
		pthread_join(fs->threads[i], NULL);
	if (fs->uring)
		uring_join(fs->uring);
	if (fs->clock)
		pthread_join(fs->clock, NULL);
	mirror_detach(fs);
	peer_finish(fs, peer_take_pending(fs), -EIO);
	stream_drop_queue(fs);
	uring_free(fs->uring);
	if (fs->device >= 0)
		close(fs->device);
	nodes_free(fs);
	events_free(&fs->events);
	if (fs->root_fd >= 0)
		close(fs->root_fd);
	free(fs->names);
	free(fs->mount_point);
	free(fs->patterns);
	free(fs);
}
