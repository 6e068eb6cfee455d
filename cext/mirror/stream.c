// SPDX-License-Identifier: Apache-2.0
// The ordered stream of changes. A worker puts its bytes into the socket itself when there is room, which saves a
// wake-up; what does not fit is left to the sender thread, so that no worker waits for the network.
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "engine.h"

static void queue_rest(struct mirror *fs, const struct iovec *parts, int count, size_t sent, size_t total)
{
	struct chunk *chunk = malloc(sizeof(*chunk) + total - sent);
	size_t at = 0;

	if (!chunk) {
		peer_lost(fs, ENOMEM, "no memory for the replication queue");
		return;
	}
	*chunk = (struct chunk){.size = total - sent};
	for (int i = 0; i < count; i++) {
		size_t skip = sent < parts[i].iov_len ? sent : parts[i].iov_len;

		sent -= skip;
		memcpy(chunk->data + at, (char *)parts[i].iov_base + skip, parts[i].iov_len - skip);
		at += parts[i].iov_len - skip;
	}
	*fs->queue_end = chunk;
	fs->queue_end = &chunk->next;
	fs->queued += chunk->size;
	pthread_cond_signal(&fs->stream_wake);
}

// Nothing can be sent any more. What the peer said last may be here, unread, and be the reason: the thread that reads
// acknowledgements finds that or the end at once, and says that the peer is lost.
static void broken(struct mirror *fs)
{
	stream_drop_queue(fs);
	transport_shutdown(&fs->link);
}

static void put(struct mirror *fs, const struct iovec *parts, int count)
{
	size_t total = 0;
	ssize_t sent = 0;

	for (int i = 0; i < count; i++)
		total += parts[i].iov_len;
	if (!fs->queue)
		sent = transport_send(&fs->link, parts, count);
	if (sent < 0) {
		broken(fs);
		return;
	}
	fs->stats.bytes_sent += total;
	if ((size_t)sent < total || transport_pending(&fs->link))
		queue_rest(fs, parts, count, (size_t)sent, total);
}

bool stream_push(struct mirror *fs)
{
	while (fs->queue) {
		struct chunk *chunk = fs->queue;
		struct iovec part = {chunk->data + chunk->done, chunk->size - chunk->done};
		ssize_t sent = transport_send(&fs->link, &part, 1);

		if (sent < 0) {
			broken(fs);
			return true;
		}
		chunk->done += (size_t)sent;
		fs->queued -= (size_t)sent;
		if (chunk->done < chunk->size || transport_pending(&fs->link))
			return false;
		fs->queue = chunk->next;
		if (!fs->queue)
			fs->queue_end = &fs->queue;
		free(chunk);
	}
	return true;
}

void stream_drop_queue(struct mirror *fs)
{
	for (struct chunk *chunk = fs->queue, *next; chunk; chunk = next) {
		next = chunk->next;
		free(chunk);
	}
	fs->queue = NULL;
	fs->queue_end = &fs->queue;
	fs->queued = 0;
}

static bool must_wait(const struct mirror *fs, enum wait_for wait)
{
	bool behind = fs->lag_bytes > fs->config.lag_bytes;

	switch (wait) {
	case WAIT_NOTHING:
		return false;
	case WAIT_WRITE:
	case WAIT_NAMES:
		return fs->ack == MIRROR_STRICT || behind;
	case WAIT_RENAME:
	case WAIT_SYNC:
		return fs->ack != MIRROR_ASYNC || behind;
	}
	return true;
}

static void remember(struct mirror *fs, const struct change *change, uint32_t bytes, bool waits)
{
	struct pending *pending = calloc(1, sizeof(*pending));

	if (!pending) {
		peer_lost(fs, ENOMEM, "no memory for the replication queue");
		return;
	}
	pending->seq = fs->seq;
	pending->sent_ns = clock_ns();
	pending->bytes = bytes;
	pending->checkpoint = change ? change->checkpoint : 0;
	pending->durable = change && (change->wait == WAIT_SYNC || change->checkpoint);
	if (waits) {
		pending->op = change->op;
		atomic_fetch_add(&change->op->waits, 1);
		fs->stats.waiting++;
	}
	*fs->last = pending;
	fs->last = &pending->next;
	fs->lag_bytes += bytes;
	fs->lag_frames++;
}

// Gives the frame its number and sends it. `hash` is of the payload.
static void emit(struct mirror *fs, struct frame *frame, const struct change *change, const struct iovec *payload,
		 int count, uint64_t hash)
{
	struct iovec parts[4] = {{frame, sizeof(*frame)}};
	bool waits = change && change->op && must_wait(fs, change->wait);

	if (waits)
		frame->flags |= WIRE_WANT_ACK;
	frame->magic = WIRE_MAGIC;
	frame->seq = ++fs->seq;
	frame->epoch = fs->epoch;
	frame->sum = wire_frame_sum(fs->session, frame, hash);
	for (int i = 0; i < count; i++)
		parts[i + 1] = payload[i];
	fs->stats.frames++;
	remember(fs, change, (uint32_t)sizeof(*frame) + frame->size, waits);
	put(fs, parts, count + 1);
}

static bool is_known(const struct mirror *fs, const struct node *node)
{
	return node == fs->root || node->bound == fs->session;
}

void stream_bind(struct mirror *fs, struct node *node)
{
	struct frame frame = {.op = WIRE_BIND};
	struct iovec name;

	if (fs->state != MIRROR_PAIRED || is_known(fs, node) || node->excluded || !node->name)
		return;
	stream_bind(fs, node->parent);
	if (!is_known(fs, node->parent))
		return;
	frame.fid = node->parent->fid;
	frame.other = node->fid;
	frame.name_len = frame.size = (uint32_t)strlen(node->name);
	name = (struct iovec){node->name, frame.size};
	node->bound = fs->session;
	emit(fs, &frame, NULL, &name, 1, wire_hash(fs->session, node->name, frame.size));
}

void stream_unbind(struct mirror *fs, struct node *node)
{
	struct frame frame = {.op = WIRE_UNBIND, .fid = node->fid};

	if (fs->state != MIRROR_PAIRED || node == fs->root || !is_known(fs, node))
		return;
	node->bound = 0;
	emit(fs, &frame, NULL, NULL, 0, wire_hash(fs->session, NULL, 0));
}

static void hold(struct mirror *fs, struct change *change)
{
	struct pending *pending = calloc(1, sizeof(*pending));

	if (!pending)
		return; // the operation is answered without the peer's word; only after malloc() failed
	pending->op = change->op;
	pending->sent_ns = clock_ns();
	atomic_fetch_add(&change->op->waits, 1);
	fs->stats.waiting++;
	*fs->last = pending;
	fs->last = &pending->next;
}

static uint64_t hash_payload(uint64_t session, const struct iovec *parts, int count)
{
	char joined[WIRE_PAYLOAD];
	size_t at = 0;

	if (count == 1)
		return wire_hash(session, parts[0].iov_base, parts[0].iov_len);
	for (int i = 0; i < count; i++) {
		memcpy(joined + at, parts[i].iov_base, parts[i].iov_len);
		at += parts[i].iov_len;
	}
	return wire_hash(session, joined, at);
}

static int payload_of(struct change *change, struct iovec parts[3])
{
	int count = 0;

	change->frame.name_len = change->name ? (uint32_t)strlen(change->name) : 0;
	change->frame.second_len = change->second ? (uint32_t)strlen(change->second) : 0;
	change->frame.size = change->frame.name_len + change->frame.second_len + (uint32_t)change->data_len;
	if (change->frame.name_len)
		parts[count++] = (struct iovec){(void *)change->name, change->frame.name_len};
	if (change->frame.second_len)
		parts[count++] = (struct iovec){(void *)change->second, change->frame.second_len};
	if (change->data_len)
		parts[count++] = (struct iovec){(void *)change->data, change->data_len};
	return count;
}

// Whether the peer can be told about this inode. One that had lost its last name before this session began is none of
// the peer's: it ends with its last handle. One that has names which nobody found (nameless.c) needs a resync.
static bool reachable(struct mirror *fs, struct node *node)
{
	stream_bind(fs, node);
	if (fs->state == MIRROR_PAIRED && !is_known(fs, node) && inode_has_names(&fs->parts, &node->handle))
		peer_lost(fs, EBADSLT, "a changed file is known by no name: compare all");
	return fs->state == MIRROR_PAIRED && is_known(fs, node);
}

static void send_change(struct mirror *fs, struct change *change)
{
	struct iovec parts[3];
	int count = payload_of(change, parts);

	if (!reachable(fs, change->node) || (change->other && !change->makes && !reachable(fs, change->other)))
		return;
	change->frame.fid = change->node->fid;
	if (change->other)
		change->frame.other = change->other->fid;
	if (change->makes)
		change->other->bound = fs->session;
	emit(fs, &change->frame, change, parts, count, hash_payload(fs->session, parts, count));
}

void stream_change_locked(struct mirror *fs, struct change *change)
{
	if (change->node->excluded)
		return;
	if (fs->state == MIRROR_PAIRED)
		send_change(fs, change);
	// The second test: not if it waits already, because the peer was lost just now.
	if (fs->state == MIRROR_UNDECIDED && change->op && change->op->waits == 1)
		hold(fs, change);
	if (fs->state == MIRROR_REFUSING && change->op)
		change->op->error = -EIO;
}

void stream_change(struct mirror *fs, struct change *change)
{
	pthread_mutex_lock(&fs->stream_lock);
	stream_change_locked(fs, change);
	pthread_mutex_unlock(&fs->stream_lock);
}

bool stream_idle(struct mirror *fs)
{
	return !fs->first && !fs->syncs;
}

void stream_ping(struct mirror *fs)
{
	struct frame frame = {.op = WIRE_PING, .flags = WIRE_WANT_ACK};

	emit(fs, &frame, NULL, NULL, 0, wire_hash(fs->session, NULL, 0));
}
