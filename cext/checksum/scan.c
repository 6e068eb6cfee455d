// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>
#include "../exclude.h"
#include "scan.h"

int scan_open(int folder, const char *name)
{
	int flags = O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
	int fd = openat(folder, name, flags | O_NOATIME);

	return fd < 0 && errno == EPERM ? openat(folder, name, flags) : fd;
}

static int skip(struct examined *found, int code)
{
	if (code == ENOENT || code == ELOOP || code == EAGAIN) {
		errno = code;
		return -1;
	}
	found->kind = CONTENT_SKIP;
	found->digest = (struct digest){(uint64_t)code, 0};
	found->xattrs->used = 0;
	return 0;
}

static int examine_regular(struct scan *scan, int folder, const struct entry *entry, struct scratch *scratch,
			   struct examined *found)
{
	struct engine *e = scan->engine;
	int fd = scan_open(folder, entry->name);
	int result = 0;

	if (fd < 0)
		return skip(found, errno);
	if (xattrs_read(fd, NULL, found->xattrs))
		result = -1;
	else if (entry->meta.size > SMALL_FILE)
		found->kind = CONTENT_LARGE;
	else {
		found->kind = CONTENT_HASH;
		engine_pace_reading(e, entry->meta.size);
		// A file that changes its size meanwhile gets the digest of what was read: ctime tells the rest.
		result = file_digest(&e->secret, fd, entry->meta.size, scratch->data, &found->digest) < 0 ? -1 : 0;
		COUNT(e, bytes_hashed, entry->meta.size);
	}
	int code = errno;

	close(fd);
	return result ? skip(found, code) : 0;
}

static int examine_symlink(struct scan *scan, int folder, const struct entry *entry, struct examined *found)
{
	ssize_t length = readlinkat(folder, entry->name, found->target, sizeof(found->target) - 1);

	if (length < 0)
		return skip(found, errno);
	found->target[length] = 0;
	found->kind = CONTENT_HASH;
	found->digest = digest_of(&scan->engine->secret, found->target, (size_t)length);
	return 0;
}

int examine(struct scan *scan, int folder, const struct entry *entry, int all, struct scratch *scratch,
	    struct examined *found)
{
	int known;

	found->xattrs = scratch->more;
	found->xattrs->used = 0;
	found->digest = (struct digest){0, 0};
	found->target[0] = 0;
	found->kind = CONTENT_NONE;
	found->token =
	    entry->token.low || entry->token.high ? entry->token : record_token(scan->record, scan->folder_key, entry);
	found->run = record_knows(scan->record, found->token);
	known = found->run != 0;
	if (entry->local.mount_root)
		return skip(found, EXDEV);
	if (known && !all) {
		found->kind = CONTENT_KNOWN;
		return 0;
	}
	if (S_ISREG(entry->meta.mode) && !known)
		return examine_regular(scan, folder, entry, scratch, found);
	if (S_ISLNK(entry->meta.mode) && examine_symlink(scan, folder, entry, found))
		return -1;
	if (xattrs_read(folder, *entry->name ? entry->name : NULL, found->xattrs))
		return skip(found, errno);
	if (known)
		found->kind = CONTENT_KNOWN;
	return 0;
}

static struct digest entry_digest(const struct secret *secret, const struct entry *entry, const struct examined *found)
{
	const struct meta *m = &entry->meta;
	struct digest xattrs = {0, 0};

	// Both sides know that it is unchanged since it was equal, whatever it is.
	if (found->kind == CONTENT_KNOWN) {
		unsigned char known[NAME_ROOM + 8] = {CONTENT_KNOWN, (unsigned char)found->run};

		memcpy(known + 8, entry->name, entry->name_length);
		return digest_of(secret, known, 8 + entry->name_length);
	}
	uint64_t words[12 + NAME_ROOM / 8] = {
	    (uint64_t)m->mode << 32 | m->uid,
	    (uint64_t)m->gid << 32 | m->mtime_ns,
	    (uint64_t)m->mtime_s,
	    m->size,
	    (uint64_t)m->major << 32 | m->minor,
	    (uint64_t)found->kind << 32 | found->run,
	    found->digest.low,
	    found->digest.high,
	};

	if (found->xattrs->used)
		xattrs = xattrs_digest(secret, found->xattrs);
	words[8] = xattrs.low;
	words[9] = xattrs.high;
	memcpy(words + 10, entry->name, entry->name_length);
	return digest_of(secret, words, 10 * 8 + entry->name_length);
}

static void expect(void *context, struct entry *entry)
{
	struct scan *scan = context;

	entry->token = record_token(scan->record, scan->folder_key, entry);
	record_expect(scan->record, entry->token);
}

static int visit(void *context, int folder, const struct entry *entry, struct scratch *scratch)
{
	struct scan *scan = context;
	struct examined found;

	if (engine_stopping(scan->engine)) {
		errno = ECANCELED;
		return -1;
	}
	if (exclude_child(scan->engine->options->excluded, scan->folder, entry->name))
		return 0;
	if (*entry->name) {
		scan->names++;
		COUNT(scan->engine, files_seen, 1);
	}
	if (S_ISDIR(entry->meta.mode) && *entry->name && !entry->local.mount_root) {
		// A directory's own metadata is part of its own digest; here only its name counts.
		digest_add(&scan->sum, digest_of(&scan->engine->secret, entry->name, entry->name_length));
		if (scan->on_child)
			scan->on_child(scan->context, scan->folder, entry->name);
		return 0;
	}
	if (examine(scan, folder, entry, 0, scratch, &found)) {
		scan->force = 1; // it is changing right now: list it later
		return 0;
	}
	if (found.kind == CONTENT_LARGE || found.kind == CONTENT_SKIP || (*entry->name && entry->local.links > 1))
		scan->force = 1;
	digest_add(&scan->sum, entry_digest(&scan->engine->secret, entry, &found));
	if (record_may(scan->record, entry))
		put(scan->tokens, &found.token, sizeof(found.token));
	return 0;
}

static int visit_token(void *context, int folder, const struct entry *entry, struct scratch *scratch)
{
	struct scan *scan = context;

	(void)folder;
	(void)scratch;
	if (record_may(scan->record, entry) &&
	    !exclude_child(scan->engine->options->excluded, scan->folder, entry->name) &&
	    !(S_ISDIR(entry->meta.mode) && *entry->name)) {
		put(scan->tokens, &entry->token, sizeof(entry->token));
	}
	return 0;
}

static int scan_with(struct scan *scan, int root, struct scratch *scratch, tree_visit visit)
{
	struct tree_visitor visitor = {expect, visit};
	struct entry self;
	int fd = tree_open_folder(root, scan->folder);
	int result = -1;

	scan->folder_key = record_folder(scan->record, scan->folder);
	scan->tokens->used = 0;
	if (fd < 0)
		return -1;
	if (tree_stat(fd, "", &self) == 0) {
		// Its size and link count are matters of each file system.
		self.local.links = 1;
		expect(scan, &self);
		result = visitor.visit(scan, fd, &self, scratch);
		if (!result)
			result = tree_each_expected(fd, scratch, &visitor, scan);
	}
	int code = errno;

	close(fd);
	errno = code;
	return result;
}

int scan_folder(struct scan *scan, int root, struct scratch *scratch)
{
	return scan_with(scan, root, scratch, visit);
}

int scan_tokens(struct scan *scan, int root, struct scratch *scratch)
{
	return scan_with(scan, root, scratch, visit_token);
}
