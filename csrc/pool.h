/*
 * pool.h - the pool: clients on one unix socket, shared sessions to hosts.
 */
#ifndef CH_POOL_H
#define CH_POOL_H

#include "ch.h"
#include "loop.h"

struct ch_pool;

/* listen_fd: a listening socket, handed over. idle_ms: how long to stay
 * without clients and sessions. on_end is called once when the pool wants
 * to end (idle or STOP); it should remove the socket and stop the loop. */
struct ch_pool *ch_pool_new(struct ch_loop *loop, int listen_fd,
                            int64_t idle_ms, ch_loop_fn *on_end, void *arg);
/* Ends all sessions, tells the clients, then calls on_end. */
void ch_pool_stop(struct ch_pool *pool);
/* Ends all sessions and clients. The loop must run one more turn, or be
 * freed with ch_loop_free(), for the memory to be given back. */
void ch_pool_free(struct ch_pool *pool);

#endif
