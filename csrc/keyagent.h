/*
 * keyagent.h - the user's ssh-agent, seen through a filter: lists its keys
 * without blocking the loop, then stands in for it towards libssh and shows
 * only the keys that were chosen. (Not churten's agent on the target.)
 */
#ifndef CH_KEYAGENT_H
#define CH_KEYAGENT_H

#include "ch.h"
#include "loop.h"

struct ch_key_blob {
    uint8_t *data; /* public key in wire form */
    size_t len;
};

struct ch_keyagent;
/* The agent's keys, borrowed; n 0 also if it cannot be reached. */
typedef void ch_keyagent_listed_fn(void *arg, const struct ch_key_blob *keys,
                                   size_t n);

/* Connects to the socket at path and asks for its keys; listed comes from
 * the loop. NULL when out of memory. */
struct ch_keyagent *ch_keyagent_new(struct ch_loop *loop, const char *path,
                                    ch_keyagent_listed_fn *listed, void *arg);
void ch_keyagent_free(struct ch_keyagent *agent); /* closes all */

/* After listed: serves the agent protocol on a new socket whose other end
 * *peer is handed over. Answers lists with the chosen keys (copied, in this
 * order) and forwards signature requests for exactly these. A key is shown
 * no more once a signature with it was asked for. */
CH_MUST_USE int ch_keyagent_serve(struct ch_keyagent *agent,
                                  const struct ch_key_blob *chosen, size_t n,
                                  int *peer);
/* Chosen keys no signature was asked for yet. */
size_t ch_keyagent_left(const struct ch_keyagent *agent);

#endif
