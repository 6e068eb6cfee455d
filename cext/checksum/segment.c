// SPDX-License-Identifier: Apache-2.0
// The source's half of comparing contents: read, hash, send the blocks whose digests the target does not have.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>
#include "mapping.h"
#include "source.h"

struct job {
	struct source *source;
	const struct segment_request *wanted;
	struct buffer *body;
	int fd;
	uint64_t differing;
};

static int is_hole(int fd, uint64_t offset, size_t length)
{
	off_t data = lseek(fd, (off_t)offset, SEEK_DATA);

	return data < 0 ? errno == ENXIO : (uint64_t)data >= offset + length;
}

// Sends [offset, offset + length): neighbours that differ, either all zeros or not.
static int send_run(struct job *job, uint64_t offset, const unsigned char *data, size_t length, int zeros)
{
	job->differing += length;
	if (job->wanted->flags & SEGMENT_COMPARE || !length)
		return 0;
	job->body->used = 0;
	put_u32(job->body, job->wanted->request);
	put_u64(job->body, offset);
	if (zeros) {
		put_u64(job->body, length);
		put_u8(job->body, (uint8_t)is_hole(job->fd, offset, length));
		return link_send(&job->source->link, FRAME_ZEROS, job->body);
	}
	engine_pace_sending(&job->source->engine, length);
	return link_send_with(&job->source->link, FRAME_BLOCKS, job->body, data, length);
}

static int block_differs(struct job *job, uint64_t offset, const unsigned char *block, size_t length, int zeros)
{
	const struct secret *secret = &job->source->engine.secret;
	struct reader r;

	if (job->wanted->flags & SEGMENT_ZEROS)
		return !zeros;
	r.at = job->wanted->digests + (offset - job->wanted->offset) / BLOCK_SIZE * sizeof(struct digest);
	r.end = r.at + sizeof(struct digest);
	r.bad = 0;
	return !digest_same(take_digest(&r), digest_of(secret, block, length));
}

// One buffer of data: gathers neighbouring blocks into one frame.
static int compare_buffer(struct job *job, uint64_t offset, const unsigned char *data, size_t length)
{
	size_t from = 0, at = 0;
	int open = 0, open_zeros = 0;

	COUNT(&job->source->engine, bytes_hashed, length);
	engine_pace_reading(&job->source->engine, length);
	for (; at < length; at += BLOCK_SIZE) {
		size_t size = length - at < BLOCK_SIZE ? length - at : BLOCK_SIZE;
		// For a run of zeros at the target the question itself; else only asked about what differs.
		int zeros = job->wanted->flags & SEGMENT_ZEROS ? all_zero(data + at, size) : 0;
		int differs = block_differs(job, offset + at, data + at, size, zeros);

		if (differs)
			zeros = all_zero(data + at, size);
		if (open && (!differs || zeros != open_zeros)) {
			if (send_run(job, offset + from, data + from, at - from, open_zeros))
				return -1;
			open = 0;
		}
		if (differs && !open) {
			open = 1;
			open_zeros = zeros;
			from = at;
		}
	}
	return open ? send_run(job, offset + from, data + from, length - from, open_zeros) : 0;
}

// Whether the target has all of these blocks.
static int all_same(struct job *job, uint64_t offset, const unsigned char *data, size_t length)
{
	for (size_t at = 0; at < length; at += BLOCK_SIZE) {
		size_t size = length - at < BLOCK_SIZE ? length - at : BLOCK_SIZE;

		if (block_differs(job, offset + at, data + at, size, 0))
			return 0;
	}
	return 1;
}

// Reads and compares up to a buffer. 0, 1 if the file ends too early, -1 and errno.
static int compare_by_reading(struct job *job, uint64_t offset, size_t want, struct scratch *scratch)
{
	ssize_t have = read_fully(job->fd, scratch->data, want, offset);

	if (have < 0)
		return -1;
	if ((size_t)have < want)
		return 1;
	if (!compare_buffer(job, offset, scratch->data, want))
		return 0;
	errno = ECANCELED;
	return -1;
}

// Only what seems to differ is read: nothing is sent from a mapping. The same results.
static int compare_parts(struct job *job, uint64_t offset, uint64_t length, const struct mapping *mapping,
			 struct scratch *scratch)
{
	for (uint64_t done = 0; done < length;) {
		size_t want = length - done < IO_SIZE ? (size_t)(length - done) : IO_SIZE;
		int result = 0;

		if (engine_stopping(&job->source->engine)) {
			errno = ECANCELED;
			return -1;
		}
		if (mapping_holds(mapping) && all_same(job, offset + done, mapping->data + done, want) &&
		    mapping_holds(mapping)) {
			COUNT(&job->source->engine, bytes_hashed, want);
			engine_pace_reading(&job->source->engine, want);
		} else {
			result = compare_by_reading(job, offset + done, want, scratch);
		}
		if (result)
			return result;
		done += want;
	}
	return 0;
}

static int compare_range(struct job *job, uint64_t offset, uint64_t length, struct scratch *scratch)
{
	// Where the target has zeros all of ours will travel.
	int may = !(job->wanted->flags & SEGMENT_ZEROS);
	struct mapping *mapping = may ? mapping_open(job->fd, offset, (size_t)length) : NULL;
	int result = compare_parts(job, offset, length, mapping, scratch);

	mapping_close(mapping);
	return result;
}

// The target has zeros there: our holes need not be looked at.
static int compare_data(struct job *job, struct scratch *scratch)
{
	uint64_t at = job->wanted->offset, end = at + job->wanted->length;

	while (at < end) {
		off_t data = lseek(job->fd, (off_t)at, SEEK_DATA);

		if (data < 0 && errno == ENXIO)
			return 0;
		if (data < 0 && errno != EINVAL)
			return -1;
		uint64_t from = data < 0 ? at : (uint64_t)data / BLOCK_SIZE * BLOCK_SIZE;
		off_t hole = data < 0 ? -1 : lseek(job->fd, data, SEEK_HOLE);
		uint64_t to = hole < 0 ? end : ((uint64_t)hole + BLOCK_SIZE - 1) / BLOCK_SIZE * BLOCK_SIZE;

		if (from >= end)
			return 0;
		from = from < at ? at : from;
		to = to > end ? end : to;
		int result = compare_range(job, from, to - from, scratch);

		if (result)
			return result;
		at = to;
	}
	return 0;
}

static uint8_t compare(struct job *job, struct scratch *scratch, int *code)
{
	const struct segment_request *wanted = job->wanted;
	struct entry entry;

	job->fd = tree_open_file(job->source->engine.options->root_fd, wanted->path, O_RDONLY);
	if (job->fd < 0) {
		*code = errno;
		return errno == ENOENT || errno == ENOTDIR || errno == ELOOP ? SEGMENT_GONE : SEGMENT_ERROR;
	}
	if (tree_stat(job->fd, "", &entry) || !S_ISREG(entry.meta.mode))
		return SEGMENT_GONE;
	if (wanted->offset + wanted->length > entry.meta.size)
		return SEGMENT_CHANGED;
	int result = wanted->flags & SEGMENT_ZEROS ? compare_data(job, scratch)
						   : compare_range(job, wanted->offset, wanted->length, scratch);
	*code = errno;
	if (result < 0)
		return SEGMENT_ERROR;
	// Only now: a change while we read must not stay unseen.
	if (result > 0 || tree_stat(job->fd, "", &entry) ||
	    source_version(&job->source->engine.secret, &entry) != wanted->version)
		return SEGMENT_CHANGED;
	*code = 0;
	return SEGMENT_OK;
}

void serve_segment(struct source *source, struct request *request, struct scratch *scratch)
{
	struct job job = {.source = source, .wanted = &request->segment, .body = scratch->out, .fd = -1};
	int code = 0;
	uint8_t status = compare(&job, scratch, &code);

	if (job.fd >= 0)
		close(job.fd);
	COUNT(&source->engine, bytes_compared, request->segment.length);
	COUNT(&source->engine, bytes_differing, job.differing);
	job.body->used = 0;
	put_u32(job.body, request->segment.request);
	put_u8(job.body, status);
	put_u32(job.body, (uint32_t)code);
	put_u64(job.body, job.differing);
	link_send(&source->link, FRAME_SEGMENT_END, job.body);
}
