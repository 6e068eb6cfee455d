// SPDX-License-Identifier: Apache-2.0
// The secondary's threads take turns: one reads the stream and applies it. When it meets an fsync and another thread is
// free, that one reads on, and the fsync is done at once where it came in: what is written meanwhile to other files
// need not wait for the disk, and an fsync not for a thread to wake up. There is a reader at any time.
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

static void finish(struct receiver *receiver, struct sync_job *job)
{
	int code = sync_one(receiver, job);

	if (!send_ack(receiver, code ? ACK_ERROR : ACK_DURABLE, job->seq, job->op, code) && !code)
		has_acked(receiver, job->seq); // what is durable was applied
	close(job->fd);
	free(job);
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
	pthread_mutex_lock(&receiver->turn_lock);
	*receiver->jobs_end = job;
	receiver->jobs_end = &job->next;
	receiver->job_count++;
	pthread_mutex_unlock(&receiver->turn_lock);
	return 0;
}

// Lock held.
static struct sync_job *next_job(struct receiver *receiver)
{
	struct sync_job *job = receiver->jobs;

	receiver->jobs = job->next;
	if (!receiver->jobs)
		receiver->jobs_end = &receiver->jobs;
	receiver->job_count--;
	return job;
}

// Reads until the end, or until there is an fsync and somebody to read on. Lock held, but not meanwhile.
static void read_on(struct receiver *receiver)
{
	bool goes_on = true;

	receiver->reading = true;
	while (goes_on && !(receiver->jobs && receiver->idle)) {
		pthread_mutex_unlock(&receiver->turn_lock);
		goes_on = receiver_take_in(receiver);
		pthread_mutex_lock(&receiver->turn_lock);
	}
	receiver->reading = false;
	receiver->ended = !goes_on;
}

// One wakes up to read, and one for each fsync that this thread does not do itself.
static void wake_others(struct receiver *receiver)
{
	if (receiver->ended)
		pthread_cond_broadcast(&receiver->turn_wake);
	for (int i = 0; !receiver->ended && i < receiver->job_count && i < receiver->idle; i++)
		pthread_cond_signal(&receiver->turn_wake);
}

// Until the stream has ended and what was queued is done: it was received, so it should reach the disk.
static void take_turns(struct receiver *receiver)
{
	pthread_mutex_lock(&receiver->turn_lock);
	while (!receiver->ended || receiver->jobs) {
		if (!receiver->ended && !receiver->reading) {
			read_on(receiver);
			wake_others(receiver);
		}
		if (receiver->jobs) {
			struct sync_job *job = next_job(receiver);

			pthread_mutex_unlock(&receiver->turn_lock);
			finish(receiver, job);
			pthread_mutex_lock(&receiver->turn_lock);
		} else if (!receiver->ended) {
			receiver->idle++;
			pthread_cond_wait(&receiver->turn_wake, &receiver->turn_lock);
			receiver->idle--;
		}
	}
	pthread_mutex_unlock(&receiver->turn_lock);
}

static void *help(void *context)
{
	struct receiver *receiver = context;
	int error = inode_thread_start(); // who applies acts for the callers

	prctl(PR_SET_NAME, "mirror-take");
	pthread_mutex_lock(&receiver->turn_lock);
	receiver->helpers_ready++;
	if (error)
		receiver->helper_error = error;
	pthread_cond_broadcast(&receiver->turn_wake);
	pthread_mutex_unlock(&receiver->turn_lock);
	if (!error)
		take_turns(receiver);
	return NULL;
}

// Somebody reads already, as it seems to them: they wait for what the first thread leaves to them.
int turns_start(struct receiver *receiver)
{
	pthread_mutex_init(&receiver->turn_lock, NULL);
	pthread_cond_init(&receiver->turn_wake, NULL);
	receiver->jobs_end = &receiver->jobs;
	receiver->reading = true;
	while (receiver->helper_count < HELPERS) {
		if (pthread_create(&receiver->helpers[receiver->helper_count], NULL, help, receiver))
			return -EAGAIN;
		receiver->helper_count++;
	}
	pthread_mutex_lock(&receiver->turn_lock);
	while (receiver->helpers_ready < receiver->helper_count)
		pthread_cond_wait(&receiver->turn_wake, &receiver->turn_lock);
	int error = receiver->helper_error;
	pthread_mutex_unlock(&receiver->turn_lock);
	return error;
}

void turns_run(struct receiver *receiver)
{
	pthread_mutex_lock(&receiver->turn_lock);
	receiver->reading = false;
	pthread_mutex_unlock(&receiver->turn_lock);
	take_turns(receiver);
}

void turns_end(struct receiver *receiver)
{
	pthread_mutex_lock(&receiver->turn_lock);
	receiver->ended = true;
	pthread_cond_broadcast(&receiver->turn_wake);
	pthread_mutex_unlock(&receiver->turn_lock);
	for (int i = 0; i < receiver->helper_count; i++)
		pthread_join(receiver->helpers[i], NULL);
}
