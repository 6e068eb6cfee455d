// SPDX-License-Identifier: Apache-2.0
// Buffers for bulk data begin on a page. malloc() gives a page and 16 bytes, which is the worst that there is: on AMD's
// Zen 3 `rep movsb`, with which the kernel copies from the page cache and from sockets, is 6 to 15 times slower to an
// address that lies 1 to 31 bytes behind the source's, modulo 4096 (measured: 2 GB/s for 14, and for 40 in the cache).
#ifndef FARM_BULK_H
#define FARM_BULK_H

#include <stdlib.h>

#define PAGE ((size_t)4096)

// Room for `size` bytes, for free(). NULL if there is no memory.
static inline char *bulk_room(size_t size)
{
	return aligned_alloc(PAGE, (size + PAGE - 1) / PAGE * PAGE);
}

#endif
