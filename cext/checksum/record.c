// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include "record.h"

#define FOLD  0x9e3779b97f4a7c15ull
#define MAGIC "farmd record 1\n"
#ifndef XFS_SUPER_MAGIC
#define XFS_SUPER_MAGIC 0x58465342
#endif
#ifndef STATX_MNT_ID_UNIQUE
#define STATX_MNT_ID_UNIQUE 0x00004000U // Linux 6.8: never used again within a boot
#endif
#ifndef STATX_MNT_ID
#define STATX_MNT_ID 0x00001000U
#endif

static const uint64_t TRUSTED[] = {EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, BTRFS_SUPER_MAGIC};

struct head {
	char magic[16];
	struct digest id;
	unsigned char key[32];
	char boot[40];
	uint64_t mount_id, device, root_inode;
	int64_t root_btime;
	uint64_t runs;
};

// The token as it is stored for one run.
static struct digest in_run(struct digest token, unsigned int run)
{
	token.low += run * 0x9e3779b97f4a7c15ull;
	return token;
}

static int read_boot(char boot[40])
{
	int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
	ssize_t got = fd < 0 ? -1 : read(fd, boot, 36);

	if (fd >= 0)
		close(fd);
	return got == 36 ? 0 : -1;
}

// The file system of one directory, folded into what is known of those before it.
static int describe(struct record *record, int fd, struct head *head)
{
	struct statfs fs;
	struct statx s;
	int trusted = 0;

	if (fstatfs(fd, &fs) || statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_BTIME | STATX_MNT_ID_UNIQUE, &s))
		return -1;
	for (size_t i = 0; i < sizeof(TRUSTED) / sizeof(TRUSTED[0]); i++)
		trusted |= (uint64_t)fs.f_type == TRUSTED[i] && (s.stx_mask & STATX_BTIME);
	record->trusted_system &= trusted;
	// Kernels before 6.8 ignore the unknown bit; their reused mount number still tells most remounts.
	if (s.stx_mask & (STATX_MNT_ID_UNIQUE | STATX_MNT_ID))
		head->mount_id = head->mount_id * FOLD + s.stx_mnt_id;
	head->device = head->device * FOLD + ((uint64_t)s.stx_dev_major << 32 | s.stx_dev_minor);
	head->root_inode = head->root_inode * FOLD + s.stx_ino;
	head->root_btime = (int64_t)((uint64_t)head->root_btime * FOLD + (uint64_t)s.stx_btime.tv_sec * 1000000000u +
				     s.stx_btime.tv_nsec);
	return 0;
}

static int describe_root(struct record *record, struct head *head)
{
	const struct parts *parts = &record->engine->parts;
	int error;

	memset(head, 0, sizeof(*head));
	memcpy(head->magic, MAGIC, sizeof(MAGIC));
	record->trusted_system = 1;
	error = read_boot(head->boot);
	for (int i = parts->count ? 1 : 0; !error && i <= parts->count; i++)
		error = describe(record, parts->of[i].fd, head);
	return error;
}

static int head_is_ours(const struct record *record, const struct head *found, const struct head *now)
{
	if (memcmp(found->magic, now->magic, sizeof(now->magic)) || found->root_inode != now->root_inode ||
	    found->root_btime != now->root_btime)
		return 0;
	return record->engine->options->trust_restart ||
	       (memcmp(found->boot, now->boot, sizeof(now->boot)) == 0 && found->mount_id == now->mount_id &&
		found->device == now->device);
}

static void set_add(struct record_set *set, struct digest token)
{
	size_t at = token.low & set->mask;

	while ((set->slots[at].low || set->slots[at].high) && !digest_same(set->slots[at], token))
		at = (at + 1) & set->mask;
	set->slots[at] = token;
}

static int load_tokens(struct record_set *set, int fd, size_t count)
{
	struct digest chunk[1024];
	size_t room = 1024;
	ssize_t got;

	while (room < count * 2)
		room *= 2;
	set->slots = calloc(room, sizeof(*set->slots));
	if (!set->slots)
		return -1;
	set->mask = room - 1;
	// A torn end of an interrupted run is less than a token, or matches nothing.
	for (size_t left = count; left; left -= (size_t)got / sizeof(chunk[0])) {
		got = read(fd, chunk, (left < 1024 ? left : 1024) * sizeof(chunk[0]));
		if (got < (ssize_t)sizeof(chunk[0]) || got % (ssize_t)sizeof(chunk[0]))
			return 0;
		for (size_t i = 0; i < (size_t)got / sizeof(chunk[0]); i++)
			set_add(set, chunk[i]);
	}
	set->count = count;
	return 0;
}

static int path_of(const struct record *record, const char *end, char path[PATH_ROOM])
{
	int length = snprintf(path, PATH_ROOM, "%s%s", record->engine->options->record_path, end);

	return length < 0 || (unsigned int)length >= PATH_ROOM ? -1 : 0;
}

// A record that is absent, of another disk or of another boot is simply none: then everything is read.
static int load(struct record *record, const char *end, struct record_set *set, const struct head *now)
{
	char path[PATH_ROOM];
	struct head head;
	int result = 0;
	int fd = path_of(record, end, path) ? -1 : open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	off_t size = fd < 0 ? 0 : lseek(fd, 0, SEEK_END);

	if (size >= (off_t)sizeof(head) && pread(fd, &head, sizeof(head), 0) == sizeof(head) &&
	    head_is_ours(record, &head, now) && lseek(fd, sizeof(head), SEEK_SET) > 0) {
		set->id = head.id;
		set->runs = head.runs <= RUNS_MAX ? (unsigned int)head.runs : RUNS_MAX;
		secret_make(&record->key, head.key, sizeof(head.key));
		result = load_tokens(set, fd, (size_t)(size - (off_t)sizeof(head)) / sizeof(struct digest));
	}
	if (fd >= 0)
		close(fd);
	return result;
}

// One key for both files, so that one token serves both.
static int load_key(struct record *record, struct head *now)
{
	char path[PATH_ROOM];

	if (path_of(record, ".key", path))
		return -1;
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	ssize_t got = fd < 0 ? -1 : read(fd, now->key, sizeof(now->key));

	if (fd >= 0 && got != sizeof(now->key)) {
		if (getrandom(now->key, sizeof(now->key), 0) != sizeof(now->key) || ftruncate(fd, 0) ||
		    pwrite(fd, now->key, sizeof(now->key), 0) != sizeof(now->key)) {
			close(fd);
			return -1;
		}
	}
	if (fd >= 0)
		close(fd);
	return fd < 0 ? -1 : 0;
}

int record_open(struct record *record, struct engine *engine)
{
	struct head now;

	memset(record, 0, sizeof(*record));
	record->engine = engine;
	record->fd = -1;
	pthread_mutex_init(&record->lock, NULL);
	if (!engine->options->record_path)
		return 0;
	if (describe_root(record, &now))
		return engine_fail(engine, errno, "the directory cannot be described: %s", strerror(errno));
	if (!record->trusted_system)
		return 0;
	if (load(record, "", &record->kept, &now) || load(record, ".partial", &record->partial, &now))
		return engine_fail(engine, ENOMEM, "out of memory for the record");
	return 0;
}

static void believe(struct record *record, const struct record_plan *plan)
{
	if (!plan->believed.low && !plan->believed.high)
		return;
	if (record->kept.slots && digest_same(record->kept.id, plan->believed))
		record->believed = &record->kept;
	else if (record->partial.slots && digest_same(record->partial.id, plan->believed))
		record->believed = &record->partial;
	record->believed_runs = plan->believed_runs;
}

static int open_partial(struct record *record, struct head *head, int again)
{
	char path[PATH_ROOM];

	if (path_of(record, ".partial", path))
		return -1;
	record->fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | (again ? 0 : O_TRUNC), 0600);
	if (record->fd < 0 || pwrite(record->fd, head, sizeof(*head), 0) != sizeof(*head))
		return -1;
	// An interrupted write may have left part of a token: what we append must stand on its own.
	off_t whole = (lseek(record->fd, 0, SEEK_END) - (off_t)sizeof(*head)) / 16 * 16 + (off_t)sizeof(*head);

	return ftruncate(record->fd, whole) || lseek(record->fd, whole, SEEK_SET) < 0 ? -1 : 0;
}

int record_begin(struct record *record, const struct record_plan *plan, int is_source)
{
	struct engine *e = record->engine;
	struct timespec clock;
	struct head head;

	if (!e->options->record_path || !record->trusted_system)
		return 0;
	int keeps = plan->id.low || plan->id.high; // a comparison only believes

	clock_gettime(CLOCK_REALTIME_COARSE, &clock);
	record->before_ns = clock.tv_sec * 1000000000ll + clock.tv_nsec - SLACK_NS;
	if (is_source && keeps && (errno = -parts_sync(&e->parts)))
		return engine_fail(e, errno, "the source's file system cannot be written back: %s", strerror(errno));
	believe(record, plan);
	if (describe_root(record, &head) || load_key(record, &head))
		return engine_fail(e, errno, "the record %s cannot be begun: %s", e->options->record_path,
				   strerror(errno));
	secret_make(&record->key, head.key, sizeof(head.key));
	if (!keeps)
		return 0;
	head.id = plan->id;
	head.runs = record->run = plan->run;
	if (open_partial(record, &head, record->partial.slots && digest_same(record->partial.id, plan->id)))
		return engine_fail(e, errno, "the record %s cannot be written: %s", e->options->record_path,
				   strerror(errno));
	return 0;
}

struct digest record_folder(const struct record *record, const char *folder)
{
	return digest_of(&record->key, folder, strlen(folder));
}

struct digest record_token(const struct record *record, struct digest folder, const struct entry *entry)
{
	const struct local *l = &entry->local;
	const struct meta *m = &entry->meta;
	uint64_t words[14 + NAME_ROOM / 8] = {
	    folder.low,
	    folder.high,
	    l->inode,
	    (uint64_t)l->ctime_s,
	    (uint64_t)l->btime_s,
	    (uint64_t)l->ctime_ns << 32 | l->btime_ns,
	    l->links,
	    m->size,
	    (uint64_t)m->mtime_s,
	    (uint64_t)m->mtime_ns << 32 | m->mode,
	    (uint64_t)m->uid << 32 | m->gid,
	    (uint64_t)m->major << 32 | m->minor,
	};

	memcpy(words + 12, entry->name, entry->name_length);
	return digest_of(&record->key, words, 12 * 8 + entry->name_length);
}

static int set_has(const struct record_set *set, struct digest token)
{
	for (size_t at = token.low & set->mask; set->slots[at].low || set->slots[at].high; at = (at + 1) & set->mask)
		if (digest_same(set->slots[at], token))
			return 1;
	return 0;
}

// The table is larger than any cache. Most tokens are of the first run.
void record_expect(const struct record *record, struct digest token)
{
	if (record->believed)
		__builtin_prefetch(&record->believed->slots[in_run(token, 1).low & record->believed->mask]);
}

unsigned int record_knows(const struct record *record, struct digest token)
{
	for (unsigned int run = 1; record->believed && run <= record->believed_runs; run++)
		if (set_has(record->believed, in_run(token, run)))
			return run;
	return 0;
}

static void flush_locked(struct record *record)
{
	size_t at = 0;

	while (at < record->pending_used) {
		ssize_t wrote = write(record->fd, record->pending + at, record->pending_used - at);

		if (wrote <= 0) {
			engine_fail(record->engine, wrote ? errno : ENOSPC, "the record cannot be written: %s",
				    strerror(errno));
			break;
		}
		at += (size_t)wrote;
	}
	record->pending_used = 0;
}

int record_may(const struct record *record, const struct entry *entry)
{
	const struct local *l = &entry->local;

	return record->fd >= 0 && l->has_btime && l->ctime_s * 1000000000ll + l->ctime_ns < record->before_ns;
}

void record_add(struct record *record, const struct buffer *tokens)
{
	size_t count = tokens->used / sizeof(struct digest);

	if (record->fd < 0 || tokens->failed)
		return;
	COUNT(record->engine, recorded, count);
	pthread_mutex_lock(&record->lock);
	for (size_t i = 0; i < count; i++) {
		struct digest token;

		memcpy(&token, tokens->data + i * sizeof(token), sizeof(token));
		token = in_run(token, record->run);
		memcpy(record->pending + record->pending_used, &token, sizeof(token));
		record->pending_used += sizeof(token);
		if (record->pending_used == sizeof(record->pending))
			flush_locked(record);
	}
	pthread_mutex_unlock(&record->lock);
}

int record_flush(struct record *record)
{
	if (record->fd < 0)
		return 0;
	pthread_mutex_lock(&record->lock);
	flush_locked(record);
	pthread_mutex_unlock(&record->lock);
	if (record->engine->failed)
		return -1;
	return fdatasync(record->fd)
		   ? engine_fail(record->engine, errno, "the record cannot be kept: %s", strerror(errno))
		   : 0;
}

int record_commit(struct record *record)
{
	char from[PATH_ROOM], to[PATH_ROOM];
	struct engine *e = record->engine;

	if (record->fd < 0)
		return 0;
	if (path_of(record, ".partial", from) || path_of(record, "", to) || rename(from, to))
		return engine_fail(e, errno, "the record %s cannot be kept: %s", e->options->record_path,
				   strerror(errno));
	return 0;
}

void record_close(struct record *record)
{
	if (record->fd >= 0) {
		flush_locked(record);
		close(record->fd);
	}
	free(record->kept.slots);
	free(record->partial.slots);
	pthread_mutex_destroy(&record->lock);
}
