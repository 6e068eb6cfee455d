// SPDX-License-Identifier: Apache-2.0
// A source that speaks the protocol well and says evil things: hostile FD ATTACK. Exit 4: no such attack.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "link.h"
#include "message.h"

static struct link channel;
static struct buffer body;
static uint32_t number;

static void folder(const char *path)
{
	body.used = 0;
	put_string(&body, path, strlen(path));
	put_u64(&body, 1);
	put_digest(&body, (struct digest){1, 1});
	put_u8(&body, FOLDER_FORCE);
	link_send(&channel, FRAME_FOLDER, &body);
}

static void entry(const char *name, size_t length, uint32_t mode, const char *target, uint64_t size)
{
	struct buffer none = {0};
	struct entry one = {.name = name, .name_length = length, .meta = {.mode = mode, .size = size}};

	one.local.links = 1;
	put_entry(&body, &one,
		  S_ISREG(mode)	  ? CONTENT_LARGE
		  : S_ISLNK(mode) ? CONTENT_HASH
				  : CONTENT_NONE,
		  0, (struct digest){0, 0}, 7, target, &none);
}

static void entries(void)
{
	body.used = 0;
	put_u32(&body, number);
	put_u8(&body, ENTRIES_LAST);
	entry("", 0, S_IFDIR | 0755, "", 0);
}

static void blocks(uint32_t request, uint64_t offset, size_t length)
{
	static unsigned char data[FRAME_MAX];

	body.used = 0;
	put_u32(&body, request);
	put_u64(&body, offset);
	link_send_with(&channel, FRAME_BLOCKS, &body, data, length);
}

static int list_attack(const char *attack)
{
	entries();
	if (!strcmp(attack, "dotdot"))
		entry("..", 2, S_IFREG | 0644, "", 5);
	else if (!strcmp(attack, "slash"))
		entry("../escape", 9, S_IFREG | 0644, "", 5);
	else if (!strcmp(attack, "absolute"))
		entry("/escape", 7, S_IFREG | 0644, "", 5);
	else if (!strcmp(attack, "nul"))
		entry("a\0b", 3, S_IFREG | 0644, "", 5);
	else if (!strcmp(attack, "twice")) {
		entry("a", 1, S_IFDIR | 0755, "", 0);
		entry("a", 1, S_IFLNK | 0777, "/", 0);
	} else if (!strcmp(attack, "through-symlink")) {
		entry("out", 3, S_IFLNK | 0777, "..", 0); // and d, listed as well, is "out/sub"
	} else if (!strcmp(attack, "odd-type"))
		entry("a", 1, 0170000 | 0644, "", 0);
	else if (!strcmp(attack, "huge-size"))
		entry("a", 1, S_IFREG | 0644, "", UINT64_MAX);
	else if (!strcmp(attack, "two-selves"))
		entry("", 0, S_IFDIR | 0755, "", 0);
	else if (!strcmp(attack, "xattr-length")) {
		entry("a", 1, S_IFREG | 0644, "", 5);
		body.data[body.used - 1] = 0x7f;
	} else if (!strcmp(attack, "truncated")) {
		entry("a", 1, S_IFREG | 0644, "", 5);
		body.used -= 9;
	} else
		return 4;
	return link_send(&channel, FRAME_ENTRIES, &body);
}

static int contents_attack(const char *attack, struct frame *asked)
{
	static struct segment_request request;

	if (take_segment(&asked->body, &request))
		return 5;
	if (!strcmp(attack, "beyond-the-part"))
		blocks(request.request, request.offset + request.length, 10);
	else if (!strcmp(attack, "before-the-part"))
		blocks(request.request, UINT64_MAX - 5, 10);
	else if (!strcmp(attack, "unasked"))
		blocks(request.request + 1, request.offset, 10);
	else if (!strcmp(attack, "endless-zeros")) {
		body.used = 0;
		put_u32(&body, request.request);
		put_u64(&body, 0);
		put_u64(&body, UINT64_MAX);
		put_u8(&body, 0);
		link_send(&channel, FRAME_ZEROS, &body);
	} else if (!strcmp(attack, "list-for-contents")) {
		number = request.request;
		entries();
		link_send(&channel, FRAME_ENTRIES, &body);
	} else
		return 4;
	return 0;
}

static int converse(const char *attack)
{
	struct frame frame;

	while (link_receive(&channel, &frame) == 0) {
		if (frame.type == FRAME_START) {
			folder(!strcmp(attack, "folder-dotdot") ? "a/../.." : "");
			if (!strcmp(attack, "through-symlink"))
				folder("out/sub");
			if (!strcmp(attack, "unknown-frame"))
				link_send(&channel, FRAME_TYPES - 1, NULL);
			link_send(&channel, FRAME_SCANNED, NULL);
			if (!strcmp(attack, "late-folder"))
				folder("x");
		} else if (frame.type == FRAME_LIST) {
			char path[PATH_ROOM];

			number = take_u32(&frame.body);
			take_folder(&frame.body, path);
			if (list_attack(attack) == 4) {
				entries();
				entry("f", 1, S_IFREG | 0644, "", 3000000);
				link_send(&channel, FRAME_ENTRIES, &body);
			}
		} else if (frame.type == FRAME_COMMIT) {
			return 0; // it found nothing to refuse
		} else if (frame.type == FRAME_SEGMENT) {
			if (contents_attack(attack, &frame) == 4)
				return 4;
		}
	}
	return 0;
}

int main(int count, char **words)
{
	struct checksum_options options = {.report_fd = -1, .timeout_ms = 5000};
	struct checksum_progress progress = {0};
	struct checksum_error error;
	struct engine engine;
	struct digest ids[2] = {{0, 0}, {0, 0}}, theirs[2];

	if (count != 3)
		return 3;
	signal(SIGPIPE, SIG_IGN);
	options.in_fd = options.out_fd = atoi(words[1]);
	engine_open(&engine, &options, &progress, &error);
	int result = link_open(&channel, &engine, 1, ids, theirs) ? 5 : converse(words[2]);

	link_close(&channel);
	engine_close(&engine);
	free(body.data);
	return result;
}
