/*
 * ssh_auth.c - who we are: the methods in the caller's order, keys one by
 * one in OpenSSH's order (agent keys of our identity files, other agent
 * keys, then files).
 *
 *   none -> publickey: LISTING -> SIGNING (thread) -> file, file, ...
 *        -> password (once) | keyboard-interactive (one hidden prompt)
 *
 * A partial success starts again at the first method; what was used up stays
 * used up. The password is wiped when it was sent, or when it is clear that
 * it will not be. Passphrases are never asked for: a link that failed and
 * skipped such a key is `unsupported`, the ssh client's case.
 */
#include "ssh.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define KEY_FILE_MAX (64u * 1024u)
#define THREAD_STACK (512u * 1024u)

static void auth_result(struct ch_link *link, int rc);
static void thread_on_done(void *arg, int fd, unsigned events);

static void
link_open(struct ch_link *link)
{
    const char *banner = ssh_get_serverbanner(link->session);

    link->event = ssh_event_new();
    if (link->event == NULL ||
        ssh_event_add_session(link->event, link->session) != SSH_OK) {
        ch_ssh_fail_memory(link, "channel");
        return;
    }
    ch_loop_cancel(link->loop, link->deadline);
    link->deadline = NULL;
    ch_pace_leave(&link->pace);
    ch_ssh_auth_end_agent(link);
    ch_ssh_wipe_password(link);
    link->state = OPEN;
    link->events.on_open(link->arg, link->connect_us,
                         ch_now_us() - link->start_us,
                         banner == NULL ? "" : banner);
}

/* --- key files --- */

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
        ssh_pki_import_privkey_base64(text, NULL, no_passphrase, NULL, &key) !=
            SSH_OK) {
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
    r = ch_ssh_key_blob(key, blob, len);
    ssh_key_free(key);
    return r;
}

/* --- ssh-agent --- */

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

/* The thread: libssh offers the keys shown, one by one. The session stays in
 * non-blocking mode: libssh in blocking mode would wait for ever on a
 * session that was closed under it. */
static void *
thread_main(void *arg)
{
    struct ch_link *link = arg;
    uint64_t one = 1;
    int rc = ssh_userauth_agent(link->session, NULL);

    while (rc == SSH_AUTH_AGAIN && ch_ssh_is_alive(link)) {
        struct pollfd p = {.fd = link->fd, .events = POLLIN};

        if (ssh_get_poll_flags(link->session) & SSH_WRITE_PENDING) {
            p.events |= POLLOUT;
        }
        (void)poll(&p, 1, -1); /* ch_ssh_auth_hurry shuts the socket down */
        rc = ssh_userauth_agent(link->session, NULL);
    }
    link->thread_result = rc == SSH_AUTH_AGAIN ? SSH_AUTH_ERROR : rc;
    (void)!write(link->thread_event, &one, sizeof(one));
    return NULL;
}

static int
thread_start(struct ch_link *link)
{
    pthread_attr_t attr;
    sigset_t all, before;
    int r;

    if (link->thread_event < 0) {
        link->thread_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    }
    if (link->thread_event < 0 ||
        ch_loop_watch(link->loop, link->thread_event, CH_LOOP_READ,
                      thread_on_done, link) != CH_OK) {
        return CH_ERR_SYS;
    }
    ch_loop_unwatch(link->loop, link->fd);
    r = pthread_attr_init(&attr);
    if (r == 0) {
        (void)pthread_attr_setstacksize(&attr, THREAD_STACK);
        sigfillset(&all);
        pthread_sigmask(SIG_BLOCK, &all, &before);
        r = pthread_create(&link->thread, &attr, thread_main, link);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        pthread_attr_destroy(&attr);
    }
    if (r != 0) {
        ch_loop_unwatch(link->loop, link->thread_event);
        return CH_ERR_SYS;
    }
    link->state = SIGNING;
    return CH_OK;
}

/* libssh would keep its end open as long as the session. */
void
ch_ssh_auth_end_agent(struct ch_link *link)
{
    if (link->agent_fd >= 0) {
        (void)ssh_set_agent_socket(link->session, SSH_INVALID_SOCKET);
        close(link->agent_fd);
        link->agent_fd = -1;
    }
    ch_keyagent_free(link->key_agent);
    link->key_agent = NULL;
}

/* Makes the signing thread come back soon, whatever it waits for. */
void
ch_ssh_auth_hurry(struct ch_link *link)
{
    ch_keyagent_free(link->key_agent);
    link->key_agent = NULL;
    (void)shutdown(link->fd, SHUT_RDWR);
}

static void
thread_on_done(void *arg, int fd, unsigned events)
{
    struct ch_link *link = arg;
    uint64_t count;
    int rc;

    (void)events;
    ch_ssh_enter(link);
    (void)!read(fd, &count, sizeof(count));
    pthread_join(link->thread, NULL);
    ch_loop_unwatch(link->loop, fd);
    rc = link->thread_result;
    link->state = link->fail_class != NULL || link->doomed ? DEAD : AUTH;
    if (link->state == AUTH) {
        /* An agent that refuses to sign is an error for libssh; the other
         * keys still have their chance. */
        if (rc == SSH_AUTH_ERROR && ch_ssh_is_alive(link) &&
            ch_keyagent_left(link->key_agent) > 0 &&
            thread_start(link) == CH_OK) {
            rc = SSH_AUTH_AGAIN;
        }
        if (rc != SSH_AUTH_AGAIN) {
            ch_ssh_auth_end_agent(link);
            auth_result(link, rc);
            if (link->state == AUTH) {
                ch_ssh_auth_run(link);
            }
        }
    }
    ch_ssh_leave(link);
}

static void
link_on_agent_listed(void *arg, const struct ch_key_blob *keys, size_t n)
{
    struct ch_link *link = arg;
    struct ch_key_blob *chosen = calloc(n + 1, sizeof(*chosen));

    ch_ssh_enter(link);
    link->state = AUTH;
    if (chosen != NULL) {
        n = agent_keys_choose(link, keys, n, chosen);
    }
    if (chosen != NULL && n > 0 &&
        ch_keyagent_serve(link->key_agent, chosen, n, &link->agent_fd) ==
            CH_OK) {
        (void)ssh_set_agent_socket(link->session, link->agent_fd);
        (void)!thread_start(link);
    }
    free(chosen);
    if (link->state == AUTH) {
        auth_result(link, SSH_AUTH_DENIED);
    }
    if (link->state == AUTH) {
        ch_ssh_auth_run(link);
    }
    ch_ssh_leave(link);
}

/* --- methods --- */

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
        ch_ssh_fail(link, "unsupported", "auth",
                    "an identity file of %s@%s needs the ssh client (it has a "
                    "passphrase, a certificate or an unknown type)",
                    link->user, link->host);
        return;
    }
    for (size_t i = 0; i < sizeof(methods) / sizeof(methods[0]); i++) {
        if (allowed & methods[i].bit) {
            size_t n = strlen(list);

            snprintf(list + n, sizeof(list) - n, "%s%s", n > 0 ? "," : "",
                     methods[i].name);
        }
    }
    ch_ssh_fail(link, "auth", "auth", "%s@%s: Permission denied (%s).",
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
            ch_ssh_wipe_password(link);
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
        ch_ssh_wipe_password(link);
    }
    if (rc == SSH_AUTH_SUCCESS) {
        link_open(link);
    } else if (!ch_ssh_is_alive(link)) {
        ch_ssh_fail_lost(link, "auth");
    } else if (!auth_next(link)) {
        fail_auth(link);
    }
}

/* Drives the current call as far as it goes without waiting. */
void
ch_ssh_auth_run(struct ch_link *link)
{
    while (link->state == AUTH) {
        int rc = SSH_AUTH_ERROR;

        switch (link->call) {
        case CALL_NONE:
            rc = ssh_userauth_none(link->session, NULL);
            break;
        case CALL_FILE:
            rc =
                ssh_userauth_publickey(link->session, NULL, link->private_key);
            break;
        case CALL_PASSWORD:
            rc = ssh_userauth_password(link->session, NULL, link->password);
            break;
        case CALL_PROMPTS:
            rc = prompts_run(link);
            break;
        }
        if (rc == SSH_AUTH_AGAIN && ch_ssh_is_alive(link)) {
            return;
        }
        auth_result(link, rc);
    }
}
