// SPDX-License-Identifier: Apache-2.0
// The C half of farmd.dataplane._libbpf: what cffi cannot say by itself.
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>
#include <linux/bpf.h>
#include <linux/if_link.h>
#include <linux/magic.h>
#include <linux/membarrier.h>
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include "farm_abi.h"
#include "hashkey.h"

// libbpf tells what went wrong only by printing. We keep the end of it, where the cause stands.
static char log_text[65536];
static size_t log_used;

static int keep_log(enum libbpf_print_level level, const char *format, va_list arguments)
{
	char line[4096];
	int length = vsnprintf(line, sizeof(line), format, arguments);

	if (level == LIBBPF_DEBUG || length <= 0)
		return 0;
	if ((size_t)length >= sizeof(line))
		length = sizeof(line) - 1;
	if (log_used + length >= sizeof(log_text)) {
		memmove(log_text, log_text + sizeof(log_text) / 2, sizeof(log_text) / 2);
		log_used = log_used > sizeof(log_text) / 2 ? log_used - sizeof(log_text) / 2 : 0;
	}
	memcpy(log_text + log_used, line, length);
	log_used += length;
	log_text[log_used] = 0;
	return length;
}

static void farm_log_start(void)
{
	log_used = 0;
	log_text[0] = 0;
	libbpf_set_print(keep_log);
}

static const char *farm_log(void)
{
	return log_text;
}

static int info_of(int fd, void *info, uint32_t size)
{
	memset(info, 0, size);
	return bpf_obj_get_info_by_fd(fd, info, &size) ? -errno : 0;
}

static int farm_map_info(int fd, struct bpf_map_info *info)
{
	return info_of(fd, info, sizeof(*info));
}

static int farm_program_info(int fd, struct bpf_prog_info *info)
{
	return info_of(fd, info, sizeof(*info));
}

static int farm_program_by_id(uint32_t id)
{
	int fd = bpf_prog_get_fd_by_id(id);

	return fd < 0 ? -errno : fd;
}

static int farm_link_create(int program_fd, int ifindex, uint32_t flags)
{
	LIBBPF_OPTS(bpf_link_create_opts, options, .flags = flags);
	int fd = bpf_link_create(program_fd, ifindex, BPF_XDP, &options);

	return fd < 0 ? -errno : fd;
}

// `ifindex` becomes 0 if the interface of the link is gone.
static int farm_link_info(int fd, uint32_t *program_id, uint32_t *ifindex)
{
	struct bpf_link_info info;
	int error = info_of(fd, &info, sizeof(info));

	if (error)
		return error;
	*program_id = info.prog_id;
	*ifindex = info.type == BPF_LINK_TYPE_XDP ? info.xdp.ifindex : 0;
	return 0;
}

static int farm_xdp_query(int ifindex, uint32_t *native_id, uint32_t *generic_id, uint32_t *offloaded_id)
{
	LIBBPF_OPTS(bpf_xdp_query_opts, found);
	int error = bpf_xdp_query(ifindex, 0, &found);

	if (error)
		return error < 0 ? error : -errno;
	*native_id = found.drv_prog_id;
	*generic_id = found.skb_prog_id;
	*offloaded_id = found.hw_prog_id;
	return 0;
}

// Runs an XDP program on a frame, as if it had come in on `ifindex` (0: on lo).
static int farm_run_xdp(int program_fd, uint32_t ifindex, const void *frame, uint32_t size, void *out,
			uint32_t *out_size, uint32_t repeat, uint32_t *result, uint32_t *duration_ns)
{
	struct xdp_md context = {.data_end = size, .ingress_ifindex = ifindex};
	LIBBPF_OPTS(bpf_test_run_opts, options, .data_in = frame, .data_size_in = size, .data_out = out,
		    .data_size_out = *out_size, .repeat = repeat);

	if (ifindex) {
		options.ctx_in = &context;
		options.ctx_size_in = sizeof(context);
	}
	if (bpf_prog_test_run_opts(program_fd, &options))
		return -errno;
	*out_size = options.data_size_out;
	*result = options.retval;
	*duration_ns = options.duration;
	return 0;
}

static int farm_run_syscall(int program_fd, void *context, uint32_t size, uint32_t *result)
{
	LIBBPF_OPTS(bpf_test_run_opts, options, .ctx_in = context, .ctx_size_in = size);

	if (bpf_prog_test_run_opts(program_fd, &options))
		return -errno;
	*result = options.retval;
	return 0;
}

static int farm_mount_bpffs(const char *path)
{
	return mount("bpf", path, "bpf", 0, "mode=0700") ? -errno : 0;
}

static int farm_is_bpffs(const char *path)
{
	struct statfs found;

	if (statfs(path, &found))
		return -errno;
	return found.f_type == BPF_FS_MAGIC;
}

// A ring buffer whose records all have one size, read many at a time: a call into Python for each would be slow.
struct farm_ring {
	struct ring_buffer *buffer;
	char *out;
	uint32_t record_size;
	uint32_t most;
	uint32_t taken;
};

static int take_record(void *context, void *data, size_t size)
{
	struct farm_ring *ring = context;

	if (size != ring->record_size || ring->taken >= ring->most)
		return 0; // Not ours, or the reader is too slow: let it go.
	memcpy(ring->out + (size_t)ring->taken * size, data, size);
	ring->taken++;
	return 0;
}

// NULL, with errno set, if the map is no ring buffer.
static struct farm_ring *farm_ring_open(int map_fd, uint32_t record_size, uint32_t most_records)
{
	struct farm_ring *ring = calloc(1, sizeof(*ring));

	if (!ring)
		return NULL;
	ring->record_size = record_size;
	ring->most = most_records;
	ring->buffer = ring_buffer__new(map_fd, take_record, ring, NULL);
	if (ring->buffer)
		return ring;
	free(ring);
	return NULL;
}

// Copies what is there to `out`, which has room for `most_records`; how many records that were.
static int farm_ring_read(struct farm_ring *ring, void *out, int timeout_ms)
{
	int error;

	ring->out = out;
	ring->taken = 0;
	error = ring_buffer__poll(ring->buffer, timeout_ms);
	return error < 0 && error != -EINTR ? error : (int)ring->taken;
}

static void farm_ring_close(struct farm_ring *ring)
{
	ring_buffer__free(ring->buffer);
	free(ring);
}

// Waits until every XDP run that began before has ended: this command is defined as an RCU grace period.
static int farm_rcu_barrier(void)
{
	return syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) ? -errno : 0;
}

// Switches to what was written before: whoever reads `value` at `at` reads that as well.
static void farm_publish(uint32_t *at, uint32_t value)
{
	__atomic_store_n(at, value, __ATOMIC_RELEASE);
}

// Eight bits as eight bytes of 0 or 1, the lowest bit first in memory.
static uint64_t bytes_of_bits(uint8_t bits)
{
	const uint64_t each = 0x0101010101010101;
	uint64_t one_in_each = bits * each & 0x8040201008040201;

	return (one_in_each + 0x7f * each) >> 7 & each;
}

// Writes the filter's form of a group's planes, a byte a bucket, eight at a time and each once: the filter may be
// reading. A plane has a bit a bucket, FARM_BUCKETS / 8 bytes. In a directed farm what is not plainly ours is sent on.
static void farm_write_planes(uint64_t *states, const uint8_t *own, const uint8_t *held, const uint8_t *fresh,
			      int directed)
{
	const uint64_t each = 0x0101010101010101;

	for (unsigned int at = 0; at < FARM_BUCKETS / 8; at++) {
		uint64_t ours = bytes_of_bits(own[at]), left = bytes_of_bits(held[at]),
			 contested = bytes_of_bits(fresh[at]);
		uint64_t mixed = ours * FARM_OWN | left * FARM_HELD | contested * FARM_FRESH;

		if (directed)
			mixed |= (each ^ (ours & ~(left | contested))) * FARM_SEND_ON;
		*(volatile uint64_t *)(states + at) = mixed;
	}
}

// The inverse for an owner map: the plane of the buckets whose byte is `node`.
static void farm_plane_of(uint8_t *plane, const uint8_t *owners, uint8_t node)
{
	const uint64_t each = 0x0101010101010101;

	for (unsigned int at = 0; at < FARM_BUCKETS / 8; at++) {
		uint64_t eight, low, differs;

		memcpy(&eight, owners + 8 * at, sizeof(eight));
		eight ^= node * each;
		// The top bit of every byte that is not 0; no byte's sum carries into the next.
		low = eight & 0x7f * each;
		differs = ((low + 0x7f * each) | eight) >> 7 & each;
		// One bit of each byte, in order, into the top byte.
		plane[at] = (uint8_t)((differs ^ each) * 0x0102040810204080 >> 56);
	}
}

static void farm_prepare_hash(const uint64_t key[2], struct farm_hash *hash)
{
	const __u64 words[2] = {key[0], key[1]};

	*hash = farm_hash_of(words);
}

// `address` and `extra` (a port or an identification) as they lie in a packet.
static uint32_t farm_bucket_of_ipv4(const struct farm_hash *hash, uint32_t address, uint16_t extra)
{
	return farm_bucket_ipv4(hash, address, extra);
}

static uint32_t farm_bucket_of_ipv6(const struct farm_hash *hash, const uint64_t address[2], uint16_t extra)
{
	const __u64 client[2] = {address[0], address[1]};

	return farm_bucket_ipv6(hash, client, extra);
}
