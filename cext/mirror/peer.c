// SPDX-License-Identifier: Apache-2.0
// The other end: what it acknowledges, when it counts as lost, and what becomes of those who wait for it.
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include "engine.h"

void peer_lost(struct mirror *fs, int code, const char *why)
{
	if (fs->state != MIRROR_PAIRED)
		return;
	fs->state = MIRROR_UNDECIDED;
	atomic_store(&fs->acks_from, 0);
	fs->generation++;
	fs->lost_ns = clock_ns();
	stream_drop_queue(fs);
	transport_shutdown(&fs->link);
	pthread_cond_broadcast(&fs->stream_wake);
	pthread_cond_broadcast(&fs->idle_wake);
	event_say(fs, MIRROR_EVENT_LOST, code, why);
}

struct pending *peer_take_pending(struct mirror *fs)
{
	struct pending *list = fs->syncs;
	struct pending **end = &list;

	while (*end)
		end = &(*end)->next;
	*end = fs->first;
	fs->first = fs->syncs = NULL;
	fs->last = &fs->first;
	fs->lag_bytes = fs->lag_frames = 0;
	fs->stats.waiting = 0;
	return list;
}

// Without the lock: a reply may forget a node. A checkpoint that ends with the peer is none.
void peer_finish(struct mirror *fs, struct pending *list, int error)
{
	for (struct pending *pending = list, *next; pending; pending = next) {
		next = pending->next;
		if (pending->op)
			op_done(fs, pending->op, error);
		free(pending);
	}
}

void *peer_sender(void *context)
{
	struct mirror *fs = context;

	prctl(PR_SET_NAME, "mirror-send");
	pthread_mutex_lock(&fs->stream_lock);
	while (fs->state == MIRROR_PAIRED) {
		if (!fs->queue) {
			pthread_cond_wait(&fs->stream_wake, &fs->stream_lock);
			continue;
		}
		pthread_mutex_unlock(&fs->stream_lock);
		transport_wait(&fs->link, 1, 200);
		pthread_mutex_lock(&fs->stream_lock);
		if (fs->state == MIRROR_PAIRED)
			stream_push(fs);
	}
	pthread_mutex_unlock(&fs->stream_lock);
	return NULL;
}

static void count_wait(struct mirror *fs, const struct pending *pending)
{
	uint64_t us = (clock_ns() - pending->sent_ns) / 1000;
	int slot = us ? 64 - __builtin_clzll(us) : 0;

	fs->stats.replies_us[slot < 31 ? slot : 31]++;
	fs->stats.waiting--;
}

static void move_to(struct pending *pending, struct pending ***end)
{
	pending->next = NULL;
	**end = pending;
	*end = &pending->next;
}

// Lock held. What waits for no disk goes to `done`.
static void applied(struct mirror *fs, uint64_t seq, struct pending ***done)
{
	while (fs->first && fs->first->seq <= seq) {
		struct pending *pending = fs->first;

		fs->first = pending->next;
		if (!fs->first)
			fs->last = &fs->first;
		fs->lag_bytes -= pending->bytes;
		fs->lag_frames--;
		if (pending->durable && (pending->op || pending->checkpoint)) {
			pending->next = fs->syncs;
			fs->syncs = pending;
			continue;
		}
		if (pending->op)
			count_wait(fs, pending);
		move_to(pending, done);
	}
	if (seq > fs->applied)
		fs->applied = seq;
}

static void durable(struct mirror *fs, uint64_t seq, struct pending ***done)
{
	applied(fs, seq, done);
	for (struct pending **at = &fs->syncs; *at; at = &(*at)->next) {
		struct pending *pending = *at;

		if (pending->seq != seq)
			continue;
		*at = pending->next;
		if (pending->op)
			count_wait(fs, pending);
		if (pending->checkpoint)
			event_checkpoint(fs, pending->checkpoint);
		move_to(pending, done);
		return;
	}
}

static void take_ack(struct mirror *fs, const struct ack *ack, struct pending ***done)
{
	char why[96];

	if (ack->magic != ACK_MAGIC || ack->sum != wire_ack_sum(fs->session, ack) || ack->seq > fs->seq) {
		peer_lost(fs, EPROTO, "the peer sent something that is no acknowledgement of ours");
		return;
	}
	fs->heard_ns = clock_ns();
	switch (ack->kind) {
	case ACK_APPLIED:
		applied(fs, ack->seq, done);
		break;
	case ACK_DURABLE:
		durable(fs, ack->seq, done);
		break;
	default:
		snprintf(why, sizeof(why), "the peer could not %s: %s", wire_op_name(ack->op), strerror(ack->code));
		peer_lost(fs, ack->code, why);
	}
}

// Reads what is here; acks_lock held. 1, 0 if nothing was here, -1 when the connection is over.
static int read_acks(struct mirror *fs)
{
	struct pending *list = NULL, **done = &list;
	ssize_t got = transport_receive(&fs->link, fs->ack_bytes + fs->ack_have, sizeof(fs->ack_bytes) - fs->ack_have);
	size_t at = 0;
	bool goes_on;

	if (got == -EAGAIN)
		return 0;
	pthread_mutex_lock(&fs->stream_lock);
	if (got <= 0)
		peer_lost(fs, got ? (int)-got : ECONNRESET, "the peer closed the connection");
	for (fs->ack_have += got > 0 ? (size_t)got : 0; fs->ack_have - at >= sizeof(struct ack);
	     at += sizeof(struct ack)) {
		struct ack ack;

		memcpy(&ack, fs->ack_bytes + at, sizeof(ack));
		if (fs->state == MIRROR_PAIRED)
			take_ack(fs, &ack, &done);
	}
	if (stream_idle(fs))
		pthread_cond_broadcast(&fs->idle_wake);
	goes_on = fs->state == MIRROR_PAIRED;
	pthread_mutex_unlock(&fs->stream_lock);
	memmove(fs->ack_bytes, fs->ack_bytes + at, fs->ack_have - at);
	fs->ack_have -= at;
	peer_finish(fs, list, 0);
	return goes_on ? 1 : -1;
}

void peer_look_for_acks(struct mirror *fs)
{
	// Whoever reads now reads all; what comes behind it wakes the next poll.
	if (pthread_mutex_trylock(&fs->acks_lock))
		return;
	atomic_fetch_add(&fs->acks_read_beside, 1);
	while (atomic_load(&fs->acks_from) && read_acks(fs) > 0)
		;
	pthread_mutex_unlock(&fs->acks_lock);
}

// While rings read the acknowledgements of their own operations, this thread only looks now and then.
static int wait_for_acks(struct mirror *fs, unsigned *beside)
{
	unsigned now = atomic_load(&fs->acks_read_beside);
	struct timespec pause = {0, 5000000};

	if (now == *beside)
		return transport_wait(&fs->link, 0, 500);
	*beside = now;
	nanosleep(&pause, NULL);
	return 0;
}

void *peer_acks(void *context)
{
	struct mirror *fs = context;
	unsigned beside = atomic_load(&fs->acks_read_beside);
	bool paired = true;

	prctl(PR_SET_NAME, "mirror-acks");
	while (paired) {
		int got;

		pthread_mutex_lock(&fs->acks_lock);
		got = read_acks(fs);
		pthread_mutex_unlock(&fs->acks_lock);
		if (got < 0 || (got == 0 && wait_for_acks(fs, &beside) < 0))
			return NULL;
		pthread_mutex_lock(&fs->stream_lock);
		paired = fs->state == MIRROR_PAIRED;
		pthread_mutex_unlock(&fs->stream_lock);
	}
	return NULL;
}

// A slow link that makes progress is not a lost peer: silence counts, while something is on its way.
static bool too_old(const struct mirror *fs, const struct pending *pending, uint64_t now)
{
	uint64_t since;

	if (!pending)
		return false;
	since = pending->sent_ns > fs->heard_ns ? pending->sent_ns : fs->heard_ns;
	return now > since && now - since > fs->config.peer_ms * 1000000ull;
}

static struct pending *tick(struct mirror *fs, uint64_t now)
{
	uint64_t limit = fs->config.peer_ms;
	struct pending *refused = NULL;

	if (fs->state == MIRROR_PAIRED) {
		bool slow_disk = false;

		for (struct pending *each = fs->syncs; each; each = each->next)
			slow_disk |= now > each->sent_ns && now - each->sent_ns > limit * 1000000;
		if (too_old(fs, fs->first, now))
			peer_lost(fs, ETIMEDOUT, "the peer did not acknowledge in time");
		else if (slow_disk)
			peer_lost(fs, ETIMEDOUT, "the peer's disk did not answer in time");
		else if (!fs->first && now - fs->said_ns > limit * 1000000 / 3) {
			fs->said_ns = now;
			stream_ping(fs);
		}
	}
	if (fs->state == MIRROR_UNDECIDED && fs->config.decide_ms && fs->lost_ns &&
	    now - fs->lost_ns > (uint64_t)fs->config.decide_ms * 1000000) {
		fs->state = MIRROR_REFUSING;
		refused = peer_take_pending(fs);
		event_say(fs, MIRROR_EVENT_REFUSED, ETIMEDOUT, "nobody decided in time; changes fail");
	}
	return refused;
}

void *peer_clock(void *context)
{
	struct mirror *fs = context;
	struct timespec pause = {0, 50000000};

	prctl(PR_SET_NAME, "mirror-clock");
	for (int ticks = 0; !atomic_load(&fs->stopping); ticks++) {
		struct pending *refused;

		nanosleep(&pause, NULL);
		pthread_mutex_lock(&fs->stream_lock);
		refused = tick(fs, clock_ns());
		pthread_mutex_unlock(&fs->stream_lock);
		peer_finish(fs, refused, -EIO);
		if (ticks % 20 == 0)
			times_send_all(fs);
	}
	return NULL;
}
