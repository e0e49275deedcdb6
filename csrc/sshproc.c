/*
 * sshproc.c - links whose remote commands are child processes of the pool:
 * transport "ssh" runs the given OpenSSH client argv with the command as its
 * last argument, one process per chan; transport "local" runs argv prefix
 * and command here.
 *
 * A link has no connection of its own, so it is open at once. It fails when
 * an ssh client ends with 255, OpenSSH's word for "the connection failed".
 * Life of a chan:
 *
 *   RUNNING --process reaped--> EXITED --streams at EOF--> on_exit
 *                                  `--DRAIN_MS without EOF--'
 *
 * The drain exists because a background process of the command (for ssh: a
 * ControlPersist master) may keep the pipes open for ever.
 *
 * What always holds: callbacks run only from loop events; after every
 * callback the chan and its link may be dead (`dead`), their memory stays
 * until the end of the turn. Pipes are non-blocking, nothing is buffered
 * here: a short write is the caller's business.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "link.h"
#include "proc.h"

#define CHUNK          (64u * 1024u)
#define CHUNKS_TURN    4 /* reads per event, so that no child starves others */
#define DRAIN_MS       500
#define DRAIN_CHUNKS   32
#define TAIL           2048u /* last bytes of stderr, for messages */
#define LOCAL_GRACE_MS 2000

struct ch_link {
    struct ch_link_head head;
    struct ch_loop *loop;
    struct ch_timer *open_timer;
    const struct ch_link_events *events;
    void *arg;
    char **argv, **env; /* owned; argv has room for the command */
    size_t argc;
    char *cwd;
    struct ch_chan *chans; /* all that are not dead */
    int is_ssh, dead;
};

struct ch_chan {
    struct ch_chan_head head;
    struct ch_link *link;
    struct ch_chan *next, *prev;
    const struct ch_chan_events *events;
    void *arg;
    struct ch_proc *proc;
    struct ch_timer *drain_timer;
    int fds[3]; /* our ends; -1 when closed */
    int paused, exited, drained, dead;
    int rc, signal;
    char tail[TAIL];
    size_t tail_len;
};

/* --- lists of strings --- */

static void
strings_free(char **list)
{
    for (size_t i = 0; list != NULL && list[i] != NULL; i++) {
        free(list[i]);
    }
    free(list);
}

/* A copy with `extra` free places at the end; NULL when out of memory. */
static char **
strings_copy(char **list, size_t extra, size_t *count)
{
    size_t n = 0;
    char **copy;

    while (list != NULL && list[n] != NULL) {
        n++;
    }
    copy = calloc(n + extra + 1, sizeof(*copy));
    for (size_t i = 0; copy != NULL && i < n; i++) {
        copy[i] = strdup(list[i]);
        if (copy[i] == NULL) {
            strings_free(copy);
            return NULL;
        }
    }
    *count = n;
    return copy;
}

/* --- chans --- */

static void
chan_fd_close(struct ch_chan *chan, int i)
{
    if (chan->fds[i] >= 0) {
        ch_loop_unwatch(chan->link->loop, chan->fds[i]);
        close(chan->fds[i]);
        chan->fds[i] = -1;
    }
}

static void
chan_release(struct ch_chan *chan)
{
    struct ch_link *link = chan->link;

    if (chan->dead) {
        return;
    }
    chan->dead = 1;
    ch_loop_cancel(link->loop, chan->drain_timer);
    chan->drain_timer = NULL;
    for (int i = 0; i < 3; i++) {
        chan_fd_close(chan, i);
    }
    /* A local agent cleans up at end of file; an ssh client has no more to
     * do. */
    ch_proc_free(chan->proc, link->is_ssh ? 0 : LOCAL_GRACE_MS);
    chan->proc = NULL;
    if (chan->prev != NULL) {
        chan->prev->next = chan->next;
    } else {
        link->chans = chan->next;
    }
    if (chan->next != NULL) {
        chan->next->prev = chan->prev;
    }
}

static void
proc_chan_free(struct ch_chan *chan)
{
    chan_release(chan);
    /* Without memory for the note it stays allocated: harmless. */
    if (ch_loop_defer(chan->link->loop, free, chan) != CH_OK) {
        return;
    }
}

static void
chan_remember(struct ch_chan *chan, const uint8_t *data, size_t len)
{
    size_t keep;

    if (len >= TAIL) {
        data += len - TAIL;
        len = TAIL;
    }
    keep = chan->tail_len + len > TAIL ? TAIL - len : chan->tail_len;
    memmove(chan->tail, chan->tail + chan->tail_len - keep, keep);
    memcpy(chan->tail + keep, data, len);
    chan->tail_len = keep + len;
}

/* What went wrong, by the words OpenSSH uses. */
static const char *
fail_class(const char *text, const char **layer)
{
    if (strstr(text, "Host key verification failed") != NULL) {
        *layer = "hostkey";
        return "hostkey";
    }
    if (strstr(text, "Permission denied (") != NULL ||
        strstr(text, "Too many authentication failures") != NULL) {
        *layer = "auth";
        return "auth";
    }
    *layer =
        strstr(text, "Could not resolve hostname") != NULL ? "dns" : "tcp";
    return "unreachable";
}

/* Every chan of the link hears on_exit, then the link is dead. */
static void
link_fail(struct ch_link *link, const char *text)
{
    const char *layer = NULL;
    const char *class = fail_class(text, &layer);

    while (!link->dead && link->chans != NULL) {
        struct ch_chan *chan = link->chans;

        chan_release(chan);
        chan->events->on_exit(chan->arg, chan->exited ? chan->rc : -1,
                              chan->signal, text);
    }
    if (!link->dead) {
        link->events->on_failed(link->arg, class, layer, text);
    }
}

static void
chan_finish(struct ch_chan *chan)
{
    char text[TAIL + 1];
    size_t len = chan->tail_len;

    if (chan->link->is_ssh && chan->rc == 255) {
        memcpy(text, chan->tail, len);
        while (len > 0 && strchr("\r\n ", text[len - 1]) != NULL) {
            len--;
        }
        text[len] = '\0';
        link_fail(chan->link,
                  len > 0 ? text : "the ssh client ended with status 255");
        return;
    }
    chan_release(chan);
    chan->events->on_exit(chan->arg, chan->rc, chan->signal, NULL);
}

/* Ends the chan if nothing more can come. */
static void
chan_check(struct ch_chan *chan)
{
    if (!chan->dead && chan->exited && !chan->paused &&
        (chan->drained || (chan->fds[1] < 0 && chan->fds[2] < 0))) {
        chan_finish(chan);
    }
}

/* Reads one stream; returns 0 when there is no more for now. */
static int
chan_read(struct ch_chan *chan, int i)
{
    uint8_t data[CHUNK];
    ssize_t n = read(chan->fds[i], data, sizeof(data));

    if (n > 0) {
        if (i == 2) {
            chan_remember(chan, data, (size_t)n);
        }
        chan->events->on_data(chan->arg, i, data, (size_t)n);
        return !chan->dead && !chan->paused && chan->fds[i] >= 0;
    }
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
        return 0;
    }
    chan_fd_close(chan, i);
    return 0;
}

static void
chan_readable(void *arg, int fd, unsigned events)
{
    struct ch_chan *chan = arg;
    int i = fd == chan->fds[2] ? 2 : 1;

    (void)events;
    for (int turn = 0; turn < CHUNKS_TURN && chan_read(chan, i); turn++) {
    }
    chan_check(chan);
}

static void
chan_writable(void *arg, int fd, unsigned events)
{
    struct ch_chan *chan = arg;

    (void)events;
    if (ch_loop_watch(chan->link->loop, fd, 0, chan_writable, chan) == CH_OK) {
        chan->events->on_writable(chan->arg);
    }
}

static void
chan_drained(void *arg)
{
    struct ch_chan *chan = arg;

    chan->drain_timer = NULL;
    for (int i = 1; i <= 2; i++) {
        /* Pipes hold at most 1 MiB; more comes from a process that writes
         * on without end. */
        for (int n = 0; n < DRAIN_CHUNKS && !chan->dead && !chan->paused &&
                        chan->fds[i] >= 0 && chan_read(chan, i);
             n++) {
        }
    }
    chan->drained = 1;
    chan_check(chan);
}

static void
chan_exited(void *arg, int rc, int signal)
{
    struct ch_chan *chan = arg;

    chan->exited = 1;
    chan->rc = rc;
    chan->signal = signal;
    chan_fd_close(chan, 0);
    chan->drain_timer =
        ch_loop_timer(chan->link->loop, DRAIN_MS, chan_drained, chan);
    if (chan->drain_timer == NULL) {
        chan->drained = 1;
    }
    chan_check(chan);
}

static int
chan_watch(struct ch_chan *chan)
{
    unsigned events = chan->paused ? 0 : CH_LOOP_READ;
    int r = CH_OK;

    for (int i = 1; i <= 2 && r == CH_OK; i++) {
        if (chan->fds[i] >= 0) {
            r = ch_loop_watch(chan->link->loop, chan->fds[i], events,
                              chan_readable, chan);
        }
    }
    return r;
}

static int
proc_chan_new(struct ch_link *link, const char *command, const char *term,
              const struct ch_chan_events *events, void *arg,
              struct ch_chan **out)
{
    struct ch_chan *chan = term == NULL ? calloc(1, sizeof(*chan)) : NULL;
    struct ch_proc_spec spec = {
        .argv = link->argv,
        .env = link->env,
        .cwd = link->cwd,
        .exec_failed = link->is_ssh ? 255 : 127,
    };
    int r;

    if (chan == NULL) {
        return term == NULL ? CH_ERR_NOMEM : CH_ERR_UNSUPPORTED;
    }
    chan->head.ops = link->head.ops;
    chan->link = link;
    chan->events = events;
    chan->arg = arg;
    link->argv[link->argc] = (char *)(uintptr_t)command;
    r = ch_proc_new(link->loop, &spec, chan_exited, chan, chan->fds,
                    &chan->proc);
    link->argv[link->argc] = NULL;
    if (r != CH_OK) {
        free(chan);
        return r;
    }
    chan->next = link->chans;
    if (link->chans != NULL) {
        link->chans->prev = chan;
    }
    link->chans = chan;
    r = chan_watch(chan);
    if (r != CH_OK) {
        proc_chan_free(chan);
        return r;
    }
    *out = chan;
    return CH_OK;
}

static long
proc_chan_write(struct ch_chan *chan, const uint8_t *data, size_t len)
{
    size_t done = 0;

    if (chan->dead || chan->fds[0] < 0) {
        return CH_ERR_CLOSED;
    }
    while (done < len) {
        ssize_t n = write(chan->fds[0], data + done, len - done);

        if (n >= 0) {
            done += (size_t)n;
        } else if (errno == EAGAIN) {
            int r = ch_loop_watch(chan->link->loop, chan->fds[0],
                                  CH_LOOP_WRITE, chan_writable, chan);

            return r == CH_OK ? (long)done : r;
        } else if (errno != EINTR) {
            return CH_ERR_CLOSED;
        }
    }
    return (long)done;
}

static long
proc_chan_backlog(const struct ch_chan *chan)
{
    int n = 0;

    return chan->fds[0] >= 0 && ioctl(chan->fds[0], FIONREAD, &n) == 0 ? n : 0;
}

static void
proc_chan_eof(struct ch_chan *chan)
{
    chan_fd_close(chan, 0);
}

static void
chan_unpaused(void *arg)
{
    struct ch_chan *chan = arg;

    chan->drain_timer = NULL;
    chan_drained(chan);
}

static void
proc_chan_pause(struct ch_chan *chan, int pause)
{
    if (chan->dead || chan->paused == pause) {
        return;
    }
    chan->paused = pause;
    if (chan_watch(chan) != CH_OK || pause || !chan->exited) {
        return;
    }
    /* What was left unread at the drain's end is read from the loop. */
    ch_loop_cancel(chan->link->loop, chan->drain_timer);
    chan->drain_timer =
        ch_loop_timer(chan->link->loop, 0, chan_unpaused, chan);
}

/* --- links --- */

static void
link_opened(void *arg)
{
    struct ch_link *link = arg;

    link->open_timer = NULL;
    link->events->on_open(link->arg, 0, 0, "");
}

static void
link_destroy(void *arg)
{
    struct ch_link *link = arg;

    strings_free(link->argv);
    strings_free(link->env);
    free(link->cwd);
    free(link);
}

static void
proc_link_free(struct ch_link *link)
{
    if (link->dead) {
        return;
    }
    link->dead = 1;
    ch_loop_cancel(link->loop, link->open_timer);
    while (link->chans != NULL) {
        proc_chan_free(link->chans);
    }
    if (ch_loop_defer(link->loop, link_destroy, link) != CH_OK) {
        return;
    }
}

static struct ch_link *
proc_link_new(struct ch_loop *loop, const struct ch_link_options *options,
              const struct ch_link_events *events, void *arg)
{
    struct ch_link *link = calloc(1, sizeof(*link));
    size_t n = 0;

    if (link == NULL) {
        return NULL;
    }
    link->is_ssh = strcmp(options->transport, "ssh") == 0;
    link->head.ops = link->is_ssh ? &ch_sshproc_ops : &ch_local_ops;
    link->loop = loop;
    link->events = events;
    link->arg = arg;
    link->argv = strings_copy(options->argv, 1, &link->argc);
    if (options->env != NULL && options->env[0] != NULL) {
        link->env = strings_copy(options->env, 0, &n);
    }
    if (options->cwd != NULL && options->cwd[0] != '\0') {
        link->cwd = strdup(options->cwd);
    }
    link->open_timer = ch_loop_timer(loop, 0, link_opened, link);
    if (link->argv == NULL || link->argc == 0 || link->open_timer == NULL) {
        ch_loop_cancel(loop, link->open_timer);
        link_destroy(link);
        return NULL;
    }
    return link;
}

const struct ch_link_ops ch_sshproc_ops = {
    .transport = "ssh",
    .link_new = proc_link_new,
    .link_free = proc_link_free,
    .chan_new = proc_chan_new,
    .chan_write = proc_chan_write,
    .chan_backlog = proc_chan_backlog,
    .chan_eof = proc_chan_eof,
    .chan_pause = proc_chan_pause,
    .chan_free = proc_chan_free,
};

const struct ch_link_ops ch_local_ops = {
    .transport = "local",
    .link_new = proc_link_new,
    .link_free = proc_link_free,
    .chan_new = proc_chan_new,
    .chan_write = proc_chan_write,
    .chan_backlog = proc_chan_backlog,
    .chan_eof = proc_chan_eof,
    .chan_pause = proc_chan_pause,
    .chan_free = proc_chan_free,
};
