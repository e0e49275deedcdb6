/* test_wire.c - frames, vecs and maps: round trips and everything that must
 * be refused. Damaged bytes sit at the end of an exact allocation, so that
 * ASan sees any read beyond them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "../../csrc/wire.h"

static int
get(const void *data, size_t len, struct ch_frame *frame, size_t *used)
{
    uint8_t *exact = malloc(len > 0 ? len : 1);
    int r;

    memcpy(exact, data, len);
    r = ch_wire_get(exact, len, frame, used);
    free(exact);
    return r;
}

static void
test_round_trip(void **state)
{
    struct ch_frame in = {.type = CH_EXEC,
                          .flags = CH_FLAG_END | 2 << 2,
                          .agent = 0xFFFF,
                          .session = 0xDEADBEEF,
                          .request = 1,
                          .len = 5,
                          .body = (const uint8_t *)"hello"};
    struct ch_frame out;
    struct ch_buf buf;
    size_t used = 0;

    (void)state;
    ch_buf_init(&buf, 1000);
    assert_int_equal(ch_wire_put(&buf, &in), CH_OK);
    assert_int_equal(ch_buf_put(&buf, "next", 4), CH_OK);
    assert_memory_equal(ch_buf_data(&buf),
                        "CH\1\x09\x0a\0\xff\xff\xde\xad\xbe\xef"
                        "\0\0\0\1\0\0\0\5hello",
                        25);
    assert_int_equal(
        ch_wire_get(ch_buf_data(&buf), ch_buf_len(&buf), &out, &used), CH_OK);
    assert_int_equal(used, 25);
    assert_int_equal(out.type, CH_EXEC);
    assert_int_equal(CH_FLAG_STREAM(out.flags), 2);
    assert_int_equal(out.agent, 0xFFFF);
    assert_int_equal(out.session, 0xDEADBEEF);
    assert_int_equal(out.request, 1);
    assert_int_equal(out.len, 5);
    assert_memory_equal(out.body, "hello", 5);
    for (size_t n = 0; n < 25; n++) {
        assert_int_equal(get(ch_buf_data(&buf), n, &out, &used), CH_ERR_AGAIN);
    }
    ch_buf_fini(&buf);
}

static void
test_a_bad_header_is_refused_at_its_first_bad_byte(void **state)
{
    static const struct {
        size_t at;
        uint8_t value;
    } bad[] = {{0, 'X'}, {1, 'X'},  {2, 0}, {2, 2},  {3, 0},
               {3, 27},  {4, 0x20}, {5, 1}, {16, 1}, {17, 0xff}};
    uint8_t head[20];
    struct ch_frame frame = {.type = CH_DATA};
    size_t used = 0;

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        ch_wire_header(head, &frame);
        head[bad[i].at] = bad[i].value;
        assert_int_equal(get(head, bad[i].at, &frame, &used), CH_ERR_AGAIN);
        assert_int_equal(
            get(head, bad[i].at > 15 ? 20 : bad[i].at + 1, &frame, &used),
            CH_ERR_PROTOCOL);
        frame.type = CH_DATA;
    }
}

static void
test_body_limits(void **state)
{
    struct ch_frame frame = {.type = CH_DATA, .len = CH_WIRE_BODY_MAX + 1};
    struct ch_buf buf;
    uint8_t head[20];
    size_t used = 0;

    (void)state;
    ch_buf_init(&buf, SIZE_MAX / 4);
    for (uint8_t type = 0; type < 40; type++) {
        uint32_t most = type == CH_RUN || type == CH_PAYLOAD
                            ? CH_WIRE_BODY_MAX_LARGE
                        : type >= CH_HELLO && type <= CH_SOURCE ? CH_WIRE_BODY_MAX
                                                             : 0;

        assert_int_equal(ch_wire_body_max(type), most);
        frame.type = type;
        frame.len = most + 1;
        assert_int_equal(ch_wire_put(&buf, &frame), CH_ERR_LIMIT);
        ch_wire_header(head, &frame);
        assert_int_equal(get(head, 20, &frame, &used), CH_ERR_PROTOCOL);
        frame.type = type;
        frame.len = most;
        ch_wire_header(head, &frame);
        assert_int_equal(get(head, 20, &frame, &used),
                         most == 0 ? CH_ERR_PROTOCOL : CH_ERR_AGAIN);
    }
    assert_int_equal(ch_buf_len(&buf), 0);
    ch_buf_fini(&buf);
}

static int
check(const void *data, size_t len, int pairs)
{
    uint8_t *exact = malloc(len > 0 ? len : 1);
    int r;

    memcpy(exact, data, len);
    r = ch_vec_check(exact, len, pairs);
    free(exact);
    return r;
}

static void
test_vec(void **state)
{
    struct ch_buf buf;
    struct ch_vec vec;
    const uint8_t *item = NULL;
    size_t len = 0;

    (void)state;
    ch_buf_init(&buf, 1000);
    assert_int_equal(ch_vec_put_count(&buf, 4), CH_OK);
    assert_int_equal(ch_vec_put_str(&buf, "key"), CH_OK);
    assert_int_equal(ch_vec_put(&buf, "a\0b", 3), CH_OK);
    assert_int_equal(ch_vec_put_str(&buf, ""), CH_OK);
    assert_int_equal(ch_vec_put_num(&buf, INT64_MIN), CH_OK);
    assert_int_equal(ch_vec_init(&vec, ch_buf_data(&buf), ch_buf_len(&buf)),
                     CH_OK);
    assert_int_equal(ch_vec_next(&vec, &item, &len), CH_OK);
    assert_int_equal(len, 3);
    assert_memory_equal(item, "key", 3);
    assert_int_equal(ch_vec_next(&vec, &item, &len), CH_OK);
    assert_memory_equal(item, "a\0b", 3);
    assert_int_equal(ch_vec_next(&vec, &item, &len), CH_OK);
    assert_int_equal(len, 0);
    assert_int_equal(ch_vec_next(&vec, &item, &len), CH_OK);
    assert_int_equal(len, 20);
    assert_memory_equal(item, "-9223372036854775808", 20);
    assert_int_equal(ch_vec_next(&vec, &item, &len), CH_ERR_CLOSED);
    assert_int_equal(check(ch_buf_data(&buf), ch_buf_len(&buf), 1), CH_OK);
    for (size_t n = 0; n < ch_buf_len(&buf); n++) {
        assert_int_equal(check(ch_buf_data(&buf), n, 0), CH_ERR_PROTOCOL);
    }
    assert_int_equal(ch_buf_put(&buf, "x", 1), CH_OK);
    assert_int_equal(check(ch_buf_data(&buf), ch_buf_len(&buf), 0),
                     CH_ERR_PROTOCOL);
    assert_int_equal(ch_vec_put_count(&buf, 65536), CH_ERR_LIMIT);
    ch_buf_fini(&buf);
}

static void
test_vecs_that_lie(void **state)
{
    (void)state;
    assert_int_equal(check("\0\0", 2, 1), CH_OK);
    assert_int_equal(check("\0\1\0\0\0\0", 6, 1), CH_ERR_PROTOCOL);
    assert_int_equal(check("\0\1\0\0\0\0", 6, 0), CH_OK);
    assert_int_equal(check("\xff\xff\0\0\0\0", 6, 0), CH_ERR_PROTOCOL);
    assert_int_equal(check("\0\1\xff\xff\xff\xff", 6, 0), CH_ERR_PROTOCOL);
    assert_int_equal(check("\0\2\0\0\0\4\0\0\0\0", 10, 0), CH_ERR_PROTOCOL);
}

static void
test_map(void **state)
{
    struct ch_buf buf;
    const uint8_t *value = NULL;
    size_t len = 0;

    (void)state;
    ch_buf_init(&buf, 1000);
    assert_int_equal(ch_vec_put_count(&buf, 6), CH_OK);
    assert_int_equal(ch_vec_put_str(&buf, "argv"), CH_OK);
    assert_int_equal(ch_vec_put_str(&buf, "key"), CH_OK);
    assert_int_equal(ch_vec_put_str(&buf, "key"), CH_OK);
    assert_int_equal(ch_vec_put_str(&buf, "x"), CH_OK);
    assert_int_equal(ch_vec_put_str(&buf, "argv"), CH_OK);
    assert_int_equal(ch_vec_put_str(&buf, "two"), CH_OK);
#define GET(key, nth)                                                         \
    ch_map_get(ch_buf_data(&buf), ch_buf_len(&buf), key, nth, &value, &len)
    assert_int_equal(GET("key", 0), CH_OK);
    assert_memory_equal(value, "x", 1);
    assert_int_equal(GET("argv", 0), CH_OK);
    assert_memory_equal(value, "key", 3);
    assert_int_equal(GET("argv", 1), CH_OK);
    assert_memory_equal(value, "two", 3);
    assert_int_equal(GET("argv", 2), CH_ERR_CLOSED);
    assert_int_equal(GET("x", 0), CH_ERR_CLOSED);
    assert_int_equal(GET("ke", 0), CH_ERR_CLOSED);
    ch_buf_fini(&buf);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_a_bad_header_is_refused_at_its_first_bad_byte),
        cmocka_unit_test(test_body_limits),
        cmocka_unit_test(test_vec),
        cmocka_unit_test(test_vecs_that_lie),
        cmocka_unit_test(test_map),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
