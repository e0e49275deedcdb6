/*
 * proc.h - child processes of the pool: started with three pipes, reaped
 * through a signalfd, ended with their group.
 */
#ifndef CH_PROC_H
#define CH_PROC_H

#include "ch.h"
#include "loop.h"

struct ch_proc;

/* rc -1 when killed by signal. Called once from the loop. */
typedef void ch_proc_exit_fn(void *arg, int rc, int signal);

struct ch_proc_spec {
    char **argv;     /* argv[0] is searched in PATH */
    char **env;      /* NULL: the pool's own */
    const char *cwd; /* NULL: / */
    int exec_failed; /* exit status when argv[0] cannot be started; the
                        reason is then on stderr */
};

/* Starts a child in a session of its own. fds gets our ends of its stdin,
 * stdout and stderr: non-blocking, close-on-exec, the caller's. CH_ERR_SYS
 * or CH_ERR_NOMEM. */
CH_MUST_USE int ch_proc_new(struct ch_loop *loop,
                            const struct ch_proc_spec *spec,
                            ch_proc_exit_fn *on_exit, void *arg, int fds[3],
                            struct ch_proc **out);
/* Gives the process up: no callback any more. TERM to its group after
 * grace_ms if it still runs, KILL 2 s later. Close its pipes before. Must
 * also be called after on_exit. */
void ch_proc_free(struct ch_proc *proc, int grace_ms);
/* Runs the loop until every process that was given up is gone: a few
 * seconds, because they are killed then. */
CH_MUST_USE int ch_proc_drain(struct ch_loop *loop);
/* Notes the limits children get back, before the pool changes its own. */
void ch_proc_limits_save(void);

#endif
