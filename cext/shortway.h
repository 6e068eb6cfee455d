// SPDX-License-Identifier: Apache-2.0
// Congestion control between two servers of one site.
#ifndef FARM_SHORTWAY_H
#define FARM_SHORTWAY_H

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

// A link with a longer way than this keeps the administrator's choice of congestion control.
#define SHORT_WAY_US 5000

// BBR, which many servers have as their default, paces what it sends by timers. Between two servers of one site that
// costs large strict writes a third of their throughput; CUBIC sends at once. Where it may not be chosen, or is
// missing, the link is only slower.
static inline void choose_congestion_control(int fd)
{
	static const char name[] = "cubic";
	struct tcp_info info;
	socklen_t size = sizeof(info);

	if (!getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) && info.tcpi_rtt <= SHORT_WAY_US)
		setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, sizeof(name) - 1);
}

#endif
