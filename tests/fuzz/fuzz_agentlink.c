/*
 * fuzz_agentlink.c - libFuzzer over what a target can send to the pool: the
 * bytes before the marker and the frames behind it, in pieces, through the
 * real agentlink and a link that is only this file. Each input byte pair
 * decides how long the next piece is; the pool's side sends requests of its
 * own meanwhile.
 */
#include <stdlib.h>
#include <string.h>

#include "../../csrc/agentlink.h"

#define NONCE "0123456789abcdef0123456789abcdef"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct ch_chan {
    struct ch_chan_head head;
    const struct ch_chan_events *events;
    void *arg;
    int paused, freed;
};

static const struct ch_link_ops fuzz_ops;
static struct ch_chan chan;
static struct ch_link_head fuzz_link = {&fuzz_ops};
static struct ch_agentlink *al;
static unsigned frames;

/* link.c of the fuzzer: only one link there is. */
int
ch_chan_new(struct ch_link *link, const char *command, const char *term,
            const struct ch_chan_events *events, void *arg,
            struct ch_chan **out)
{
    (void)link;
    (void)term;
    (void)command;
    chan.events = events;
    chan.arg = arg;
    chan.paused = chan.freed = 0;
    *out = &chan;
    return CH_OK;
}

long
ch_chan_write(struct ch_chan *c, const uint8_t *data, size_t len)
{
    (void)c;
    (void)data;
    return (long)(len > 7 ? 7 : len);
}

long
ch_chan_backlog(const struct ch_chan *c)
{
    (void)c;
    return 0;
}

void
ch_chan_pause(struct ch_chan *c, int pause)
{
    c->paused = pause;
}

void
ch_chan_free(struct ch_chan *c)
{
    if (c != NULL) {
        c->freed = 1;
    }
}

static void
on_ready(void *arg, const uint8_t *hello, size_t len)
{
    struct ch_frame frame = {.type = CH_FETCH, .request = 1};

    (void)arg;
    if (ch_vec_check(hello, len, 1) != CH_OK ||
        ch_outq_put(ch_agentlink_queue(al), &frame, NULL, 1) != CH_OK) {
        abort();
    }
    ch_agentlink_flush(al);
    ch_agentlink_expect(al, 1);
}

static int
on_frame(void *arg, const struct ch_frame *frame)
{
    (void)arg;
    if (frame->type == CH_HELLO || frame->type == CH_RUN ||
        frame->len > CH_WIRE_BODY_MAX) {
        abort();
    }
    frames++;
    if (frame->type == CH_EXIT && frame->len > 4) {
        ch_agentlink_free(al);
        al = NULL;
        return CH_OK;
    }
    return frames % 5 == 4 ? CH_ERR_AGAIN : CH_OK;
}

static void
on_sent(void *arg, uint32_t request)
{
    (void)arg;
    (void)request;
}

static void
on_drained(void *arg)
{
    (void)arg;
}

static void
on_failed(void *arg, const char *fail_class, const char *layer,
          const char *message, int link_lost)
{
    (void)arg;
    (void)link_lost;
    if (strlen(fail_class) + strlen(layer) + strlen(message) < 10) {
        abort();
    }
    ch_agentlink_free(al);
    al = NULL;
}

static const struct ch_agentlink_events events = {on_ready, on_frame, on_sent,
                                                  on_drained, on_failed};

static void
stop(void *arg)
{
    ch_loop_stop(arg);
}

/* One turn: a refused frame is offered again, freed things go away. */
static void
turn(struct ch_loop *loop)
{
    if (al != NULL) {
        ch_agentlink_resume(al);
    }
    if (ch_loop_timer(loop, 0, stop, loop) == NULL ||
        ch_loop_run(loop) != CH_OK) {
        abort();
    }
}

static void
feed(struct ch_loop *loop, const uint8_t *data, size_t size)
{
    while (size > 0 && al != NULL && !chan.freed) {
        size_t n = (size_t)data[0] * (data[0] & 1 ? 64 : 1) + 1;
        int stream = data[0] % 16 == 0 ? 2 : 1;

        data++;
        size--;
        n = n < size ? n : size;
        while (chan.paused && al != NULL) {
            turn(loop);
        }
        if (al != NULL && !chan.freed) {
            chan.events->on_data(chan.arg, stream, data, n);
        }
        data += n;
        size -= n;
    }
    if (al != NULL && !chan.freed) {
        chan.events->on_exit(chan.arg, 1, 0, NULL);
    }
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char ready[] = "\nCHURTEN-" NONCE "-READY\n";
    uint64_t in_bytes = 0, out_bytes = 0;
    struct ch_agentlink_spec spec = {.name = "fuzz",
                                     .command = "x",
                                     .nonce = NONCE,
                                     .timeout_ms = 1000000,
                                     .alive_interval_ms = 1000000,
                                     .alive_count = 3,
                                     .in_bytes = &in_bytes,
                                     .out_bytes = &out_bytes};
    struct ch_loop *loop = ch_loop_new();
    int r = CH_OK;

    frames = 0;
    al = ch_agentlink_new(loop, (struct ch_link *)(void *)&fuzz_link, &spec,
                          &events, NULL, &r);
    if (size > 0 && data[0] % 4 != 0) {
        chan.events->on_data(chan.arg, 1, (const uint8_t *)ready,
                             sizeof(ready) - 1);
    }
    if (size > 0) {
        feed(loop, data + 1, size - 1);
    }
    turn(loop);
    ch_agentlink_free(al);
    al = NULL;
    turn(loop);
    ch_loop_free(loop);
    return 0;
}
