/*
 * pool_request.c - requests: the client's number on one side, ours on the
 * agent hop on the other, both windows, and the state that decides whether
 * a request may be repeated.
 *
 *   QUEUED --first byte written--> SENT --agent says--> ACCEPTED
 *      `---------------`---------------`--> EXIT or FAILED: gone
 *
 * `started` in a FAILED is 0 only for QUEUED. Both windows are enforced
 * here: a target that sends more than it may breaks the protocol and loses
 * its session, a client that does is dropped; so neither can make the pool
 * hold more than a window (and one frame) per request and direction.
 */
#include "pool_int.h"

#include "log.h"

#include <stdlib.h>
#include <string.h>

#include "log.h"
#include "zip.h"

#define KEY_MAX      1000u
#define WINDOW_AHEAD ((int64_t)2 * 1024 * 1024)
#define STOOD_US     10000 /* the line is long enough to matter */

int
frame_raw_len(const struct ch_frame *frame, size_t *raw)
{
    if (!(frame->flags & CH_FLAG_ZLIB)) {
        *raw = frame->len;
        return CH_OK;
    }
    return ch_zip_raw_len(frame->body, frame->len, CH_WIRE_BODY_MAX, raw);
}

static uint32_t
get_u32(const uint8_t *at)
{
    return ((uint32_t)at[0] << 24) | ((uint32_t)at[1] << 16) |
           ((uint32_t)at[2] << 8) | at[3];
}

/* --- the table --- */

static uint64_t
request_key(const struct client *client, uint32_t number)
{
    return ((uint64_t)client->serial << 32) | number;
}

struct request *
request_find(struct client *client, uint32_t number)
{
    uint64_t key = request_key(client, number);

    return ch_table_find(&client->pool->requests, &key, sizeof(key));
}

static void
request_free(struct request *req)
{
    struct session *session = req->attach->session;
    struct ch_pool *pool = session->pool;
    uint64_t key = request_key(req->attach->client, req->number);

    ch_log_at(CH_LOG_DEBUG, "%s: request %u of client %u ended after %lld us",
              session->name, req->number, req->attach->client->serial,
              (long long)(ch_now_us() - req->received_us));
    (void)ch_table_remove(&pool->requests, &key, sizeof(key));
    if (req->agent != NULL) {
        (void)ch_table_remove(&req->agent->login->wire, &req->wire,
                              sizeof(req->wire));
        agent_expect(req->agent, -1);
    }
    if (req->exec != NULL) {
        exec_free(req->exec);
    }
    source_free(req->source);
    ch_list_remove(&req->in_attach);
    ch_list_remove(&req->in_agent);
    session->n_requests--;
    session_check(session);
    pool_free_later(pool, req);
}

static struct request *
request_create(struct attach *attach, struct agent *agent,
               const struct ch_frame *frame)
{
    struct client *client = attach->client;
    struct request *req = calloc(1, sizeof(*req));
    uint64_t key = request_key(client, frame->request);

    if (req == NULL) {
        return NULL;
    }
    req->attach = attach;
    req->agent = agent;
    req->number = frame->request;
    req->agent_number = frame->agent;
    req->type = frame->type;
    req->received_us = ch_now_us();
    req->down = req->up = CH_WIRE_WINDOW;
    ch_list_init(&req->in_agent);
    if (ch_table_put(&client->pool->requests, &key, sizeof(key), req) !=
        CH_OK) {
        free(req);
        return NULL;
    }
    if (agent != NULL) {
        req->wire = ++agent->login->last_wire;
        if (ch_table_put(&agent->login->wire, &req->wire, sizeof(req->wire),
                         req) != CH_OK) {
            (void)ch_table_remove(&client->pool->requests, &key, sizeof(key));
            free(req);
            return NULL;
        }
        ch_list_add_tail(&agent->requests, &req->in_agent);
        agent_expect(agent, 1);
    }
    ch_list_add_tail(&attach->requests, &req->in_attach);
    attach->session->n_requests++;
    client->pool->total_requests++;
    return req;
}

/* --- to the client --- */

static void
put_u64(uint8_t *at, int64_t value)
{
    for (int i = 0; i < 8; i++) {
        at[i] = (uint8_t)((uint64_t)value >> (56 - 8 * i));
    }
}

static void
request_forward(struct request *req, const struct ch_frame *frame)
{
    struct ch_frame f = *frame;

    f.session = req->attach->number;
    f.agent = req->agent_number;
    f.request = req->number;
    client_frame(req->attach->client, &f);
}

static void
request_stamp(struct request *req)
{
    uint8_t body[24];
    struct ch_frame frame = {
        .type = CH_STAMP, .body = body, .len = sizeof(body)};

    put_u64(body, req->received_us);
    put_u64(body + 8, req->sent_us);
    put_u64(body + 16, ch_now_us());
    request_forward(req, &frame);
}

void
request_fail(struct request *req, const struct fail *fail)
{
    request_stamp(req);
    client_failed(req->attach->client, req->attach->number, req->agent_number,
                  req->number, fail, req->state != REQUEST_QUEUED);
    request_free(req);
}

/* --- from the target: checked before a client sees it --- */

static size_t
queue_bytes(const struct agent *agent)
{
    const struct agent *login = agent->login;

    return agent->held.bytes + login->held.bytes +
           (login->al != NULL ? ch_agentlink_queue(login->al)->bytes : 0);
}

/* On a long line a window is used up long before the target can give it back.
 * How much the client may send beyond what was given back, because it stood
 * still though all it sent is on its way: so the window grows with each round
 * trip until it fills the line (an SSH server lets 2 MiB be under way). */
static uint32_t
window_more(const struct request *req, uint32_t given)
{
    int64_t more = WINDOW_AHEAD - req->ahead;

    if (req->type != CH_PUT || req->stood_us == 0 ||
        ch_now_us() - req->stood_us < STOOD_US ||
        queue_bytes(req->agent) > 0) {
        return 0;
    }
    return more < given ? (uint32_t)more : given;
}

static int
reply_window(struct request *req, const struct ch_frame *frame)
{
    uint32_t given = frame->len == 4 ? get_u32(frame->body) : 0;
    uint8_t body[4];
    struct ch_frame f = *frame;
    uint32_t more;

    if (given == 0 || (req->type != CH_PUT && req->type != CH_EXEC) ||
        req->up + given > CH_WIRE_WINDOW + req->ahead) {
        return CH_ERR_PROTOCOL;
    }
    more = window_more(req, given);
    req->ahead += more;
    req->up += given + more;
    req->stood_us = 0;
    if (req->has_source) {
        sources_feed(req->agent->login);
        return CH_OK;
    }
    for (int i = 0; i < 4; i++) {
        body[i] = (uint8_t)((given + more) >> (24 - 8 * i));
    }
    f.body = body;
    request_forward(req, &f);
    return CH_OK;
}

/* Every frame must bring something, or it could come without end: bytes
 * (bounded by the window), or the first END of its stream. */
static int
reply_data(struct request *req, const struct ch_frame *frame)
{
    int stream = frame->flags >> 2 & 3;
    int ends = (frame->flags & CH_FLAG_END) != 0;

    if (stream == 3 || (req->down_ended & 1 << stream) != 0 ||
        (frame->len == 0 && !ends) || (req->down <= 0 && frame->len > 0)) {
        return CH_ERR_PROTOCOL;
    }
    req->down_ended |= ends << stream;
    req->down -= (int64_t)frame->len;
    request_forward(req, frame);
    return CH_OK;
}

/* A decimal number of at most 18 digits. */
static int
is_number(const uint8_t *text, size_t len)
{
    size_t at = len > 0 && text[0] == '-' ? 1 : 0;

    if (len == at || len - at > 18) {
        return 0;
    }
    while (at < len && text[at] >= '0' && text[at] <= '9') {
        at++;
    }
    return at == len;
}

static int
reply_exit(struct request *req, const struct ch_frame *frame)
{
    struct ch_vec vec;
    const uint8_t *item = NULL;
    size_t len = 0;
    int files = req->type == CH_PUT || req->type == CH_FETCH;

    if (ch_vec_check(frame->body, frame->len, 0) != CH_OK ||
        ch_vec_init(&vec, frame->body, frame->len) != CH_OK || vec.left != 6 ||
        (req->state != REQUEST_ACCEPTED && !files && !req->cancelled)) {
        return CH_ERR_PROTOCOL;
    }
    for (int i = 0; i < 3; i++) { /* rc, signal, run time */
        if (ch_vec_next(&vec, &item, &len) != CH_OK || !is_number(item, len)) {
            return CH_ERR_PROTOCOL;
        }
    }
    request_stamp(req);
    request_forward(req, frame);
    request_free(req);
    return CH_OK;
}

/* Only words that an agent may say go on to clients: a class decides what
 * they do next (`pool` would put all hosts on the stock path). */
static int
reply_failed(struct request *req, const struct ch_frame *frame)
{
    static const char *const classes[] = {"agent",       "file",
                                          "cancelled",   "no_python",
                                          "unsupported", "busy",
                                          "chain"};
    struct ch_vec vec;
    const uint8_t *item[4];
    size_t len[4];
    struct fail fail = {.class = "agent", .layer = "agent"};
    int started;

    if (ch_vec_check(frame->body, frame->len, 0) != CH_OK ||
        ch_vec_init(&vec, frame->body, frame->len) != CH_OK || vec.left != 4) {
        return CH_ERR_PROTOCOL;
    }
    for (int i = 0; i < 4; i++) {
        if (ch_vec_next(&vec, &item[i], &len[i]) != CH_OK) {
            return CH_ERR_PROTOCOL;
        }
    }
    for (size_t i = 0; i < sizeof(classes) / sizeof(*classes); i++) {
        if (strlen(classes[i]) == len[0] &&
            memcmp(classes[i], item[0], len[0]) == 0) {
            fail.class = classes[i];
        }
    }
    if (len[1] == 4 && memcmp(item[1], "file", 4) == 0) {
        fail.layer = "file";
    }
    ch_text_clean(fail.message, sizeof(fail.message), item[2], len[2]);
    started = req->state == REQUEST_ACCEPTED || len[3] != 1 || *item[3] != '0';
    request_stamp(req);
    client_failed(req->attach->client, req->attach->number, req->agent_number,
                  req->number, &fail, started);
    request_free(req);
    return CH_OK;
}

void
request_push(struct request *req, uint8_t flags, const uint8_t *data,
             size_t len)
{
    struct ch_frame frame = {
        .type = CH_DATA, .flags = flags, .body = data, .len = (uint32_t)len};

    req->down -= (int64_t)len;
    request_forward(req, &frame);
}

int
request_reply(struct request *req, const struct ch_frame *frame)
{
    if (req->state == REQUEST_QUEUED || (frame->flags & CH_FLAG_ZLIB) ||
        (frame->type != CH_DATA && frame->flags != 0)) {
        return CH_ERR_PROTOCOL;
    }
    switch (frame->type) {
    case CH_ACCEPTED:
        if (req->state == REQUEST_ACCEPTED || frame->len != 0) {
            return CH_ERR_PROTOCOL;
        }
        req->state = REQUEST_ACCEPTED;
        request_forward(req, frame);
        return CH_OK;
    case CH_DATA:
        return reply_data(req, frame);
    case CH_WINDOW:
        return reply_window(req, frame);
    case CH_EXIT:
        return reply_exit(req, frame);
    case CH_FAILED:
        return reply_failed(req, frame);
    default:
        return CH_ERR_PROTOCOL;
    }
}

/* --- from the client --- */

int
request_data(struct request *req, const struct ch_frame *frame)
{
    struct ch_frame f = *frame;
    size_t raw = 0;

    if ((req->type != CH_PUT && req->type != CH_EXEC) || req->up_ended ||
        frame_raw_len(frame, &raw) != CH_OK || (req->up <= 0 && raw > 0)) {
        return CH_ERR_PROTOCOL;
    }
    req->up -= (int64_t)raw;
    req->stood_us = req->up <= 0 ? ch_now_us() : 0;
    req->up_ended = (frame->flags & CH_FLAG_END) != 0;
    if (req->exec != NULL) {
        return exec_data(req->exec, frame);
    }
    f.request = req->wire;
    return agent_put(req->agent, &f, NULL, 0);
}

int
request_window(struct request *req, const struct ch_frame *frame)
{
    struct ch_frame f = *frame;

    if (frame->len != 4 || req->down + get_u32(frame->body) > CH_WIRE_WINDOW) {
        return CH_ERR_PROTOCOL;
    }
    req->down += get_u32(frame->body);
    if (req->exec != NULL) {
        exec_window(req->exec);
        return CH_OK;
    }
    f.request = req->wire;
    return agent_put(req->agent, &f, NULL, 0);
}

/* Takes a request that was never written out of the queue; 0 if it was. */
static int
request_unqueue(struct request *req)
{
    if (req->agent == NULL || req->state != REQUEST_QUEUED) {
        return 0;
    }
    ch_outq_drop(&req->agent->held, req->wire);
    if (req->agent->login->al != NULL) {
        ch_outq_drop(ch_agentlink_queue(req->agent->login->al), req->wire);
    }
    return 1;
}

static void
request_kill(struct request *req)
{
    struct ch_frame frame = {.type = CH_CANCEL, .request = req->wire};

    req->cancelled = 1;
    source_free(req->source);
    req->source = NULL;
    if (agent_put(req->agent, &frame, NULL, 0) != CH_OK) {
        /* Only without memory or agent: then it ends with the agent. */
        return;
    }
}

void
request_break(struct request *req, const struct fail *fail)
{
    request_kill(req);
    request_fail(req, fail);
}

void
request_cancel(struct request *req)
{
    struct fail fail;

    if (req->exec != NULL) {
        exec_cancel(req->exec);
    } else if (request_unqueue(req)) {
        fail_set(&fail, "cancelled", "pool", "cancelled before it began");
        request_fail(req, &fail);
    } else {
        request_kill(req);
    }
}

void
request_ask(struct request *req)
{
    struct ch_frame frame = {.type = CH_PING, .request = req->wire};

    if (req->agent == NULL || req->state == REQUEST_QUEUED) {
        return;
    }
    if (agent_put(req->agent, &frame, NULL, 0) != CH_OK) {
        /* Only without memory or agent: then it ends with the agent. */
        return;
    }
}

void
request_forget(struct request *req)
{
    if (req->agent != NULL && !request_unqueue(req)) {
        request_kill(req);
    }
    request_free(req);
}

/* The payload key of a RUN: borrowed from its body or from scratch. */
static int
run_key(const struct ch_frame *frame, uint8_t *scratch, size_t size,
        const uint8_t **key, size_t *len)
{
    const uint8_t *body = frame->body;
    size_t got = frame->len;
    size_t raw = 0;

    if (frame->flags & CH_FLAG_ZLIB) {
        if (ch_zip_raw_len(body, got, CH_WIRE_RAW_MAX, &raw) != CH_OK ||
            ch_zip_peek(body, got, scratch, size, &got) != CH_OK) {
            return CH_ERR_PROTOCOL;
        }
        body = scratch;
    }
    if (got < 6 || get_u32(body + 2) > got - 6 ||
        get_u32(body + 2) > KEY_MAX) {
        return CH_ERR_PROTOCOL;
    }
    *len = get_u32(body + 2);
    *key = body + 6;
    return CH_OK;
}

static void
need_send(struct client *client, const struct ch_frame *frame,
          const uint8_t *key, size_t len)
{
    struct ch_frame need = *frame;
    struct ch_buf body;

    ch_buf_init(&body, CH_WIRE_BODY_MAX);
    if (ch_vec_put_count(&body, 1) != CH_OK ||
        ch_vec_put(&body, key, len) != CH_OK) {
        client_doom(client);
    } else {
        need.type = CH_NEED;
        need.flags = 0;
        need.body = ch_buf_data(&body);
        need.len = (uint32_t)ch_buf_len(&body);
        client_frame(client, &need);
    }
    ch_buf_fini(&body);
}

/* Sees to it that the agent has the payload before the RUN: CH_OK,
 * CH_ERR_AGAIN (NEED was sent), or another error. */
static int
payload_provide(struct client *client, struct agent *agent,
                const struct ch_frame *frame)
{
    uint8_t scratch[KEY_MAX + 6];
    struct ch_frame payload = {.type = CH_PAYLOAD};
    const uint8_t *key = NULL;
    struct ch_blob *blob;
    size_t len = 0;
    int r = run_key(frame, scratch, sizeof(scratch), &key, &len);

    if (r != CH_OK || len == 0 ||
        ch_table_find(&agent->has, key, len) != NULL) {
        return r;
    }
    blob = store_find(client->pool, key, len);
    if (blob == NULL) {
        need_send(client, frame, key, len);
        return CH_ERR_AGAIN;
    }
    r = ch_table_put(&agent->has, key, len, agent);
    return r == CH_OK ? agent_put(agent, &payload, blob, 0) : r;
}

static int
request_to_agent(struct attach *attach, struct agent *agent,
                 const struct ch_frame *frame)
{
    struct ch_frame f = *frame;
    struct request *req;
    int r = CH_OK;

    if (frame->type == CH_RUN) {
        r = payload_provide(attach->client, agent, frame);
    }
    if (r != CH_OK) {
        return r == CH_ERR_AGAIN ? CH_OK : r;
    }
    req = request_create(attach, agent, frame);
    if (req == NULL) {
        return CH_ERR_NOMEM;
    }
    f.request = req->wire;
    return agent_put(agent, &f, NULL, 1);
}

/* Why it cannot even be queued; NULL if it can. ref is set for an agent. */
static const struct fail *
request_obstacle(struct attach *attach, const struct ch_frame *frame,
                 struct agent_ref **ref, struct fail *scratch)
{
    *ref = NULL;
    if (attach == NULL) {
        fail_set(scratch, "reset", "pool", "no such session: send OPEN");
        return scratch;
    }
    if (attach->session->state == SESSION_DEAD) {
        return &attach->session->fail;
    }
    if (attach->session->retired) {
        fail_set(scratch, "reset", "pool", "the session was reset");
        return scratch;
    }
    if (frame->agent == CH_AGENT_NONE) {
        return NULL;
    }
    *ref = ref_find(attach, frame->agent);
    if (*ref == NULL) {
        fail_set(scratch, "reset", "agent", "no such agent: send START");
        return scratch;
    }
    if ((*ref)->agent->state == AGENT_DEAD) {
        return &(*ref)->agent->fail;
    }
    if (queue_bytes((*ref)->agent) > POOL_QUEUE_LIMIT) {
        fail_set(scratch, "busy", "pool",
                 "too much is queued for this host already");
        return scratch;
    }
    return NULL;
}

int
request_new(struct client *client, const struct ch_frame *frame)
{
    struct attach *attach = attach_find(client, frame->session);
    struct agent_ref *ref = NULL;
    struct fail scratch;
    const struct fail *obstacle;
    struct request *req;

    if (frame->request == 0 || request_find(client, frame->request) != NULL ||
        (frame->agent == CH_AGENT_NONE &&
         (frame->type != CH_EXEC || (frame->flags & CH_FLAG_LINK))) ||
        (!(frame->flags & CH_FLAG_ZLIB) &&
         ch_vec_check(frame->body, frame->len, 0) != CH_OK)) {
        return CH_ERR_PROTOCOL;
    }
    obstacle = request_obstacle(attach, frame, &ref, &scratch);
    if (obstacle != NULL) {
        client_failed(client, frame->session, frame->agent, frame->request,
                      obstacle, 0);
        return CH_OK;
    }
    if (ref != NULL) {
        return request_to_agent(attach, ref->agent, frame);
    }
    req = request_create(attach, NULL, frame);
    return req == NULL ? CH_ERR_NOMEM : exec_new(req, frame);
}
