// SPDX-License-Identifier: Apache-2.0
// TLS records between OpenSSL and the socket, many to a system call: OpenSSL alone writes each record of 16 KiB by
// itself, and reads it in two parts.
#ifndef FARM_MIRROR_RECORDS_H
#define FARM_MIRROR_RECORDS_H

#include <stdbool.h>
#include <stddef.h>
#include <openssl/bio.h>

#define RECORD_DATA 16384

struct records {
	int fd;
	BIO_METHOD *method;
	struct {
		char *data;
		size_t start, end;
	} in, out;
};

// What the SSL shall read from and write to, both; it becomes the SSL's. NULL if there is no memory.
BIO *records_open(struct records *records, int fd);
void records_close(struct records *records);	       // after the SSL is gone
bool records_have_room(const struct records *records); // for a full record
bool records_pending(const struct records *records);
// Sends what was written. 0, also if the socket took only a part of it; -errno if the peer is gone.
int records_flush(struct records *records);

#endif
