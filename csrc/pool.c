/*
 * pool.c - why a pool: an SSH handshake costs more than most tasks. The
 * pool keeps sessions (and the agents on them) between tasks, between the
 * processes of a run and between runs, for all clients of one user.
 *
 * One thread, one epoll loop; nothing here blocks and nothing is O(number
 * of sessions) per event. A frame from a client is read into the client's
 * buffer (pool_client.c), its session and agent are found in hash tables
 * (pool_session.c, pool_agent.c), it gets a number of ours
 * (pool_request.c), joins the queue of its login agent (outq.c) and is
 * written to the chan (agentlink.c, link.h). Answers come back the same way
 * and leave at the end of the turn, one write per client.
 *
 * What a bad peer can do, and what stops it:
 *   target floods      window per request; frame limits; session ends
 *   target goes silent PING, 45 s; session ends
 *   target stops reading   its chan's writes stop, its queue is bounded by
 *                      the windows and POOL_QUEUE_LIMIT (busy). ssh.c keeps
 *                      libssh from blocking the thread; sshproc.c's pipes
 *                      are non-blocking
 *   client stops reading   its targets are paused; dropped if others wait
 *   client dies        its requests are cancelled on the targets
 * The pool trusts its clients (same user) with what they ask for, but not
 * with its memory or its tables: a violation drops the client.
 *
 * The end: no clients and no sessions for idle_ms, or STOP.
 */
#include "pool_int.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "log.h"

#define ACCEPT_PAUSE_MS 1000
#define ACCEPT_TURN     64

static void pool_listen(void *arg);

void
pool_free_later(struct ch_pool *pool, void *memory)
{
    if (ch_loop_defer(pool->loop, free, memory) != CH_OK) {
        return; /* lost: better than freed under a caller's feet */
    }
}

static void
pool_acceptable(void *arg, int fd, unsigned events)
{
    struct ch_pool *pool = arg;

    (void)events;
    for (int i = 0; i < ACCEPT_TURN; i++) {
        int client = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

        if (client >= 0) {
            client_accept(pool, client);
        } else if (errno == EMFILE || errno == ENFILE || errno == ENOMEM ||
                   errno == ENOBUFS) {
            /* The connection stays readable: without a pause we spin. */
            ch_log_at(CH_LOG_ERROR, "no descriptor for a new client");
            ch_loop_unwatch(pool->loop, fd);
            pool->accept_timer =
                ch_loop_timer(pool->loop, ACCEPT_PAUSE_MS, pool_listen, pool);
            return;
        } else if (errno != EINTR && errno != ECONNABORTED) {
            return;
        }
    }
}

static void
pool_listen(void *arg)
{
    struct ch_pool *pool = arg;

    pool->accept_timer = NULL;
    if (ch_loop_watch(pool->loop, pool->listen_fd, CH_LOOP_READ,
                      pool_acceptable, pool) != CH_OK) {
        ch_pool_stop(pool);
    }
}

/* --- the end --- */

static void
pool_end(void *arg)
{
    struct ch_pool *pool = arg;

    pool->on_end(pool->arg);
}

void
ch_pool_stop(struct ch_pool *pool)
{
    if (pool->ending) {
        return;
    }
    pool->ending = 1;
    ch_log("stopping");
    CH_LIST_EACH_SAFE (at, &pool->all_sessions) {
        session_fail(CH_LIST_OF(at, struct session, in_pool), "reset", "pool",
                     "the pool was stopped");
    }
    /* After the clients' flushes, which are deferred already. */
    if (ch_loop_defer(pool->loop, pool_end, pool) != CH_OK) {
        pool_end(pool);
    }
}

static void
pool_idle(void *arg)
{
    struct ch_pool *pool = arg;

    pool->idle_timer = NULL;
    ch_pool_stop(pool);
}

void
pool_idle_check(struct ch_pool *pool)
{
    int idle = pool->n_clients == 0 && pool->n_live == 0 && !pool->ending;

    if (idle && pool->idle_timer == NULL) {
        pool->idle_timer =
            ch_loop_timer(pool->loop, pool->idle_ms, pool_idle, pool);
    } else if (!idle) {
        ch_loop_cancel(pool->loop, pool->idle_timer);
        pool->idle_timer = NULL;
    }
}

/* --- life --- */

struct ch_pool *
ch_pool_new(struct ch_loop *loop, int listen_fd, int64_t idle_ms,
            ch_loop_fn *on_end, void *arg)
{
    struct ch_pool *pool = calloc(1, sizeof(*pool));

    if (pool == NULL) {
        return NULL;
    }
    pool->loop = loop;
    pool->listen_fd = listen_fd;
    pool->idle_ms = idle_ms;
    pool->on_end = on_end;
    pool->arg = arg;
    ch_list_init(&pool->clients);
    ch_list_init(&pool->all_sessions);
    ch_list_init(&pool->payload_lru);
    pool_listen(pool);
    pool_idle_check(pool);
    return pool;
}

void
ch_pool_free(struct ch_pool *pool)
{
    if (pool == NULL) {
        return;
    }
    pool->ending = 1;
    CH_LIST_EACH_SAFE (at, &pool->all_sessions) {
        session_fail(CH_LIST_OF(at, struct session, in_pool), "reset", "pool",
                     "the pool ended");
    }
    CH_LIST_EACH_SAFE (at, &pool->clients) {
        client_drop(CH_LIST_OF(at, struct client, in_pool), "the pool ends");
    }
    ch_loop_cancel(pool->loop, pool->idle_timer);
    ch_loop_cancel(pool->loop, pool->accept_timer);
    ch_loop_unwatch(pool->loop, pool->listen_fd);
    close(pool->listen_fd);
    store_fini(pool);
    ch_table_fini(&pool->sessions);
    ch_table_fini(&pool->attaches);
    ch_table_fini(&pool->requests);
    ch_table_fini(&pool->payloads);
    pool_free_later(pool, pool);
}
