/* wire.c - frames, vecs and maps of docs/protocol.md. Pure functions over
 * bytes: every length is checked against what is really there before it is
 * used. */
#include "wire.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static uint16_t
get_u16(const uint8_t *at)
{
    return (uint16_t)((at[0] << 8) | at[1]);
}

static uint32_t
get_u32(const uint8_t *at)
{
    return ((uint32_t)at[0] << 24) | ((uint32_t)at[1] << 16) |
           ((uint32_t)at[2] << 8) | at[3];
}

static void
set_u32(uint8_t *at, uint32_t v)
{
    at[0] = (uint8_t)(v >> 24);
    at[1] = (uint8_t)(v >> 16);
    at[2] = (uint8_t)(v >> 8);
    at[3] = (uint8_t)v;
}

uint32_t
ch_wire_body_max(uint8_t type)
{
    if (type < CH_HELLO || type > CH_SOURCE) {
        return 0;
    }
    return type == CH_PAYLOAD || type == CH_RUN ? CH_WIRE_BODY_MAX_LARGE
                                                : CH_WIRE_BODY_MAX;
}

void
ch_wire_header(uint8_t out[CH_WIRE_HEADER], const struct ch_frame *frame)
{
    out[0] = (uint8_t)(CH_WIRE_MAGIC >> 8);
    out[1] = (uint8_t)(CH_WIRE_MAGIC & 0xff);
    out[2] = CH_WIRE_VERSION;
    out[3] = frame->type;
    out[4] = frame->flags;
    out[5] = 0;
    out[6] = (uint8_t)(frame->agent >> 8);
    out[7] = (uint8_t)frame->agent;
    set_u32(out + 8, frame->session);
    set_u32(out + 12, frame->request);
    set_u32(out + 16, frame->len);
}

int
ch_wire_put(struct ch_buf *out, const struct ch_frame *frame)
{
    uint8_t *place = NULL;
    int r;

    if (frame->len > ch_wire_body_max(frame->type)) {
        return CH_ERR_LIMIT;
    }
    r = ch_buf_room(out, CH_WIRE_HEADER + (size_t)frame->len, &place);
    if (r != CH_OK) {
        return r;
    }
    ch_wire_header(place, frame);
    if (frame->len > 0) {
        memcpy(place + CH_WIRE_HEADER, frame->body, frame->len);
    }
    ch_buf_added(out, CH_WIRE_HEADER + (size_t)frame->len);
    return CH_OK;
}

/* Judges as many header bytes as have arrived, so that noise is refused at
 * its first byte. */
static int
header_check(const uint8_t *data, size_t len)
{
    static const uint8_t first[3] = {CH_WIRE_MAGIC >> 8, CH_WIRE_MAGIC & 0xff,
                                     CH_WIRE_VERSION};

    if (len > 0 && memcmp(data, first, len < 3 ? len : 3) != 0) {
        return CH_ERR_PROTOCOL;
    }
    if (len > 3 && ch_wire_body_max(data[3]) == 0) {
        return CH_ERR_PROTOCOL;
    }
    if (len > 4 && (data[4] & ~CH_FLAG_ALL) != 0) {
        return CH_ERR_PROTOCOL;
    }
    if (len > 5 && data[5] != 0) {
        return CH_ERR_PROTOCOL;
    }
    if (len >= CH_WIRE_HEADER &&
        get_u32(data + 16) > ch_wire_body_max(data[3])) {
        return CH_ERR_PROTOCOL;
    }
    return CH_OK;
}

int
ch_wire_get(const uint8_t *data, size_t len, struct ch_frame *out,
            size_t *used)
{
    int r = header_check(data, len);

    if (r != CH_OK) {
        return r;
    }
    if (len < CH_WIRE_HEADER || len - CH_WIRE_HEADER < get_u32(data + 16)) {
        return CH_ERR_AGAIN;
    }
    out->type = data[3];
    out->flags = data[4];
    out->agent = get_u16(data + 6);
    out->session = get_u32(data + 8);
    out->request = get_u32(data + 12);
    out->len = get_u32(data + 16);
    out->body = data + CH_WIRE_HEADER;
    *used = CH_WIRE_HEADER + (size_t)out->len;
    return CH_OK;
}

int
ch_vec_init(struct ch_vec *vec, const uint8_t *body, size_t len)
{
    vec->at = vec->end = NULL;
    vec->left = 0;
    /* Each item has at least its length word. */
    if (len < 2 || (len - 2) / 4 < get_u16(body)) {
        return CH_ERR_PROTOCOL;
    }
    vec->left = get_u16(body);
    vec->at = body + 2;
    vec->end = body + len;
    return CH_OK;
}

int
ch_vec_next(struct ch_vec *vec, const uint8_t **item, size_t *len)
{
    uint32_t n;

    if (vec->left == 0) {
        return vec->at == vec->end ? CH_ERR_CLOSED : CH_ERR_PROTOCOL;
    }
    if (vec->end - vec->at < 4) {
        return CH_ERR_PROTOCOL;
    }
    n = get_u32(vec->at);
    if ((size_t)(vec->end - vec->at) - 4 < n) {
        return CH_ERR_PROTOCOL;
    }
    *item = vec->at + 4;
    *len = n;
    vec->at += 4 + (size_t)n;
    vec->left--;
    return CH_OK;
}

int
ch_vec_put_count(struct ch_buf *out, unsigned count)
{
    if (count > UINT16_MAX) {
        return CH_ERR_LIMIT;
    }
    return ch_buf_put_u16(out, (uint16_t)count);
}

int
ch_vec_put(struct ch_buf *out, const void *item, size_t len)
{
    int r;

    if (len > UINT32_MAX) {
        return CH_ERR_LIMIT;
    }
    r = ch_buf_put_u32(out, (uint32_t)len);
    return r == CH_OK ? ch_buf_put(out, item, len) : r;
}

int
ch_vec_put_str(struct ch_buf *out, const char *text)
{
    return ch_vec_put(out, text, strlen(text));
}

int
ch_vec_put_num(struct ch_buf *out, int64_t number)
{
    char text[24];

    snprintf(text, sizeof(text), "%" PRId64, number);
    return ch_vec_put_str(out, text);
}

int
ch_vec_check(const uint8_t *body, size_t len, int pairs)
{
    struct ch_vec vec;
    const uint8_t *item = NULL;
    size_t item_len = 0;
    int r = ch_vec_init(&vec, body, len);

    if (r == CH_OK && pairs && vec.left % 2 != 0) {
        return CH_ERR_PROTOCOL;
    }
    while (r == CH_OK) {
        r = ch_vec_next(&vec, &item, &item_len);
    }
    return r == CH_ERR_CLOSED ? CH_OK : r;
}

int
ch_map_get(const uint8_t *body, size_t len, const char *key, unsigned nth,
           const uint8_t **value, size_t *value_len)
{
    struct ch_vec vec;
    const uint8_t *name = NULL;
    size_t name_len = 0;
    int r = ch_vec_init(&vec, body, len);

    while (r == CH_OK && vec.left >= 2) {
        r = ch_vec_next(&vec, &name, &name_len);
        if (r == CH_OK) {
            r = ch_vec_next(&vec, value, value_len);
        }
        if (r == CH_OK && name_len == strlen(key) &&
            memcmp(name, key, name_len) == 0 && nth-- == 0) {
            return CH_OK;
        }
    }
    return CH_ERR_CLOSED;
}
