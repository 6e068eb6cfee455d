// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include "../bulk.h"
#include "records.h"

#define OVERHEAD 256 // more than a record needs beside its data
// A frame of a large write, in one call.
#define ROOM (9 * (RECORD_DATA + OVERHEAD))

static int put(BIO *bio, const char *data, int size)
{
	struct records *records = BIO_get_data(bio);

	BIO_clear_retry_flags(bio);
	if (ROOM - records->out.end < (size_t)size) {
		BIO_set_retry_write(bio);
		return -1;
	}
	memcpy(records->out.data + records->out.end, data, (size_t)size);
	records->out.end += (size_t)size;
	return size;
}

static int take(BIO *bio, char *data, int size)
{
	struct records *records = BIO_get_data(bio);
	size_t have = records->in.end - records->in.start;

	BIO_clear_retry_flags(bio);
	if (!have) {
		ssize_t got;

		do
			got = recv(records->fd, records->in.data, ROOM, MSG_DONTWAIT);
		while (got < 0 && errno == EINTR);
		if (got < 0 && errno == EAGAIN)
			BIO_set_retry_read(bio);
		if (got <= 0)
			return (int)got;
		records->in.start = 0;
		records->in.end = have = (size_t)got;
	}
	if (have > (size_t)size)
		have = (size_t)size;
	memcpy(data, records->in.data + records->in.start, have);
	records->in.start += have;
	return (int)have;
}

// OpenSSL flushes at the end of a handshake; when the bytes travel is decided by records_flush().
static long control(BIO *bio, int what, long number, void *more)
{
	(void)bio, (void)number, (void)more;
	return what == BIO_CTRL_FLUSH;
}

BIO *records_open(struct records *records, int fd)
{
	BIO *bio = NULL;

	records->fd = fd;
	records->in.data = bulk_room(ROOM);
	records->out.data = bulk_room(ROOM);
	records->method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "farmd records");
	if (records->in.data && records->out.data && records->method && BIO_meth_set_write(records->method, put) &&
	    BIO_meth_set_read(records->method, take) && BIO_meth_set_ctrl(records->method, control))
		bio = BIO_new(records->method);
	if (bio) {
		BIO_set_data(bio, records);
		BIO_set_init(bio, 1);
	}
	return bio;
}

void records_close(struct records *records)
{
	BIO_meth_free(records->method);
	free(records->in.data);
	free(records->out.data);
}

bool records_have_room(const struct records *records)
{
	return ROOM - records->out.end >= RECORD_DATA + OVERHEAD;
}

bool records_pending(const struct records *records)
{
	return records->out.start < records->out.end;
}

int records_flush(struct records *records)
{
	while (records_pending(records)) {
		ssize_t sent = send(records->fd, records->out.data + records->out.start,
				    records->out.end - records->out.start, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (sent < 0 && errno == EAGAIN)
			return 0;
		if (sent < 0 && errno != EINTR)
			return -errno;
		records->out.start += sent > 0 ? (size_t)sent : 0;
	}
	records->out.start = records->out.end = 0;
	return 0;
}
