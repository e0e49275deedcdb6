/*
 * loop.h - the pool's event loop: epoll, timers on CLOCK_MONOTONIC, and
 * functions to run before the next sleep (deferred frees). One thread.
 */
#ifndef CH_LOOP_H
#define CH_LOOP_H

#include "ch.h"

struct ch_loop;
struct ch_timer; /* owned by the loop until it fired or was cancelled */

#define CH_LOOP_READ 1u
#define CH_LOOP_WRITE 2u

/* events: CH_LOOP_* bits that are ready (errors and hang-ups show as both) */
typedef void ch_loop_fd_fn(void *arg, int fd, unsigned events);
typedef void ch_loop_fn(void *arg);

struct ch_loop *ch_loop_new(void);
void ch_loop_free(struct ch_loop *loop);
/* Watches fd (events may be 0) or changes what is watched; the fd stays the
 * caller's. */
CH_MUST_USE int ch_loop_watch(struct ch_loop *loop, int fd, unsigned events,
                              ch_loop_fd_fn *fn, void *arg);
/* Stops watching; pending events of this turn are dropped. Safe if fd is not
 * watched. Must be called before close(fd). */
void ch_loop_unwatch(struct ch_loop *loop, int fd);
/* Runs fn(arg) once after delay_ms. NULL when out of memory. */
struct ch_timer *ch_loop_timer(struct ch_loop *loop, int64_t delay_ms,
                               ch_loop_fn *fn, void *arg);
void ch_loop_cancel(struct ch_loop *loop, struct ch_timer *timer);
/* Runs fn(arg) before the next sleep (after the current callbacks). */
CH_MUST_USE int ch_loop_defer(struct ch_loop *loop, ch_loop_fn *fn, void *arg);
/* Runs until ch_loop_stop(). */
CH_MUST_USE int ch_loop_run(struct ch_loop *loop);
void ch_loop_stop(struct ch_loop *loop);
int64_t ch_now_us(void); /* CLOCK_MONOTONIC, microseconds */

#endif
