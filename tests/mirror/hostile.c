// SPDX-License-Identifier: Apache-2.0
// The receiver against a primary that lies. Built with the sanitizers by test_receiver.py, and with -DFUZZ for
// libFuzzer, which then writes frames of its own: their sums are made right, so that it reaches what lies behind them.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>
#include "api.h"
#include "wire.h"

#define SESSION 7
#define EPOCH	3

struct stream {
	char bytes[1 << 20];
	size_t size;
	uint64_t seq;
};

static void seal(struct frame *frame, const void *payload)
{
	frame->sum = wire_frame_sum(SESSION, frame, wire_hash(SESSION, payload, frame->size));
}

static void *feed(void *context)
{
	void **args = context;
	struct stream *stream = args[0];
	int fd = *(int *)args[1];
	char ignored[4096];

	for (size_t at = 0; at < stream->size;) {
		ssize_t n = send(fd, stream->bytes + at, stream->size - at, MSG_NOSIGNAL);

		if (n <= 0)
			break;
		at += n;
	}
	shutdown(fd, SHUT_WR);
	while (read(fd, ignored, sizeof(ignored)) > 0)
		;
	return NULL;
}

static int receive(struct stream *stream, int root, struct receiver_result *result)
{
	int ends[2], one;
	pthread_t thread;
	void *args[2] = {stream, &one};
	struct receiver_config config = {.backing = root, .stop_fd = -1, .session = SESSION, .epoch = EPOCH};

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends))
		abort();
	one = ends[1];
	config.fd = ends[0];
	pthread_create(&thread, NULL, feed, args);
	receiver_run(&config, result);
	close(ends[0]);
	pthread_join(thread, NULL);
	close(ends[1]);
	return result->code;
}

#ifdef FUZZ
// Frames cut out of the input: the receiver sees a right magic, number, epoch and sum, and everything else as it comes.
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct stream stream;
	struct receiver_result result;
	char folder[] = "/dev/shm/farmd-fuzz-XXXXXX", command[100];
	int root;

	stream.size = stream.seq = 0;
	while (size >= 64 && stream.size < sizeof(stream.bytes) / 2) {
		struct frame frame = {.op = data[0] % (WIRE_OPS + 1), .flags = data[1], .fid = data[2] % 8};
		size_t rest = data[3] < size - 40 ? data[3] : size - 40;
		char *payload = stream.bytes + stream.size + sizeof(frame);

		frame.other = data[4] % 8;
		memcpy(&frame.offset, data + 8, 8);
		memcpy(&frame.length, data + 16, 8);
		memcpy(&frame.mode, data + 24, 4);
		frame.offset %= 1 << 24;
		frame.length %= 1 << 24;
		frame.name_len = data[5];
		frame.second_len = data[6];
		frame.size = rest;
		frame.magic = WIRE_MAGIC;
		frame.epoch = EPOCH;
		frame.seq = ++stream.seq;
		memcpy(payload, data + 40, rest);
		seal(&frame, payload);
		memcpy(stream.bytes + stream.size, &frame, sizeof(frame));
		stream.size += sizeof(frame) + rest;
		data += 40 + rest;
		size -= 40 + rest;
	}
	if (!mkdtemp(folder))
		abort();
	root = open(folder, O_RDONLY | O_DIRECTORY);
	receive(&stream, root, &result);
	close(root);
	snprintf(command, sizeof(command), "rm -rf %s", folder);
	return system(command) ? 0 : 0;
}
#else
static struct stream stream;
static int failures;

static struct frame *add(struct stream *stream, struct frame frame, const char *name, const char *second,
			 const void *data, size_t size)
{
	struct frame *at = (struct frame *)(stream->bytes + stream->size);
	char *payload = (char *)(at + 1);

	frame.magic = WIRE_MAGIC;
	frame.epoch = EPOCH;
	frame.seq = ++stream->seq;
	frame.name_len = name ? strlen(name) : 0;
	frame.second_len = second ? strlen(second) : 0;
	frame.size = frame.name_len + frame.second_len + size;
	memcpy(payload, name ? name : "", frame.name_len);
	memcpy(payload + frame.name_len, second ? second : "", frame.second_len);
	memcpy(payload + frame.name_len + frame.second_len, data ? data : "", size);
	seal(&frame, payload);
	memcpy(at, &frame, sizeof(frame));
	stream->size += sizeof(frame) + frame.size;
	return at;
}

static void expect(const char *what, int root, int code, const char *text)
{
	struct receiver_result result;
	int got = receive(&stream, root, &result);

	if (got != code || !strstr(result.text, text)) {
		printf("%s: expected %d '%s', got %d '%s'\n", what, code, text, got, result.text);
		failures++;
	}
	stream.size = stream.seq = 0;
}

static void names(int root)
{
	static const char *const wrong[] = {"..", ".", "", "a/b", "/etc", "../x"};

	for (size_t i = 0; i < sizeof(wrong) / sizeof(*wrong); i++) {
		add(&stream, (struct frame){.op = WIRE_CREATE, .fid = 1, .other = 2, .mode = 0644}, wrong[i], 0, 0, 0);
		expect(wrong[i], root, EBADMSG, "name");
		add(&stream, (struct frame){.op = WIRE_UNLINK, .fid = 1}, wrong[i], 0, 0, 0);
		expect(wrong[i], root, EBADMSG, "name");
		add(&stream, (struct frame){.op = WIRE_BIND, .fid = 1, .other = 2}, wrong[i], 0, 0, 0);
		expect(wrong[i], root, EBADMSG, "name");
		add(&stream, (struct frame){.op = WIRE_RENAME, .fid = 1, .other = 1}, "ok", wrong[i], 0, 0);
		expect(wrong[i], root, EBADMSG, "name");
	}
}

// A link out of the directory: its name may be used, what it points to may not.
static void symlinks(int root)
{
	add(&stream, (struct frame){.op = WIRE_SYMLINK, .fid = 1, .other = 2}, "out", "..", 0, 0);
	add(&stream, (struct frame){.op = WIRE_CREATE, .fid = 2, .other = 3, .mode = 0644}, "planted", 0, 0, 0);
	expect("create below a symlink", root, ENOTDIR, "create");
	add(&stream, (struct frame){.op = WIRE_BIND, .fid = 1, .other = 2}, "out", 0, 0, 0);
	add(&stream, (struct frame){.op = WIRE_BIND, .fid = 2, .other = 3}, "victim", 0, 0, 0);
	expect("bind below a symlink", root, ENOTDIR, "bind");
	add(&stream, (struct frame){.op = WIRE_SYMLINK, .fid = 1, .other = 2}, "file", "../victim", 0, 0);
	add(&stream, (struct frame){.op = WIRE_WRITE, .fid = 2}, 0, 0, "hacked", 6);
	expect("write through a symlink", root, EINVAL, "write");
	add(&stream, (struct frame){.op = WIRE_BIND, .fid = 1, .other = 2}, "file", 0, 0, 0);
	add(&stream, (struct frame){.op = WIRE_MODE, .fid = 2, .mode = 0777}, 0, 0, 0, 0);
	expect("chmod of a symlink", root, EOPNOTSUPP, "chmod");
	add(&stream, (struct frame){.op = WIRE_MKDIR, .fid = 1, .other = 2, .mode = 0755}, "dir", 0, 0, 0);
	add(&stream, (struct frame){.op = WIRE_SYMLINK, .fid = 1, .other = 3}, "swap", "..", 0, 0);
	add(&stream, (struct frame){.op = WIRE_RENAME, .fid = 1, .other = 1, .mode = 2}, "dir", "swap", 0, 0);
	add(&stream, (struct frame){.op = WIRE_BIND, .fid = 1, .other = 4}, "dir", 0, 0, 0);
	add(&stream, (struct frame){.op = WIRE_UNLINK, .fid = 4}, "victim", 0, 0, 0);
	expect("a directory swapped for a symlink", root, ENOTDIR, "unlink");
}

static void devices(int root)
{
	add(&stream, (struct frame){.op = WIRE_MKNOD, .fid = 1, .other = 2, .mode = S_IFCHR | 0600, .rdev = 0x101},
	    "mem", 0, 0, 0);
	add(&stream, (struct frame){.op = WIRE_WRITE, .fid = 2}, 0, 0, "x", 1);
	expect("write to a device", root, EINVAL, "write");
}

static void frames(int root)
{
	struct frame *frame;

	add(&stream, (struct frame){.op = WIRE_CREATE, .fid = 1, .other = 2, .mode = 0644}, "cut", 0, 0, 0);
	stream.size -= 2;
	expect("cut short", root, EBADMSG, "inside a frame");
	add(&stream, (struct frame){.op = WIRE_PING}, 0, 0, 0, 0)->sum ^= 1;
	expect("wrong sum", root, EBADMSG, "checksum");
	add(&stream, (struct frame){.op = WIRE_WRITE, .fid = 1}, 0, 0, "data", 4);
	stream.bytes[sizeof(struct frame)] ^= 1;
	expect("changed payload", root, EBADMSG, "checksum");
	add(&stream, (struct frame){.op = WIRE_PING}, 0, 0, 0, 0)->size = 1u << 31;
	expect("endless", root, EBADMSG, "longer");
	frame = add(&stream, (struct frame){.op = WIRE_UNLINK, .fid = 1}, "x", 0, 0, 0);
	frame->name_len = frame->second_len = UINT32_MAX;
	expect("names beyond the frame", root, EBADMSG, "longer");
	add(&stream, (struct frame){.op = WIRE_PING}, 0, 0, 0, 0)->epoch++;
	expect("another epoch", root, EBADMSG, "epoch");
	stream.seq = 5;
	add(&stream, (struct frame){.op = WIRE_PING}, 0, 0, 0, 0);
	expect("a gap", root, EBADMSG, "missing");
	add(&stream, (struct frame){.op = WIRE_OPS}, 0, 0, 0, 0);
	expect("unknown operation", root, EBADMSG, "does not know");
	add(&stream, (struct frame){.op = WIRE_WRITE, .fid = 99}, 0, 0, "x", 1);
	expect("unknown inode", root, EBADR, "write");
	memset(stream.bytes, 'x', 500);
	stream.size = 500;
	expect("noise", root, EBADMSG, "not a replication frame");
	add(&stream, (struct frame){.op = WIRE_CREATE, .fid = 1, .other = 2, .mode = 0644}, "good", 0, 0, 0);
	add(&stream, (struct frame){.op = WIRE_WRITE, .fid = 2}, 0, 0, "good", 4);
	add(&stream, (struct frame){.op = WIRE_SYNC, .fid = 2}, 0, 0, 0, 0);
	expect("a good stream", root, 0, "");
}

int main(int argc, char **argv)
{
	int root = argc == 2 ? open(argv[1], O_RDONLY | O_DIRECTORY) : -1;

	if (root < 0) {
		perror("hostile DIRECTORY");
		return 2;
	}
	names(root);
	symlinks(root);
	devices(root);
	frames(root);
	close(root);
	return failures != 0;
}
#endif
