/*
 * buf.h - a growable byte queue with a hard limit: bytes are appended at the
 * end and consumed at the front.
 */
#ifndef CH_BUF_H
#define CH_BUF_H

#include "ch.h"

struct ch_buf {
    uint8_t *data; /* owned; NULL while empty */
    size_t start;  /* first unread byte */
    size_t end;    /* one past the last byte */
    size_t cap;    /* allocated bytes */
    size_t limit;  /* ch_buf_* fails with CH_ERR_LIMIT beyond it */
};

void ch_buf_init(struct ch_buf *buf, size_t limit);
void ch_buf_fini(struct ch_buf *buf);
/* Unread bytes; the pointer is valid until the next change. */
const uint8_t *ch_buf_data(const struct ch_buf *buf);
size_t ch_buf_len(const struct ch_buf *buf);
void ch_buf_consume(struct ch_buf *buf, size_t n);
CH_MUST_USE int ch_buf_put(struct ch_buf *buf, const void *data, size_t n);
CH_MUST_USE int ch_buf_put_u8(struct ch_buf *buf, uint8_t v);
CH_MUST_USE int ch_buf_put_u16(struct ch_buf *buf, uint16_t v);
CH_MUST_USE int ch_buf_put_u32(struct ch_buf *buf, uint32_t v);
/* Makes room for n bytes and lends the place; ch_buf_added says how many
 * were written there. */
CH_MUST_USE int ch_buf_room(struct ch_buf *buf, size_t n, uint8_t **place);
void ch_buf_added(struct ch_buf *buf, size_t n);

#endif
