// SPDX-License-Identifier: Apache-2.0
// The payloads that are more than a few numbers. Decoders take bytes from anybody: they return 0, or -1 and change
// nothing that matters.
#ifndef CHECKSUM_MESSAGE_H
#define CHECKSUM_MESSAGE_H

#include "tree.h"

enum content_kind {
	CONTENT_NONE = 0,  // nothing to read: device, FIFO, socket, directory
	CONTENT_KNOWN = 1, // the record vouches for it, see `run`
	CONTENT_HASH = 2,  // `digest` is that of the contents, or of a symbolic link's text
	CONTENT_LARGE = 3, // to be compared block by block
	CONTENT_SKIP = 4   // cannot be read, or is a mount point: leave the target's alone; `digest` is the errno
};

enum entries_flag {
	ENTRIES_LAST = 1,
	ENTRIES_GONE = 2,
	ENTRIES_UNREADABLE = 4
};
enum folder_flag {
	FOLDER_FORCE = 1
}; // must be listed, whatever its digest
enum segment_flag {
	SEGMENT_COMPARE = 1,
	SEGMENT_ZEROS = 2
}; // only count; the target has zeros, digests are left out
enum segment_status {
	SEGMENT_OK = 0,
	SEGMENT_CHANGED = 1,
	SEGMENT_GONE = 2,
	SEGMENT_ERROR = 3
};

struct entry_message {
	char name[NAME_ROOM];
	uint8_t kind, run;
	struct digest digest;
	struct meta meta;
	uint32_t links;
	uint64_t inode, bytes_allocated;
	uint64_t version;	// of the source's inode, opaque to the target
	char target[PATH_ROOM]; // of a symbolic link
	const unsigned char *xattrs;
	uint32_t xattrs_length;
};

struct segment_request {
	uint32_t request;
	uint64_t version;
	uint8_t flags;
	char path[PATH_ROOM];
	uint64_t offset, length;
	const unsigned char *digests;
	uint32_t count;
};

void put_entry(struct buffer *b, const struct entry *entry, uint8_t kind, unsigned int run, struct digest digest,
	       uint64_t version, const char *target, const struct buffer *xattrs);
int take_entry(struct reader *r, struct entry_message *m);
void put_segment(struct buffer *b, const struct segment_request *m);
int take_segment(struct reader *r, struct segment_request *m);
int take_folder(struct reader *r, char folder[PATH_ROOM]);

#endif
