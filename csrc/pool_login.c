/*
 * pool_login.c - what comes from a login agent: answers to requests (its own
 * and its sub-agents'), and the starts and ends of sub-agents. Everything
 * here was sent by the target and is checked before it is believed; a frame
 * that cannot be right ends the session.
 */
#include "pool_int.h"

#include <string.h>

#include "log.h"

static int
sub_frame(struct agent *sub, const struct ch_frame *frame)
{
    struct ch_vec vec;
    const uint8_t *item = NULL;
    size_t len = 0;
    struct fail fail;

    if (frame->type == CH_STARTED && sub->state == AGENT_STARTING) {
        if (ch_vec_check(frame->body, frame->len, 1) != CH_OK) {
            return CH_ERR_PROTOCOL;
        }
        agent_ready(sub, frame->body, frame->len);
        return CH_OK;
    }
    if (frame->type != CH_FAILED ||
        ch_vec_check(frame->body, frame->len, 0) != CH_OK ||
        ch_vec_init(&vec, frame->body, frame->len) != CH_OK || vec.left < 3) {
        return CH_ERR_PROTOCOL;
    }
    /* Only words of the protocol go on to clients. */
    static const char *const classes[] = {
        "become_password_missing",
        "become_password_wrong",
        "become",
        "no_python",
        "unsupported",
        "agent",
    };
    fail.class = "agent";
    fail.message[0] = '\0';
    if (ch_vec_next(&vec, &item, &len) == CH_OK) {
        for (size_t i = 0; i < sizeof(classes) / sizeof(*classes); i++) {
            if (strlen(classes[i]) == len &&
                memcmp(classes[i], item, len) == 0) {
                fail.class = classes[i];
            }
        }
    }
    fail.layer = strncmp(fail.class, "become", 6) == 0 ? "become" : "agent";
    if (ch_vec_next(&vec, &item, &len) == CH_OK &&
        ch_vec_next(&vec, &item, &len) == CH_OK) {
        ch_text_clean(fail.message, sizeof(fail.message), item, len);
    }
    ch_log("%s: sub-agent failed (%s): %s", sub->session->name, fail.class,
           fail.message);
    agent_fail(sub, &fail, 1);
    return CH_OK;
}

static int
login_frame(void *arg, const struct ch_frame *frame)
{
    struct agent *login = arg;
    struct request *req;
    struct agent *sub;

    if (frame->session != 0) {
        return CH_ERR_PROTOCOL;
    }
    if (frame->request == 0) {
        sub = ch_table_find(&login->by_index, &frame->agent,
                            sizeof(frame->agent));
        if (frame->agent == 0 || frame->agent > login->last_index) {
            return CH_ERR_PROTOCOL;
        }
        /* A sub-agent that was closed meanwhile may still say something. */
        return sub == NULL ? CH_OK : sub_frame(sub, frame);
    }
    req = ch_table_find(&login->wire, &frame->request, sizeof(frame->request));
    if (req == NULL) {
        return frame->request <= login->last_wire ? CH_OK : CH_ERR_PROTOCOL;
    }
    if (req->agent->index != frame->agent) {
        return CH_ERR_PROTOCOL;
    }
    if (client_full(req->attach->client, &login->stopper)) {
        return CH_ERR_AGAIN;
    }
    return request_reply(req, frame);
}

static void
login_ready(void *arg, const uint8_t *hello, size_t len)
{
    struct agent *login = arg;

    ch_log("%s: agent ready", login->session->name);
    agent_ready(login, hello, len);
}

static void
login_sent(void *arg, uint32_t number)
{
    struct agent *login = arg;
    struct request *req = ch_table_find(&login->wire, &number, sizeof(number));

    if (req != NULL && req->state == REQUEST_QUEUED) {
        req->state = REQUEST_SENT;
        req->sent_us = ch_now_us();
    }
}

static void
login_drained(void *arg)
{
    sources_feed(arg);
}

static void
login_failed(void *arg, const char *fail_class, const char *layer,
             const char *message, int link_lost)
{
    struct agent *login = arg;
    struct fail fail;

    if (link_lost) {
        session_fail(login->session, fail_class, layer, message);
        return;
    }
    fail_set(&fail, fail_class, layer, message);
    agent_fail(login, &fail, 1);
}

const struct ch_agentlink_events pool_login_events = {
    .on_ready = login_ready,
    .on_frame = login_frame,
    .on_sent = login_sent,
    .on_drained = login_drained,
    .on_failed = login_failed,
};

void
pool_login_resume(void *arg)
{
    struct agent *login = arg;

    if (login->al != NULL) {
        ch_agentlink_resume(login->al);
    }
}
