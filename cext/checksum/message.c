// SPDX-License-Identifier: Apache-2.0
#include "message.h"

void put_entry(struct buffer *b, const struct entry *entry, uint8_t kind, unsigned int run, struct digest digest,
	       uint64_t version, const char *target, const struct buffer *xattrs)
{
	const struct meta *m = &entry->meta;

	put_string(b, entry->name, entry->name_length);
	put_u8(b, kind);
	put_u8(b, (uint8_t)run);
	put_digest(b, digest);
	put_u32(b, m->mode);
	put_u32(b, m->uid);
	put_u32(b, m->gid);
	put_u32(b, m->major);
	put_u32(b, m->minor);
	put_u64(b, m->size);
	put_u64(b, (uint64_t)m->mtime_s);
	put_u32(b, m->mtime_ns);
	put_u32(b, entry->local.links);
	put_u64(b, entry->local.inode);
	put_u64(b, entry->local.bytes_allocated);
	put_u64(b, version);
	put_string(b, target, strlen(target));
	put_u32(b, (uint32_t)xattrs->used);
	put(b, xattrs->data, xattrs->used);
}

static int kind_fits(const struct entry_message *m)
{
	uint32_t type = m->meta.mode & S_IFMT;

	if (m->kind == CONTENT_SKIP || m->kind == CONTENT_KNOWN)
		return 1;
	if (type == S_IFREG)
		return m->kind == CONTENT_HASH || m->kind == CONTENT_LARGE;
	return type == S_IFLNK ? m->kind == CONTENT_HASH : m->kind == CONTENT_NONE;
}

static int type_is_known(uint32_t mode)
{
	switch (mode & S_IFMT) {
	case S_IFREG:
	case S_IFDIR:
	case S_IFLNK:
	case S_IFCHR:
	case S_IFBLK:
	case S_IFIFO:
	case S_IFSOCK:
		return mode <= 0177777;
	default:
		return 0;
	}
}

int take_entry(struct reader *r, struct entry_message *m)
{
	size_t length = take_string(r, m->name, sizeof(m->name));

	m->kind = take_u8(r);
	m->run = take_u8(r);
	m->digest = take_digest(r);
	m->meta.mode = take_u32(r);
	m->meta.uid = take_u32(r);
	m->meta.gid = take_u32(r);
	m->meta.major = take_u32(r);
	m->meta.minor = take_u32(r);
	m->meta.size = take_u64(r);
	m->meta.mtime_s = (int64_t)take_u64(r);
	m->meta.mtime_ns = take_u32(r);
	m->links = take_u32(r);
	m->inode = take_u64(r);
	m->bytes_allocated = take_u64(r);
	m->version = take_u64(r);
	size_t target = take_string(r, m->target, sizeof(m->target));

	m->xattrs_length = take_u32(r);
	m->xattrs = take(r, m->xattrs_length);
	if (r->bad || (length && !name_is_good(m->name, length)) || !type_is_known(m->meta.mode) || !kind_fits(m) ||
	    m->meta.mtime_ns > 999999999 || m->meta.size > INT64_MAX || memchr(m->target, 0, target) ||
	    (S_ISLNK(m->meta.mode) && !target && m->kind != CONTENT_SKIP) || (!length && !S_ISDIR(m->meta.mode)))
		return -1;
	return xattrs_are_good(m->xattrs, m->xattrs_length) ? 0 : -1;
}

void put_segment(struct buffer *b, const struct segment_request *m)
{
	put_u32(b, m->request);
	put_u64(b, m->version);
	put_u8(b, m->flags);
	put_string(b, m->path, strlen(m->path));
	put_u64(b, m->offset);
	put_u64(b, m->length);
	put_u32(b, m->count);
	put(b, m->digests, m->count * sizeof(struct digest));
}

int take_segment(struct reader *r, struct segment_request *m)
{
	m->request = take_u32(r);
	m->version = take_u64(r);
	m->flags = take_u8(r);
	size_t length = take_string(r, m->path, sizeof(m->path));

	m->offset = take_u64(r);
	m->length = take_u64(r);
	m->count = take_u32(r);
	m->digests = m->count <= SEGMENT / BLOCK_SIZE ? take(r, m->count * sizeof(struct digest)) : NULL;
	if (r->bad || r->at != r->end || !length || !folder_is_good(m->path, length) || m->offset % BLOCK_SIZE ||
	    m->length == 0 || m->offset > INT64_MAX || m->length > INT64_MAX - m->offset)
		return -1;
	if (m->flags & SEGMENT_ZEROS)
		return m->count ? -1 : 0;
	return m->length <= SEGMENT && m->count == (m->length + BLOCK_SIZE - 1) / BLOCK_SIZE ? 0 : -1;
}

int take_folder(struct reader *r, char folder[PATH_ROOM])
{
	size_t length = take_string(r, folder, PATH_ROOM);

	return r->bad || !folder_is_good(folder, length) ? -1 : 0;
}
