// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include "../shortway.h"
#include "transport.h"

// What a 1 MiB write needs so that its worker never waits for the network.
#define SOCKET_BUFFER (4 << 20)

void transport_prepare(int fd)
{
	int size = SOCKET_BUFFER, one = 1;

	// Root may go beyond net.core.wmem_max; without that right the smaller buffer is only slower.
	if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size)))
		setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
	if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size)))
		setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size));
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	choose_congestion_control(fd);
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

ssize_t transport_send(struct transport *link, const struct iovec *parts, int count)
{
	struct msghdr message = {.msg_iov = (struct iovec *)parts, .msg_iovlen = (size_t)count};
	ssize_t sent;

	if (link->tls)
		return tls_send(link->tls, parts, count);
	do
		sent = sendmsg(link->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
	while (sent < 0 && errno == EINTR);
	if (sent < 0)
		return errno == EAGAIN ? 0 : -errno;
	return sent;
}

ssize_t transport_receive(struct transport *link, void *buffer, size_t size)
{
	ssize_t got;

	if (link->tls)
		return tls_receive(link->tls, buffer, size);
	do
		got = recv(link->fd, buffer, size, MSG_DONTWAIT);
	while (got < 0 && errno == EINTR);
	return got < 0 ? -errno : got;
}

int transport_pending(struct transport *link)
{
	return link->tls && tls_pending(link->tls);
}

int transport_wait(struct transport *link, int output, int timeout_ms)
{
	struct pollfd waiting = {.fd = link->fd, .events = output ? POLLOUT : POLLIN};
	int ready = poll(&waiting, 1, timeout_ms);

	if (ready < 0)
		return errno == EINTR ? 0 : -errno;
	return ready;
}

void transport_shutdown(struct transport *link)
{
	shutdown(link->fd, SHUT_RDWR);
}
