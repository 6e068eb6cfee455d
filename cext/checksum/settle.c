// SPDX-License-Identifier: Apache-2.0
// Makes the names of one directory like the source's: kind, links, metadata. Contents follow later, see contents.c.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "../exclude.h"
#include "target.h"

// Several names of one inode are in one part.
static struct links *links_of(struct target *target, const struct listing *listing)
{
	const struct parts *parts = &target->engine.parts;
	const char *path = listing->folder->path;
	char name[PART_NAME_ROOM];
	size_t length = strcspn(path, "/");

	if (!parts->count || length >= sizeof(name))
		return &target->links[0];
	memcpy(name, path, length);
	name[length] = 0;
	return &target->links[part_below(parts, 0, name)];
}

int target_fail(struct target *target, int code, const char *doing, const char *folder, const char *name)
{
	return engine_fail(&target->engine, code, "%s %s%s%s: %s", doing, folder, *folder && *name ? "/" : "",
			   *folder || *name ? name : "the directory itself", strerror(code));
}

int folder_again(struct target *target, struct folder *folder, const char *name)
{
	folder->unsettled = 1;
	if (target->round + 1 >= ROUNDS) {
		engine_report(&target->engine, CHECKSUM_CHANGING, 0, folder->path, name);
		return 0;
	}
	return todo_add(&target->again, folder->path) < 0 ? target_fail(target, ENOMEM, "listing", folder->path, "")
							  : 0;
}

void folder_done(struct target *target, struct folder *folder)
{
	struct engine *e = &target->engine;

	if (!folder->listed || folder->files)
		return;
	if (target->writes && !folder->unsettled && !e->failed && target->record.fd >= 0)
		scan_for_record(target, folder->path);
	COUNT(e, dirs_done, 1);
	free(folder->path);
	free(folder);
}

struct listing *listing_begin(struct target *target, const char *path)
{
	struct listing *listing = calloc(1, sizeof(*listing));

	if (listing)
		listing->fd = -1;
	if (!listing || !(listing->folder = calloc(1, sizeof(*listing->folder))) ||
	    !(listing->folder->path = strdup(path))) {
		target_fail(target, ENOMEM, "listing", path, "");
		listing_free(listing);
		return NULL;
	}
	return listing;
}

static struct digest name_key(struct target *target, const char *name)
{
	return digest_of(&target->engine.secret, name, strlen(name));
}

static void folder_was_made(void *context, const char *folder, int replaced)
{
	struct target *target = context;

	engine_report(&target->engine, replaced ? CHECKSUM_TYPE : CHECKSUM_MISSING, 0, folder, "");
	if (hashset_add(&target->made, name_key(target, folder)) < 0)
		target_fail(target, ENOMEM, "creating", folder, "");
}

// Only when the source has said that it still is a directory: what is in its place may go then.
static int open_folder(struct target *target, struct listing *listing)
{
	const char *path = listing->folder->path;
	int root = target->engine.options->root_fd;

	if (listing->fd >= 0)
		return 0;
	listing->fd = target->writes ? apply_folder(root, path, &target->scratch, folder_was_made, target)
				     : tree_open_folder(root, path);
	if (listing->fd >= 0 || (!target->writes && (errno == ENOENT || errno == ENOTDIR || errno == ELOOP)))
		return 0;
	return target_fail(target, errno, "opening", path, "");
}

void listing_free(struct listing *listing)
{
	if (!listing)
		return;
	if (listing->folder) {
		free(listing->folder->path);
		free(listing->folder);
	}
	if (listing->fd >= 0)
		close(listing->fd);
	hashset_free(&listing->seen);
	free(listing->self_xattrs.data);
	free(listing);
}

static int meta_same(const struct meta *a, const struct meta *b)
{
	return a->mode == b->mode && a->uid == b->uid && a->gid == b->gid && a->mtime_s == b->mtime_s &&
	       a->mtime_ns == b->mtime_ns;
}

static int xattrs_same(struct target *target, int fd, const char *name, const struct entry_message *wanted, int *same)
{
	struct buffer theirs = {.data = (unsigned char *)(uintptr_t)wanted->xattrs, .used = wanted->xattrs_length};

	if (xattrs_read(fd, name, target->scratch.more))
		return -1;
	*same = digest_same(xattrs_digest(&target->engine.secret, target->scratch.more),
			    xattrs_digest(&target->engine.secret, &theirs));
	return 0;
}

// 1: surely the same contents, 0: surely not, 2: only the blocks will tell. -1 and errno.
static int data_same(struct target *target, struct listing *listing, const struct entry_message *wanted,
		     const struct entry *mine)
{
	struct digest digest;
	char text[PATH_ROOM];

	if (S_ISLNK(mine->meta.mode)) {
		ssize_t length = readlinkat(listing->fd, mine->name, text, sizeof(text) - 1);

		return length < 0
			   ? -1
			   : (size_t)length == strlen(wanted->target) && !memcmp(text, wanted->target, (size_t)length);
	}
	if (!S_ISREG(mine->meta.mode))
		return mine->meta.major == wanted->meta.major && mine->meta.minor == wanted->meta.minor;
	if (mine->meta.size != wanted->meta.size)
		return 0;
	if (!mine->meta.size)
		return 1;
	if (wanted->kind != CONTENT_HASH)
		return 2;
	int fd = scan_open(listing->fd, mine->name);

	if (fd < 0)
		return -1;
	int result = file_digest(&target->engine.secret, fd, mine->meta.size, target->scratch.data, &digest);

	close(fd);
	COUNT(&target->engine, bytes_hashed, mine->meta.size);
	// Not the same digest: most blocks may be equal all the same.
	return result < 0 ? -1 : result == 0 && digest_same(digest, wanted->digest) ? 1 : 2;
}

static int set_meta(struct target *target, struct listing *listing, const struct entry_message *wanted, int with_xattrs)
{
	struct buffer xattrs = {.data = (unsigned char *)(uintptr_t)wanted->xattrs, .used = wanted->xattrs_length};
	int fd = openat(listing->fd, wanted->name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	int result = fd < 0 ? -1 : apply_meta(fd, &wanted->meta, with_xattrs ? &xattrs : NULL);
	int code = errno;

	if (fd >= 0)
		close(fd);
	return result ? target_fail(target, code, "setting owner, mode, time or attributes of", listing->folder->path,
				    wanted->name)
		      : 0;
}

static int remove_entry(struct target *target, struct listing *listing, const struct entry *mine)
{
	struct engine *e = &target->engine;
	uint64_t deleted = 0;
	int failed = apply_delete(e->options->root_fd, listing->fd, listing->folder->path, mine->name,
				  S_ISDIR(mine->meta.mode), &target->scratch, &deleted);

	COUNT(e, files_deleted, deleted);
	return failed ? target_fail(target, errno, "deleting", listing->folder->path, mine->name) : 0;
}

// A new name. Regular files get their contents afterwards.
static int create(struct target *target, struct listing *listing, const struct entry_message *wanted)
{
	struct entry mine;

	if (target->writes && (apply_make(listing->fd, wanted) || tree_stat(listing->fd, wanted->name, &mine)))
		return target_fail(target, errno, "creating", listing->folder->path, wanted->name);
	if (S_ISDIR(wanted->meta.mode)) {
		char path[PATH_ROOM];

		// Its own list makes the rest; it may be younger than the walk.
		if (path_join(path, listing->folder->path, wanted->name))
			return target_fail(target, ENAMETOOLONG, "creating", listing->folder->path, wanted->name);
		if (hashset_add(&target->made, name_key(target, path)) < 0)
			return target_fail(target, ENOMEM, "creating", path, "");
		int added = todo_add(&target->todo, path);

		COUNT(&target->engine, dirs_differing, added > 0);
		return added < 0 ? target_fail(target, ENOMEM, "listing", path, "") : 0;
	}
	if (wanted->links > 1) {
		char path[PATH_ROOM];

		if (path_join(path, listing->folder->path, wanted->name) ||
		    links_set(links_of(target, listing), wanted->inode, target->writes ? mine.local.inode : 0, path))
			return target_fail(target, ENOMEM, "linking", listing->folder->path, wanted->name);
	}
	if (S_ISREG(wanted->meta.mode) && wanted->meta.size)
		return job_begin(target, listing, wanted, target->writes ? &mine : NULL, 1, 1);
	return target->writes ? set_meta(target, listing, wanted, 1) : 0;
}

// A further name of an inode that we have already. 1: done.
static int settle_link(struct target *target, struct listing *listing, const struct entry_message *wanted,
		       const struct entry *mine, uint32_t finding)
{
	struct engine *e = &target->engine;
	struct link_name *first = links_find(links_of(target, listing), wanted->inode);
	char path[PATH_ROOM];

	if (!first || path_join(path, listing->folder->path, wanted->name) || strcmp(first->path, path) == 0)
		return 0;
	if (mine && mine->local.inode == first->target)
		return 1;
	engine_report(e, mine ? CHECKSUM_LINKS : finding, 0, listing->folder->path, wanted->name);
	if (!target->writes)
		return 1;
	if (mine && remove_entry(target, listing, mine))
		return -1;
	if (apply_link(e->options->root_fd, first->path, first->target, listing->fd, wanted->name)) {
		if (errno == ESTALE || errno == ENOENT || errno == ELOOP)
			return folder_again(target, listing->folder, wanted->name) ? -1 : 1;
		return target_fail(target, errno, "linking", listing->folder->path, wanted->name);
	}
	return 1;
}

// The target's inode has names that the source's has not: writing to it would write to those, too.
static int is_shared(struct target *target, const struct listing *listing, const struct entry_message *wanted,
		     const struct entry *mine)
{
	uint64_t owner = links_owner(links_of(target, listing), mine->local.inode);

	if (mine->local.links < 2)
		return 0;
	return mine->local.links > wanted->links || (owner && owner != wanted->inode);
}

static int settle_existing(struct target *target, struct listing *listing, const struct entry_message *wanted,
			   const struct entry *mine)
{
	struct digest key = record_folder(&target->record, listing->folder->path);
	unsigned int run = record_knows(&target->record, record_token(&target->record, key, mine));
	int trusted = wanted->kind == CONTENT_KNOWN && run && run == wanted->run;
	int same_xattrs = 1, same_data = 1;
	char path[PATH_ROOM];

	if (wanted->links > 1 && (path_join(path, listing->folder->path, wanted->name) ||
				  links_set(links_of(target, listing), wanted->inode, mine->local.inode, path)))
		return target_fail(target, ENOMEM, "linking", listing->folder->path, wanted->name);
	if (!trusted) {
		same_data = data_same(target, listing, wanted, mine);
		if (same_data < 0 || xattrs_same(target, listing->fd, mine->name, wanted, &same_xattrs))
			return target_fail(target, errno, "reading", listing->folder->path, mine->name);
	}
	int same_meta = meta_same(&wanted->meta, &mine->meta) && same_xattrs;

	if (S_ISREG(mine->meta.mode) && same_data != 1)
		return job_begin(target, listing, wanted, mine, 0, !same_meta);
	if (!same_data) { // a symbolic link or device cannot be changed in place
		engine_report(&target->engine, CHECKSUM_DATA, 0, listing->folder->path, mine->name);
		return target->writes && (remove_entry(target, listing, mine) || create(target, listing, wanted)) ? -1
														  : 0;
	}
	if (same_meta)
		return 0;
	engine_report(&target->engine, CHECKSUM_META, 0, listing->folder->path, mine->name);
	return target->writes ? set_meta(target, listing, wanted, !same_xattrs || !trusted) : 0;
}

static int settle_name(struct target *target, struct listing *listing, const struct entry_message *wanted)
{
	struct engine *e = &target->engine;
	struct entry mine;
	int there = listing->fd >= 0 && tree_stat(listing->fd, wanted->name, &mine) == 0;
	int linked = 0;

	COUNT(e, files_seen, !there); // the others were counted when this side was scanned
	if (listing->fd >= 0 && !there && errno != ENOENT)
		return target_fail(target, errno, "looking at", listing->folder->path, wanted->name);
	if (wanted->kind == CONTENT_SKIP || (there && mine.local.mount_root)) {
		int code = wanted->kind == CONTENT_SKIP ? (int)(wanted->digest.low & 4095) : EXDEV;

		engine_report(e, CHECKSUM_UNREADABLE, code, listing->folder->path, wanted->name);
		listing->folder->unsettled = 1;
		return 0;
	}
	if (S_ISDIR(wanted->meta.mode) && there && S_ISDIR(mine.meta.mode))
		return 0;
	uint32_t finding = CHECKSUM_MISSING;

	if (there && (mine.meta.mode & S_IFMT) != (wanted->meta.mode & S_IFMT)) {
		finding = CHECKSUM_TYPE;
		there = 0;
		if (target->writes && remove_entry(target, listing, &mine))
			return -1;
	}
	if (wanted->links > 1 && !S_ISDIR(wanted->meta.mode))
		linked = settle_link(target, listing, wanted, there ? &mine : NULL, finding);
	if (linked)
		return linked < 0 ? -1 : 0;
	if (there && is_shared(target, listing, wanted, &mine)) {
		finding = CHECKSUM_LINKS;
		there = !target->writes; // a comparison looks at the contents as well
		if (target->writes && remove_entry(target, listing, &mine))
			return -1;
		if (!target->writes)
			engine_report(e, finding, 0, listing->folder->path, wanted->name);
	}
	if (there)
		return settle_existing(target, listing, wanted, &mine);
	engine_report(e, finding, 0, listing->folder->path, wanted->name);
	return create(target, listing, wanted);
}

// With one name of an inode all of its names are told: only together can somebody join them later.
static int tell_names(struct target *target, struct listing *listing, const struct entry_message *wanted, int differs)
{
	struct link_name *inode = links_find(links_of(target, listing), wanted->inode);
	char path[PATH_ROOM];

	if (!inode)
		return 0;
	if (!differs && inode->told)
		engine_report(&target->engine, CHECKSUM_LINKS, 0, listing->folder->path, wanted->name);
	if (!differs && !inode->told)
		return path_join(path, listing->folder->path, wanted->name) || links_keep(inode, path)
			   ? target_fail(target, ENOMEM, "linking", listing->folder->path, wanted->name)
			   : 0;
	inode->told = 1;
	while (inode->alike) {
		struct link_path *kept = inode->alike;

		engine_report(&target->engine, CHECKSUM_LINKS, 0, kept->path, "");
		inode->alike = kept->next;
		free(kept);
	}
	return 0;
}

static int settle(struct target *target, struct listing *listing, const struct entry_message *wanted)
{
	uint64_t before = target->engine.progress->files_differing;
	int result = settle_name(target, listing, wanted);

	if (result || target->writes || wanted->links < 2 || S_ISDIR(wanted->meta.mode))
		return result;
	return tell_names(target, listing, wanted, target->engine.progress->files_differing != before);
}

static int keep_self(struct target *target, struct listing *listing, const struct entry_message *wanted)
{
	if (listing->have_self)
		return engine_fail(&target->engine, EPROTO, "the source described %s twice", listing->folder->path);
	listing->have_self = 1;
	listing->self = wanted->meta;
	put(&listing->self_xattrs, wanted->xattrs, wanted->xattrs_length);
	return listing->self_xattrs.failed ? target_fail(target, ENOMEM, "listing", listing->folder->path, "")
					   : open_folder(target, listing);
}

int listing_entry(struct target *target, struct listing *listing, const struct entry_message *wanted)
{
	if (!*wanted->name)
		return keep_self(target, listing, wanted);
	if (exclude_child(target->engine.options->excluded, listing->folder->path, wanted->name))
		return engine_fail(&target->engine, EPROTO, "the source sent %s%s%s, which is not replicated here",
				   listing->folder->path, *listing->folder->path ? "/" : "", wanted->name);
	int added = hashset_add(&listing->seen, name_key(target, wanted->name));

	if (added < 0)
		return target_fail(target, ENOMEM, "listing", listing->folder->path, "");
	if (!added || !listing->have_self)
		return engine_fail(&target->engine, EPROTO,
				   "the source's list of %s is out of order or has a name twice",
				   *listing->folder->path ? listing->folder->path : "the directory itself");
	return settle(target, listing, wanted);
}

struct extras {
	struct target *target;
	struct listing *listing;
	struct entry *found;
	size_t count, room;
};

// Deleting a tree needs the thread's buffer that the loop over the names reads from: later.
static int keep_for_later(struct extras *extras, const struct entry *entry)
{
	if (extras->count == extras->room) {
		size_t room = extras->room * 2 + 16;
		struct entry *larger = realloc(extras->found, room * sizeof(*larger));

		if (!larger)
			return target_fail(extras->target, ENOMEM, "deleting", extras->listing->folder->path,
					   entry->name);
		extras->found = larger;
		extras->room = room;
	}
	extras->found[extras->count] = *entry;
	extras->found[extras->count].name = strdup(entry->name);
	return extras->found[extras->count++].name
		   ? 0
		   : target_fail(extras->target, ENOMEM, "deleting", extras->listing->folder->path, entry->name);
}

static int find_extra(void *context, int folder, const char *name)
{
	struct extras *extras = context;
	struct target *target = extras->target;
	const char *path = extras->listing->folder->path;
	struct entry entry;

	if (hashset_has(&extras->listing->seen, name_key(target, name)) ||
	    !only_has(&target->engine.only, path, name) || exclude_child(target->engine.options->excluded, path, name))
		return 0;
	if (tree_stat(folder, name, &entry))
		return errno == ENOENT ? 0 : -1;
	engine_report(&target->engine, CHECKSUM_EXTRA, 0, path, name);
	if (!target->writes)
		return 0;
	return S_ISDIR(entry.meta.mode) ? keep_for_later(extras, &entry)
					: remove_entry(target, extras->listing, &entry);
}

static int delete_extras(struct target *target, struct listing *listing)
{
	struct extras extras = {.target = target, .listing = listing};
	// getdents goes on where the descriptor stands: a fresh one reads all.
	int fd = openat(listing->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int result = fd < 0 ? -1 : tree_names(fd, &target->scratch, find_extra, &extras);

	if (result && !target->engine.failed)
		target_fail(target, errno, "reading", listing->folder->path, "");
	if (fd >= 0)
		close(fd);
	for (size_t i = 0; i < extras.count; i++) {
		if (!result && extras.found[i].name)
			result = remove_entry(target, listing, &extras.found[i]);
		free((void *)(uintptr_t)extras.found[i].name);
	}
	free(extras.found);
	return result;
}

static int settle_self(struct target *target, struct listing *listing)
{
	struct entry mine;
	int same = 0;
	struct entry_message wanted = {.xattrs = listing->self_xattrs.data,
				       .xattrs_length = (uint32_t)listing->self_xattrs.used};

	if (tree_stat(listing->fd, "", &mine) || xattrs_same(target, listing->fd, NULL, &wanted, &same))
		return target_fail(target, errno, "reading", listing->folder->path, "");
	if (same && meta_same(&listing->self, &mine.meta))
		return 0;
	// A directory whose names were changed has a new time: that alone is no finding.
	if (!hashset_has(&target->made, name_key(target, listing->folder->path)) &&
	    (!target->writes || !same || mine.meta.mode != listing->self.mode || mine.meta.uid != listing->self.uid ||
	     mine.meta.gid != listing->self.gid))
		engine_report(&target->engine, CHECKSUM_META, 0, listing->folder->path, "");
	if (target->writes && apply_meta(listing->fd, &listing->self, &listing->self_xattrs))
		return target_fail(target, errno, "setting owner, mode, time or attributes of", listing->folder->path,
				   "");
	return 0;
}

int listing_end(struct target *target, struct listing *listing, uint8_t flags)
{
	struct folder *folder = listing->folder;
	int result = 0;

	if (flags & ENTRIES_GONE) {
		char *slash = strrchr(folder->path, '/');

		if (!*folder->path)
			return engine_fail(&target->engine, ENOENT, "the source's directory is gone");
		*(slash ? slash : folder->path) = 0;
		result = folder_again(target, folder, "");
	} else if (flags & ENTRIES_UNREADABLE) {
		folder->unsettled = 1;
		engine_report(&target->engine, CHECKSUM_UNREADABLE, EIO, folder->path, "");
	} else if (!listing->have_self) {
		return engine_fail(&target->engine, EPROTO, "the source's list has no directory");
	} else if (listing->fd >= 0) {
		result = delete_extras(target, listing) || settle_self(target, listing) ? -1 : 0;
	}
	if (result)
		return -1;
	folder->listed = 1;
	COUNT(&target->engine, dirs_listed, 1);
	listing->folder = NULL;
	listing_free(listing);
	folder_done(target, folder);
	return 0;
}
