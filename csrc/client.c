/*
 * client.c - one connection to the pool.
 *
 * Life: new (connect, peer check, HELLO both ways) -> put/flush and
 * fill/next in any order -> free. Once the socket failed every call says
 * CH_ERR_CLOSED, but frames that had arrived are still handed out by next.
 * A descriptor goes out with the first byte of its frame, never later.
 * The socket is non-blocking and close-on-exec; a forked child that frees
 * its copy only closes its descriptor.
 */
#include "client.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define CLIENT_FILL  (2u * 1024u * 1024u) /* read per ch_client_fill */
#define CLIENT_CHUNK (128u * 1024u)
#define CLIENT_OUT   (1024u * 1024u * 1024u)

/* A descriptor that waits for its frame's turn. */
struct parcel {
    struct parcel *next;
    uint64_t at; /* bytes put before its frame, since the connection began */
    int fd;
};

struct ch_client {
    int fd;
    int closed;
    size_t lent; /* bytes of the frame last returned by next */
    struct ch_buf in, out;
    uint64_t sent; /* bytes, since the connection began */
    struct parcel *parcels, **last_parcel;
};

static int64_t
now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* Waits for events; CH_OK, CH_ERR_TIMEOUT or CH_ERR_SYS. */
static int
wait_fd(int fd, short events, int64_t deadline_ms)
{
    struct pollfd p = {.fd = fd, .events = events};

    for (;;) {
        int64_t left = deadline_ms - now_ms();
        int n;

        if (left <= 0) {
            return CH_ERR_TIMEOUT;
        }
        n = poll(&p, 1, left > INT_MAX ? INT_MAX : (int)left);
        if (n > 0) {
            return CH_OK;
        }
        if (n < 0 && errno != EINTR) {
            return CH_ERR_SYS;
        }
    }
}

static int
socket_connect(const char *path, int64_t deadline_ms, int *out)
{
    struct sockaddr_un sa;
    int fd = -1;
    int r = CH_ERR_SYS;

    memset(&sa, 0, sizeof(sa));
    sa.sun_family = AF_UNIX;
    if (strlen(path) >= sizeof(sa.sun_path)) {
        errno = ENAMETOOLONG;
        return CH_ERR_SYS;
    }
    memcpy(sa.sun_path, path, strlen(path));
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return CH_ERR_SYS;
    }
    /* A full backlog shows as EAGAIN on unix sockets and has no event. */
    while (connect(fd, (struct sockaddr *)&sa, sizeof(sa)) != 0) {
        if (errno != EAGAIN && errno != EINTR) {
            goto out;
        }
        if (now_ms() >= deadline_ms) {
            r = CH_ERR_TIMEOUT;
            goto out;
        }
        (void)poll(NULL, 0, 5);
    }
    *out = fd;
    return CH_OK;
out:
    if (fd >= 0) {
        int saved = errno;

        close(fd);
        errno = saved;
    }
    return r;
}

static int
peer_check(int fd)
{
    struct ucred cred;
    socklen_t len = sizeof(cred);

    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) != 0) {
        return CH_ERR_SYS;
    }
    return cred.uid == geteuid() || cred.uid == 0 ? CH_OK : CH_ERR_REFUSED;
}

static int
hello_put(struct ch_client *c, const char *version)
{
    struct ch_buf body;
    struct ch_frame frame = {.type = CH_HELLO};
    int r;

    ch_buf_init(&body, CH_WIRE_BODY_MAX);
    r = ch_vec_put_count(&body, 4);
    r = r == CH_OK ? ch_vec_put_str(&body, "version") : r;
    r = r == CH_OK ? ch_vec_put_str(&body, version) : r;
    r = r == CH_OK ? ch_vec_put_str(&body, "pid") : r;
    r = r == CH_OK ? ch_vec_put_num(&body, getpid()) : r;
    if (r == CH_OK) {
        frame.body = ch_buf_data(&body);
        frame.len = (uint32_t)ch_buf_len(&body);
        r = ch_client_put(c, &frame);
    }
    ch_buf_fini(&body);
    return r;
}

static int
hello_get(struct ch_client *c, int64_t deadline_ms)
{
    struct ch_frame frame;
    int r = ch_client_flush(c);

    if (r != CH_OK && r != CH_ERR_AGAIN) {
        return r;
    }
    for (;;) {
        r = ch_client_next(c, &frame);
        if (r == CH_OK) {
            return frame.type == CH_HELLO    ? CH_OK
                   : frame.type == CH_FAILED ? CH_ERR_UNSUPPORTED
                                             : CH_ERR_PROTOCOL;
        }
        if (r != CH_ERR_AGAIN) {
            return r;
        }
        r = wait_fd(c->fd, POLLIN, deadline_ms);
        if (r != CH_OK) {
            return r;
        }
        r = ch_client_fill(c);
        if (r == CH_ERR_CLOSED && ch_buf_len(&c->in) == 0) {
            return r;
        }
        if (r == CH_ERR_NOMEM) {
            return r;
        }
    }
}

static void
explain(char *why, size_t size, int r, const char *path)
{
    switch (r) {
    case CH_OK:
        break;
    case CH_ERR_SYS:
        snprintf(why, size, "cannot reach the churten pool at %s: %s", path,
                 strerror(errno));
        break;
    case CH_ERR_REFUSED:
        snprintf(why, size,
                 "the process behind %s belongs to another user; not used",
                 path);
        break;
    case CH_ERR_TIMEOUT:
        snprintf(why, size, "the churten pool at %s did not answer in time",
                 path);
        break;
    case CH_ERR_UNSUPPORTED:
        snprintf(why, size,
                 "the churten pool at %s has another version; stop it with "
                 "'churten pool stop'",
                 path);
        break;
    case CH_ERR_CLOSED:
        snprintf(why, size, "the churten pool at %s closed the connection",
                 path);
        break;
    default:
        snprintf(why, size, "the churten pool at %s: %s", path,
                 ch_strerror(r));
    }
}

int
ch_client_new(const char *path, const char *version, int timeout_ms,
              struct ch_client **out, char *why, size_t why_size)
{
    int64_t deadline_ms = now_ms() + timeout_ms;
    struct ch_client *c = calloc(1, sizeof(*c));
    int saved;
    int r = CH_ERR_NOMEM;

    *out = NULL;
    if (c == NULL) {
        goto out;
    }
    c->fd = -1;
    c->last_parcel = &c->parcels;
    ch_buf_init(&c->in, CLIENT_FILL * 2 + CH_WIRE_BODY_MAX_LARGE);
    ch_buf_init(&c->out, CLIENT_OUT);
    r = socket_connect(path, deadline_ms, &c->fd);
    if (r == CH_OK) {
        r = peer_check(c->fd);
    }
    if (r == CH_OK) {
        r = hello_put(c, version);
    }
    if (r == CH_OK) {
        r = hello_get(c, deadline_ms);
    }
out:
    saved = errno;
    explain(why, why_size, r, path);
    if (r != CH_OK) {
        ch_client_free(c);
        c = NULL;
    }
    errno = saved;
    *out = c;
    return r;
}

/* The first one has gone out, or never will. */
static void
parcel_drop(struct ch_client *client)
{
    struct parcel *parcel = client->parcels;

    client->parcels = parcel->next;
    if (parcel->next == NULL) {
        client->last_parcel = &client->parcels;
    }
    close(parcel->fd);
    free(parcel);
}

void
ch_client_free(struct ch_client *client)
{
    if (client == NULL) {
        return;
    }
    if (client->fd >= 0) {
        close(client->fd);
    }
    ch_buf_fini(&client->in);
    ch_buf_fini(&client->out);
    while (client->parcels != NULL) {
        parcel_drop(client);
    }
    free(client);
}

int
ch_client_fd(const struct ch_client *client)
{
    return client->fd;
}

int
ch_client_put(struct ch_client *client, const struct ch_frame *frame)
{
    return client->closed ? CH_ERR_CLOSED : ch_wire_put(&client->out, frame);
}

int
ch_client_put_fd(struct ch_client *client, const struct ch_frame *frame,
                 int fd)
{
    uint64_t at = client->sent + ch_buf_len(&client->out);
    struct parcel *parcel = calloc(1, sizeof(*parcel));
    int r = CH_ERR_NOMEM;

    if (parcel == NULL) {
        return r;
    }
    parcel->at = at;
    parcel->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (parcel->fd < 0) {
        r = CH_ERR_SYS;
        goto error;
    }
    r = ch_client_put(client, frame);
    if (r != CH_OK) {
        close(parcel->fd);
        goto error;
    }
    *client->last_parcel = parcel;
    client->last_parcel = &parcel->next;
    return CH_OK;
error:
    free(parcel);
    return r;
}

/* Up to the next frame with a descriptor, or from there with it. */
static ssize_t
client_send(struct ch_client *client)
{
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof(int))];
    } control = {.room = {0}};
    struct parcel *parcel = client->parcels;
    struct iovec part = {
        .iov_base = (uint8_t *)(uintptr_t)ch_buf_data(&client->out),
        .iov_len = ch_buf_len(&client->out)};
    struct msghdr msg = {.msg_iov = &part, .msg_iovlen = 1};
    int goes = parcel != NULL && parcel->at == client->sent;
    ssize_t n;

    if (goes) {
        msg.msg_control = control.room;
        msg.msg_controllen = sizeof(control.room);
        control.head.cmsg_level = SOL_SOCKET;
        control.head.cmsg_type = SCM_RIGHTS;
        control.head.cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(&control.head), &parcel->fd, sizeof(int));
        parcel = parcel->next;
    }
    if (parcel != NULL) {
        part.iov_len = (size_t)(parcel->at - client->sent);
    }
    n = sendmsg(client->fd, &msg, MSG_NOSIGNAL);
    if (n > 0 && goes) {
        parcel_drop(client);
    }
    return n;
}

int
ch_client_flush(struct ch_client *client)
{
    while (!client->closed && ch_buf_len(&client->out) > 0) {
        ssize_t n = client_send(client);

        if (n > 0) {
            ch_buf_consume(&client->out, (size_t)n);
            client->sent += (uint64_t)n;
        } else if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            return CH_ERR_AGAIN;
        } else if (n < 0 && errno != EINTR) {
            /* What the pool said before it went is still readable, so
             * only ch_client_fill decides that the connection is over. */
            ch_buf_fini(&client->out);
            return CH_ERR_CLOSED;
        }
    }
    return client->closed ? CH_ERR_CLOSED : CH_OK;
}

int
ch_client_fill(struct ch_client *client)
{
    size_t total = 0;

    /* The frame lent by next lives in this buffer. */
    ch_buf_consume(&client->in, client->lent);
    client->lent = 0;
    while (!client->closed && total < CLIENT_FILL) {
        uint8_t *place = NULL;
        int r = ch_buf_room(&client->in, CLIENT_CHUNK, &place);
        ssize_t n;

        if (r == CH_ERR_LIMIT) {
            break;
        }
        if (r != CH_OK) {
            return r;
        }
        n = recv(client->fd, place, CLIENT_CHUNK, 0);
        if (n > 0) {
            ch_buf_added(&client->in, (size_t)n);
            total += (size_t)n;
            if ((size_t)n < CLIENT_CHUNK) {
                break;
            }
        } else if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            break;
        } else if (n == 0 || errno != EINTR) {
            client->closed = 1;
        }
    }
    return total > 0 ? CH_OK : client->closed ? CH_ERR_CLOSED : CH_ERR_AGAIN;
}

int
ch_client_next(struct ch_client *client, struct ch_frame *frame)
{
    size_t used = 0;
    int r;

    ch_buf_consume(&client->in, client->lent);
    client->lent = 0;
    r = ch_wire_get(ch_buf_data(&client->in), ch_buf_len(&client->in), frame,
                    &used);
    if (r == CH_OK) {
        client->lent = used;
    }
    return r;
}
