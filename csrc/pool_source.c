/*
 * pool_source.c - files that the pool reads itself. A client that sends a file
 * (PUT) may hand over its descriptor (SOURCE) instead of the bytes: then they
 * do not pass through the client and the socket between us, once per host.
 *
 *   SOURCE --window, room in the queue--> read, DATA --END or error--> gone
 *
 * What always holds: a source belongs to its request and ends with it. What it
 * has read and the link has not taken is at most SOURCE_AHEAD and one frame.
 * The window of the agent counts as if the client had sent the bytes. Only
 * plain files are read, and only what is in memory: what is not is asked for
 * and awaited (WAIT_MS, WAITS_MAX), because all hosts share this thread.
 * A file that has become shorter gives less than was announced, and the agent
 * refuses it; one that has grown is read up to the announced size.
 */
#include "pool_int.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define SOURCE_AHEAD CH_WIRE_BODY_MAX
/* Of a frame: with its header it fills packets of SSH, of 32 KiB, exactly. */
#define BODY_BYTES   (CH_WIRE_BODY_MAX - CH_WIRE_HEADER)
#define WAIT_MS      2
#define WAITS_MAX    100 /* then it is read whatever it takes */
#define WANT_BYTES   (4 * 1024 * 1024)

struct source {
    struct request *req;
    struct ch_list in_login;
    struct ch_timer *timer; /* until it is in memory, or its end is told */
    int waits;              /* in a row */
    int error;              /* errno of what ended it */
    int fd;
    int64_t at, end;
};

/* --- descriptors --- */

static int
fds_keep(struct client *client, const struct cmsghdr *head)
{
    size_t n = (head->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    int fits = 1;

    for (size_t i = 0; i < n; i++) {
        int fd;

        memcpy(&fd, CMSG_DATA(head) + i * sizeof(int), sizeof(fd));
        if (client->n_fds < CLIENT_FDS) {
            client->fds[client->n_fds++] = fd;
        } else {
            close(fd);
            fits = 0;
        }
    }
    return fits;
}

ssize_t
client_receive(struct client *client, uint8_t *place, size_t len)
{
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(CLIENT_FDS * sizeof(int))];
    } control;
    struct iovec part = {.iov_base = place, .iov_len = len};
    struct msghdr msg = {.msg_iov = &part,
                         .msg_iovlen = 1,
                         .msg_control = control.room,
                         .msg_controllen = sizeof(control.room)};
    ssize_t n = recvmsg(client->fd, &msg, MSG_CMSG_CLOEXEC);
    int fits = n < 0 || !(msg.msg_flags & MSG_CTRUNC);

    for (struct cmsghdr *head = n < 0 ? NULL : CMSG_FIRSTHDR(&msg);
         head != NULL; head = CMSG_NXTHDR(&msg, head)) {
        if (head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS) {
            fits &= fds_keep(client, head);
        }
    }
    if (!fits) {
        errno = EPROTO;
        return -1;
    }
    return n;
}

void
client_close_fds(struct client *client)
{
    while (client->n_fds > 0) {
        close(client->fds[--client->n_fds]);
    }
}

/* --- life --- */

void
source_free(struct source *source)
{
    if (source == NULL) {
        return;
    }
    ch_loop_cancel(source->req->attach->session->pool->loop, source->timer);
    ch_list_remove(&source->in_login);
    close(source->fd);
    free(source);
}

static int64_t
get_u64(const uint8_t *at)
{
    uint64_t value = 0;

    for (int i = 0; i < 8; i++) {
        value = value << 8 | at[i];
    }
    return value > INT64_MAX ? -1 : (int64_t)value;
}

/* Takes fd over, if it returns CH_OK. */
static int
source_new(struct request *req, int fd, int64_t size)
{
    struct source *source;
    struct stat st;

    if (req->type != CH_PUT || req->up_ended || size < 0 ||
        fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        return CH_ERR_PROTOCOL;
    }
    source = calloc(1, sizeof(*source));
    if (source == NULL) {
        return CH_ERR_NOMEM;
    }
    source->req = req;
    source->fd = fd;
    source->end = size;
    req->source = source;
    req->has_source = req->up_ended = 1;
    ch_list_add_tail(&req->agent->login->sources, &source->in_login);
    sources_feed(req->agent->login);
    return CH_OK;
}

int
client_source(struct client *client, const struct ch_frame *frame)
{
    struct request *req = request_find(client, frame->request);
    int fd, r = CH_OK;

    if (client->n_fds == 0 || frame->len != 8 || frame->flags != 0) {
        return CH_ERR_PROTOCOL;
    }
    fd = client->fds[0];
    client->n_fds--;
    memmove(client->fds, client->fds + 1, client->n_fds * sizeof(fd));
    if (req == NULL || (r = source_new(req, fd, get_u64(frame->body))) != 0) {
        close(fd); /* without a request: it has ended meanwhile */
    }
    return r;
}

/* --- reading --- */

/* Bytes read; 0 at the end of the file; -1 with errno, EAGAIN: not yet. */
static ssize_t
source_read(struct source *source, uint8_t *place, size_t len)
{
    struct iovec part = {.iov_base = place, .iov_len = len};
    ssize_t n;

    if (source->waits < WAITS_MAX) {
        n = preadv2(source->fd, &part, 1, source->at, RWF_NOWAIT);
        if (n >= 0 || errno == EAGAIN) {
            return n;
        }
    }
    do {
        n = pread(source->fd, place, len, source->at);
    } while (n < 0 && errno == EINTR);
    return n;
}

static void
source_waited(void *arg)
{
    struct source *source = arg;

    source->timer = NULL;
    sources_feed(source->req->agent->login);
}

static void
source_wait(struct source *source)
{
    struct ch_loop *loop = source->req->attach->session->pool->loop;

    if (source->waits++ == 0) {
        (void)posix_fadvise(source->fd, source->at, WANT_BYTES,
                            POSIX_FADV_WILLNEED);
    }
    source->timer = ch_loop_timer(loop, WAIT_MS, source_waited, source);
    if (source->timer == NULL) {
        source->waits = WAITS_MAX;
    }
}

static void
source_fail(void *arg)
{
    struct source *source = arg;
    char text[128];
    struct fail fail;

    source->timer = NULL;
    (void)snprintf(text, sizeof(text), "cannot read the file: %s",
                   strerror(source->error));
    fail_set(&fail, "file", "file", text);
    request_break(source->req, &fail);
}

/* From the loop: callers up the stack walk lists of requests. */
static void
source_failed(struct source *source, int error)
{
    struct ch_loop *loop = source->req->attach->session->pool->loop;

    source->error = error;
    source->timer = ch_loop_timer(loop, 0, source_fail, source);
    if (source->timer == NULL) {
        ch_list_remove(&source->in_login);
        client_doom(source->req->attach->client);
    }
}

/* What was read becomes a frame; with the last one the source goes. */
static void
source_send(struct source *source, struct ch_outnode *node, size_t len)
{
    struct request *req = source->req;
    struct agent *login = req->agent->login;
    struct ch_frame frame = {.type = CH_DATA,
                             .agent = req->agent->index,
                             .request = req->wire,
                             .len = (uint32_t)len};

    source->waits = 0;
    source->at += (int64_t)len;
    req->up -= (int64_t)len;
    req->stood_us = req->up <= 0 ? ch_now_us() : 0;
    ch_list_remove(&source->in_login);
    ch_list_add_tail(&login->sources, &source->in_login);
    if (len == 0 || source->at == source->end) {
        frame.flags = CH_FLAG_END;
        source_free(source);
        req->source = NULL;
    }
    ch_outq_append(ch_agentlink_queue(login->al), node, &frame);
}

/* One frame. */
static void
source_step(struct source *source)
{
    int64_t left = source->end - source->at;
    size_t len = left < BODY_BYTES ? (size_t)left : BODY_BYTES;
    uint8_t *body = NULL;
    struct ch_outnode *node = ch_outnode_new(len, &body);
    ssize_t n;

    if (node == NULL) {
        source_failed(source, ENOMEM);
        return;
    }
    n = len > 0 ? source_read(source, body, len) : 0;
    if (n >= 0) {
        source_send(source, node, (size_t)n);
        return;
    }
    ch_outnode_free(node);
    if (errno == EAGAIN) {
        source_wait(source);
    } else {
        source_failed(source, errno);
    }
}

/* The next one that may send: its request has begun and has a window. */
static struct source *
source_next(struct agent *login)
{
    CH_LIST_EACH (at, &login->sources) {
        struct source *source = CH_LIST_OF(at, struct source, in_login);
        const struct request *req = source->req;

        if (source->timer == NULL && req->state != REQUEST_QUEUED &&
            req->up > 0) {
            return source;
        }
    }
    return NULL;
}

void
sources_feed(struct agent *login)
{
    struct source *source;

    if (login->feeding || login->state != AGENT_READY) {
        return;
    }
    login->feeding = 1;
    while (login->al != NULL &&
           ch_agentlink_queue(login->al)->bytes < SOURCE_AHEAD &&
           (source = source_next(login)) != NULL) {
        source_step(source);
        if (login->al != NULL) {
            ch_agentlink_flush(login->al);
        }
    }
    login->feeding = 0;
}
