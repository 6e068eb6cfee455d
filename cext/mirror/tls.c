// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include "api.h"
#include "records.h"
#include "transport.h"

struct mirror_tls {
	pthread_mutex_t lock;
	SSL_CTX *context;
	SSL *ssl;
	int fd;
	struct records records; // after the handshake
};

static void say(char *error, int size, const char *what)
{
	unsigned long code = ERR_get_error();
	const char *reason = code ? ERR_reason_error_string(code) : NULL;

	snprintf(error, (size_t)size, "%s%s%s", what, reason ? ": " : "", reason ? reason : "");
}

static SSL_CTX *context_of(const struct mirror_tls_config *config, char *error, int size)
{
	SSL_CTX *context = SSL_CTX_new(TLS_method());

	if (!context || !SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION)) {
		say(error, size, "TLS 1.3 is not available");
	} else if (SSL_CTX_use_certificate_chain_file(context, config->certificate) != 1) {
		say(error, size, "the certificate cannot be used");
	} else if (SSL_CTX_use_PrivateKey_file(context, config->key, SSL_FILETYPE_PEM) != 1 ||
		   SSL_CTX_check_private_key(context) != 1) {
		say(error, size, "the private key cannot be used");
	} else if (SSL_CTX_load_verify_locations(context, config->authority, NULL) != 1) {
		say(error, size, "the farm's authority cannot be read");
	} else {
		SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
		SSL_CTX_set_ciphersuites(context, "TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256");
		// A session lives once: no tickets to resume it, which also keeps them out of the stream of acks.
		SSL_CTX_set_num_tickets(context, 0);
		SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
		return context;
	}
	SSL_CTX_free(context);
	return NULL;
}

static long now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static int shake_hands(struct mirror_tls *tls, const struct mirror_tls_config *config, char *error, int size)
{
	long end = now_ms() + config->timeout_ms;

	for (;;) {
		int done = config->server ? SSL_accept(tls->ssl) : SSL_connect(tls->ssl);
		int why = SSL_get_error(tls->ssl, done);
		struct pollfd waiting = {.fd = tls->fd, .events = why == SSL_ERROR_WANT_WRITE ? POLLOUT : POLLIN};

		if (done == 1)
			return 0;
		if (why != SSL_ERROR_WANT_READ && why != SSL_ERROR_WANT_WRITE) {
			say(error, size, "the peer did not pass the TLS handshake");
			return -EPROTO;
		}
		if (now_ms() >= end || poll(&waiting, 1, (int)(end - now_ms())) == 0) {
			snprintf(error, (size_t)size, "the peer did not answer the TLS handshake in time");
			return -ETIMEDOUT;
		}
	}
}

struct mirror_tls *mirror_tls_open(int fd, const struct mirror_tls_config *config, char *error, int size)
{
	struct mirror_tls *tls = calloc(1, sizeof(*tls));
	BIO *records;

	if (!tls) {
		snprintf(error, (size_t)size, "out of memory");
		return NULL;
	}
	ERR_clear_error();
	pthread_mutex_init(&tls->lock, NULL);
	tls->fd = fd;
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
	// OpenSSL writes with write(2): a peer that is gone is to be an error, not a signal.
	signal(SIGPIPE, SIG_IGN);
	tls->context = context_of(config, error, size);
	if (!tls->context)
		goto failed;
	tls->ssl = SSL_new(tls->context);
	if (!tls->ssl || !SSL_set_fd(tls->ssl, fd) || !SSL_set1_host(tls->ssl, config->peer_name)) {
		say(error, size, "TLS cannot be set up");
		goto failed;
	}
	if (shake_hands(tls, config, error, size))
		goto failed;
	records = records_open(&tls->records, fd);
	if (!records) {
		snprintf(error, (size_t)size, "out of memory");
		goto failed;
	}
	SSL_set_bio(tls->ssl, records, records);
	return tls;
failed:
	mirror_tls_close(tls);
	return NULL;
}

void mirror_tls_close(struct mirror_tls *tls)
{
	if (!tls)
		return;
	SSL_free(tls->ssl);
	SSL_CTX_free(tls->context);
	records_close(&tls->records);
	pthread_mutex_destroy(&tls->lock);
	free(tls);
}

// Bytes of `data` that were encrypted; those that do not fit any more are not, for the peer's sake: it takes records
// in the order of their making.
static ssize_t encrypt(struct mirror_tls *tls, const char *data, size_t size)
{
	size_t done = 0;

	while (done < size) {
		size_t part = size - done < RECORD_DATA ? size - done : RECORD_DATA, n = 0;
		int error = records_have_room(&tls->records) ? 0 : records_flush(&tls->records);

		if (error)
			return error;
		if (!records_have_room(&tls->records))
			break;
		ERR_clear_error();
		if (SSL_write_ex(tls->ssl, data + done, part, &n) != 1)
			return -ECONNRESET;
		done += n;
	}
	return (ssize_t)done;
}

ssize_t tls_send(struct mirror_tls *tls, const struct iovec *parts, int count)
{
	ssize_t total = 0;
	int error;

	pthread_mutex_lock(&tls->lock);
	error = records_flush(&tls->records);
	for (int i = 0; i < count && !error; i++) {
		ssize_t done = encrypt(tls, parts[i].iov_base, parts[i].iov_len);

		error = done < 0 ? (int)done : 0;
		total += done < 0 ? 0 : done;
		if (done < (ssize_t)parts[i].iov_len)
			break;
	}
	if (!error)
		error = records_flush(&tls->records);
	pthread_mutex_unlock(&tls->lock);
	return error ? error : total;
}

int tls_pending(struct mirror_tls *tls)
{
	int pending;

	pthread_mutex_lock(&tls->lock);
	pending = records_pending(&tls->records);
	pthread_mutex_unlock(&tls->lock);
	return pending;
}

ssize_t tls_receive(struct mirror_tls *tls, void *buffer, size_t size)
{
	ssize_t result;
	size_t got = 0;

	pthread_mutex_lock(&tls->lock);
	ERR_clear_error();
	if (SSL_read_ex(tls->ssl, buffer, size, &got) == 1) {
		result = (ssize_t)got;
	} else {
		switch (SSL_get_error(tls->ssl, 0)) {
		case SSL_ERROR_WANT_READ:
		case SSL_ERROR_WANT_WRITE:
			result = -EAGAIN;
			break;
		case SSL_ERROR_ZERO_RETURN:
			result = 0;
			break;
		default:
			result = -ECONNRESET;
		}
	}
	// The answer to a key update, if there was one. Where nothing can be sent any more, there may be something to
	// read.
	if (records_flush(&tls->records) && result == 0)
		result = -ECONNRESET;
	pthread_mutex_unlock(&tls->lock);
	return result;
}
