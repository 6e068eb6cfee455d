// SPDX-License-Identifier: Apache-2.0
// What libbpf's header of this name gives to a BPF program, for a process: maps are names only, and harness.c has the
// helpers.
#ifndef NATIVE_BPF_HELPERS_H
#define NATIVE_BPF_HELPERS_H

#include <linux/bpf.h>

struct tcp_request_sock;
struct tcphdr;

#define SEC(name)
#define __uint(name, value) int(*name)[value]
#define __type(name, value) typeof(value) *name
#define preserve_access_index
#undef __always_inline
#define __always_inline inline __attribute__((always_inline))
#undef __noinline
#define __noinline __attribute__((noinline))

void *bpf_map_lookup_elem(const void *map, const void *key);
long bpf_map_update_elem(const void *map, const void *key, const void *value, __u64 flags);
__u64 bpf_jiffies64(void);
__u64 bpf_ktime_get_boot_ns(void);
__u64 bpf_ktime_get_ns(void);
void *bpf_ringbuf_reserve(void *map, __u64 bytes, __u64 flags);
void bpf_ringbuf_submit(void *record, __u64 flags);
void bpf_ringbuf_discard(void *record, __u64 flags);
long bpf_xdp_load_bytes(struct xdp_md *ctx, __u32 offset, void *to, __u32 bytes);
long bpf_xdp_adjust_tail(struct xdp_md *ctx, int delta);
__s64 bpf_csum_diff(__be32 *from, __u32 from_bytes, __be32 *to, __u32 to_bytes, __u32 seed);
struct bpf_sock *bpf_skc_lookup_tcp(void *ctx, struct bpf_sock_tuple *tuple, __u32 bytes, __u64 netns, __u64 flags);
long bpf_sk_release(void *sk);
struct tcp_request_sock *bpf_skc_to_tcp_request_sock(void *sk);
long bpf_tcp_check_syncookie(void *sk, void *ip, __u32 ip_bytes, struct tcphdr *tcp, __u32 tcp_bytes);

#endif
