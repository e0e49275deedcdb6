/*
 * knownhosts.h - who a host is, by OpenSSH's known_hosts files. No libssh.
 */
#ifndef CH_KNOWNHOSTS_H
#define CH_KNOWNHOSTS_H

#include "ch.h"

enum ch_host_verdict {
    CH_HOST_OK,         /* this key is listed for the host */
    CH_HOST_NEW,        /* no key is listed for the host */
    CH_HOST_CHANGED,    /* only other keys are listed */
    CH_HOST_REVOKED,    /* the key is marked @revoked */
    CH_HOST_UNSUPPORTED /* a @cert-authority line is for the host */
};

enum ch_host_action {
    CH_HOST_ACCEPT,
    CH_HOST_ADD,    /* accept and add the key to the first user file */
    CH_HOST_UNSAFE, /* accept, but send no password to it */
    CH_HOST_REFUSE,
    CH_HOST_FALL_BACK /* only the ssh client can decide */
};

/* Borrowed. The lists are NULL-terminated; NULL and "none" mean empty. */
struct ch_host_query {
    char **user_files, **global_files;
    const char *host;
    int port;
    const char *alias; /* HostKeyAlias or NULL */
};

struct ch_known_hosts;

/* Reads the lines of all files that are for the host. Files that are not
 * there or not readable are empty, as for ssh. May block on the disk. */
CH_MUST_USE int ch_known_hosts_load(const struct ch_host_query *query,
                                    struct ch_known_hosts **out);
void ch_known_hosts_free(struct ch_known_hosts *known);
/* blob: the key in wire form. If not NULL, *file and *line (borrowed from
 * known) say what decided; NULL and 0 if nothing did. */
enum ch_host_verdict ch_known_hosts_check(const struct ch_known_hosts *known,
                                          const uint8_t *blob, size_t len,
                                          const char **file,
                                          unsigned long *line);
/* Is any @cert-authority line for the host? */
int ch_known_hosts_has_authority(const struct ch_known_hosts *known);
/* The comma list of host key algorithms, those of known keys first, as ssh
 * orders them. Caller frees *out. */
CH_MUST_USE int ch_known_hosts_order(const struct ch_known_hosts *known,
                                     const char *algorithms, char **out);
/* The name keys are filed under: lower case, [host]:port, or the alias. */
const char *ch_known_hosts_name(const struct ch_known_hosts *known);
/* What StrictHostKeyChecking mode ("yes", "no", "accept-new") makes of a
 * verdict. Keys cannot be added (can_add 0) without a user file. */
enum ch_host_action ch_known_hosts_action(enum ch_host_verdict verdict,
                                          const char *mode, int can_add);
/* Can a new key of this host be added to a file? */
int ch_known_hosts_can_add(const struct ch_host_query *query);
/* Appends the key to the first user file, which is made 0600 with its
 * directory 0700 if missing. A key that is there already is not repeated. */
CH_MUST_USE int ch_known_hosts_add(const struct ch_host_query *query,
                                   const uint8_t *blob, size_t len, int hash);
/* Reads fd to its end; the caller frees *text, also on error. */
CH_MUST_USE int ch_known_hosts_read(int fd, char **text, size_t *len);

/* For the fuzzer and the tests: the lines of text that are for the host, as
 * if they stood in a file of that name. */
CH_MUST_USE int ch_known_hosts_parse(const struct ch_host_query *query,
                                     const char *file, const char *text,
                                     size_t len, struct ch_known_hosts **out);

#endif
