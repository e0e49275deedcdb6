/*
 * pool_int.h - what the pool_*.c files share. Who owns whom:
 *
 *   pool --- sessions (by key) --- agents --- subs
 *     |          |                    |
 *     |       attaches ------------ refs      (a client's numbers for them)
 *     |          |
 *   clients -----+--- requests -> agent or exec
 *
 * An attach is one client's use of one session; a ref is one attach's use
 * of one agent. A session lives while it works or is attached; an agent
 * while it works or is referenced; a request belongs to its attach and is
 * gone after its final frame. Everything is freed through pool_free_later,
 * because the one that asks may be called by what is freed.
 */
#ifndef CH_POOL_INT_H
#define CH_POOL_INT_H

#include <sys/types.h>

#include "agentlink.h"
#include "list.h"
#include "pool.h"
#include "table.h"
#include "wire.h"

#define POOL_CLIENT_HIGH  (32u * 1024u * 1024u) /* its targets must wait */
#define POOL_CLIENT_LOW   (8u * 1024u * 1024u)  /* they may go on */
#define POOL_CLIENT_LIMIT (64u * 1024u * 1024u) /* it is dropped */
#define POOL_QUEUE_LIMIT  (2u * 1024u * 1024u)  /* per login agent: busy */
#define POOL_STORE_LIMIT  (64u * 1024u * 1024u) /* payloads kept */
#define POOL_HELLO_MS     5000
#define LINK_GONE         "the connection has just ended"
#define POOL_STALL_MS     5000  /* between looks at a full client */
#define POOL_STALL_LOOKS  12    /* without progress, while others wait */

#define CLIENT_FDS    16 /* on their way to SOURCE frames */
#define FAILURES_KEPT 16 /* for STATUS */

/* A session that ended otherwise than by our own decision. */
struct failure {
    int64_t at_us;
    const char *class, *layer;
    char name[128], message[256];
};

struct ch_pool {
    struct ch_loop *loop;
    int listen_fd;
    struct ch_timer *accept_timer; /* after EMFILE */
    struct ch_timer *idle_timer;
    int64_t idle_ms;
    ch_loop_fn *on_end;
    void *arg;
    int ending;
    uint32_t serial; /* last client serial */
    struct ch_list clients;
    size_t n_clients;
    struct ch_list all_sessions; /* also dead ones that are attached */
    size_t n_live;               /* sessions that are not dead */
    struct ch_table sessions;    /* by key: those that can be joined */
    struct ch_table attaches;    /* by (client serial, session number) */
    struct ch_table requests;    /* by (client serial, request number) */
    struct ch_table payloads;    /* by key */
    struct ch_list payload_lru;  /* oldest first */
    size_t payload_bytes;
    uint64_t total_requests, total_sessions; /* for STATUS */
    struct failure failures[FAILURES_KEPT];  /* a ring */
    uint64_t n_failures;                     /* ever */
};

/* Why something is dead, for everyone who asks later. */
struct fail {
    const char *class, *layer; /* static words of the protocol */
    char message[2048];
};

struct client {
    struct ch_pool *pool;
    struct ch_list in_pool;
    struct ch_list attaches;
    struct ch_list waiting; /* stoppers to resume when it reads again */
    struct ch_timer *hello_timer, *stall_timer;
    struct ch_buf in, out;
    int fds[CLIENT_FDS]; /* came, and no SOURCE has taken them yet */
    size_t n_fds;
    uint32_t serial;
    long pid;
    int fd;
    int greeted, flushing, progressed, doomed, dead;
    int stall_looks; /* in a row that found no progress */
};

/* Something that stopped reading because a client is full. */
struct stopper {
    struct ch_list in_client;
    void (*resume)(void *arg);
    void *arg;
};

enum session_state { SESSION_OPENING, SESSION_OPEN, SESSION_DEAD };

struct session {
    struct ch_pool *pool;
    struct ch_list in_pool;
    char *key, *name, *transport; /* owned */
    struct ch_link *link;
    enum session_state state;
    int retired; /* RESET: ends with its last request */
    struct fail fail;
    struct ch_list attaches;
    size_t n_attaches, n_requests;
    struct ch_list agents; /* login agents that are not dead */
    struct ch_list execs;  /* plain chans */
    struct ch_timer *idle_timer, *retire_timer;
    int64_t idle_ms, alive_interval_ms;
    int alive_count;
    int64_t connect_us, auth_us, since_us;
    uint64_t in_bytes, out_bytes; /* from and to the target, for STATUS */
    char banner[256];
};

struct attach {
    struct client *client;
    struct session *session;
    struct ch_list in_client, in_session;
    struct ch_list refs, requests;
    uint32_t number;       /* the client's session number */
    uint32_t open_request; /* of its OPEN */
    int answered;          /* OPENED or FAILED was sent */
    int reused;
};

enum agent_state { AGENT_WAITING, AGENT_STARTING, AGENT_READY, AGENT_DEAD };

struct agent {
    struct session *session;
    struct agent *login;    /* itself for a login agent */
    struct ch_list in_list; /* session->agents or login->subs */
    char *key;
    uint8_t *spec; /* the START map, wiped and freed once used */
    size_t spec_len;
    uint16_t index;
    enum agent_state state;
    struct fail fail;
    uint8_t *hello; /* its HELLO map */
    size_t hello_len;
    struct ch_list refs, requests;
    size_t n_refs;
    struct ch_outq held;    /* until it is ready */
    struct ch_table has;    /* payload keys it was sent */
    struct ch_timer *timer; /* sub: guard of START; login: idle */
    /* login agents only */
    struct ch_agentlink *al;
    struct ch_list subs;
    struct ch_table wire; /* requests by their number on the agent hop */
    struct ch_table by_index;
    uint32_t last_wire;
    uint16_t last_index;
    size_t n_expected; /* requests and starts under way */
    struct ch_list sources; /* files to read from: whose turn it is first */
    int feeding;
    struct stopper stopper;
};

struct agent_ref {
    struct attach *attach;
    struct agent *agent;
    struct ch_list in_attach, in_agent;
    uint16_t number; /* the client's agent number */
    uint32_t start_request;
    int answered, reused;
};

enum request_state { REQUEST_QUEUED, REQUEST_SENT, REQUEST_ACCEPTED };

struct request {
    struct attach *attach;
    struct agent *agent; /* NULL for an exec chan */
    struct exec *exec;
    struct source *source; /* a file to be read from, or NULL */
    struct ch_list in_attach, in_agent;
    uint32_t number;       /* the client's */
    uint32_t wire;         /* ours on the agent hop */
    uint16_t agent_number; /* the client's */
    uint8_t type;
    enum request_state state;
    int64_t received_us, sent_us;
    int64_t down, up; /* window left: to the client, to the target */
    int64_t ahead;    /* of up: given by us, beyond CH_WIRE_WINDOW */
    int64_t stood_us; /* since when the client had no window; 0: it has */
    int up_ended;     /* the client sent END, or SOURCE */
    int has_source;   /* it sent SOURCE */
    int down_ended;   /* bit per stream: the target sent END */
    int cancelled;    /* its EXIT may come without ACCEPTED */
};

/* --- pool.c --- */
void pool_free_later(struct ch_pool *pool, void *memory);
void pool_idle_check(struct ch_pool *pool);

/* --- pool_client.c --- */
void client_accept(struct ch_pool *pool, int fd);
void client_drop(struct client *client, const char *why);
void client_doom(struct client *client);
/* Queues a frame; dooms the client if it cannot take it. */
void client_frame(struct client *client, const struct ch_frame *frame);
void client_failed(struct client *client, uint32_t session, uint16_t agent,
                   uint32_t request, const struct fail *fail, int started);
void client_exit_ok(struct client *client, const struct ch_frame *asked);
/* Is it too full for more? Then resume is called once it is not. */
int client_full(struct client *client, struct stopper *stopper);
void stopper_init(struct stopper *stopper, void (*resume)(void *), void *arg);
void stopper_fini(struct stopper *stopper);

/* --- pool_session.c --- */
void fail_set(struct fail *fail, const char *class, const char *layer,
              const char *message);
int session_open(struct client *client, const struct ch_frame *frame);
void session_fail(struct session *session, const char *class,
                  const char *layer, const char *message);
void session_retire(struct session *session);
void session_check(struct session *session); /* after a request ended */
struct attach *attach_find(struct client *client, uint32_t number);
void attach_drop(struct attach *attach);

/* --- pool_agent.c --- */
int agent_start(struct client *client, const struct ch_frame *frame);
void agents_launch(struct session *session); /* the session is open */
void agents_fail(struct session *session, const struct fail *fail);
struct agent_ref *ref_find(struct attach *attach, uint16_t number);
void ref_drop(struct agent_ref *ref);
/* Queues a frame for it; begins as for ch_outq_put. */
CH_MUST_USE int agent_put(struct agent *agent, const struct ch_frame *frame,
                          struct ch_blob *blob, int begins);
void agent_expect(struct agent *agent, int change);
/* It said HELLO (STARTED for a sub): answers its refs, sends what was held. */
void agent_ready(struct agent *agent, const uint8_t *hello, size_t len);
/* Makes it dead: requests, subs and (tell) refs that had STARTED hear why. */
void agent_fail(struct agent *agent, const struct fail *fail, int tell);

/* --- pool_login.c --- */
extern const struct ch_agentlink_events pool_login_events; /* arg: agent */
void pool_login_resume(void *arg);

/* --- pool_request.c --- */
int request_new(struct client *client, const struct ch_frame *frame);
struct request *request_find(struct client *client, uint32_t number);
int request_data(struct request *req, const struct ch_frame *frame);
int request_window(struct request *req, const struct ch_frame *frame);
void request_cancel(struct request *req);
void request_ask(struct request *req); /* is the agent still at it? */
/* Ends it without a word to the client, telling the target to stop. */
void request_forget(struct request *req);
void request_fail(struct request *req, const struct fail *fail);
/* The same, telling the target to stop. */
void request_break(struct request *req, const struct fail *fail);
/* A frame of this request from its agent or exec chan. */
int request_reply(struct request *req, const struct ch_frame *frame);
/* DATA of an exec chan; may pass the window by what one read brought. */
void request_push(struct request *req, uint8_t flags, const uint8_t *data,
                  size_t len);
int frame_raw_len(const struct ch_frame *frame, size_t *raw);

/* --- pool_source.c --- */
/* As recv(2); descriptors that come along are kept for SOURCE frames. */
ssize_t client_receive(struct client *client, uint8_t *place, size_t len);
void client_close_fds(struct client *client);
int client_source(struct client *client, const struct ch_frame *frame);
/* Reads and queues what the windows and the queue of a login agent allow. */
void sources_feed(struct agent *login);
void source_free(struct source *source);

/* --- pool_exec.c --- */
int exec_new(struct request *req, const struct ch_frame *frame);
void execs_launch(struct session *session);
void execs_fail(struct session *session, const struct fail *fail);
int exec_data(struct exec *exec, const struct ch_frame *frame);
void exec_window(struct exec *exec);
void exec_cancel(struct exec *exec);
void exec_free(struct exec *exec);

/* --- pool_store.c --- */
void store_put(struct ch_pool *pool, const uint8_t *key, size_t len,
               const uint8_t *body, size_t body_len);
struct ch_blob *store_find(struct ch_pool *pool, const uint8_t *key,
                           size_t len);
void store_fini(struct ch_pool *pool);

/* --- pool_status.c --- */
int pool_status(struct ch_pool *pool, struct ch_buf *out);

#endif
