// SPDX-License-Identifier: Apache-2.0
// The target's half of comparing contents: hash, ask, write what comes. Files are written in place, time and mode last.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "mapping.h"
#include "target.h"

// A run of zeros is one request, but not an endless one: progress should be seen, and others get their turn.
#define ZEROS_MAX (256ull << 20)

int job_begin(struct target *target, struct listing *listing, const struct entry_message *wanted,
	      const struct entry *mine, int is_new, int meta_differs)
{
	struct engine *e = &target->engine;
	size_t length = strlen(wanted->name) + 1;
	struct file_job *job;

	if (!mine) { // a comparison, and there is nothing to compare with: holes do not travel
		COUNT(e, bytes_differing,
		      wanted->meta.size < wanted->bytes_allocated ? wanted->meta.size : wanted->bytes_allocated);
		return 0;
	}
	job = calloc(1, sizeof(*job) + length);
	if (!job)
		return target_fail(target, ENOMEM, "comparing", listing->folder->path, wanted->name);
	job->folder = listing->folder;
	job->meta = wanted->meta;
	job->version = wanted->version;
	job->is_new = is_new;
	job->compare_meta = meta_differs;
	job->inode = mine->local.inode;
	job->fd = -1;
	memcpy(job->name, wanted->name, length);
	put(&job->xattrs, wanted->xattrs, wanted->xattrs_length);
	if (target->last_job)
		target->last_job->next = job;
	else
		target->first_job = job;
	target->last_job = job;
	target->jobs++;
	job->folder->files++;
	COUNT(e, bytes_to_compare, job->meta.size);
	return job->xattrs.failed ? target_fail(target, ENOMEM, "comparing", listing->folder->path, wanted->name) : 0;
}

static void job_free(struct target *target, struct file_job *job)
{
	struct folder *folder = job->folder;

	if (job->fd >= 0)
		close(job->fd);
	free(job->xattrs.data);
	free(job);
	folder->files--;
	folder_done(target, folder);
}

static void dequeue(struct target *target)
{
	struct file_job *job = target->first_job;

	target->first_job = job->next;
	if (!target->first_job)
		target->last_job = NULL;
	target->jobs--;
	job->next = NULL;
}

static int job_finish(struct target *target, struct file_job *job)
{
	int data_differs = job->differing || job->other_size;
	int result = 0;

	if (job->moved)
		result = folder_again(target, job->folder, job->name);
	if (!job->is_new && (data_differs || job->compare_meta))
		engine_report(&target->engine, data_differs ? CHECKSUM_DATA : CHECKSUM_META, 0, job->folder->path,
			      job->name);
	if (target->writes && job->fd >= 0 && !result && (job->is_new || data_differs || job->compare_meta) &&
	    apply_meta(job->fd, &job->meta, &job->xattrs))
		result = target_fail(target, errno, "setting owner, mode, time or attributes of", job->folder->path,
				     job->name);
	job_free(target, job);
	return result;
}

// 0; 1 if the target's file is not what it was a moment ago; -1 failed.
static int job_open(struct target *target, struct file_job *job)
{
	char path[PATH_ROOM];
	struct entry now;

	if (path_join(path, job->folder->path, job->name))
		return target_fail(target, ENAMETOOLONG, "opening", job->folder->path, job->name);
	job->fd = tree_open_file(target->engine.options->root_fd, path, target->writes ? O_RDWR : O_RDONLY);
	if (job->fd < 0 && (errno == ENOENT || errno == ELOOP || errno == ENOTDIR))
		return 1;
	if (job->fd < 0 || tree_stat(job->fd, "", &now))
		return target_fail(target, errno, "opening", job->folder->path, job->name);
	if (!S_ISREG(now.meta.mode) || now.local.inode != job->inode) {
		close(job->fd);
		job->fd = -1;
		return 1;
	}
	job->other_size = now.meta.size != job->meta.size;
	if (job->other_size && target->writes && ftruncate(job->fd, (off_t)job->meta.size))
		return target_fail(target, errno, "changing the size of", job->folder->path, job->name);
	return 0;
}

// Where the target has no data the source is asked for its own: no digests travel.
static void next_part(struct file_job *job, struct slot *slot)
{
	uint64_t left = job->meta.size - job->at;
	off_t data = lseek(job->fd, (off_t)job->at, SEEK_DATA);
	uint64_t zeros = data < 0 ? (errno == ENXIO ? left : 0) : (uint64_t)data - job->at;

	slot->offset = job->at;
	if (zeros < left)
		zeros = zeros / BLOCK_SIZE * BLOCK_SIZE;
	else
		zeros = left;
	slot->flags = zeros ? SEGMENT_ZEROS : 0;
	slot->length = zeros ? zeros : left < SEGMENT ? left : SEGMENT;
	if (slot->length > ZEROS_MAX)
		slot->length = ZEROS_MAX;
	job->at += slot->length;
}

static int ask(struct target *target, struct slot *slot, struct buffer *body, const struct digest *digests,
	       uint32_t count)
{
	struct segment_request request = {.request = slot->number,
					  .version = slot->job->version,
					  .flags = slot->flags | (target->writes ? 0 : SEGMENT_COMPARE),
					  .offset = slot->offset,
					  .length = slot->length,
					  .digests = (const unsigned char *)digests,
					  .count = count};

	if (path_join(request.path, slot->job->folder->path, slot->job->name))
		return target_fail(target, ENAMETOOLONG, "comparing", slot->job->folder->path, slot->job->name);
	body->used = 0;
	put_segment(body, &request);
	// From here on the answer may come, and the slot may be another request's.
	__atomic_store_n(&slot->asked, 1, __ATOMIC_RELEASE);
	return link_send(&target->link, FRAME_SEGMENT, body);
}

int job_ask(struct target *target, struct slot *slot)
{
	struct file_job *job = target->first_job;
	int opened = job->fd < 0 ? job_open(target, job) : 0;

	if (opened < 0)
		return -1;
	if (opened > 0 || !job->meta.size) {
		dequeue(target);
		job->moved |= opened;
		return job_finish(target, job);
	}
	next_part(job, slot);
	slot->job = job;
	slot->asked = 0;
	job->asked++;
	if (job->at == job->meta.size)
		dequeue(target);
	if (slot->flags & SEGMENT_ZEROS)
		return ask(target, slot, target->scratch.out, NULL, 0) ? -1 : 1;
	if (pool_push(&target->hashers, slot))
		return target_fail(target, ENOMEM, "comparing", job->folder->path, job->name);
	return 1;
}

// Blocks behind the end count as zeros: that is what they are once the file has its size.
static int read_or_zeros(int fd, unsigned char *data, size_t want, uint64_t offset)
{
	ssize_t have = read_fully(fd, data, want, offset);

	if (have < 0)
		return -1;
	memset(data + have, 0, want - (size_t)have);
	return 0;
}

static void digest_blocks(const struct secret *secret, const unsigned char *data, size_t length, struct digest *digests)
{
	for (size_t at = 0; at < length; at += BLOCK_SIZE) {
		struct digest d = digest_of(secret, data + at, length - at < BLOCK_SIZE ? length - at : BLOCK_SIZE);

		*digests++ = (struct digest){htole64(d.low), htole64(d.high)};
	}
}

static int hash_parts(struct target *target, struct slot *slot, const struct mapping *mapping, struct digest *digests,
		      unsigned char *data)
{
	const struct secret *secret = &target->engine.secret;

	for (uint64_t done = 0; done < slot->length;) {
		size_t want = slot->length - done < IO_SIZE ? (size_t)(slot->length - done) : IO_SIZE;

		engine_pace_reading(&target->engine, want);
		if (mapping_holds(mapping))
			digest_blocks(secret, mapping->data + done, want, digests);
		if (!mapping_holds(mapping)) {
			if (read_or_zeros(slot->job->fd, data, want, slot->offset + done))
				return -1;
			digest_blocks(secret, data, want, digests);
		}
		digests += (want + BLOCK_SIZE - 1) / BLOCK_SIZE;
		done += want;
	}
	COUNT(&target->engine, bytes_hashed, slot->length);
	return 0;
}

static int hash_blocks(struct target *target, struct slot *slot, struct digest *digests, struct scratch *scratch)
{
	struct mapping *mapping = mapping_open(slot->job->fd, slot->offset, (size_t)slot->length);
	int result = hash_parts(target, slot, mapping, digests, scratch->data);

	mapping_close(mapping);
	return result;
}

void hash_segment(void *context, void *item, struct scratch *scratch)
{
	struct target *target = context;
	struct slot *slot = item;
	struct digest digests[SEGMENT / BLOCK_SIZE];

	if (engine_stopping(&target->engine))
		return;
	if (hash_blocks(target, slot, digests, scratch))
		target_fail(target, errno, "reading", slot->job->folder->path, slot->job->name);
	else
		ask(target, slot, scratch->out, digests, (uint32_t)((slot->length + BLOCK_SIZE - 1) / BLOCK_SIZE));
}

static int bad_part(struct target *target)
{
	return engine_fail(&target->engine, EPROTO, "the source sent contents that nobody asked for");
}

static int part_fits(const struct target *target, const struct slot *slot, uint64_t offset, uint64_t length)
{
	return target->writes && length && length <= slot->length && offset >= slot->offset &&
	       offset - slot->offset <= slot->length - length;
}

int contents_blocks(struct target *target, struct slot *slot, struct reader *body)
{
	uint64_t offset = take_u64(body);
	size_t length = (size_t)(body->end - body->at);

	if (body->bad || !part_fits(target, slot, offset, length))
		return bad_part(target);
	if (apply_data(slot->job->fd, offset, body->at, length))
		return target_fail(target, errno, "writing", slot->job->folder->path, slot->job->name);
	// The disk may begin while we compare on: less is left for the end to wait for.
	if (!slot->job->is_new && slot->job->meta.size > SMALL_FILE)
		sync_file_range(slot->job->fd, (off_t)offset, (off_t)length, SYNC_FILE_RANGE_WRITE);
	return 0;
}

int contents_zeros(struct target *target, struct slot *slot, struct reader *body)
{
	uint64_t offset = take_u64(body), length = take_u64(body);
	uint8_t hole = take_u8(body);

	if (body->bad || !part_fits(target, slot, offset, length))
		return bad_part(target);
	if (apply_zeros(slot->job->fd, offset, length, hole))
		return target_fail(target, errno, "writing", slot->job->folder->path, slot->job->name);
	return 0;
}

int contents_end(struct target *target, struct slot *slot, struct reader *body)
{
	struct file_job *job = slot->job;
	struct engine *e = &target->engine;
	uint8_t status = take_u8(body);
	uint32_t code = take_u32(body);
	uint64_t differing = take_u64(body);

	if (body->bad || status > SEGMENT_ERROR || differing > slot->length)
		return bad_part(target);
	COUNT(e, bytes_compared, slot->length);
	COUNT(e, bytes_differing, differing);
	job->differing += differing;
	if (status == SEGMENT_CHANGED || status == SEGMENT_GONE)
		job->moved = 1;
	if (status == SEGMENT_ERROR) {
		job->folder->unsettled = 1;
		engine_report(e, CHECKSUM_UNREADABLE, (int)(code & 4095), job->folder->path, job->name);
	}
	slot->busy = 0;
	slot->job = NULL;
	target->busy--;
	job->asked--;
	return job->asked || job->at < job->meta.size ? 0 : job_finish(target, job);
}

void jobs_free(struct target *target)
{
	// Those with requests under way are in the slots, maybe in several, maybe in the queue as well.
	for (unsigned int i = 0; i < WINDOW; i++) {
		struct file_job *job = target->slots[i].job;

		if (job && --job->asked == 0 && job->at == job->meta.size)
			job_free(target, job);
	}
	while (target->first_job) {
		struct file_job *job = target->first_job;

		dequeue(target);
		job_free(target, job);
	}
}
