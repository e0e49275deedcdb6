/*
 * ssh.c - links over libssh: the only file that knows libssh.
 *
 * A session lives like this; every state but OPEN and DEAD is under the
 * one deadline of the link:
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
 * - Callback structs live as long as the session knows the channel.
 * - User callbacks come from link_report and chans_advance only; a link
 *   freed inside one is destroyed when the turn ends (depth).
 */
#include "link.h"

#include "b64.h"
#include "buf.h"
#include "connect.h"
#include "keyagent.h"
#include "knownhosts.h"

#include <errno.h>
#include <fcntl.h>
#include <libssh/callbacks.h>
#include <libssh/libssh.h>
#include <libssh/server.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#if LIBSSH_VERSION_INT < SSH_VERSION_INT(0, 10, 0)
#error "libssh 0.10 or newer is needed"
#endif

#define CHUNK_MAX (32u * 1024u)      /* one write */
#define HELD_MAX (4u * 1024u * 1024u) /* received, not consumed, per stream */
#define POLLS_MAX 16                 /* 4 KiB reads per turn */
#define KEY_FILE_MAX (64u * 1024u)
#define RETRIES_MAX 6
#define LIBSSH_FD_MAX 0xffff /* SSH_OPTIONS_FD cuts above */

static const char default_host_keys[] =
    "ssh-ed25519,ecdsa-sha2-nistp256,ecdsa-sha2-nistp384,"
    "ecdsa-sha2-nistp521,rsa-sha2-512,rsa-sha2-256";

enum link_state {
    RESOLVING,
    PACING,
    DIALLING,
    RESTING,
    KEX,
    AUTH,
    LISTING,
    SIGNING,
    OPEN,
    DEAD
};

enum auth_call { CALL_NONE, CALL_FILE, CALL_PASSWORD, CALL_PROMPTS };

enum chan_state { OPENING, SETTING_ENV, STARTING, RUNNING, REFUSED };

struct identity {
    char *path;     /* private key file */
    int from_agent; /* its public half was offered through ssh-agent */
};

struct ch_link {
    struct ch_link_head head;
    struct ch_loop *loop;
    struct ch_link_events events;
    void *arg;
    enum link_state state;
    int depth;    /* loop callbacks of this link on the stack */
    int doomed;   /* ch_link_free was called; no more user callbacks */
    int reported; /* on_failed was called */
    char *fail_class, *fail_layer, *fail_text; /* class, layer: literals */

    /* options, owned */
    char *host, *user, *password, *mode, *alias, *key_agent_path;
    char *ciphers, *macs, *kex, *host_key_algorithms, *pubkey_algorithms;
    char **auth, **known_hosts, **global_known_hosts, **env;
    int port, family, hash_known_hosts, identities_only;
    struct identity *identities;
    size_t n_identities;
    struct ch_address bind;
    int has_bind;

    /* connecting */
    int64_t start_us, deadline_us, connect_us;
    struct ch_timer *deadline, *kick, *rest;
    struct ch_resolve *resolve;
    struct ch_dial *dial;
    struct ch_pace_ticket pace;
    struct ch_address addresses[CH_ADDRESSES_MAX];
    size_t n_addresses;
    char peer[64]; /* numeric address, for messages */
    unsigned retries;

    /* the session */
    ssh_session session; /* NULL before DIALLING ended */
    ssh_event event;     /* drives it while OPEN */
    int fd;              /* our duplicate, -1 if none */
    struct ch_known_hosts *known;

    /* authentication */
    enum auth_call call;
    ssh_key private_key; /* of CALL_FILE */
    size_t next_identity;
    int agent_done, prompts_done, prompt_rounds;
    int unsafe;       /* the host key is not trusted: no password */
    int needs_client; /* a key only the ssh client can use was skipped */
    struct ch_keyagent *key_agent;
    pthread_t thread;
    int thread_event, thread_result;

    /* channels */
    struct ch_chan *chans;
    int dirty;   /* a libssh callback has set something */
    int blocked; /* a write was refused although the window is open: rekey */
    int overrun; /* the peer ignored the window */
};

struct ch_chan {
    struct ch_chan_head head;
    struct ch_link *link;
    struct ch_chan *next;
    ssh_channel channel; /* owned by the session; NULL once let go */
    struct ssh_channel_callbacks_struct callbacks;
    enum chan_state state;
    char *command;
    size_t env_next;
    struct ch_chan_events events;
    void *arg;
    struct ch_buf in[2]; /* stdout, stderr: received, not delivered */
    size_t held[2];      /* bytes libssh keeps because we are paused */
    int paused, want_write, eof, eof_sent;
    int closed;    /* the peer closed it */
    int freed;     /* ch_chan_free was called */
    int exited;    /* on_exit was called */
    int rc, signal;
};

static void link_connect(struct ch_link *link);
static void link_kick(struct ch_link *link);
static void auth_run(struct ch_link *link);
static void chans_advance(struct ch_link *link);

/* --- options --- */

static int
copy_text(char **out, const char *text)
{
    *out = text == NULL || *text == '\0' ? NULL : strdup(text);
    return *out == NULL && text != NULL && *text != '\0' ? CH_ERR_NOMEM
                                                         : CH_OK;
}

static size_t
list_len(char *const *list)
{
    size_t n = 0;

    while (list != NULL && list[n] != NULL) {
        n++;
    }
    return n;
}

static int
copy_list(char ***out, char *const *list)
{
    size_t n = list_len(list);

    *out = calloc(n + 1, sizeof(**out));
    if (*out == NULL) {
        return CH_ERR_NOMEM;
    }
    for (size_t i = 0; i < n; i++) {
        (*out)[i] = strdup(list[i]);
        if ((*out)[i] == NULL) {
            return CH_ERR_NOMEM;
        }
    }
    return CH_OK;
}

static void
list_free(char **list)
{
    for (char **p = list; p != NULL && *p != NULL; p++) {
        free(*p);
    }
    free(list);
}

static void
password_wipe(struct ch_link *link)
{
    if (link->password != NULL) {
        explicit_bzero(link->password, strlen(link->password));
        free(link->password);
        link->password = NULL;
    }
}

static int
copy_identities(struct ch_link *link, char *const *files)
{
    size_t n = list_len(files);

    link->identities = calloc(n + 1, sizeof(*link->identities));
    if (link->identities == NULL) {
        return CH_ERR_NOMEM;
    }
    for (; link->n_identities < n; link->n_identities++) {
        struct identity *id = &link->identities[link->n_identities];

        id->path = strdup(files[link->n_identities]);
        if (id->path == NULL) {
            return CH_ERR_NOMEM;
        }
    }
    return CH_OK;
}

static int
family_of(const char *text)
{
    if (text != NULL && strcmp(text, "inet") == 0) {
        return AF_INET;
    }
    return text != NULL && strcmp(text, "inet6") == 0 ? AF_INET6 : AF_UNSPEC;
}

static int
options_copy(struct ch_link *link, const struct ch_link_options *o)
{
    static char *const default_auth[] = {
        (char *)"publickey", (char *)"keyboard-interactive",
        (char *)"password", NULL};
    int bad = 0;

    link->port = o->port > 0 ? o->port : 22;
    link->family = family_of(o->address_family);
    link->hash_known_hosts = o->hash_known_hosts;
    link->identities_only = o->identities_only;
    bad |= copy_text(&link->host, o->host);
    bad |= copy_text(&link->user, o->user);
    bad |= copy_text(&link->password, o->password);
    bad |= copy_text(&link->mode, o->host_key_checking);
    bad |= copy_text(&link->alias, o->host_key_alias);
    bad |= copy_text(&link->key_agent_path, o->identity_agent);
    bad |= copy_text(&link->ciphers, o->ciphers);
    bad |= copy_text(&link->macs, o->macs);
    bad |= copy_text(&link->kex, o->kex);
    bad |= copy_text(&link->host_key_algorithms, o->host_key_algorithms);
    bad |= copy_text(&link->pubkey_algorithms, o->pubkey_algorithms);
    bad |= copy_list(&link->auth,
                     list_len(o->auth) > 0 ? o->auth : default_auth);
    bad |= copy_list(&link->known_hosts, o->known_hosts);
    bad |= copy_list(&link->global_known_hosts, o->global_known_hosts);
    bad |= copy_list(&link->env, o->env);
    bad |= copy_identities(link, o->identity_files);
    return bad == 0 ? CH_OK : CH_ERR_NOMEM;
}

static void
options_free(struct ch_link *link)
{
    password_wipe(link);
    free(link->host);
    free(link->user);
    free(link->mode);
    free(link->alias);
    free(link->key_agent_path);
    free(link->ciphers);
    free(link->macs);
    free(link->kex);
    free(link->host_key_algorithms);
    free(link->pubkey_algorithms);
    list_free(link->auth);
    list_free(link->known_hosts);
    list_free(link->global_known_hosts);
    list_free(link->env);
    for (size_t i = 0; i < link->n_identities; i++) {
        free(link->identities[i].path);
    }
    free(link->identities);
}

static struct ch_host_query
host_query(const struct ch_link *link)
{
    struct ch_host_query query = {
        .user_files = link->known_hosts,
        .global_files = link->global_known_hosts,
        .host = link->host,
        .port = link->port,
        .alias = link->alias,
    };

    return query;
}

/* --- the end of a link --- */

static void
session_close(struct ch_link *link)
{
    if (link->fd >= 0) {
        ch_loop_unwatch(link->loop, link->fd);
    }
    ch_keyagent_free(link->key_agent);
    link->key_agent = NULL;
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

static void
chan_release(struct ch_chan *chan)
{
    ch_buf_fini(&chan->in[0]);
    ch_buf_fini(&chan->in[1]);
    free(chan->command);
    free(chan);
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
    session_close(link);
    while (link->chans != NULL) {
        struct ch_chan *chan = link->chans;

        link->chans = chan->next;
        chan_release(chan);
    }
    ch_known_hosts_free(link->known);
    if (link->thread_event >= 0) {
        close(link->thread_event);
    }
    free(link->fail_text);
    options_free(link);
    free(link);
}

/* Makes the signing thread come back soon, whatever it waits for. */
static void
thread_hurry(struct ch_link *link)
{
    ch_keyagent_free(link->key_agent);
    link->key_agent = NULL;
    (void)shutdown(link->fd, SHUT_RDWR);
}

/* Marks the link dead; link_leave reports it. The first failure counts. */
static void CH_PRINTF(4, 5)
link_fail(struct ch_link *link, const char *fail_class, const char *layer,
          const char *format, ...)
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
        thread_hurry(link); /* thread_on_done goes on from there */
        return;
    }
    link->state = DEAD;
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
    chans_advance(link); /* what had arrived */
    for (chan = link->chans; chan != NULL && !link->doomed;
         chan = chan->next) {
        if (!chan->freed && !chan->exited) {
            chan->exited = 1;
            chan->events.on_exit(chan->arg, -1, 0, fail_text(link));
        }
    }
    session_close(link);
    password_wipe(link);
    if (!link->doomed) {
        link->events.on_failed(link->arg, link->fail_class, link->fail_layer,
                               fail_text(link));
    }
}

static void
link_enter(struct ch_link *link)
{
    link->depth++;
}

static void chans_reap(struct ch_link *link);
static void link_settle(struct ch_link *link);

/* Ends every loop callback: reports a failure, frees what was let go. */
static void
link_leave(struct ch_link *link)
{
    if (link->depth > 1) {
        link->depth--;
        return;
    }
    if (link->state == DEAD && !link->reported && !link->doomed) {
        link_report(link);
    }
    if (!link->doomed) {
        chans_reap(link);
        link_settle(link);
    }
    link->depth--;
    if (link->doomed && link->state != SIGNING) {
        link_destroy(link);
    }
}

/* --- what went wrong, in ssh's words --- */

static int
session_alive(const struct ch_link *link)
{
    return ssh_is_connected(link->session) &&
           !(ssh_get_status(link->session) & (SSH_CLOSED | SSH_CLOSED_ERROR));
}

/* "kex error : no match for method X: server [Y], client [Z]" */
static int
fail_negotiation(struct ch_link *link, const char *error)
{
    static const struct {
        const char *start, *name;
    } names[] = {
        {"kex algos", "key exchange method"},
        {"server host key", "host key type"},
        {"encryption", "cipher"},
        {"mac", "MAC"},
        {"compression", "compression method"},
    };
    const char *method = strstr(error, "no match for method ");
    const char *offer = strstr(error, "server [");
    const char *name = "algorithm";
    int offer_len = 0;

    if (method == NULL) {
        return 0;
    }
    method += strlen("no match for method ");
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (strncmp(method, names[i].start, strlen(names[i].start)) == 0) {
            name = names[i].name;
        }
    }
    if (offer != NULL) {
        offer += strlen("server [");
        offer_len = (int)strcspn(offer, "]");
    }
    link_fail(link, "unsupported", "kex",
              "Unable to negotiate with %s port %d: no matching %s found. "
              "Their offer: %.*s",
              link->peer, link->port, name, offer_len,
              offer == NULL ? "" : offer);
    return 1;
}

/* "Received SSH_MSG_DISCONNECT: 2:Too many authentication failures" */
static int
fail_disconnect(struct ch_link *link, const char *layer, const char *error)
{
    static const char start[] = "Received SSH_MSG_DISCONNECT: ";
    const char *reason = strstr(error, start);
    int in_auth = strcmp(layer, "auth") == 0;

    if (reason == NULL) {
        return 0;
    }
    link_fail(link, in_auth ? "auth" : "unreachable", layer,
              "Received disconnect from %s port %d:%s", link->peer,
              link->port, reason + strlen(start));
    return 1;
}

/* The session died under us. */
static void
fail_lost(struct ch_link *link, const char *layer)
{
    const char *error = ssh_get_error(link->session);
    const char *sys = strstr(error, "Socket error: ");

    if (link->overrun) {
        link_fail(link, "unreachable", "channel",
                  "Connection to %s closed: it ignored the channel window",
                  link->host);
    } else if (fail_disconnect(link, layer, error)) {
        return;
    } else if (sys != NULL && strstr(sys, "disconnected") == NULL) {
        link_fail(link, "unreachable", layer,
                  "Read from remote host %s: %s", link->host,
                  sys + strlen("Socket error: "));
    } else if (sys != NULL || *error == '\0') {
        link_fail(link, "unreachable", layer,
                  link->state == OPEN ? "Connection to %s closed by remote "
                                        "host."
                                      : "Connection closed by %s port %d",
                  link->state == OPEN ? link->host : link->peer, link->port);
    } else {
        link_fail(link, "unreachable", layer, "ssh: %s: %s", link->host,
                  error);
    }
}

static void
link_on_deadline(void *arg)
{
    struct ch_link *link = arg;

    link->deadline = NULL;
    link_enter(link);
    switch (link->state) {
    case RESOLVING:
        link_fail(link, "unreachable", "dns",
                  "ssh: Could not resolve hostname %s: Connection timed out",
                  link->host);
        break;
    case PACING:
    case DIALLING:
    case RESTING:
        link_fail(link, "unreachable", "tcp",
                  "ssh: connect to host %s port %d: Connection timed out",
                  link->host, link->port);
        break;
    case KEX:
        if (ssh_get_serverbanner(link->session) == NULL) {
            link_fail(link, "unreachable", "kex",
                      "Connection timed out during banner exchange");
            break;
        }
        /* fall through */
    default:
        link_fail(link, "unreachable", link->state == KEX ? "kex" : "auth",
                  "Connection to %s port %d timed out", link->peer,
                  link->port);
    }
    link_leave(link);
}

/* --- connecting --- */

static void
link_no_memory(struct ch_link *link, const char *layer)
{
    link_fail(link, "unreachable", layer, "ssh: out of memory");
}

static int session_start(struct ch_link *link, int fd);
static void kex_run(struct ch_link *link);

static void
link_on_dialled(void *arg, int fd, const struct ch_address *peer, int error)
{
    struct ch_link *link = arg;

    link->dial = NULL;
    link_enter(link);
    if (fd < 0) {
        link_fail(link, "unreachable", "tcp",
                  "ssh: connect to host %s port %d: %s", link->host,
                  link->port, strerror(error));
    } else {
        ch_address_text(peer, link->peer, sizeof(link->peer));
        link->state = KEX;
        if (session_start(link, fd) == CH_OK) {
            kex_run(link);
        }
    }
    link_leave(link);
}

/* Our turn at this address has come. */
static void
link_dial(struct ch_link *link)
{
    link->state = DIALLING;
    link->dial = ch_dial_start(link->loop, link->addresses, link->n_addresses,
                               link->has_bind ? &link->bind : NULL,
                               link_on_dialled, link);
    if (link->dial == NULL) {
        link_no_memory(link, "tcp");
    }
}

static void
link_on_granted(void *arg)
{
    struct ch_link *link = arg;

    link_enter(link);
    link_dial(link);
    if (link->state == DEAD) {
        link->depth--; /* inside another link's call: report later */
        link_kick(link);
        return;
    }
    link_leave(link);
}

static void
link_connect(struct ch_link *link)
{
    int r = ch_pace_enter(&link->pace, &link->addresses[0], link_on_granted,
                          link);

    if (r < 0) {
        link_no_memory(link, "tcp");
    } else if (r == 0) {
        link->state = PACING;
    } else {
        link_dial(link);
    }
}

static void
link_on_resolved(void *arg, const struct ch_address *list, size_t n,
                 const char *error)
{
    struct ch_link *link = arg;

    link->resolve = NULL;
    link_enter(link);
    if (error != NULL) {
        link_fail(link, "unreachable", "dns",
                  "ssh: Could not resolve hostname %s: %s", link->host,
                  error);
    } else {
        memcpy(link->addresses, list, n * sizeof(*list));
        link->n_addresses = n;
        link_connect(link);
    }
    link_leave(link);
}

static void
link_on_rested(void *arg)
{
    struct ch_link *link = arg;

    link->rest = NULL;
    link_enter(link);
    link_connect(link);
    link_leave(link);
}

/* The server hung up before it said who it is: probably MaxStartups. Try
 * again after a random time that doubles, as long as the deadline allows. */
static int
link_retry(struct ch_link *link)
{
    unsigned step = 50u << link->retries, jitter = 0;
    int64_t delay_ms, left_ms = (link->deadline_us - ch_now_us()) / 1000;

    if (link->retries >= RETRIES_MAX) {
        return 0;
    }
    (void)!getrandom(&jitter, sizeof(jitter), GRND_NONBLOCK);
    delay_ms = step + jitter % step;
    if (delay_ms + 100 > left_ms) {
        return 0;
    }
    session_close(link);
    ch_pace_leave(&link->pace);
    link->retries++;
    link->state = RESTING;
    link->rest = ch_loop_timer(link->loop, delay_ms, link_on_rested, link);
    if (link->rest == NULL) {
        link_no_memory(link, "tcp");
    }
    return 1;
}

/* --- key exchange and host key --- */

/* Server-opened channels and odd requests: the default answer is no. */
static int
refuse_message(ssh_session session, ssh_message message, void *arg)
{
    (void)session;
    (void)message;
    (void)arg;
    return 1;
}

static int
set_list(struct ch_link *link, enum ssh_options_e option, const char *list,
         const char *name)
{
    if (list == NULL || ssh_options_set(link->session, option, list) == 0) {
        return CH_OK;
    }
    link_fail(link, "unsupported", "kex",
              "none of the %s is supported by libssh: %s", name, list);
    return CH_ERR_UNSUPPORTED;
}

static int
set_algorithms(struct ch_link *link, const char *host_keys)
{
    static const struct {
        enum ssh_options_e option;
        size_t offset;
        const char *name;
    } lists[] = {
        {SSH_OPTIONS_CIPHERS_C_S, offsetof(struct ch_link, ciphers),
         "Ciphers"},
        {SSH_OPTIONS_CIPHERS_S_C, offsetof(struct ch_link, ciphers),
         "Ciphers"},
        {SSH_OPTIONS_HMAC_C_S, offsetof(struct ch_link, macs), "MACs"},
        {SSH_OPTIONS_HMAC_S_C, offsetof(struct ch_link, macs), "MACs"},
        {SSH_OPTIONS_KEY_EXCHANGE, offsetof(struct ch_link, kex),
         "KexAlgorithms"},
        {SSH_OPTIONS_PUBLICKEY_ACCEPTED_TYPES,
         offsetof(struct ch_link, pubkey_algorithms),
         "PubkeyAcceptedAlgorithms"},
    };
    int r = set_list(link, SSH_OPTIONS_HOSTKEYS, host_keys,
                     "HostKeyAlgorithms");

    for (size_t i = 0; r == CH_OK && i < sizeof(lists) / sizeof(lists[0]);
         i++) {
        char *list;

        memcpy(&list, (char *)link + lists[i].offset, sizeof(list));
        r = set_list(link, lists[i].option, list, lists[i].name);
    }
    return r;
}

/* Everything libssh would otherwise look up itself is set or pointed at
 * nothing. */
static int
set_options(struct ch_link *link, int fd)
{
    ssh_session s = link->session;
    int process_config = 0, bad = 0;

    bad |= ssh_options_set(s, SSH_OPTIONS_PROCESS_CONFIG, &process_config);
    bad |= ssh_options_set(s, SSH_OPTIONS_SSH_DIR, "/");
    bad |= ssh_options_set(s, SSH_OPTIONS_HOST, "target");
    bad |= ssh_options_set(s, SSH_OPTIONS_KNOWNHOSTS, "/dev/null");
    bad |= ssh_options_set(s, SSH_OPTIONS_GLOBAL_KNOWNHOSTS, "/dev/null");
    bad |= ssh_options_set(s, SSH_OPTIONS_COMPRESSION, "no");
    bad |= ssh_options_set(s, SSH_OPTIONS_FD, &fd);
    bad |= ssh_options_set(s, SSH_OPTIONS_USER, link->user);
    if (bad != 0) {
        link_fail(link, "unsupported", "kex", "libssh refuses an option: %s",
                  ssh_get_error(s));
        return CH_ERR_UNSUPPORTED;
    }
    return CH_OK;
}

static int
session_configure(struct ch_link *link, int fd)
{
    const char *wanted = link->host_key_algorithms != NULL
                             ? link->host_key_algorithms
                             : default_host_keys;
    char *ordered = NULL;
    int r = set_options(link, fd);

    if (r == CH_OK) {
        r = ch_known_hosts_order(link->known, wanted, &ordered);
        if (r != CH_OK) {
            link_no_memory(link, "kex");
        }
    }
    if (r == CH_OK) {
        r = set_algorithms(link, ordered);
    }
    free(ordered);
    return r;
}

/* Reads the known hosts again for every session: they may have changed. */
static int
known_hosts_load(struct ch_link *link)
{
    struct ch_host_query query = host_query(link);

    ch_known_hosts_free(link->known);
    link->known = NULL;
    if (ch_known_hosts_load(&query, &link->known) != CH_OK) {
        link_no_memory(link, "hostkey");
        return CH_ERR_NOMEM;
    }
    if (ch_known_hosts_has_authority(link->known)) {
        link_fail(link, "unsupported", "hostkey",
                  "a @cert-authority line is for host %s",
                  ch_known_hosts_name(link->known));
        return CH_ERR_UNSUPPORTED;
    }
    return CH_OK;
}

/* Takes fd over. On failure link_fail has been called. */
static int
session_start(struct ch_link *link, int fd)
{
    int r = known_hosts_load(link);

    if (r != CH_OK) {
        close(fd);
        return r;
    }
    link->session = fd > LIBSSH_FD_MAX ? NULL : ssh_new();
    if (link->session == NULL) {
        close(fd);
        link_fail(link, "unsupported", "kex",
                  "no libssh session for descriptor %d", fd);
        return CH_ERR_UNSUPPORTED;
    }
    ssh_set_blocking(link->session, 0);
    ssh_set_message_callback(link->session, refuse_message, NULL);
    link->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (link->fd < 0) {
        link_fail(link, "unreachable", "tcp", "ssh: %s", strerror(errno));
        r = CH_ERR_SYS;
    } else {
        r = session_configure(link, fd);
    }
    if (r != CH_OK) {
        close(fd); /* libssh did not take it yet */
    }
    return r;
}

static void
fail_kex(struct ch_link *link)
{
    const char *error = ssh_get_error(link->session);

    if (fail_negotiation(link, error)) {
        return;
    }
    if (ssh_get_serverbanner(link->session) != NULL ||
        strstr(error, "Socket error") == NULL) {
        fail_lost(link, "kex");
        return;
    }
    if (link_retry(link)) {
        return;
    }
    link_fail(link, "unreachable", "kex",
              strstr(error, "reset") != NULL
                  ? "kex_exchange_identification: read: Connection reset by "
                    "peer\nConnection reset by %s port %d"
                  : "kex_exchange_identification: Connection closed by "
                    "remote host\nConnection closed by %s port %d",
              link->peer, link->port);
}

static void
fail_host_key(struct ch_link *link, enum ch_host_verdict verdict,
              const char *kind, const char *file, unsigned long line)
{
    static const char end[] = "Host key verification failed.";
    const char *name = ch_known_hosts_name(link->known);

    switch (verdict) {
    case CH_HOST_NEW:
        link_fail(link, "hostkey", "hostkey",
                  "No %s host key is known for %s and you have requested "
                  "strict checking.\n%s",
                  kind, name, end);
        break;
    case CH_HOST_REVOKED:
        link_fail(link, "hostkey", "hostkey",
                  "WARNING: REVOKED HOST KEY DETECTED!\n%s host key for %s "
                  "was revoked and you have requested strict checking.\n%s",
                  kind, name, end);
        break;
    default:
        link_fail(link, "hostkey", "hostkey",
                  "WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!\n"
                  "Offending key in %s:%lu\nHost key for %s has changed and "
                  "you have requested strict checking.\n%s",
                  file == NULL ? "?" : file, line, name, end);
    }
}

static int
host_key_decide(struct ch_link *link, const uint8_t *blob, size_t len)
{
    struct ch_host_query query = host_query(link);
    const char *file;
    unsigned long line;
    enum ch_host_verdict verdict =
        ch_known_hosts_check(link->known, blob, len, &file, &line);

    switch (ch_known_hosts_action(verdict, link->mode,
                                  ch_known_hosts_can_add(&query))) {
    case CH_HOST_ACCEPT:
        return CH_OK;
    case CH_HOST_ADD:
        /* A file we cannot write is no reason to fail, for ssh neither. */
        (void)!ch_known_hosts_add(&query, blob, len, link->hash_known_hosts);
        return CH_OK;
    case CH_HOST_UNSAFE:
        link->unsafe = 1;
        password_wipe(link);
        return CH_OK;
    case CH_HOST_FALL_BACK:
        link_fail(link, "unsupported", "hostkey",
                  "only the ssh client can verify host %s", link->host);
        return CH_ERR_UNSUPPORTED;
    case CH_HOST_REFUSE:
    default:
        fail_host_key(link, verdict, ch_known_hosts_kind(blob, len), file,
                      line);
        return CH_ERR_REFUSED;
    }
}

/* The public part of key in wire form; the caller frees *blob. */
static int
key_blob(const ssh_key key, uint8_t **blob, size_t *len)
{
    char *text = NULL;
    size_t n;
    int r = CH_ERR_FORMAT;

    *blob = NULL;
    if (ssh_pki_export_pubkey_base64(key, &text) != SSH_OK) {
        return r;
    }
    n = strlen(text);
    *blob = malloc(n + 1);
    if (*blob != NULL) {
        r = ch_b64_decode(text, n, *blob, n, len);
    }
    if (r != CH_OK) {
        free(*blob);
        *blob = NULL;
    }
    ssh_string_free_char(text);
    return r;
}

static int
host_key_verify(struct ch_link *link)
{
    ssh_key key = NULL;
    uint8_t *blob = NULL;
    size_t len = 0;
    int r = CH_ERR_FORMAT;

    if (ssh_get_server_publickey(link->session, &key) == SSH_OK) {
        r = key_blob(key, &blob, &len);
    }
    if (r == CH_OK) {
        r = host_key_decide(link, blob, len);
    } else {
        link_fail(link, "hostkey", "hostkey",
                  "Host key verification failed.");
    }
    ssh_key_free(key);
    free(blob);
    return r;
}

/* libssh makes the descriptor blocking once it counts as connected. */
static void
fd_nonblocking(const struct ch_link *link)
{
    int flags = fcntl(link->fd, F_GETFL);

    if (flags >= 0 && !(flags & O_NONBLOCK)) {
        (void)fcntl(link->fd, F_SETFL, flags | O_NONBLOCK);
    }
}

static void
kex_run(struct ch_link *link)
{
    int rc = ssh_connect(link->session);

    fd_nonblocking(link);
    if (rc == SSH_AGAIN) {
        return;
    }
    if (rc != SSH_OK) {
        fail_kex(link);
        return;
    }
    if (host_key_verify(link) != CH_OK) {
        return;
    }
    link->connect_us = ch_now_us() - link->start_us;
    link->state = AUTH;
    link->call = CALL_NONE;
    auth_run(link);
}

/* --- authentication --- */

static void
link_open(struct ch_link *link)
{
    const char *banner = ssh_get_serverbanner(link->session);

    link->event = ssh_event_new();
    if (link->event == NULL ||
        ssh_event_add_session(link->event, link->session) != SSH_OK) {
        link_no_memory(link, "channel");
        return;
    }
    ch_loop_cancel(link->loop, link->deadline);
    link->deadline = NULL;
    ch_pace_leave(&link->pace);
    password_wipe(link);
    link->state = OPEN;
    link->events.on_open(link->arg, link->connect_us,
                         ch_now_us() - link->start_us,
                         banner == NULL ? "" : banner);
}

/* Called by libssh when a private key wants a passphrase: there is none. */
static int
no_passphrase(const char *prompt, char *buf, size_t len, int echo, int verify,
              void *arg)
{
    (void)prompt;
    (void)buf;
    (void)len;
    (void)echo;
    (void)verify;
    (void)arg;
    return -1;
}

/* The text of a key file, NUL-terminated; NULL if there is none we may use.
 * ssh too refuses private keys others can read. */
static char *
key_file_read(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    char *text = NULL;
    struct stat st;
    ssize_t n = -1;

    if (fd < 0) {
        return NULL;
    }
    if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) &&
        st.st_size <= (off_t)KEY_FILE_MAX &&
        !(st.st_uid == getuid() && (st.st_mode & 077) != 0)) {
        text = calloc(1, KEY_FILE_MAX + 1);
    }
    if (text != NULL) {
        n = read(fd, text, KEY_FILE_MAX);
    }
    close(fd);
    if (n <= 0) {
        free(text);
        return NULL;
    }
    return text;
}

/* NULL if the file holds no key that we can use; if the ssh client could,
 * *client says so. */
static ssh_key
private_key_load(const char *path, int *client)
{
    char *text = key_file_read(path);
    ssh_key key = NULL;

    if (text == NULL) {
        return NULL;
    }
    if (strstr(text, "PRIVATE KEY") != NULL &&
        ssh_pki_import_privkey_base64(text, NULL, no_passphrase, NULL,
                                      &key) != SSH_OK) {
        *client = 1;
        key = NULL;
    }
    explicit_bzero(text, KEY_FILE_MAX);
    free(text);
    return key;
}

static int
has_suffix_file(const char *path, const char *suffix)
{
    char name[4096];
    int n = snprintf(name, sizeof(name), "%s%s", path, suffix);

    return n > 0 && (size_t)n < sizeof(name) && access(name, F_OK) == 0;
}

static ssh_key
public_key_load(const char *path)
{
    struct stat st;
    ssh_key key = NULL;

    if (stat(path, &st) != 0 || !S_ISREG(st.st_mode) ||
        ssh_pki_import_pubkey_file(path, &key) != SSH_OK) {
        return NULL;
    }
    return key;
}

/* The public half of an identity: file.pub, the file itself, or what the
 * private key says. */
static int
identity_blob(const struct identity *id, uint8_t **blob, size_t *len)
{
    char name[4096];
    ssh_key key = NULL;
    int n = snprintf(name, sizeof(name), "%s.pub", id->path), client, r;

    if (n > 0 && (size_t)n < sizeof(name)) {
        key = public_key_load(name);
    }
    if (key == NULL) {
        key = public_key_load(id->path);
    }
    if (key == NULL) {
        key = private_key_load(id->path, &client);
    }
    if (key == NULL) {
        return CH_ERR_FORMAT;
    }
    r = key_blob(key, blob, len);
    ssh_key_free(key);
    return r;
}

/* OpenSSH's order: agent keys of our identity files in the files' order,
 * then, unless IdentitiesOnly, the agent's other keys. */
static size_t
agent_keys_choose(struct ch_link *link, const struct ch_key_blob *keys,
                  size_t n, struct ch_key_blob *chosen)
{
    uint8_t used[256] = {0}; /* as many as ch_keyagent lists */
    size_t n_chosen = 0;

    n = n < sizeof(used) ? n : sizeof(used);
    for (size_t i = 0; i < link->n_identities; i++) {
        uint8_t *blob = NULL;
        size_t len = 0;

        if (identity_blob(&link->identities[i], &blob, &len) != CH_OK) {
            continue;
        }
        for (size_t k = 0; k < n; k++) {
            if (keys[k].len == len && memcmp(keys[k].data, blob, len) == 0) {
                link->identities[i].from_agent = 1;
                if (!used[k]) {
                    used[k] = 1;
                    chosen[n_chosen++] = keys[k];
                }
            }
        }
        free(blob);
    }
    for (size_t k = 0; k < n && !link->identities_only; k++) {
        if (!used[k]) {
            chosen[n_chosen++] = keys[k];
        }
    }
    return n_chosen;
}

/* The thread: libssh offers the keys shown, in blocking mode. */
static void *
thread_main(void *arg)
{
    struct ch_link *link = arg;
    uint64_t one = 1;

    link->thread_result = ssh_userauth_agent(link->session, NULL);
    (void)!write(link->thread_event, &one, sizeof(one));
    return NULL;
}

static void auth_result(struct ch_link *link, int rc);
static void thread_on_done(void *arg, int fd, unsigned events);

static int
thread_start(struct ch_link *link)
{
    long left_s = (long)((link->deadline_us - ch_now_us()) / 1000000) + 2;
    sigset_t all, before;
    int r;

    if (ssh_options_set(link->session, SSH_OPTIONS_TIMEOUT, &left_s) != 0) {
        return CH_ERR_SYS;
    }
    if (link->thread_event < 0) {
        link->thread_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    }
    if (link->thread_event < 0 ||
        ch_loop_watch(link->loop, link->thread_event, CH_LOOP_READ,
                      thread_on_done, link) != CH_OK) {
        return CH_ERR_SYS;
    }
    ch_loop_unwatch(link->loop, link->fd);
    ssh_set_blocking(link->session, 1);
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    r = pthread_create(&link->thread, NULL, thread_main, link);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (r != 0) {
        ssh_set_blocking(link->session, 0);
        ch_loop_unwatch(link->loop, link->thread_event);
        return CH_ERR_SYS;
    }
    link->state = SIGNING;
    return CH_OK;
}

static void
thread_on_done(void *arg, int fd, unsigned events)
{
    struct ch_link *link = arg;
    uint64_t count;
    int rc;

    (void)events;
    link_enter(link);
    (void)!read(fd, &count, sizeof(count));
    pthread_join(link->thread, NULL);
    ch_loop_unwatch(link->loop, fd);
    ssh_set_blocking(link->session, 0);
    rc = link->thread_result;
    link->state = link->fail_class != NULL || link->doomed ? DEAD : AUTH;
    if (link->state == AUTH) {
        /* An agent that refuses to sign is an error for libssh; the other
         * keys still have their chance. */
        if (rc == SSH_AUTH_ERROR && session_alive(link) &&
            ch_keyagent_left(link->key_agent) > 0 &&
            thread_start(link) == CH_OK) {
            rc = SSH_AUTH_AGAIN;
        }
        if (rc != SSH_AUTH_AGAIN) {
            auth_result(link, rc);
            if (link->state == AUTH) {
                auth_run(link);
            }
        }
    }
    link_leave(link);
}

static void
link_on_agent_listed(void *arg, const struct ch_key_blob *keys, size_t n)
{
    struct ch_link *link = arg;
    struct ch_key_blob *chosen = calloc(n + 1, sizeof(*chosen));
    int peer = -1;

    link_enter(link);
    link->state = AUTH;
    if (chosen != NULL) {
        n = agent_keys_choose(link, keys, n, chosen);
    }
    if (chosen != NULL && n > 0 &&
        ch_keyagent_serve(link->key_agent, chosen, n, &peer) == CH_OK) {
        (void)ssh_set_agent_socket(link->session, peer);
        (void)!thread_start(link);
    }
    free(chosen);
    if (link->state == AUTH) {
        auth_result(link, SSH_AUTH_DENIED);
    }
    if (link->state == AUTH) {
        auth_run(link);
    }
    link_leave(link);
}

/* Begins the next thing publickey can try; 0 if there is none. */
static int
publickey_next(struct ch_link *link)
{
    if (!link->agent_done && link->key_agent_path != NULL) {
        link->agent_done = 1;
        link->key_agent = ch_keyagent_new(link->loop, link->key_agent_path,
                                          link_on_agent_listed, link);
        if (link->key_agent != NULL) {
            link->state = LISTING;
            return 1;
        }
    }
    while (link->next_identity < link->n_identities) {
        struct identity *id = &link->identities[link->next_identity++];

        if (id->from_agent) {
            continue;
        }
        if (has_suffix_file(id->path, "-cert.pub")) {
            link->needs_client = 1;
        }
        link->private_key = private_key_load(id->path, &link->needs_client);
        if (link->private_key != NULL) {
            link->call = CALL_FILE;
            return 1;
        }
    }
    return 0;
}

/* Begins the next method the server allows; 0 if none is left. */
static int
auth_next(struct ch_link *link)
{
    unsigned allowed = (unsigned)ssh_userauth_list(link->session, NULL);

    for (char **m = link->auth; *m != NULL; m++) {
        if (strcmp(*m, "publickey") == 0) {
            if ((allowed & SSH_AUTH_METHOD_PUBLICKEY) &&
                publickey_next(link)) {
                return 1;
            }
        } else if (link->password == NULL) {
            continue;
        } else if (strcmp(*m, "password") == 0) {
            if (allowed & SSH_AUTH_METHOD_PASSWORD) {
                link->call = CALL_PASSWORD;
                return 1;
            }
        } else if (strcmp(*m, "keyboard-interactive") == 0) {
            if ((allowed & SSH_AUTH_METHOD_INTERACTIVE) &&
                !link->prompts_done) {
                link->prompts_done = 1;
                link->call = CALL_PROMPTS;
                return 1;
            }
        }
    }
    return 0;
}

static void
fail_auth(struct ch_link *link)
{
    static const struct {
        unsigned bit;
        const char *name;
    } methods[] = {
        {SSH_AUTH_METHOD_PUBLICKEY, "publickey"},
        {SSH_AUTH_METHOD_GSSAPI_MIC, "gssapi-with-mic"},
        {SSH_AUTH_METHOD_PASSWORD, "password"},
        {SSH_AUTH_METHOD_INTERACTIVE, "keyboard-interactive"},
        {SSH_AUTH_METHOD_HOSTBASED, "hostbased"},
    };
    unsigned allowed = (unsigned)ssh_userauth_list(link->session, NULL);
    char list[128] = "";

    if (link->needs_client && (allowed & SSH_AUTH_METHOD_PUBLICKEY)) {
        link_fail(link, "unsupported", "auth",
                  "an identity file of %s@%s needs the ssh client (it has a "
                  "passphrase, a certificate or an unknown type)",
                  link->user, link->host);
        return;
    }
    for (size_t i = 0; i < sizeof(methods) / sizeof(methods[0]); i++) {
        if (allowed & methods[i].bit) {
            if (*list != '\0') {
                strcat(list, ",");
            }
            strcat(list, methods[i].name);
        }
    }
    link_fail(link, "auth", "auth", "%s@%s: Permission denied (%s).",
              link->user, link->host, list);
}

/* keyboard-interactive: a single hidden prompt gets the password. */
static int
prompts_run(struct ch_link *link)
{
    ssh_session s = link->session;
    int rc = ssh_userauth_kbdint(s, NULL, NULL);

    while (rc == SSH_AUTH_INFO) {
        int n = ssh_userauth_kbdint_getnprompts(s);
        char echo = 0;

        if (++link->prompt_rounds > 8 || n > 1) {
            return SSH_AUTH_DENIED;
        }
        if (n == 1) {
            (void)ssh_userauth_kbdint_getprompt(s, 0, &echo);
            if (echo || link->password == NULL ||
                ssh_userauth_kbdint_setanswer(s, 0, link->password) != 0) {
                return SSH_AUTH_DENIED;
            }
            password_wipe(link);
        }
        rc = ssh_userauth_kbdint(s, NULL, NULL);
    }
    return rc;
}

/* A call ended: open, go on with the next, or fail. */
static void
auth_result(struct ch_link *link, int rc)
{
    ssh_key_free(link->private_key);
    link->private_key = NULL;
    if (link->call == CALL_PASSWORD) {
        password_wipe(link);
    }
    if (rc == SSH_AUTH_SUCCESS) {
        link_open(link);
    } else if (!session_alive(link)) {
        fail_lost(link, "auth");
    } else if (!auth_next(link)) {
        fail_auth(link);
    }
}

/* Drives the current call as far as it goes without waiting. */
static void
auth_run(struct ch_link *link)
{
    while (link->state == AUTH) {
        int rc = SSH_AUTH_ERROR;

        switch (link->call) {
        case CALL_NONE:
            rc = ssh_userauth_none(link->session, NULL);
            break;
        case CALL_FILE:
            rc = ssh_userauth_publickey(link->session, NULL,
                                        link->private_key);
            break;
        case CALL_PASSWORD:
            rc = ssh_userauth_password(link->session, NULL, link->password);
            break;
        case CALL_PROMPTS:
            rc = prompts_run(link);
            break;
        }
        if (rc == SSH_AUTH_AGAIN) {
            return;
        }
        auth_result(link, rc);
    }
}

/* --- channels --- */

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
        chan->link->overrun |= len > HELD_MAX;
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
        char *name = equals == NULL
                         ? NULL
                         : strndup(text, (size_t)(equals - text));

        rc = name == NULL ? SSH_OK
                          : ssh_channel_request_env(chan->channel, name,
                                                    equals + 1);
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
        if (rc == SSH_ERROR && session_alive(link)) {
            chan_refused(chan, "channel open failed");
        } else if (rc == SSH_OK) {
            chan->state = SETTING_ENV;
        }
    }
    if (chan->freed) {
        return;
    }
    if (chan->state == SETTING_ENV && chan_set_env(chan) == SSH_OK) {
        chan->state = STARTING;
    }
    if (chan->state == STARTING) {
        rc = ssh_channel_request_exec(chan->channel, chan->command);
        if (rc == SSH_ERROR && session_alive(link)) {
            chan_refused(chan, "exec request failed on channel");
        } else if (rc == SSH_OK) {
            chan->state = RUNNING;
        }
    }
    if (chan->state == RUNNING && chan->eof && !chan->eof_sent) {
        chan->eof_sent = 1;
        (void)ssh_channel_send_eof(chan->channel);
    }
}

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
        chan->held[s] -=
            (size_t)n < chan->held[s] ? (size_t)n : chan->held[s];
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

static int
chan_is_writable(const struct ch_chan *chan)
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
    } else if (chan->want_write && chan_is_writable(chan)) {
        chan->want_write = 0;
        chan->events.on_writable(chan->arg);
    }
}

/* New chans are put in front, so the walk is not disturbed by them; chans
 * are taken out only in chans_reap. */
static void
chans_advance(struct ch_link *link)
{
    link->dirty = 0;
    for (struct ch_chan *chan = link->chans; chan != NULL && !link->doomed;
         chan = chan->next) {
        if (chan->channel != NULL) {
            chan_advance(chan);
        }
    }
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

static void
chans_reap(struct ch_link *link)
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
                chan_release(chan);
                continue;
            }
        }
        at = &chan->next;
    }
}

/* --- the turn --- */

static void
link_pump(struct ch_link *link)
{
    int rc = SSH_OK;

    for (int i = 0; i < POLLS_MAX && rc == SSH_OK && link->state == OPEN; i++) {
        rc = ssh_event_dopoll(link->event, 0);
        chans_advance(link);
        if (link->doomed) {
            return;
        }
    }
    for (int i = 0; i < POLLS_MAX && link->dirty && !link->doomed; i++) {
        chans_advance(link);
    }
    if (!link->doomed &&
        (rc == SSH_ERROR || link->overrun || !session_alive(link))) {
        fail_lost(link, "tcp");
    }
}

static void
link_turn(struct ch_link *link)
{
    link->blocked = 0;
    switch (link->state) {
    case KEX:
        kex_run(link);
        break;
    case AUTH:
        auth_run(link);
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
    link_enter(link);
    link_turn(link);
    link_leave(link);
}

static void
link_on_kick(void *arg)
{
    struct ch_link *link = arg;

    link->kick = NULL;
    link_enter(link);
    link_turn(link);
    link_leave(link);
}

/* Has the turn run soon, from the loop. */
static void
link_kick(struct ch_link *link)
{
    if (link->kick == NULL) {
        link->kick = ch_loop_timer(link->loop, 0, link_on_kick, link);
    }
}

/* After libssh was called: what to wait for, and whether something already
 * happened that no descriptor event will tell. */
static void
link_settle(struct ch_link *link)
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
        link_no_memory(link, "tcp");
        link_kick(link);
        return;
    }
    if (link->state != OPEN) {
        return;
    }
    if (link->dirty || link->overrun || !session_alive(link)) {
        link_kick(link);
    }
    for (struct ch_chan *chan = link->chans; chan != NULL;
         chan = chan->next) {
        if (chan->want_write && !chan->freed && chan_is_writable(chan)) {
            link_kick(link);
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
    link->fd = link->thread_event = -1;
    link->start_us = ch_now_us();
    link->deadline_us = link->start_us + timeout_ms * 1000;
    if (options_copy(link, options) != CH_OK || link->host == NULL ||
        link->user == NULL) {
        goto failed;
    }
    link->deadline =
        ch_loop_timer(loop, timeout_ms, link_on_deadline, link);
    if (link->deadline == NULL) {
        goto failed;
    }
    if (options->bind_address != NULL && *options->bind_address != '\0') {
        if (ch_address_parse(options->bind_address, 0, &link->bind) != CH_OK) {
            link_fail(link, "unsupported", "tcp",
                      "BindAddress %s is not a numeric address",
                      options->bind_address);
            link_kick(link);
            return link;
        }
        link->has_bind = 1;
    }
    link->resolve = ch_resolve_start(loop, link->host, link->port,
                                     link->family, link_on_resolved, link);
    if (link->resolve == NULL) {
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
        thread_hurry(link); /* thread_on_done destroys the link */
    } else if (link->depth == 0) {
        link_destroy(link);
    }
}

static int
ssh_chan_new(struct ch_link *link, const char *command,
             const struct ch_chan_events *events, void *arg,
             struct ch_chan **out)
{
    struct ch_chan *chan;

    *out = NULL;
    if (link->state != OPEN) {
        return CH_ERR_STATE;
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
    chan->channel =
        chan->command == NULL ? NULL : ssh_channel_new(link->session);
    if (chan->channel == NULL) {
        chan_release(chan);
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
    link_kick(link);
    *out = chan;
    return CH_OK;
}

static long
ssh_chan_write(struct ch_chan *chan, const uint8_t *data, size_t len)
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
    while (done < len && !chan->closed && chan_is_writable(chan)) {
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
        link_settle(link);
    }
    return done == 0 && failed ? CH_ERR_CLOSED : (long)done;
}

static void
ssh_chan_eof(struct ch_chan *chan)
{
    if (chan->eof || chan->link->state != OPEN) {
        return;
    }
    chan->eof = 1;
    if (chan->state == RUNNING && !chan->closed) {
        chan_step(chan);
    }
    if (chan->link->depth == 0) {
        link_settle(chan->link);
    }
}

static void
ssh_chan_pause(struct ch_chan *chan, int pause)
{
    if (chan->paused && !pause && chan->link->state == OPEN) {
        link_kick(chan->link);
    }
    chan->paused = pause;
}

static void
ssh_chan_free(struct ch_chan *chan)
{
    struct ch_link *link;

    if (chan == NULL) {
        return;
    }
    link = chan->link;
    chan->freed = 1;
    if (link->depth == 0) {
        chans_reap(link);
        link_settle(link);
    }
}

const struct ch_link_ops ch_ssh_ops = {
    .transport = "libssh",
    .link_new = ssh_link_new,
    .link_free = ssh_link_free,
    .chan_new = ssh_chan_new,
    .chan_write = ssh_chan_write,
    .chan_eof = ssh_chan_eof,
    .chan_pause = ssh_chan_pause,
    .chan_free = ssh_chan_free,
};
