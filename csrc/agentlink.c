/*
 * agentlink.c - why it exists: everything that is the same for every agent
 * whoever asked for it: finding the agent's first byte in what a login
 * shell prints, cutting its stream into frames, noticing that it went
 * silent.
 *
 *   STARTING --marker--> GREETING --HELLO--> READY --> DEAD
 *      | noise > 64 KiB, NOPYTHON, end, timeout          ^
 *      `-------------------------------------------------'
 *
 * An agent that was idle for longer than the alive interval is asked (PING)
 * before it gets the next request, which waits for the answer: if the
 * network forgot the connection meanwhile, the request was never sent and
 * the client can safely repeat it on a new session.
 *
 * What always holds: requests may follow the spec's input at once. An agent
 * says HELLO before it begins one, so none began if it ended without a READY
 * (ch_agentlink_unborn). One that is merely late may begin: it gets more time,
 * and then the request counts as begun.
 * What a hostile target can do: send noise (bounded), frames (checked, one
 * at most 256 KiB is kept), silence (bounded by timeout or alive interval).
 * A frame the pool cannot take now stays in the buffer and reading stops,
 * so a slow client holds up its target, not the pool's memory.
 * The end of the chan is judged at the end of the turn: if the whole link
 * failed, the link says so in the same turn and its reason is the better
 * one.
 */
#include "agentlink.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "log.h"

#define NOISE_MAX (64u * 1024u)
#define MARK_MAX  96u
#define TAIL_MAX  2048u
#define PING_LEN  8u
#define LATE_MS   60000 /* more time for a start, if a request went out */
#define LOST_MAX  (64u * 1024u * 1024u) /* noise, then */
#define SAID_MAX  1000u /* lines of one agent in the log */
#define PROBE_MS  10000 /* at most, for the answer to the question above */

enum state { STARTING, GREETING, READY, DEAD };

struct ch_agentlink {
    struct ch_loop *loop;
    struct ch_chan *chan;
    const struct ch_agentlink_events *events;
    void *arg;
    enum state state;
    char name[128];
    char nonce[40];
    struct ch_buf in;
    size_t scanned; /* bytes of noise already searched */
    size_t lost;    /* bytes of noise thrown away */
    int early;      /* a request went out before READY */
    int late;       /* it had more time already */
    int unborn;     /* ended before READY */
    struct ch_outq out;
    struct ch_outq urgent;        /* goes first; alone while probing */
    struct ch_timer *probe_timer; /* not NULL: probing */
    int64_t heard_us;
    int expecting;
    struct ch_timer *timer;  /* STARTING, GREETING: the deadline */
    struct ch_timer *resume; /* a refused frame is offered again */
    struct ch_timer *alive_timer;
    int64_t alive_interval_ms;
    int alive_count, silent, pinged, heard;
    int64_t given, taken; /* bytes: to the chan; of these, by the target */
    int64_t owed;         /* bytes it had still to take at the last tick */
    uint64_t *in_bytes, *out_bytes;
    int refused; /* reading stopped by CH_ERR_AGAIN */
    int in_frames;
    unsigned said; /* LOG frames */
    uint8_t tail[TAIL_MAX]; /* last stderr bytes, for messages */
    size_t tail_len;
    int exit_rc, exit_signal;
    char exit_error[512];
};

static void
al_fail(struct ch_agentlink *al, const char *class, const char *layer,
        int link_lost, const char *message)
{
    if (al->state != DEAD) {
        ch_log_at(CH_LOG_ERROR, "%s: agent failed (%s, %s): %s", al->name,
                  class, layer,
               message);
        al->events->on_failed(al->arg, class, layer, message, link_lost);
    }
}

/* --- writing --- */

/* Urgent frames go between two frames, never into one. */
static struct ch_outq *
queue_next(struct ch_agentlink *al)
{
    if (al->urgent.bytes > 0 && !ch_outq_begun(&al->out)) {
        return &al->urgent;
    }
    return al->probe_timer != NULL && !ch_outq_begun(&al->out) ? NULL
                                                               : &al->out;
}

void
ch_agentlink_flush(struct ch_agentlink *al)
{
    const uint8_t *data = NULL;
    uint32_t begins = 0;
    size_t len;

    while (al->chan != NULL && al->state != DEAD) {
        struct ch_outq *q = queue_next(al);
        long n;

        len = q == NULL ? 0 : ch_outq_peek(q, &data, &begins);
        if (len == 0) {
            if (q == &al->out && al->state == READY) {
                al->events->on_drained(al->arg);
            }
            return;
        }
        n = ch_chan_write(al->chan, data, len);
        al->given += n > 0 ? n : 0;
        if (n <= 0) {
            /* 0: on_writable follows. An error: on_exit follows. */
            return;
        }
        *al->out_bytes += (uint64_t)n;
        ch_outq_consume(q, (size_t)n);
        if (begins != 0) {
            al->early |= al->state < READY;
            al->events->on_sent(al->arg, begins);
        }
        if ((size_t)n < len) {
            return;
        }
    }
}

int
ch_agentlink_unborn(const struct ch_agentlink *al)
{
    return al->unborn;
}

struct ch_outq *
ch_agentlink_queue(struct ch_agentlink *al)
{
    return &al->out;
}

static void
al_control(struct ch_agentlink *al, uint8_t type, const uint8_t *body,
           size_t len)
{
    struct ch_frame frame = {.type = type, .body = body, .len = (uint32_t)len};

    if (ch_outq_put(&al->out, &frame, NULL, 0) == CH_OK) {
        ch_agentlink_flush(al);
    }
}

/* --- silence --- */

/* On a thin line the answer to a PING waits behind what was sent before it: as
 * long as the target takes that, it is there. The PING itself does not count: a
 * server takes it for an agent that stands still. */
static int
al_takes(struct ch_agentlink *al)
{
    int64_t backlog = al->chan != NULL ? ch_chan_backlog(al->chan) : 0;
    int64_t taken = al->given - backlog;
    int more = taken > al->taken && al->owed > 0;

    al->taken = taken;
    al->owed = backlog;
    return more;
}

static void
alive_tick(void *arg)
{
    struct ch_agentlink *al = arg;
    uint8_t body[PING_LEN] = "churten";
    char why[128];

    al->alive_timer = NULL;
    if (al->state != READY) {
        al->heard = 1; /* the start has its own deadline */
    }
    al->heard |= al_takes(al);
    al->silent = al->heard || al->refused ? 0 : al->silent + 1;
    al->heard = 0;
    if (al->silent >= al->alive_count && al->pinged) {
        snprintf(why, sizeof(why), "no answer for %lld seconds",
                 (long long)al->silent * al->alive_interval_ms / 1000);
        al_fail(al, "unreachable", "agent", 1, why);
        return;
    }
    if (al->silent > 0 && !al->pinged) {
        /* One unanswered PING is enough; more would only fill the queue. */
        al->pinged = 1;
        al_control(al, CH_PING, body, sizeof(body));
    } else if (al->silent == 0) {
        al->pinged = 0;
    }
    al->alive_timer =
        ch_loop_timer(al->loop, al->alive_interval_ms, alive_tick, al);
}

static void
probe_failed(void *arg)
{
    struct ch_agentlink *al = arg;

    al->probe_timer = NULL;
    al_fail(al, "reset", "agent", 1, "the kept session no longer answers");
}

/* From idle to busy after a long silence: is it still there? */
static void
al_probe(struct ch_agentlink *al)
{
    struct ch_frame ping = {
        .type = CH_PING, .body = (const uint8_t *)"still up", .len = PING_LEN};
    int64_t patience_ms = al->alive_interval_ms * al->alive_count;

    if (al->state != READY || al->probe_timer != NULL ||
        al->alive_interval_ms == 0 ||
        ch_now_us() - al->heard_us < al->alive_interval_ms * 1000 ||
        ch_outq_put(&al->urgent, &ping, NULL, 0) != CH_OK) {
        return;
    }
    al->probe_timer = ch_loop_timer(
        al->loop, patience_ms < PROBE_MS ? patience_ms : PROBE_MS,
        probe_failed, al);
    ch_agentlink_flush(al);
}

static void
al_heard(struct ch_agentlink *al)
{
    al->heard = 1;
    al->heard_us = ch_now_us();
    if (al->probe_timer != NULL) {
        ch_loop_cancel(al->loop, al->probe_timer);
        al->probe_timer = NULL;
        ch_agentlink_flush(al);
    }
}

void
ch_agentlink_expect(struct ch_agentlink *al, int expect)
{
    if (expect && !al->expecting) {
        al_probe(al);
    }
    al->expecting = expect;
    if (!expect) {
        ch_loop_cancel(al->loop, al->alive_timer);
        al->alive_timer = NULL;
        return;
    }
    if (al->alive_timer == NULL && al->alive_interval_ms > 0) {
        al->silent = al->pinged = al->heard = 0;
        al->alive_timer =
            ch_loop_timer(al->loop, al->alive_interval_ms, alive_tick, al);
    }
}

/* --- the start --- */

static void
al_timeout(void *arg)
{
    struct ch_agentlink *al = arg;
    char text[1024], why[1400];

    al->timer = NULL;
    if (al->early && !al->late) {
        al->late = 1;
        al->timer = ch_loop_timer(al->loop, LATE_MS, al_timeout, al);
        if (al->timer != NULL) {
            return;
        }
    }
    ch_text_escape(text, sizeof(text),
                   al->state == STARTING ? ch_buf_data(&al->in) : al->tail,
                   al->state == STARTING ? ch_buf_len(&al->in) : al->tail_len);
    snprintf(why, sizeof(why),
             "the agent did not start in time; the target printed: %s", text);
    al_fail(al, al->early ? "unreachable" : "agent", "agent", al->early, why);
}

static void
al_no_python(struct ch_agentlink *al)
{
    char text[1024], why[1200];

    ch_text_escape(text, sizeof(text), ch_buf_data(&al->in),
                   ch_buf_len(&al->in));
    snprintf(why, sizeof(why), "no Python interpreter found; output: %s",
             text);
    al->unborn = 1;
    al_fail(al, "no_python", "agent", 0, why);
}

/* Looks for a marker line; returns the offset behind it, or 0. */
static size_t
find_marker(const struct ch_agentlink *al, size_t from, const char *word)
{
    char mark[MARK_MAX];
    const uint8_t *data = ch_buf_data(&al->in);
    const uint8_t *at;
    int len =
        snprintf(mark, sizeof(mark), "\nCHURTEN-%s-%s\n", al->nonce, word);

    if (data == NULL || len < 0 || (size_t)len >= sizeof(mark)) {
        return 0;
    }
    at = memmem(data + from, ch_buf_len(&al->in) - from, mark, (size_t)len);
    return at == NULL ? 0 : (size_t)(at - data) + (size_t)len;
}

static void
al_scan(struct ch_agentlink *al)
{
    size_t end = find_marker(al, al->scanned, "READY");
    size_t len = ch_buf_len(&al->in);
    char text[1024];

    if (end > 0) {
        if (end > 60 && ch_buf_data(&al->in)[0] != '\n') {
            ch_text_escape(text, sizeof(text), ch_buf_data(&al->in), end);
            ch_log("%s: noise before the agent: %s", al->name, text);
        }
        ch_buf_consume(&al->in, end);
        al->state = GREETING;
    } else if (find_marker(al, al->scanned, "NOPYTHON") > 0) {
        al_no_python(al);
    } else if (len > NOISE_MAX && al->early && al->lost < LOST_MAX) {
        al->lost += len - MARK_MAX;
        ch_buf_consume(&al->in, len - MARK_MAX);
        al->scanned = 0;
    } else if (len > NOISE_MAX) {
        al_fail(al, al->early ? "unreachable" : "agent", "agent", al->early,
                "the target printed more than 64 KiB before the agent");
    } else {
        al->scanned = len > MARK_MAX ? len - MARK_MAX : 0;
    }
}

/* --- frames --- */

static int
al_hello(struct ch_agentlink *al, const struct ch_frame *frame)
{
    if (frame->type != CH_HELLO ||
        ch_vec_check(frame->body, frame->len, 1) != CH_OK) {
        return CH_ERR_PROTOCOL;
    }
    ch_loop_cancel(al->loop, al->timer);
    al->timer = NULL;
    al->state = READY;
    al->events->on_ready(al->arg, frame->body, frame->len);
    return CH_OK;
}

static int
al_frame(struct ch_agentlink *al, const struct ch_frame *frame)
{
    char text[1024];

    if (frame->flags & CH_FLAG_ZLIB) {
        return CH_ERR_PROTOCOL; /* agents do not compress: no bombs */
    }
    if (al->state == GREETING) {
        return al_hello(al, frame);
    }
    switch (frame->type) {
    case CH_HELLO:
        return CH_ERR_PROTOCOL;
    case CH_PONG:
        return CH_OK;
    case CH_PING:
        if (frame->len > 64 || al->out.bytes > CH_WIRE_BODY_MAX) {
            return frame->len > 64 ? CH_ERR_PROTOCOL : CH_OK;
        }
        al_control(al, CH_PONG, frame->body, frame->len);
        return CH_OK;
    case CH_LOG:
        if (al->said++ < SAID_MAX) {
            ch_text_escape(text, sizeof(text), frame->body, frame->len);
            ch_log("%s: agent says: %s", al->name, text);
        }
        return CH_OK;
    default:
        return al->events->on_frame(al->arg, frame);
    }
}

/* Only these come from an agent; a large body of another type is refused
 * at its header. */
static int
al_allowed(uint8_t type)
{
    return type == CH_HELLO || type == CH_STARTED || type == CH_DATA ||
           type == CH_WINDOW || type == CH_ACCEPTED || type == CH_EXIT ||
           type == CH_FAILED || type == CH_PING || type == CH_PONG ||
           type == CH_LOG;
}

static void
al_frames(struct ch_agentlink *al)
{
    al->in_frames = 1;
    while (al->state != DEAD && !al->refused) {
        struct ch_frame frame;
        size_t used = 0;
        size_t len = ch_buf_len(&al->in);
        int r;

        if (len > 3 && !al_allowed(ch_buf_data(&al->in)[3])) {
            r = CH_ERR_PROTOCOL;
        } else {
            r = ch_wire_get(ch_buf_data(&al->in), len, &frame, &used);
            if (r == CH_ERR_AGAIN) {
                break;
            }
        }
        if (r == CH_OK) {
            r = al_frame(al, &frame);
        }
        if (al->state == DEAD) {
            break;
        }
        if (r == CH_OK) {
            ch_buf_consume(&al->in, used);
        } else if (r == CH_ERR_AGAIN) {
            al->refused = 1;
            if (al->chan != NULL) {
                ch_chan_pause(al->chan, 1);
            }
        } else {
            al_fail(al, "protocol", "agent", 1,
                    r == CH_ERR_PROTOCOL ? "the agent broke the protocol"
                                         : ch_strerror(r));
        }
    }
    al->in_frames = 0;
}

static void
al_resumed(void *arg)
{
    struct ch_agentlink *al = arg;

    al->resume = NULL;
    al->refused = 0;
    al_frames(al);
    if (al->state != DEAD && !al->refused && al->chan != NULL) {
        ch_chan_pause(al->chan, 0);
    }
}

void
ch_agentlink_resume(struct ch_agentlink *al)
{
    if (al->refused && al->resume == NULL) {
        al->resume = ch_loop_timer(al->loop, 0, al_resumed, al);
    }
}

/* --- chan events --- */

static void
al_on_data(void *arg, int stream, const uint8_t *data, size_t len)
{
    struct ch_agentlink *al = arg;
    size_t keep;

    *al->in_bytes += len;
    if (al->state == DEAD) {
        return;
    }
    al_heard(al);
    if (stream == 2) {
        if (len >= TAIL_MAX) {
            data += len - TAIL_MAX;
            len = TAIL_MAX;
        }
        keep = al->tail_len + len > TAIL_MAX ? TAIL_MAX - len : al->tail_len;
        memmove(al->tail, al->tail + al->tail_len - keep, keep);
        memcpy(al->tail + keep, data, len);
        al->tail_len = keep + len;
        return;
    }
    if (ch_buf_put(&al->in, data, len) != CH_OK) {
        al_fail(al, "protocol", "agent", 1, "too many bytes at once");
        return;
    }
    if (al->state == STARTING) {
        al_scan(al);
    }
    if (al->state == GREETING || al->state == READY) {
        al_frames(al);
    }
}

static void
al_on_writable(void *arg)
{
    ch_agentlink_flush(arg);
}

/* At the end of the turn: the link did not fail, so the agent did. */
static void
al_ended(void *arg)
{
    struct ch_agentlink *al = arg;
    char text[1024], why[2048];

    if (al->state == DEAD) {
        return;
    }
    /* Without exit status or signal nobody knows how it ended. */
    al->unborn =
        al->state == STARTING && (al->exit_rc >= 0 || al->exit_signal > 0);
    if (al->state == STARTING && al->tail_len == 0) {
        ch_text_escape(text, sizeof(text), ch_buf_data(&al->in),
                       ch_buf_len(&al->in));
    } else {
        ch_text_escape(text, sizeof(text), al->tail, al->tail_len);
    }
    snprintf(why, sizeof(why), "the agent ended (rc %d, signal %d)%s%s: %s",
             al->exit_rc, al->exit_signal, al->exit_error[0] ? ", " : "",
             al->exit_error, text);
    al_fail(al, "agent", "agent", 0, why);
}

static void
al_on_exit(void *arg, int rc, int signal, const char *error)
{
    struct ch_agentlink *al = arg;

    ch_chan_free(al->chan);
    al->chan = NULL;
    al->exit_rc = rc;
    al->exit_signal = signal;
    snprintf(al->exit_error, sizeof(al->exit_error), "%s",
             error != NULL ? error : "");
    if (ch_loop_defer(al->loop, al_ended, al) != CH_OK) {
        al_ended(al);
    }
}

static const struct ch_chan_events al_chan_events = {
    .on_data = al_on_data,
    .on_writable = al_on_writable,
    .on_exit = al_on_exit,
};

/* --- life --- */

struct ch_agentlink *
ch_agentlink_new(struct ch_loop *loop, struct ch_link *link,
                 const struct ch_agentlink_spec *spec,
                 const struct ch_agentlink_events *events, void *arg, int *r)
{
    struct ch_agentlink *al = calloc(1, sizeof(*al));

    if (al == NULL) {
        *r = CH_ERR_NOMEM;
        return NULL;
    }
    al->loop = loop;
    al->events = events;
    al->arg = arg;
    al->alive_interval_ms = spec->alive_interval_ms;
    al->alive_count = spec->alive_count;
    al->in_bytes = spec->in_bytes;
    al->out_bytes = spec->out_bytes;
    snprintf(al->name, sizeof(al->name), "%s", spec->name);
    snprintf(al->nonce, sizeof(al->nonce), "%s", spec->nonce);
    /* One frame that waits for a slow client, and what a chan may deliver
     * before the pause takes effect. */
    ch_buf_init(&al->in, 16u * CH_WIRE_BODY_MAX);
    ch_outq_init(&al->out);
    ch_outq_init(&al->urgent);
    al->timer = ch_loop_timer(loop, spec->timeout_ms, al_timeout, al);
    *r = al->timer == NULL
             ? CH_ERR_NOMEM
             : ch_outq_put_raw(&al->out, spec->input, spec->input_len);
    if (*r == CH_OK) {
        *r = ch_chan_new(link, spec->command, NULL, &al_chan_events, al,
                         &al->chan);
    }
    if (*r != CH_OK) {
        al->chan = NULL;
        ch_agentlink_free(al);
        return NULL;
    }
    ch_agentlink_flush(al);
    return al;
}

static void
al_destroy(void *arg)
{
    struct ch_agentlink *al = arg;

    ch_buf_fini(&al->in);
    ch_outq_fini(&al->out);
    ch_outq_fini(&al->urgent);
    free(al);
}

void
ch_agentlink_free(struct ch_agentlink *al)
{
    if (al == NULL || al->state == DEAD) {
        return;
    }
    al->state = DEAD;
    ch_loop_cancel(al->loop, al->timer);
    ch_loop_cancel(al->loop, al->resume);
    ch_loop_cancel(al->loop, al->alive_timer);
    ch_loop_cancel(al->loop, al->probe_timer);
    al->timer = al->resume = al->alive_timer = al->probe_timer = NULL;
    ch_chan_free(al->chan);
    al->chan = NULL;
    /* Callers may be its own callbacks: the memory stays until the end of
     * the turn. */
    if (ch_loop_defer(al->loop, al_destroy, al) != CH_OK) {
        return;
    }
}
