/*
 * ch.h - the shared words of the C core: error codes and common macros,
 * nothing else.
 */
#ifndef CH_H
#define CH_H

#include <stddef.h>
#include <stdint.h>

#define CH_VERSION "0.1.0"

/* A fallible function returns CH_OK or one of these; all are negative. */
enum ch_err {
    CH_OK = 0,
    CH_ERR_NOMEM = -1,    /* out of memory */
    CH_ERR_LIMIT = -2,    /* a size limit would be passed */
    CH_ERR_PROTOCOL = -3, /* the peer broke the protocol: close it */
    CH_ERR_SYS = -4,      /* a system call failed; errno says why */
    CH_ERR_CLOSED = -5,   /* the peer or the object is closed */
    CH_ERR_TIMEOUT = -6,  /* a deadline passed */
    CH_ERR_AGAIN = -7,    /* would block: call again when ready */
    CH_ERR_FORMAT = -8,   /* text or file is not in the expected form */
    CH_ERR_REFUSED = -9,  /* peer check, host key or permission says no */
    CH_ERR_AUTH = -10,    /* no authentication method succeeded */
    CH_ERR_UNSUPPORTED = -11, /* needs the fall-back path */
    CH_ERR_STATE = -12    /* called in a state that does not allow it */
};

/* Short English text for a code; static storage. */
const char *ch_strerror(int code);

#define CH_MUST_USE __attribute__((warn_unused_result))
#define CH_PRINTF(f, a) __attribute__((format(printf, f, a)))

#endif
