/* test_outq.c - the queue to an agent: order, shared bodies, dropping. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "../../csrc/outq.h"

static void
put(struct ch_outq *q, uint32_t request, const char *body, int begins)
{
    struct ch_frame frame = {.type = CH_EXEC,
                             .request = request,
                             .body = (const uint8_t *)body,
                             .len = (uint32_t)strlen(body)};

    assert_int_equal(ch_outq_put(q, &frame, NULL, begins), CH_OK);
}

/* Takes all bytes out, `step` at a time, into out; notes each begin. */
static size_t
drain(struct ch_outq *q, size_t step, uint8_t *out, uint32_t *begun,
      size_t *n_begun)
{
    const uint8_t *data = NULL;
    uint32_t begins = 0;
    size_t total = 0, n;

    while ((n = ch_outq_peek(q, &data, &begins)) > 0) {
        n = n < step ? n : step;
        memcpy(out + total, data, n);
        total += n;
        if (begins != 0) {
            begun[(*n_begun)++] = begins;
        }
        ch_outq_consume(q, n);
    }
    return total;
}

static void
test_bytes_and_begins_in_order(void **state)
{
    for (size_t step = 1; step < 60; step += 7) {
        uint8_t out[200];
        uint32_t begun[8];
        size_t n_begun = 0, used = 0;
        struct ch_outq q;
        struct ch_frame frame;
        struct ch_blob *blob = ch_blob_new((const uint8_t *)"shared", 6);
        struct ch_frame payload = {.type = CH_PAYLOAD};

        (void)state;
        ch_outq_init(&q);
        assert_int_equal(ch_outq_put_raw(&q, (const uint8_t *)"in", 2), CH_OK);
        assert_int_equal(ch_outq_put(&q, &payload, blob, 0), CH_OK);
        assert_int_equal(blob->refs, 2);
        put(&q, 5, "five", 1);
        put(&q, 6, "", 1);
        put(&q, 5, "more", 0);
        assert_int_equal(q.bytes, 2 + 26 + 24 + 20 + 24);
        assert_int_equal(drain(&q, step, out, begun, &n_begun), 96);
        assert_int_equal(q.bytes, 0);
        assert_int_equal(blob->refs, 1);
        assert_int_equal(n_begun, 2);
        assert_int_equal(begun[0], 5);
        assert_int_equal(begun[1], 6);
        assert_memory_equal(out, "in", 2);
        assert_int_equal(ch_wire_get(out + 2, 94, &frame, &used), CH_OK);
        assert_int_equal(frame.type, CH_PAYLOAD);
        assert_memory_equal(frame.body, "shared", 6);
        assert_int_equal(ch_wire_get(out + 2 + used, 94 - used, &frame, &used),
                         CH_OK);
        assert_int_equal(frame.request, 5);
        ch_blob_release(blob);
        ch_outq_fini(&q);
    }
}

static void
test_drop_and_splice(void **state)
{
    uint8_t out[400];
    uint32_t begun[8];
    size_t n_begun = 0;
    struct ch_outq q, held;

    (void)state;
    ch_outq_init(&q);
    ch_outq_init(&held);
    put(&held, 1, "a", 1);
    put(&held, 2, "b", 1);
    put(&held, 1, "c", 0);
    put(&held, 0, "d", 0);
    ch_outq_drop(&held, 1);
    ch_outq_drop(&held, 0); /* frames of no request stay */
    assert_int_equal(held.bytes, 42);
    ch_outq_splice(&q, &held);
    ch_outq_splice(&q, &held);
    assert_int_equal(held.bytes, 0);
    put(&q, 3, "e", 1);
    ch_outq_drop(&q, 3);
    put(&q, 4, "f", 1); /* after the last was dropped */
    assert_int_equal(drain(&q, 100, out, begun, &n_begun), 63);
    assert_int_equal(n_begun, 2);
    assert_int_equal(begun[0], 2);
    assert_int_equal(begun[1], 4);
    put(&q, 7, "left", 1);
    put(&held, 8, "left", 1);
    ch_outq_fini(&q);
    ch_outq_fini(&held);
}

static void
test_a_body_written_in_place(void **state)
{
    struct ch_outq q;
    struct ch_frame frame = {.type = CH_DATA, .request = 7, .len = 3};
    const uint8_t *data = NULL;
    uint32_t begins = 1;
    uint8_t *body = NULL;
    struct ch_outnode *node = ch_outnode_new(100, &body);

    (void)state;
    ch_outq_init(&q);
    memcpy(body, "abc", 3);
    ch_outq_append(&q, node, &frame); /* less than there was room for */
    assert_int_equal(q.bytes, 23);
    assert_int_equal(ch_outq_peek(&q, &data, &begins), 23);
    assert_int_equal(begins, 0);
    assert_int_equal(data[3], CH_DATA);
    assert_memory_equal(data + 16, "\0\0\0\3abc", 7);
    ch_outq_drop(&q, 7);
    assert_int_equal(q.bytes, 0);
    ch_outnode_free(ch_outnode_new(0, &body));
    ch_outnode_free(NULL);
    ch_outq_fini(&q);
}

static void
test_limits(void **state)
{
    struct ch_outq q;
    struct ch_frame frame = {.type = CH_EXEC, .len = CH_WIRE_BODY_MAX + 1};

    (void)state;
    ch_outq_init(&q);
    assert_int_equal(ch_outq_put(&q, &frame, NULL, 0), CH_ERR_LIMIT);
    assert_int_equal(q.bytes, 0);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bytes_and_begins_in_order),
        cmocka_unit_test(test_drop_and_splice),
        cmocka_unit_test(test_a_body_written_in_place),
        cmocka_unit_test(test_limits),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
