/*
 * ssh.h - what the ssh*.c files share; the only header that includes libssh.
 */
#ifndef CH_SSH_H
#define CH_SSH_H

#include "link.h"

#include "buf.h"
#include "connect.h"
#include "keyagent.h"
#include "knownhosts.h"

#include <libssh/callbacks.h>
#include <libssh/libssh.h>
#include <libssh/server.h>
#include <pthread.h>

#if LIBSSH_VERSION_INT < SSH_VERSION_INT(0, 10, 0)
#error "libssh 0.10 or newer is needed"
#endif

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

enum chan_state {
    OPENING,
    ASKING_TERMINAL,
    SETTING_ENV,
    STARTING,
    RUNNING,
    REFUSED
};

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
    uint64_t rekey_bytes;
    uint32_t rekey_seconds;
    struct identity *identities;
    size_t n_identities;
    struct ch_address bind;
    int has_bind;

    /* connecting */
    int64_t start_us, deadline_us, connect_us;
    int64_t left_ms;  /* PACING: of the time to connect */
    int64_t login_ms; /* from the server's first line to OPEN */
    int greeted;      /* it has come: login_ms counts */
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
    struct ssh_counter_struct said; /* counts what libssh was to send */
    uint64_t said_base;             /* its bytes when all had been sent */

    /* authentication */
    enum auth_call call;
    ssh_key private_key; /* of CALL_FILE */
    size_t next_identity;
    int agent_done, prompts_done, prompt_rounds;
    int unsafe;       /* the host key is not trusted: no password */
    int needs_client; /* a key only the ssh client can use was skipped */
    struct ch_keyagent *key_agent;
    int agent_fd; /* libssh's end of it, -1 if none */
    pthread_t thread;
    int thread_event, thread_result;

    /* channels */
    struct ch_chan *chans;
    int dirty;   /* a libssh callback has set something */
    int blocked; /* a write was refused although the window is open: rekey */
    int overrun; /* the peer ignored the window */
    int served;  /* a command runs, or did */
};

struct ch_chan {
    struct ch_chan_head head;
    struct ch_link *link;
    struct ch_chan *next;
    ssh_channel channel; /* owned by the session; NULL once let go */
    struct ssh_channel_callbacks_struct callbacks;
    enum chan_state state;
    char *command;
    char *term; /* NULL: no terminal */
    size_t env_next;
    struct ch_chan_events events;
    void *arg;
    struct ch_buf in[2]; /* stdout, stderr: received, not delivered */
    size_t held[2];      /* bytes libssh keeps because we are paused */
    int paused, want_write, eof, eof_sent;
    int closed; /* the peer closed it */
    int freed;  /* ch_chan_free was called */
    int exited; /* on_exit was called */
    int rc, signal;
};

/* --- ssh.c --- */

/* Every loop callback of a link starts with enter and ends with leave, which
 * reports a failure and frees what was let go; the link may be gone then. */
void ch_ssh_enter(struct ch_link *link);
void ch_ssh_leave(struct ch_link *link);
/* Marks the link dead; ch_ssh_leave reports it. The first failure counts.
 * fail_class and layer are literals. */
void ch_ssh_fail(struct ch_link *link, const char *fail_class,
                 const char *layer, const char *format, ...) CH_PRINTF(4, 5);
void ch_ssh_fail_memory(struct ch_link *link, const char *layer);
/* Has the turn run soon, from the loop. */
void ch_ssh_kick(struct ch_link *link);
/* After libssh was called: watches what to wait for, and kicks if something
 * happened that no descriptor event will tell. */
void ch_ssh_settle(struct ch_link *link);
int ch_ssh_is_alive(const struct ch_link *link);
/* Frees the session with its channels and descriptor. */
void ch_ssh_close_session(struct ch_link *link);

/* --- ssh_options.c --- */

CH_MUST_USE int ch_ssh_copy_options(struct ch_link *link,
                                    const struct ch_link_options *options);
void ch_ssh_free_options(struct ch_link *link);
void ch_ssh_wipe_password(struct ch_link *link);
struct ch_host_query ch_ssh_host_query(const struct ch_link *link);
/* A configured session on fd, which is taken over. On failure ch_ssh_fail
 * was called. */
CH_MUST_USE int ch_ssh_start_session(struct ch_link *link, int fd);

/* --- ssh_connect.c --- */

/* Starts resolving; CH_ERR_NOMEM. */
CH_MUST_USE int ch_ssh_connect(struct ch_link *link);
void ch_ssh_kex_run(struct ch_link *link);
/* The current state has so long; CH_ERR_NOMEM. */
CH_MUST_USE int ch_ssh_set_deadline(struct ch_link *link, int64_t ms);
/* The session died: says so in ssh's words. */
void ch_ssh_fail_lost(struct ch_link *link, const char *layer);
/* The public part of key in wire form; the caller frees *blob. */
CH_MUST_USE int ch_ssh_key_blob(const ssh_key key, uint8_t **blob,
                                size_t *len);

/* --- ssh_auth.c --- */

/* Drives the current call as far as it goes without waiting. */
void ch_ssh_auth_run(struct ch_link *link);
/* Makes the signing thread come back soon, whatever it waits for. */
void ch_ssh_auth_hurry(struct ch_link *link);
/* No key of ssh-agent is wanted any more (no thread may be signing). */
void ch_ssh_auth_end_agent(struct ch_link *link);

/* --- ssh_chan.c --- */

/* Moves all chans on and calls their receivers. */
void ch_ssh_chans_advance(struct ch_link *link);
/* Closes and frees the chans nobody wants any more. */
void ch_ssh_chans_reap(struct ch_link *link);
void ch_ssh_chan_release(struct ch_chan *chan);
int ch_ssh_chan_is_writable(const struct ch_chan *chan);
int ch_ssh_chan_new(struct ch_link *link, const char *command,
                    const char *term,
                    const struct ch_chan_events *events, void *arg,
                    struct ch_chan **out);
long ch_ssh_chan_write(struct ch_chan *chan, const uint8_t *data, size_t len);
long ch_ssh_chan_backlog(const struct ch_chan *chan);
void ch_ssh_chan_eof(struct ch_chan *chan);
void ch_ssh_chan_pause(struct ch_chan *chan, int pause);
void ch_ssh_chan_free(struct ch_chan *chan);

#endif
