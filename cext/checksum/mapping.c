// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "mapping.h"

// Linux 6.5, the same number on every architecture; older headers do not know it, older kernels answer ENOSYS.
#ifndef SYS_cachestat
#define SYS_cachestat 451
#endif
struct cache_range {
	uint64_t offset, length;
};
struct cache_pages {
	uint64_t cached, dirty, writeback, evicted, recently_evicted;
};

// Less is not worth a fault.
#define MAPPING_MIN (1u << 20)

// What is mapped now, of all threads: a handler must find it without a lock, and without allocating anything.
#define MAPPINGS_MAX 128
static struct mapping mappings[MAPPINGS_MAX];
static struct sigaction before;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int guarded; // the handler is there, and the signal reaches it

// Somebody else's fault: as it would have been without us.
static void pass_on(int number, siginfo_t *info, void *context)
{
	if (before.sa_flags & SA_SIGINFO) {
		before.sa_sigaction(number, info, context);
	} else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) {
		before.sa_handler(number);
	} else {
		signal(SIGBUS, SIG_DFL); // the instruction runs again, and then it ends the process
		if (info->si_code <= 0)
			raise(number); // it was no instruction: somebody sent it
	}
}

// A mapping that is looked at stays, and no other has its addresses: one is gone from here before they are free again.
static struct mapping *find(const void *address)
{
	for (size_t i = 0; i < MAPPINGS_MAX; i++) {
		const unsigned char *data = __atomic_load_n(&mappings[i].data, __ATOMIC_ACQUIRE);

		if (data && (uintptr_t)address - (uintptr_t)data < mappings[i].length)
			return &mappings[i];
	}
	return NULL;
}

static void on_bus_error(int number, siginfo_t *info, void *context)
{
	struct mapping *mapping = find(info->si_addr);
	int code = errno;

	if (mapping && mmap((void *)(uintptr_t)mapping->data, mapping->length, PROT_READ,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED)
		mapping->lost = 1;
	else
		pass_on(number, info, context);
	errno = code;
}

void mapping_guard(void)
{
	struct sigaction now, ours = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO};
	static int installed;
	sigset_t blocked;

	sigemptyset(&ours.sa_mask);
	pthread_mutex_lock(&lock);
	if (!installed && sigaction(SIGBUS, NULL, &before) == 0)
		installed = sigaction(SIGBUS, &ours, NULL) == 0;
	// Never a second time: whoever came later may pass on to us, and we to him.
	int works = installed && sigaction(SIGBUS, NULL, &now) == 0 && (now.sa_flags & SA_SIGINFO) &&
		    now.sa_sigaction == on_bus_error;

	// A fault whose signal is blocked ends the process all the same. The run's threads inherit what this one
	// blocks.
	works = works && pthread_sigmask(SIG_BLOCK, NULL, &blocked) == 0 && !sigismember(&blocked, SIGBUS);
	__atomic_store_n(&guarded, works, __ATOMIC_RELEASE);
	pthread_mutex_unlock(&lock);
}

static int is_cached(int fd, uint64_t offset, size_t length)
{
	struct cache_range range = {offset, length};
	struct cache_pages pages;
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);

	return syscall(SYS_cachestat, fd, &range, &pages, 0) == 0 && pages.cached * page >= length;
}

// NULL if there are too many.
static struct mapping *take(void)
{
	for (size_t i = 0; i < MAPPINGS_MAX; i++) {
		if (!__atomic_exchange_n(&mappings[i].taken, 1, __ATOMIC_ACQUIRE))
			return &mappings[i];
	}
	return NULL;
}

static void give_back(struct mapping *mapping)
{
	__atomic_store_n(&mapping->taken, 0, __ATOMIC_RELEASE);
}

struct mapping *mapping_open(int fd, uint64_t offset, size_t length)
{
	if (length < MAPPING_MIN || !__atomic_load_n(&guarded, __ATOMIC_ACQUIRE) || !is_cached(fd, offset, length))
		return NULL;
	struct mapping *mapping = take();

	if (!mapping)
		return NULL;
	// Shared: where a file system's pages are not what it would read (FUSE without a cache), it refuses that.
	void *data = mmap(NULL, length, PROT_READ, MAP_SHARED, fd, (off_t)offset);

	if (data == MAP_FAILED) {
		give_back(mapping);
		return NULL;
	}
	mapping->length = length;
	mapping->lost = 0;
	__atomic_store_n(&mapping->data, data, __ATOMIC_RELEASE);
	return mapping;
}

void mapping_close(struct mapping *mapping)
{
	if (!mapping)
		return;
	void *data = (void *)(uintptr_t)mapping->data;
	int code = errno;

	__atomic_store_n(&mapping->data, NULL, __ATOMIC_RELEASE);
	munmap(data, mapping->length);
	errno = code;
	give_back(mapping);
}
