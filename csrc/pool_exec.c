/*
 * pool_exec.c - EXEC without an agent: one plain chan per request. The pool
 * plays the agent's part: DATA both ways within the windows, EXIT.
 *
 *   WAITING --session open--> RUNNING --chan ended--> EXIT or FAILED
 *
 * ACCEPTED is sent with the first sign of life, because until then the
 * server may still refuse the chan (MaxSessions) and the request is
 * repeatable. The end of the chan is judged at the end of the turn, when
 * the link has said whether it is lost altogether.
 */
#include "pool_int.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "log.h"

struct exec {
    struct request *req;
    struct session *session;
    struct ch_list in_session;
    struct ch_chan *chan;
    struct ch_timer *timer;
    char *command;
    char *term;            /* NULL: no terminal */
    struct ch_buf in;      /* stdin not yet taken by the chan */
    int in_ended, stopped; /* stopped: the client is full */
    int dead, timed_out, cancelled;
    int exit_rc, exit_signal, refused;
    char exit_error[1024];
    int64_t timeout_ms, begun_us;
    struct stopper stopper;
};

static void
exec_reply(struct exec *exec, uint8_t type, uint8_t flags, const uint8_t *body,
           size_t len)
{
    struct ch_frame frame = {
        .type = type, .flags = flags, .body = body, .len = (uint32_t)len};

    if (request_reply(exec->req, &frame) != CH_OK) {
        ch_log_at(CH_LOG_ERROR, "%s: internal error in an exec channel", exec->session->name);
    }
}

static void
exec_accepted(struct exec *exec)
{
    if (exec->req->state == REQUEST_SENT) {
        exec_reply(exec, CH_ACCEPTED, 0, NULL, 0);
    }
}

/* Reading goes on while the client has window and room. */
static void
exec_throttle(struct exec *exec)
{
    exec->stopped = client_full(exec->req->attach->client, &exec->stopper);
    if (exec->chan != NULL) {
        ch_chan_pause(exec->chan, exec->stopped || exec->req->down <= 0);
    }
}

static void
exec_resume(void *arg)
{
    struct exec *exec = arg;

    if (!exec->dead) {
        exec_throttle(exec);
    }
}

void
exec_window(struct exec *exec)
{
    exec_throttle(exec);
}

/* --- stdin --- */

static void
exec_feed(struct exec *exec)
{
    size_t total = 0;
    uint8_t grant[4];

    while (exec->chan != NULL && ch_buf_len(&exec->in) > 0) {
        long n = ch_chan_write(exec->chan, ch_buf_data(&exec->in),
                               ch_buf_len(&exec->in));

        if (n < 0) {
            /* It closed its stdin: what is left is lost, as in a pipe. */
            n = (long)ch_buf_len(&exec->in);
        }
        if (n == 0) {
            break;
        }
        exec->session->out_bytes += (uint64_t)n;
        ch_buf_consume(&exec->in, (size_t)n);
        total += (size_t)n;
    }
    if (exec->chan != NULL && exec->in_ended && exec->term == NULL &&
        ch_buf_len(&exec->in) == 0) {
        ch_chan_eof(exec->chan);
    }
    if (total > 0 && !exec->in_ended && exec->req->state != REQUEST_QUEUED) {
        for (int i = 0; i < 4; i++) {
            grant[i] = (uint8_t)(total >> (24 - 8 * i));
        }
        exec_reply(exec, CH_WINDOW, 0, grant, sizeof(grant));
    }
}

int
exec_data(struct exec *exec, const struct ch_frame *frame)
{
    int r;

    if (frame->flags & CH_FLAG_ZLIB) {
        return CH_ERR_PROTOCOL;
    }
    r = ch_buf_put(&exec->in, frame->body, frame->len);
    if (r != CH_OK) {
        return r;
    }
    exec->in_ended |= (frame->flags & CH_FLAG_END) != 0;
    exec_feed(exec);
    return CH_OK;
}

/* --- chan events --- */

static void
exec_on_data(void *arg, int stream, const uint8_t *data, size_t len)
{
    struct exec *exec = arg;

    exec->session->in_bytes += len;
    exec_accepted(exec);
    while (len > 0 && !exec->dead) {
        size_t n = len < CH_WIRE_BODY_MAX ? len : CH_WIRE_BODY_MAX;

        request_push(exec->req, (uint8_t)(stream << 2), data, n);
        data += n;
        len -= n;
    }
    if (!exec->dead) {
        exec_throttle(exec);
    }
}

static void
exec_on_writable(void *arg)
{
    exec_feed(arg);
}

static int
exit_body(const struct exec *exec, struct ch_buf *body)
{
    int r = ch_vec_put_count(body, 6);

    r = r == CH_OK ? ch_vec_put_num(body, exec->exit_rc) : r;
    r = r == CH_OK ? ch_vec_put_num(body, exec->exit_signal) : r;
    r = r == CH_OK ? ch_vec_put_num(body, ch_now_us() - exec->begun_us) : r;
    r = r == CH_OK ? ch_vec_put_str(body, "") : r;
    r = r == CH_OK ? ch_vec_put_str(body, "") : r;
    return r == CH_OK ? ch_vec_put_str(body, "0") : r;
}

static void
exec_ended(void *arg)
{
    struct exec *exec = arg;
    struct ch_buf body;
    struct fail fail;

    if (exec->dead) {
        return;
    }
    if (exec->exit_error[0] != '\0' && !exec->cancelled) {
        if (exec->req->state == REQUEST_SENT) {
            /* No sign of life: the server refused the chan. */
            exec->req->state = REQUEST_QUEUED;
            fail_set(&fail, "unsupported", "channel", exec->exit_error);
        } else {
            fail_set(&fail, "unreachable", "channel", exec->exit_error);
        }
        request_fail(exec->req, &fail);
        return;
    }
    exec_accepted(exec);
    ch_buf_init(&body, CH_WIRE_BODY_MAX);
    if (exit_body(exec, &body) == CH_OK) {
        exec_reply(exec, CH_EXIT, 0, ch_buf_data(&body), ch_buf_len(&body));
    } else {
        client_doom(exec->req->attach->client);
    }
    ch_buf_fini(&body);
}

static void
exec_on_exit(void *arg, int rc, int signal, const char *error)
{
    struct exec *exec = arg;

    ch_chan_free(exec->chan);
    exec->chan = NULL;
    exec->exit_rc = rc;
    exec->exit_signal = signal;
    snprintf(exec->exit_error, sizeof(exec->exit_error), "%s",
             error != NULL ? error : "");
    if (ch_loop_defer(exec->session->pool->loop, exec_ended, exec) != CH_OK) {
        exec_ended(exec);
    }
}

static const struct ch_chan_events exec_chan_events = {
    .on_data = exec_on_data,
    .on_writable = exec_on_writable,
    .on_exit = exec_on_exit,
};

/* --- life --- */

/* A plain chan has no way to signal the command: closing it is what stock
 * does too. */
void
exec_cancel(struct exec *exec)
{
    struct fail fail;

    if (exec->req->state == REQUEST_QUEUED) {
        fail_set(&fail, "cancelled", "pool", "cancelled before it began");
        request_fail(exec->req, &fail);
        return;
    }
    exec->cancelled = 1;
    ch_chan_free(exec->chan);
    exec->chan = NULL;
    exec->exit_rc = -1;
    exec->exit_signal = 15;
    exec->exit_error[0] = '\0';
    exec_ended(exec);
}

static void
exec_timeout(void *arg)
{
    struct exec *exec = arg;

    exec->timer = NULL;
    exec_cancel(exec);
}

static void
exec_launch(struct exec *exec)
{
    struct ch_pool *pool = exec->session->pool;
    struct fail fail;
    int r;

    exec->begun_us = ch_now_us();
    if (exec->timeout_ms > 0) {
        exec->timer =
            ch_loop_timer(pool->loop, exec->timeout_ms, exec_timeout, exec);
    }
    r = ch_chan_new(exec->session->link, exec->command, exec->term,
                    &exec_chan_events, exec, &exec->chan);
    if (r != CH_OK) {
        exec->chan = NULL;
        if (r == CH_ERR_CLOSED) {
            fail_set(&fail, "unreachable", "channel", LINK_GONE);
        } else {
            fail_set(&fail, "unsupported", "channel",
                     r == CH_ERR_SYS ? strerror(errno) : ch_strerror(r));
        }
        request_fail(exec->req, &fail);
        return;
    }
    exec->req->state = REQUEST_SENT;
    exec->req->sent_us = ch_now_us();
    exec_feed(exec);
}

void
execs_launch(struct session *session)
{
    CH_LIST_EACH_SAFE (at, &session->execs) {
        exec_launch(CH_LIST_OF(at, struct exec, in_session));
    }
}

void
execs_fail(struct session *session, const struct fail *fail)
{
    while (!ch_list_empty(&session->execs)) {
        request_fail(
            CH_LIST_FIRST(&session->execs, struct exec, in_session)->req,
            fail);
    }
}

static void
exec_destroy(void *arg)
{
    struct exec *exec = arg;

    free(exec->command);
    free(exec->term);
    ch_buf_fini(&exec->in);
    free(exec);
}

void
exec_free(struct exec *exec)
{
    struct ch_loop *loop = exec->session->pool->loop;

    exec->dead = 1;
    exec->req->exec = NULL;
    ch_loop_cancel(loop, exec->timer);
    stopper_fini(&exec->stopper);
    ch_chan_free(exec->chan);
    exec->chan = NULL;
    ch_list_remove(&exec->in_session);
    if (ch_loop_defer(loop, exec_destroy, exec) != CH_OK) {
        return;
    }
}

/* command, env, timeout_ms, stdin, shell */
static int
exec_parse(struct exec *exec, const struct ch_frame *frame,
           const char **problem)
{
    const uint8_t *item[5] = {NULL};
    size_t len[5] = {0};
    char number[24];
    struct ch_vec vec;
    int r = (frame->flags & CH_FLAG_ZLIB)
                ? CH_ERR_PROTOCOL
                : ch_vec_init(&vec, frame->body, frame->len);

    for (int i = 0; i < 5 && r == CH_OK; i++) {
        r = ch_vec_next(&vec, &item[i], &len[i]);
    }
    if (r != CH_OK || memchr(item[0], 0, len[0]) != NULL ||
        len[2] >= sizeof(number)) {
        return CH_ERR_PROTOCOL;
    }
    memcpy(number, item[2], len[2]);
    number[len[2]] = '\0';
    exec->timeout_ms = strtoll(number, NULL, 10);
    exec->in_ended = !(len[3] == 4 && memcmp(item[3], "data", 4) == 0);
    if (len[3] == 8 && memcmp(item[3], "terminal", 8) == 0 && len[1] >= 5 &&
        memcmp(item[1], "TERM=", 5) == 0 &&
        memchr(item[1], 0, len[1]) == NULL) {
        exec->term = strndup((const char *)item[1] + 5, len[1] - 5);
        r = exec->term == NULL ? CH_ERR_NOMEM : CH_OK;
    } else if (len[1] > 0) {
        *problem = "an exec channel cannot set the environment";
    } else if (!(len[4] == 5 && memcmp(item[4], "login", 5) == 0) &&
               len[4] > 0) {
        *problem = "an exec channel always uses the login shell";
    }
    exec->command = strndup((const char *)item[0], len[0]);
    return exec->command == NULL ? CH_ERR_NOMEM : r;
}

int
exec_new(struct request *req, const struct ch_frame *frame)
{
    struct exec *exec = calloc(1, sizeof(*exec));
    const char *problem = NULL;
    struct fail fail;
    int r;

    if (exec == NULL) {
        request_forget(req);
        return CH_ERR_NOMEM;
    }
    exec->req = req;
    exec->session = req->attach->session;
    req->exec = exec;
    ch_buf_init(&exec->in, CH_WIRE_WINDOW + 2u * CH_WIRE_BODY_MAX);
    stopper_init(&exec->stopper, exec_resume, exec);
    ch_list_add_tail(&exec->session->execs, &exec->in_session);
    r = exec_parse(exec, frame, &problem);
    if (r != CH_OK) {
        request_forget(req);
        return r;
    }
    if (exec->in_ended) {
        req->up_ended = 1;
    }
    if (problem != NULL) {
        fail_set(&fail, "unsupported", "channel", problem);
        request_fail(req, &fail);
    } else if (exec->session->state == SESSION_OPEN) {
        exec_launch(exec);
    }
    return CH_OK;
}
