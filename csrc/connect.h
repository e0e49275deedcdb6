/*
 * connect.h - from a host name to a connected TCP socket without blocking
 * the loop, and how many handshakes one target gets at a time.
 * All callbacks come from the loop, never from inside these calls.
 */
#ifndef CH_CONNECT_H
#define CH_CONNECT_H

#include "ch.h"
#include "loop.h"

#include <sys/socket.h>

#define CH_ADDRESSES_MAX 8u

struct ch_address {
    struct sockaddr_storage sa;
    socklen_t len;
    int family;
};

/* "127.0.0.1" or "::1" */
void ch_address_text(const struct ch_address *address, char *out, size_t size);

/* error: NULL, or the resolver's sentence. The list is borrowed. The resolve
 * is over and must not be cancelled any more. */
typedef void ch_resolved_fn(void *arg, const struct ch_address *list,
                            size_t n, const char *error);
struct ch_resolve;
/* family: AF_UNSPEC, AF_INET or AF_INET6. NULL when out of memory. */
struct ch_resolve *ch_resolve_start(struct ch_loop *loop, const char *host,
                                    int port, int family, ch_resolved_fn *fn,
                                    void *arg);
void ch_resolve_cancel(struct ch_resolve *resolve);

/* fd: connected, non-blocking, close-on-exec, TCP_NODELAY, SO_KEEPALIVE, the
 * receiver's from now on; or -1 and the errno of the last address tried. The
 * dial is over and must not be cancelled any more. */
typedef void ch_dialled_fn(void *arg, int fd, const struct ch_address *peer,
                           int error);
struct ch_dial;
/* Tries the addresses in order, the next one as soon as one fails or has not
 * answered for 300 ms; the first that connects wins. It has no deadline of
 * its own. bind may be NULL. NULL when out of memory. */
struct ch_dial *ch_dial_start(struct ch_loop *loop,
                              const struct ch_address *list, size_t n,
                              const struct ch_address *bind,
                              ch_dialled_fn *fn, void *arg);
void ch_dial_cancel(struct ch_dial *dial);

/* A numeric address for bind(); CH_ERR_FORMAT if it is not one. */
CH_MUST_USE int ch_address_parse(const char *text, int port,
                                 struct ch_address *out);

/* At most CH_PACE_LIMIT holders per address (with port) at a time; the rest
 * wait in order. granted(arg) comes from inside ch_pace_leave of another, or
 * is not called at all if ch_pace_enter answers 1 (granted at once).
 * The ticket lives in the caller's struct, all zero before its first use. */
#define CH_PACE_LIMIT 8u
struct ch_pace_gate;
struct ch_pace_ticket {
    struct ch_pace_gate *gate; /* NULL: not in */
    struct ch_pace_ticket *next;
    int holds;
    ch_loop_fn *granted;
    void *arg;
};
/* 1 granted, 0 waiting, or CH_ERR_NOMEM. */
CH_MUST_USE int ch_pace_enter(struct ch_pace_ticket *ticket,
                              const struct ch_address *address,
                              ch_loop_fn *granted, void *arg);
void ch_pace_leave(struct ch_pace_ticket *ticket); /* safe if not in */

#endif
