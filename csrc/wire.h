/*
 * wire.h - frames and vecs of docs/protocol.md: encode and decode.
 * Knows no sockets and allocates only through ch_buf.
 */
#ifndef CH_WIRE_H
#define CH_WIRE_H

#include "buf.h"
#include "ch.h"

#define CH_WIRE_MAGIC          0x4348u
#define CH_WIRE_VERSION        1u
#define CH_WIRE_HEADER         20u
#define CH_WIRE_BODY_MAX       (256u * 1024u)
#define CH_WIRE_BODY_MAX_LARGE (16u * 1024u * 1024u)
#define CH_WIRE_RAW_MAX        (64u * 1024u * 1024u)
#define CH_WIRE_WINDOW         (1024u * 1024u)
#define CH_AGENT_NONE          0xFFFFu

enum ch_frame_type {
    CH_HELLO = 1,
    CH_OPEN,
    CH_OPENED,
    CH_START,
    CH_STARTED,
    CH_PAYLOAD,
    CH_NEED,
    CH_RUN,
    CH_EXEC,
    CH_PUT,
    CH_FETCH,
    CH_DATA,
    CH_WINDOW,
    CH_CANCEL,
    CH_ACCEPTED,
    CH_STAMP,
    CH_EXIT,
    CH_FAILED,
    CH_PING,
    CH_PONG,
    CH_CLOSE,
    CH_RESET,
    CH_STATUS,
    CH_STOP,
    CH_LOG,
    CH_SOURCE
};

#define CH_FLAG_ZLIB          0x01u
#define CH_FLAG_END           0x02u
#define CH_FLAG_STREAM(flags) (((flags) >> 2) & 3u)
#define CH_FLAG_LINK          0x10u /* of a chain: the agent's affair */
#define CH_FLAG_ALL           0x1fu

struct ch_frame {
    uint8_t type;
    uint8_t flags;
    uint16_t agent;
    uint32_t session;
    uint32_t request;
    uint32_t len;        /* bytes of body */
    const uint8_t *body; /* borrowed from the buffer that was decoded */
};

/* Appends header and body to out. CH_ERR_LIMIT if body is over the limit of
 * its type. */
CH_MUST_USE int ch_wire_put(struct ch_buf *out, const struct ch_frame *frame);

/* The most body bytes a frame of this type may have; 0: unknown type. */
uint32_t ch_wire_body_max(uint8_t type);

/* Writes only the 20 bytes of the header; the body is sent separately. */
void ch_wire_header(uint8_t out[CH_WIRE_HEADER], const struct ch_frame *frame);

/* Decodes the frame at data: CH_OK and *used set, CH_ERR_AGAIN if it is not
 * complete yet, CH_ERR_PROTOCOL if it never will be valid. */
CH_MUST_USE int ch_wire_get(const uint8_t *data, size_t len,
                            struct ch_frame *out, size_t *used);

/* Iterates a vec: init checks the count, next yields each item. */
struct ch_vec {
    const uint8_t *at, *end; /* borrowed */
    unsigned left;           /* items not yet yielded */
};
CH_MUST_USE int ch_vec_init(struct ch_vec *vec, const uint8_t *body,
                            size_t len);
/* CH_OK, CH_ERR_CLOSED after the last item, or CH_ERR_PROTOCOL. */
CH_MUST_USE int ch_vec_next(struct ch_vec *vec, const uint8_t **item,
                            size_t *len);

/* Makes a vec: the count first, then each item. */
CH_MUST_USE int ch_vec_put_count(struct ch_buf *out, unsigned count);
CH_MUST_USE int ch_vec_put(struct ch_buf *out, const void *item, size_t len);
CH_MUST_USE int ch_vec_put_str(struct ch_buf *out, const char *text);
CH_MUST_USE int ch_vec_put_num(struct ch_buf *out, int64_t number);

/* CH_OK if body is a well-formed vec (pairs != 0: of even count) with no
 * bytes left over. */
CH_MUST_USE int ch_vec_check(const uint8_t *body, size_t len, int pairs);
/* The nth (from 0) value of key in a map that passed ch_vec_check:
 * CH_OK or CH_ERR_CLOSED. */
CH_MUST_USE int ch_map_get(const uint8_t *body, size_t len, const char *key,
                           unsigned nth, const uint8_t **value,
                           size_t *value_len);

#endif
