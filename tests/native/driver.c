// SPDX-License-Identifier: Apache-2.0
// The filter as a filter of Unix: commands in, replies out. One letter a command:
//   T struct farm_table          a new table; fragments are forgotten
//   P group, struct farm_planes  the planes of a group
//   R group, struct farm_routes  the routes of a group
//   M struct farm_macs           where the nodes are
//   L jiffies, deadline          what time it is, and when the lease ends (64 bits each)
//   C                            forget fragments
//   J packets, bytes             then so many bytes: for each packet a struct request and its frame.
//                                Out: the number of bytes, then for each packet a struct reply and the frame that left
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "harness.h"

static void get(void *into, size_t bytes)
{
	require(fread(into, 1, bytes, stdin) == bytes, "a command is whole");
}

static void read_table(struct node *node)
{
	static struct farm_table table;

	get(&table, sizeof(table));
	node_configure(node, &table);
}

static void read_planes(struct node *node)
{
	__u32 group;

	get(&group, sizeof(group));
	require(group < FARM_GROUPS, "a group has planes");
	get(&node->planes[group], sizeof(*node->planes));
}

static void read_routes(struct node *node)
{
	__u32 group;

	get(&group, sizeof(group));
	require(group < FARM_GROUPS, "a group has routes");
	get(&node->routes[group], sizeof(*node->routes));
}

static void read_lease(struct node *node)
{
	get(&node->jiffies, sizeof(node->jiffies));
	get(node->lease, sizeof(*node->lease));
}

static void judge_all(struct node *node)
{
	static __u8 frame[LONGEST_FRAME + TAILROOM];
	__u32 size[2], length;
	struct request request;
	struct reply reply;
	__u8 *in, *out, *from, *to;

	get(size, sizeof(size));
	in = from = malloc(size[1] + 1);
	out = to = malloc(size[1] + (size_t)size[0] * (sizeof(reply) + TAILROOM) + 1);
	require(in && out, "there is memory");
	get(in, size[1]);
	for (__u32 i = 0; i < size[0]; i++) {
		memcpy(&request, from, sizeof(request));
		require(request.bytes <= LONGEST_FRAME, "a frame is not too long for us");
		memcpy(frame, from + sizeof(request), request.bytes);
		from += sizeof(request) + request.bytes;
		require(from <= in + size[1], "a batch is whole");
		reply = node_judge(node, &request, frame);
		memcpy(to, &reply, sizeof(reply));
		memcpy(to + sizeof(reply), frame, reply.bytes);
		to += sizeof(reply) + reply.bytes;
	}
	length = to - out;
	fwrite(&length, sizeof(length), 1, stdout);
	fwrite(out, 1, length, stdout);
	fflush(stdout);
	free(in);
	free(out);
}

int main(void)
{
	struct node *node = node_new();
	int command;

	while ((command = getchar()) != EOF) {
		if (command == 'T')
			read_table(node);
		else if (command == 'P')
			read_planes(node);
		else if (command == 'R')
			read_routes(node);
		else if (command == 'M')
			get(node->macs, sizeof(*node->macs));
		else if (command == 'L')
			read_lease(node);
		else if (command == 'C')
			node_forget_fragments(node);
		else if (command == 'J')
			judge_all(node);
		else
			require(0, "a command is known");
	}
	return 0;
}
