/* test_zip.c - compressed bodies: round trip, when it pays, damage, bombs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "../../csrc/zip.h"

#define SIZE 100000u

static uint8_t text[SIZE], noise[SIZE], back[SIZE + 1];

static int
setup(void **state)
{
    (void)state;
    srand(3);
    for (size_t i = 0; i < SIZE; i++) {
        text[i] = (uint8_t)("changed ok failed "[i % 18]);
        noise[i] = (uint8_t)rand();
    }
    return 0;
}

static void
test_round_trip(void **state)
{
    struct ch_buf out;
    size_t raw = 0, got = 0;

    (void)state;
    ch_buf_init(&out, 1 << 20);
    assert_int_equal(ch_zip_deflate(text, SIZE, &out), CH_OK);
    assert_true(ch_buf_len(&out) < SIZE / 10);
    assert_int_equal(
        ch_zip_raw_len(ch_buf_data(&out), ch_buf_len(&out), SIZE, &raw),
        CH_OK);
    assert_int_equal(raw, SIZE);
    assert_int_equal(
        ch_zip_raw_len(ch_buf_data(&out), ch_buf_len(&out), SIZE - 1, &raw),
        CH_ERR_PROTOCOL);
    assert_int_equal(
        ch_zip_inflate(ch_buf_data(&out), ch_buf_len(&out), back, SIZE),
        CH_OK);
    assert_memory_equal(back, text, SIZE);
    memset(back, 0, sizeof(back));
    assert_int_equal(
        ch_zip_peek(ch_buf_data(&out), ch_buf_len(&out), back, 100, &got),
        CH_OK);
    assert_int_equal(got, 100);
    assert_memory_equal(back, text, 100);
    assert_int_equal(back[100], 0);
    ch_buf_fini(&out);
}

static void
test_only_when_it_pays(void **state)
{
    struct ch_buf out;

    (void)state;
    ch_buf_init(&out, 1 << 20);
    assert_int_equal(ch_buf_put(&out, "before", 6), CH_OK);
    assert_int_equal(ch_zip_deflate(text, CH_ZIP_MIN, &out),
                     CH_ERR_UNSUPPORTED);
    assert_int_equal(ch_zip_deflate(noise, SIZE, &out), CH_ERR_UNSUPPORTED);
    assert_int_equal(ch_buf_len(&out), 6);
    assert_int_equal(ch_zip_deflate(text, CH_ZIP_MIN + 1, &out), CH_OK);
    assert_memory_equal(ch_buf_data(&out), "before", 6);
    ch_buf_fini(&out);
}

static void
test_a_wrong_length_is_refused(void **state)
{
    struct ch_buf out;

    (void)state;
    ch_buf_init(&out, 1 << 20);
    assert_int_equal(ch_zip_deflate(text, SIZE, &out), CH_OK);
    assert_int_equal(
        ch_zip_inflate(ch_buf_data(&out), ch_buf_len(&out), back, SIZE - 1),
        CH_ERR_PROTOCOL);
    assert_int_equal(
        ch_zip_inflate(ch_buf_data(&out), ch_buf_len(&out), back, SIZE + 1),
        CH_ERR_PROTOCOL);
    for (size_t n = 0; n < ch_buf_len(&out); n++) {
        assert_int_equal(ch_zip_inflate(ch_buf_data(&out), n, back, SIZE),
                         CH_ERR_PROTOCOL);
    }
    assert_int_equal(ch_buf_put(&out, "x", 1), CH_OK);
    assert_int_equal(
        ch_zip_inflate(ch_buf_data(&out), ch_buf_len(&out), back, SIZE),
        CH_ERR_PROTOCOL);
    ch_buf_fini(&out);
}

static void
test_damage_is_noticed(void **state)
{
    struct ch_buf out;
    uint8_t *damaged;
    size_t len, got = 0;

    (void)state;
    ch_buf_init(&out, 1 << 20);
    assert_int_equal(ch_zip_deflate(text, SIZE, &out), CH_OK);
    len = ch_buf_len(&out);
    damaged = malloc(len);
    for (size_t i = 4; i < len; i++) {
        memcpy(damaged, ch_buf_data(&out), len);
        damaged[i] ^= 0x55;
        /* zlib's checksum covers the content, not every bit of the form */
        if (ch_zip_inflate(damaged, len, back, SIZE) == CH_OK) {
            assert_memory_equal(back, text, SIZE);
        }
    }
    assert_int_equal(ch_zip_peek(noise, 1000, back, 100, &got),
                     CH_ERR_PROTOCOL);
    assert_int_equal(ch_zip_peek(noise, 3, back, 100, &got), CH_ERR_PROTOCOL);
    free(damaged);
    ch_buf_fini(&out);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_only_when_it_pays),
        cmocka_unit_test(test_a_wrong_length_is_refused),
        cmocka_unit_test(test_damage_is_noticed),
    };

    return cmocka_run_group_tests(tests, setup, NULL);
}
