// SPDX-License-Identifier: Apache-2.0
// A part of a file in our address space: what is in the page cache can be hashed without the kernel's copy of it, which
// costs more than the hash. A page that cannot be read (a file cut short meanwhile, a disk that fails) would end the
// process by SIGBUS. A handler puts zeros in the place of the whole part instead, and says so: `lost`. Whoever has
// looked at a mapping must ask for that before the result counts for anything, and otherwise read the bytes with
// pread(), which also tells what was wrong. Never hand a mapping to a system call, nor send from it: it may change
// between two looks.
#ifndef CHECKSUM_MAPPING_H
#define CHECKSUM_MAPPING_H

#include <signal.h>
#include <stddef.h>
#include <stdint.h>

struct mapping {
	const unsigned char *data; // NULL: nothing is mapped here
	size_t length;
	volatile sig_atomic_t lost;
	int taken;
};

// Takes SIGBUS over, once; faults that are not ours go to whoever had it before. Nothing is mapped before that, nor
// when somebody else has it since.
void mapping_guard(void);
// Maps [offset, offset + length) of a file for this thread; `offset` begins a page. NULL for a part that is short, or
// not all in the page cache: what must come from the disk comes faster by reading.
struct mapping *mapping_open(int fd, uint64_t offset, size_t length);
// Leaves errno as it is.
void mapping_close(struct mapping *mapping);

// Asked after a look: whether it saw the file.
static inline int mapping_holds(const struct mapping *mapping)
{
	return mapping && !mapping->lost;
}

#endif
