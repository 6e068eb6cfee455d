// SPDX-License-Identifier: Apache-2.0
#include <stdlib.h>
#include <string.h>
#include "bytes.h"
#include "pool.h"

int scratch_make(struct scratch *scratch)
{
	scratch->data = aligned_alloc(4096, IO_SIZE);
	scratch->names = aligned_alloc(4096, NAMES_SIZE);
	scratch->out = calloc(1, sizeof(*scratch->out));
	scratch->more = calloc(1, sizeof(*scratch->more));
	if (scratch->data && scratch->names && scratch->out && scratch->more)
		return 0;
	scratch_free(scratch);
	return -1;
}

void scratch_free(struct scratch *scratch)
{
	free(scratch->data);
	free(scratch->names);
	if (scratch->out)
		free(scratch->out->data);
	if (scratch->more)
		free(scratch->more->data);
	free(scratch->out);
	free(scratch->more);
}

static void *pop(struct pool *pool)
{
	size_t at = pool->first;

	if (pool->last_first)
		at = (pool->first + pool->count - 1) % pool->room;
	else
		pool->first = (pool->first + 1) % pool->room;
	pool->count--;
	return pool->items[at];
}

static void *run(void *argument)
{
	struct seat *seat = argument;
	struct pool *pool = seat->pool;

	pthread_mutex_lock(&pool->lock);
	for (;;) {
		while (!pool->count && !pool->closed) {
			pool->idle++;
			pthread_cond_wait(&pool->filled, &pool->lock);
			pool->idle--;
		}
		if (!pool->count)
			break;
		void *item = pop(pool);
		int wake = pool->limit && pool->count == pool->limit - 1;

		pthread_mutex_unlock(&pool->lock);
		if (wake)
			pthread_cond_broadcast(&pool->drained);
		pool->work(pool->context, item, &seat->scratch);
		pthread_mutex_lock(&pool->lock);
		if (--pool->under_way == 0)
			pthread_cond_broadcast(&pool->drained);
	}
	pthread_mutex_unlock(&pool->lock);
	return NULL;
}

int pool_start(struct pool *pool, unsigned int threads, size_t limit, int last_first, pool_work work, void *context)
{
	memset(pool, 0, sizeof(*pool));
	pool->limit = limit;
	pool->last_first = last_first;
	pool->work = work;
	pool->context = context;
	pthread_mutex_init(&pool->lock, NULL);
	pthread_cond_init(&pool->filled, NULL);
	pthread_cond_init(&pool->drained, NULL);
	while (pool->started < threads && pool->started < THREADS_MAX) {
		struct seat *seat = &pool->seats[pool->started];

		seat->pool = pool;
		if (scratch_make(&seat->scratch))
			break;
		if (pthread_create(&seat->thread, NULL, run, seat)) {
			scratch_free(&seat->scratch);
			break;
		}
		pool->started++;
	}
	return pool->started ? 0 : -1;
}

static int grow(struct pool *pool)
{
	size_t room = pool->room ? pool->room * 2 : 64;
	void **items = malloc(room * sizeof(*items));

	if (!items)
		return -1;
	for (size_t i = 0; i < pool->count; i++)
		items[i] = pool->items[(pool->first + i) % pool->room];
	free(pool->items);
	pool->items = items;
	pool->first = 0;
	pool->room = room;
	return 0;
}

int pool_push(struct pool *pool, void *item)
{
	pthread_mutex_lock(&pool->lock);
	while (pool->limit && pool->count >= pool->limit)
		pthread_cond_wait(&pool->drained, &pool->lock);
	if (pool->count == pool->room && grow(pool)) {
		pthread_mutex_unlock(&pool->lock);
		return -1;
	}
	pool->items[(pool->first + pool->count++) % pool->room] = item;
	pool->under_way++;
	int wake = pool->idle > 0;

	pthread_mutex_unlock(&pool->lock);
	if (wake)
		pthread_cond_signal(&pool->filled);
	return 0;
}

void pool_wait(struct pool *pool)
{
	pthread_mutex_lock(&pool->lock);
	while (pool->under_way)
		pthread_cond_wait(&pool->drained, &pool->lock);
	pthread_mutex_unlock(&pool->lock);
}

void pool_stop(struct pool *pool)
{
	if (!pool->work)
		return;
	pthread_mutex_lock(&pool->lock);
	pool->closed = 1;
	pthread_cond_broadcast(&pool->filled);
	pthread_mutex_unlock(&pool->lock);
	for (unsigned int i = 0; i < pool->started; i++) {
		pthread_join(pool->seats[i].thread, NULL);
		scratch_free(&pool->seats[i].scratch);
	}
	free(pool->items);
	pthread_cond_destroy(&pool->filled);
	pthread_cond_destroy(&pool->drained);
	pthread_mutex_destroy(&pool->lock);
	memset(pool, 0, sizeof(*pool));
}
