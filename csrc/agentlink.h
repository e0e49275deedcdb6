/*
 * agentlink.h - a login agent over a chan: its start, frames both ways,
 * and the watch over its silence.
 */
#ifndef CH_AGENTLINK_H
#define CH_AGENTLINK_H

#include "link.h"
#include "outq.h"

struct ch_agentlink;

struct ch_agentlink_spec {
    const char *name;    /* inventory name, for the log */
    const char *command; /* all strings are copied as far as needed */
    const char *nonce;
    const uint8_t *input;
    size_t input_len;
    int64_t timeout_ms; /* until HELLO */
    int64_t alive_interval_ms;
    int alive_count;
    uint64_t *in_bytes, *out_bytes; /* counted up; outlive the agentlink */
};

/* Called from the loop only. All may free the agentlink. */
struct ch_agentlink_events {
    /* The agent said HELLO (a checked map, borrowed). */
    void (*on_ready)(void *arg, const uint8_t *hello, size_t len);
    /* A frame other than HELLO, PING, PONG and LOG. CH_OK; CH_ERR_AGAIN:
     * not now, it is offered again after ch_agentlink_resume(); any other
     * error ends the agent. */
    int (*on_frame)(void *arg, const struct ch_frame *frame);
    /* The first bytes of the frame that begins this request are written. */
    void (*on_sent)(void *arg, uint32_t request);
    /* All that was queued is written. May queue more and flush. */
    void (*on_drained)(void *arg);
    /* Dead for good. link_lost: the whole session is as good as dead
     * (silence or broken protocol). */
    void (*on_failed)(void *arg, const char *fail_class, const char *layer,
                      const char *message, int link_lost);
};

/* Runs the command on an open link. NULL and *r set on failure. */
struct ch_agentlink *ch_agentlink_new(struct ch_loop *loop,
                                      struct ch_link *link,
                                      const struct ch_agentlink_spec *spec,
                                      const struct ch_agentlink_events *events,
                                      void *arg, int *r);
/* Closes the chan; no callback any more. NULL is fine. */
void ch_agentlink_free(struct ch_agentlink *al);
/* The queue to fill before ch_agentlink_flush(). */
struct ch_outq *ch_agentlink_queue(struct ch_agentlink *al);
/* Writes what the chan takes now. Calls on_sent. */
void ch_agentlink_flush(struct ch_agentlink *al);
/* It ended without a sign of life: what was written was read by nobody. */
int ch_agentlink_unborn(const struct ch_agentlink *al);
/* Offers the refused frame again and goes on reading, from the loop. */
void ch_agentlink_resume(struct ch_agentlink *al);
/* Watch for silence only while an answer is expected. */
void ch_agentlink_expect(struct ch_agentlink *al, int expect);

#endif
