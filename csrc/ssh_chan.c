/*
 * ssh_chan.c - remote commands of a link.
 *
 *   OPENING -> ASKING_TERMINAL -> SETTING_ENV -> STARTING -> RUNNING
 *      |             |                              |           |
 *      '-------------'-> REFUSED <------------------'        closed by the
 *                                              peer and drained -> on_exit
 *
 * The flags of a chan are set by libssh's callbacks and by ch_chan_* calls;
 * ch_ssh_chans_advance alone acts on them. ch_chan_free only marks: the
 * struct goes (ch_ssh_chans_reap) when the peer has closed too, because
 * until then libssh may call its callbacks.
 */
#include "ssh.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <linux/sockios.h>

#define CHUNK_MAX (32u * 1024u)        /* one write */
#define HELD_MAX  (4u * 1024u * 1024u) /* received, not consumed, per stream */
/* What libssh may keep of both streams while we pause: its window is 1.28 MB
 * (0.10) or 2 MB, and not every version of it refuses what goes beyond. */
#define PAUSED_MAX (2u * 1024u * 1024u)

static int
chan_on_data(ssh_session session, ssh_channel channel, void *data,
             uint32_t len, int is_stderr, void *arg)
{
    struct ch_chan *chan = arg;
    int s = is_stderr ? 1 : 0;

    (void)session;
    (void)channel;
    chan->link->dirty = 1;
    if (chan->freed || chan->exited) {
        return (int)len;
    }
    if (chan->paused) { /* libssh keeps it, and so the window closes */
        chan->held[s] = len;
        chan->link->overrun |= chan->held[0] + chan->held[1] > PAUSED_MAX;
        return 0;
    }
    chan->held[s] = 0;
    chan->link->overrun |= ch_buf_put(&chan->in[s], data, len) != CH_OK;
    return (int)len;
}

static void
chan_on_close(ssh_session session, ssh_channel channel, void *arg)
{
    struct ch_chan *chan = arg;

    (void)session;
    (void)channel;
    chan->closed = 1;
    chan->link->dirty = 1;
}

static void
chan_on_status(ssh_session session, ssh_channel channel, int status, void *arg)
{
    struct ch_chan *chan = arg;

    (void)session;
    (void)channel;
    chan->rc = status;
}

static int
signal_number(const char *name)
{
    static const struct {
        const char *name;
        int number;
    } signals[] = {
        {"ABRT", SIGABRT}, {"ALRM", SIGALRM}, {"FPE", SIGFPE},
        {"HUP", SIGHUP},   {"ILL", SIGILL},   {"INT", SIGINT},
        {"KILL", SIGKILL}, {"PIPE", SIGPIPE}, {"QUIT", SIGQUIT},
        {"SEGV", SIGSEGV}, {"TERM", SIGTERM}, {"USR1", SIGUSR1},
        {"USR2", SIGUSR2}, {"BUS", SIGBUS},   {"SYS", SIGSYS},
        {"TRAP", SIGTRAP}, {"XCPU", SIGXCPU}, {"XFSZ", SIGXFSZ},
    };

    for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++) {
        size_t n = strlen(signals[i].name);

        if (strncmp(name, signals[i].name, n) == 0 &&
            (name[n] == '\0' || name[n] == '@')) {
            return signals[i].number;
        }
    }
    return SIGTERM; /* some signal: the number is lost */
}

static void
chan_on_signal(ssh_session session, ssh_channel channel, const char *name,
               int core, const char *message, const char *lang, void *arg)
{
    struct ch_chan *chan = arg;

    (void)session;
    (void)channel;
    (void)core;
    (void)message;
    (void)lang;
    chan->rc = -1;
    chan->signal = signal_number(name == NULL ? "" : name);
}

/* --- starting --- */

static void
chan_exit(struct ch_chan *chan, int rc, int signal, const char *error)
{
    if (!chan->exited && !chan->freed) {
        chan->exited = 1;
        chan->events.on_exit(chan->arg, rc, signal, error);
    }
}

/* rc SSH_ERROR with the session alive: the server refused. */
static void
chan_refused(struct ch_chan *chan, const char *what)
{
    char text[512];

    chan->state = REFUSED;
    snprintf(text, sizeof(text), "%s: %s", what,
             ssh_get_error(chan->link->session));
    chan_exit(chan, -1, 0, text);
}

/* Sends the next variable; the server may refuse it (AcceptEnv). */
static int
chan_set_env(struct ch_chan *chan)
{
    char **env = chan->link->env;
    int rc;

    while (env[chan->env_next] != NULL) {
        const char *text = env[chan->env_next];
        const char *equals = strchr(text, '=');
        char *name =
            equals == NULL ? NULL : strndup(text, (size_t)(equals - text));

        rc = name == NULL
                 ? SSH_OK
                 : ssh_channel_request_env(chan->channel, name, equals + 1);
        free(name);
        if (rc == SSH_AGAIN) {
            return rc;
        }
        chan->env_next++;
    }
    return SSH_OK;
}

/* Moves a chan towards RUNNING as far as it goes without waiting. */
static void
chan_step(struct ch_chan *chan)
{
    struct ch_link *link = chan->link;
    int rc = SSH_OK;

    if (chan->state == OPENING) {
        rc = ssh_channel_open_session(chan->channel);
        if (rc == SSH_ERROR && ch_ssh_is_alive(link)) {
            chan_refused(chan, "channel open failed");
        } else if (rc == SSH_OK) {
            chan->state = ASKING_TERMINAL;
        }
    }
    if (chan->freed) {
        return;
    }
    if (chan->state == ASKING_TERMINAL) {
        rc = chan->term == NULL ? SSH_OK
                                : ssh_channel_request_pty_size(
                                      chan->channel, chan->term, 0, 0);
        if (rc == SSH_ERROR && ch_ssh_is_alive(link)) {
            chan_refused(chan, "PTY allocation request failed on channel");
        } else if (rc == SSH_OK) {
            chan->state = SETTING_ENV;
        }
    }
    if (chan->state == SETTING_ENV && chan_set_env(chan) == SSH_OK) {
        chan->state = STARTING;
    }
    if (chan->state == STARTING) {
        rc = ssh_channel_request_exec(chan->channel, chan->command);
        if (rc == SSH_ERROR && ch_ssh_is_alive(link)) {
            chan_refused(chan, "exec request failed on channel");
        } else if (rc == SSH_OK) {
            chan->state = RUNNING;
            chan->link->served = 1;
        }
    }
    if (chan->state == RUNNING && chan->eof && !chan->eof_sent) {
        chan->eof_sent = 1;
        (void)ssh_channel_send_eof(chan->channel);
    }
}

/* --- running --- */

/* After a pause: takes over what libssh kept. */
static void
chan_pull(struct ch_chan *chan, int s)
{
    uint8_t *place;
    int n;

    while (chan->held[s] > 0 && !chan->paused && !chan->freed) {
        if (ch_buf_room(&chan->in[s], CHUNK_MAX, &place) != CH_OK) {
            return;
        }
        n = ssh_channel_read_nonblocking(chan->channel, place, CHUNK_MAX, s);
        if (n <= 0) {
            chan->held[s] = 0;
            return;
        }
        ch_buf_added(&chan->in[s], (size_t)n);
        chan->held[s] -= (size_t)n < chan->held[s] ? (size_t)n : chan->held[s];
    }
}

/* Hands the bytes over. The buffer is taken out first: a call made by the
 * receiver can put new bytes into the chan. */
static void
chan_deliver(struct ch_chan *chan, int s)
{
    struct ch_buf taken = chan->in[s];

    if (ch_buf_len(&taken) == 0 || chan->paused || chan->freed) {
        return;
    }
    ch_buf_init(&chan->in[s], HELD_MAX);
    chan->events.on_data(chan->arg, s + 1, ch_buf_data(&taken),
                         ch_buf_len(&taken));
    ch_buf_fini(&taken);
}

static int
chan_is_drained(const struct ch_chan *chan)
{
    return ch_buf_len(&chan->in[0]) == 0 && ch_buf_len(&chan->in[1]) == 0 &&
           chan->held[0] == 0 && chan->held[1] == 0;
}

int
ch_ssh_chan_is_writable(const struct ch_chan *chan)
{
    const struct ch_link *link = chan->link;

    return link->state == OPEN && chan->state == RUNNING && !chan->closed &&
           !chan->eof && !link->blocked &&
           !(ssh_get_status(link->session) & SSH_WRITE_PENDING) &&
           ssh_channel_window_size(chan->channel) > 0;
}

static void
chan_advance(struct ch_chan *chan)
{
    struct ch_link *link = chan->link;

    if (link->state == OPEN && chan->state < RUNNING && !chan->closed) {
        chan_step(chan);
    }
    for (int s = 0; s < 2 && !link->doomed; s++) {
        chan_pull(chan, s);
        chan_deliver(chan, s);
    }
    if (link->doomed || chan->freed || chan->exited) {
        return;
    }
    if (chan->closed && chan_is_drained(chan)) {
        chan_exit(chan, chan->rc, chan->signal, NULL);
    } else if (chan->want_write && ch_ssh_chan_is_writable(chan)) {
        chan->want_write = 0;
        chan->events.on_writable(chan->arg);
    }
}

/* New chans are put in front, so the walk is not disturbed by them; chans
 * are taken out only in chans_reap. */
void
ch_ssh_chans_advance(struct ch_link *link)
{
    link->dirty = 0;
    for (struct ch_chan *chan = link->chans; chan != NULL && !link->doomed;
         chan = chan->next) {
        if (chan->channel != NULL) {
            chan_advance(chan);
        }
    }
}

/* --- ending --- */

void
ch_ssh_chan_release(struct ch_chan *chan)
{
    ch_buf_fini(&chan->in[0]);
    ch_buf_fini(&chan->in[1]);
    free(chan->command);
    free(chan->term);
    free(chan);
}

/* Closes the libssh channel of a chan nobody wants; 1 once it is gone. */
static int
chan_let_go(struct ch_chan *chan)
{
    if (chan->channel == NULL || chan->link->session == NULL ||
        chan->link->state != OPEN) {
        return 1; /* the session frees it */
    }
    if (chan->state == OPENING) {
        chan_step(chan); /* the peer's number for it is not known yet */
    }
    if (chan->state == OPENING) {
        return 0;
    }
    if (!chan->closed && chan->state != REFUSED) {
        /* The first call may end after EOF, without the close. */
        if (ssh_channel_close(chan->channel) == SSH_AGAIN) {
            (void)ssh_channel_close(chan->channel);
        }
    }
    if (!chan->closed && chan->state != REFUSED) {
        return 0;
    }
    ssh_remove_channel_callbacks(chan->channel, &chan->callbacks);
    ssh_channel_free(chan->channel);
    chan->channel = NULL;
    return 1;
}

void
ch_ssh_chans_reap(struct ch_link *link)
{
    struct ch_chan **at = &link->chans;

    if (link->state == SIGNING) {
        return;
    }
    while (*at != NULL) {
        struct ch_chan *chan = *at;

        if (chan->freed && (chan_let_go(chan))) {
            /* A channel the session still knows keeps its callbacks. */
            if (chan->channel == NULL || link->session == NULL) {
                *at = chan->next;
                ch_ssh_chan_release(chan);
                continue;
            }
        }
        at = &chan->next;
    }
}

/* --- the table --- */

int
ch_ssh_chan_new(struct ch_link *link, const char *command, const char *term,
                const struct ch_chan_events *events, void *arg,
                struct ch_chan **out)
{
    struct ch_chan *chan;

    *out = NULL;
    if (link->state != OPEN || !ch_ssh_is_alive(link)) {
        return CH_ERR_CLOSED; /* on_failed follows */
    }
    chan = calloc(1, sizeof(*chan));
    if (chan == NULL) {
        return CH_ERR_NOMEM;
    }
    chan->head.ops = &ch_ssh_ops;
    chan->link = link;
    chan->events = *events;
    chan->arg = arg;
    chan->rc = -1;
    chan->state = OPENING;
    ch_buf_init(&chan->in[0], HELD_MAX);
    ch_buf_init(&chan->in[1], HELD_MAX);
    chan->command = strdup(command);
    chan->term = term == NULL ? NULL : strdup(term);
    chan->channel = chan->command == NULL || (term != NULL && !chan->term)
                        ? NULL
                        : ssh_channel_new(link->session);
    if (chan->channel == NULL) {
        ch_ssh_chan_release(chan);
        return CH_ERR_NOMEM;
    }
    chan->callbacks.userdata = chan;
    chan->callbacks.channel_data_function = chan_on_data;
    chan->callbacks.channel_close_function = chan_on_close;
    chan->callbacks.channel_exit_status_function = chan_on_status;
    chan->callbacks.channel_exit_signal_function = chan_on_signal;
    ssh_callbacks_init(&chan->callbacks);
    ssh_set_channel_callbacks(chan->channel, &chan->callbacks);
    chan->next = link->chans;
    link->chans = chan;
    ch_ssh_kick(link);
    *out = chan;
    return CH_OK;
}

long
ch_ssh_chan_write(struct ch_chan *chan, const uint8_t *data, size_t len)
{
    struct ch_link *link = chan->link;
    size_t done = 0;
    int failed = 0;

    if (link->state != OPEN || chan->closed || chan->exited) {
        return CH_ERR_CLOSED;
    }
    if (chan->eof) {
        return CH_ERR_STATE;
    }
    while (done < len && !chan->closed && ch_ssh_chan_is_writable(chan)) {
        uint32_t window = ssh_channel_window_size(chan->channel);
        size_t n = len - done < CHUNK_MAX ? len - done : CHUNK_MAX;
        int wrote;

        n = n < window ? n : window;
        wrote = ssh_channel_write(chan->channel, data + done, (uint32_t)n);
        if (wrote <= 0) {
            failed = wrote < 0;
            link->blocked |= wrote == 0;
            break;
        }
        done += (size_t)wrote;
    }
    chan->want_write = done < len;
    if (link->depth == 0) {
        ch_ssh_settle(link);
    }
    return done == 0 && failed ? CH_ERR_CLOSED : (long)done;
}

long
ch_ssh_chan_backlog(const struct ch_chan *chan)
{
    int n = 0;

    return chan->link->fd >= 0 && ioctl(chan->link->fd, SIOCOUTQ, &n) == 0 ? n
                                                                          : 0;
}

void
ch_ssh_chan_eof(struct ch_chan *chan)
{
    if (chan->eof || chan->link->state != OPEN) {
        return;
    }
    chan->eof = 1;
    if (chan->state == RUNNING && !chan->closed) {
        chan_step(chan);
    }
    if (chan->link->depth == 0) {
        ch_ssh_settle(chan->link);
    }
}

void
ch_ssh_chan_pause(struct ch_chan *chan, int pause)
{
    if (chan->paused && !pause && chan->link->state == OPEN) {
        ch_ssh_kick(chan->link);
    }
    chan->paused = pause;
}

void
ch_ssh_chan_free(struct ch_chan *chan)
{
    struct ch_link *link;

    if (chan == NULL) {
        return;
    }
    link = chan->link;
    chan->freed = 1;
    if (link->depth == 0) {
        ch_ssh_chans_reap(link);
        ch_ssh_settle(link);
    }
}
