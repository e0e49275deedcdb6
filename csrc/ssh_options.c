/*
 * ssh_options.c - the settings of a link: copied from the caller, and given
 * to libssh so that it looks nothing up by itself (ssh.c has the essay).
 */
#include "ssh.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LIBSSH_FD_MAX 0xffff /* SSH_OPTIONS_FD cuts above */

static const char default_host_keys[] =
    "ssh-ed25519,ecdsa-sha2-nistp256,ecdsa-sha2-nistp384,"
    "ecdsa-sha2-nistp521,rsa-sha2-512,rsa-sha2-256";

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

void
ch_ssh_wipe_password(struct ch_link *link)
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

int
ch_ssh_copy_options(struct ch_link *link, const struct ch_link_options *o)
{
    static char *const default_auth[] = {(char *)"publickey",
                                         (char *)"keyboard-interactive",
                                         (char *)"password", NULL};
    int bad = 0;

    link->port = o->port > 0 ? o->port : 22;
    link->family = family_of(o->address_family);
    link->hash_known_hosts = o->hash_known_hosts;
    link->rekey_bytes = (uint64_t)o->rekey_bytes;
    link->rekey_seconds = (uint32_t)o->rekey_seconds;
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
    bad |=
        copy_list(&link->auth, list_len(o->auth) > 0 ? o->auth : default_auth);
    bad |= copy_list(&link->known_hosts, o->known_hosts);
    bad |= copy_list(&link->global_known_hosts, o->global_known_hosts);
    bad |= copy_list(&link->env, o->env);
    bad |= copy_identities(link, o->identity_files);
    return bad == 0 ? CH_OK : CH_ERR_NOMEM;
}

void
ch_ssh_free_options(struct ch_link *link)
{
    ch_ssh_wipe_password(link);
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

struct ch_host_query
ch_ssh_host_query(const struct ch_link *link)
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

/* --- libssh --- */

static int
set_list(struct ch_link *link, enum ssh_options_e option, const char *list,
         const char *name)
{
    if (list == NULL || ssh_options_set(link->session, option, list) == 0) {
        return CH_OK;
    }
    ch_ssh_fail(link, "unsupported", "kex",
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
    int r =
        set_list(link, SSH_OPTIONS_HOSTKEYS, host_keys, "HostKeyAlgorithms");

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
    /* Not "no": that means zlib@openssh.com if the server has nothing else,
     * and what a packet inflates to would be the server's choice. */
    bad |= ssh_options_set(s, SSH_OPTIONS_COMPRESSION_C_S, "none");
    bad |= ssh_options_set(s, SSH_OPTIONS_COMPRESSION_S_C, "none");
    bad |= ssh_options_set(s, SSH_OPTIONS_FD, &fd);
    bad |= ssh_options_set(s, SSH_OPTIONS_USER, link->user);
    if (link->rekey_bytes > 0) {
        bad |= ssh_options_set(s, SSH_OPTIONS_REKEY_DATA, &link->rekey_bytes);
    }
    if (link->rekey_seconds > 0) {
        bad |= ssh_options_set(s, SSH_OPTIONS_REKEY_TIME, &link->rekey_seconds);
    }
    if (bad != 0) {
        ch_ssh_fail(link, "unsupported", "kex", "libssh refuses an option: %s",
                    ssh_get_error(s));
        return CH_ERR_UNSUPPORTED;
    }
    return CH_OK;
}

/* Takes the certificate algorithms out of a list, in place: certificates are
 * for the ssh client to check, and libssh fails with a misleading error when
 * it is offered nothing else. */
static void
drop_certificates(char *list)
{
    char *out = list;

    for (const char *at = list; *at != '\0';) {
        size_t len = strcspn(at, ",");
        const char *found = strstr(at, "-cert-v0");

        if (found == NULL || found >= at + len) {
            if (out != list) {
                *out++ = ',';
            }
            memmove(out, at, len);
            out += len;
        }
        at += len + (at[len] == ',');
    }
    *out = '\0';
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
            ch_ssh_fail_memory(link, "kex");
        }
    }
    if (r == CH_OK) {
        drop_certificates(ordered);
        if (*ordered == '\0') {
            ch_ssh_fail(link, "unsupported", "kex",
                        "certificates only in HostKeyAlgorithms: %s", wanted);
            r = CH_ERR_UNSUPPORTED;
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
    struct ch_host_query query = ch_ssh_host_query(link);

    ch_known_hosts_free(link->known);
    link->known = NULL;
    if (ch_known_hosts_load(&query, &link->known) != CH_OK) {
        ch_ssh_fail_memory(link, "hostkey");
        return CH_ERR_NOMEM;
    }
    if (ch_known_hosts_has_authority(link->known)) {
        ch_ssh_fail(link, "unsupported", "hostkey",
                    "a @cert-authority line is for host %s",
                    ch_known_hosts_name(link->known));
        return CH_ERR_UNSUPPORTED;
    }
    return CH_OK;
}

/* Server-opened channels and odd requests: the default answer is no. */
static int
refuse_message(ssh_session session, ssh_message message, void *arg)
{
    (void)session;
    (void)message;
    (void)arg;
    return 1;
}

/* Takes fd over. On failure link_fail has been called. */
int
ch_ssh_start_session(struct ch_link *link, int fd)
{
    int r = known_hosts_load(link);

    if (r != CH_OK) {
        close(fd);
        return r;
    }
    link->session = fd > LIBSSH_FD_MAX ? NULL : ssh_new();
    if (link->session == NULL) {
        close(fd);
        ch_ssh_fail(link, "unsupported", "kex",
                    "no libssh session for descriptor %d", fd);
        return CH_ERR_UNSUPPORTED;
    }
    ssh_set_blocking(link->session, 0);
    ssh_set_message_callback(link->session, refuse_message, NULL);
    memset(&link->said, 0, sizeof(link->said));
    link->said_base = 0;
    ssh_set_counters(link->session, NULL, &link->said);
    link->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (link->fd < 0) {
        ch_ssh_fail(link, "unreachable", "tcp", "ssh: %s", strerror(errno));
        r = CH_ERR_SYS;
    } else {
        r = session_configure(link, fd);
    }
    if (r != CH_OK) {
        close(fd); /* libssh did not take it yet */
    }
    return r;
}
