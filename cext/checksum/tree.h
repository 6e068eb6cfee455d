// SPDX-License-Identifier: Apache-2.0
// Looking at a directory tree without ever leaving it: every path is opened with openat2(2), beneath the root, through
// no symbolic link and into no other mount.
#ifndef CHECKSUM_TREE_H
#define CHECKSUM_TREE_H

#include <sys/stat.h>
#include <sys/types.h>
#include "bytes.h"
#include "engine.h"
#include "pool.h"

// What both sides must agree on.
struct meta {
	uint32_t mode; // with the type
	uint32_t uid, gid;
	uint32_t major, minor; // of a device
	uint64_t size;	       // of a regular file, else 0
	int64_t mtime_s;
	uint32_t mtime_ns;
};

// What only this side knows; ctime cannot be set by a program, and btime tells a reused inode number from its last use.
struct local {
	uint64_t inode;
	int64_t ctime_s, btime_s;
	uint32_t ctime_ns, btime_ns;
	uint32_t links;
	uint64_t bytes_allocated;
	int mount_root; // another file system is mounted here, and it is none of the mirror's directories
	int has_btime;
};

struct entry {
	const char *name;    // "" is the directory itself
	struct digest token; // of the record, if `scan.c` has made it already
	size_t name_length;
	struct meta meta;
	struct local local;
};

// Opens a directory for reading, or -1 and errno. EXDEV: a mount or the way out; ELOOP: a symbolic link.
int tree_open_folder(int root, const char *folder);
int tree_open_file(int root, const char *path, int flags);
// 0, or -1 and errno.
int tree_stat(int folder, const char *name, struct entry *entry);
int name_is_good(const char *name, size_t length);
// A path that a peer sent: good names between single slashes, or "".
int folder_is_good(const char *folder, size_t length);

typedef int (*tree_visit)(void *context, int folder, const struct entry *entry, struct scratch *scratch);
// Calls `visit` for every name but "." and "..", in no order that means anything. A name that vanishes meanwhile is
// left out.
// 0, or -1 and errno, or what `visit` returned if not 0.
int tree_each(int folder, struct scratch *scratch, tree_visit visit, void *context);
// The same; some moments before its visit, an entry goes to `expect`, which may be NULL.
struct tree_visitor {
	void (*expect)(void *context, struct entry *entry);
	tree_visit visit;
};
int tree_each_expected(int folder, struct scratch *scratch, const struct tree_visitor *visitor, void *context);

// The same without looking at the inodes.
int tree_names(int folder, struct scratch *scratch, int (*visit)(void *context, int folder, const char *name),
	       void *context);

// All extended attributes as {u16 length, name, u32 length, value}; ACLs are among them. -1 and errno.
// `fd` is the inode opened (also O_PATH), or with a name the directory it is in.
int xattrs_read(int fd, const char *name, struct buffer *to);
// Does not depend on the order in which the file system lists them.
struct digest xattrs_digest(const struct secret *secret, const struct buffer *xattrs);
int xattrs_are_good(const unsigned char *data, size_t length);
// Makes the attributes of the O_PATH descriptor equal to `wanted`. -1 and errno.
int xattrs_write(int fd, const struct buffer *wanted);

// What is there of `want` bytes, all of them but at the end of the file; -1 and errno.
ssize_t read_fully(int fd, void *data, size_t want, uint64_t offset);
// The digest of a whole file's first `size` bytes. 1: it has become shorter or longer; -1 and errno.
int file_digest(const struct secret *secret, int fd, uint64_t size, unsigned char *io, struct digest *digest);

#endif
