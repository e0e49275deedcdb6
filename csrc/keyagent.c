/*
 * keyagent.c - why a stand-in: libssh offers every key of the agent, in the
 * agent's order, and talks to it with blocking reads. We need IdentitiesOnly
 * and OpenSSH's order, and an agent that waits for its user's consent must
 * not stop the loop. So the blocking side gets one end of a socket pair and
 * runs in a thread of its own (ssh.c); the loop serves the other end.
 *
 *   ssh-agent <-- real --- [loop] --- side --> libssh in a thread
 *   LISTING  (list asked)  -> LISTED -> serve -> SERVING <-> FORWARDING
 *                          \-> DEAD (any error; libssh sees end of file)
 *
 * What always holds: one request is under way at a time; messages are at
 * most MESSAGE_MAX; only signature requests for chosen keys are forwarded,
 * every other request is answered with FAILURE. Runs in the loop's thread.
 */
#include "keyagent.h"

#include "buf.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define MESSAGE_MAX (256u * 1024u)
#define KEYS_MAX    256u

enum agent_message {
    MSG_FAILURE = 5,
    MSG_LIST = 11,
    MSG_KEYS = 12,
    MSG_SIGN = 13
};

enum agent_state { LISTING, LISTED, SERVING, FORWARDING, DEAD };

struct channel { /* one socket with its two queues */
    int fd;      /* -1 closed */
    struct ch_buf in, out;
};

struct ch_keyagent {
    struct ch_loop *loop;
    enum agent_state state;
    struct channel real, side;
    struct ch_key_blob *keys; /* owned: the agent's, then the chosen ones */
    size_t n;
    size_t shown; /* first key not yet asked a signature for */
    struct ch_timer *timer;
    ch_keyagent_listed_fn *listed;
    void *arg;
};

static void
keys_free(struct ch_keyagent *agent)
{
    for (size_t i = 0; i < agent->n; i++) {
        free(agent->keys[i].data);
    }
    free(agent->keys);
    agent->keys = NULL;
    agent->n = 0;
}

static void
channel_close(struct ch_keyagent *agent, struct channel *c)
{
    if (c->fd >= 0) {
        ch_loop_unwatch(agent->loop, c->fd);
        close(c->fd);
        c->fd = -1;
    }
    ch_buf_fini(&c->in);
    ch_buf_fini(&c->out);
}

void
ch_keyagent_free(struct ch_keyagent *agent)
{
    if (agent == NULL) {
        return;
    }
    channel_close(agent, &agent->real);
    channel_close(agent, &agent->side);
    ch_loop_cancel(agent->loop, agent->timer);
    keys_free(agent);
    free(agent);
}

/* Any failure ends here: libssh reads end of file, or listed says none. */
static void
agent_die(struct ch_keyagent *agent)
{
    int listing = agent->state == LISTING;

    channel_close(agent, &agent->real);
    channel_close(agent, &agent->side);
    agent->state = DEAD;
    if (listing) {
        agent->listed(agent->arg, NULL, 0);
    }
}

/* --- messages --- */

static uint32_t
read_u32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 |
           p[3];
}

/* A complete message at the front of c->in: its body, borrowed. */
static int
message_get(const struct channel *c, const uint8_t **body, size_t *len)
{
    const uint8_t *data = ch_buf_data(&c->in);
    size_t have = ch_buf_len(&c->in);

    if (have < 4) {
        return CH_ERR_AGAIN;
    }
    *len = read_u32(data);
    if (*len == 0 || *len > MESSAGE_MAX) {
        return CH_ERR_PROTOCOL;
    }
    *body = data + 4;
    return have - 4 < *len ? CH_ERR_AGAIN : CH_OK;
}

static int
message_put(struct channel *c, const uint8_t *body, size_t len)
{
    int r = ch_buf_put_u32(&c->out, (uint32_t)len);

    return r == CH_OK ? ch_buf_put(&c->out, body, len) : r;
}

/* A string (u32 length, bytes) at *at; CH_ERR_PROTOCOL if it runs over. */
static int
string_get(const uint8_t **at, size_t *left, const uint8_t **text, size_t *len)
{
    if (*left < 4) {
        return CH_ERR_PROTOCOL;
    }
    *len = read_u32(*at);
    if (*len > *left - 4) {
        return CH_ERR_PROTOCOL;
    }
    *text = *at + 4;
    *at += 4 + *len;
    *left -= 4 + *len;
    return CH_OK;
}

static int
key_add(struct ch_keyagent *agent, const uint8_t *data, size_t len)
{
    uint8_t *copy = malloc(len + 1);

    if (copy == NULL) {
        return CH_ERR_NOMEM;
    }
    memcpy(copy, data, len);
    agent->keys[agent->n].data = copy;
    agent->keys[agent->n++].len = len;
    return CH_OK;
}

/* Body of MSG_KEYS: u32 count, then key and comment strings. */
static int
keys_read(struct ch_keyagent *agent, const uint8_t *body, size_t len)
{
    uint32_t count;
    int r = CH_OK;

    if (len < 5 || body[0] != MSG_KEYS) {
        return CH_ERR_PROTOCOL;
    }
    count = read_u32(body + 1);
    body += 5;
    len -= 5;
    count = count > KEYS_MAX ? KEYS_MAX : count;
    agent->keys = calloc(count + 1, sizeof(*agent->keys));
    if (agent->keys == NULL) {
        return CH_ERR_NOMEM;
    }
    while (r == CH_OK && agent->n < count) {
        const uint8_t *key, *comment;
        size_t key_len, comment_len;

        r = string_get(&body, &len, &key, &key_len);
        if (r == CH_OK) {
            r = string_get(&body, &len, &comment, &comment_len);
        }
        if (r == CH_OK) {
            r = key_add(agent, key, key_len);
        }
    }
    return r;
}

static int
keys_write(struct ch_keyagent *agent)
{
    struct ch_buf body;
    int r;

    ch_buf_init(&body, MESSAGE_MAX);
    r = ch_buf_put_u8(&body, MSG_KEYS);
    if (r == CH_OK) {
        r = ch_buf_put_u32(&body, (uint32_t)(agent->n - agent->shown));
    }
    for (size_t i = agent->shown; r == CH_OK && i < agent->n; i++) {
        r = ch_buf_put_u32(&body, (uint32_t)agent->keys[i].len);
        if (r == CH_OK) {
            r = ch_buf_put(&body, agent->keys[i].data, agent->keys[i].len);
        }
        if (r == CH_OK) {
            r = ch_buf_put_u32(&body, 0); /* no comment */
        }
    }
    if (r == CH_OK) {
        r = message_put(&agent->side, ch_buf_data(&body), ch_buf_len(&body));
    }
    ch_buf_fini(&body);
    return r;
}

/* Body of MSG_SIGN: key, data, flags. Only a key still shown may sign. */
static int
sign_forward(struct ch_keyagent *agent, const uint8_t *body, size_t len)
{
    static const uint8_t failure = MSG_FAILURE;
    const uint8_t *at = body + 1, *key;
    size_t left = len - 1, key_len;

    if (string_get(&at, &left, &key, &key_len) != CH_OK) {
        return CH_ERR_PROTOCOL;
    }
    for (size_t i = agent->shown; i < agent->n; i++) {
        if (agent->keys[i].len == key_len &&
            memcmp(agent->keys[i].data, key, key_len) == 0) {
            agent->shown = i + 1;
            agent->state = FORWARDING;
            return message_put(&agent->real, body, len);
        }
    }
    return message_put(&agent->side, &failure, 1);
}

static int
request_handle(struct ch_keyagent *agent, const uint8_t *body, size_t len)
{
    static const uint8_t failure = MSG_FAILURE;

    if (body[0] == MSG_LIST) {
        return keys_write(agent);
    }
    if (body[0] == MSG_SIGN) {
        return sign_forward(agent, body, len);
    }
    return message_put(&agent->side, &failure, 1);
}

/* --- sockets --- */

static void agent_on_fd(void *arg, int fd, unsigned events);

static int
channel_watch(struct ch_keyagent *agent, struct channel *c)
{
    unsigned events = CH_LOOP_READ;

    if (c->fd < 0) {
        return CH_OK;
    }
    if (ch_buf_len(&c->out) > 0) {
        events |= CH_LOOP_WRITE;
    }
    return ch_loop_watch(agent->loop, c->fd, events, agent_on_fd, agent);
}

static int
channel_read(struct channel *c)
{
    uint8_t *place;
    ssize_t n;
    int r = ch_buf_room(&c->in, 4096, &place);

    if (r != CH_OK) {
        return r;
    }
    n = recv(c->fd, place, 4096, MSG_DONTWAIT);
    if (n > 0) {
        ch_buf_added(&c->in, (size_t)n);
        return CH_OK;
    }
    return n < 0 && (errno == EAGAIN || errno == EINTR) ? CH_OK
                                                        : CH_ERR_CLOSED;
}

static int
channel_write(struct channel *c)
{
    ssize_t n = send(c->fd, ch_buf_data(&c->out), ch_buf_len(&c->out),
                     MSG_DONTWAIT | MSG_NOSIGNAL);

    if (n >= 0) {
        ch_buf_consume(&c->out, (size_t)n);
        return CH_OK;
    }
    return errno == EAGAIN || errno == EINTR ? CH_OK : CH_ERR_SYS;
}

/* The answer of the real agent arrived (or a stray message: an error). */
static int
answer_handle(struct ch_keyagent *agent, const uint8_t *body, size_t len)
{
    int r;

    if (agent->state == LISTING) {
        r = keys_read(agent, body, len);
        ch_buf_consume(&agent->real.in, len + 4);
        if (r == CH_OK) {
            agent->state = LISTED;
        }
        return r;
    }
    if (agent->state != FORWARDING) {
        return CH_ERR_PROTOCOL;
    }
    r = message_put(&agent->side, body, len);
    ch_buf_consume(&agent->real.in, len + 4);
    agent->state = SERVING;
    return r;
}

static int
agent_turn(struct ch_keyagent *agent)
{
    const uint8_t *body;
    size_t len;
    int r = message_get(&agent->real, &body, &len);

    if (r == CH_OK) {
        r = answer_handle(agent, body, len);
    }
    if (r != CH_OK && r != CH_ERR_AGAIN) {
        return r;
    }
    if (agent->state == SERVING) {
        r = message_get(&agent->side, &body, &len);
        if (r == CH_OK) {
            r = request_handle(agent, body, len);
            ch_buf_consume(&agent->side.in, len + 4);
        }
    }
    if (r != CH_OK && r != CH_ERR_AGAIN) {
        return r;
    }
    r = channel_watch(agent, &agent->real);
    return r == CH_OK ? channel_watch(agent, &agent->side) : r;
}

static void
agent_on_fd(void *arg, int fd, unsigned events)
{
    struct ch_keyagent *agent = arg;
    struct channel *c = fd == agent->real.fd ? &agent->real : &agent->side;
    int was_listing = agent->state == LISTING;
    int r = CH_OK;

    if ((events & CH_LOOP_WRITE) && ch_buf_len(&c->out) > 0) {
        r = channel_write(c);
    }
    if (r == CH_OK && (events & CH_LOOP_READ)) {
        r = channel_read(c);
    }
    if (r == CH_OK) {
        r = agent_turn(agent);
    }
    if (r != CH_OK) {
        agent_die(agent);
    } else if (was_listing && agent->state == LISTED) {
        agent->listed(agent->arg, agent->keys, agent->n);
    }
}

static void
agent_on_timer(void *arg)
{
    struct ch_keyagent *agent = arg;

    agent->timer = NULL;
    agent_die(agent);
}

/* Unix sockets connect at once, or not at all if the agent is swamped. */
static int
agent_connect(struct ch_keyagent *agent, const char *path)
{
    static const uint8_t list = MSG_LIST;
    struct sockaddr_un sa;
    int r;

    memset(&sa, 0, sizeof(sa));
    sa.sun_family = AF_UNIX;
    if (strlen(path) >= sizeof(sa.sun_path)) {
        return CH_ERR_LIMIT;
    }
    memcpy(sa.sun_path, path, strlen(path) + 1);
    agent->real.fd =
        socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (agent->real.fd < 0 ||
        connect(agent->real.fd, (struct sockaddr *)&sa, sizeof(sa)) != 0) {
        return CH_ERR_SYS;
    }
    r = message_put(&agent->real, &list, 1);
    return r == CH_OK ? channel_watch(agent, &agent->real) : r;
}

struct ch_keyagent *
ch_keyagent_new(struct ch_loop *loop, const char *path,
                ch_keyagent_listed_fn *listed, void *arg)
{
    struct ch_keyagent *agent = calloc(1, sizeof(*agent));

    if (agent == NULL) {
        return NULL;
    }
    agent->loop = loop;
    agent->listed = listed;
    agent->arg = arg;
    agent->real.fd = agent->side.fd = -1;
    ch_buf_init(&agent->real.in, MESSAGE_MAX + 8192);
    ch_buf_init(&agent->real.out, MESSAGE_MAX + 8192);
    ch_buf_init(&agent->side.in, MESSAGE_MAX + 8192);
    ch_buf_init(&agent->side.out, MESSAGE_MAX + 8192);
    if (agent_connect(agent, path) != CH_OK) {
        channel_close(agent, &agent->real);
        agent->timer = ch_loop_timer(loop, 0, agent_on_timer, agent);
        if (agent->timer == NULL) {
            free(agent);
            return NULL;
        }
    }
    return agent;
}

static int
chosen_copy(struct ch_keyagent *agent, const struct ch_key_blob *chosen,
            size_t n)
{
    struct ch_keyagent fresh = {.n = 0};
    int r = CH_OK;

    fresh.keys = calloc(n + 1, sizeof(*fresh.keys));
    if (fresh.keys == NULL) {
        return CH_ERR_NOMEM;
    }
    for (size_t i = 0; r == CH_OK && i < n; i++) {
        r = key_add(&fresh, chosen[i].data, chosen[i].len);
    }
    if (r != CH_OK) {
        keys_free(&fresh);
        return r;
    }
    keys_free(agent); /* chosen may borrow from these: copied above */
    agent->keys = fresh.keys;
    agent->n = fresh.n;
    agent->shown = 0;
    return CH_OK;
}

int
ch_keyagent_serve(struct ch_keyagent *agent, const struct ch_key_blob *chosen,
                  size_t n, int *peer)
{
    int pair[2], r;

    if (agent->state != LISTED) {
        return CH_ERR_STATE;
    }
    r = chosen_copy(agent, chosen, n);
    if (r != CH_OK) {
        return r;
    }
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) {
        return CH_ERR_SYS;
    }
    agent->side.fd = pair[0];
    agent->state = SERVING;
    r = channel_watch(agent, &agent->side);
    if (r != CH_OK) {
        close(pair[1]);
        channel_close(agent, &agent->side);
        agent->state = DEAD;
        return r;
    }
    *peer = pair[1];
    return CH_OK;
}

size_t
ch_keyagent_left(const struct ch_keyagent *agent)
{
    return agent->state == DEAD ? 0 : agent->n - agent->shown;
}
