/*
 * sched.h - what may run next: worker slots, the ready queue, throttles and
 * timers. Pure data: no file descriptors, no clock, no Python.
 *
 * Ids are chosen by the caller (the executor numbers its fibers); times are
 * microseconds on any clock the caller keeps to.
 */
#ifndef CH_SCHED_H
#define CH_SCHED_H

#include "ch.h"

struct ch_sched;

/* slots >= 1: how many tasks may run at once. NULL when out of memory. */
struct ch_sched *ch_sched_new(unsigned slots);
void ch_sched_free(struct ch_sched *sched);

/* The lowest free slot, or -1 if all are taken. */
int ch_sched_slot_acquire(struct ch_sched *sched);
/* CH_ERR_STATE if slot is not taken. */
CH_MUST_USE int ch_sched_slot_release(struct ch_sched *sched, unsigned slot);
unsigned ch_sched_slots_free(const struct ch_sched *sched);

/* First in, first out. */
CH_MUST_USE int ch_sched_ready_put(struct ch_sched *sched, uint64_t id);
/* CH_ERR_AGAIN if nothing is ready. */
CH_MUST_USE int ch_sched_ready_take(struct ch_sched *sched, uint64_t *id);
size_t ch_sched_ready_count(const struct ch_sched *sched);

/* At most limit holders of key at once. CH_OK: id holds it now; CH_ERR_AGAIN:
 * id waits in line for it. */
CH_MUST_USE int ch_sched_throttle_enter(struct ch_sched *sched, uint64_t key,
                                        unsigned limit, uint64_t id);
/* A holder leaves. CH_OK and *next: that waiter holds it now; CH_ERR_AGAIN:
 * nobody waits; CH_ERR_STATE: key has no holder. */
CH_MUST_USE int ch_sched_throttle_leave(struct ch_sched *sched, uint64_t key,
                                        uint64_t *next);

/* Sets a timer; *handle identifies it until it expired or was cancelled. */
CH_MUST_USE int ch_sched_timer_add(struct ch_sched *sched, int64_t when_us,
                                   uint64_t id, uint32_t *handle);
/* CH_ERR_STATE if handle is not set. */
CH_MUST_USE int ch_sched_timer_cancel(struct ch_sched *sched,
                                      uint32_t handle);
/* Takes the earliest timer that is due at now_us; CH_ERR_AGAIN if none is. */
CH_MUST_USE int ch_sched_timer_take(struct ch_sched *sched, int64_t now_us,
                                    uint64_t *id, uint32_t *handle);
/* When the earliest timer is due, or -1. */
int64_t ch_sched_timer_next(const struct ch_sched *sched);

#endif
