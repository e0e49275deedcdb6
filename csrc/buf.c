/* buf.c - the byte queue: one block, doubled when full, moved down when
 * that makes room. */
#include "buf.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define BUF_MIN  512u
#define BUF_KEEP 4096u /* an emptied block above this is given back */

void
ch_buf_init(struct ch_buf *buf, size_t limit)
{
    memset(buf, 0, sizeof(*buf));
    buf->limit = limit;
}

void
ch_buf_fini(struct ch_buf *buf)
{
    size_t limit = buf->limit;

    free(buf->data);
    ch_buf_init(buf, limit);
}

const uint8_t *
ch_buf_data(const struct ch_buf *buf)
{
    return buf->data == NULL ? NULL : buf->data + buf->start;
}

size_t
ch_buf_len(const struct ch_buf *buf)
{
    return buf->end - buf->start;
}

void
ch_buf_consume(struct ch_buf *buf, size_t n)
{
    assert(n <= ch_buf_len(buf));
    buf->start += n;
    if (buf->start == buf->end) {
        buf->start = buf->end = 0;
        if (buf->cap > BUF_KEEP) {
            ch_buf_fini(buf);
        }
    }
}

/* Moves the unread bytes to the front; worth it only when at least half of
 * the block is behind us, so that each byte is moved O(1) times. */
static void
buf_compact(struct ch_buf *buf)
{
    size_t len = ch_buf_len(buf);

    if (buf->start > 0 && buf->start >= len) {
        memmove(buf->data, buf->data + buf->start, len);
        buf->start = 0;
        buf->end = len;
    }
}

int
ch_buf_room(struct ch_buf *buf, size_t n, uint8_t **place)
{
    size_t len = ch_buf_len(buf);
    size_t cap = buf->cap < BUF_MIN ? BUF_MIN : buf->cap;
    uint8_t *data;

    if (n > buf->limit || len > buf->limit - n) {
        return CH_ERR_LIMIT;
    }
    if (buf->cap - buf->end < n) {
        buf_compact(buf);
    }
    if (buf->cap - buf->end < n) {
        while (cap - buf->end < n) {
            if (cap > SIZE_MAX / 2) {
                return CH_ERR_NOMEM;
            }
            cap *= 2;
        }
        data = realloc(buf->data, cap);
        if (data == NULL) {
            return CH_ERR_NOMEM;
        }
        buf->data = data;
        buf->cap = cap;
    }
    *place = buf->data == NULL ? NULL : buf->data + buf->end;
    return CH_OK;
}

void
ch_buf_added(struct ch_buf *buf, size_t n)
{
    assert(n <= buf->cap - buf->end);
    buf->end += n;
}

int
ch_buf_put(struct ch_buf *buf, const void *data, size_t n)
{
    uint8_t *place = NULL;
    int r = ch_buf_room(buf, n, &place);

    if (r == CH_OK && n > 0) {
        memcpy(place, data, n);
        ch_buf_added(buf, n);
    }
    return r;
}

int
ch_buf_put_u8(struct ch_buf *buf, uint8_t v)
{
    return ch_buf_put(buf, &v, 1);
}

int
ch_buf_put_u16(struct ch_buf *buf, uint16_t v)
{
    uint8_t b[2] = {(uint8_t)(v >> 8), (uint8_t)v};

    return ch_buf_put(buf, b, sizeof(b));
}

int
ch_buf_put_u32(struct ch_buf *buf, uint32_t v)
{
    uint8_t b[4] = {(uint8_t)(v >> 24), (uint8_t)(v >> 16), (uint8_t)(v >> 8),
                    (uint8_t)v};

    return ch_buf_put(buf, b, sizeof(b));
}
