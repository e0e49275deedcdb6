/*
 * link.h - what carries a remote command's bytes, whatever it is: a libssh
 * session (ssh.c), an OpenSSH client process or a local child (sshproc.c).
 *
 * A link is one transport to one account of one host; a chan is one remote
 * command on it. Implementations never block the loop and report through
 * the two event tables. Callbacks run from the loop, never from inside a
 * ch_link or ch_chan call. After on_failed no other callback of that link or
 * of its chans comes, except one on_exit per open chan before it.
 */
#ifndef CH_LINK_H
#define CH_LINK_H

#include "ch.h"
#include "loop.h"

struct ch_link;
struct ch_chan;

/* A NULL-terminated list of strings is `char **`; NULL means empty. All is
 * copied by ch_link_new. */
struct ch_link_options {
    const char *transport; /* "libssh", "ssh", "local" */
    const char *name;      /* inventory name, for messages */
    const char *host, *user, *address_family, *bind_address;
    int port;
    int64_t timeout_ms; /* resolve + connect + the server's first line */
    int64_t login_timeout_ms; /* from there until authenticated; 0: 2 min */
    char **identity_files;
    int identities_only;
    const char *identity_agent; /* socket path, NULL for none */
    const char *password;       /* NULL for none; wiped after use */
    char **auth;                /* methods in order */
    const char *host_key_checking; /* "yes", "no", "accept-new" */
    char **known_hosts, **global_known_hosts;
    const char *host_key_alias;
    int hash_known_hosts;
    int64_t rekey_bytes; /* new keys after so many; 0: the library's own */
    int rekey_seconds;   /* limits only */
    const char *ciphers, *macs, *kex, *host_key_algorithms,
        *pubkey_algorithms;
    char **env;  /* NAME=VALUE */
    char **argv; /* transports "ssh" and "local" */
    const char *cwd; /* "ssh" and "local": where the child runs; NULL: / */
};

struct ch_link_events {
    /* Authenticated; stamps in microseconds since ch_link_new. "ssh" and
     * "local" links report it at once. banner: server version or "". */
    void (*on_open)(void *arg, int64_t connect_us, int64_t auth_us,
                    const char *banner);
    /* Dead for good. class and layer as FAILED in docs/protocol.md. */
    void (*on_failed)(void *arg, const char *fail_class, const char *layer,
                      const char *message);
};

struct ch_chan_events {
    /* stream 1 stdout, 2 stderr. Data is borrowed for the call. */
    void (*on_data)(void *arg, int stream, const uint8_t *data, size_t len);
    void (*on_writable)(void *arg); /* after a short write */
    /* The command ended or the chan was refused: rc -1 if unknown; signal 0
     * or number. All data was delivered before. Free the chan afterwards. */
    void (*on_exit)(void *arg, int rc, int signal, const char *error);
};

/* The version of the SSH library in use, as it says it. */
const char *ch_link_library(void);
/* Is there an implementation of this transport? */
int ch_link_known(const char *transport);
/* Starts connecting. NULL only when out of memory. */
struct ch_link *ch_link_new(struct ch_loop *loop,
                            const struct ch_link_options *options,
                            const struct ch_link_events *events, void *arg);
/* Closes at once; no callback comes any more. Frees its chans too. */
void ch_link_free(struct ch_link *link);

/* Runs a remote command (only after on_open). term: on a terminal of this
 * type, 0 by 0, as `ssh -tt` without a terminal of its own asks for it; NULL:
 * on none. CH_ERR_UNSUPPORTED: no terminals here; a server that has none to
 * give refuses the chan. */
CH_MUST_USE int ch_chan_new(struct ch_link *link, const char *command,
                            const char *term,
                            const struct ch_chan_events *events, void *arg,
                            struct ch_chan **out);
/* Accepts up to len bytes for the command's stdin; returns how many (0: wait
 * for on_writable), or a negative enum ch_err. */
long ch_chan_write(struct ch_chan *chan, const uint8_t *data, size_t len);
/* Bytes of what was accepted that the other side has not taken yet, as far as
 * the kernel knows (for a libssh link: of the whole session). */
long ch_chan_backlog(const struct ch_chan *chan);
void ch_chan_eof(struct ch_chan *chan);  /* ends stdin */
/* Stops (1) or restarts (0) reading, for back pressure. */
void ch_chan_pause(struct ch_chan *chan, int pause);
void ch_chan_free(struct ch_chan *chan); /* closes; no more callbacks */

/* The table an implementation offers; link.c dispatches to it. */
struct ch_link_ops {
    const char *transport;
    struct ch_link *(*link_new)(struct ch_loop *,
                                const struct ch_link_options *,
                                const struct ch_link_events *, void *);
    void (*link_free)(struct ch_link *);
    int (*chan_new)(struct ch_link *, const char *, const char *,
                    const struct ch_chan_events *, void *, struct ch_chan **);
    long (*chan_write)(struct ch_chan *, const uint8_t *, size_t);
    long (*chan_backlog)(const struct ch_chan *);
    void (*chan_eof)(struct ch_chan *);
    void (*chan_pause)(struct ch_chan *, int);
    void (*chan_free)(struct ch_chan *);
};
/* Every implementation's ch_link and ch_chan begin with these. */
struct ch_link_head {
    const struct ch_link_ops *ops;
};
struct ch_chan_head {
    const struct ch_link_ops *ops;
};
extern const struct ch_link_ops ch_ssh_ops;      /* ssh.c: "libssh" */
extern const struct ch_link_ops ch_sshproc_ops;  /* sshproc.c: "ssh" */
extern const struct ch_link_ops ch_local_ops;    /* sshproc.c: "local" */

#endif
