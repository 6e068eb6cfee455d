// SPDX-License-Identifier: Apache-2.0
// What Python and C share. Plain declarations only: cffi reads this file, too.
#ifndef CHECKSUM_ABI_H
#define CHECKSUM_ABI_H

#include <stdint.h>

enum checksum_mode {
	CHECKSUM_SYNC = 0,   // make the target equal
	CHECKSUM_VERIFY = 1, // compare, name what differs, change nothing
	CHECKSUM_DIFF = 2    // compare, count what a sync would move, measure the link
};

enum checksum_pass {
	CHECKSUM_CONTENTS = 0, // every byte is read
	CHECKSUM_QUICK = 1     // contents that the record vouches for are not read (record.h says when)
};

// The kinds of lines in a report.
enum checksum_finding {
	CHECKSUM_MISSING = 1,	// the target lacks it
	CHECKSUM_EXTRA = 2,	// only the target has it
	CHECKSUM_TYPE = 3,	// file, directory, symlink, device: not the same kind of thing
	CHECKSUM_DATA = 4,	// other contents, or another symlink or device
	CHECKSUM_META = 5,	// mode, owner, time or extended attributes
	CHECKSUM_LINKS = 6,	// hard links join other names
	CHECKSUM_CHANGING = 7,	// the source changed while it was read, in every round
	CHECKSUM_UNREADABLE = 8 // the source cannot be read, or must not be followed
};

struct checksum_options {
	int root_fd; // the directory
	int in_fd;   // the connection; may be the same as out_fd
	int out_fd;
	int report_fd;		 // findings, as {u32 length of path, u32 finding, u32 errno, path}; -1: none
	const char *record_path; // this side's record; NULL: no record, so nothing is vouched for
	const char
	    *excluded; // patterns of what is not compared, one a line (exclude.h); NULL: none; alike on both sides
	uint32_t mode; // the target decides; the source ignores mode, pass, resume and probe
	uint32_t pass;
	uint32_t threads;
	uint32_t timeout_ms;	// silence of the peer that ends the run
	uint32_t resume;	// skip what an interrupted run of any pass already verified
	uint32_t trust_restart; // the caller knows that this file system was cleanly unmounted since the record
	uint32_t probe_bytes;	// CHECKSUM_DIFF: how much to send to measure the link
	const char *only;    // paths, each ended by a 0, alike on both sides: nothing else is looked at. A slash at the
	uint64_t only_bytes; // end of one: all below it as well. NULL: the whole tree. Not together with a record.
};

// Written by the engine while it runs, read by others at any time; `stop` and both limits are the caller's.
struct checksum_progress {
	uint32_t stop;	       // not 0: end soon
	uint32_t phase;	       // 0 greeting, 1 comparing directories, 2 contents, 3 making durable, 4 done
	uint64_t rate_bytes_s; // limit for contents that the source sends; 0: none
	uint64_t read_bytes_s; // limit for contents that this side reads; 0: none
	uint64_t files_seen;   // names looked at
	uint64_t bytes_hashed;
	uint64_t bytes_compared; // of the files whose contents both sides compared block by block
	uint64_t bytes_to_compare;
	uint64_t files_differing; // names with any finding
	uint64_t bytes_differing; // contents that travel, or would
	uint64_t bytes_sent;	  // on the wire, all included
	uint64_t bytes_received;
	uint64_t dirs_seen;
	uint64_t dirs_differing;
	uint64_t dirs_listed;
	uint64_t dirs_done;
	uint64_t files_deleted;
	uint64_t files_changing;
	uint64_t errors;   // things that could not be read: the target is not equal
	uint64_t probe_ns; // CHECKSUM_DIFF: how long the probe took
	uint64_t scan_ns;  // how long the first phase took
	uint64_t recorded; // names that the record vouches for from now on
};

struct checksum_error {
	int code; // errno, or EPROTO when the peer broke the protocol
	char text[512];
};

// Both return 0, or -1 with the error filled in. They block; release locks first.
int checksum_run_source(const struct checksum_options *options, struct checksum_progress *progress,
			struct checksum_error *error);
int checksum_run_target(const struct checksum_options *options, struct checksum_progress *progress,
			struct checksum_error *error);
// Reads `length` bytes of a file in blocks and hashes each; returns the nanoseconds of CPU time it took, or -1.
// `mapped`: through mappings, as a run does with large files that are in the page cache; -1 if they are not.
int64_t checksum_measure_hash(int fd, uint64_t length, int mapped);

#endif
