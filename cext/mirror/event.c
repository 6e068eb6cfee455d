// SPDX-License-Identifier: Apache-2.0
// What Python must know, in order, through a ring and an eventfd. A zone is told once between two checkpoints, so that
// a busy database does not flood the ring; if it overflows all the same, the caller learns that anything may have
// changed.
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "engine.h"

int events_start(struct event_ring *ring)
{
	pthread_mutex_init(&ring->lock, NULL);
	pthread_cond_init(&ring->wake, NULL);
	ring->slots = calloc(EVENT_RING, sizeof(*ring->slots));
	ring->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	return ring->slots && ring->fd >= 0 ? 0 : -ENOMEM;
}

void events_free(struct event_ring *ring)
{
	if (ring->fd >= 0)
		close(ring->fd);
	free(ring->slots);
}

static uint64_t put(struct event_ring *ring, const struct mirror_event *event)
{
	uint64_t number, one = 1;

	pthread_mutex_lock(&ring->lock);
	number = ++ring->number;
	// The last slot is for the overflow itself.
	if (ring->head - ring->tail >= EVENT_RING - 1) {
		if (!ring->overflow) {
			ring->overflow = true;
			ring->slots[ring->head % EVENT_RING] =
			    (struct mirror_event){.kind = MIRROR_EVENT_OVERFLOW, .number = number};
			ring->head++;
		} else {
			ring->slots[(ring->head - 1) % EVENT_RING].number = number;
		}
	} else {
		ring->slots[ring->head % EVENT_RING] = *event;
		ring->slots[ring->head % EVENT_RING].number = number;
		ring->head++;
	}
	if (event->waits)
		ring->asked = number;
	pthread_mutex_unlock(&ring->lock);
	if (write(ring->fd, &one, sizeof(one)) < 0)
		return number; // the counter is full: it is readable already
	return number;
}

int mirror_next_events(struct mirror *fs, struct mirror_event *events, int room)
{
	struct event_ring *ring = &fs->events;
	uint64_t count;
	int taken = 0;

	if (read(ring->fd, &count, sizeof(count)) < 0 && errno != EAGAIN)
		return -errno;
	pthread_mutex_lock(&ring->lock);
	while (taken < room && ring->tail != ring->head)
		events[taken++] = ring->slots[ring->tail++ % EVENT_RING];
	pthread_cond_broadcast(&ring->wake);
	if (ring->tail == ring->head)
		ring->overflow = false;
	else if (write(ring->fd, &(uint64_t){1}, sizeof(uint64_t)) < 0)
		taken = -errno;
	pthread_mutex_unlock(&ring->lock);
	return taken;
}

int mirror_event_fd(struct mirror *fs)
{
	return fs->events.fd;
}

void mirror_confirm(struct mirror *fs, uint64_t number)
{
	pthread_mutex_lock(&fs->events.lock);
	if (number > fs->events.confirmed)
		fs->events.confirmed = number;
	pthread_cond_broadcast(&fs->events.wake);
	pthread_mutex_unlock(&fs->events.lock);
}

bool mark_zones(struct zone_set *set, uint64_t first, uint64_t last)
{
	uint64_t words = last / 64 + 1;
	bool fresh = false;

	// A range to the end of an endless file is no range of zones: it is told every time.
	if (words > (1u << 20))
		return true;
	if (words > set->words) {
		uint64_t *grown = realloc(set->bits, words * 8);

		if (!grown)
			return true;
		memset(grown + set->words, 0, (words - set->words) * 8);
		set->bits = grown;
		set->words = words;
	}
	for (uint64_t zone = first; zone <= last; zone++) {
		fresh |= !(set->bits[zone / 64] >> (zone % 64) & 1);
		set->bits[zone / 64] |= 1ull << (zone % 64);
	}
	return fresh;
}

uint64_t event_put(struct mirror *fs, struct mirror_event *event)
{
	fs->stats.events++;
	return put(&fs->events, event);
}

static uint64_t tell(struct mirror *fs, int kind, struct node *node, uint64_t offset, uint64_t length)
{
	int shift = fs->state == MIRROR_PAIRED ? 24 : 16;
	uint64_t first = offset >> shift, last = (offset + (length ? length - 1 : 0)) >> shift;
	struct mirror_event event = {.kind = kind};
	bool fresh;

	if (node->told != fs->generation) {
		node->told = fs->generation;
		node->names_told = node->inode_told = false;
		if (node->zones.bits)
			memset(node->zones.bits, 0, node->zones.words * 8);
	}
	if (kind == MIRROR_EVENT_DATA) {
		fresh = mark_zones(&node->zones, first, last);
		event.offset = first << shift;
		event.length = (last - first + 1) << shift;
	} else {
		bool *told = kind == MIRROR_EVENT_NAMES ? &node->names_told : &node->inode_told;

		fresh = !*told;
		*told = true;
	}
	if (!fresh)
		return fs->events.number;
	event.handle_type = node->handle.type;
	event.handle_size = node->handle.size;
	memcpy(event.handle, node->handle.bytes, sizeof(event.handle));
	fs->stats.events++;
	return put(&fs->events, &event);
}

void event_wait_room(struct event_ring *ring)
{
	pthread_mutex_lock(&ring->lock);
	while (ring->head - ring->tail > EVENT_RING * 3 / 4 && !ring->closed)
		pthread_cond_wait(&ring->wake, &ring->lock);
	pthread_mutex_unlock(&ring->lock);
}

// Tells of a change that is to come; the number that must be confirmed before it, 0 if none.
static uint64_t announce(struct mirror *fs, int kind, struct node *node, uint64_t offset, uint64_t length)
{
	uint64_t number;

	if (node->excluded)
		return 0;
	if (fs->config.confirm)
		event_wait_room(&fs->events);
	pthread_mutex_lock(&fs->stream_lock);
	number = (fs->config.confirm ? dirty_tell : tell)(fs, kind, node, offset, length);
	pthread_mutex_unlock(&fs->stream_lock);
	return fs->config.confirm ? number : 0;
}

static bool is_confirmed(struct event_ring *ring, uint64_t number)
{
	bool confirmed;

	if (!number)
		return true;
	pthread_mutex_lock(&ring->lock);
	confirmed = ring->confirmed >= number;
	pthread_mutex_unlock(&ring->lock);
	return confirmed;
}

void event_wait(struct event_ring *ring, uint64_t number)
{
	// A worker waits here for this node's own disk, once for each zone between two checkpoints; not for the
	// network.
	pthread_mutex_lock(&ring->lock);
	while (ring->confirmed < number && !ring->closed)
		pthread_cond_wait(&ring->wake, &ring->lock);
	pthread_mutex_unlock(&ring->lock);
}

void change_also(struct mirror *fs, int kind, struct node *node, uint64_t offset, uint64_t length)
{
	event_wait(&fs->events, announce(fs, kind, node, offset, length));
}

// Enters the gate if nothing holds changes back now.
static bool slip_in(struct mirror *fs)
{
	bool frozen;

	if (pthread_rwlock_tryrdlock(&fs->gate))
		return false;
	pthread_mutex_lock(&fs->stream_lock);
	frozen = fs->frozen;
	pthread_mutex_unlock(&fs->stream_lock);
	if (frozen)
		pthread_rwlock_unlock(&fs->gate);
	return !frozen;
}

// Returns inside the gate, in a moment in which changes may begin.
static void enter_gate(struct mirror *fs)
{
	bool frozen = true;

	while (frozen) {
		pthread_rwlock_rdlock(&fs->gate);
		pthread_mutex_lock(&fs->stream_lock);
		frozen = fs->frozen;
		if (frozen) {
			pthread_rwlock_unlock(&fs->gate);
			while (fs->frozen)
				pthread_cond_wait(&fs->thaw_wake, &fs->stream_lock);
		}
		pthread_mutex_unlock(&fs->stream_lock);
	}
}

bool change_begin(struct worker *worker, int kind, struct node *node, uint64_t offset, uint64_t length)
{
	struct mirror *fs = worker->fs;
	uint64_t number;
	bool refused;

	if (!slip_in(fs)) {
		if (uring_defer(worker))
			return false;
		enter_gate(fs);
	}
	pthread_mutex_lock(&fs->stream_lock);
	refused = fs->state == MIRROR_REFUSING && !node->excluded;
	pthread_mutex_unlock(&fs->stream_lock);
	if (refused) {
		pthread_rwlock_unlock(&fs->gate);
		reply(worker, -EIO, NULL, 0);
		return false;
	}
	number = announce(fs, kind, node, offset, length);
	if (!is_confirmed(&fs->events, number)) {
		if (uring_defer(worker)) {
			change_end(fs);
			return false;
		}
		event_wait(&fs->events, number);
	}
	if (atomic_load(&fs->stopping) && fs->config.confirm) {
		// Nobody keeps the log any more.
		pthread_rwlock_unlock(&fs->gate);
		reply(worker, -EIO, NULL, 0);
		return false;
	}
	return true;
}

void change_end(struct mirror *fs)
{
	pthread_rwlock_unlock(&fs->gate);
}

void event_checkpoint(struct mirror *fs, uint64_t number)
{
	struct mirror_event event = {.kind = MIRROR_EVENT_CHECKPOINT, .offset = number};

	put(&fs->events, &event);
}

void event_say(struct mirror *fs, int kind, int code, const char *text)
{
	struct mirror_event event = {.kind = kind, .code = code};

	snprintf(event.text, sizeof(event.text), "%s", text);
	put(&fs->events, &event);
}
