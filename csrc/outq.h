/*
 * outq.h - frames waiting to be written to an agent. Small bodies are
 * copied; large ones that go to many hosts are shared by reference.
 */
#ifndef CH_OUTQ_H
#define CH_OUTQ_H

#include "ch.h"
#include "wire.h"

/* Bytes shared by reference count. */
struct ch_blob {
    size_t refs;
    size_t len;
    uint8_t data[];
};
struct ch_blob *ch_blob_new(const uint8_t *data, size_t len); /* or NULL */
struct ch_blob *ch_blob_acquire(struct ch_blob *blob);
void ch_blob_release(struct ch_blob *blob);

struct ch_outnode;

struct ch_outq {
    struct ch_outnode *first, *last;
    size_t bytes; /* not yet written */
};

void ch_outq_init(struct ch_outq *q);
void ch_outq_fini(struct ch_outq *q);
/* Appends a frame; its body is copied, or if blob is not NULL the blob is
 * the body (one more reference is taken). begins: this frame starts its
 * request. CH_OK, CH_ERR_NOMEM, CH_ERR_LIMIT. */
CH_MUST_USE int ch_outq_put(struct ch_outq *q, const struct ch_frame *frame,
                            struct ch_blob *blob, int begins);
/* A frame whose body is written in place: *body has room for len bytes. Or
 * NULL. To be appended, or freed. */
struct ch_outnode *ch_outnode_new(size_t len, uint8_t **body);
void ch_outnode_free(struct ch_outnode *node);
/* Takes it over; frame->len says how much of the room is its body. */
void ch_outq_append(struct ch_outq *q, struct ch_outnode *node,
                    const struct ch_frame *frame);
/* Appends bytes that are no frame. */
CH_MUST_USE int ch_outq_put_raw(struct ch_outq *q, const uint8_t *data,
                                size_t len);
/* Moves all of from to the end of q. */
void ch_outq_splice(struct ch_outq *q, struct ch_outq *from);
/* Removes all frames of the request, none of which may be begun. */
void ch_outq_drop(struct ch_outq *q, uint32_t request);
/* Has the first frame been written in part? */
int ch_outq_begun(const struct ch_outq *q);
/* The bytes to write next (0: none). *begins is the request that starts
 * with these bytes, or 0. */
size_t ch_outq_peek(const struct ch_outq *q, const uint8_t **data,
                    uint32_t *begins);
void ch_outq_consume(struct ch_outq *q, size_t n); /* n <= peek's result */

#endif
