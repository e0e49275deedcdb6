/*
 * connect.c - why not ssh_connect() of libssh: it resolves names on the
 * calling thread (ours: resolve.c), has no deadline in non-blocking mode, and
 * of several addresses it only ever uses the first.
 *
 *   dial:    address 1 ..300 ms or error.. address 2 ... first one wins
 *   pace:    at most 8 handshakes per address, then first come first served
 *
 * Everything runs in the loop's thread, and so may the table of gates be
 * static: a process has one loop.
 */
#include "connect.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define STAGGER_MS 300

/* --- dialling --- */

struct ch_dial {
    struct ch_loop *loop;
    struct ch_address list[CH_ADDRESSES_MAX];
    int fds[CH_ADDRESSES_MAX]; /* -1: not started or failed */
    size_t n, started, pending;
    struct ch_address bind;
    int has_bind;
    int error;              /* errno of the last failure */
    struct ch_timer *timer; /* starts the next address or reports */
    ch_dialled_fn *fn;
    void *arg;
};

static void
dial_close(struct ch_dial *dial, size_t i)
{
    if (dial->fds[i] >= 0) {
        ch_loop_unwatch(dial->loop, dial->fds[i]);
        close(dial->fds[i]);
        dial->fds[i] = -1;
    }
}

void
ch_dial_cancel(struct ch_dial *dial)
{
    if (dial == NULL) {
        return;
    }
    for (size_t i = 0; i < dial->n; i++) {
        dial_close(dial, i);
    }
    ch_loop_cancel(dial->loop, dial->timer);
    free(dial);
}

static void
dial_report(struct ch_dial *dial, int fd, const struct ch_address *peer)
{
    struct ch_address copy;
    ch_dialled_fn *fn = dial->fn;
    void *arg = dial->arg;
    int error = dial->error;

    if (peer != NULL) {
        copy = *peer;
    }
    ch_dial_cancel(dial);
    fn(arg, fd, peer == NULL ? NULL : &copy, fd < 0 ? error : 0);
}

static void dial_on_timer(void *arg);

static void
dial_timer_set(struct ch_dial *dial, int64_t delay_ms)
{
    ch_loop_cancel(dial->loop, dial->timer);
    dial->timer = ch_loop_timer(dial->loop, delay_ms, dial_on_timer, dial);
}

static void
dial_on_fd(void *arg, int fd, unsigned events)
{
    struct ch_dial *dial = arg;
    size_t i = 0;
    int error = 0;
    socklen_t len = sizeof(error);

    (void)events;
    while (dial->fds[i] != fd) {
        i++;
    }
    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len) != 0) {
        error = errno;
    }
    if (error == 0) {
        ch_loop_unwatch(dial->loop, fd);
        dial->fds[i] = -1;
        dial_report(dial, fd, &dial->list[i]);
        return;
    }
    dial->error = error;
    dial->pending--;
    dial_close(dial, i);
    dial_timer_set(dial, 0);
}

/* The agent's PING finds a silent target first; a command without an agent has
 * only these probes of the kernel. */
static void
socket_options(int fd)
{
    int on = 1, idle_s = 15, interval_s = 15, count = 3;

    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof(idle_s));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s,
                     sizeof(interval_s));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof(count));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
}

/* Starts to connect to address i; CH_ERR_SYS with errno if it cannot. */
static int
dial_try(struct ch_dial *dial, size_t i)
{
    const struct ch_address *to = &dial->list[i];
    int fd, error;

    fd = socket(to->family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return CH_ERR_SYS;
    }
    socket_options(fd);
    if (dial->has_bind && bind(fd, (const struct sockaddr *)&dial->bind.sa,
                               dial->bind.len) != 0) {
        goto failed;
    }
    if (connect(fd, (const struct sockaddr *)&to->sa, to->len) != 0 &&
        errno != EINPROGRESS) {
        goto failed;
    }
    if (ch_loop_watch(dial->loop, fd, CH_LOOP_WRITE, dial_on_fd, dial) !=
        CH_OK) {
        errno = ENOMEM;
        goto failed;
    }
    dial->fds[i] = fd;
    dial->pending++;
    return CH_OK;
failed:
    error = errno;
    close(fd);
    errno = error;
    return CH_ERR_SYS;
}

static void
dial_on_timer(void *arg)
{
    struct ch_dial *dial = arg;

    dial->timer = NULL;
    while (dial->started < dial->n) {
        if (dial_try(dial, dial->started++) == CH_OK) {
            if (dial->started < dial->n) {
                dial_timer_set(dial, STAGGER_MS);
            }
            return;
        }
        dial->error = errno;
    }
    if (dial->pending == 0) {
        dial_report(dial, -1, NULL);
    }
}

struct ch_dial *
ch_dial_start(struct ch_loop *loop, const struct ch_address *list, size_t n,
              const struct ch_address *bind, ch_dialled_fn *fn, void *arg)
{
    struct ch_dial *dial = calloc(1, sizeof(*dial));

    if (dial == NULL) {
        return NULL;
    }
    dial->loop = loop;
    dial->n = n < CH_ADDRESSES_MAX ? n : CH_ADDRESSES_MAX;
    memcpy(dial->list, list, dial->n * sizeof(*list));
    for (size_t i = 0; i < CH_ADDRESSES_MAX; i++) {
        dial->fds[i] = -1;
    }
    if (bind != NULL) {
        dial->bind = *bind;
        dial->has_bind = 1;
    }
    dial->error = EADDRNOTAVAIL;
    dial->fn = fn;
    dial->arg = arg;
    dial_timer_set(dial, 0);
    if (dial->timer == NULL) {
        free(dial);
        return NULL;
    }
    return dial;
}

/* --- pacing --- */

struct ch_pace_gate {
    struct ch_address address;
    unsigned holders;
    struct ch_pace_ticket *first, *last; /* waiting */
    struct ch_pace_gate *next;
};

static struct ch_pace_gate *gates;

static struct ch_pace_gate *
gate_find(const struct ch_address *address)
{
    struct ch_pace_gate *gate = gates;

    while (gate != NULL &&
           (gate->address.len != address->len ||
            memcmp(&gate->address.sa, &address->sa, address->len) != 0)) {
        gate = gate->next;
    }
    return gate;
}

static void
gate_drop_if_unused(struct ch_pace_gate *gate)
{
    struct ch_pace_gate **at = &gates;

    if (gate->holders > 0 || gate->first != NULL) {
        return;
    }
    while (*at != gate) {
        at = &(*at)->next;
    }
    *at = gate->next;
    free(gate);
}

int
ch_pace_enter(struct ch_pace_ticket *ticket, const struct ch_address *address,
              ch_loop_fn *granted, void *arg)
{
    struct ch_pace_gate *gate = gate_find(address);

    if (gate == NULL) {
        gate = calloc(1, sizeof(*gate));
        if (gate == NULL) {
            return CH_ERR_NOMEM;
        }
        gate->address = *address;
        gate->next = gates;
        gates = gate;
    }
    ticket->gate = gate;
    ticket->next = NULL;
    ticket->granted = granted;
    ticket->arg = arg;
    ticket->holds = gate->holders < CH_PACE_LIMIT;
    if (ticket->holds) {
        gate->holders++;
        return 1;
    }
    if (gate->last == NULL) {
        gate->first = ticket;
    } else {
        gate->last->next = ticket;
    }
    gate->last = ticket;
    return 0;
}

static void
gate_remove_waiting(struct ch_pace_gate *gate, struct ch_pace_ticket *ticket)
{
    struct ch_pace_ticket *before = NULL, *at = gate->first;

    while (at != ticket) {
        before = at;
        at = at->next;
    }
    if (before == NULL) {
        gate->first = ticket->next;
    } else {
        before->next = ticket->next;
    }
    if (gate->last == ticket) {
        gate->last = before;
    }
}

void
ch_pace_leave(struct ch_pace_ticket *ticket)
{
    struct ch_pace_gate *gate = ticket->gate;
    struct ch_pace_ticket *next;

    if (gate == NULL) {
        return;
    }
    ticket->gate = NULL;
    if (!ticket->holds) {
        gate_remove_waiting(gate, ticket);
        gate_drop_if_unused(gate);
        return;
    }
    ticket->holds = 0;
    gate->holders--;
    next = gate->first;
    if (next == NULL) {
        gate_drop_if_unused(gate);
        return;
    }
    gate_remove_waiting(gate, next);
    gate->holders++;
    next->holds = 1;
    next->granted(next->arg);
}
