// SPDX-License-Identifier: Apache-2.0
// The cage of the process that applies what a peer sends. From then on it sees a file system of its own: read-only
// copies of what programs need, a small scratch, and through descriptors that it has already the replicated directory
// and its records, without devices, set-user-ID and execution, and without a way up. Capabilities are those that making
// another machine's files needs; what else CAP_SYS_ADMIN would open (it is there for trusted.* and security.*
// attributes) is refused by a seccomp filter. Nothing of it can be taken back.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/securebits.h>
#include "../parts.h"
#include "api.h"

#define PLACES	  32
#define NEW_ROOT  "/tmp"
#define SCRATCH	  "size=256m,mode=755"
#define NOT_LINUX 0x40000000u // x86's third ABI: other numbers for the same calls

#if defined(__x86_64__)
#define ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define ARCH AUDIT_ARCH_AARCH64
#else
#error "the receiver's cage is written for x86-64 and arm64"
#endif

static const int kept[] = {CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER,  CAP_FSETID,
			   CAP_MKNOD, CAP_SETUID,	CAP_SETGID,	     CAP_SETFCAP, CAP_SYS_ADMIN};

static const int refused[] = {
    SYS_mount,
    SYS_umount2,
    SYS_move_mount,
    SYS_open_tree,
    SYS_fsopen,
    SYS_fsconfig,
    SYS_fsmount,
    SYS_fspick,
    SYS_mount_setattr,
    SYS_pivot_root,
    SYS_chroot,
    SYS_setns,
    SYS_bpf,
    SYS_ptrace,
    SYS_kcmp,
    SYS_process_vm_readv,
    SYS_process_vm_writev,
    SYS_perf_event_open,
    SYS_fanotify_init,
    SYS_quotactl,
    SYS_quotactl_fd,
    SYS_swapon,
    SYS_swapoff,
    SYS_sethostname,
    SYS_setdomainname,
    SYS_syslog,
    SYS_keyctl,
    SYS_add_key,
    SYS_request_key,
    SYS_io_uring_setup,
    SYS_io_uring_enter,
    SYS_io_uring_register,
    SYS_userfaultfd,
    SYS_init_module,
    SYS_finit_module,
    SYS_delete_module,
    SYS_kexec_load,
    SYS_reboot,
    SYS_execve,
    SYS_execveat,
    SYS_socket,
    SYS_connect,
    SYS_bind,
    SYS_listen,
    SYS_accept,
    SYS_accept4,
    SYS_kill,
    SYS_tkill,
    SYS_rt_sigqueueinfo,
    SYS_pidfd_open,
    SYS_pidfd_getfd,
    SYS_pidfd_send_signal,
    SYS_settimeofday,
    SYS_clock_settime,
    SYS_acct,
    SYS_personality,
    SYS_process_madvise,
};

static const unsigned long ioctls[] = {FIOCLEX, FIONCLEX, FIONBIO, FIONREAD, TCGETS};

#define NAMESPACES                                                                                                     \
	(CLONE_NEWNS | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP)

struct program {
	struct sock_filter code[256];
	unsigned short length;
};

static void emit(struct program *program, uint16_t code, uint8_t yes, uint8_t no, uint32_t value)
{
	program->code[program->length++] = (struct sock_filter){code, yes, no, value};
}

static void load(struct program *program, size_t offset)
{
	emit(program, BPF_LD | BPF_W | BPF_ABS, 0, 0, (uint32_t)offset);
}

static void answer(struct program *program, uint32_t verdict)
{
	emit(program, BPF_RET | BPF_K, 0, 0, verdict);
}

static size_t argument(int number)
{
	return offsetof(struct seccomp_data, args) + 8u * (size_t)number; // little endian: the low half comes first
}

// Runs the next `count` instructions only for this system call; they end with an answer.
static void only(struct program *program, int call, int count)
{
	emit(program, BPF_JMP | BPF_JEQ | BPF_K, 0, (uint8_t)count, (uint32_t)call);
}

static void make_filter(struct program *program)
{
	uint32_t no = SECCOMP_RET_ERRNO | EPERM, absent = SECCOMP_RET_ERRNO | ENOSYS, yes = SECCOMP_RET_ALLOW;
	size_t names = sizeof(ioctls) / sizeof(*ioctls);

	load(program, offsetof(struct seccomp_data, arch));
	emit(program, BPF_JMP | BPF_JEQ | BPF_K, 1, 0, ARCH);
	answer(program, SECCOMP_RET_KILL_PROCESS);
	load(program, offsetof(struct seccomp_data, nr));
	emit(program, BPF_JMP | BPF_JGE | BPF_K, 0, 1, NOT_LINUX);
	answer(program, no);
	for (size_t i = 0; i < sizeof(refused) / sizeof(*refused); i++) {
		only(program, refused[i], 1);
		answer(program, no);
	}
	only(program, SYS_clone3, 1); // its flags are in memory; libc then takes clone()
	answer(program, absent);
	only(program, SYS_clone, 4);
	load(program, argument(0));
	emit(program, BPF_JMP | BPF_JSET | BPF_K, 0, 1, NAMESPACES);
	answer(program, no);
	answer(program, yes);
	only(program, SYS_unshare, 4);
	load(program, argument(0));
	emit(program, BPF_JMP | BPF_JEQ | BPF_K, 1, 0, CLONE_FS);
	answer(program, no);
	answer(program, yes);
	only(program, SYS_tgkill, 4);
	load(program, argument(0));
	emit(program, BPF_JMP | BPF_JEQ | BPF_K, 1, 0, (uint32_t)getpid());
	answer(program, no);
	answer(program, yes);
	only(program, SYS_ioctl, (int)names + 3);
	load(program, argument(1));
	for (size_t i = 0; i < names; i++)
		emit(program, BPF_JMP | BPF_JEQ | BPF_K, (uint8_t)(names - i), 0, (uint32_t)ioctls[i]);
	answer(program, no);
	answer(program, yes);
	answer(program, yes);
}

static int install_filter(void)
{
	struct program program = {.length = 0};
	struct sock_fprog filter;

	make_filter(&program);
	filter = (struct sock_fprog){program.length, program.code};
	return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) ? -errno : 0;
}

static int drop_capabilities(void)
{
	struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2] = {{0}};
	uint64_t wanted = 0;

	for (size_t i = 0; i < sizeof(kept) / sizeof(*kept); i++)
		wanted |= 1ull << kept[i];
	// The file system's user changes with every frame, and must not take the capabilities along.
	if (prctl(PR_SET_SECUREBITS,
		  SECBIT_NO_SETUID_FIXUP | SECBIT_NO_SETUID_FIXUP_LOCKED | SECBIT_NOROOT | SECBIT_NOROOT_LOCKED))
		return -errno;
	for (int cap = 0; prctl(PR_CAPBSET_READ, cap) >= 0; cap++) {
		if (!(wanted >> cap & 1) && prctl(PR_CAPBSET_DROP, cap))
			return -errno;
	}
	if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))
		return -errno;
	for (int half = 0; half < 2; half++)
		data[half].effective = data[half].permitted = (uint32_t)(wanted >> 32 * half);
	if (syscall(SYS_capset, &head, data))
		return -errno;
	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ? -errno : 0;
}

// A mount of its own that begins at the directory: there is no way up from it.
static int detach_copy(int at, const char *path, uint64_t attributes)
{
	struct mount_attr attr = {.attr_set = attributes};
	int empty = *path ? 0 : AT_EMPTY_PATH;
	int fd = (int)syscall(SYS_open_tree, at, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | empty);

	if (fd < 0 || syscall(SYS_mount_setattr, fd, "", AT_EMPTY_PATH, &attr, sizeof(attr)) == 0)
		return fd < 0 ? -errno : fd;
	int code = -errno;

	close(fd);
	return code;
}

static int replace_with_copy(int fd)
{
	int copy = detach_copy(fd, "", MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC);
	int again = copy < 0 ? copy : openat(copy, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (copy < 0)
		return copy;
	// `copy` stays open: the mount goes with it.
	if (again < 0 || dup3(again, fd, O_CLOEXEC) < 0)
		return -errno;
	close(again);
	return 0;
}

struct place {
	char path[4096];
	char link[4096]; // where it leads to if it is a symbolic link
	int fd;
};

static int take_place(struct place *place)
{
	ssize_t length = readlink(place->path, place->link, sizeof(place->link) - 1);

	place->link[length < 0 ? 0 : length] = 0;
	place->fd = length < 0 ? detach_copy(AT_FDCWD, place->path, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID) : -1;
	return place->fd < 0 && length < 0 && place->fd != -ENOENT ? place->fd : 0;
}

// "/tmp/usr/lib" and what is above it.
static int make_path(const char *path, bool last_too)
{
	char at[4200];

	snprintf(at, sizeof(at), NEW_ROOT "%s", path);
	for (char *c = at + strlen(NEW_ROOT) + 1; *c; c++) {
		if (*c != '/')
			continue;
		*c = 0;
		if (mkdir(at, 0755) && errno != EEXIST)
			return -errno;
		*c = '/';
	}
	return last_too && mkdir(at, 0755) && errno != EEXIST ? -errno : 0;
}

static int put_place(const struct place *place)
{
	char at[4200];
	int error = make_path(place->path, !*place->link);

	snprintf(at, sizeof(at), NEW_ROOT "%s", place->path);
	if (!error && *place->link)
		return symlink(place->link, at) && errno != EEXIST ? -errno : 0;
	if (!error && syscall(SYS_move_mount, place->fd, "", AT_FDCWD, at, MOVE_MOUNT_F_EMPTY_PATH))
		error = -errno;
	return error;
}

static int enter_root(void)
{
	if (mkdir(NEW_ROOT "/tmp", 0700) && errno != EEXIST)
		return -errno;
	if (chdir(NEW_ROOT) || syscall(SYS_pivot_root, ".", ".") || umount2(".", MNT_DETACH) || chdir("/"))
		return -errno;
	return 0;
}

// `readable`: absolute paths, one a line; those that are not there are left out.
static int new_root(const char *readable)
{
	struct place *places = calloc(PLACES, sizeof(*places));
	int count = 0, error = places ? 0 : -ENOMEM;

	for (const char *line = readable; !error && *line; line += strcspn(line, "\n"), line += *line == '\n') {
		size_t length = strcspn(line, "\n");

		if (count == PLACES || length >= sizeof(places->path))
			error = -E2BIG;
		else if (length) {
			memcpy(places[count].path, line, length);
			error = take_place(&places[count++]);
		}
	}
	if (!error && mount("farmd", NEW_ROOT, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, SCRATCH))
		error = -errno;
	for (int i = 0; !error && i < count; i++)
		error = places[i].fd < 0 && !*places[i].link ? 0 : put_place(&places[i]);
	for (int i = 0; i < count; i++)
		if (places[i].fd > 0)
			close(places[i].fd);
	free(places);
	return error ? error : enter_root();
}

int mirror_confine(const struct confine_config *config, char *error, int error_size)
{
	const char *doing = "copying the mount of the directory";
	// A root over several directories is made of such copies already.
	int code = parts_in(config->root) ? 0 : replace_with_copy(config->root);

	if (!code && config->records >= 0)
		code = replace_with_copy(config->records);
	if (!code) {
		doing = "making a mount namespace";
		code = unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ? -errno : 0;
	}
	if (!code) {
		doing = "making a root of its own";
		code = new_root(config->readable);
	}
	if (!code) {
		doing = "dropping capabilities";
		code = drop_capabilities();
	}
	if (!code) {
		doing = "installing the filter of system calls";
		code = install_filter();
	}
	if (code)
		snprintf(error, (size_t)error_size, "%s failed: %s", doing, strerror(-code));
	return code;
}
