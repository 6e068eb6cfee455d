// SPDX-License-Identifier: Apache-2.0
// libFuzzer: whatever bytes come, decoders neither read outside of them nor accept what would lead outside of the tree.
#include <stdlib.h>
#include "link.h"
#include "message.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(int good)
{
	if (!good)
		abort();
}

static void fuzz_frame(const uint8_t *data, size_t size)
{
	struct frame frame;
	int64_t used = frame_parse(data, size, 1, 2, &frame);

	check(used <= (int64_t)size);
}

static void fuzz_entries(struct reader *r)
{
	static struct entry_message m;

	while (!r->bad && r->at < r->end) {
		if (take_entry(r, &m))
			return;
		check(!*m.name || name_is_good(m.name, strlen(m.name)));
		check(strcmp(m.name, "..") != 0 && !strchr(m.name, '/'));
		check(m.meta.size <= INT64_MAX && xattrs_are_good(m.xattrs, m.xattrs_length));
		// What we would send for it, we would take again.
		struct buffer again = {0},
			      xattrs = {.data = (unsigned char *)(uintptr_t)m.xattrs, .used = m.xattrs_length};
		struct entry entry = {.name = m.name, .name_length = strlen(m.name), .meta = m.meta};
		static struct entry_message second;

		entry.local.links = m.links;
		put_entry(&again, &entry, m.kind, m.run, m.digest, m.version, m.target, &xattrs);
		struct reader back = {again.data, again.data + again.used, 0};

		check(take_entry(&back, &second) == 0 && back.at == back.end && second.meta.size == m.meta.size);
		free(again.data);
	}
}

static void fuzz_segment(struct reader *r)
{
	static struct segment_request m;

	if (take_segment(r, &m))
		return;
	check(m.offset % BLOCK_SIZE == 0 && m.length && m.offset + m.length <= INT64_MAX);
	check(folder_is_good(m.path, strlen(m.path)) && *m.path && *m.path != '/');
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct reader r = {data, data + size, 0};
	char folder[PATH_ROOM];

	switch (take_u8(&r) % 4) {
	case 0:
		fuzz_frame(data + (size > 0), size - (size > 0));
		break;
	case 1:
		fuzz_entries(&r);
		break;
	case 2:
		fuzz_segment(&r);
		break;
	default:
		if (take_folder(&r, folder) == 0)
			check(*folder != '/' && strncmp(folder, "../", 3) && !strstr(folder, "/../"));
	}
	return 0;
}
