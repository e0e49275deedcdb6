/*
 * ssh.c - links over libssh. This file: the life and the end of a link, the
 * turn of the loop. ssh_options.c: settings; ssh_connect.c: up to the host
 * key; ssh_auth.c: authentication; ssh_chan.c: remote commands.
 *
 * A session lives like this. Up to the server's first line it is under the
 * deadline to connect (ConnectTimeout), as with ssh; PACING is only waiting
 * for others and does not count. From there to OPEN it is under a longer
 * one: a server may take its time to authenticate.
 *
 *   RESOLVING -> PACING -> DIALLING -> KEX -> AUTH <-> LISTING, SIGNING
 *                  ^                    |       |
 *                  '----- RESTING <-----'       '-> OPEN -> DEAD
 *
 * PACING: at most 8 handshakes per address. RESTING: the server closed
 * before its banner (MaxStartups); try again shortly. LISTING: waiting for
 * the keys of ssh-agent. SIGNING: a thread owns the session, because libssh
 * talks to an agent with blocking reads; nobody else touches it meanwhile.
 *
 * What of libssh we use, and why so little: no name resolution, connect,
 * configuration files, known_hosts, proxies, agent selection or keepalive of
 * its own (each blocks, or decides otherwise than OpenSSH). It gets a
 * connected descriptor and explicit options.
 *
 * What always holds:
 * - libssh calls are made from the loop's turn or from ch_chan_* calls,
 *   never from a libssh callback; those only copy bytes and set flags.
 * - The descriptor is O_NONBLOCK again after the connection (libssh clears
 *   it), so no send() sleeps on a target that stopped reading. libssh sends
 *   only after POLLOUT, so it does not meet EAGAIN.
 * - libssh may close its descriptor in any call. We watch a duplicate.
 * - A write is at most 32 KiB, made only with nothing pending and the remote
 *   window open; so libssh never holds more than one chunk per link.
 * - What it answers by itself (requests of the peer) is bounded too: a peer
 *   that asks and does not read the answers is given up (link_backlog).
 * - Callback structs live as long as the session knows the channel.
 * - User callbacks come from on_open (ssh_auth.c), link_report and
 *   ch_ssh_chans_advance only; a link freed inside one is destroyed when
 *   the turn ends (depth).
 */
#include "ssh.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define POLLS_MAX   16             /* 4 KiB reads per turn */
#define LOGIN_MS    120000         /* as long as sshd allows (LoginGraceTime) */
#define BACKLOG_MAX (1024u * 1024u) /* answers nobody reads */
#define PACKET_MORE 32u            /* bytes around a packet's payload */

int
ch_ssh_is_alive(const struct ch_link *link)
{
    return ssh_is_connected(link->session) &&
           !(ssh_get_status(link->session) & (SSH_CLOSED | SSH_CLOSED_ERROR));
}

void
ch_ssh_close_session(struct ch_link *link)
{
    if (link->fd >= 0) {
        ch_loop_unwatch(link->loop, link->fd);
    }
    ch_ssh_auth_end_agent(link);
    ssh_key_free(link->private_key);
    link->private_key = NULL;
    if (link->event != NULL) {
        (void)ssh_event_remove_session(link->event, link->session);
        ssh_event_free(link->event);
        link->event = NULL;
    }
    ssh_free(link->session); /* with its channels and its descriptor */
    link->session = NULL;
    for (struct ch_chan *c = link->chans; c != NULL; c = c->next) {
        c->channel = NULL;
    }
    if (link->fd >= 0) {
        close(link->fd);
        link->fd = -1;
    }
}

/* Gives back all that waits: timers, resolver, dial, place in the queue. */
static void
waits_cancel(struct ch_link *link)
{
    ch_loop_cancel(link->loop, link->deadline);
    ch_loop_cancel(link->loop, link->kick);
    ch_loop_cancel(link->loop, link->rest);
    link->deadline = link->kick = link->rest = NULL;
    ch_resolve_cancel(link->resolve);
    link->resolve = NULL;
    ch_dial_cancel(link->dial);
    link->dial = NULL;
    ch_pace_leave(&link->pace);
}

static void
link_destroy(struct ch_link *link)
{
    waits_cancel(link);
    ch_ssh_close_session(link);
    while (link->chans != NULL) {
        struct ch_chan *chan = link->chans;

        link->chans = chan->next;
        ch_ssh_chan_release(chan);
    }
    ch_known_hosts_free(link->known);
    if (link->thread_event >= 0) {
        close(link->thread_event);
    }
    free(link->fail_text);
    ch_ssh_free_options(link);
    free(link);
}

/* Marks the link dead; link_leave reports it. The first failure counts. */
void CH_PRINTF(4, 5) ch_ssh_fail(struct ch_link *link, const char *fail_class,
                                 const char *layer, const char *format, ...)
{
    va_list args;

    if (link->fail_class != NULL) {
        return;
    }
    link->fail_class = (char *)fail_class;
    link->fail_layer = (char *)layer;
    va_start(args, format);
    if (vasprintf(&link->fail_text, format, args) < 0) {
        link->fail_text = NULL;
    }
    va_end(args);
    if (link->state == SIGNING) {
        ch_ssh_auth_hurry(link); /* thread_on_done goes on from there */
        return;
    }
    link->state = DEAD;
}

void
ch_ssh_fail_memory(struct ch_link *link, const char *layer)
{
    ch_ssh_fail(link, "unreachable", layer, "ssh: out of memory");
}

static const char *
fail_text(const struct ch_link *link)
{
    return link->fail_text == NULL ? "out of memory" : link->fail_text;
}

static void
link_report(struct ch_link *link)
{
    struct ch_chan *chan;

    link->reported = 1;
    waits_cancel(link);
    for (chan = link->chans; chan != NULL && !link->doomed;
         chan = chan->next) {
        chan->paused = 0;
        chan->want_write = 0;
    }
    if (!link->overrun) {
        ch_ssh_chans_advance(link); /* what had arrived */
    }
    for (chan = link->chans; chan != NULL && !link->doomed;
         chan = chan->next) {
        if (!chan->freed && !chan->exited) {
            chan->exited = 1;
            chan->events.on_exit(chan->arg, -1, 0, fail_text(link));
        }
    }
    ch_ssh_close_session(link);
    ch_ssh_wipe_password(link);
    if (!link->doomed) {
        link->events.on_failed(link->arg, link->fail_class, link->fail_layer,
                               fail_text(link));
    }
}

/* Until sshd has started a command for us Nagle's algorithm holds back each of
 * its small packets until the one before is acknowledged; the kernel would do
 * that 40 ms later, when it has nothing to send that could carry it. The option
 * lasts for what has been received so far. */
static void
acknowledge(const struct ch_link *link)
{
    int on = 1;

    if (link->fd >= 0 && !link->served) {
        (void)setsockopt(link->fd, IPPROTO_TCP, TCP_QUICKACK, &on, sizeof(on));
    }
}

void
ch_ssh_enter(struct ch_link *link)
{
    link->depth++;
}

/* Ends every loop callback: reports a failure, frees what was let go. */
void
ch_ssh_leave(struct ch_link *link)
{
    if (link->depth > 1) {
        link->depth--;
        return;
    }
    if (link->state == DEAD && !link->reported && !link->doomed) {
        link_report(link);
    }
    if (!link->doomed) {
        ch_ssh_chans_reap(link);
        ch_ssh_settle(link);
        acknowledge(link);
    }
    link->depth--;
    if (link->doomed && link->state != SIGNING) {
        link_destroy(link);
    }
}

/* --- the turn --- */

static void
link_pump(struct ch_link *link)
{
    int rc = SSH_OK;

    for (int i = 0; i < POLLS_MAX && rc == SSH_OK && link->state == OPEN;
         i++) {
        rc = ssh_event_dopoll(link->event, 0);
        ch_ssh_chans_advance(link);
        if (link->doomed) {
            return;
        }
    }
    for (int i = 0; i < POLLS_MAX && link->dirty && !link->doomed; i++) {
        ch_ssh_chans_advance(link);
    }
    if (!link->doomed &&
        (rc == SSH_ERROR || link->overrun || !ch_ssh_is_alive(link))) {
        ch_ssh_fail_lost(link, "tcp");
    }
}

/* How much libssh keeps to send. It has no bound of its own, and writes
 * answers to the peer's requests without asking us. */
static void
link_check_backlog(struct ch_link *link)
{
    uint64_t said =
        link->said.out_bytes + PACKET_MORE * link->said.out_packets;

    if (!(ssh_get_status(link->session) & SSH_WRITE_PENDING)) {
        link->said_base = said;
    } else if (said - link->said_base > BACKLOG_MAX) {
        ch_ssh_fail(link, "unreachable", "tcp",
                    "Connection to %s closed: it asks and does not read the "
                    "answers",
                    link->host);
    }
}

static void
link_turn(struct ch_link *link)
{
    link->blocked = 0;
    if (link->session != NULL &&
        (link->state == KEX || link->state == AUTH || link->state == OPEN)) {
        link_check_backlog(link);
    }
    switch (link->state) {
    case KEX:
        ch_ssh_kex_run(link);
        break;
    case AUTH:
        ch_ssh_auth_run(link);
        break;
    case OPEN:
        link_pump(link);
        break;
    default:
        break;
    }
}

static void
link_on_fd(void *arg, int fd, unsigned events)
{
    struct ch_link *link = arg;

    (void)fd;
    (void)events;
    ch_ssh_enter(link);
    link_turn(link);
    ch_ssh_leave(link);
}

static void
link_on_kick(void *arg)
{
    struct ch_link *link = arg;

    link->kick = NULL;
    ch_ssh_enter(link);
    link_turn(link);
    ch_ssh_leave(link);
}

/* Has the turn run soon, from the loop. */
void
ch_ssh_kick(struct ch_link *link)
{
    if (link->kick == NULL) {
        link->kick = ch_loop_timer(link->loop, 0, link_on_kick, link);
    }
}

/* After libssh was called: what to wait for, and whether something already
 * happened that no descriptor event will tell. */
void
ch_ssh_settle(struct ch_link *link)
{
    unsigned events = CH_LOOP_READ;
    int flags;

    if (link->fd < 0 || link->session == NULL || link->state == DEAD) {
        return;
    }
    if (link->state == LISTING || link->state == SIGNING) {
        ch_loop_unwatch(link->loop, link->fd);
        return;
    }
    flags = link->state == OPEN ? ssh_get_status(link->session)
                                : ssh_get_poll_flags(link->session);
    if (flags & SSH_WRITE_PENDING) {
        events |= CH_LOOP_WRITE;
    }
    if (ch_loop_watch(link->loop, link->fd, events, link_on_fd, link) !=
        CH_OK) {
        ch_ssh_fail_memory(link, "tcp");
        ch_ssh_kick(link);
        return;
    }
    if (link->state != OPEN) {
        return;
    }
    if (link->dirty || link->overrun || !ch_ssh_is_alive(link)) {
        ch_ssh_kick(link);
    }
    for (struct ch_chan *chan = link->chans; chan != NULL; chan = chan->next) {
        if (chan->want_write && !chan->freed &&
            ch_ssh_chan_is_writable(chan)) {
            ch_ssh_kick(link);
        }
    }
}

/* --- the table --- */

static struct ch_link *
ssh_link_new(struct ch_loop *loop, const struct ch_link_options *options,
             const struct ch_link_events *events, void *arg)
{
    struct ch_link *link = calloc(1, sizeof(*link));
    int64_t timeout_ms = options->timeout_ms > 0 ? options->timeout_ms : 10000;

    if (link == NULL) {
        return NULL;
    }
    link->head.ops = &ch_ssh_ops;
    link->loop = loop;
    link->events = *events;
    link->arg = arg;
    link->fd = link->thread_event = link->agent_fd = -1;
    link->start_us = ch_now_us();
    link->login_ms = options->login_timeout_ms > 0 ? options->login_timeout_ms
                                                   : LOGIN_MS;
    if (ch_ssh_copy_options(link, options) != CH_OK || link->host == NULL ||
        link->user == NULL) {
        goto failed;
    }
    if (ch_ssh_set_deadline(link, timeout_ms) != CH_OK) {
        goto failed;
    }
    if (options->bind_address != NULL && *options->bind_address != '\0') {
        if (ch_address_parse(options->bind_address, 0, &link->bind) != CH_OK) {
            ch_ssh_fail(link, "unsupported", "tcp",
                        "BindAddress %s is not a numeric address",
                        options->bind_address);
            ch_ssh_kick(link);
            return link;
        }
        link->has_bind = 1;
    }
    if (ch_ssh_connect(link) != CH_OK) {
        goto failed;
    }
    return link;
failed:
    link_destroy(link);
    return NULL;
}

static void
ssh_link_free(struct ch_link *link)
{
    if (link == NULL) {
        return;
    }
    link->doomed = 1;
    if (link->state == SIGNING) {
        waits_cancel(link);
        ch_ssh_auth_hurry(link); /* thread_on_done destroys the link */
    } else if (link->depth == 0) {
        link_destroy(link);
    }
}

const char *
ch_link_library(void)
{
    return ssh_version(0);
}

const struct ch_link_ops ch_ssh_ops = {
    .transport = "libssh",
    .link_new = ssh_link_new,
    .link_free = ssh_link_free,
    .chan_new = ch_ssh_chan_new,
    .chan_write = ch_ssh_chan_write,
    .chan_backlog = ch_ssh_chan_backlog,
    .chan_eof = ch_ssh_chan_eof,
    .chan_pause = ch_ssh_chan_pause,
    .chan_free = ch_ssh_chan_free,
};
