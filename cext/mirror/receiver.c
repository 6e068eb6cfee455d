// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "../bulk.h"
#include "receiver.h"

#define BUFFER (320 << 10) // small enough to stay in the cache
// Two frames of a large write: they stay in the cache until they are written, and nothing is left over to be moved.
#define PIECE	  (2 * (WIRE_CHUNK + sizeof(struct frame)))
#define ACK_EVERY (1 << 20) // bytes applied without a word, if nobody waits

static uint64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static int fail(struct receiver *receiver, int code, const char *why)
{
	if (!receiver->result->code) {
		receiver->result->code = code;
		snprintf(receiver->result->text, sizeof(receiver->result->text), "%s", why);
	}
	return -code;
}

int send_ack(struct receiver *receiver, int kind, uint64_t seq, int op, int code)
{
	struct ack ack = {.magic = ACK_MAGIC, .kind = (uint16_t)kind, .op = (uint16_t)op, .code = code, .seq = seq};
	size_t sent = 0;
	int error = 0;

	ack.sum = wire_ack_sum(receiver->config->session, &ack);
	pthread_mutex_lock(&receiver->send_lock);
	while (!error && (sent < sizeof(ack) || transport_pending(&receiver->link))) {
		struct iovec part = {(char *)&ack + sent, sizeof(ack) - sent};
		ssize_t n = transport_send(&receiver->link, &part, 1);

		if (n < 0)
			error = (int)n;
		else if (n == 0 && (sent < sizeof(ack) || transport_pending(&receiver->link)))
			error = transport_wait(&receiver->link, 1, 10000) == 1 ? 0 : -ETIMEDOUT;
		else
			sent += (size_t)n;
	}
	pthread_mutex_unlock(&receiver->send_lock);
	return error;
}

void has_acked(struct receiver *receiver, uint64_t seq)
{
	uint64_t before = atomic_load(&receiver->acked);

	while (before < seq && !atomic_compare_exchange_weak(&receiver->acked, &before, seq))
		;
}

static int acknowledge(struct receiver *receiver, struct intake *intake)
{
	intake->wanted = false;
	intake->quiet = 0;
	if (atomic_load(&receiver->acked) == receiver->result->seq)
		return 0;
	has_acked(receiver, receiver->result->seq);
	return send_ack(receiver, ACK_APPLIED, receiver->result->seq, 0, 0);
}

// An fsync is acknowledged when it is done, and nearly always that comes soon enough.
static bool wants_ack(const struct frame *frame)
{
	return frame->flags & WIRE_WANT_ACK && frame->op != WIRE_SYNC && frame->op != WIRE_SYNCFS;
}

static int apply_one(struct receiver *receiver, struct intake *intake, const struct frame *frame, const char *payload)
{
	const char *wrong = wire_check_payload(frame, payload, receiver->config->session);
	char why[160];
	int error;

	if (wrong)
		return fail(receiver, EBADMSG, wrong);
	error = apply_frame(receiver, frame, payload);
	if (error) {
		acknowledge(receiver, intake);
		send_ack(receiver, ACK_ERROR, frame->seq, frame->op, -error);
		snprintf(why, sizeof(why), "%s failed: %s", wire_op_name(frame->op), strerror(-error));
		return fail(receiver, -error, why);
	}
	receiver->result->seq = frame->seq;
	receiver->result->frames++;
	intake->quiet += sizeof(*frame) + frame->size;
	intake->wanted |= wants_ack(frame);
	return 0;
}

static int apply_all(struct receiver *receiver, struct intake *intake)
{
	while (intake->end - intake->start >= sizeof(struct frame)) {
		struct frame frame;
		const char *wrong;
		int error;

		memcpy(&frame, intake->buffer + intake->start, sizeof(frame));
		wrong = wire_check(&frame, receiver->result->seq + 1, receiver->config->epoch);
		if (wrong)
			return fail(receiver, EBADMSG, wrong);
		if (intake->end - intake->start < sizeof(frame) + frame.size)
			break;
		error = apply_one(receiver, intake, &frame, intake->buffer + intake->start + sizeof(frame));
		if (error)
			return error;
		intake->start += sizeof(frame) + frame.size;
	}
	if (intake->wanted || intake->quiet >= ACK_EVERY)
		return acknowledge(receiver, intake);
	return 0;
}

// Nothing is here: says what was applied, then waits. 1 to go on, 0 if asked to end, else -errno.
static int wait_for_more(struct receiver *receiver, struct intake *intake)
{
	struct pollfd waiting[2] = {{.fd = receiver->link.fd, .events = POLLIN},
				    {.fd = receiver->config->stop_fd, .events = POLLIN}};
	bool unsaid = atomic_load(&receiver->acked) != receiver->result->seq;
	int ready = poll(waiting, 2, unsaid ? 2 : 200);

	if (ready < 0)
		return errno == EINTR ? 1 : -errno;
	if (waiting[1].revents)
		return 0;
	if (ready == 0 && unsaid && acknowledge(receiver, intake))
		return fail(receiver, ECONNRESET, "the connection to the primary broke");
	if (receiver->config->silence_ms && now_ms() - intake->heard_ms > receiver->config->silence_ms)
		return fail(receiver, ETIMEDOUT, "the primary has been silent for too long");
	return 1;
}

// 1 to go on, 0 at the end of the stream, else -errno.
static int take_in(struct receiver *receiver, struct intake *intake)
{
	size_t room;
	ssize_t got;

	if (intake->start == intake->end) {
		intake->start = intake->end = 0;
	} else if (BUFFER - intake->start < sizeof(struct frame) + WIRE_PAYLOAD) {
		memmove(intake->buffer, intake->buffer + intake->start, intake->end - intake->start);
		intake->end -= intake->start;
		intake->start = 0;
	}
	room = BUFFER - intake->end;
	got = transport_receive(&receiver->link, intake->buffer + intake->end, room < PIECE ? room : PIECE);
	if (got == -EAGAIN)
		return wait_for_more(receiver, intake);
	if (got < 0)
		return fail(receiver, (int)-got, "the connection to the primary broke");
	if (got == 0)
		return intake->start == intake->end ? 0 : fail(receiver, EBADMSG, "the stream ends inside a frame");
	intake->end += (size_t)got;
	intake->heard_ms = now_ms();
	return apply_all(receiver, intake) ? -1 : 1;
}

bool receiver_take_in(struct receiver *receiver)
{
	return take_in(receiver, &receiver->intake) == 1;
}

int receiver_run(const struct receiver_config *config, struct receiver_result *result)
{
	struct receiver receiver = {.config = config, .result = result, .root = -1};
	int error = -ENOMEM;

	memset(result, 0, sizeof(*result));
	receiver.link = (struct transport){config->fd, config->tls};
	pthread_mutex_init(&receiver.send_lock, NULL);
	transport_prepare(config->fd);
	receiver.intake = (struct intake){.buffer = bulk_room(BUFFER), .heard_ms = now_ms()};
	if (receiver.intake.buffer)
		error = inode_thread_start();
	if (!error)
		error = fids_start(&receiver);
	if (!error)
		error = turns_start(&receiver);
	if (error)
		fail(&receiver, -error, "the receiver cannot start");
	else
		turns_run(&receiver);
	inode_act_as(0, 0, 022);
	if (receiver.helper_count)
		turns_end(&receiver);
	fids_free(&receiver);
	free(receiver.intake.buffer);
	transport_shutdown(&receiver.link);
	return result->code;
}
