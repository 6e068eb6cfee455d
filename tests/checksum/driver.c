// SPDX-License-Identifier: Apache-2.0
// One end of a run, for the sanitizers: driver source|target ROOT FD RECORD|- MODE PASS RESUME
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "abi.h"

int main(int count, char **words)
{
	struct checksum_options options = {.report_fd = -1, .threads = 3, .timeout_ms = 20000};
	struct checksum_progress progress = {0};
	struct checksum_error error;

	if (count != 8)
		return 3;
	signal(SIGPIPE, SIG_IGN);
	options.root_fd = open(words[2], O_RDONLY | O_DIRECTORY);
	options.in_fd = options.out_fd = atoi(words[3]);
	options.record_path = strcmp(words[4], "-") ? words[4] : NULL;
	options.mode = (uint32_t)atoi(words[5]);
	options.pass = (uint32_t)atoi(words[6]);
	options.resume = (uint32_t)atoi(words[7]);
	options.only = getenv("CHECKSUM_ONLY");
	options.only_bytes = options.only ? strlen(options.only) + 1 : 0;
	int is_source = strcmp(words[1], "source") == 0;
	int failed = is_source ? checksum_run_source(&options, &progress, &error)
			       : checksum_run_target(&options, &progress, &error);

	if (failed)
		printf("%d %s\n", error.code, error.text);
	else
		printf("done %llu\n", (unsigned long long)progress.files_differing);
	return failed ? 1 : 0;
}
