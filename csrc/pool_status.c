/* pool_status.c - what `churten pool status` shows, as JSON text. */
#include "pool_int.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "log.h"

static int put_text(struct ch_buf *out, const char *format, ...)
    CH_PRINTF(2, 3);

static int
put_text(struct ch_buf *out, const char *format, ...)
{
    char text[512];
    va_list ap;
    int n;

    va_start(ap, format);
    n = vsnprintf(text, sizeof(text), format, ap);
    va_end(ap);
    if (n < 0 || (size_t)n >= sizeof(text)) {
        return CH_ERR_LIMIT;
    }
    return ch_buf_put(out, text, (size_t)n);
}

/* A JSON string; the text is made plain first, so only quotes and
 * backslashes are left to escape. */
static int
put_string(struct ch_buf *out, const char *text)
{
    char plain[256];
    int r = ch_buf_put(out, "\"", 1);

    ch_text_escape(plain, sizeof(plain), (const uint8_t *)text, strlen(text));
    for (const char *at = plain; *at != '\0' && r == CH_OK; at++) {
        if (*at == '"' || *at == '\\') {
            r = ch_buf_put(out, "\\", 1);
        }
        r = r == CH_OK ? ch_buf_put(out, at, 1) : r;
    }
    return r == CH_OK ? ch_buf_put(out, "\"", 1) : r;
}

static void
count_agents(const struct session *session, size_t *logins, size_t *subs)
{
    *logins = *subs = 0;
    CH_LIST_EACH (at, &session->agents) {
        *logins += 1;
        CH_LIST_EACH (sub, &CH_LIST_OF(at, struct agent, in_list)->subs) {
            *subs += 1;
        }
    }
}

static int
put_session(struct ch_buf *out, const struct session *s, int64_t now_us)
{
    static const char *const states[] = {"opening", "open", "dead"};
    size_t logins = 0, subs = 0;
    int r = ch_buf_put(out, "{\"name\": ", 9);

    count_agents(s, &logins, &subs);
    r = r == CH_OK ? put_string(out, s->name) : r;
    r = r == CH_OK ? put_text(out, ", \"transport\": \"%s\"", s->transport)
                   : r;
    r = r == CH_OK
            ? put_text(out,
                       ", \"state\": \"%s\", \"clients\": %zu, "
                       "\"agents\": %zu, \"become_agents\": %zu, "
                       "\"requests\": %zu, \"bytes_in\": %" PRIu64
                       ", \"bytes_out\": %" PRIu64
                       ", \"unused_s\": %" PRId64 "}",
                       s->retired ? "ending" : states[s->state], s->n_attaches,
                       logins, subs, s->n_requests, s->in_bytes, s->out_bytes,
                       s->n_attaches > 0 ? 0
                                         : (now_us - s->since_us) / 1000000)
            : r;
    return r;
}

static int
put_failure(struct ch_buf *out, const struct failure *f, int64_t now_us)
{
    int r = ch_buf_put(out, "{\"name\": ", 9);

    r = r == CH_OK ? put_string(out, f->name) : r;
    r = r == CH_OK ? put_text(out,
                              ", \"class\": \"%s\", \"layer\": \"%s\", "
                              "\"ago_s\": %" PRId64 ", \"message\": ",
                              f->class, f->layer, (now_us - f->at_us) / 1000000)
                   : r;
    r = r == CH_OK ? put_string(out, f->message) : r;
    return r == CH_OK ? ch_buf_put(out, "}", 1) : r;
}

/* Newest first. */
static int
put_failures(struct ch_buf *out, const struct ch_pool *pool, int64_t now_us)
{
    int r = put_text(out, "], \"failed\": %" PRIu64 ", \"last_failures\": [",
                     pool->n_failures);

    for (uint64_t i = 0; i < FAILURES_KEPT && i < pool->n_failures; i++) {
        uint64_t at = (pool->n_failures - 1 - i) % FAILURES_KEPT;

        if (r == CH_OK && i > 0) {
            r = ch_buf_put(out, ", ", 2);
        }
        r = r == CH_OK ? put_failure(out, &pool->failures[at], now_us) : r;
    }
    return r;
}

int
pool_status(struct ch_pool *pool, struct ch_buf *out)
{
    int64_t now_us = ch_now_us();
    const char *comma = "";
    int r = put_text(out,
                     "{\"version\": \"%s\", \"pid\": %ld, \"clients\": %zu, "
                     "\"requests\": %" PRIu64 ", \"sessions_opened\": %" PRIu64
                     ", \"payloads\": %zu, \"payload_bytes\": %zu, "
                     "\"sessions\": [",
                     CH_VERSION, (long)getpid(), pool->n_clients,
                     pool->total_requests, pool->total_sessions,
                     pool->payloads.used, pool->payload_bytes);

    CH_LIST_EACH (at, &pool->all_sessions) {
        const struct session *s = CH_LIST_OF(at, struct session, in_pool);

        if (r == CH_OK && s->state != SESSION_DEAD) {
            r = ch_buf_put(out, comma, strlen(comma));
            r = r == CH_OK ? put_session(out, s, now_us) : r;
            comma = ", ";
        }
    }
    r = r == CH_OK ? put_failures(out, pool, now_us) : r;
    return r == CH_OK ? ch_buf_put(out, "]}", 2) : r;
}
