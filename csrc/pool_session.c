/*
 * pool_session.c - sessions and the clients' use of them (attaches).
 *
 *   OPENING --link open--> OPEN --idle, RESET done--> gone
 *      `------ link failed ---+--> DEAD --last attach dropped--> gone
 *
 * Equal keys join one session while it is neither dead nor retired. A dead
 * session is out of the table (the next OPEN makes a new one) and stays
 * only to tell its attached clients why.
 */
#include "pool_int.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "log.h"

#define DEFAULT_IDLE_MS  60000
#define DEFAULT_ALIVE_MS 15000
#define DEFAULT_ALIVE_N  3
#define DEFAULT_OPEN_MS  30000
#define SESSION_FDS      4 /* at most, for long; kept libssh sessions: 2 */
#define SPARE_FDS        32

void
fail_set(struct fail *fail, const char *class, const char *layer,
         const char *message)
{
    fail->class = class;
    fail->layer = layer;
    ch_text_clean(fail->message, sizeof(fail->message),
                  (const uint8_t *)message, strlen(message));
}

/* --- the OPEN map --- */

struct spec_reader {
    const uint8_t *body;
    size_t len;
    int r;
};

/* The nth value as a new C string; NULL if absent. A NUL inside is an
 * error: it would mean something else to C than to the client. */
static char *
spec_text(struct spec_reader *spec, const char *key, unsigned nth)
{
    const uint8_t *value = NULL;
    size_t len = 0;
    char *text;

    if (ch_map_get(spec->body, spec->len, key, nth, &value, &len) != CH_OK) {
        return NULL;
    }
    if (memchr(value, 0, len) != NULL) {
        spec->r = CH_ERR_PROTOCOL;
        return NULL;
    }
    text = malloc(len + 1);
    if (text == NULL) {
        spec->r = CH_ERR_NOMEM;
        return NULL;
    }
    memcpy(text, value, len);
    text[len] = '\0';
    return text;
}

static int64_t
spec_number(struct spec_reader *spec, const char *key, int64_t fallback,
            int64_t least, int64_t most)
{
    char *text = spec_text(spec, key, 0);
    char *end = NULL;
    long long value = text != NULL ? strtoll(text, &end, 10) : 0;
    int good = text != NULL && text[0] != '\0' && *end == '\0';

    free(text);
    if (!good) {
        return fallback;
    }
    return value < least ? least : value > most ? most : value;
}

static void
list_free(char **list)
{
    for (size_t i = 0; list != NULL && list[i] != NULL; i++) {
        free(list[i]);
    }
    free(list);
}

/* All values of a repeated key. One pass over the map. */
static char **
spec_list(struct spec_reader *spec, const char *key)
{
    struct spec_reader one = *spec;
    struct ch_vec vec;
    const uint8_t *name = NULL, *value = NULL;
    size_t name_len = 0, value_len = 0, n = 0, cap = 4;
    char **list = calloc(cap + 1, sizeof(*list));
    int r = ch_vec_init(&vec, spec->body, spec->len);

    while (list != NULL && r == CH_OK &&
           ch_vec_next(&vec, &name, &name_len) == CH_OK &&
           ch_vec_next(&vec, &value, &value_len) == CH_OK) {
        if (name_len != strlen(key) || memcmp(name, key, name_len) != 0) {
            continue;
        }
        if (n == cap) {
            char **grown = realloc(list, (cap * 2 + 1) * sizeof(*list));

            if (grown == NULL) {
                spec->r = CH_ERR_NOMEM;
                break;
            }
            memset(grown + cap, 0, (cap + 1) * sizeof(*list));
            list = grown;
            cap *= 2;
        }
        if (memchr(value, 0, value_len) != NULL) {
            one.r = CH_ERR_PROTOCOL;
            break;
        }
        list[n] = strndup((const char *)value, value_len);
        if (list[n++] == NULL) {
            one.r = CH_ERR_NOMEM;
            break;
        }
    }
    if (list == NULL) {
        spec->r = CH_ERR_NOMEM;
    } else if (one.r != CH_OK) {
        spec->r = one.r;
    }
    return list;
}

/* Strings of a ch_link_options and where they come from in the map. */
struct option {
    const char *key;
    size_t offset;
};

static const struct option option_texts[] = {
    {"transport", offsetof(struct ch_link_options, transport)},
    {"name", offsetof(struct ch_link_options, name)},
    {"host", offsetof(struct ch_link_options, host)},
    {"user", offsetof(struct ch_link_options, user)},
    {"address_family", offsetof(struct ch_link_options, address_family)},
    {"bind_address", offsetof(struct ch_link_options, bind_address)},
    {"identity_agent", offsetof(struct ch_link_options, identity_agent)},
    {"password", offsetof(struct ch_link_options, password)},
    {"host_key_checking", offsetof(struct ch_link_options, host_key_checking)},
    {"host_key_alias", offsetof(struct ch_link_options, host_key_alias)},
    {"ciphers", offsetof(struct ch_link_options, ciphers)},
    {"macs", offsetof(struct ch_link_options, macs)},
    {"kex", offsetof(struct ch_link_options, kex)},
    {"host_key_algorithms",
     offsetof(struct ch_link_options, host_key_algorithms)},
    {"pubkey_algorithms", offsetof(struct ch_link_options, pubkey_algorithms)},
    {"cwd", offsetof(struct ch_link_options, cwd)},
};

static const struct option option_lists[] = {
    {"identity_file", offsetof(struct ch_link_options, identity_files)},
    {"auth", offsetof(struct ch_link_options, auth)},
    {"known_hosts", offsetof(struct ch_link_options, known_hosts)},
    {"global_known_hosts",
     offsetof(struct ch_link_options, global_known_hosts)},
    {"env", offsetof(struct ch_link_options, env)},
    {"argv", offsetof(struct ch_link_options, argv)},
};

#define COUNT(a) (sizeof(a) / sizeof(*(a)))

static void
options_fini(struct ch_link_options *o)
{
    if (o->password != NULL) {
        explicit_bzero((char *)(uintptr_t)o->password, strlen(o->password));
    }
    for (size_t i = 0; i < COUNT(option_texts); i++) {
        free(*(char **)(void *)((char *)o + option_texts[i].offset));
    }
    for (size_t i = 0; i < COUNT(option_lists); i++) {
        list_free(*(char ***)(void *)((char *)o + option_lists[i].offset));
    }
}

static int
options_read(struct ch_link_options *o, struct spec_reader *spec)
{
    memset(o, 0, sizeof(*o));
    for (size_t i = 0; i < COUNT(option_texts); i++) {
        char *text = spec_text(spec, option_texts[i].key, 0);

        /* An empty value is the same as none. */
        if (text != NULL && text[0] == '\0') {
            free(text);
            text = NULL;
        }
        *(char **)(void *)((char *)o + option_texts[i].offset) = text;
    }
    for (size_t i = 0; i < COUNT(option_lists); i++) {
        *(char ***)(void *)((char *)o + option_lists[i].offset) =
            spec_list(spec, option_lists[i].key);
    }
    o->port = (int)spec_number(spec, "port", 22, 1, 65535);
    o->timeout_ms =
        spec_number(spec, "timeout_ms", DEFAULT_OPEN_MS, 1, 86400000);
    o->login_timeout_ms =
        spec_number(spec, "login_timeout_ms", 0, 0, 86400000);
    o->identities_only = (int)spec_number(spec, "identities_only", 0, 0, 1);
    o->hash_known_hosts = (int)spec_number(spec, "hash_known_hosts", 0, 0, 1);
    o->rekey_bytes = spec_number(spec, "rekey_bytes", 0, 0, INT64_MAX);
    o->rekey_seconds =
        (int)spec_number(spec, "rekey_seconds", 0, 0, INT32_MAX / 1000);
    return spec->r == CH_OK && o->transport == NULL ? CH_ERR_PROTOCOL
                                                    : spec->r;
}

/* --- attaches --- */

static uint64_t
attach_key(const struct client *client, uint32_t number)
{
    return ((uint64_t)client->serial << 32) | number;
}

struct attach *
attach_find(struct client *client, uint32_t number)
{
    uint64_t key = attach_key(client, number);

    return ch_table_find(&client->pool->attaches, &key, sizeof(key));
}

static void
session_idle(void *arg)
{
    struct session *session = arg;

    session->idle_timer = NULL;
    session_fail(session, "reset", "pool", "unused for its idle time");
}

static void
session_free(struct session *session)
{
    struct ch_pool *pool = session->pool;

    ch_loop_cancel(pool->loop, session->idle_timer);
    ch_loop_cancel(pool->loop, session->retire_timer);
    ch_list_remove(&session->in_pool);
    free(session->key);
    free(session->name);
    free(session->transport);
    pool_free_later(pool, session);
}

void
attach_drop(struct attach *attach)
{
    struct session *session = attach->session;
    struct ch_pool *pool = session->pool;
    uint64_t key = attach_key(attach->client, attach->number);

    while (!ch_list_empty(&attach->requests)) {
        request_forget(
            CH_LIST_FIRST(&attach->requests, struct request, in_attach));
    }
    while (!ch_list_empty(&attach->refs)) {
        ref_drop(CH_LIST_FIRST(&attach->refs, struct agent_ref, in_attach));
    }
    (void)ch_table_remove(&pool->attaches, &key, sizeof(key));
    ch_list_remove(&attach->in_client);
    ch_list_remove(&attach->in_session);
    pool_free_later(pool, attach);
    if (--session->n_attaches > 0) {
        return;
    }
    if (session->state == SESSION_DEAD) {
        session_free(session);
    } else if (session->retired) {
        session_fail(session, "reset", "pool", "the session was reset");
    } else {
        session->since_us = ch_now_us();
        session->idle_timer =
            ch_loop_timer(pool->loop, session->idle_ms, session_idle, session);
    }
}

static void
attach_opened(struct attach *attach)
{
    struct session *s = attach->session;
    struct ch_frame frame = {.type = CH_OPENED,
                             .session = attach->number,
                             .request = attach->open_request};
    struct ch_buf body;
    int r;

    attach->answered = 1;
    ch_buf_init(&body, CH_WIRE_BODY_MAX);
    r = ch_vec_put_count(&body, 10);
    r = r == CH_OK ? ch_vec_put_str(&body, "transport") : r;
    r = r == CH_OK ? ch_vec_put_str(&body, s->transport) : r;
    r = r == CH_OK ? ch_vec_put_str(&body, "reused") : r;
    r = r == CH_OK ? ch_vec_put_num(&body, attach->reused) : r;
    r = r == CH_OK ? ch_vec_put_str(&body, "connect_us") : r;
    r = r == CH_OK ? ch_vec_put_num(&body, s->connect_us) : r;
    r = r == CH_OK ? ch_vec_put_str(&body, "auth_us") : r;
    r = r == CH_OK ? ch_vec_put_num(&body, s->auth_us) : r;
    r = r == CH_OK ? ch_vec_put_str(&body, "banner") : r;
    r = r == CH_OK ? ch_vec_put_str(&body, s->banner) : r;
    frame.body = ch_buf_data(&body);
    frame.len = (uint32_t)ch_buf_len(&body);
    if (r == CH_OK) {
        client_frame(attach->client, &frame);
    } else {
        client_doom(attach->client);
    }
    ch_buf_fini(&body);
}

static int
attach_new(struct client *client, struct session *session,
           const struct ch_frame *frame, int reused)
{
    struct attach *attach = calloc(1, sizeof(*attach));
    uint64_t key = attach_key(client, frame->session);

    if (attach == NULL || ch_table_put(&client->pool->attaches, &key,
                                       sizeof(key), attach) != CH_OK) {
        free(attach);
        return CH_ERR_NOMEM;
    }
    attach->client = client;
    attach->session = session;
    attach->number = frame->session;
    attach->open_request = frame->request;
    attach->reused = reused;
    ch_list_init(&attach->refs);
    ch_list_init(&attach->requests);
    ch_list_add_tail(&client->attaches, &attach->in_client);
    ch_list_add_tail(&session->attaches, &attach->in_session);
    session->n_attaches++;
    ch_loop_cancel(session->pool->loop, session->idle_timer);
    session->idle_timer = NULL;
    if (session->state == SESSION_OPEN) {
        attach_opened(attach);
    }
    return CH_OK;
}

/* --- the session --- */

static void
session_unlist(struct session *session)
{
    struct ch_pool *pool = session->pool;

    if (ch_table_find(&pool->sessions, session->key, strlen(session->key)) ==
        session) {
        (void)ch_table_remove(&pool->sessions, session->key,
                              strlen(session->key));
    }
}

/* Keeps the latest failures for STATUS. */
static void
failure_note(struct ch_pool *pool, const struct session *session)
{
    struct failure *f =
        &pool->failures[pool->n_failures++ % FAILURES_KEPT];

    f->at_us = ch_now_us();
    f->class = session->fail.class;
    f->layer = session->fail.layer;
    snprintf(f->name, sizeof(f->name), "%s", session->name);
    snprintf(f->message, sizeof(f->message), "%s", session->fail.message);
}

void
session_fail(struct session *session, const char *class, const char *layer,
             const char *message)
{
    struct ch_pool *pool = session->pool;
    int meant;

    if (session->state == SESSION_DEAD) {
        return;
    }
    session->state = SESSION_DEAD;
    fail_set(&session->fail, class, layer, message);
    meant = strcmp(class, "reset") == 0;
    ch_log_at(meant ? CH_LOG_INFO : CH_LOG_ERROR,
              "%s: session ended (%s, %s): %s", session->name, class, layer,
              session->fail.message);
    if (!meant) {
        failure_note(pool, session);
    }
    session_unlist(session);
    pool->n_live--;
    agents_fail(session, &session->fail);
    execs_fail(session, &session->fail);
    CH_LIST_EACH (at, &session->attaches) {
        struct attach *a = CH_LIST_OF(at, struct attach, in_session);

        client_failed(a->client, a->number, 0,
                      a->answered ? 0 : a->open_request, &session->fail, 0);
        a->answered = 1;
    }
    ch_loop_cancel(pool->loop, session->idle_timer);
    session->idle_timer = NULL;
    ch_link_free(session->link);
    session->link = NULL;
    if (session->n_attaches == 0) {
        session_free(session);
    }
    pool_idle_check(pool);
}

static void
session_on_open(void *arg, int64_t connect_us, int64_t auth_us,
                const char *banner)
{
    struct session *session = arg;

    session->state = SESSION_OPEN;
    session->connect_us = connect_us;
    session->auth_us = auth_us;
    ch_text_escape(session->banner, sizeof(session->banner),
                   (const uint8_t *)banner, strlen(banner));
    ch_log("%s: session open (%s) after %lld us", session->name,
           session->transport, (long long)auth_us);
    CH_LIST_EACH (at, &session->attaches) {
        attach_opened(CH_LIST_OF(at, struct attach, in_session));
    }
    agents_launch(session);
    execs_launch(session);
}

static void
session_on_failed(void *arg, const char *fail_class, const char *layer,
                  const char *message)
{
    session_fail(arg, fail_class, layer, message);
}

static const struct ch_link_events session_link_events = {
    .on_open = session_on_open,
    .on_failed = session_on_failed,
};

static void
session_retired(void *arg)
{
    struct session *session = arg;

    session->retire_timer = NULL;
    if (session->n_requests == 0) {
        session_fail(session, "reset", "pool", "the session was reset");
    }
}

/* Callers may be in the middle of a request's end: act next turn. */
void
session_check(struct session *session)
{
    if (session->retired && session->n_requests == 0 &&
        session->state != SESSION_DEAD && session->retire_timer == NULL) {
        session->retire_timer =
            ch_loop_timer(session->pool->loop, 0, session_retired, session);
    }
}

void
session_retire(struct session *session)
{
    session_unlist(session);
    session->retired = 1;
    session_check(session);
}

/* Without a link if it is to be refused. */
static struct session *
session_new(struct ch_pool *pool, struct ch_link_options *o,
            struct spec_reader *spec, const char *key, int refused)
{
    struct session *s = calloc(1, sizeof(*s));

    if (s == NULL) {
        return NULL;
    }
    s->pool = pool;
    ch_list_init(&s->attaches);
    ch_list_init(&s->agents);
    ch_list_init(&s->execs);
    ch_list_init(&s->in_pool);
    s->key = strdup(key);
    s->name = strdup(o->name != NULL ? o->name : "?");
    s->transport = strdup(o->transport != NULL ? o->transport : "?");
    s->alive_interval_ms =
        spec_number(spec, "alive_interval_ms", DEFAULT_ALIVE_MS, 0, 86400000);
    s->alive_count =
        (int)spec_number(spec, "alive_count", DEFAULT_ALIVE_N, 1, 1000);
    s->since_us = ch_now_us();
    if (s->key == NULL || s->name == NULL || s->transport == NULL ||
        ch_table_put(&pool->sessions, key, strlen(key), s) != CH_OK) {
        session_free(s);
        return NULL;
    }
    if (!refused) {
        s->link = ch_link_new(pool->loop, o, &session_link_events, s);
    }
    if (!refused && s->link == NULL) {
        session_unlist(s);
        session_free(s);
        return NULL;
    }
    ch_list_add_tail(&pool->all_sessions, &s->in_pool);
    pool->n_live++;
    pool->total_sessions++;
    ch_log("%s: session opening (%s)", s->name, s->transport);
    return s;
}

/* What the spec lacks or this pool cannot do; NULL if it is fine. */
static const char *
options_problem(const struct ch_link_options *o)
{
    int is_proc =
        strcmp(o->transport, "ssh") == 0 || strcmp(o->transport, "local") == 0;

    if (!ch_link_known(o->transport)) {
        return "this pool does not know the transport";
    }
    if (is_proc && (o->argv == NULL || o->argv[0] == NULL)) {
        return "argv is missing";
    }
    if (!is_proc && o->host == NULL) {
        return "host is missing";
    }
    if (!is_proc && o->user == NULL) {
        return "user is missing";
    }
    return NULL;
}

/* Whether another session could find no descriptor left. */
static int
pool_is_full(const struct ch_pool *pool)
{
    struct rlimit nofile;

    return getrlimit(RLIMIT_NOFILE, &nofile) == 0 &&
           (pool->n_live + 1) * SESSION_FDS + pool->n_clients + SPARE_FDS >
               nofile.rlim_cur;
}

static int
session_join(struct client *client, const struct ch_frame *frame,
             struct ch_link_options *o, struct spec_reader *spec,
             const char *key)
{
    struct session *session =
        ch_table_find(&client->pool->sessions, key, strlen(key));
    const char *problem = options_problem(o);
    int reused = session != NULL;
    int r;

    if (problem == NULL && pool_is_full(client->pool)) {
        problem = "the pool's limit of open files leaves no room for another "
                  "session (ulimit -Hn)";
    }
    if (session == NULL) {
        session = session_new(client->pool, o, spec, key, problem != NULL);
    }
    if (session == NULL) {
        return CH_ERR_NOMEM;
    }
    session->idle_ms =
        spec_number(spec, "idle_ms", DEFAULT_IDLE_MS, 0, 7 * 86400000LL);
    r = attach_new(client, session, frame, reused);
    if (r != CH_OK && session->n_attaches == 0) {
        session_fail(session, "reset", "pool", ch_strerror(r));
    } else if (r == CH_OK && !reused && problem != NULL) {
        /* What the client has sent after its OPEN hears the same. */
        session_fail(session, "unsupported", "pool", problem);
    }
    return r;
}

int
session_open(struct client *client, const struct ch_frame *frame)
{
    struct spec_reader spec = {.body = frame->body, .len = frame->len};
    struct ch_link_options o;
    struct attach *old = attach_find(client, frame->session);
    char *key;
    int r;

    if ((frame->flags & CH_FLAG_ZLIB) || frame->session == 0 ||
        ch_vec_check(frame->body, frame->len, 1) != CH_OK) {
        return CH_ERR_PROTOCOL;
    }
    if (old != NULL) {
        attach_drop(old);
    }
    key = spec_text(&spec, "key", 0);
    r = options_read(&o, &spec);
    if (r == CH_OK) {
        r = key == NULL || key[0] == '\0'
                ? CH_ERR_PROTOCOL
                : session_join(client, frame, &o, &spec, key);
    }
    options_fini(&o);
    free(key);
    return r;
}
