// SPDX-License-Identifier: Apache-2.0
// A set of digests: 16 bytes for each, whatever they stand for.
#ifndef CHECKSUM_HASHSET_H
#define CHECKSUM_HASHSET_H

#include <stdlib.h>
#include "digest.h"

struct hashset {
	struct digest *slots;
	size_t room, count;
};

static inline struct digest *hashset_slot(const struct hashset *set, struct digest wanted)
{
	size_t at = wanted.low & (set->room - 1);

	while ((set->slots[at].low || set->slots[at].high) && !digest_same(set->slots[at], wanted))
		at = (at + 1) & (set->room - 1);
	return &set->slots[at];
}

static inline int hashset_has(const struct hashset *set, struct digest wanted)
{
	struct digest *slot = set->room ? hashset_slot(set, wanted) : NULL;

	return slot && (slot->low || slot->high);
}

// 1 if it is new, 0 if it was there, -1 without memory.
static inline int hashset_add(struct hashset *set, struct digest one)
{
	if (set->count * 2 >= set->room) {
		struct hashset larger = {.room = set->room ? set->room * 2 : 64, .count = set->count};

		larger.slots = calloc(larger.room, sizeof(*larger.slots));
		if (!larger.slots)
			return -1;
		for (size_t i = 0; i < set->room; i++)
			if (set->slots[i].low || set->slots[i].high)
				*hashset_slot(&larger, set->slots[i]) = set->slots[i];
		free(set->slots);
		*set = larger;
	}
	struct digest *slot = hashset_slot(set, one);

	if (slot->low || slot->high)
		return 0;
	*slot = one;
	set->count++;
	return 1;
}

static inline void hashset_free(struct hashset *set)
{
	free(set->slots);
	*set = (struct hashset){0};
}

#endif
