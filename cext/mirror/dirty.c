// SPDX-License-Identifier: Apache-2.0
// What the log of dirty zones is told when it must hold (`confirm`): before a change, what it may touch.
//
// *Coarse* events make a change wait until they are durable, once between two checkpoints: 16 MiB of a file, its
// attributes, all of it, or a directory. A directory's event speaks for its names and for the small files in it, so
// that making a thousand files costs one. After a crash whatever a coarse event named is compared.
// *Fine* events come beside them while the peer is away and make nobody wait: 64 KiB of a file, its attributes, one
// name. They say what to send when there was no crash.
//
// So that a directory may speak for small files only, a file that stops being small, and a large one that gets or
// changes a name, is told as a whole. A directory that is made, moved or removed is told by its name (dirty_place).
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "engine.h"

#define SMALL_BYTES  (1u << 20)
#define COARSE_SHIFT 24
#define FINE_SHIFT   16

static void renew(struct mirror *fs, struct node *node)
{
	if (node->told == fs->generation)
		return;
	node->told = fs->generation;
	node->names_told = node->inode_told = node->whole_told = false;
	node->fine_inode_told = node->fine_whole_told = false;
	if (node->zones.bits)
		memset(node->zones.bits, 0, node->zones.words * 8);
	if (node->fine.bits)
		memset(node->fine.bits, 0, node->fine.words * 8);
}

static void measure(struct mirror *fs, struct node *node)
{
	struct stat st;
	int fd = node_get(fs, node);

	// One of several names may go while another directory, which knows nothing, keeps the file.
	node->large = fd < 0 || inode_stat(fd, &st) || st.st_size > SMALL_BYTES || st.st_nlink > 1;
	node->measured = true;
	node_put(node, fd);
}

// Whether its directory speaks for this file. `*grew`: it did until now.
static bool is_small(struct mirror *fs, struct node *node, uint64_t end, bool *grew)
{
	if (S_ISDIR(node->mode) || !node->parent || !node->name)
		return false;
	if (!node->measured)
		measure(fs, node);
	*grew = !node->large && end > SMALL_BYTES;
	node->large |= *grew;
	return !node->large;
}

static uint64_t put_event(struct mirror *fs, int kind, struct node *node, bool waits, uint64_t offset, uint64_t length)
{
	struct mirror_event event = {.kind = kind, .waits = waits, .offset = offset, .length = length};

	event.handle_type = node->handle.type;
	event.handle_size = node->handle.size;
	memcpy(event.handle, node->handle.bytes, sizeof(event.handle));
	if (node->parent && node->name && kind != MIRROR_EVENT_NAMES) {
		event.parent_type = node->parent->handle.type;
		event.parent_size = node->parent->handle.size;
		memcpy(event.parent, node->parent->handle.bytes, sizeof(event.parent));
		snprintf(event.text, sizeof(event.text), "%s", node->name);
	}
	return event_put(fs, &event);
}

static bool first_time(bool *told)
{
	bool fresh = !*told;

	*told = true;
	return fresh;
}

static void tell_range(struct mirror *fs, struct node *node, bool coarse, uint64_t offset, uint64_t length)
{
	int shift = coarse ? COARSE_SHIFT : FINE_SHIFT;
	uint64_t first = offset >> shift, last = (offset + (length ? length - 1 : 0)) >> shift;

	if (mark_zones(coarse ? &node->zones : &node->fine, first, last))
		put_event(fs, MIRROR_EVENT_DATA, node, coarse, first << shift, (last - first + 1) << shift);
}

static void tell_one(struct mirror *fs, int kind, struct node *node, bool coarse)
{
	bool *inode = coarse ? &node->inode_told : &node->fine_inode_told;
	bool *whole = coarse ? &node->whole_told : &node->fine_whole_told;
	bool *told = kind == MIRROR_EVENT_NAMES ? &node->names_told : kind == MIRROR_EVENT_INODE ? inode : whole;

	if (first_time(told))
		put_event(fs, kind, node, coarse, 0, 0);
}

static void tell_as(struct mirror *fs, int kind, struct node *node, bool coarse, uint64_t offset, uint64_t length)
{
	if (kind == MIRROR_EVENT_DATA)
		tell_range(fs, node, coarse, offset, length);
	else
		tell_one(fs, kind, node, coarse);
}

uint64_t dirty_tell(struct mirror *fs, int kind, struct node *node, uint64_t offset, uint64_t length)
{
	bool grew = false, small = kind != MIRROR_EVENT_NAMES && is_small(fs, node, offset + length, &grew);

	renew(fs, node);
	if (small)
		renew(fs, node->parent);
	if (grew)
		tell_one(fs, MIRROR_EVENT_WHOLE, node, true);
	if (small)
		tell_one(fs, MIRROR_EVENT_NAMES, node->parent, true);
	else
		tell_as(fs, kind, node, true, offset, length);
	if (fs->state != MIRROR_PAIRED && kind != MIRROR_EVENT_NAMES)
		tell_as(fs, kind, node, false, offset, length);
	return fs->events.asked;
}

// The peer does not get the name, and yet the directory's time: both are to show the same.
static void tell_times(struct mirror *fs, struct node *dir)
{
	pthread_mutex_lock(&fs->stream_lock);
	renew(fs, dir);
	if (fs->state != MIRROR_PAIRED)
		tell_one(fs, MIRROR_EVENT_INODE, dir, false);
	pthread_mutex_unlock(&fs->stream_lock);
}

void dirty_place(struct mirror *fs, struct node *dir, const char *name, bool deep)
{
	struct mirror_event event = {.kind = MIRROR_EVENT_PLACE, .waits = deep};
	uint64_t number = 0;

	if (!fs->config.confirm || dir->excluded)
		return;
	event_wait_room(&fs->events);
	if (excluded_name(fs, dir, name)) {
		tell_times(fs, dir);
		return;
	}
	event.handle_type = dir->handle.type;
	event.handle_size = dir->handle.size;
	memcpy(event.handle, dir->handle.bytes, sizeof(event.handle));
	snprintf(event.text, sizeof(event.text), "%s", name);
	pthread_mutex_lock(&fs->stream_lock);
	// While paired, a directory's own event says enough of the files in it.
	if (deep || fs->state != MIRROR_PAIRED)
		number = event_put(fs, &event);
	pthread_mutex_unlock(&fs->stream_lock);
	if (deep)
		event_wait(&fs->events, number);
}

void dirty_link(struct mirror *fs, struct node *dir, const char *name, struct node *node)
{
	if (!fs->config.confirm)
		return;
	pthread_mutex_lock(&fs->stream_lock);
	node->measured = node->large = true;
	pthread_mutex_unlock(&fs->stream_lock);
	change_also(fs, MIRROR_EVENT_WHOLE, node, 0, 0);
	dirty_place(fs, dir, name, false);
}

// What stands at a name before it moves or is moved over. True: a directory.
static bool tell_what_moves(struct mirror *fs, struct node *dir, const char *name)
{
	int at = node_get(fs, dir), fd = at < 0 ? at : inode_lookup(at, name, O_PATH);
	struct node *node;
	struct stat st;
	bool deep;

	node_put(dir, at);
	if (fd < 0 || node_from_path(fs, dir, name, fd, &st, &node))
		return false;
	deep = S_ISDIR(st.st_mode);
	if (S_ISREG(st.st_mode))
		change_also(fs, MIRROR_EVENT_WHOLE, node, 0, 0);
	node_forget(fs, node, 1);
	return deep;
}

void dirty_move(struct mirror *fs, struct node *from, const char *name, struct node *to, const char *new_name)
{
	bool deep;

	if (!fs->config.confirm)
		return;
	deep = tell_what_moves(fs, from, name);
	deep |= tell_what_moves(fs, to, new_name);
	dirty_place(fs, from, name, deep);
	dirty_place(fs, to, new_name, deep);
}
