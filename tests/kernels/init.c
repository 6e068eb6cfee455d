// SPDX-License-Identifier: Apache-2.0
// The first process of a guest: puts this machine's files under the guest's kernel, read-only below and writable in
// memory above, runs one command on them as root, says how it ended, and stops the guest.
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

enum sizes {
	COMMAND_BYTES = 4096,
};

static void stop(void)
{
	fflush(stdout);
	tcdrain(STDOUT_FILENO);
	reboot(RB_AUTOBOOT); // the emulator was told to end instead
	_exit(1);
}

static void need(int result, const char *what)
{
	if (result >= 0)
		return;
	perror(what);
	stop();
}

// Loads the modules; their file names begin with numbers, so that each comes after those that it needs.
static void load_modules(const char *folder)
{
	struct dirent **entries;
	int count = scandir(folder, &entries, NULL, alphasort);
	char path[512];

	need(count, folder);
	for (int i = 0; i < count; i++) {
		if (entries[i]->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "%s/%s", folder, entries[i]->d_name);
		int fd = open(path, O_RDONLY | O_CLOEXEC);

		need(fd, path);
		need(syscall(SYS_finit_module, fd, "", 0), path);
		close(fd);
	}
}

static void put(const char *source, const char *target, const char *type, unsigned long flags, const char *options)
{
	mkdir(target, 0755); // it may be there
	need(mount(source, target, type, flags, options), target);
}

static void mount_all(void)
{
	put("dev", "/dev", "devtmpfs", 0, NULL);
	put("host", "/host", "9p", MS_RDONLY, "trans=virtio,version=9p2000.L,cache=loose,msize=1048576");
	put("memory", "/memory", "tmpfs", 0, NULL);
	need(mkdir("/memory/upper", 0755), "/memory/upper");
	need(mkdir("/memory/work", 0755), "/memory/work");
	put("overlay", "/tree", "overlay", 0, "lowerdir=/host,upperdir=/memory/upper,workdir=/memory/work");
	put("dev", "/tree/dev", "devtmpfs", 0, NULL);
	put("proc", "/tree/proc", "proc", 0, NULL);
	put("sys", "/tree/sys", "sysfs", 0, NULL);
	put("bpf", "/tree/sys/fs/bpf", "bpf", 0, NULL);
	put("run", "/tree/run", "tmpfs", 0, NULL);
	put("tmp", "/tree/tmp", "tmpfs", 0, NULL);
}

// What follows `name` on the kernel's command line up to the next space.
static const char *argument(const char *name)
{
	static char line[COMMAND_BYTES];
	FILE *file;
	char *found;

	mkdir("/proc", 0755);
	need(mount("proc", "/proc", "proc", 0, NULL), "/proc");
	file = fopen("/proc/cmdline", "r");
	need(file && fgets(line, sizeof(line), file) ? 0 : -1, "/proc/cmdline");
	fclose(file);
	found = strstr(line, name);
	need(found ? 0 : -1, name);
	found += strlen(name);
	found[strcspn(found, " \n")] = '\0';
	return found;
}

static int run(const char *folder, char *command)
{
	char *const arguments[] = {"sh", "-c", command, NULL};
	char *const environment[] = {"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/tmp", "LANG=C.UTF-8", NULL};
	int status;
	pid_t child = fork(), ended;

	need(child, "fork");
	if (child == 0) {
		need(chroot("/tree"), "chroot");
		need(chdir(folder), folder);
		execve("/bin/sh", arguments, environment);
		perror("/bin/sh");
		_exit(127);
	}
	do
		ended = wait(&status); // orphans of the command end here too
	while (ended != child);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int main(void)
{
	static char command[COMMAND_BYTES];
	struct utsname name;
	FILE *file = fopen("/command", "r");
	const char *folder = argument("farm.folder=");

	need(file && fread(command, 1, sizeof(command) - 1, file) ? 0 : -1, "/command");
	load_modules("/modules");
	mount_all();
	need(uname(&name), "uname");
	printf("guest: Linux %s\n", name.release);
	fflush(stdout);
	printf("guest: exit %d\n", run(folder, command));
	stop();
}
