/*
 * resolve.c - names to addresses without waiting on the loop's thread.
 *
 *   numeric address ----------------------------------> timer 0 -> callback
 *   name -> thread (a few, and the slow ones) -> eventfd -> callback
 *
 * What always holds: a resolver thread touches nothing but its job, which
 * has two owners (the thread and the loop); the last to let go frees it, so
 * a cancel never waits for a slow name server. A thread that takes longer
 * than SLOW_MS makes room for the next: names that nobody answers for do not
 * hold up the others. The table of waiting resolves is used in the loop's
 * thread alone and may be static: a process has one loop.
 */
#include "connect.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define RESOLVERS_MAX  64 /* at work, the slow ones not counted */
#define THREADS_MAX    1024
#define SLOW_MS        250
#define RESOLVER_STACK (512u * 1024u)

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
    struct ch_timer *slow;   /* until its thread is not counted any more */
    struct ch_resolve *next; /* waiting for a thread */
    int running;
    ch_resolved_fn *fn;
    void *arg;
};

static struct {
    int threads; /* also of cancelled resolves */
    int quick;   /* those not yet found slow */
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

/* Its thread counts no more: it is done, or slow. */
static void
resolve_slow(struct ch_resolve *resolve)
{
    if (resolve->slow != NULL) {
        ch_loop_cancel(resolve->loop, resolve->slow);
        resolve->slow = NULL;
        resolvers.quick--;
    }
    resolvers_next();
}

static void
resolve_on_slow(void *arg)
{
    struct ch_resolve *resolve = arg;

    resolve->slow = NULL;
    resolvers.quick--;
    resolvers_next();
}

/* The thread is done; the resolve may have been cancelled meanwhile. */
static void
resolve_on_event(void *arg, int fd, unsigned events)
{
    struct ch_resolve *resolve = arg;

    (void)events;
    ch_loop_unwatch(resolve->loop, fd);
    resolvers.threads--;
    resolve_slow(resolve);
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
    resolvers.threads++;
    resolve->slow =
        ch_loop_timer(resolve->loop, SLOW_MS, resolve_on_slow, resolve);
    resolvers.quick += resolve->slow != NULL;
}

static void
resolvers_next(void)
{
    while (resolvers.first != NULL && resolvers.quick < RESOLVERS_MAX &&
           resolvers.threads < THREADS_MAX) {
        struct ch_resolve *resolve = resolvers.first;

        resolvers.first = resolve->next;
        if (resolvers.first == NULL) {
            resolvers.last = NULL;
        }
        resolve->next = NULL;
        resolve_run(resolve);
    }
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
