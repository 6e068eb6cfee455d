// SPDX-License-Identifier: Apache-2.0
// Changing the target's tree. Every change goes through a directory that was opened beneath the root, names one entry
// of it, and follows no symbolic link.
#ifndef CHECKSUM_APPLY_H
#define CHECKSUM_APPLY_H

#include "message.h"

// Opens a directory of the target; makes it, and what is missing above it, and replaces what is not a directory.
// Tells `made` of each that was made; `replaced` if something else was there. -1 and errno.
typedef void (*folder_made)(void *context, const char *folder, int replaced);
int apply_folder(int root, const char *folder, struct scratch *scratch, folder_made made, void *context);
// Deletes a name, with all below it; counts what was deleted. Not into other mounts: EBUSY or EXDEV.
int apply_delete(int root, int folder, const char *path, const char *name, int is_folder, struct scratch *scratch,
		 uint64_t *deleted);
// Makes an empty file, a directory, symlink, device, FIFO or socket that does not exist yet.
int apply_make(int folder, const struct entry_message *wanted);
// Owner, attributes, mode and time, in this order: changing an owner clears bits of the mode and file capabilities.
// `fd` may be O_PATH.
int apply_meta(int fd, const struct meta *meta, const struct buffer *xattrs);
// Another name for the inode at `path`, which must be `inode`.
int apply_link(int root, const char *path, uint64_t inode, int folder, const char *name);
// Makes [offset, offset + length) read as zeros, as a hole if `hole` and the file system can.
int apply_zeros(int fd, uint64_t offset, uint64_t length, int hole);
int apply_data(int fd, uint64_t offset, const void *data, size_t length);

#endif
