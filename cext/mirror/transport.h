// SPDX-License-Identifier: Apache-2.0
// Bytes to and from the peer: a connected socket, plain or under TLS 1.3. Never blocks.
//
// TLS is done here with OpenSSL and not by the kernel: CONFIG_TLS is missing on many a server, and kTLS cannot answer
// a key update. One lock guards the connection, because OpenSSL lets no two threads into it, even for two directions.
#ifndef FARM_MIRROR_TRANSPORT_H
#define FARM_MIRROR_TRANSPORT_H

#include <stddef.h>
#include <sys/types.h>
#include <sys/uio.h>

struct mirror_tls;

struct transport {
	int fd;
	struct mirror_tls *tls; // NULL: plain
};

void transport_prepare(int fd);
// Bytes taken, 0 if there is no room now, -errno if the peer is gone.
ssize_t transport_send(struct transport *link, const struct iovec *parts, int count);
// Bytes read, 0 at the end of the stream, -EAGAIN if nothing is here, else -errno.
ssize_t transport_receive(struct transport *link, void *buffer, size_t size);
// Waits until the link is readable (or writable, for `output`). 1, 0 after timeout_ms, -errno.
int transport_wait(struct transport *link, int output, int timeout_ms);
void transport_shutdown(struct transport *link);

// Bytes that transport_send() took and the socket did not: another call of it, also with nothing, goes on with them.
int transport_pending(struct transport *link);

ssize_t tls_send(struct mirror_tls *tls, const struct iovec *parts, int count);
ssize_t tls_receive(struct mirror_tls *tls, void *buffer, size_t size);
int tls_pending(struct mirror_tls *tls);

#endif
