/* test_loop.c - descriptors, timers, deferred calls, and all of them being
 * changed from within callbacks. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "../../csrc/loop.h"

static struct ch_loop *loop;
static char trace[4096];
static size_t traced;

static int
setup(void **state)
{
    (void)state;
    loop = ch_loop_new();
    traced = 0;
    memset(trace, 0, sizeof(trace));
    return loop == NULL;
}

static int
teardown(void **state)
{
    (void)state;
    ch_loop_free(loop);
    return 0;
}

static void
note(void *arg)
{
    trace[traced++] = *(const char *)arg;
}

static void
stop(void *arg)
{
    (void)arg;
    ch_loop_stop(loop);
}

static void
run(void)
{
    /* Nothing a test waits for may take this long. */
    struct ch_timer *limit = ch_loop_timer(loop, 10000, note, "!");

    assert_int_equal(ch_loop_run(loop), CH_OK);
    ch_loop_cancel(loop, limit);
    assert_null(strchr(trace, '!'));
}

static void
test_timers_fire_in_order(void **state)
{
    (void)state;
    ch_loop_timer(loop, 6, note, "c");
    ch_loop_timer(loop, 3, note, "a");
    ch_loop_timer(loop, 3, note, "b");
    ch_loop_timer(loop, -5, note, "0");
    ch_loop_timer(loop, INT64_MAX, note, "x");
    ch_loop_timer(loop, 9, stop, NULL);
    run();
    assert_string_equal(trace, "0abc");
}

static void
test_cancelled_timers_do_not_fire(void **state)
{
    struct ch_timer *timers[200];
    int left = 0;

    (void)state;
    srand(11);
    for (int i = 0; i < 200; i++) {
        timers[i] = ch_loop_timer(loop, rand() % 5, note, "t");
    }
    for (int i = 0; i < 200; i++) {
        if (rand() % 2) {
            ch_loop_cancel(loop, timers[i]);
        } else {
            left++;
        }
    }
    ch_loop_cancel(loop, NULL);
    ch_loop_timer(loop, 10, stop, NULL);
    run();
    assert_int_equal(strlen(trace), left);
}

static struct ch_timer *victim;

static void
cancel_victim(void *arg)
{
    note(arg);
    ch_loop_cancel(loop, victim);
}

static void
test_a_timer_may_cancel_another(void **state)
{
    (void)state;
    ch_loop_timer(loop, 0, cancel_victim, "a");
    victim = ch_loop_timer(loop, 0, note, "v");
    ch_loop_timer(loop, 1, stop, NULL);
    run();
    assert_string_equal(trace, "a");
}

static void
again(void *arg)
{
    note(arg);
    if (traced < 5) {
        ch_loop_timer(loop, 0, again, arg);
    } else {
        ch_loop_stop(loop);
    }
}

static void
test_a_timer_may_start_another(void **state)
{
    (void)state;
    ch_loop_timer(loop, 0, again, "r");
    run();
    assert_string_equal(trace, "rrrrr");
}

static void
defer_more(void *arg)
{
    note(arg);
    assert_int_equal(ch_loop_defer(loop, note, "2"), CH_OK);
}

static void
test_deferred_calls_run_before_the_next_sleep(void **state)
{
    (void)state;
    assert_int_equal(ch_loop_defer(loop, defer_more, "1"), CH_OK);
    for (int i = 0; i < 40; i++) {
        assert_int_equal(ch_loop_defer(loop, note, "."), CH_OK);
    }
    ch_loop_timer(loop, 0, stop, NULL);
    run();
    assert_int_equal(traced, 42);
    assert_int_equal(trace[0], '1');
    assert_int_equal(trace[41], '2');
}

static int pairs[2][2];

static void
read_one(void *arg, int fd, unsigned events)
{
    char c;

    assert_true(events & CH_LOOP_READ);
    assert_int_equal(read(fd, &c, 1), 1);
    note(arg);
    if (c == 'q') {
        ch_loop_stop(loop);
    }
}

static void
write_some(void *arg, int fd, unsigned events)
{
    assert_true(events & CH_LOOP_WRITE);
    assert_int_equal(write(fd, arg, 1), 1);
    ch_loop_unwatch(loop, fd);
}

static void
pairs_open(void)
{
    for (int i = 0; i < 2; i++) {
        assert_int_equal(
            socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pairs[i]), 0);
    }
}

static void
pairs_close(void)
{
    for (int i = 0; i < 4; i++) {
        ch_loop_unwatch(loop, pairs[i / 2][i % 2]);
        close(pairs[i / 2][i % 2]);
    }
}

static void
test_descriptors(void **state)
{
    (void)state;
    pairs_open();
    assert_int_equal(
        ch_loop_watch(loop, pairs[0][0], CH_LOOP_READ, read_one, "r"), CH_OK);
    assert_int_equal(
        ch_loop_watch(loop, pairs[0][1], CH_LOOP_WRITE, write_some, "q"),
        CH_OK);
    run();
    assert_string_equal(trace, "r");
    /* Nothing watched: readable data is left alone. */
    assert_int_equal(ch_loop_watch(loop, pairs[0][0], 0, read_one, "r"),
                     CH_OK);
    assert_int_equal(write(pairs[0][1], "q", 1), 1);
    ch_loop_timer(loop, 2, stop, NULL);
    run();
    assert_string_equal(trace, "r");
    assert_int_equal(
        ch_loop_watch(loop, pairs[0][0], CH_LOOP_READ, read_one, "s"), CH_OK);
    run();
    assert_string_equal(trace, "rs");
    pairs_close();
    assert_int_equal(
        ch_loop_watch(loop, pairs[0][0], CH_LOOP_READ, read_one, "r"),
        CH_ERR_SYS);
    ch_loop_unwatch(loop, pairs[0][0]);
    ch_loop_unwatch(loop, -1);
    ch_loop_unwatch(loop, 100000);
}

/* Whoever comes first closes the other and reuses its number. */
static void
close_other(void *arg, int fd, unsigned events)
{
    int other = fd == pairs[0][0] ? pairs[1][0] : pairs[0][0];
    int reused;

    (void)events;
    note(arg);
    ch_loop_unwatch(loop, fd);
    ch_loop_unwatch(loop, other);
    close(other);
    reused = dup(fd); /* the lowest free number: other's */
    assert_int_equal(reused, other);
    assert_int_equal(
        ch_loop_watch(loop, reused, CH_LOOP_WRITE, write_some, "w"), CH_OK);
    ch_loop_timer(loop, 2, stop, NULL);
}

static void
test_events_of_a_closed_descriptor_are_dropped(void **state)
{
    (void)state;
    pairs_open();
    for (int i = 0; i < 2; i++) {
        assert_int_equal(write(pairs[i][1], "x", 1), 1);
        assert_int_equal(
            ch_loop_watch(loop, pairs[i][0], CH_LOOP_READ, close_other, "c"),
            CH_OK);
    }
    run();
    assert_string_equal(trace, "c");
    pairs_close();
}

static int hang_ups;

static void
hung_up(void *arg, int fd, unsigned events)
{
    (void)arg;
    assert_int_equal(events, CH_LOOP_READ | CH_LOOP_WRITE);
    hang_ups++;
    assert_int_equal(ch_loop_watch(loop, fd, 0, hung_up, NULL), CH_OK);
}

static void
test_an_unwatched_hang_up_does_not_spin(void **state)
{
    (void)state;
    pairs_open();
    assert_int_equal(
        ch_loop_watch(loop, pairs[0][0], CH_LOOP_READ, hung_up, NULL), CH_OK);
    close(pairs[0][1]);
    ch_loop_timer(loop, 5, stop, NULL);
    run();
    assert_int_equal(hang_ups, 1);
    pairs_close();
}

int
main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_timers_fire_in_order),
        TEST(test_cancelled_timers_do_not_fire),
        TEST(test_a_timer_may_cancel_another),
        TEST(test_a_timer_may_start_another),
        TEST(test_deferred_calls_run_before_the_next_sleep),
        TEST(test_descriptors),
        TEST(test_events_of_a_closed_descriptor_are_dropped),
        TEST(test_an_unwatched_hang_up_does_not_spin),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
