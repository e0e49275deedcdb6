/* outq.c - the queue of frames to one agent, and shared bodies. */
#include "outq.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

struct ch_outnode {
    struct ch_outnode *next;
    struct ch_blob *blob; /* follows the head; may be NULL */
    uint32_t request;
    int begins;
    size_t len, done; /* of the head */
    size_t blob_done;
    uint8_t head[];
};

struct ch_blob *
ch_blob_new(const uint8_t *data, size_t len)
{
    struct ch_blob *blob = malloc(sizeof(*blob) + len);

    if (blob != NULL) {
        blob->refs = 1;
        blob->len = len;
        memcpy(blob->data, data, len);
    }
    return blob;
}

struct ch_blob *
ch_blob_acquire(struct ch_blob *blob)
{
    blob->refs++;
    return blob;
}

void
ch_blob_release(struct ch_blob *blob)
{
    if (blob != NULL && --blob->refs == 0) {
        free(blob);
    }
}

static size_t
node_left(const struct ch_outnode *node)
{
    return node->len - node->done +
           (node->blob != NULL ? node->blob->len - node->blob_done : 0);
}

static void
node_free(struct ch_outnode *node)
{
    ch_blob_release(node->blob);
    free(node);
}

void
ch_outq_init(struct ch_outq *q)
{
    memset(q, 0, sizeof(*q));
}

void
ch_outq_fini(struct ch_outq *q)
{
    while (q->first != NULL) {
        struct ch_outnode *node = q->first;

        q->first = node->next;
        node_free(node);
    }
    ch_outq_init(q);
}

static void
outq_append(struct ch_outq *q, struct ch_outnode *node)
{
    if (q->last != NULL) {
        q->last->next = node;
    } else {
        q->first = node;
    }
    q->last = node;
    q->bytes += node_left(node);
}

static struct ch_outnode *
node_new(size_t len)
{
    struct ch_outnode *node = malloc(sizeof(*node) + len);

    if (node != NULL) {
        memset(node, 0, sizeof(*node));
        node->len = len;
    }
    return node;
}

int
ch_outq_put(struct ch_outq *q, const struct ch_frame *frame,
            struct ch_blob *blob, int begins)
{
    struct ch_frame head = *frame;
    struct ch_outnode *node;

    if (blob != NULL) {
        head.len = (uint32_t)blob->len;
    }
    if (head.len > ch_wire_body_max(head.type)) {
        return CH_ERR_LIMIT;
    }
    node = node_new(CH_WIRE_HEADER + (blob != NULL ? 0 : (size_t)head.len));
    if (node == NULL) {
        return CH_ERR_NOMEM;
    }
    ch_wire_header(node->head, &head);
    if (blob != NULL) {
        node->blob = ch_blob_acquire(blob);
    } else if (head.len > 0) {
        memcpy(node->head + CH_WIRE_HEADER, head.body, head.len);
    }
    node->request = head.request;
    node->begins = begins;
    outq_append(q, node);
    return CH_OK;
}

struct ch_outnode *
ch_outnode_new(size_t len, uint8_t **body)
{
    struct ch_outnode *node = node_new(CH_WIRE_HEADER + len);

    *body = node != NULL ? node->head + CH_WIRE_HEADER : NULL;
    return node;
}

void
ch_outnode_free(struct ch_outnode *node)
{
    if (node != NULL) {
        node_free(node);
    }
}

void
ch_outq_append(struct ch_outq *q, struct ch_outnode *node,
               const struct ch_frame *frame)
{
    assert(CH_WIRE_HEADER + (size_t)frame->len <= node->len);
    ch_wire_header(node->head, frame);
    node->len = CH_WIRE_HEADER + (size_t)frame->len;
    node->request = frame->request;
    outq_append(q, node);
}

int
ch_outq_put_raw(struct ch_outq *q, const uint8_t *data, size_t len)
{
    struct ch_outnode *node;

    if (len == 0) {
        return CH_OK;
    }
    node = node_new(len);
    if (node == NULL) {
        return CH_ERR_NOMEM;
    }
    memcpy(node->head, data, len);
    outq_append(q, node);
    return CH_OK;
}

void
ch_outq_splice(struct ch_outq *q, struct ch_outq *from)
{
    if (from->first == NULL) {
        return;
    }
    if (q->last != NULL) {
        q->last->next = from->first;
    } else {
        q->first = from->first;
    }
    q->last = from->last;
    q->bytes += from->bytes;
    ch_outq_init(from);
}

void
ch_outq_drop(struct ch_outq *q, uint32_t request)
{
    struct ch_outnode **at = &q->first;

    q->last = NULL;
    while (*at != NULL) {
        struct ch_outnode *node = *at;

        if (node->request == request && node->done == 0 && request != 0) {
            *at = node->next;
            q->bytes -= node_left(node);
            node_free(node);
        } else {
            q->last = node;
            at = &node->next;
        }
    }
}

int
ch_outq_begun(const struct ch_outq *q)
{
    return q->first != NULL && q->first->done > 0;
}

size_t
ch_outq_peek(const struct ch_outq *q, const uint8_t **data, uint32_t *begins)
{
    const struct ch_outnode *node = q->first;

    *begins = 0;
    if (node == NULL) {
        return 0;
    }
    if (node->done < node->len) {
        *data = node->head + node->done;
        *begins = node->begins && node->done == 0 ? node->request : 0;
        return node->len - node->done;
    }
    *data = node->blob->data + node->blob_done;
    return node->blob->len - node->blob_done;
}

void
ch_outq_consume(struct ch_outq *q, size_t n)
{
    struct ch_outnode *node = q->first;

    if (n == 0) {
        return;
    }
    if (node->done < node->len) {
        assert(n <= node->len - node->done);
        node->done += n;
    } else {
        node->blob_done += n;
    }
    q->bytes -= n;
    if (node_left(node) == 0) {
        q->first = node->next;
        if (q->first == NULL) {
            q->last = NULL;
        }
        node_free(node);
    }
}
