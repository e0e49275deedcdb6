/*
 * sched.c - what may run next: pure data, no file descriptors, no clock.
 *
 * WHY. The executor asks four questions thousands of times a second: is a
 * worker slot free, which fiber is ready, may this task start under its
 * throttle, what is due. Each answer costs O(1) or O(log n) here, whatever
 * the number of hosts.
 *
 * PARTS. slots: a min-heap of free slot numbers, so that worker numbers in
 * the log stay low and dense, as users of a worker pool expect. ready: a ring
 * of ids. throttles: an open-addressing table key -> holders and a line of
 * waiters (a linked list in one array). timers: a binary heap of indices into
 * a table; a handle is the index, so cancelling is O(log n).
 *
 * WHAT HOLDS. A slot is either in the heap or taken (taken[slot]). A timer's
 * pos is its place in the heap, or NOWHERE. A throttle with waiters has
 * exactly limit holders: a leaving holder hands its place to the first
 * waiter. A throttle without holders keeps its table entry (there are as many
 * as throttled tasks in the play).
 *
 * OWNERSHIP. One struct ch_sched owns all arrays. Not thread-safe; the
 * caller is one thread. Nothing blocks.
 */
#include "sched.h"

#include <stdlib.h>
#include <string.h>

#define NOWHERE UINT32_MAX

struct timer {
    int64_t when_us;
    uint64_t id;
    uint32_t pos;  /* in heap, or NOWHERE */
    uint32_t next; /* next unused table entry, while unused */
};

struct waiter {
    uint64_t id;
    uint32_t next; /* next in the same line or in the unused list */
};

struct throttle {
    uint64_t key;
    uint32_t holders;
    uint32_t first, last; /* waiters, NOWHERE if none */
    uint8_t used;
};

struct ch_sched {
    unsigned nslots;
    uint8_t *taken;      /* [nslots] */
    uint32_t *free_heap; /* [nslots], nfree in use */
    uint32_t nfree;

    uint64_t *ring; /* capacity ring_mask + 1 */
    size_t ring_mask, ring_head, ring_count;

    struct throttle *table; /* capacity table_mask + 1 */
    size_t table_mask, table_used;
    struct waiter *waiters;
    uint32_t nwaiters, unused_waiter;

    struct timer *timers;
    uint32_t ntimers, unused_timer;
    uint32_t *heap; /* indices into timers; capacity ntimers */
    uint32_t heap_len;
};

struct ch_sched *
ch_sched_new(unsigned slots)
{
    struct ch_sched *sched = calloc(1, sizeof(*sched));

    if (sched == NULL || slots == 0) {
        free(sched);
        return NULL;
    }
    sched->nslots = slots;
    sched->taken = calloc(slots, 1);
    sched->free_heap = calloc(slots, sizeof(uint32_t));
    sched->ring = calloc(64, sizeof(uint64_t));
    sched->table = calloc(16, sizeof(struct throttle));
    if (sched->taken == NULL || sched->free_heap == NULL ||
        sched->ring == NULL || sched->table == NULL) {
        ch_sched_free(sched);
        return NULL;
    }
    for (uint32_t i = 0; i < slots; i++) {
        sched->free_heap[i] = i; /* ascending: already a heap */
    }
    sched->nfree = slots;
    sched->ring_mask = 63;
    sched->table_mask = 15;
    sched->unused_waiter = NOWHERE;
    sched->unused_timer = NOWHERE;
    return sched;
}

void
ch_sched_free(struct ch_sched *sched)
{
    if (sched == NULL) {
        return;
    }
    free(sched->taken);
    free(sched->free_heap);
    free(sched->ring);
    free(sched->table);
    free(sched->waiters);
    free(sched->timers);
    free(sched->heap);
    free(sched);
}

/* --- slots --- */

int
ch_sched_slot_acquire(struct ch_sched *sched)
{
    uint32_t *heap = sched->free_heap;
    uint32_t slot, moved, at = 0;

    if (sched->nfree == 0) {
        return -1;
    }
    slot = heap[0];
    moved = heap[--sched->nfree];
    for (;;) {
        uint32_t child = 2 * at + 1;

        if (child >= sched->nfree) {
            break;
        }
        if (child + 1 < sched->nfree && heap[child + 1] < heap[child]) {
            child++;
        }
        if (heap[child] >= moved) {
            break;
        }
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = moved;
    sched->taken[slot] = 1;
    return (int)slot;
}

int
ch_sched_slot_release(struct ch_sched *sched, unsigned slot)
{
    uint32_t *heap = sched->free_heap;
    uint32_t at;

    if (slot >= sched->nslots || !sched->taken[slot]) {
        return CH_ERR_STATE;
    }
    sched->taken[slot] = 0;
    at = sched->nfree++;
    while (at > 0 && heap[(at - 1) / 2] > slot) {
        heap[at] = heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    heap[at] = slot;
    return CH_OK;
}

unsigned
ch_sched_slots_free(const struct ch_sched *sched)
{
    return sched->nfree;
}

/* --- ready queue --- */

static int
ring_grow(struct ch_sched *sched)
{
    size_t cap = sched->ring_mask + 1;
    uint64_t *bigger = calloc(2 * cap, sizeof(*bigger));

    if (bigger == NULL) {
        return CH_ERR_NOMEM;
    }
    for (size_t i = 0; i < sched->ring_count; i++) {
        bigger[i] = sched->ring[(sched->ring_head + i) & sched->ring_mask];
    }
    free(sched->ring);
    sched->ring = bigger;
    sched->ring_head = 0;
    sched->ring_mask = 2 * cap - 1;
    return CH_OK;
}

int
ch_sched_ready_put(struct ch_sched *sched, uint64_t id)
{
    if (sched->ring_count > sched->ring_mask) {
        int r = ring_grow(sched);

        if (r != CH_OK) {
            return r;
        }
    }
    sched->ring[(sched->ring_head + sched->ring_count) & sched->ring_mask] =
        id;
    sched->ring_count++;
    return CH_OK;
}

int
ch_sched_ready_take(struct ch_sched *sched, uint64_t *id)
{
    if (sched->ring_count == 0) {
        return CH_ERR_AGAIN;
    }
    *id = sched->ring[sched->ring_head];
    sched->ring_head = (sched->ring_head + 1) & sched->ring_mask;
    sched->ring_count--;
    return CH_OK;
}

size_t
ch_sched_ready_count(const struct ch_sched *sched)
{
    return sched->ring_count;
}

/* --- throttles --- */

static struct throttle *
table_find(struct throttle *table, size_t mask, uint64_t key)
{
    size_t i = (size_t)((key * 0x9E3779B97F4A7C15ull) >> 32) & mask;

    while (table[i].used && table[i].key != key) {
        i = (i + 1) & mask;
    }
    return &table[i];
}

static int
table_grow(struct ch_sched *sched)
{
    size_t cap = 2 * (sched->table_mask + 1);
    struct throttle *bigger = calloc(cap, sizeof(*bigger));

    if (bigger == NULL) {
        return CH_ERR_NOMEM;
    }
    for (size_t i = 0; i <= sched->table_mask; i++) {
        if (sched->table[i].used) {
            *table_find(bigger, cap - 1, sched->table[i].key) =
                sched->table[i];
        }
    }
    free(sched->table);
    sched->table = bigger;
    sched->table_mask = cap - 1;
    return CH_OK;
}

/* Puts id at the end of throttle's line. */
static int
line_join(struct ch_sched *sched, struct throttle *throttle, uint64_t id)
{
    uint32_t at = sched->unused_waiter;

    if (at == NOWHERE) {
        struct waiter *more =
            realloc(sched->waiters, (sched->nwaiters + 1) * sizeof(*more));

        if (more == NULL) {
            return CH_ERR_NOMEM;
        }
        sched->waiters = more;
        at = sched->nwaiters++;
    } else {
        sched->unused_waiter = sched->waiters[at].next;
    }
    sched->waiters[at].id = id;
    sched->waiters[at].next = NOWHERE;
    if (throttle->first == NOWHERE) {
        throttle->first = at;
    } else {
        sched->waiters[throttle->last].next = at;
    }
    throttle->last = at;
    return CH_ERR_AGAIN;
}

int
ch_sched_throttle_enter(struct ch_sched *sched, uint64_t key, unsigned limit,
                        uint64_t id)
{
    struct throttle *throttle;
    int r;

    if (sched->table_used * 2 > sched->table_mask) {
        r = table_grow(sched);
        if (r != CH_OK) {
            return r;
        }
    }
    throttle = table_find(sched->table, sched->table_mask, key);
    if (!throttle->used) {
        *throttle = (struct throttle){key, 0, NOWHERE, NOWHERE, 1};
        sched->table_used++;
    }
    if (throttle->holders < limit && throttle->first == NOWHERE) {
        throttle->holders++;
        return CH_OK;
    }
    return line_join(sched, throttle, id);
}

int
ch_sched_throttle_leave(struct ch_sched *sched, uint64_t key, uint64_t *next)
{
    struct throttle *throttle =
        table_find(sched->table, sched->table_mask, key);
    uint32_t at;

    if (!throttle->used || throttle->holders == 0) {
        return CH_ERR_STATE;
    }
    at = throttle->first;
    if (at == NOWHERE) {
        throttle->holders--;
        return CH_ERR_AGAIN;
    }
    *next = sched->waiters[at].id;
    throttle->first = sched->waiters[at].next;
    sched->waiters[at].next = sched->unused_waiter;
    sched->unused_waiter = at;
    return CH_OK;
}

/* --- timers --- */

static int
timer_before(const struct ch_sched *sched, uint32_t a, uint32_t b)
{
    return sched->timers[a].when_us < sched->timers[b].when_us;
}

static void
heap_set(struct ch_sched *sched, uint32_t pos, uint32_t index)
{
    sched->heap[pos] = index;
    sched->timers[index].pos = pos;
}

/* Moves index from pos to where it belongs, up or down. */
static void
heap_sift(struct ch_sched *sched, uint32_t pos, uint32_t index)
{
    while (pos > 0 && timer_before(sched, index, sched->heap[(pos - 1) / 2])) {
        heap_set(sched, pos, sched->heap[(pos - 1) / 2]);
        pos = (pos - 1) / 2;
    }
    for (;;) {
        uint32_t child = 2 * pos + 1;

        if (child >= sched->heap_len) {
            break;
        }
        if (child + 1 < sched->heap_len &&
            timer_before(sched, sched->heap[child + 1], sched->heap[child])) {
            child++;
        }
        if (!timer_before(sched, sched->heap[child], index)) {
            break;
        }
        heap_set(sched, pos, sched->heap[child]);
        pos = child;
    }
    heap_set(sched, pos, index);
}

static void
heap_remove(struct ch_sched *sched, uint32_t pos)
{
    uint32_t index = sched->heap[pos];
    uint32_t last = sched->heap[--sched->heap_len];

    if (last != index) {
        heap_sift(sched, pos, last);
    }
    sched->timers[index].pos = NOWHERE;
    sched->timers[index].next = sched->unused_timer;
    sched->unused_timer = index;
}

/* Doubles the timer table and its heap; new entries join the unused list. */
static int
timers_grow(struct ch_sched *sched)
{
    uint32_t count = sched->ntimers == 0 ? 64 : 2 * sched->ntimers;
    struct timer *timers = realloc(sched->timers, count * sizeof(*timers));
    uint32_t *heap;

    if (timers == NULL) {
        return CH_ERR_NOMEM;
    }
    sched->timers = timers;
    heap = realloc(sched->heap, count * sizeof(*heap));
    if (heap == NULL) {
        return CH_ERR_NOMEM;
    }
    sched->heap = heap;
    for (uint32_t i = count; i > sched->ntimers; i--) {
        timers[i - 1].pos = NOWHERE;
        timers[i - 1].next = sched->unused_timer;
        sched->unused_timer = i - 1;
    }
    sched->ntimers = count;
    return CH_OK;
}

int
ch_sched_timer_add(struct ch_sched *sched, int64_t when_us, uint64_t id,
                   uint32_t *handle)
{
    uint32_t at;

    if (sched->unused_timer == NOWHERE) {
        int r = timers_grow(sched);

        if (r != CH_OK) {
            return r;
        }
    }
    at = sched->unused_timer;
    sched->unused_timer = sched->timers[at].next;
    sched->timers[at].when_us = when_us;
    sched->timers[at].id = id;
    heap_sift(sched, sched->heap_len++, at);
    *handle = at;
    return CH_OK;
}

int
ch_sched_timer_cancel(struct ch_sched *sched, uint32_t handle)
{
    if (handle >= sched->ntimers || sched->timers[handle].pos == NOWHERE) {
        return CH_ERR_STATE;
    }
    heap_remove(sched, sched->timers[handle].pos);
    return CH_OK;
}

int
ch_sched_timer_take(struct ch_sched *sched, int64_t now_us, uint64_t *id,
                    uint32_t *handle)
{
    if (sched->heap_len == 0 ||
        sched->timers[sched->heap[0]].when_us > now_us) {
        return CH_ERR_AGAIN;
    }
    *handle = sched->heap[0];
    *id = sched->timers[*handle].id;
    heap_remove(sched, 0);
    return CH_OK;
}

int64_t
ch_sched_timer_next(const struct ch_sched *sched)
{
    return sched->heap_len == 0 ? -1 : sched->timers[sched->heap[0]].when_us;
}
