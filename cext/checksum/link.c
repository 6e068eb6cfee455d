// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <xxh_x86dispatch.h>
#endif
#include "../bulk.h"
#include "../shortway.h"
#include "link.h"

#define HEAD_SIZE     16u
#define POLL_MS	      200
#define PING_AFTER_NS 1000000000ull
#define LAZY_BYTES    2048u

uint64_t frame_check(uint64_t key, uint64_t number, uint8_t type, const void *a, size_t a_length, const void *b,
		     size_t b_length)
{
	uint64_t words[4] = {htole64(key), htole64(number), htole64(type),
			     htole64(XXH3_64bits_withSeed(a, a_length, key))};
	uint64_t first = XXH3_64bits(words, sizeof(words));

	// In two pieces, because large data is sent from where it lies.
	return b_length ? XXH3_64bits_withSeed(b, b_length, first) : first;
}

// How many bytes of the payload are fields; what follows is data. So that both sides check the same two pieces.
static size_t fields_of(uint8_t type, size_t length)
{
	if (type == FRAME_PROBE_DATA)
		return 0;
	return type == FRAME_BLOCKS && length > 12 ? 12 : length;
}

int64_t frame_parse(const unsigned char *data, size_t length, uint64_t key, uint64_t number, struct frame *frame)
{
	struct reader head = {data, data + (length < HEAD_SIZE ? length : HEAD_SIZE), 0};
	uint32_t size = take_u32(&head);
	uint8_t type = take_u8(&head);
	const unsigned char *pad = take(&head, 3);
	uint64_t check = take_u64(&head);

	if (length >= 4 && size > FRAME_MAX)
		return -1;
	if (head.bad || length < HEAD_SIZE + (size_t)size)
		return 0;
	if (type == 0 || type >= FRAME_TYPES || pad[0] || pad[1] || pad[2])
		return -1;
	const unsigned char *body = data + HEAD_SIZE;
	size_t fields = fields_of(type, size);

	if (check != frame_check(key, number, type, body, fields, body + fields, size - fields))
		return -1;
	frame->type = type;
	frame->body = (struct reader){body, body + size, 0};
	return HEAD_SIZE + (int64_t)size;
}

static int write_all(struct link *link, struct iovec *parts, int count)
{
	struct engine *e = link->engine;
	uint64_t since = now_ns();

	while (count) {
		ssize_t wrote = writev(link->out, parts, count);

		if (wrote < 0 && errno == EAGAIN) {
			struct pollfd ready = {.fd = link->out, .events = POLLOUT};

			poll(&ready, 1, POLL_MS);
			if (engine_stopping(e))
				return -1;
			if (now_ns() - since > e->options->timeout_ms * 1000000ull)
				return engine_fail(e, ETIMEDOUT, "the peer took nothing for %u ms",
						   e->options->timeout_ms);
			continue;
		}
		if (wrote < 0 && errno == EINTR)
			continue;
		if (wrote < 0)
			return engine_fail(e, errno, "the connection broke while sending: %s", strerror(errno));
		since = now_ns();
		COUNT(e, bytes_sent, (uint64_t)wrote);
		while (count && (size_t)wrote >= parts->iov_len) {
			wrote -= (ssize_t)parts->iov_len;
			parts++;
			count--;
		}
		if (count) {
			parts->iov_base = (char *)parts->iov_base + wrote;
			parts->iov_len -= (size_t)wrote;
		}
	}
	return 0;
}

static void make_head(struct link *link, unsigned char head[HEAD_SIZE], uint8_t type, const void *body, size_t used,
		      const void *data, size_t length)
{
	uint32_t size = htole32((uint32_t)(used + length));
	uint64_t check = htole64(frame_check(link->send_key, link->send_number++, type, body, used, data, length));

	memset(head, 0, HEAD_SIZE);
	memcpy(head, &size, 4);
	head[4] = type;
	memcpy(head + 8, &check, 8);
}

static int send_locked(struct link *link, uint8_t type, const void *body, size_t used, const void *data, size_t length)
{
	unsigned char head[HEAD_SIZE];
	struct iovec parts[4] = {{link->waiting.data, link->waiting.used},
				 {head, HEAD_SIZE},
				 {(void *)(uintptr_t)body, used},
				 {(void *)(uintptr_t)data, length}};

	make_head(link, head, type, body, used, data, length);
	link->last_sent_ns = now_ns();
	link->waiting.used = 0;
	return parts[0].iov_len ? write_all(link, parts, 4) : write_all(link, parts + 1, 3);
}

int link_send_lazily(struct link *link, uint8_t type, const struct buffer *body)
{
	unsigned char head[HEAD_SIZE];
	int result = 0;

	if (body->failed)
		return engine_fail(link->engine, ENOMEM, "out of memory");
	if (engine_stopping(link->engine))
		return -1;
	pthread_mutex_lock(&link->lock);
	make_head(link, head, type, body->data, body->used, NULL, 0);
	put(&link->waiting, head, HEAD_SIZE);
	put(&link->waiting, body->data, body->used);
	if (link->waiting.failed) {
		result = engine_fail(link->engine, ENOMEM, "out of memory");
	} else if (link->waiting.used >= LAZY_BYTES) {
		struct iovec part = {link->waiting.data, link->waiting.used};

		link->last_sent_ns = now_ns();
		link->waiting.used = 0;
		result = write_all(link, &part, 1);
	}
	pthread_mutex_unlock(&link->lock);
	return result;
}

int link_send_with(struct link *link, uint8_t type, const struct buffer *body, const void *data, size_t length)
{
	size_t used = body ? body->used : 0;

	if (body && body->failed)
		return engine_fail(link->engine, ENOMEM, "out of memory");
	if (used + length > FRAME_MAX)
		return engine_fail(link->engine, EMSGSIZE, "a frame of %zu bytes is too long", used + length);
	if (engine_stopping(link->engine))
		return -1;
	pthread_mutex_lock(&link->lock);
	int result = send_locked(link, type, body ? body->data : NULL, used, data, length);
	pthread_mutex_unlock(&link->lock);
	return result;
}

int link_send(struct link *link, uint8_t type, const struct buffer *body)
{
	return link_send_with(link, type, body, NULL, 0);
}

// Reads what there is, or waits a little.
static int fill(struct link *link)
{
	struct engine *e = link->engine;

	if (link->first && link->first + link->count + HEAD_SIZE + FRAME_MAX > LINK_READ_ROOM) {
		memmove(link->data, link->data + link->first, link->count);
		link->first = 0;
	}
	size_t at = link->first + link->count;
	ssize_t got = read(link->in, link->data + at, LINK_READ_ROOM - at);

	if (got > 0) {
		link->count += (size_t)got;
		link->last_heard_ns = now_ns();
		COUNT(e, bytes_received, (uint64_t)got);
		return 0;
	}
	if (got == 0)
		return engine_fail(e, ECONNRESET, "the peer closed the connection");
	if (errno != EAGAIN && errno != EINTR)
		return engine_fail(e, errno, "the connection broke while receiving: %s", strerror(errno));
	struct pollfd ready = {.fd = link->in, .events = POLLIN};

	if (poll(&ready, 1, POLL_MS) == 0 && now_ns() - link->last_heard_ns > e->options->timeout_ms * 1000000ull)
		return engine_fail(e, ETIMEDOUT, "the peer was silent for %u ms", e->options->timeout_ms);
	return engine_stopping(e) ? -1 : 0;
}

static int heard_failure(struct link *link, struct frame *frame)
{
	char text[400];
	uint32_t code = take_u32(&frame->body);

	take_string(&frame->body, text, sizeof(text));
	return engine_fail(link->engine, code < 4096 && !frame->body.bad ? (int)code : EPROTO, "the peer gave up: %s",
			   text);
}

int link_receive(struct link *link, struct frame *frame)
{
	for (;;) {
		int64_t size =
		    frame_parse(link->data + link->first, link->count, link->receive_key, link->receive_number, frame);

		if (size < 0)
			return engine_fail(link->engine, EPROTO,
					   "the peer sent a damaged or foreign frame (number %llu)",
					   (unsigned long long)link->receive_number);
		if (size == 0) {
			if (fill(link))
				return -1;
			continue;
		}
		link->first += (size_t)size;
		link->count -= (size_t)size;
		if (!link->count)
			link->first = 0;
		link->receive_number++;
		if (engine_stopping(link->engine))
			return -1;
		if (frame->type == FRAME_FAIL)
			return heard_failure(link, frame);
		if (frame->type != FRAME_PING)
			return 0;
	}
}

// A side may be busy for long without a word (a large directory on a slow disk). The peer must know that it lives.
static void *ping(void *argument)
{
	struct link *link = argument;

	pthread_mutex_lock(&link->lock);
	while (!link->closing) {
		struct timespec until;

		clock_gettime(CLOCK_MONOTONIC, &until);
		until.tv_sec++;
		pthread_cond_timedwait(&link->closed, &link->lock, &until);
		if (!link->closing && now_ns() - link->last_sent_ns > PING_AFTER_NS && !engine_stopping(link->engine))
			send_locked(link, FRAME_PING, NULL, 0, NULL, 0);
	}
	pthread_mutex_unlock(&link->lock);
	return NULL;
}

static int greet(struct link *link, int is_source, const struct digest ids[2], struct digest theirs[2])
{
	struct engine *e = link->engine;
	struct digest nonces[2] = {{0, 0}, {0, 0}};
	struct buffer hello = {0};
	struct frame frame;

	if (getrandom(&nonces[0], sizeof(nonces[0]), 0) != sizeof(nonces[0]))
		return engine_fail(e, errno, "no random numbers: %s", strerror(errno));
	put_u64(&hello, LINK_MAGIC);
	put_u16(&hello, PROTOCOL_VERSION);
	put_u8(&hello, (uint8_t)is_source);
	put_digest(&hello, nonces[0]);
	put_digest(&hello, ids[0]);
	put_digest(&hello, ids[1]);
	int failed = link_send(link, FRAME_HELLO, &hello);

	free(hello.data);
	if (failed || link_receive(link, &frame))
		return -1;
	uint64_t magic = take_u64(&frame.body);
	uint16_t version = take_u16(&frame.body);
	uint8_t source = take_u8(&frame.body);

	nonces[1] = take_digest(&frame.body);
	theirs[0] = take_digest(&frame.body);
	theirs[1] = take_digest(&frame.body);
	if (frame.type != FRAME_HELLO || frame.body.bad || magic != LINK_MAGIC)
		return engine_fail(e, EPROTO, "the peer does not speak this protocol");
	if (version != PROTOCOL_VERSION)
		return engine_fail(e, EPROTO, "the peer speaks version %u of the protocol, this side %u", version,
				   PROTOCOL_VERSION);
	if (source == is_source)
		return engine_fail(e, EPROTO, "both ends are %s", is_source ? "sources" : "targets");
	// Both sides build the same secret: the source's nonce first.
	struct digest seed[2] = {nonces[is_source ? 0 : 1], nonces[is_source ? 1 : 0]};

	secret_make(&e->secret, seed, sizeof(seed));
	struct digest keys[2] = {digest_of(&e->secret, "source", 6), digest_of(&e->secret, "target", 6)};

	pthread_mutex_lock(&link->lock);
	link->send_key = keys[is_source ? 0 : 1].low;
	link->receive_key = keys[is_source ? 1 : 0].low;
	pthread_mutex_unlock(&link->lock);
	return 0;
}

int link_open(struct link *link, struct engine *engine, int is_source, const struct digest ids[2],
	      struct digest theirs[2])
{
	pthread_condattr_t monotonic;

	memset(link, 0, sizeof(*link));
	link->engine = engine;
	link->in = engine->options->in_fd;
	link->out = engine->options->out_fd;
	link->send_key = link->receive_key = LINK_MAGIC;
	link->last_heard_ns = now_ns();
	pthread_mutex_init(&link->lock, NULL);
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&link->closed, &monotonic);
	pthread_condattr_destroy(&monotonic);
	link->in_flags = fcntl(link->in, F_GETFL);
	link->out_flags = fcntl(link->out, F_GETFL);
	if (link->in_flags < 0 || link->out_flags < 0 || fcntl(link->in, F_SETFL, link->in_flags | O_NONBLOCK) ||
	    fcntl(link->out, F_SETFL, link->out_flags | O_NONBLOCK))
		return engine_fail(engine, errno, "the connection cannot be used: %s", strerror(errno));
	choose_congestion_control(link->out);
	link->data = (unsigned char *)bulk_room(LINK_READ_ROOM);
	if (!link->data)
		return engine_fail(engine, ENOMEM, "out of memory");
	if (greet(link, is_source, ids, theirs))
		return -1;
	link->pinging = pthread_create(&link->pinger, NULL, ping, link) == 0;
	return link->pinging ? 0 : engine_fail(engine, EAGAIN, "no thread can be started");
}

// The last word, best effort: the peer should hear why, but nobody waits for it.
static void say_failure(struct link *link)
{
	struct engine *e = link->engine;
	struct buffer body = {0};
	unsigned char whole[HEAD_SIZE + 600];

	put_u32(&body, (uint32_t)e->error->code);
	put_string(&body, e->error->text, strnlen(e->error->text, 390));
	if (!body.failed) {
		make_head(link, whole, FRAME_FAIL, body.data, body.used, NULL, 0);
		memcpy(whole + HEAD_SIZE, body.data, body.used);
		if (write(link->out, whole, HEAD_SIZE + body.used) < 0)
			errno = 0;
	}
	free(body.data);
}

void link_close(struct link *link)
{
	if (!link->engine)
		return;
	pthread_mutex_lock(&link->lock);
	link->closing = 1;
	pthread_cond_signal(&link->closed);
	pthread_mutex_unlock(&link->lock);
	if (link->pinging)
		pthread_join(link->pinger, NULL);
	if (link->engine->failed)
		say_failure(link);
	if (link->out_flags >= 0)
		fcntl(link->out, F_SETFL, link->out_flags);
	if (link->in_flags >= 0)
		fcntl(link->in, F_SETFL, link->in_flags);
	free(link->data);
	free(link->waiting.data);
	pthread_cond_destroy(&link->closed);
	pthread_mutex_destroy(&link->lock);
	memset(link, 0, sizeof(*link));
}
