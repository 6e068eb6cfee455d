// SPDX-License-Identifier: Apache-2.0
// The side that has the contents. It answers what the target asks, reads only, and keeps nothing about requests.
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "../exclude.h"
#include "source.h"

struct child {
	struct child *next;
	char name[];
};

struct walk_visit {
	struct source *source;
	struct child *children; // sent only after their parent
};

static void remember_child(void *context, const char *folder, const char *name)
{
	struct walk_visit *visit = context;
	size_t length = strlen(name) + 1;
	struct child *child = malloc(sizeof(*child) + length);

	(void)folder;
	if (!child) {
		engine_fail(&visit->source->engine, ENOMEM, "out of memory");
		return;
	}
	memcpy(child->name, name, length);
	child->next = visit->children;
	visit->children = child;
}

static void send_trouble(struct source *source, const char *folder, const char *name, int code)
{
	struct buffer body = {0};

	COUNT(&source->engine, errors, 1);
	put_u32(&body, CHECKSUM_UNREADABLE);
	put_u32(&body, (uint32_t)code);
	put_string(&body, folder, strlen(folder));
	put_string(&body, name, strlen(name));
	link_send(&source->link, FRAME_TROUBLE, &body);
	free(body.data);
}

static void send_folder(struct source *source, const char *folder, const struct scan *scan, struct buffer *body)
{
	body->used = 0;
	put_string(body, folder, strlen(folder));
	put_u64(body, scan->names);
	put_digest(body, scan->sum);
	put_u8(body, scan->force ? FOLDER_FORCE : 0);
	link_send_lazily(&source->link, FRAME_FOLDER, body);
}

static void walk_push(struct source *source, char *folder)
{
	__atomic_fetch_add(&source->walk_left, 1, __ATOMIC_ACQ_REL);
	if (!folder || pool_push(&source->walkers, folder))
		engine_fail(&source->engine, ENOMEM, "out of memory");
}

static void push_children(struct source *source, const char *folder, struct child *children)
{
	while (children) {
		struct child *next = children->next;
		char path[PATH_ROOM];

		if (path_join(path, folder, children->name))
			send_trouble(source, folder, children->name, ENAMETOOLONG);
		else if (!engine_stopping(&source->engine))
			walk_push(source, strdup(path));
		free(children);
		children = next;
	}
}

// The parent was described while this child still existed: it must be listed again.
static void send_parent(struct source *source, const char *folder, struct buffer *body)
{
	struct scan forced = {.force = 1};
	char parent[PATH_ROOM];
	char *slash;

	memcpy(parent, folder, strlen(folder) + 1);
	slash = strrchr(parent, '/');
	*(slash ? slash : parent) = 0;
	send_folder(source, parent, &forced, body);
}

static void walk_one(void *context, void *item, struct scratch *scratch)
{
	struct source *source = context;
	struct engine *e = &source->engine;
	char *folder = item;
	struct walk_visit visit = {.source = source};
	struct scan scan = {.engine = e,
			    .record = &source->record,
			    .folder = folder,
			    .tokens = scratch->out,
			    .on_child = remember_child,
			    .context = &visit};

	if (!engine_stopping(e)) {
		if (scan_folder(&scan, e->options->root_fd, scratch) == 0) {
			record_add(&source->record, scratch->out);
			send_folder(source, folder, &scan, scratch->out);
			COUNT(e, dirs_seen, 1);
		} else if ((errno == ENOENT || errno == ENOTDIR) && *folder) {
			send_parent(source, folder, scratch->out);
		} else if (!engine_stopping(e)) {
			send_trouble(source, folder, "", errno);
		}
	}
	push_children(source, folder, visit.children);
	free(folder);
	if (__atomic_sub_fetch(&source->walk_left, 1, __ATOMIC_ACQ_REL) == 0)
		link_send(&source->link, FRAME_SCANNED, NULL);
}

struct listing {
	struct source *source;
	struct scan scan;
	struct buffer *body;
	uint32_t request;
};

static void begin_entries(struct listing *listing)
{
	listing->body->used = 0;
	put_u32(listing->body, listing->request);
	put_u8(listing->body, 0);
}

static int send_entries(struct listing *listing, uint8_t flags)
{
	if (listing->body->used > 4)
		listing->body->data[4] = flags;
	return link_send(&listing->source->link, FRAME_ENTRIES, listing->body);
}

uint64_t source_version(const struct secret *secret, const struct entry *entry)
{
	const struct local *l = &entry->local;
	uint64_t words[4] = {l->inode, (uint64_t)l->ctime_s, l->ctime_ns, entry->meta.size};

	return digest_of(secret, words, sizeof(words)).low;
}

static int list_one(void *context, int folder, const struct entry *entry, struct scratch *scratch)
{
	struct listing *listing = context;
	struct engine *e = &listing->source->engine;
	struct examined found;

	if (exclude_child(e->options->excluded, listing->scan.folder, entry->name))
		return 0;
	if (examine(&listing->scan, folder, entry, 1, scratch, &found))
		return 0; // it vanished, or is another thing by now: what comes after it will be listed again
	put_entry(listing->body, entry, found.kind, found.run, found.digest, source_version(&e->secret, entry),
		  found.target, found.xattrs);
	if (listing->body->used > FRAME_MAX / 4) {
		if (send_entries(listing, 0))
			return -1;
		begin_entries(listing);
	}
	return engine_stopping(e) ? -1 : 0;
}

static int list_wanted(void *context, int folder, const struct entry *entry, struct scratch *scratch)
{
	struct listing *listing = context;

	return only_has(&listing->source->engine.only, listing->scan.folder, entry->name)
		   ? list_one(context, folder, entry, scratch)
		   : 0;
}

static void serve_list(struct source *source, struct request *request, struct scratch *scratch)
{
	struct listing listing = {.source = source,
				  .scan = {.engine = &source->engine,
					   .record = &source->record,
					   .folder = request->folder,
					   .folder_key = record_folder(&source->record, request->folder)},
				  .body = scratch->out,
				  .request = request->number};
	int fd = tree_open_folder(source->engine.options->root_fd, request->folder);
	struct entry self;
	uint8_t flags = ENTRIES_LAST;

	begin_entries(&listing);
	if (fd < 0 || tree_stat(fd, "", &self) || list_one(&listing, fd, &self, scratch) ||
	    tree_each(fd, scratch, list_wanted, &listing)) {
		flags |= errno == ENOENT || errno == ENOTDIR ? ENTRIES_GONE : ENTRIES_UNREADABLE;
		begin_entries(&listing);
	}
	if (fd >= 0)
		close(fd);
	send_entries(&listing, flags);
}

static void serve_probe(struct source *source, struct request *request, struct scratch *scratch)
{
	memset(scratch->data, 0x5a, IO_SIZE);
	for (uint64_t left = request->probe_bytes; left;) {
		size_t step = left < IO_SIZE ? (size_t)left : IO_SIZE;

		engine_pace_sending(&source->engine, step);
		if (link_send_with(&source->link, FRAME_PROBE_DATA, NULL, scratch->data, step))
			return;
		left -= step;
	}
}

static void serve(void *context, void *item, struct scratch *scratch)
{
	struct source *source = context;
	struct request *request = item;

	__atomic_fetch_sub(&source->requests, 1, __ATOMIC_ACQ_REL);
	if (!engine_stopping(&source->engine)) {
		if (request->type == FRAME_LIST)
			serve_list(source, request, scratch);
		else if (request->type == FRAME_PROBE)
			serve_probe(source, request, scratch);
		else
			serve_segment(source, request, scratch);
	}
	free(request->digests);
	free(request);
}

static int take_request(struct source *source, struct frame *frame, struct request *request)
{
	request->type = frame->type;
	if (frame->type == FRAME_LIST) {
		request->number = take_u32(&frame->body);
		return take_folder(&frame->body, request->folder);
	}
	if (frame->type == FRAME_PROBE) {
		request->probe_bytes = take_u32(&frame->body);
		return frame->body.bad || request->probe_bytes > 1u << 30 ? -1 : 0;
	}
	if (take_segment(&frame->body, &request->segment))
		return -1;
	size_t size = request->segment.count * sizeof(struct digest);

	request->digests = malloc(size + 1);
	if (!request->digests)
		return engine_fail(&source->engine, ENOMEM, "out of memory");
	if (size)
		memcpy(request->digests, request->segment.digests, size);
	request->segment.digests = request->digests;
	return 0;
}

// Requests are queued without waiting: a source that does not read could lock with a target that does not either. The
// target has a window; more than that is not the protocol.
static int accept_request(struct source *source, struct frame *frame)
{
	struct request *request = calloc(1, sizeof(*request));

	if (!request)
		return engine_fail(&source->engine, ENOMEM, "out of memory");
	if (__atomic_add_fetch(&source->requests, 1, __ATOMIC_ACQ_REL) > 2 * WINDOW ||
	    take_request(source, frame, request)) {
		free(request->digests);
		free(request);
		return engine_fail(&source->engine, EPROTO, "the target sent a request that means nothing");
	}
	if (pool_push(&source->servers, request)) {
		free(request->digests);
		free(request);
		return engine_fail(&source->engine, ENOMEM, "out of memory");
	}
	return 0;
}

static int ask_to_list(void *context, const char *folder)
{
	struct source *source = context;
	struct buffer body = {0};
	struct scan forced = {.force = 1};

	send_folder(source, folder, &forced, &body);
	free(body.data);
	return engine_stopping(&source->engine) ? -1 : 0;
}

// No walk: the directories with names of the list.
static int start_only(struct source *source)
{
	if (only_folders(source->engine.options, ask_to_list, source))
		return -1;
	return link_send(&source->link, FRAME_SCANNED, NULL);
}

static int start(struct source *source, struct frame *frame)
{
	struct record_plan plan;

	take_u8(&frame->body); // the pass; what is believed says it all
	plan.id = take_digest(&frame->body);
	plan.believed = take_digest(&frame->body);
	plan.run = take_u8(&frame->body);
	plan.believed_runs = take_u8(&frame->body);
	if (frame->body.bad || source->started || !plan.run || plan.run > RUNS_MAX || plan.believed_runs > RUNS_MAX)
		return engine_fail(&source->engine, EPROTO, "the target's start means nothing");
	source->started = 1;
	source->engine.progress->phase = 1;
	if (record_begin(&source->record, &plan, 1))
		return -1;
	if (source->engine.only.active)
		return start_only(source);
	walk_push(source, strdup(""));
	return 0;
}

static int converse(struct source *source)
{
	struct frame frame;

	for (;;) {
		if (link_receive(&source->link, &frame))
			return -1;
		switch (frame.type) {
		case FRAME_START:
			if (start(source, &frame))
				return -1;
			break;
		case FRAME_LIST:
		case FRAME_SEGMENT:
		case FRAME_PROBE:
			source->engine.progress->phase = 2;
			if (!source->started || accept_request(source, &frame))
				return engine_fail(&source->engine, EPROTO, "the target asked before it started");
			break;
		case FRAME_COMMIT:
			source->engine.progress->phase = 3;
			if (record_flush(&source->record) || record_commit(&source->record) ||
			    link_send(&source->link, FRAME_COMMITTED, NULL))
				return -1;
			break;
		case FRAME_BYE:
			source->engine.progress->phase = 4;
			return 0;
		default:
			return engine_fail(&source->engine, EPROTO, "the target sent what only a source may send");
		}
	}
}

int checksum_run_source(const struct checksum_options *options, struct checksum_progress *progress,
			struct checksum_error *error)
{
	struct source *source = calloc(1, sizeof(*source));
	struct digest ids[2], theirs[2];
	unsigned int threads = options->threads ? options->threads : 1;

	if (!source) {
		*error = (struct checksum_error){ENOMEM, "out of memory"};
		return -1;
	}
	engine_open(&source->engine, options, progress, error);
	if (record_open(&source->record, &source->engine) == 0) {
		ids[0] = source->record.kept.id;
		ids[1] = source->record.partial.id;
		if (link_open(&source->link, &source->engine, 1, ids, theirs) == 0) {
			if (pool_start(&source->walkers, threads, 0, 1, walk_one, source) ||
			    pool_start(&source->servers, threads, 0, 0, serve, source))
				engine_fail(&source->engine, EAGAIN, "no threads can be started");
			else
				converse(source);
		}
		pool_stop(&source->walkers);
		pool_stop(&source->servers);
		link_close(&source->link);
	}
	record_close(&source->record);
	int result = source->engine.failed ? -1 : 0;

	engine_close(&source->engine);
	free(source);
	return result;
}
