/*
 * pool_agent.c - agents: login agents, each over a chan of its session, and
 * the sub-agents (become) that a login agent spawned and whose frames travel
 * through it with their index.
 *
 *   WAITING --session open (sub: login ready)--> STARTING --> READY
 *      `---------------- failed ----------------------+--------`--> DEAD
 *
 * Equal keys share one agent: login agents within their session, sub-agents
 * within their login agent. Frames for an agent that is not READY are held
 * and follow its STARTED, except for a login agent over libssh: they follow
 * its input. A dead login agent takes its subs along; a dead agent is kept
 * only to tell its refs why. A login agent without refs stays warm for the
 * session's idle time, a sub-agent without refs is closed.
 */
#include "pool_int.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "log.h"

#define START_MS     60000
#define SUB_GUARD_MS 5000 /* beyond the agent's own deadline for a sub */

static void login_launch(struct agent *agent);
static void sub_launch(struct agent *agent);

static int
is_login(const struct agent *agent)
{
    return agent->login == agent;
}

/* --- the START map --- */

static const uint8_t *
spec_value(const struct agent *agent, const char *key, size_t *len)
{
    const uint8_t *value = NULL;

    *len = 0;
    if (ch_map_get(agent->spec, agent->spec_len, key, 0, &value, len) !=
        CH_OK) {
        return NULL;
    }
    return value;
}

static char *
spec_string(const struct agent *agent, const char *key)
{
    size_t len = 0;
    const uint8_t *value = spec_value(agent, key, &len);

    if (value == NULL || memchr(value, 0, len) != NULL) {
        return NULL;
    }
    return strndup((const char *)value, len);
}

static int64_t
spec_timeout(const struct agent *agent)
{
    char *text = spec_string(agent, "timeout_ms");
    long long value = text != NULL ? strtoll(text, NULL, 10) : 0;

    free(text);
    return value > 0 && value <= 86400000 ? value : START_MS;
}

static void
spec_forget(struct agent *agent)
{
    if (agent->spec != NULL) {
        explicit_bzero(agent->spec, agent->spec_len);
        free(agent->spec);
    }
    agent->spec = NULL;
    agent->spec_len = 0;
}

/* --- refs --- */

struct agent_ref *
ref_find(struct attach *attach, uint16_t number)
{
    /* A client has a handful of agents per session. */
    CH_LIST_EACH (at, &attach->refs) {
        struct agent_ref *ref = CH_LIST_OF(at, struct agent_ref, in_attach);

        if (ref->number == number) {
            return ref;
        }
    }
    return NULL;
}

static void
ref_started(struct agent_ref *ref)
{
    struct agent *agent = ref->agent;
    struct ch_frame frame = {.type = CH_STARTED,
                             .agent = ref->number,
                             .session = ref->attach->number,
                             .request = ref->start_request};
    struct ch_buf body;
    unsigned count = (unsigned)((agent->hello[0] << 8) | agent->hello[1]);
    int r;

    ref->answered = 1;
    ch_buf_init(&body, CH_WIRE_BODY_MAX);
    r = ch_vec_put_count(&body, count + 2);
    r = r == CH_OK ? ch_buf_put(&body, agent->hello + 2, agent->hello_len - 2)
                   : r;
    r = r == CH_OK ? ch_vec_put_str(&body, "reused") : r;
    r = r == CH_OK ? ch_vec_put_num(&body, ref->reused) : r;
    frame.body = ch_buf_data(&body);
    frame.len = (uint32_t)ch_buf_len(&body);
    if (r == CH_OK) {
        client_frame(ref->attach->client, &frame);
    } else {
        client_doom(ref->attach->client);
    }
    ch_buf_fini(&body);
}

static void
ref_failed(struct agent_ref *ref, int tell)
{
    if (!ref->answered || tell) {
        client_failed(ref->attach->client, ref->attach->number, ref->number,
                      ref->answered ? 0 : ref->start_request,
                      &ref->agent->fail, 0);
    }
    ref->answered = 1;
}

static void
agent_free(struct agent *agent)
{
    struct ch_loop *loop = agent->session->pool->loop;

    ch_loop_cancel(loop, agent->timer);
    ch_list_remove(&agent->in_list);
    stopper_fini(&agent->stopper);
    spec_forget(agent);
    free(agent->key);
    free(agent->hello);
    ch_outq_fini(&agent->held);
    ch_table_fini(&agent->has);
    ch_table_fini(&agent->wire);
    ch_table_fini(&agent->by_index);
    pool_free_later(agent->session->pool, agent);
}

/* Makes it dead: requests, subs and (tell) refs hear why. */
void
agent_fail(struct agent *agent, const struct fail *fail, int tell)
{
    struct ch_loop *loop = agent->session->pool->loop;
    if (agent->state == AGENT_DEAD) {
        return;
    }
    if (agent->state == AGENT_STARTING) {
        agent_expect(agent, -1);
    }
    agent->state = AGENT_DEAD;
    agent->fail = *fail;
    ch_loop_cancel(loop, agent->timer);
    agent->timer = NULL;
    spec_forget(agent);
    if (agent->al != NULL && ch_agentlink_unborn(agent->al)) {
        CH_LIST_EACH (at, &agent->requests) {
            CH_LIST_OF(at, struct request, in_agent)->state = REQUEST_QUEUED;
        }
    }
    while (!ch_list_empty(&agent->requests)) {
        request_fail(CH_LIST_FIRST(&agent->requests, struct request, in_agent),
                     fail);
    }
    ch_outq_fini(&agent->held);
    if (is_login(agent)) {
        while (!ch_list_empty(&agent->subs)) {
            agent_fail(CH_LIST_FIRST(&agent->subs, struct agent, in_list),
                       fail, tell);
        }
        stopper_fini(&agent->stopper);
        ch_agentlink_free(agent->al);
        agent->al = NULL;
    } else {
        (void)ch_table_remove(&agent->login->by_index, &agent->index,
                              sizeof(agent->index));
    }
    ch_list_remove(&agent->in_list);
    CH_LIST_EACH (at, &agent->refs) {
        ref_failed(CH_LIST_OF(at, struct agent_ref, in_agent), tell);
    }
    if (agent->n_refs == 0) {
        agent_free(agent);
    }
}

static void
agent_idle(void *arg)
{
    struct agent *agent = arg;
    struct fail fail;

    agent->timer = NULL;
    fail_set(&fail, "reset", "agent", "unused for its idle time");
    agent_fail(agent, &fail, 0);
}

/* The last ref of a sub-agent is gone: the login agent ends it. */
static void
sub_close(struct agent *agent)
{
    struct ch_frame frame = {.type = CH_CLOSE, .agent = agent->index};
    struct fail fail;

    if (agent->state != AGENT_WAITING &&
        agent_put(agent->login, &frame, NULL, 0) != CH_OK) {
        ch_log("%s: sub-agent not closed", agent->session->name);
    }
    fail_set(&fail, "reset", "agent", "closed");
    agent_fail(agent, &fail, 0);
}

void
ref_drop(struct agent_ref *ref)
{
    struct agent *agent = ref->agent;
    struct session *session = agent->session;

    CH_LIST_EACH_SAFE (at, &ref->attach->requests) {
        struct request *req = CH_LIST_OF(at, struct request, in_attach);

        if (req->agent == agent) {
            request_forget(req);
        }
    }
    ch_list_remove(&ref->in_attach);
    ch_list_remove(&ref->in_agent);
    pool_free_later(session->pool, ref);
    if (--agent->n_refs > 0) {
        return;
    }
    if (agent->state == AGENT_DEAD) {
        agent_free(agent);
    } else if (!is_login(agent)) {
        sub_close(agent);
    } else {
        agent->timer = ch_loop_timer(session->pool->loop, session->idle_ms,
                                     agent_idle, agent);
    }
}

/* --- frames to the agent --- */

/* May requests follow the start without waiting for HELLO? Only where the
 * link tells a command that ended from a connection that did. */
static int
goes_early(const struct agent *agent)
{
    return is_login(agent) && agent->al != NULL &&
           strcmp(agent->session->transport, "libssh") == 0;
}

int
agent_put(struct agent *agent, const struct ch_frame *frame,
          struct ch_blob *blob, int begins)
{
    struct ch_frame f = *frame;
    int r;

    f.session = 0;
    /* START and CLOSE are put to the login agent and name the sub. */
    if (frame->type != CH_CLOSE && frame->type != CH_START) {
        f.agent = agent->index;
        if (agent->state != AGENT_READY && !goes_early(agent)) {
            return ch_outq_put(&agent->held, &f, blob, begins);
        }
    }
    if (agent->login->al == NULL) {
        return CH_ERR_CLOSED;
    }
    r = ch_outq_put(ch_agentlink_queue(agent->login->al), &f, blob, begins);
    if (r == CH_OK) {
        ch_agentlink_flush(agent->login->al);
    }
    return r;
}

/* Counts what the login agent owes us an answer for. */
void
agent_expect(struct agent *agent, int change)
{
    struct agent *login = agent->login;

    login->n_expected += (size_t)change;
    if (login->al != NULL) {
        ch_agentlink_expect(login->al, login->n_expected > 0);
    }
}

/* It became ready: answer the refs, let the held frames go. */
void
agent_ready(struct agent *agent, const uint8_t *hello, size_t len)
{
    struct fail fail;

    agent->state = AGENT_READY;
    agent_expect(agent, -1);
    ch_loop_cancel(agent->session->pool->loop, agent->timer);
    agent->timer = NULL;
    spec_forget(agent);
    agent->hello = malloc(len);
    if (agent->hello == NULL) {
        fail_set(&fail, "agent", "pool", "out of memory");
        agent_fail(agent, &fail, 1);
        return;
    }
    memcpy(agent->hello, hello, len);
    agent->hello_len = len;
    if (agent->n_refs == 0 && is_login(agent)) {
        agent->timer =
            ch_loop_timer(agent->session->pool->loop, agent->session->idle_ms,
                          agent_idle, agent);
    }
    CH_LIST_EACH (at, &agent->refs) {
        ref_started(CH_LIST_OF(at, struct agent_ref, in_agent));
    }
    ch_outq_splice(ch_agentlink_queue(agent->login->al), &agent->held);
    if (is_login(agent)) {
        CH_LIST_EACH_SAFE (at, &agent->subs) {
            sub_launch(CH_LIST_OF(at, struct agent, in_list));
        }
    }
    if (agent->login->al != NULL) {
        ch_agentlink_flush(agent->login->al);
    }
}

/* --- starting --- */

/* The session is open: run the command. */
static void
login_launch(struct agent *agent)
{
    struct session *session = agent->session;
    struct ch_agentlink_spec spec = {.name = session->name};
    char *command = spec_string(agent, "command");
    char *nonce = spec_string(agent, "nonce");
    struct fail fail;
    int r = CH_ERR_PROTOCOL;

    if (command != NULL && nonce != NULL) {
        spec.command = command;
        spec.nonce = nonce;
        spec.input = spec_value(agent, "input", &spec.input_len);
        spec.timeout_ms = spec_timeout(agent);
        spec.alive_interval_ms = session->alive_interval_ms;
        spec.alive_count = session->alive_count;
        spec.in_bytes = &session->in_bytes;
        spec.out_bytes = &session->out_bytes;
        agent->al = ch_agentlink_new(session->pool->loop, session->link, &spec,
                                     &pool_login_events, agent, &r);
    }
    free(command);
    free(nonce);
    if (agent->al == NULL) {
        if (r == CH_ERR_CLOSED) {
            fail_set(&fail, "unreachable", "channel", LINK_GONE);
        } else {
            fail_set(&fail, "agent", "agent",
                     r == CH_ERR_PROTOCOL ? "START without command or nonce"
                     : r == CH_ERR_SYS    ? strerror(errno)
                                          : ch_strerror(r));
        }
        agent_fail(agent, &fail, 1);
        return;
    }
    agent->state = AGENT_STARTING;
    agent->n_expected++; /* the agentlink has its own start deadline */
    if (goes_early(agent)) {
        ch_outq_splice(ch_agentlink_queue(agent->al), &agent->held);
        ch_agentlink_flush(agent->al);
    }
}

static void
sub_guard(void *arg)
{
    struct agent *agent = arg;
    struct fail fail;

    agent->timer = NULL;
    fail_set(&fail, "become", "agent",
             "the login agent did not start the sub-agent in time");
    agent_fail(agent, &fail, 1);
}

/* The login agent is ready: ask it to spawn the sub-agent. */
static void
sub_launch(struct agent *agent)
{
    struct ch_frame frame = {.type = CH_START,
                             .agent = agent->index,
                             .body = agent->spec,
                             .len = (uint32_t)agent->spec_len};
    struct fail fail;
    int r = agent_put(agent->login, &frame, NULL, 0);

    if (r != CH_OK) {
        fail_set(&fail, "agent", "pool", ch_strerror(r));
        agent_fail(agent, &fail, 1);
        return;
    }
    agent->state = AGENT_STARTING;
    agent_expect(agent, 1);
    agent->timer =
        ch_loop_timer(agent->session->pool->loop,
                      spec_timeout(agent) + SUB_GUARD_MS, sub_guard, agent);
}

void
agents_launch(struct session *session)
{
    CH_LIST_EACH_SAFE (at, &session->agents) {
        login_launch(CH_LIST_OF(at, struct agent, in_list));
    }
}

void
agents_fail(struct session *session, const struct fail *fail)
{
    while (!ch_list_empty(&session->agents)) {
        /* The session's own FAILED tells the attaches. */
        agent_fail(CH_LIST_FIRST(&session->agents, struct agent, in_list),
                   fail, 0);
    }
}

static struct agent *
agent_find(struct ch_list *list, const uint8_t *key, size_t len)
{
    /* One per become account: few. */
    CH_LIST_EACH (at, list) {
        struct agent *agent = CH_LIST_OF(at, struct agent, in_list);

        if (strlen(agent->key) == len && memcmp(agent->key, key, len) == 0) {
            return agent;
        }
    }
    return NULL;
}

static struct agent *
agent_new(struct session *session, struct agent *login, const uint8_t *key,
          size_t key_len, const struct ch_frame *frame)
{
    struct agent *agent = calloc(1, sizeof(*agent));
    if (agent == NULL ||
        (login != NULL && login->last_index == CH_AGENT_NONE - 1)) {
        free(agent);
        return NULL;
    }
    agent->session = session;
    agent->login = login != NULL ? login : agent;
    agent->state = AGENT_WAITING;
    ch_list_init(&agent->refs);
    ch_list_init(&agent->requests);
    ch_list_init(&agent->sources);
    ch_list_init(&agent->subs);
    ch_list_init(&agent->in_list);
    ch_outq_init(&agent->held);
    stopper_init(&agent->stopper, pool_login_resume, agent);
    agent->key = strndup((const char *)key, key_len);
    agent->spec = malloc(frame->len);
    if (agent->key == NULL || agent->spec == NULL) {
        agent_free(agent);
        return NULL;
    }
    memcpy(agent->spec, frame->body, frame->len);
    agent->spec_len = frame->len;
    if (login == NULL) {
        ch_list_add_tail(&session->agents, &agent->in_list);
        return agent;
    }
    agent->index = ++login->last_index;
    if (ch_table_put(&login->by_index, &agent->index, sizeof(agent->index),
                     agent) != CH_OK) {
        agent_free(agent);
        return NULL;
    }
    ch_list_add_tail(&login->subs, &agent->in_list);
    return agent;
}

static int
ref_new(struct attach *attach, struct agent *agent,
        const struct ch_frame *frame, int reused)
{
    struct agent_ref *ref = calloc(1, sizeof(*ref));

    if (ref == NULL) {
        return CH_ERR_NOMEM;
    }
    ref->attach = attach;
    ref->agent = agent;
    ref->number = frame->agent;
    ref->start_request = frame->request;
    ref->reused = reused;
    ch_list_add_tail(&attach->refs, &ref->in_attach);
    ch_list_add_tail(&agent->refs, &ref->in_agent);
    agent->n_refs++;
    return CH_OK;
}

/* Attach to a running agent or launch a new one. */
static int
agent_join(struct attach *attach, struct agent *login,
           const struct ch_frame *frame, const uint8_t *key, size_t key_len)
{
    struct session *session = attach->session;
    struct agent *agent = agent_find(
        login != NULL ? &login->subs : &session->agents, key, key_len);
    int reused = agent != NULL;
    int r;

    if (agent == NULL) {
        agent = agent_new(session, login, key, key_len, frame);
    }
    if (agent == NULL) {
        return CH_ERR_NOMEM;
    }
    r = ref_new(attach, agent, frame, reused);
    if (r != CH_OK) {
        return r;
    }
    if (agent->timer != NULL && is_login(agent)) {
        ch_loop_cancel(session->pool->loop, agent->timer);
        agent->timer = NULL;
    }
    if (agent->state == AGENT_READY) {
        ref_started(
            CH_LIST_OF(attach->refs.prev, struct agent_ref, in_attach));
    } else if (!reused && login == NULL && session->state == SESSION_OPEN) {
        login_launch(agent);
    } else if (!reused && login != NULL && login->state == AGENT_READY) {
        sub_launch(agent);
    }
    return CH_OK;
}

int
agent_start(struct client *client, const struct ch_frame *frame)
{
    struct attach *attach = attach_find(client, frame->session);
    struct agent_ref *ref = NULL;
    const uint8_t *key = NULL;
    size_t key_len = 0;
    struct fail fail;

    if ((frame->flags & CH_FLAG_ZLIB) || frame->agent == CH_AGENT_NONE ||
        ch_vec_check(frame->body, frame->len, 1) != CH_OK ||
        ch_map_get(frame->body, frame->len, "key", 0, &key, &key_len) !=
            CH_OK ||
        memchr(key, 0, key_len) != NULL) {
        return CH_ERR_PROTOCOL;
    }
    fail_set(&fail, "reset", "pool", "no such session: send OPEN first");
    if (attach != NULL && attach->session->state == SESSION_DEAD) {
        fail = attach->session->fail;
    } else if (attach != NULL && attach->session->retired) {
        fail_set(&fail, "reset", "pool", "the session was reset");
    } else if (attach != NULL) {
        ref = ref_find(attach, frame->agent);
        if (ref != NULL) {
            ref_drop(ref); /* START again with the same number */
        }
        ref = ref_find(attach, 0);
        if (frame->agent == 0) {
            return agent_join(attach, NULL, frame, key, key_len);
        }
        if (ref != NULL && ref->agent->state != AGENT_DEAD) {
            return agent_join(attach, ref->agent, frame, key, key_len);
        }
        if (ref != NULL) {
            fail = ref->agent->fail;
        } else {
            fail_set(&fail, "reset", "agent",
                     "no login agent: send START for agent 0 first");
        }
    }
    client_failed(client, frame->session, frame->agent, frame->request, &fail,
                  0);
    return CH_OK;
}
