// SPDX-License-Identifier: Apache-2.0
// The kernel's <linux/bpf.h>, but for one thing: in a process, pointers into the frame need 64 bits. (The verifier
// rewrites the kernel's 32-bit fields into such pointers.)
#ifndef NATIVE_LINUX_BPF_H
#define NATIVE_LINUX_BPF_H

#define xdp_md xdp_md_of_the_kernel
#include_next <linux/bpf.h>
#undef xdp_md

struct xdp_md {
	__u64 data;
	__u64 data_end;
	__u64 data_meta;
	__u32 ingress_ifindex;
	__u32 rx_queue_index;
	__u32 egress_ifindex;
};

#endif
