/*
 * loop.c - why not a library: the pool needs epoll, timers and deferred
 * calls, nothing more.
 *
 * What always holds: a turn is  epoll_wait -> fd callbacks -> due timers ->
 * deferred calls; callbacks may watch, unwatch, add and cancel anything,
 * also themselves. A watch is an entry in a table indexed by fd; each has a
 * generation number that travels with the epoll event, so an event of a fd
 * that was unwatched (and perhaps reused) in this turn is dropped. An entry
 * that watches nothing is not in epoll at all, because epoll reports
 * hang-ups even then and the loop would spin.
 * Timers are a binary heap; each knows its place, so cancel is O(log n).
 * Ownership: the loop owns timers; fds and args stay the caller's.
 */
#include "loop.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#define LOOP_EVENTS 128

struct ch_timer {
    int64_t due_us;
    uint64_t serial; /* equal times fire in the order they were made */
    size_t place;    /* index in the heap */
    ch_loop_fn *fn;
    void *arg;
};

struct watch {
    ch_loop_fd_fn *fn; /* NULL: not watched */
    void *arg;
    unsigned events;
    uint32_t generation;
};

struct deferred {
    ch_loop_fn *fn;
    void *arg;
};

struct ch_loop {
    int epoll_fd;
    int stopped;
    struct watch *watches; /* indexed by fd */
    size_t n_watches;
    struct ch_timer **heap;
    size_t n_timers, cap_timers;
    uint64_t serial;
    struct deferred *deferred;
    size_t n_deferred, cap_deferred;
};

int64_t
ch_now_us(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

struct ch_loop *
ch_loop_new(void)
{
    struct ch_loop *loop = calloc(1, sizeof(*loop));

    if (loop == NULL) {
        return NULL;
    }
    loop->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (loop->epoll_fd < 0) {
        free(loop);
        return NULL;
    }
    return loop;
}

void
ch_loop_free(struct ch_loop *loop)
{
    if (loop == NULL) {
        return;
    }
    for (size_t i = 0; i < loop->n_timers; i++) {
        free(loop->heap[i]);
    }
    free(loop->heap);
    free(loop->watches);
    free(loop->deferred);
    close(loop->epoll_fd);
    free(loop);
}

/* --- descriptors --- */

static int
watches_grow(struct ch_loop *loop, int fd)
{
    size_t want = loop->n_watches < 64 ? 64 : loop->n_watches;
    struct watch *grown;

    while (want <= (size_t)fd) {
        want *= 2;
    }
    if (want == loop->n_watches) {
        return CH_OK;
    }
    grown = realloc(loop->watches, want * sizeof(*grown));
    if (grown == NULL) {
        return CH_ERR_NOMEM;
    }
    memset(grown + loop->n_watches, 0,
           (want - loop->n_watches) * sizeof(*grown));
    loop->watches = grown;
    loop->n_watches = want;
    return CH_OK;
}

static int
epoll_apply(struct ch_loop *loop, int op, int fd, const struct watch *w)
{
    struct epoll_event ev;

    memset(&ev, 0, sizeof(ev));
    ev.events = ((w->events & CH_LOOP_READ) ? EPOLLIN : 0u) |
                ((w->events & CH_LOOP_WRITE) ? EPOLLOUT : 0u);
    ev.data.u64 = ((uint64_t)w->generation << 32) | (uint32_t)fd;
    return epoll_ctl(loop->epoll_fd, op, fd, &ev) == 0 ? CH_OK : CH_ERR_SYS;
}

int
ch_loop_watch(struct ch_loop *loop, int fd, unsigned events, ch_loop_fd_fn *fn,
              void *arg)
{
    struct watch *w;
    unsigned before;
    int r;

    assert(fd >= 0 && fn != NULL);
    if ((size_t)fd >= loop->n_watches) {
        r = watches_grow(loop, fd);
        if (r != CH_OK) {
            return r;
        }
    }
    w = &loop->watches[fd];
    before = w->fn != NULL ? w->events : 0;
    w->fn = fn;
    w->arg = arg;
    w->events = events;
    if (events == before) {
        return CH_OK;
    }
    r = epoll_apply(loop,
                    before == 0   ? EPOLL_CTL_ADD
                    : events == 0 ? EPOLL_CTL_DEL
                                  : EPOLL_CTL_MOD,
                    fd, w);
    if (r != CH_OK) {
        w->events = before;
        if (before == 0) {
            w->fn = NULL;
        }
    }
    return r;
}

void
ch_loop_unwatch(struct ch_loop *loop, int fd)
{
    struct watch *w;

    if (fd < 0 || (size_t)fd >= loop->n_watches) {
        return;
    }
    w = &loop->watches[fd];
    if (w->fn == NULL) {
        return;
    }
    if (w->events != 0) {
        (void)epoll_apply(loop, EPOLL_CTL_DEL, fd, w);
    }
    w->fn = NULL;
    w->events = 0;
    w->generation++;
}

static void
dispatch(struct ch_loop *loop, const struct epoll_event *ev)
{
    int fd = (int)(uint32_t)ev->data.u64;
    uint32_t generation = (uint32_t)(ev->data.u64 >> 32);
    const struct watch *w = &loop->watches[fd];
    unsigned ready = 0;

    if (w->fn == NULL || w->generation != generation) {
        return;
    }
    if (ev->events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
        ready |= CH_LOOP_READ;
    }
    if (ev->events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) {
        ready |= CH_LOOP_WRITE;
    }
    /* Interest may have shrunk earlier in this turn. */
    if (w->events != 0) {
        w->fn(w->arg, fd, ready);
    }
}

/* --- timers: a heap with the nearest at 0 --- */

static int
timer_before(const struct ch_timer *a, const struct ch_timer *b)
{
    return a->due_us != b->due_us ? a->due_us < b->due_us
                                  : a->serial < b->serial;
}

static void
heap_set(struct ch_loop *loop, size_t place, struct ch_timer *timer)
{
    loop->heap[place] = timer;
    timer->place = place;
}

static void
heap_up(struct ch_loop *loop, size_t at, struct ch_timer *timer)
{
    while (at > 0 && timer_before(timer, loop->heap[(at - 1) / 2])) {
        heap_set(loop, at, loop->heap[(at - 1) / 2]);
        at = (at - 1) / 2;
    }
    heap_set(loop, at, timer);
}

static void
heap_down(struct ch_loop *loop, size_t at, struct ch_timer *timer)
{
    for (;;) {
        size_t child = at * 2 + 1;

        if (child >= loop->n_timers) {
            break;
        }
        if (child + 1 < loop->n_timers &&
            timer_before(loop->heap[child + 1], loop->heap[child])) {
            child++;
        }
        if (!timer_before(loop->heap[child], timer)) {
            break;
        }
        heap_set(loop, at, loop->heap[child]);
        at = child;
    }
    heap_set(loop, at, timer);
}

struct ch_timer *
ch_loop_timer(struct ch_loop *loop, int64_t delay_ms, ch_loop_fn *fn,
              void *arg)
{
    struct ch_timer *timer;
    struct ch_timer **grown;
    size_t cap;

    if (loop->n_timers == loop->cap_timers) {
        cap = loop->cap_timers == 0 ? 64 : loop->cap_timers * 2;
        grown = realloc(loop->heap, cap * sizeof(*grown));
        if (grown == NULL) {
            return NULL;
        }
        loop->heap = grown;
        loop->cap_timers = cap;
    }
    timer = calloc(1, sizeof(*timer));
    if (timer == NULL) {
        return NULL;
    }
    if (delay_ms < 0) {
        delay_ms = 0;
    } else if (delay_ms > INT64_MAX / 4000) {
        delay_ms = INT64_MAX / 4000;
    }
    timer->due_us = ch_now_us() + delay_ms * 1000;
    timer->serial = loop->serial++;
    timer->fn = fn;
    timer->arg = arg;
    heap_up(loop, loop->n_timers++, timer);
    return timer;
}

void
ch_loop_cancel(struct ch_loop *loop, struct ch_timer *timer)
{
    struct ch_timer *last;
    size_t at;

    if (timer == NULL) {
        return;
    }
    at = timer->place;
    assert(at < loop->n_timers && loop->heap[at] == timer);
    last = loop->heap[--loop->n_timers];
    if (last != timer) {
        if (at > 0 && timer_before(last, loop->heap[(at - 1) / 2])) {
            heap_up(loop, at, last);
        } else {
            heap_down(loop, at, last);
        }
    }
    free(timer);
}

/* Fires what was due when the turn began; a timer made meanwhile waits for
 * the next turn, so callbacks cannot starve the descriptors. */
static void
timers_fire(struct ch_loop *loop)
{
    int64_t now = ch_now_us();
    uint64_t newest = loop->serial;

    while (!loop->stopped && loop->n_timers > 0 &&
           loop->heap[0]->due_us <= now && loop->heap[0]->serial < newest) {
        struct ch_timer *timer = loop->heap[0];
        ch_loop_fn *fn = timer->fn;
        void *arg = timer->arg;

        ch_loop_cancel(loop, timer);
        fn(arg);
    }
}

static int
timers_wait_ms(const struct ch_loop *loop)
{
    int64_t left;

    if (loop->n_deferred > 0) {
        return 0;
    }
    if (loop->n_timers == 0) {
        return -1;
    }
    left = (loop->heap[0]->due_us - ch_now_us() + 999) / 1000;
    return left < 0 ? 0 : left > INT_MAX ? INT_MAX : (int)left;
}

/* --- deferred calls and the turn --- */

int
ch_loop_defer(struct ch_loop *loop, ch_loop_fn *fn, void *arg)
{
    struct deferred *grown;
    size_t cap;

    if (loop->n_deferred == loop->cap_deferred) {
        cap = loop->cap_deferred == 0 ? 16 : loop->cap_deferred * 2;
        grown = realloc(loop->deferred, cap * sizeof(*grown));
        if (grown == NULL) {
            return CH_ERR_NOMEM;
        }
        loop->deferred = grown;
        loop->cap_deferred = cap;
    }
    loop->deferred[loop->n_deferred].fn = fn;
    loop->deferred[loop->n_deferred++].arg = arg;
    return CH_OK;
}

/* A deferred call may defer again: those run in this turn too. */
static void
deferred_run(struct ch_loop *loop)
{
    for (size_t i = 0; i < loop->n_deferred; i++) {
        struct deferred d = loop->deferred[i];

        d.fn(d.arg);
    }
    loop->n_deferred = 0;
}

int
ch_loop_run(struct ch_loop *loop)
{
    struct epoll_event events[LOOP_EVENTS];

    loop->stopped = 0;
    while (!loop->stopped) {
        int n = epoll_wait(loop->epoll_fd, events, LOOP_EVENTS,
                           timers_wait_ms(loop));

        if (n < 0 && errno != EINTR) {
            return CH_ERR_SYS;
        }
        for (int i = 0; i < n; i++) {
            dispatch(loop, &events[i]);
        }
        timers_fire(loop);
        deferred_run(loop);
    }
    return CH_OK;
}

void
ch_loop_stop(struct ch_loop *loop)
{
    loop->stopped = 1;
}
