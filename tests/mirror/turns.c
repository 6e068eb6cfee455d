// SPDX-License-Identifier: Apache-2.0
// The receiver's threads under a primary that writes and syncs at once: turns DIRECTORY
// fdatasync() is ours here. First it does not come back: the stream must be read on all the same. Then a storm of
// writes and syncs. Every sync is answered once, every write is applied, and the files are what was sent. Prints what
// is wrong.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "api.h"
#include "wire.h"

#define SESSION 7
#define EPOCH	3
#define FILES	4
#define FIRST	2 // the fid of the first file
#define ROOM	8192
#define FRAMES	20000
#define SYNCS	5
#define SILENCE 20000 // ms: then something hangs

static atomic_bool shut;
static atomic_int entered;
static int line; // our end
static uint64_t seq, applied;
static unsigned char answered[FRAMES + 64], is_sync[FRAMES + 64];
static unsigned char shadow[FILES][ROOM];

int fdatasync(int fd)
{
	(void)fd;
	atomic_fetch_add(&entered, 1);
	while (atomic_load(&shut))
		usleep(1000);
	for (int i = 0; i < rand() % 4; i++)
		sched_yield();
	return 0;
}

static void fail(const char *what)
{
	printf("%s\n", what);
	fflush(stdout);
	_exit(1);
}

static uint64_t emit(struct frame frame, const void *payload, size_t size)
{
	char whole[sizeof(frame) + 512];

	frame.magic = WIRE_MAGIC;
	frame.epoch = EPOCH;
	frame.seq = ++seq;
	frame.size = (uint32_t)size;
	frame.sum = wire_frame_sum(SESSION, &frame, wire_hash(SESSION, payload, size));
	memcpy(whole, &frame, sizeof(frame));
	memcpy(whole + sizeof(frame), payload, size);
	if (send(line, whole, sizeof(frame) + size, MSG_NOSIGNAL) != (ssize_t)(sizeof(frame) + size))
		fail("the receiver went away");
	return seq;
}

static uint64_t emit_sync(int file)
{
	struct frame frame = {
	    .op = WIRE_SYNC, .flags = WIRE_WANT_ACK | WIRE_DATA_ONLY, .fid = (uint64_t)(FIRST + file)};

	is_sync[seq + 1] = 1;
	return emit(frame, "", 0);
}

static uint64_t emit_write(int file, bool waits)
{
	unsigned char data[256];
	size_t size = 1 + (size_t)rand() % sizeof(data), offset = (size_t)rand() % (ROOM - sizeof(data));

	for (size_t i = 0; i < size; i++)
		data[i] = (unsigned char)rand();
	memcpy(shadow[file] + offset, data, size);
	return emit((struct frame){.op = WIRE_WRITE,
				   .flags = waits ? WIRE_WANT_ACK : 0,
				   .fid = (uint64_t)(FIRST + file),
				   .offset = offset,
				   .length = size},
		    data, size);
}

// Takes one acknowledgement if there is one within the time. Whether.
static bool take_ack(int timeout_ms)
{
	struct pollfd ready = {.fd = line, .events = POLLIN};
	struct ack ack;

	if (poll(&ready, 1, timeout_ms) != 1)
		return false;
	if (recv(line, &ack, sizeof(ack), MSG_WAITALL) != sizeof(ack))
		return false;
	if (ack.magic != ACK_MAGIC || ack.sum != wire_ack_sum(SESSION, &ack) || ack.kind == ACK_ERROR || ack.seq > seq)
		fail("an acknowledgement that means nothing");
	if (ack.seq > applied)
		applied = ack.seq;
	if (ack.kind == ACK_DURABLE && (!is_sync[ack.seq] || answered[ack.seq]++))
		fail("a sync was answered twice, or what is none");
	return true;
}

static void wait_for_applied(uint64_t wanted)
{
	while (applied < wanted)
		if (!take_ack(SILENCE))
			fail("a frame is not acknowledged");
}

static void wait_for_syncs(void)
{
	for (uint64_t at = 1; at <= seq; at++)
		while (is_sync[at] && !answered[at])
			if (!take_ack(SILENCE))
				fail("a sync is not acknowledged");
}

static void while_the_disk_hangs(void)
{
	atomic_store(&shut, true);
	for (int i = 0; i < SYNCS; i++)
		emit_sync(i % FILES);
	while (atomic_load(&entered) < 2)
		usleep(1000);
	wait_for_applied(emit_write(0, true));
	for (uint64_t at = 1; at <= seq; at++)
		if (answered[at])
			fail("a sync was answered before it was done");
	atomic_store(&shut, false);
	wait_for_syncs();
}

static void storm(void)
{
	uint64_t waits_for = 0;

	while (seq < FRAMES) {
		int file = rand() % FILES;

		if (rand() % 3 == 0)
			emit_sync(file);
		else if (rand() % 2)
			waits_for = emit_write(file, true);
		else
			emit_write(file, false);
		if (rand() % 50 == 0)
			wait_for_applied(waits_for);
		while (take_ack(0))
			;
	}
	wait_for_applied(waits_for);
	wait_for_syncs();
}

static void *receive(void *context)
{
	struct receiver_config *config = context;
	struct receiver_result result;

	if (receiver_run(config, &result))
		fail(result.text);
	return NULL;
}

static void compare(int root)
{
	for (int file = 0; file < FILES; file++) {
		char name[2] = {(char)('a' + file), 0};
		unsigned char data[ROOM] = {0};
		int fd = openat(root, name, O_RDONLY);

		if (fd < 0 || pread(fd, data, ROOM, 0) < 0 || memcmp(data, shadow[file], ROOM))
			fail("a file is not what was sent");
		close(fd);
	}
}

int main(int count, char **words)
{
	int ends[2];
	pthread_t thread;

	if (count != 2 || socketpair(AF_UNIX, SOCK_STREAM, 0, ends))
		return 3;
	int root = open(words[1], O_RDONLY | O_DIRECTORY);
	struct receiver_config config = {
	    .backing = root, .fd = ends[0], .stop_fd = -1, .session = SESSION, .epoch = EPOCH};

	srand(1);
	line = ends[1];
	pthread_create(&thread, NULL, receive, &config);
	for (int file = 0; file < FILES; file++) {
		char name = (char)('a' + file);

		emit(
		    (struct frame){
			.op = WIRE_CREATE, .fid = 1, .other = (uint64_t)(FIRST + file), .mode = 0600, .name_len = 1},
		    &name, 1);
	}
	while_the_disk_hangs();
	storm();
	shutdown(line, SHUT_WR);
	pthread_join(thread, NULL);
	compare(root);
	return 0;
}
