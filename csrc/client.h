/*
 * client.h - the client's end of the pool's unix socket: frames out without
 * blocking, frames in. No threads of its own, no Python.
 */
#ifndef CH_CLIENT_H
#define CH_CLIENT_H

#include "ch.h"
#include "wire.h"

struct ch_client;

/* Connects to the pool at path and exchanges HELLO within timeout_ms
 * (blocks). On failure writes one sentence to why and returns CH_ERR_SYS
 * (errno set), CH_ERR_REFUSED (the peer is not ours), CH_ERR_CLOSED,
 * CH_ERR_TIMEOUT, CH_ERR_PROTOCOL or CH_ERR_UNSUPPORTED (other version). */
CH_MUST_USE int ch_client_new(const char *path, const char *version,
                              int timeout_ms, struct ch_client **out,
                              char *why, size_t why_size);
/* Closes the descriptor and frees; NULL is fine. Sends nothing. */
void ch_client_free(struct ch_client *client);

int ch_client_fd(const struct ch_client *client);
/* Queues one frame. CH_ERR_LIMIT, CH_ERR_NOMEM or CH_ERR_CLOSED. */
CH_MUST_USE int ch_client_put(struct ch_client *client,
                              const struct ch_frame *frame);
/* The same; a copy of the descriptor goes along with the frame. */
CH_MUST_USE int ch_client_put_fd(struct ch_client *client,
                                 const struct ch_frame *frame, int fd);
/* Writes what the socket takes now: CH_OK if the queue is empty,
 * CH_ERR_AGAIN if not, CH_ERR_CLOSED when the pool is gone. */
CH_MUST_USE int ch_client_flush(struct ch_client *client);
/* Reads what is there now, at most a few MiB: CH_OK, CH_ERR_AGAIN (nothing
 * new), CH_ERR_CLOSED, or CH_ERR_NOMEM. */
CH_MUST_USE int ch_client_fill(struct ch_client *client);
/* Next received frame; body valid until the next call. CH_OK, CH_ERR_AGAIN
 * (none complete) or CH_ERR_PROTOCOL. ZLIB bodies are not inflated. */
CH_MUST_USE int ch_client_next(struct ch_client *client,
                               struct ch_frame *frame);

#endif
