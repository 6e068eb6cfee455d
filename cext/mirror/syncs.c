// SPDX-License-Identifier: Apache-2.0
// fsync on the secondary, beside the stream: what is written meanwhile to other files need not wait for the disk.
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <unistd.h>
#include "receiver.h"

static int sync_one(const struct receiver *receiver, const struct sync_job *job)
{
	int done;

	if (job->op == WIRE_SYNCFS)
		return -parts_sync(&receiver->parts);
	done = job->data_only ? fdatasync(job->fd) : fsync(job->fd);
	return done ? errno : 0;
}

static struct sync_job *next_job(struct receiver *receiver)
{
	struct sync_job *job;

	pthread_mutex_lock(&receiver->sync_lock);
	while (!receiver->jobs && !receiver->ending)
		pthread_cond_wait(&receiver->sync_wake, &receiver->sync_lock);
	job = receiver->jobs;
	if (job) {
		receiver->jobs = job->next;
		if (!receiver->jobs)
			receiver->jobs_end = &receiver->jobs;
	}
	pthread_mutex_unlock(&receiver->sync_lock);
	return job;
}

static void *run(void *context)
{
	struct receiver *receiver = context;
	struct sync_job *job;

	prctl(PR_SET_NAME, "mirror-sync");
	while ((job = next_job(receiver))) {
		int code = sync_one(receiver, job);

		send_ack(receiver, code ? ACK_ERROR : ACK_DURABLE, job->seq, job->op, code);
		close(job->fd);
		free(job);
	}
	return NULL;
}

int sync_later(struct receiver *receiver, const struct frame *frame, int fd)
{
	struct sync_job *job = fd < 0 ? NULL : calloc(1, sizeof(*job));

	if (!job) {
		if (fd >= 0)
			close(fd);
		return fd < 0 ? fd : -ENOMEM;
	}
	*job = (struct sync_job){.seq = frame->seq, .fd = fd, .op = frame->op};
	job->data_only = frame->flags & WIRE_DATA_ONLY;
	receiver->result->syncs++;
	pthread_mutex_lock(&receiver->sync_lock);
	*receiver->jobs_end = job;
	receiver->jobs_end = &job->next;
	pthread_cond_signal(&receiver->sync_wake);
	pthread_mutex_unlock(&receiver->sync_lock);
	return 0;
}

int syncs_start(struct receiver *receiver)
{
	pthread_mutex_init(&receiver->sync_lock, NULL);
	pthread_cond_init(&receiver->sync_wake, NULL);
	receiver->jobs_end = &receiver->jobs;
	while (receiver->syncer_count < 2) {
		if (pthread_create(&receiver->syncers[receiver->syncer_count], NULL, run, receiver))
			return -EAGAIN;
		receiver->syncer_count++;
	}
	return 0;
}

// What is queued is done first: it was received, so it should reach the disk.
void syncs_end(struct receiver *receiver)
{
	pthread_mutex_lock(&receiver->sync_lock);
	receiver->ending = true;
	pthread_cond_broadcast(&receiver->sync_wake);
	pthread_mutex_unlock(&receiver->sync_lock);
	for (int i = 0; i < receiver->syncer_count; i++)
		pthread_join(receiver->syncers[i], NULL);
}
