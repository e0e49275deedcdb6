/* test_buf.c - the byte queue: order, limits, growth, giving memory back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "../../csrc/buf.h"

static void
test_bytes_come_out_as_they_went_in(void **state)
{
    struct ch_buf buf;
    uint8_t in = 0, out = 0;

    (void)state;
    srand(7);
    ch_buf_init(&buf, 1 << 20);
    for (int turn = 0; turn < 20000; turn++) {
        size_t n = (size_t)(rand() % 300);

        for (size_t i = 0; i < n && turn < 10000; i++) {
            assert_int_equal(ch_buf_put_u8(&buf, in++), CH_OK);
        }
        n = (size_t)(rand() % 300);
        n = n < ch_buf_len(&buf) ? n : ch_buf_len(&buf);
        for (size_t i = 0; i < n; i++) {
            assert_int_equal(ch_buf_data(&buf)[i], out++);
        }
        ch_buf_consume(&buf, n);
    }
    ch_buf_consume(&buf, ch_buf_len(&buf));
    assert_int_equal(ch_buf_len(&buf), 0);
    ch_buf_fini(&buf);
}

static void
test_limit(void **state)
{
    struct ch_buf buf;
    uint8_t *place = NULL;

    (void)state;
    ch_buf_init(&buf, 10);
    assert_int_equal(ch_buf_put(&buf, "0123456789", 10), CH_OK);
    assert_int_equal(ch_buf_put(&buf, "x", 1), CH_ERR_LIMIT);
    assert_int_equal(ch_buf_room(&buf, SIZE_MAX, &place), CH_ERR_LIMIT);
    assert_int_equal(ch_buf_len(&buf), 10);
    ch_buf_consume(&buf, 3);
    assert_int_equal(ch_buf_put(&buf, "abcd", 4), CH_ERR_LIMIT);
    assert_int_equal(ch_buf_put(&buf, "abc", 3), CH_OK);
    assert_memory_equal(ch_buf_data(&buf), "3456789abc", 10);
    ch_buf_fini(&buf);
    /* The limit survives. */
    assert_int_equal(ch_buf_put(&buf, "0123456789x", 11), CH_ERR_LIMIT);
    assert_null(ch_buf_data(&buf));
}

static void
test_numbers_are_big_endian(void **state)
{
    struct ch_buf buf;

    (void)state;
    ch_buf_init(&buf, 100);
    assert_int_equal(ch_buf_put_u16(&buf, 0x4348), CH_OK);
    assert_int_equal(ch_buf_put_u32(&buf, 0x01020304), CH_OK);
    assert_memory_equal(ch_buf_data(&buf), "CH\1\2\3\4", 6);
    ch_buf_fini(&buf);
}

static void
test_a_large_block_is_given_back_when_empty(void **state)
{
    struct ch_buf buf;
    uint8_t *place = NULL;

    (void)state;
    ch_buf_init(&buf, 1 << 20);
    assert_int_equal(ch_buf_room(&buf, 100000, &place), CH_OK);
    ch_buf_added(&buf, 100000);
    ch_buf_consume(&buf, 99999);
    assert_true(buf.cap >= 100000);
    ch_buf_consume(&buf, 1);
    assert_int_equal(buf.cap, 0);
    assert_null(buf.data);
}

static void
test_a_queue_in_use_does_not_grow_for_ever(void **state)
{
    struct ch_buf buf;
    char data[1000] = {0};

    (void)state;
    ch_buf_init(&buf, 1 << 20);
    assert_int_equal(ch_buf_put(&buf, data, 10), CH_OK);
    for (int i = 0; i < 10000; i++) {
        assert_int_equal(ch_buf_put(&buf, data, sizeof(data)), CH_OK);
        ch_buf_consume(&buf, sizeof(data));
    }
    assert_true(buf.cap <= 4096);
    ch_buf_fini(&buf);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bytes_come_out_as_they_went_in),
        cmocka_unit_test(test_limit),
        cmocka_unit_test(test_numbers_are_big_endian),
        cmocka_unit_test(test_a_large_block_is_given_back_when_empty),
        cmocka_unit_test(test_a_queue_in_use_does_not_grow_for_ever),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
