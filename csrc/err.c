/* err.c - error codes as text: one table. */
#include "ch.h"

const char *
ch_strerror(int code)
{
    switch (code) {
    case CH_OK:
        return "ok";
    case CH_ERR_NOMEM:
        return "out of memory";
    case CH_ERR_LIMIT:
        return "size limit passed";
    case CH_ERR_PROTOCOL:
        return "protocol violation";
    case CH_ERR_SYS:
        return "system error";
    case CH_ERR_CLOSED:
        return "closed";
    case CH_ERR_TIMEOUT:
        return "timed out";
    case CH_ERR_AGAIN:
        return "would block";
    case CH_ERR_FORMAT:
        return "bad format";
    case CH_ERR_REFUSED:
        return "refused";
    case CH_ERR_AUTH:
        return "authentication failed";
    case CH_ERR_UNSUPPORTED:
        return "not supported";
    case CH_ERR_STATE:
        return "wrong state";
    default:
        return "unknown error";
    }
}
