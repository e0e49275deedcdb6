/*
 * ssh_connect.c - a link on its way: name, address, connection, key
 * exchange, host key; and what went wrong there in ssh's own words
 * (ssh.c has the essay).
 */
#include "ssh.h"

#include "b64.h"
#include "hostkey.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>


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
    ch_ssh_fail(link, "unsupported", "kex",
                "Unable to negotiate with %s port %d: no matching %s found. "
                "Their offer: %.*s",
                link->peer, link->port, name, offer_len,
                offer == NULL ? "" : offer);
    return 1;
}

/* "Received SSH_MSG_DISCONNECT: 2:Too many authentication failures"; ssh
 * puts a blank after the code. */
static int
fail_disconnect(struct ch_link *link, const char *layer, const char *error)
{
    static const char start[] = "Received SSH_MSG_DISCONNECT: ";
    const char *reason = strstr(error, start);
    int in_auth = strcmp(layer, "auth") == 0, code_len;

    if (reason == NULL) {
        return 0;
    }
    reason += strlen(start);
    code_len = (int)strcspn(reason, ":");
    ch_ssh_fail(link, in_auth ? "auth" : "unreachable", layer,
                "Received disconnect from %s port %d:%.*s: %s\r\n"
                "Disconnected from %s port %d",
                link->peer, link->port, code_len, reason,
                reason + code_len + (reason[code_len] == ':' ? 1 : 0),
                link->peer, link->port);
    return 1;
}

/* The session died under us. */
void
ch_ssh_fail_lost(struct ch_link *link, const char *layer)
{
    const char *error = ssh_get_error(link->session);
    const char *sys = strstr(error, "Socket error: ");

    if (link->overrun) {
        ch_ssh_fail(link, "unreachable", "channel",
                    "Connection to %s closed: it ignored the channel window",
                    link->host);
    } else if (fail_disconnect(link, layer, error)) {
        return;
    } else if (sys != NULL && strstr(sys, "disconnected") == NULL) {
        ch_ssh_fail(link, "unreachable", layer, "Read from remote host %s: %s",
                    link->host, sys + strlen("Socket error: "));
    } else if (sys != NULL || *error == '\0') {
        ch_ssh_fail(link, "unreachable", layer,
                    link->state == OPEN ? "Connection to %s closed by remote "
                                          "host."
                                        : "Connection closed by %s port %d",
                    link->state == OPEN ? link->host : link->peer, link->port);
    } else {
        ch_ssh_fail(link, "unreachable", layer, "ssh: %s: %s", link->host,
                    error);
    }
}

static void
link_on_deadline(void *arg)
{
    struct ch_link *link = arg;

    link->deadline = NULL;
    ch_ssh_enter(link);
    switch (link->state) {
    case RESOLVING:
        ch_ssh_fail(link, "unreachable", "dns",
                    "ssh: Could not resolve hostname %s: Connection timed out",
                    link->host);
        break;
    case DIALLING:
    case RESTING:
        ch_ssh_fail(link, "unreachable", "tcp",
                    "ssh: connect to host %s port %d: Connection timed out",
                    link->host, link->port);
        break;
    case KEX:
        if (ssh_get_serverbanner(link->session) == NULL) {
            ch_ssh_fail(link, "unreachable", "kex",
                        "Connection timed out during banner exchange\r\n"
                        "Connection to %s port %d timed out",
                        link->peer, link->port);
            break;
        }
        /* fall through */
    default:
        ch_ssh_fail(link, "unreachable", link->state == KEX ? "kex" : "auth",
                    "Connection to %s port %d timed out", link->peer,
                    link->port);
    }
    ch_ssh_leave(link);
}

int
ch_ssh_set_deadline(struct ch_link *link, int64_t ms)
{
    ch_loop_cancel(link->loop, link->deadline);
    link->deadline_us = ch_now_us() + ms * 1000;
    link->deadline = ch_loop_timer(link->loop, ms, link_on_deadline, link);
    return link->deadline == NULL ? CH_ERR_NOMEM : CH_OK;
}

/* --- connecting --- */

static void
link_on_dialled(void *arg, int fd, const struct ch_address *peer, int error)
{
    struct ch_link *link = arg;

    link->dial = NULL;
    ch_ssh_enter(link);
    if (fd < 0) {
        ch_ssh_fail(link, "unreachable", "tcp",
                    "ssh: connect to host %s port %d: %s", link->host,
                    link->port, strerror(error));
    } else {
        ch_address_text(peer, link->peer, sizeof(link->peer));
        link->state = KEX;
        if (ch_ssh_start_session(link, fd) == CH_OK) {
            ch_ssh_kex_run(link);
        }
    }
    ch_ssh_leave(link);
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
        ch_ssh_fail_memory(link, "tcp");
    }
}

static void
link_on_granted(void *arg)
{
    struct ch_link *link = arg;

    ch_ssh_enter(link);
    if (ch_ssh_set_deadline(link, link->left_ms) == CH_OK) {
        link_dial(link);
    } else {
        ch_ssh_fail_memory(link, "tcp");
    }
    if (link->state == DEAD) {
        link->depth--; /* inside another link's call: report later */
        ch_ssh_kick(link);
        return;
    }
    ch_ssh_leave(link);
}

static void
link_connect(struct ch_link *link)
{
    int r =
        ch_pace_enter(&link->pace, &link->addresses[0], link_on_granted, link);

    if (r < 0) {
        ch_ssh_fail_memory(link, "tcp");
    } else if (r == 0) {
        link->state = PACING;
        link->left_ms = (link->deadline_us - ch_now_us()) / 1000;
        ch_loop_cancel(link->loop, link->deadline);
        link->deadline = NULL;
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
    ch_ssh_enter(link);
    if (error != NULL) {
        ch_ssh_fail(link, "unreachable", "dns",
                    "ssh: Could not resolve hostname %s: %s", link->host,
                    error);
    } else {
        memcpy(link->addresses, list, n * sizeof(*list));
        link->n_addresses = n;
        link_connect(link);
    }
    ch_ssh_leave(link);
}

int
ch_ssh_connect(struct ch_link *link)
{
    link->resolve = ch_resolve_start(link->loop, link->host, link->port,
                                     link->family, link_on_resolved, link);
    return link->resolve == NULL ? CH_ERR_NOMEM : CH_OK;
}

static void
link_on_rested(void *arg)
{
    struct ch_link *link = arg;

    link->rest = NULL;
    ch_ssh_enter(link);
    link_connect(link);
    ch_ssh_leave(link);
}

/* The server hung up before it said who it is: probably MaxStartups. Try
 * again after a random time that doubles, for as long as the deadline allows.
 */
static int
link_retry(struct ch_link *link)
{
    unsigned step = 50u << (link->retries < 5 ? link->retries : 5);
    unsigned jitter = 0;
    int64_t delay_ms, left_ms = (link->deadline_us - ch_now_us()) / 1000;

    (void)!getrandom(&jitter, sizeof(jitter), GRND_NONBLOCK);
    delay_ms = step + jitter % step;
    if (delay_ms + 100 > left_ms) {
        return 0;
    }
    ch_ssh_close_session(link);
    ch_pace_leave(&link->pace);
    link->retries++;
    link->state = RESTING;
    link->rest = ch_loop_timer(link->loop, delay_ms, link_on_rested, link);
    if (link->rest == NULL) {
        ch_ssh_fail_memory(link, "tcp");
    }
    return 1;
}

/* --- key exchange and host key --- */

static void
fail_kex(struct ch_link *link)
{
    const char *error = ssh_get_error(link->session);

    if (fail_negotiation(link, error)) {
        return;
    }
    if (ssh_get_serverbanner(link->session) != NULL ||
        strstr(error, "Socket error") == NULL) {
        ch_ssh_fail_lost(link, "kex");
        return;
    }
    if (link_retry(link)) {
        return;
    }
    ch_ssh_fail(link, "unreachable", "kex",
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
        ch_ssh_fail(link, "hostkey", "hostkey",
                    "No %s host key is known for %s and you have requested "
                    "strict checking.\r\n%s",
                    kind, name, end);
        break;
    case CH_HOST_REVOKED:
        ch_ssh_fail(link, "hostkey", "hostkey",
                    "WARNING: REVOKED HOST KEY DETECTED!\r\n"
                    "%s host key for %s "
                    "was revoked and you have requested strict "
                    "checking.\r\n%s",
                    kind, name, end);
        break;
    default:
        ch_ssh_fail(link, "hostkey", "hostkey",
                    "WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!\r\n"
                    "Offending key in %s:%lu\r\n"
                    "Host key for %s has changed and "
                    "you have requested strict checking.\r\n%s",
                    file == NULL ? "?" : file, line, name, end);
    }
}

static int
host_key_decide(struct ch_link *link, const uint8_t *blob, size_t len)
{
    struct ch_host_query query = ch_ssh_host_query(link);
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
        ch_ssh_wipe_password(link);
        return CH_OK;
    case CH_HOST_FALL_BACK:
        ch_ssh_fail(link, "unsupported", "hostkey",
                    "only the ssh client can verify host %s", link->host);
        return CH_ERR_UNSUPPORTED;
    case CH_HOST_REFUSE:
    default:
        fail_host_key(link, verdict, ch_hostkey_kind(blob, len), file, line);
        return CH_ERR_REFUSED;
    }
}

/* The public part of key in wire form; the caller frees *blob. */
int
ch_ssh_key_blob(const ssh_key key, uint8_t **blob, size_t *len)
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
        r = ch_ssh_key_blob(key, &blob, &len);
    }
    if (r == CH_OK) {
        r = host_key_decide(link, blob, len);
    } else {
        ch_ssh_fail(link, "hostkey", "hostkey",
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

void
ch_ssh_kex_run(struct ch_link *link)
{
    int rc = ssh_connect(link->session);

    fd_nonblocking(link);
    if (!link->greeted && ssh_get_serverbanner(link->session) != NULL) {
        link->greeted = 1;
        if (ch_ssh_set_deadline(link, link->login_ms) != CH_OK) {
            ch_ssh_fail_memory(link, "kex");
            return;
        }
    }
    if (rc == SSH_AGAIN && ch_ssh_is_alive(link)) {
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
    ch_ssh_auth_run(link);
}
