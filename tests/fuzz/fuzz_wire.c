/*
 * fuzz_wire.c - libFuzzer over everything that decodes what a peer sent:
 * frames, vecs, maps, compressed bodies. Beside memory errors it checks that
 * what was accepted encodes to the same bytes again.
 */
#include <stdlib.h>
#include <string.h>

#include "../../csrc/wire.h"
#include "../../csrc/zip.h"

#define RAW_MAX (1u << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
require(int holds)
{
    if (!holds) {
        abort();
    }
}

static void
fuzz_vec(const uint8_t *body, size_t len)
{
    struct ch_buf again;
    struct ch_vec vec;
    const uint8_t *item = NULL;
    size_t item_len = 0;
    int r = ch_vec_init(&vec, body, len);

    ch_buf_init(&again, len + 16);
    if (r == CH_OK) {
        require(ch_vec_put_count(&again, vec.left) == CH_OK);
    }
    while (r == CH_OK) {
        r = ch_vec_next(&vec, &item, &item_len);
        if (r == CH_OK) {
            require(ch_vec_put(&again, item, item_len) == CH_OK);
        }
    }
    require((r == CH_ERR_CLOSED) == (ch_vec_check(body, len, 0) == CH_OK));
    if (r == CH_ERR_CLOSED) {
        require(ch_buf_len(&again) == len &&
                memcmp(ch_buf_data(&again), body, len) == 0);
    }
    if (ch_vec_check(body, len, 1) == CH_OK) {
        (void)!ch_map_get(body, len, "key", 0, &item, &item_len);
        (void)!ch_map_get(body, len, "argv", 2, &item, &item_len);
    }
    ch_buf_fini(&again);
}

static void
fuzz_zip(const uint8_t *body, size_t len)
{
    uint8_t start[64];
    uint8_t *raw = NULL;
    size_t raw_len = 0, got = 0;

    require(ch_zip_peek(body, len, start, sizeof(start), &got) != CH_OK ||
            got <= sizeof(start));
    if (ch_zip_raw_len(body, len, RAW_MAX, &raw_len) != CH_OK) {
        return;
    }
    raw = malloc(raw_len + 1);
    if (ch_zip_inflate(body, len, raw, raw_len) == CH_OK) {
        fuzz_vec(raw, raw_len);
    }
    free(raw);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct ch_frame frame;
    struct ch_buf again;
    size_t used = 0;

    fuzz_vec(data, size);
    fuzz_zip(data, size);
    ch_buf_init(&again, size + 1);
    while (ch_wire_get(data, size, &frame, &used) == CH_OK) {
        require(used <= size && frame.len == used - CH_WIRE_HEADER &&
                frame.len <= ch_wire_body_max(frame.type));
        require(ch_wire_put(&again, &frame) == CH_OK);
        require(ch_buf_len(&again) == used &&
                memcmp(ch_buf_data(&again), data, used) == 0);
        ch_buf_consume(&again, used);
        fuzz_vec(frame.body, frame.len);
        if (frame.flags & CH_FLAG_ZLIB) {
            fuzz_zip(frame.body, frame.len);
        }
        data += used;
        size -= used;
    }
    ch_buf_fini(&again);
    return 0;
}
