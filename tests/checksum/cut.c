// SPDX-License-Identifier: Apache-2.0
// What becomes of a mapping whose file is cut short under it, and of faults that are not ours: cut CASE FILE
// Prints what it saw, `read` where nothing is mapped; the file holds 2 MiB of ones.
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "mapping.h"

#define SIZE (2u << 20)

static void on_signal(int number)
{
	static const char word[] = "theirs\n";

	if (write(1, word, sizeof(word) - 1) < 0)
		_exit(3);
	_exit(number == SIGBUS ? 0 : 4);
}

static unsigned int sum(const unsigned char *data, size_t from, size_t to)
{
	unsigned int total = 0;

	for (size_t i = from; i < to; i += 4096)
		total += ((const volatile unsigned char *)data)[i];
	return total;
}

static void fault_elsewhere(int fd)
{
	const unsigned char *data = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, fd, 0);

	if (data == MAP_FAILED || ftruncate(fd, 0))
		exit(3);
	printf("survived %u\n", sum(data, 0, SIZE));
}

static void lose(int fd)
{
	struct mapping *first = mapping_open(fd, 0, SIZE / 2), *second = mapping_open(fd, SIZE / 2, SIZE / 2);

	if (!first && !second) {
		printf("read\n");
		return;
	}
	unsigned int before = sum(first->data, 0, SIZE / 2) + sum(second->data, 0, SIZE / 2);

	if (ftruncate(fd, SIZE / 2 + 4096))
		exit(3);
	unsigned int after = sum(first->data, 0, SIZE / 2) + sum(second->data, 0, SIZE / 2);

	printf("%u %d %u %d\n", before, mapping_holds(first), after, mapping_holds(second));
	mapping_close(first);
	mapping_close(second);
}

int main(int count, char **words)
{
	if (count != 3)
		return 3;
	const char *what = words[1];
	int fd = open(words[2], O_RDWR | O_CLOEXEC);
	sigset_t bus;

	setbuf(stdout, NULL);
	sigemptyset(&bus);
	sigaddset(&bus, SIGBUS);
	if (strcmp(what, "chained") == 0)
		signal(SIGBUS, on_signal);
	if (strcmp(what, "blocked") == 0)
		sigprocmask(SIG_BLOCK, &bus, NULL);
	if (strcmp(what, "unguarded") != 0)
		mapping_guard();
	if (strcmp(what, "taken-away") == 0) {
		signal(SIGBUS, on_signal);
		mapping_guard();
	}
	if (strcmp(what, "lost") == 0)
		lose(fd);
	else if (strcmp(what, "chained") == 0 || strcmp(what, "foreign") == 0)
		fault_elsewhere(fd);
	else if (strcmp(what, "sent") == 0)
		raise(SIGBUS);
	else if (strcmp(what, "many") == 0) {
		int many = 0;

		while (mapping_open(fd, 0, SIZE))
			many++;
		printf("%d\n", many);
	} else
		printf("%s\n", mapping_open(fd, 0, strcmp(what, "short") ? SIZE : 4096) ? "mapped" : "read");
	return 0;
}
