/*
 * connect.c - why not ssh_connect() of libssh: it resolves names on the
 * calling thread, has no deadline in non-blocking mode, and of several
 * addresses it only ever uses the first.
 *
 *   resolve: numeric address --------------------------> timer 0 -> callback
 *            name -> thread (at most RESOLVERS_MAX) -> eventfd -> callback
 *   dial:    address 1 ..300 ms or error.. address 2 ... first one wins
 *   pace:    at most 8 handshakes per address, then first come first served
 *
 * What always holds: a resolver thread touches nothing but its job, which
 * has two owners (the thread and the loop); the last to let go frees it, so
 * a cancel never waits for a slow name server. Everything else runs in the
 * loop's thread, and so may the two tables (waiting resolves, gates) be
 * static: a process has one loop.
 */
#include "connect.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define RESOLVERS_MAX  32
#define RESOLVER_STACK (512u * 1024u)
#define STAGGER_MS     300

/* --- addresses --- */

void
ch_address_text(const struct ch_address *address, char *out, size_t size)
{
    if (getnameinfo((const struct sockaddr *)&address->sa, address->len, out,
                    (socklen_t)size, NULL, 0, NI_NUMERICHOST) != 0) {
        snprintf(out, size, "UNKNOWN");
    }
}

static size_t
addresses_copy(const struct addrinfo *info, struct ch_address *list)
{
    size_t n = 0;

    for (; info != NULL && n < CH_ADDRESSES_MAX; info = info->ai_next) {
        if (info->ai_addrlen > sizeof(list[n].sa) ||
            (info->ai_family != AF_INET && info->ai_family != AF_INET6)) {
            continue;
        }
        memset(&list[n], 0, sizeof(list[n]));
        memcpy(&list[n].sa, info->ai_addr, info->ai_addrlen);
        list[n].len = info->ai_addrlen;
        list[n].family = info->ai_family;
        n++;
    }
    return n;
}

/* getaddrinfo() with our settings; 0 or an EAI_ code. */
static int
lookup(const char *host, int port, int family, int flags,
       struct ch_address *list, size_t *n)
{
    struct addrinfo hints, *info = NULL;
    char service[16];
    int r;

    memset(&hints, 0, sizeof(hints));
    hints.ai_family = family;
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = flags | AI_NUMERICSERV;
    snprintf(service, sizeof(service), "%d", port);
    r = getaddrinfo(host, service, &hints, &info);
    *n = 0;
    if (r == 0) {
        *n = addresses_copy(info, list);
        freeaddrinfo(info);
    }
    return r == 0 && *n == 0 ? EAI_NONAME : r;
}

int
ch_address_parse(const char *text, int port, struct ch_address *out)
{
    struct ch_address list[CH_ADDRESSES_MAX];
    size_t n;

    if (lookup(text, port, AF_UNSPEC, AI_NUMERICHOST | AI_PASSIVE, list, &n) !=
        0) {
        return CH_ERR_FORMAT;
    }
    *out = list[0];
    return CH_OK;
}

/* --- resolving --- */

/* Shared by the loop and one thread. */
struct job {
    atomic_int owners;
    int event_fd; /* the thread writes 8 bytes when it is done */
    char *host;
    int port, family;
    int error; /* EAI_ code */
    int sys_error;
    struct ch_address list[CH_ADDRESSES_MAX];
    size_t n;
};

struct ch_resolve {
    struct ch_loop *loop;
    struct job *job;         /* one reference, NULL once given up */
    struct ch_timer *timer;  /* numeric: the answer is on its way */
    struct ch_resolve *next; /* waiting for a thread */
    int running;
    ch_resolved_fn *fn;
    void *arg;
};

static struct {
    int running; /* threads, also of cancelled resolves */
    struct ch_resolve *first, *last;
} resolvers;

static void resolvers_next(void);

static void
job_release(struct job *job)
{
    if (job == NULL || atomic_fetch_sub(&job->owners, 1) != 1) {
        return;
    }
    if (job->event_fd >= 0) {
        close(job->event_fd);
    }
    free(job->host);
    free(job);
}

static void *
job_thread(void *arg)
{
    struct job *job = arg;
    uint64_t one = 1;

    job->error =
        lookup(job->host, job->port, job->family, 0, job->list, &job->n);
    job->sys_error = errno;
    if (write(job->event_fd, &one, sizeof(one)) < 0) {
        /* An eventfd of ours has room; nothing else to do here. */
    }
    job_release(job);
    return NULL;
}

/* Starts a detached thread with all signals blocked. */
static int
job_start(struct job *job)
{
    pthread_attr_t attr;
    pthread_t thread;
    sigset_t all, before;
    int r;

    if (pthread_attr_init(&attr) != 0) {
        return CH_ERR_NOMEM;
    }
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attr, RESOLVER_STACK);
    atomic_fetch_add(&job->owners, 1);
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    r = pthread_create(&thread, &attr, job_thread, job);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attr);
    if (r != 0) {
        atomic_fetch_sub(&job->owners, 1);
        return CH_ERR_SYS;
    }
    return CH_OK;
}

static void
resolve_finish(struct ch_resolve *resolve)
{
    struct job *job = resolve->job;
    const char *error = NULL;

    if (job->error == EAI_SYSTEM) {
        error = strerror(job->sys_error);
    } else if (job->error != 0) {
        error = gai_strerror(job->error);
    }
    resolve->fn(resolve->arg, job->list, job->n, error);
    job_release(job);
    free(resolve);
}

static void
resolve_on_timer(void *arg)
{
    struct ch_resolve *resolve = arg;

    resolve->timer = NULL;
    resolve_finish(resolve);
}

/* The thread is done; the resolve may have been cancelled meanwhile. */
static void
resolve_on_event(void *arg, int fd, unsigned events)
{
    struct ch_resolve *resolve = arg;

    (void)events;
    ch_loop_unwatch(resolve->loop, fd);
    resolvers.running--;
    resolvers_next();
    if (resolve->fn == NULL) {
        job_release(resolve->job);
        free(resolve);
        return;
    }
    resolve_finish(resolve);
}

static void
resolve_fail_soon(struct ch_resolve *resolve, int error)
{
    resolve->job->error = error;
    resolve->timer =
        ch_loop_timer(resolve->loop, 0, resolve_on_timer, resolve);
}

static void
resolve_run(struct ch_resolve *resolve)
{
    struct job *job = resolve->job;

    if (ch_loop_watch(resolve->loop, job->event_fd, CH_LOOP_READ,
                      resolve_on_event, resolve) != CH_OK) {
        resolve_fail_soon(resolve, EAI_MEMORY);
        return;
    }
    if (job_start(job) != CH_OK) {
        ch_loop_unwatch(resolve->loop, job->event_fd);
        resolve_fail_soon(resolve, EAI_AGAIN);
        return;
    }
    resolve->running = 1;
    resolvers.running++;
}

static void
resolvers_next(void)
{
    struct ch_resolve *resolve = resolvers.first;

    if (resolve == NULL || resolvers.running >= RESOLVERS_MAX) {
        return;
    }
    resolvers.first = resolve->next;
    if (resolvers.first == NULL) {
        resolvers.last = NULL;
    }
    resolve->next = NULL;
    resolve_run(resolve);
}

static void
resolvers_add(struct ch_resolve *resolve)
{
    if (resolvers.last == NULL) {
        resolvers.first = resolve;
    } else {
        resolvers.last->next = resolve;
    }
    resolvers.last = resolve;
    resolvers_next();
}

static void
resolvers_remove(struct ch_resolve *resolve)
{
    struct ch_resolve *before = NULL;

    for (struct ch_resolve *at = resolvers.first; at != NULL; at = at->next) {
        if (at == resolve) {
            if (before == NULL) {
                resolvers.first = at->next;
            } else {
                before->next = at->next;
            }
            if (resolvers.last == at) {
                resolvers.last = before;
            }
            return;
        }
        before = at;
    }
}

static struct job *
job_new(const char *host, int port, int family)
{
    struct job *job = calloc(1, sizeof(*job));

    if (job == NULL) {
        return NULL;
    }
    atomic_init(&job->owners, 1);
    job->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    job->host = strdup(host);
    job->port = port;
    job->family = family;
    if (job->event_fd < 0 || job->host == NULL) {
        job_release(job);
        return NULL;
    }
    return job;
}

struct ch_resolve *
ch_resolve_start(struct ch_loop *loop, const char *host, int port, int family,
                 ch_resolved_fn *fn, void *arg)
{
    struct ch_resolve *resolve = calloc(1, sizeof(*resolve));
    struct job *job = job_new(host, port, family);

    if (resolve == NULL || job == NULL) {
        job_release(job);
        free(resolve);
        return NULL;
    }
    resolve->loop = loop;
    resolve->job = job;
    resolve->fn = fn;
    resolve->arg = arg;
    if (lookup(host, port, family, AI_NUMERICHOST, job->list, &job->n) != 0) {
        resolvers_add(resolve);
    } else {
        resolve->timer = ch_loop_timer(loop, 0, resolve_on_timer, resolve);
        if (resolve->timer == NULL) {
            job_release(job);
            free(resolve);
            return NULL;
        }
    }
    return resolve;
}

void
ch_resolve_cancel(struct ch_resolve *resolve)
{
    if (resolve == NULL) {
        return;
    }
    if (resolve->running) {
        resolve->fn = NULL; /* resolve_on_event frees it */
        return;
    }
    ch_loop_cancel(resolve->loop, resolve->timer);
    resolvers_remove(resolve);
    job_release(resolve->job);
    free(resolve);
}

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

static void
socket_options(int fd)
{
    int on = 1;

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
