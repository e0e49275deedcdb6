/* Tests of csrc/sched.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "../../csrc/sched.h"

static void
slots_are_lowest_first_and_counted(void **state)
{
    struct ch_sched *sched = ch_sched_new(3);

    (void)state;
    assert_non_null(sched);
    assert_int_equal(ch_sched_slot_acquire(sched), 0);
    assert_int_equal(ch_sched_slot_acquire(sched), 1);
    assert_int_equal(ch_sched_slot_acquire(sched), 2);
    assert_int_equal(ch_sched_slot_acquire(sched), -1);
    assert_int_equal(ch_sched_slot_release(sched, 2), CH_OK);
    assert_int_equal(ch_sched_slot_release(sched, 0), CH_OK);
    assert_int_equal(ch_sched_slot_release(sched, 0), CH_ERR_STATE);
    assert_int_equal(ch_sched_slot_release(sched, 99), CH_ERR_STATE);
    assert_int_equal(ch_sched_slots_free(sched), 2);
    assert_int_equal(ch_sched_slot_acquire(sched), 0);
    ch_sched_free(sched);
}

static void
slots_random_walk_keeps_the_heap(void **state)
{
    enum { N = 50 };
    struct ch_sched *sched = ch_sched_new(N);
    char taken[N] = {0};
    unsigned seed = 7;

    (void)state;
    for (int step = 0; step < 20000; step++) {
        unsigned pick = (seed = seed * 1103515245u + 12345u) >> 16;

        if (pick & 1) {
            int lowest = 0, got = ch_sched_slot_acquire(sched);

            while (lowest < N && taken[lowest]) {
                lowest++;
            }
            assert_int_equal(got, lowest < N ? lowest : -1);
            if (got >= 0) {
                taken[got] = 1;
            }
        } else {
            unsigned slot = (pick >> 1) % N;

            assert_int_equal(ch_sched_slot_release(sched, slot),
                             taken[slot] ? CH_OK : CH_ERR_STATE);
            taken[slot] = 0;
        }
    }
    ch_sched_free(sched);
}

static void
ready_is_first_in_first_out_and_grows(void **state)
{
    struct ch_sched *sched = ch_sched_new(1);
    uint64_t id = 0, expect = 0;

    (void)state;
    assert_int_equal(ch_sched_ready_take(sched, &id), CH_ERR_AGAIN);
    for (uint64_t i = 0; i < 40; i++) {
        assert_int_equal(ch_sched_ready_put(sched, i), CH_OK);
    }
    while (expect < 20) {
        assert_int_equal(ch_sched_ready_take(sched, &id), CH_OK);
        assert_int_equal(id, expect++);
    }
    for (uint64_t i = 40; i < 500; i++) {
        assert_int_equal(ch_sched_ready_put(sched, i), CH_OK);
    }
    assert_int_equal(ch_sched_ready_count(sched), 480);
    while (ch_sched_ready_take(sched, &id) == CH_OK) {
        assert_int_equal(id, expect++);
    }
    assert_int_equal(expect, 500);
    ch_sched_free(sched);
}

static void
throttle_hands_its_place_to_the_first_waiter(void **state)
{
    struct ch_sched *sched = ch_sched_new(1);
    uint64_t next = 0;

    (void)state;
    assert_int_equal(ch_sched_throttle_leave(sched, 9, &next), CH_ERR_STATE);
    assert_int_equal(ch_sched_throttle_enter(sched, 9, 2, 1), CH_OK);
    assert_int_equal(ch_sched_throttle_enter(sched, 9, 2, 2), CH_OK);
    assert_int_equal(ch_sched_throttle_enter(sched, 9, 2, 3), CH_ERR_AGAIN);
    assert_int_equal(ch_sched_throttle_enter(sched, 9, 2, 4), CH_ERR_AGAIN);
    assert_int_equal(ch_sched_throttle_enter(sched, 8, 1, 5), CH_OK);
    assert_int_equal(ch_sched_throttle_leave(sched, 9, &next), CH_OK);
    assert_int_equal(next, 3);
    /* Nobody overtakes those who wait, even with a larger limit. */
    assert_int_equal(ch_sched_throttle_enter(sched, 9, 5, 6), CH_ERR_AGAIN);
    assert_int_equal(ch_sched_throttle_leave(sched, 9, &next), CH_OK);
    assert_int_equal(next, 4);
    assert_int_equal(ch_sched_throttle_leave(sched, 9, &next), CH_OK);
    assert_int_equal(next, 6);
    assert_int_equal(ch_sched_throttle_leave(sched, 9, &next), CH_ERR_AGAIN);
    assert_int_equal(ch_sched_throttle_leave(sched, 9, &next), CH_ERR_AGAIN);
    assert_int_equal(ch_sched_throttle_leave(sched, 9, &next), CH_ERR_STATE);
    for (uint64_t key = 100; key < 200; key++) {
        assert_int_equal(ch_sched_throttle_enter(sched, key, 1, key), CH_OK);
    }
    for (uint64_t key = 100; key < 200; key++) {
        assert_int_equal(ch_sched_throttle_leave(sched, key, &next),
                         CH_ERR_AGAIN);
    }
    ch_sched_free(sched);
}

static void
timers_come_in_order_of_time(void **state)
{
    enum { N = 1000 };
    struct ch_sched *sched = ch_sched_new(1);
    uint32_t handles[N], handle;
    int64_t last = -1;
    uint64_t id;
    unsigned seed = 3, left = 0;

    (void)state;
    assert_int_equal(ch_sched_timer_next(sched), -1);
    for (uint64_t i = 0; i < N; i++) {
        int64_t when = (seed = seed * 1103515245u + 12345u) >> 8;

        assert_int_equal(ch_sched_timer_add(sched, when, (uint64_t)when,
                                            &handles[i]),
                         CH_OK);
    }
    for (uint64_t i = 0; i < N; i += 3) {
        assert_int_equal(ch_sched_timer_cancel(sched, handles[i]), CH_OK);
        assert_int_equal(ch_sched_timer_cancel(sched, handles[i]),
                         CH_ERR_STATE);
    }
    assert_int_equal(ch_sched_timer_take(sched, -5, &id, &handle),
                     CH_ERR_AGAIN);
    while (ch_sched_timer_take(sched, INT64_MAX, &id, &handle) == CH_OK) {
        assert_true((int64_t)id >= last);
        last = (int64_t)id;
        left++;
    }
    assert_int_equal(left, N - (N + 2) / 3);
    assert_int_equal(ch_sched_timer_cancel(sched, 1u << 30), CH_ERR_STATE);
    ch_sched_free(sched);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(slots_are_lowest_first_and_counted),
        cmocka_unit_test(slots_random_walk_keeps_the_heap),
        cmocka_unit_test(ready_is_first_in_first_out_and_grows),
        cmocka_unit_test(throttle_hands_its_place_to_the_first_waiter),
        cmocka_unit_test(timers_come_in_order_of_time),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
