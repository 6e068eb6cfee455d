// SPDX-License-Identifier: Apache-2.0
// Names that come, go and move without a new inode: link, unlink, rmdir, rename.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <linux/fs.h>
#include "engine.h"

static int link_locally(struct mirror *fs, struct node *node, int dir, const char *name)
{
	int fd = node_get(fs, node);
	int error = fd < 0 ? fd : inode_link(fd, dir, name);

	node_put(node, fd);
	return error;
}

// A file that had no name when this session began has no counterpart at the peer: its contents would be missing.
static bool unknown_to_peer(struct mirror *fs, struct node *node)
{
	bool unknown;

	pthread_mutex_lock(&fs->stream_lock);
	unknown = fs->state == MIRROR_PAIRED && !node->name && node->bound != fs->session && !node->excluded;
	pthread_mutex_unlock(&fs->stream_lock);
	return unknown;
}

static int make_link(struct worker *worker, struct node *parent, struct node *node, const char *name, struct op *op)
{
	struct mirror *fs = worker->fs;
	struct change change = {
	    .frame = {.op = WIRE_LINK}, .node = parent, .other = node, .name = name, .op = op, .wait = WAIT_NAMES};
	int dir = node_get(fs, parent), error = dir < 0 ? dir : 0, fd;
	struct stat st;

	if (!error &&
	    ((parent->excluded || excluded_name(fs, parent, name)) != node->excluded || unknown_to_peer(fs, node)))
		error = -EXDEV;
	if (!error)
		error = link_locally(fs, node, dir, name);
	if (!error) {
		pthread_mutex_lock(&fs->stream_lock);
		stream_change_locked(fs, &change);
		pthread_mutex_unlock(&fs->stream_lock);
		fd = inode_lookup(dir, name, O_PATH);
		error = fd < 0 ? fd : node_from_path(fs, parent, name, fd, &st, &op->entry);
	}
	if (!error) {
		fill_entry(fs, (void *)op->reply, op->entry, &st);
		op->size = sizeof(struct fuse_entry_out);
		times_mark(fs, parent);
	}
	node_put(parent, dir);
	return error;
}

void do_link(struct worker *worker)
{
	struct mirror *fs = worker->fs;
	const struct fuse_link_in *in = (const void *)worker->body;
	struct node *parent = node_of(fs, worker->in->nodeid), *node = node_of(fs, in->oldnodeid);
	struct op *op;

	if (!change_begin(worker, MIRROR_EVENT_NAMES, parent, 0, 0))
		return;
	dirty_link(fs, parent, (const char *)(in + 1), node);
	op = op_new(worker);
	if (op) {
		int error = make_link(worker, parent, node, (const char *)(in + 1), op);

		change_end(fs);
		op_done(fs, op, error);
		return;
	}
	change_end(fs);
	reply(worker, -ENOMEM, NULL, 0);
}

static void send_removal(struct mirror *fs, struct node *parent, const char *name, int wire, struct op *op)
{
	struct change change = {
	    .frame = {.op = (uint16_t)wire}, .node = parent, .name = name, .op = op, .wait = WAIT_NAMES};
	struct node *victim;
	bool excluded = excluded_name(fs, parent, name);

	pthread_mutex_lock(&fs->stream_lock);
	victim = tree_find(fs, parent, name);
	if (victim)
		stream_bind(fs, victim);
	if (!excluded)
		stream_change_locked(fs, &change);
	if (victim)
		tree_unname(fs, victim);
	pthread_mutex_unlock(&fs->stream_lock);
	times_mark(fs, parent);
}

static void remove_name(struct worker *worker, int flags, int wire)
{
	struct mirror *fs = worker->fs;
	struct node *parent = node_of(fs, worker->in->nodeid);
	const char *name = worker->body;
	struct op *op;
	int dir, error;

	if (!change_begin(worker, MIRROR_EVENT_NAMES, parent, 0, 0))
		return;
	op = op_new(worker);
	if (!op) {
		change_end(fs);
		reply(worker, -ENOMEM, NULL, 0);
		return;
	}
	dirty_place(fs, parent, name, flags & AT_REMOVEDIR);
	dir = node_get(fs, parent);
	error = dir < 0 ? dir : unlinkat(dir, name, flags) ? -errno : 0;
	node_put(parent, dir);
	if (!error)
		send_removal(fs, parent, name, wire, op);
	change_end(fs);
	op_done(fs, op, error);
}

void do_unlink(struct worker *worker)
{
	remove_name(worker, 0, WIRE_UNLINK);
}

void do_rmdir(struct worker *worker)
{
	remove_name(worker, AT_REMOVEDIR, WIRE_RMDIR);
}

struct move {
	struct node *from, *to;
	const char *name, *new_name;
	uint32_t flags;
};

static int move_locally(struct mirror *fs, const struct move *move)
{
	int from = node_get(fs, move->from), to = node_get(fs, move->to);
	int error = from < 0 ? from : to < 0 ? to : 0;

	if (!error && renameat2(from, move->name, to, move->new_name, move->flags))
		error = -errno;
	node_put(move->from, from);
	node_put(move->to, to);
	return error;
}

static void exchange_names(struct mirror *fs, const struct move *move, struct node *moved, struct node *target)
{
	if (moved)
		tree_unname(fs, moved);
	if (target)
		tree_name(fs, target, move->from, move->name);
	if (moved)
		tree_name(fs, moved, move->to, move->new_name);
}

static void send_move(struct mirror *fs, const struct move *move, struct op *op)
{
	struct change change = {.frame = {.op = WIRE_RENAME, .mode = move->flags},
				.node = move->from,
				.other = move->to,
				.name = move->name,
				.second = move->new_name,
				.op = op,
				.wait = WAIT_RENAME};
	struct node *moved, *target;
	bool excluded = excluded_name(fs, move->from, move->name);

	pthread_mutex_lock(&fs->stream_lock);
	moved = tree_find(fs, move->from, move->name);
	target = tree_find(fs, move->to, move->new_name);
	if (target)
		stream_bind(fs, target);
	if (!excluded)
		stream_change_locked(fs, &change);
	if (move->flags & RENAME_EXCHANGE) {
		exchange_names(fs, move, moved, target);
	} else {
		if (target && target != moved)
			tree_unname(fs, target);
		if (moved)
			tree_name(fs, moved, move->to, move->new_name);
	}
	pthread_mutex_unlock(&fs->stream_lock);
	times_mark(fs, move->from);
	times_mark(fs, move->to);
}

static bool crosses(struct mirror *fs, const struct move *move)
{
	bool before = move->from->excluded || excluded_name(fs, move->from, move->name);
	bool after = move->to->excluded || excluded_name(fs, move->to, move->new_name);

	return before != after || excluded_below(fs, move->from, move->name) ||
	       excluded_below(fs, move->to, move->new_name);
}

static void rename_names(struct worker *worker, const struct move *move)
{
	struct mirror *fs = worker->fs;
	struct op *op;
	int error = 0;

	if (move->flags & ~(uint32_t)(RENAME_EXCHANGE | RENAME_NOREPLACE)) {
		reply(worker, -EINVAL, NULL, 0);
		return;
	}
	if (!change_begin(worker, MIRROR_EVENT_NAMES, move->from, 0, 0))
		return;
	change_also(fs, MIRROR_EVENT_NAMES, move->to, 0, 0);
	dirty_move(fs, move->from, move->name, move->to, move->new_name);
	op = op_new(worker);
	if (!op || crosses(fs, move))
		error = op ? -EXDEV : -ENOMEM;
	if (!error)
		error = move_locally(fs, move);
	if (!error)
		send_move(fs, move, op);
	change_end(fs);
	if (op)
		op_done(fs, op, error);
	else
		reply(worker, error, NULL, 0);
}

void do_rename(struct worker *worker)
{
	const struct fuse_rename_in *in = (const void *)worker->body;
	struct move move = {.from = node_of(worker->fs, worker->in->nodeid), .to = node_of(worker->fs, in->newdir)};

	move.name = (const char *)(in + 1);
	move.new_name = move.name + strlen(move.name) + 1;
	rename_names(worker, &move);
}

void do_rename2(struct worker *worker)
{
	const struct fuse_rename2_in *in = (const void *)worker->body;
	struct move move = {.from = node_of(worker->fs, worker->in->nodeid), .to = node_of(worker->fs, in->newdir)};

	move.flags = in->flags;
	move.name = (const char *)(in + 1);
	move.new_name = move.name + strlen(move.name) + 1;
	rename_names(worker, &move);
}
