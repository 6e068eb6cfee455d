// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// The lease: how long this node may serve. It is checked for every packet of a VIP, and ends by itself when nobody
// renews it. jiffies cost next to nothing to read; CLOCK_BOOTTIME, in which deadlines are told, would cost 40 ns.
#ifndef FARM_LEASE_H
#define FARM_LEASE_H

#include "maps.h"
#include "parse.h"

static __always_inline int lease_over(void)
{
	return bpf_jiffies64() >= *(volatile __u64 *)&farm_deadline;
}

// The jiffy at which a deadline that is `left_ns` away is certainly not over yet, 0 if there is none to come. Rounds
// down and takes off the margin for late jiffies: the lease may end early, never late.
static __always_inline __u64 deadline_jiffy(__u64 now, __u64 left_ns, __u64 tick_ns)
{
	__u64 ticks = left_ns / tick_ns;

	return ticks > FARM_LEASE_MARGIN_TICKS ? now + ticks - FARM_LEASE_MARGIN_TICKS : 0;
}

// Renews, closes or reads the lease. Run by BPF_PROG_TEST_RUN.
SEC("syscall")
int farm_renew(struct farm_lease_call *call)
{
	volatile __u64 *deadline = &farm_deadline;
	__u64 tick_ns = call->tick_ns;
	__u64 jiffies = bpf_jiffies64(); // before the clock: what passes between the two shortens the lease
	__u64 now_ns = bpf_ktime_get_boot_ns();
	__u64 until;

	if (!tick_ns)
		return -1;
	if (call->verb == FARM_LEASE_WRITE) {
		until = call->deadline_ns;
		*deadline = until > now_ns ? deadline_jiffy(jiffies, until - now_ns, tick_ns) : 0;
	}
	until = *deadline;
	call->left_ns = until > jiffies ? (until - jiffies) * tick_ns : 0;
	return 0;
}

#endif
