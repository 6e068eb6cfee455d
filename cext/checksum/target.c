// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>
#include "../exclude.h"
#include "target.h"

#define LISTINGS 16u  // lists under way
#define JOBS	 256u // files that wait, above which no further list is asked for

int todo_add(struct todo *todo, const char *folder)
{
	int added = hashset_add(&todo->known, (struct digest){XXH3_64bits(folder, strlen(folder)),
							      XXH3_64bits_withSeed(folder, strlen(folder), 1) | 1});

	if (added <= 0)
		return added;
	if (todo->count == todo->room) {
		size_t room = todo->room ? todo->room * 2 : 64;
		char **larger = realloc(todo->folders, room * sizeof(*larger));

		if (!larger)
			return -1;
		todo->folders = larger;
		todo->room = room;
	}
	todo->folders[todo->count] = strdup(folder);
	if (!todo->folders[todo->count])
		return -1;
	todo->count++;
	return 1;
}

void todo_free(struct todo *todo)
{
	for (size_t i = todo->next; i < todo->count; i++)
		free(todo->folders[i]);
	free(todo->folders);
	hashset_free(&todo->known);
	memset(todo, 0, sizeof(*todo));
}

struct scan_job {
	struct digest sum;
	uint64_t names;
	uint8_t flags;
	uint8_t is_settled; // it is equal by now, and only to be remembered
	char folder[];
};

static void must_list(struct target *target, const char *folder)
{
	pthread_mutex_lock(&target->lock);
	int added = todo_add(&target->todo, folder);
	pthread_mutex_unlock(&target->lock);
	if (added < 0)
		target_fail(target, ENOMEM, "listing", folder, "");
	else
		COUNT(&target->engine, dirs_differing, (uint64_t)added);
}

static void scan_one(void *context, void *item, struct scratch *scratch)
{
	struct target *target = context;
	struct scan_job *job = item;
	struct engine *e = &target->engine;
	struct scan scan = {.engine = e, .record = &target->record, .folder = job->folder, .tokens = scratch->out};

	if (job->is_settled) {
		if (!engine_stopping(e) && scan_tokens(&scan, e->options->root_fd, scratch) == 0)
			record_add(&target->record, scratch->out);
	} else if (e->only.active) {
		must_list(target, job->folder);
	} else if (!engine_stopping(e)) {
		int failed = scan_folder(&scan, e->options->root_fd, scratch);

		COUNT(e, dirs_seen, 1);
		if (failed && errno != ENOENT && errno != ENOTDIR && errno != ELOOP && errno != ECANCELED)
			target_fail(target, errno, "reading", job->folder, "");
		else if (failed || scan.force || job->flags & FOLDER_FORCE || scan.names != job->names ||
			 !digest_same(scan.sum, job->sum))
			must_list(target, job->folder);
		else
			record_add(&target->record, scratch->out);
	}
	free(job);
}

static struct scan_job *scan_job(const char *folder)
{
	struct scan_job *job = calloc(1, sizeof(*job) + strlen(folder) + 1);

	if (job)
		memcpy(job->folder, folder, strlen(folder) + 1);
	return job;
}

// Not remembered for want of memory: then the next run looks at it again.
void scan_for_record(struct target *target, const char *folder)
{
	struct scan_job *job = scan_job(folder);

	if (!job)
		return;
	job->is_settled = 1;
	if (pool_push(&target->scanners, job))
		free(job);
}

static int take_scan(struct target *target, struct reader *body)
{
	char folder[PATH_ROOM];
	struct scan_job *job;

	if (take_folder(body, folder))
		return engine_fail(&target->engine, EPROTO,
				   "the source sent a path that leads nowhere below the directory");
	if (target->engine.options->excluded && exclude_path(target->engine.options->excluded, folder))
		return engine_fail(&target->engine, EPROTO, "the source sent %s, which is not replicated here", folder);
	job = scan_job(folder);
	if (!job)
		return target_fail(target, ENOMEM, "reading", folder, "");
	job->names = take_u64(body);
	job->sum = take_digest(body);
	job->flags = take_u8(body);
	if (body->bad || target->scanned || pool_push(&target->scanners, job)) {
		free(job);
		return engine_fail(&target->engine, EPROTO, "the source described a directory at the wrong time");
	}
	return 0;
}

static int take_trouble(struct target *target, struct reader *body)
{
	char folder[PATH_ROOM], name[NAME_ROOM];
	uint32_t finding = take_u32(body), code = take_u32(body);

	if (take_folder(body, folder) || (take_string(body, name, sizeof(name)) && !name_is_good(name, strlen(name))) ||
	    body->bad || finding != CHECKSUM_UNREADABLE)
		return engine_fail(&target->engine, EPROTO, "the source's trouble means nothing");
	engine_report(&target->engine, finding, (int)(code & 4095), folder, name);
	return 0;
}

static struct slot *slot_of(struct target *target, struct reader *body)
{
	uint32_t number = take_u32(body);
	struct slot *slot = &target->slots[number % WINDOW];

	if (!body->bad && slot->busy && slot->number == number && __atomic_load_n(&slot->asked, __ATOMIC_ACQUIRE))
		return slot;
	engine_fail(&target->engine, EPROTO, "the source answered what nobody asked");
	return NULL;
}

static int take_entries(struct target *target, struct slot *slot, struct reader *body)
{
	static _Thread_local struct entry_message wanted; // too large for a stack frame
	uint8_t flags = take_u8(body);

	while (!body->bad && body->at < body->end) {
		if (take_entry(body, &wanted))
			return engine_fail(&target->engine, EPROTO,
					   "the source sent a directory entry that means nothing");
		if (listing_entry(target, slot->listing, &wanted))
			return -1;
	}
	if (body->bad)
		return engine_fail(&target->engine, EPROTO, "the source sent a list that means nothing");
	if (!(flags & ENTRIES_LAST))
		return 0;
	struct listing *listing = slot->listing;

	if (listing_end(target, listing, flags))
		return -1;
	slot->listing = NULL;
	slot->busy = 0;
	target->busy--;
	return 0;
}

static int take_answer(struct target *target, struct frame *frame)
{
	struct slot *slot = slot_of(target, &frame->body);

	if (!slot)
		return -1;
	if (frame->type == FRAME_ENTRIES && slot->listing)
		return take_entries(target, slot, &frame->body);
	if (slot->job && frame->type == FRAME_BLOCKS)
		return contents_blocks(target, slot, &frame->body);
	if (slot->job && frame->type == FRAME_ZEROS)
		return contents_zeros(target, slot, &frame->body);
	if (slot->job && frame->type == FRAME_SEGMENT_END)
		return contents_end(target, slot, &frame->body);
	return engine_fail(&target->engine, EPROTO, "the source answered something else than it was asked");
}

static int take_frame(struct target *target)
{
	struct frame frame;

	if (link_receive(&target->link, &frame))
		return -1;
	switch (frame.type) {
	case FRAME_FOLDER:
		return take_scan(target, &frame.body);
	case FRAME_SCANNED:
		target->scanned = 1;
		return 0;
	case FRAME_TROUBLE:
		return take_trouble(target, &frame.body);
	case FRAME_PROBE_DATA:
		target->probed += (uint64_t)(frame.body.end - frame.body.at);
		return 0;
	case FRAME_COMMITTED:
		target->committed = 1;
		return 0;
	default:
		return take_answer(target, &frame);
	}
}

static int same_id(struct digest a, const struct digest theirs[2])
{
	return (a.low || a.high) && (digest_same(a, theirs[0]) || digest_same(a, theirs[1]));
}

// What to believe: a record that both sides have under one id. What to write: a new one, or the one to continue.
static int make_plan(struct target *target, const struct digest theirs[2], struct record_plan *plan)
{
	const struct checksum_options *o = target->engine.options;
	const struct record *record = &target->record;
	const struct record_set *believed = NULL;

	memset(plan, 0, sizeof(*plan));
	plan->run = 1;
	if (target->writes && getrandom(&plan->id, sizeof(plan->id), 0) != sizeof(plan->id))
		return engine_fail(&target->engine, errno, "no random numbers: %s", strerror(errno));
	if (o->resume && same_id(record->partial.id, theirs)) {
		believed = &record->partial;
		if (digest_same(believed->id, theirs[1]) && believed->runs < RUNS_MAX && target->writes) {
			plan->id = believed->id;
			plan->run = (uint8_t)(believed->runs + 1);
		}
	} else if (o->pass == CHECKSUM_QUICK) {
		if (same_id(record->kept.id, theirs))
			believed = &record->kept;
		else if (same_id(record->partial.id, theirs))
			believed = &record->partial;
	}
	if (believed) {
		plan->believed = believed->id;
		plan->believed_runs = (uint8_t)believed->runs;
	}
	return 0;
}

static int compare_folders(struct target *target, const struct digest theirs[2])
{
	struct record_plan plan;
	struct buffer body = {0};
	uint64_t since = now_ns();

	target->engine.progress->phase = 1;
	// Ours first: a run's number must be on disk before the source uses it.
	if (make_plan(target, theirs, &plan) || record_begin(&target->record, &plan, 0))
		return -1;
	put_u8(&body, (uint8_t)target->engine.options->pass);
	put_digest(&body, plan.id);
	put_digest(&body, plan.believed);
	put_u8(&body, plan.run);
	put_u8(&body, plan.believed_runs);
	int failed = link_send(&target->link, FRAME_START, &body);

	free(body.data);
	while (!failed && !target->scanned)
		failed = take_frame(target);
	pool_wait(&target->scanners);
	target->engine.progress->scan_ns = now_ns() - since;
	return failed || engine_stopping(&target->engine) ? -1 : 0;
}

static struct slot *free_slot(struct target *target)
{
	for (unsigned int i = 0; i < WINDOW; i++) {
		struct slot *slot = &target->slots[i];

		if (!slot->busy) {
			slot->number = target->next_number++ * WINDOW + i;
			return slot;
		}
	}
	return NULL;
}

static int ask_list(struct target *target, struct slot *slot)
{
	struct todo *todo = &target->todo;
	char *folder = todo->folders[todo->next++];
	struct buffer *body = target->scratch.out;

	slot->listing = listing_begin(target, folder);
	free(folder);
	if (!slot->listing)
		return -1;
	slot->asked = 1;
	body->used = 0;
	put_u32(body, slot->number);
	put_string(body, slot->listing->folder->path, strlen(slot->listing->folder->path));
	return link_send(&target->link, FRAME_LIST, body);
}

static unsigned int listings(const struct target *target)
{
	unsigned int count = 0;

	for (unsigned int i = 0; i < WINDOW; i++)
		count += target->slots[i].listing != NULL;
	return count;
}

// Keeps the window full: contents first, so that what waits stays little.
static int ask_more(struct target *target)
{
	while (target->busy < WINDOW) {
		struct slot *slot = free_slot(target);
		int asked = 1;

		if (target->first_job)
			asked = job_ask(target, slot);
		else if (target->todo.next < target->todo.count && target->jobs < JOBS && listings(target) < LISTINGS)
			asked = ask_list(target, slot) ? -1 : 1;
		else
			return 0;
		if (asked < 0)
			return -1;
		slot->busy = asked;
		target->busy += (unsigned int)asked;
	}
	return 0;
}

static int settle_folders(struct target *target)
{
	target->engine.progress->phase = 2;
	// What we write from now on is younger than the run: the wait at its end makes up for that.
	target->record.before_ns = INT64_MAX;
	for (target->round = 0; target->round < ROUNDS; target->round++) {
		do {
			if (ask_more(target) || (target->busy && take_frame(target)))
				return -1;
		} while (target->busy || target->first_job || target->todo.next < target->todo.count);
		todo_free(&target->todo);
		target->todo = target->again;
		memset(&target->again, 0, sizeof(target->again));
	}
	pool_wait(&target->scanners); // for what scan_for_record has given them
	return 0;
}

static int probe(struct target *target)
{
	struct buffer body = {0};
	uint64_t since = now_ns();

	put_u32(&body, target->engine.options->probe_bytes);
	int failed = link_send(&target->link, FRAME_PROBE, &body);

	free(body.data);
	while (!failed && target->probed < target->engine.options->probe_bytes)
		failed = take_frame(target);
	target->engine.progress->probe_ns = now_ns() - since;
	return failed;
}

// Until the clock has moved on since our last change.
static void wait_for_slack(uint64_t since)
{
	uint64_t passed = now_ns() - since;

	if (passed < SLACK_NS)
		nanosleep(&(struct timespec){.tv_nsec = (long)(SLACK_NS - passed)}, NULL);
}

// Everything is on disk before either record says so, and the clock has moved on before anybody else may write.
static int make_durable(struct target *target)
{
	struct engine *e = &target->engine;
	uint64_t since = now_ns();

	e->progress->phase = 3;
	int code = -parts_sync(&e->parts);

	if (code)
		return target_fail(target, code, "writing back", "", "");
	if (e->progress->errors)
		return 0;
	if (link_send(&target->link, FRAME_COMMIT, NULL) || record_flush(&target->record))
		return -1;
	while (!target->committed)
		if (take_frame(target))
			return -1;
	if (target->record.fd >= 0 && e->progress->dirs_done)
		wait_for_slack(since);
	return record_commit(&target->record);
}

static int run(struct target *target, const struct digest theirs[2])
{
	const struct checksum_options *o = target->engine.options;
	unsigned int threads = o->threads ? o->threads : 1;

	if (scratch_make(&target->scratch) || pool_start(&target->scanners, threads, 256, 0, scan_one, target) ||
	    pool_start(&target->hashers, threads, 0, 0, hash_segment, target))
		return engine_fail(&target->engine, EAGAIN, "no threads can be started");
	if (compare_folders(target, theirs) || settle_folders(target))
		return -1;
	if (o->mode == CHECKSUM_DIFF && o->probe_bytes && probe(target))
		return -1;
	if (target->writes && make_durable(target))
		return -1;
	target->engine.progress->phase = 4;
	return link_send(&target->link, FRAME_BYE, NULL);
}

static void clean_up(struct target *target)
{
	pool_stop(&target->scanners);
	pool_stop(&target->hashers);
	jobs_free(target);
	for (unsigned int i = 0; i < WINDOW; i++)
		listing_free(target->slots[i].listing);
	todo_free(&target->todo);
	todo_free(&target->again);
	for (int i = 0; i <= PARTS_MAX; i++)
		links_free(&target->links[i]);
	hashset_free(&target->made);
	link_close(&target->link);
	record_close(&target->record);
	scratch_free(&target->scratch);
	pthread_mutex_destroy(&target->lock);
}

int checksum_run_target(const struct checksum_options *options, struct checksum_progress *progress,
			struct checksum_error *error)
{
	struct target *target = calloc(1, sizeof(*target));
	struct digest ids[2], theirs[2];

	if (!target) {
		*error = (struct checksum_error){ENOMEM, "out of memory"};
		return -1;
	}
	engine_open(&target->engine, options, progress, error);
	pthread_mutex_init(&target->lock, NULL);
	target->writes = options->mode == CHECKSUM_SYNC;
	if (record_open(&target->record, &target->engine) == 0) {
		ids[0] = target->record.kept.id;
		ids[1] = target->record.partial.id;
		if (link_open(&target->link, &target->engine, 0, ids, theirs) == 0)
			run(target, theirs);
	}
	clean_up(target);
	int result = target->engine.failed ? -1 : 0;

	engine_close(&target->engine);
	free(target);
	return result;
}
