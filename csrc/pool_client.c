/*
 * pool_client.c - one client of the pool: its socket, its frames in, its
 * frames out.
 *
 *   ACCEPTED --HELLO (our version)--> GREETED --close, violation--> dead
 *
 * Frames out are collected during a turn of the loop and written at its
 * end. A client that does not read fills `out`: at POOL_CLIENT_HIGH its
 * targets stop being read (client_full), so a stopped playbook costs at most
 * that much; if others wait for the same sessions it is dropped: after
 * POOL_STALL_MS if its process is stopped (Ctrl-Z), else when POOL_STALL_LOOKS
 * of them found no progress. It is also dropped if the queue reaches
 * POOL_CLIENT_LIMIT.
 * A dropped client's requests are cancelled on the targets.
 */
#include "pool_int.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "log.h"

#define READ_TURN (512u * 1024u)

static void client_flush(void *arg);
static void client_ready(void *arg, int fd, unsigned events);

/* --- stoppers --- */

void
stopper_init(struct stopper *stopper, void (*resume)(void *), void *arg)
{
    ch_list_init(&stopper->in_client);
    stopper->resume = resume;
    stopper->arg = arg;
}

void
stopper_fini(struct stopper *stopper)
{
    ch_list_remove(&stopper->in_client);
}

static void
stoppers_resume(struct client *client)
{
    while (!ch_list_empty(&client->waiting)) {
        struct stopper *s =
            CH_LIST_FIRST(&client->waiting, struct stopper, in_client);

        ch_list_remove(&s->in_client);
        s->resume(s->arg);
    }
}

/* Do clients share a session that waits for this one? */
static int
client_hinders(const struct client *client)
{
    CH_LIST_EACH (at, &client->attaches) {
        if (CH_LIST_OF(at, struct attach, in_client)->session->n_attaches >
            1) {
            return 1;
        }
    }
    return 0;
}

/* Did a terminal or a debugger stop its process? 0 if nobody knows. */
static int
client_stopped(const struct client *client)
{
    char path[64], text[512];
    const char *end;
    ssize_t n = -1;
    int fd;

    (void)snprintf(path, sizeof(path), "/proc/%ld/stat", client->pid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        n = read(fd, text, sizeof(text) - 1);
        close(fd);
    }
    text[n > 0 ? n : 0] = '\0';
    end = strrchr(text, ')'); /* of its name, which may hold anything */
    return end != NULL && (strncmp(end, ") T", 3) == 0 ||
                           strncmp(end, ") t", 3) == 0);
}

static void
client_stalled(void *arg)
{
    struct client *client = arg;

    client->stall_timer = NULL;
    if (ch_list_empty(&client->waiting)) {
        return;
    }
    client->stall_looks = client->progressed ? 0 : client->stall_looks + 1;
    if (!client->progressed && client_hinders(client) &&
        (client->stall_looks >= POOL_STALL_LOOKS || client_stopped(client))) {
        client_drop(client, "it does not read and others wait for it");
        return;
    }
    client->progressed = 0;
    client->stall_timer = ch_loop_timer(client->pool->loop, POOL_STALL_MS,
                                        client_stalled, client);
}

int
client_full(struct client *client, struct stopper *stopper)
{
    if (ch_buf_len(&client->out) < POOL_CLIENT_HIGH) {
        return 0;
    }
    ch_list_remove(&stopper->in_client);
    ch_list_add_tail(&client->waiting, &stopper->in_client);
    if (client->stall_timer == NULL) {
        client->progressed = client->stall_looks = 0;
        client->stall_timer = ch_loop_timer(client->pool->loop, POOL_STALL_MS,
                                            client_stalled, client);
    }
    return 1;
}

/* --- out --- */

static void
client_doomed(void *arg)
{
    client_drop(arg, "its queue is full or memory is short");
}

/* Drops it at the end of the turn: callers walk lists it is in. */
void
client_doom(struct client *client)
{
    if (client->dead || client->doomed) {
        return;
    }
    client->doomed = 1;
    ch_buf_fini(&client->out);
    if (ch_loop_defer(client->pool->loop, client_doomed, client) != CH_OK) {
        /* It hears nothing more and leaves by itself. */
        ch_log_at(CH_LOG_ERROR, "client %u: out of memory", client->serial);
    }
}

void
client_frame(struct client *client, const struct ch_frame *frame)
{
    if (client->dead || client->doomed) {
        return;
    }
    if (ch_wire_put(&client->out, frame) != CH_OK) {
        client_doom(client);
        return;
    }
    if (!client->flushing) {
        client->flushing = 1;
        if (ch_loop_defer(client->pool->loop, client_flush, client) != CH_OK) {
            client_doom(client);
        }
    }
}

/* 1 when the queue is empty, 0 when the socket is full, -1 when it is gone. */
static int
client_write(struct client *client)
{
    while (ch_buf_len(&client->out) > 0) {
        ssize_t n = send(client->fd, ch_buf_data(&client->out),
                         ch_buf_len(&client->out), MSG_NOSIGNAL);

        if (n > 0) {
            ch_buf_consume(&client->out, (size_t)n);
            client->progressed = 1;
        } else if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            return 0;
        } else if (n < 0 && errno != EINTR) {
            return -1;
        }
    }
    return 1;
}

static void
client_flush(void *arg)
{
    struct client *client = arg;
    unsigned events;
    int done;

    client->flushing = 0;
    if (client->dead) {
        return;
    }
    done = client_write(client);
    if (done < 0) {
        client_drop(client, "it is gone");
        return;
    }
    events = done ? CH_LOOP_READ : CH_LOOP_READ | CH_LOOP_WRITE;
    if (ch_loop_watch(client->pool->loop, client->fd, events, client_ready,
                      client) != CH_OK) {
        client_drop(client, "out of memory");
        return;
    }
    if (ch_buf_len(&client->out) < POOL_CLIENT_LOW) {
        stoppers_resume(client);
    }
}

void
client_failed(struct client *client, uint32_t session, uint16_t agent,
              uint32_t request, const struct fail *fail, int started)
{
    struct ch_frame frame = {.type = CH_FAILED,
                             .agent = agent,
                             .session = session,
                             .request = request};
    struct ch_buf body;
    int r;

    ch_buf_init(&body, CH_WIRE_BODY_MAX);
    r = ch_vec_put_count(&body, 4);
    r = r == CH_OK ? ch_vec_put_str(&body, fail->class) : r;
    r = r == CH_OK ? ch_vec_put_str(&body, fail->layer) : r;
    r = r == CH_OK ? ch_vec_put_str(&body, fail->message) : r;
    r = r == CH_OK ? ch_vec_put_str(&body, started ? "1" : "0") : r;
    if (r == CH_OK) {
        frame.body = ch_buf_data(&body);
        frame.len = (uint32_t)ch_buf_len(&body);
        client_frame(client, &frame);
    } else {
        client_doom(client);
    }
    ch_buf_fini(&body);
}

void
client_exit_ok(struct client *client, const struct ch_frame *asked)
{
    static const char *const items[6] = {"0", "0", "0", "", "", "0"};
    struct ch_frame frame = *asked;
    struct ch_buf body;
    int r;

    ch_buf_init(&body, CH_WIRE_BODY_MAX);
    r = ch_vec_put_count(&body, 6);
    for (int i = 0; i < 6 && r == CH_OK; i++) {
        r = ch_vec_put_str(&body, items[i]);
    }
    frame.type = CH_EXIT;
    frame.flags = 0;
    frame.body = ch_buf_data(&body);
    frame.len = (uint32_t)ch_buf_len(&body);
    if (r == CH_OK) {
        client_frame(client, &frame);
    } else {
        client_doom(client);
    }
    ch_buf_fini(&body);
}

/* --- in --- */

static int
client_hello(struct client *client, const struct ch_frame *frame)
{
    const uint8_t *version = NULL;
    size_t len = 0;
    struct ch_frame answer = {.type = CH_HELLO};
    struct ch_buf body;
    struct fail fail;
    int r;

    if (frame->type != CH_HELLO || (frame->flags & CH_FLAG_ZLIB) ||
        ch_vec_check(frame->body, frame->len, 1) != CH_OK ||
        ch_map_get(frame->body, frame->len, "version", 0, &version, &len) !=
            CH_OK) {
        return CH_ERR_PROTOCOL;
    }
    if (len != strlen(CH_VERSION) || memcmp(version, CH_VERSION, len) != 0) {
        fail_set(&fail, "version", "pool",
                 "this pool is of version " CH_VERSION);
        client_failed(client, 0, 0, 0, &fail, 0);
        (void)client_write(client);
        return CH_ERR_REFUSED;
    }
    client->greeted = 1;
    ch_loop_cancel(client->pool->loop, client->hello_timer);
    client->hello_timer = NULL;
    ch_buf_init(&body, CH_WIRE_BODY_MAX);
    r = ch_vec_put_count(&body, 4);
    r = r == CH_OK ? ch_vec_put_str(&body, "version") : r;
    r = r == CH_OK ? ch_vec_put_str(&body, CH_VERSION) : r;
    r = r == CH_OK ? ch_vec_put_str(&body, "pid") : r;
    r = r == CH_OK ? ch_vec_put_num(&body, getpid()) : r;
    answer.body = ch_buf_data(&body);
    answer.len = (uint32_t)ch_buf_len(&body);
    if (r == CH_OK) {
        client_frame(client, &answer);
    }
    ch_buf_fini(&body);
    return r;
}

static int
client_payload(struct client *client, const struct ch_frame *frame)
{
    struct ch_vec vec;
    const uint8_t *key = NULL;
    size_t len = 0;

    if ((frame->flags & CH_FLAG_ZLIB) ||
        ch_vec_check(frame->body, frame->len, 0) != CH_OK ||
        ch_vec_init(&vec, frame->body, frame->len) != CH_OK ||
        vec.left < 2 || vec.left > 4 ||
        ch_vec_next(&vec, &key, &len) != CH_OK || len == 0) {
        return CH_ERR_PROTOCOL;
    }
    store_put(client->pool, key, len, frame->body, frame->len);
    return CH_OK;
}

static int
client_close(struct client *client, const struct ch_frame *frame)
{
    struct attach *attach = attach_find(client, frame->session);
    struct agent_ref *ref;

    if (attach == NULL) {
        return CH_OK;
    }
    if (frame->agent == 0) {
        attach_drop(attach);
        return CH_OK;
    }
    ref = ref_find(attach, frame->agent);
    if (ref != NULL) {
        ref_drop(ref);
    }
    return CH_OK;
}

static int
client_reset(struct client *client, const struct ch_frame *frame)
{
    struct attach *attach = attach_find(client, frame->session);

    if (attach != NULL) {
        struct session *session = attach->session;

        session_retire(session);
        attach_drop(attach);
    }
    client_exit_ok(client, frame);
    return CH_OK;
}

static int
client_status(struct client *client, const struct ch_frame *asked)
{
    struct ch_buf json;
    struct ch_frame frame = *asked;
    int r;

    ch_buf_init(&json, POOL_CLIENT_HIGH);
    r = pool_status(client->pool, &json);
    while (r == CH_OK && !client->dead && ch_buf_len(&json) > 0) {
        size_t len = ch_buf_len(&json);

        frame.type = CH_DATA;
        frame.flags = len > CH_WIRE_BODY_MAX ? 0 : CH_FLAG_END;
        frame.body = ch_buf_data(&json);
        frame.len =
            (uint32_t)(len > CH_WIRE_BODY_MAX ? CH_WIRE_BODY_MAX : len);
        client_frame(client, &frame);
        ch_buf_consume(&json, frame.len);
    }
    ch_buf_fini(&json);
    if (r == CH_OK) {
        client_exit_ok(client, asked);
    }
    return r;
}

/* Whether the final frame of this OPEN, START or other request is still to
 * come. */
static int
client_owed(struct client *client, const struct ch_frame *frame)
{
    struct attach *attach = attach_find(client, frame->session);
    struct agent_ref *ref = NULL;

    if (request_find(client, frame->request) != NULL) {
        return 1;
    }
    if (attach == NULL) {
        return 0;
    }
    if (!attach->answered && attach->open_request == frame->request) {
        return 1;
    }
    ref = ref_find(attach, frame->agent);
    return ref != NULL && !ref->answered &&
           ref->start_request == frame->request;
}

/* PING: with a request number it asks whether that one is under way. */
static int
client_pong(struct client *client, const struct ch_frame *frame)
{
    struct ch_frame answer = *frame;
    struct request *req;
    struct fail fail;

    if (frame->len > 64) {
        return CH_ERR_PROTOCOL;
    }
    if (frame->request != 0 && !client_owed(client, frame)) {
        fail_set(&fail, "unreachable", "pool",
                 "the pool does not know this request any more");
        client_failed(client, frame->session, frame->agent, frame->request,
                      &fail, 1);
        return CH_OK;
    }
    req = frame->request != 0 ? request_find(client, frame->request) : NULL;
    if (req != NULL) {
        request_ask(req);
    }
    answer.type = CH_PONG;
    client_frame(client, &answer);
    return CH_OK;
}

/* Frames about a request under way; one that has ended is no error. */
static int
client_request(struct client *client, const struct ch_frame *frame)
{
    struct request *req = request_find(client, frame->request);

    if (req == NULL) {
        return CH_OK;
    }
    switch (frame->type) {
    case CH_DATA:
        return request_data(req, frame);
    case CH_WINDOW:
        return request_window(req, frame);
    default:
        request_cancel(req);
        return CH_OK;
    }
}

/* The body may hold passwords. */
static void
body_wipe(const struct ch_frame *frame)
{
    explicit_bzero((uint8_t *)(uintptr_t)frame->body, frame->len);
}

static int
client_dispatch(struct client *client, const struct ch_frame *frame)
{
    int r;

    if (!client->greeted) {
        return client_hello(client, frame);
    }
    switch (frame->type) {
    case CH_OPEN:
        r = session_open(client, frame);
        body_wipe(frame);
        return r;
    case CH_START:
        r = agent_start(client, frame);
        body_wipe(frame);
        return r;
    case CH_PAYLOAD:
        return client_payload(client, frame);
    case CH_RUN:
    case CH_EXEC:
    case CH_PUT:
    case CH_FETCH:
        return request_new(client, frame);
    case CH_DATA:
    case CH_WINDOW:
    case CH_CANCEL:
        return client_request(client, frame);
    case CH_SOURCE:
        return client_source(client, frame);
    case CH_CLOSE:
        return client_close(client, frame);
    case CH_RESET:
        return client_reset(client, frame);
    case CH_STATUS:
        return client_status(client, frame);
    case CH_STOP:
        client_exit_ok(client, frame);
        ch_pool_stop(client->pool);
        return CH_OK;
    case CH_PING:
        return client_pong(client, frame);
    case CH_PONG:
        return CH_OK;
    default:
        return CH_ERR_PROTOCOL;
    }
}

static void
client_frames(struct client *client)
{
    struct ch_frame frame;
    size_t used = 0;
    int r = CH_OK;

    while (!client->dead) {
        r = ch_wire_get(ch_buf_data(&client->in), ch_buf_len(&client->in),
                        &frame, &used);
        /* Before HELLO nothing large is waited for. */
        if (r == CH_ERR_AGAIN && !client->greeted &&
            ch_buf_len(&client->in) > 4096) {
            r = CH_ERR_PROTOCOL;
        }
        if (r == CH_OK) {
            r = client_dispatch(client, &frame);
        }
        if (client->dead || r == CH_ERR_AGAIN) {
            return;
        }
        if (r != CH_OK) {
            client_drop(client, ch_strerror(r));
            return;
        }
        ch_buf_consume(&client->in, used);
    }
}

/* Reads what is there, but not more than its share of a turn. */
static int
client_read(struct client *client)
{
    size_t total = 0;

    while (total < READ_TURN) {
        uint8_t *place = NULL;
        int r = ch_buf_room(&client->in, 128 * 1024, &place);
        ssize_t n;

        if (r != CH_OK) {
            return r == CH_ERR_LIMIT && total > 0 ? CH_OK : r;
        }
        n = client_receive(client, place, 128 * 1024);
        if (n > 0) {
            ch_buf_added(&client->in, (size_t)n);
            total += (size_t)n;
            if (n < 128 * 1024) {
                break;
            }
        } else if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            break;
        } else if (n == 0 || errno != EINTR) {
            return total > 0 ? CH_OK : CH_ERR_CLOSED;
        }
    }
    return CH_OK;
}

static void
client_ready(void *arg, int fd, unsigned events)
{
    struct client *client = arg;
    int r;

    (void)fd;
    if (events & CH_LOOP_READ) {
        r = client_read(client);
        if (r != CH_OK) {
            client_drop(client, ch_strerror(r));
            return;
        }
        client_frames(client);
    }
    if (!client->dead && (events & CH_LOOP_WRITE) && !client->flushing) {
        client_flush(client);
    }
}

/* --- life --- */

static void
client_silent(void *arg)
{
    struct client *client = arg;

    client->hello_timer = NULL;
    client_drop(client, "no HELLO in time");
}

static void
client_destroy(void *arg)
{
    struct client *client = arg;

    ch_buf_fini(&client->in);
    ch_buf_fini(&client->out);
    client_close_fds(client);
    free(client);
}

/* Takes fd over. */
void
client_accept(struct ch_pool *pool, int fd)
{
    struct client *client = calloc(1, sizeof(*client));
    struct ucred cred = {.pid = 0};
    socklen_t len = sizeof(cred);

    if (client == NULL ||
        getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) != 0 ||
        (cred.uid != geteuid() && cred.uid != 0)) {
        ch_log_at(CH_LOG_ERROR, "client of uid %ld refused", (long)cred.uid);
        close(fd);
        free(client);
        return;
    }
    client->pool = pool;
    client->fd = fd;
    client->pid = cred.pid;
    client->serial = ++pool->serial;
    ch_buf_init(&client->in, CH_WIRE_BODY_MAX_LARGE + 4 * CH_WIRE_BODY_MAX);
    ch_buf_init(&client->out, POOL_CLIENT_LIMIT);
    ch_list_init(&client->attaches);
    ch_list_init(&client->waiting);
    ch_list_add_tail(&pool->clients, &client->in_pool);
    pool->n_clients++;
    client->hello_timer =
        ch_loop_timer(pool->loop, POOL_HELLO_MS, client_silent, client);
    ch_log("client %u (pid %ld) connected", client->serial, client->pid);
    if (client->hello_timer == NULL ||
        ch_loop_watch(pool->loop, fd, CH_LOOP_READ, client_ready, client) !=
            CH_OK) {
        client_drop(client, "out of memory");
    }
    pool_idle_check(pool);
}

void
client_drop(struct client *client, const char *why)
{
    struct ch_pool *pool = client->pool;

    if (client->dead) {
        return;
    }
    client->dead = 1;
    ch_log("client %u (pid %ld) left: %s", client->serial, client->pid, why);
    while (!ch_list_empty(&client->attaches)) {
        attach_drop(
            CH_LIST_FIRST(&client->attaches, struct attach, in_client));
    }
    stoppers_resume(client);
    ch_loop_cancel(pool->loop, client->hello_timer);
    ch_loop_cancel(pool->loop, client->stall_timer);
    ch_loop_unwatch(pool->loop, client->fd);
    close(client->fd);
    ch_list_remove(&client->in_pool);
    pool->n_clients--;
    pool_idle_check(pool);
    if (ch_loop_defer(pool->loop, client_destroy, client) != CH_OK) {
        return;
    }
}
