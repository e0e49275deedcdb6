/*
 * py_stamps.h - what the timing log's lines take from a record of steps.
 */
#ifndef CH_PY_STAMPS_H
#define CH_PY_STAMPS_H

#include "py.h"

/* The moments that are logged, in this order. */
#define CH_STAMP_NAMES                                                        \
    X(eligible)                                                               \
    X(slot)                                                                   \
    X(start)                                                                  \
    X(connect_begin)                                                          \
    X(connect_end)                                                            \
    X(sent)                                                                   \
    X(remote_begin)                                                           \
    X(remote_end)                                                             \
    X(received)                                                               \
    X(processed)

enum {
#define X(name) CH_STAMP_##name,
    CH_STAMP_NAMES
#undef X
        CH_STAMPS
};

extern const char *const ch_stamp_names[CH_STAMPS];

/* Times in seconds; NaN is not known. */
struct ch_stamped {
    double when[CH_STAMPS]; /* on the monotonic clock */
    double queue;
    double connect;
    double remote;
    double ran;
    double controller;
    PyObject *engine; /* borrowed, None if there is none */
    long worker;      /* -1 is None */
    const char *source;
};

/* What the caller knows of the result; all borrowed. */
struct ch_timed {
    PyObject *common; /* str: how the lines of its task begin */
    PyObject *host;
    PyObject *status;
    PyObject *items; /* None without a loop */
    PyObject *started;
    PyObject *attempts;
    PyObject *delegated; /* or None */
    PyObject *quote;     /* makes a JSON string of a str */
    double at;
    double seconds;
    double zero; /* moments count from it */
};

/* The line of a result with its newline (bytes); py_timings.c. */
PyObject *ch_timed_line(const struct ch_timed *timed,
                        const struct ch_stamped *stamped);

#endif
