/*
 * proc.c - one place that forks and reaps.
 *
 * Life: running -> (exited | given up); a process that was given up while
 * running stays in the table, without owner, until it is reaped. SIGCHLD is
 * blocked when the first child starts and read from a signalfd, so no
 * handler runs anywhere; every child unblocks all signals and resets
 * ignored ones before exec.
 * The pool may have threads (name resolution), so between fork and exec
 * only async-signal-safe calls are made: all memory is prepared before.
 */
#include "proc.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "table.h"

#define PROC_KILL_MS 2000

extern char **environ;

struct ch_proc {
    struct ch_loop *loop;
    struct ch_timer *timer; /* after the owner gave it up */
    ch_proc_exit_fn *on_exit;
    void *arg;
    pid_t pid;
    int exited, owned, signal; /* signal: next one to send */
};

/* One loop and one reaper per process. */
static struct {
    struct ch_loop *loop;
    int fd;
    struct ch_table procs; /* by pid; only those not yet reaped */
    int draining;
} reaper = {.fd = -1};

static struct rlimit core_limit, nofile_limit;
static int limits_saved;

void
ch_proc_limits_save(void)
{
    limits_saved = getrlimit(RLIMIT_CORE, &core_limit) == 0 &&
                   getrlimit(RLIMIT_NOFILE, &nofile_limit) == 0;
}

static void
proc_destroy(struct ch_proc *proc)
{
    ch_loop_cancel(proc->loop, proc->timer);
    free(proc);
}

static void
proc_reaped(struct ch_proc *proc, int status)
{
    int signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;

    proc->exited = 1;
    if (!proc->owned) {
        proc_destroy(proc);
        return;
    }
    proc->on_exit(proc->arg, signal ? -1 : WEXITSTATUS(status), signal);
}

static void
reaper_ready(void *arg, int fd, unsigned events)
{
    struct signalfd_siginfo info;
    int status = 0;
    pid_t pid;

    (void)arg;
    (void)events;
    while (read(fd, &info, sizeof(info)) > 0) {
    }
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        struct ch_proc *proc =
            ch_table_remove(&reaper.procs, &pid, sizeof(pid));

        if (proc != NULL) {
            proc_reaped(proc, status);
        }
    }
    if (reaper.draining && reaper.procs.used == 0) {
        ch_loop_stop(reaper.loop);
    }
}

int
ch_proc_drain(struct ch_loop *loop)
{
    reaper.draining = 1;
    return reaper.procs.used == 0 ? CH_OK : ch_loop_run(loop);
}

static int
reaper_start(struct ch_loop *loop)
{
    sigset_t set;

    if (reaper.fd >= 0) {
        return CH_OK;
    }
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    if (sigprocmask(SIG_BLOCK, &set, NULL) != 0) {
        return CH_ERR_SYS;
    }
    reaper.fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (reaper.fd < 0) {
        return CH_ERR_SYS;
    }
    reaper.loop = loop;
    return ch_loop_watch(loop, reaper.fd, CH_LOOP_READ, reaper_ready, NULL);
}

/* --- in the child --- */

static void
child_close_all(void)
{
#ifdef SYS_close_range
    if (syscall(SYS_close_range, 3u, ~0u, 0u) == 0) {
        return;
    }
#endif
    for (int fd = 3; fd < 65536; fd++) {
        close(fd);
    }
}

static void
child_complain(const char *what, int error)
{
    /* For a known number strerror only looks into a table. */
    const char *why = strerror(error);

    (void)!write(2, what, strlen(what));
    (void)!write(2, ": ", 2);
    if (why != NULL) {
        (void)!write(2, why, strlen(why));
    }
    (void)!write(2, "\n", 1);
}

static void child_run(const struct ch_proc_spec *spec, const int fds[3])
    __attribute__((noreturn));

static void
child_run(const struct ch_proc_spec *spec, const int fds[3])
{
    const char *cwd = spec->cwd == NULL ? "/" : spec->cwd;
    sigset_t none;

    for (int i = 0; i < 3; i++) {
        (void)dup2(fds[i], i); /* fds are all above 2 */
    }
    child_close_all();
    for (int i = 1; i < NSIG; i++) {
        (void)signal(i, SIG_DFL);
    }
    sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    (void)setsid();
    if (limits_saved) {
        (void)setrlimit(RLIMIT_CORE, &core_limit);
        (void)setrlimit(RLIMIT_NOFILE, &nofile_limit);
    }
    if (chdir(cwd) != 0) {
        child_complain(cwd, errno);
        _exit(spec->exec_failed);
    }
    if (spec->env != NULL) {
        environ = spec->env;
    }
    execvp(spec->argv[0], spec->argv);
    child_complain(spec->argv[0], errno);
    _exit(spec->exec_failed);
}

/* --- in the pool --- */

/* Keeps errno: it is why. */
static void
close_pairs(int pairs[3][2])
{
    int saved = errno;

    for (int i = 0; i < 6; i++) {
        if (pairs[i / 2][i % 2] >= 0) {
            close(pairs[i / 2][i % 2]);
        }
    }
    errno = saved;
}

/* A pipe with both ends above 2, so that the child's dup2 calls cannot
 * overwrite one that is still needed. */
static int
pipe_new(int pair[2])
{
    if (pipe2(pair, O_CLOEXEC) != 0) {
        pair[0] = pair[1] = -1;
        return CH_ERR_SYS;
    }
    for (int i = 0; i < 2; i++) {
        if (pair[i] <= 2) {
            int fd = fcntl(pair[i], F_DUPFD_CLOEXEC, 3);

            if (fd < 0) {
                return CH_ERR_SYS;
            }
            close(pair[i]);
            pair[i] = fd;
        }
    }
    return CH_OK;
}

int
ch_proc_new(struct ch_loop *loop, const struct ch_proc_spec *spec,
            ch_proc_exit_fn *on_exit, void *arg, int fds[3],
            struct ch_proc **out)
{
    int pairs[3][2] = {{-1, -1}, {-1, -1}, {-1, -1}};
    struct ch_proc *proc = calloc(1, sizeof(*proc));
    int theirs[3];
    int r = proc == NULL ? CH_ERR_NOMEM : reaper_start(loop);

    for (int i = 0; i < 3 && r == CH_OK; i++) {
        r = pipe_new(pairs[i]);
    }
    if (r != CH_OK) {
        goto out;
    }
    for (int i = 0; i < 3; i++) {
        theirs[i] = pairs[i][i == 0 ? 0 : 1];
        fds[i] = pairs[i][i == 0 ? 1 : 0];
        (void)fcntl(fds[i], F_SETFL, O_NONBLOCK);
    }
    proc->loop = loop;
    proc->on_exit = on_exit;
    proc->arg = arg;
    proc->owned = 1;
    proc->pid = fork();
    if (proc->pid == 0) {
        child_run(spec, theirs);
    }
    if (proc->pid < 0) {
        r = CH_ERR_SYS;
        goto out;
    }
    r = ch_table_put(&reaper.procs, &proc->pid, sizeof(proc->pid), proc);
    if (r != CH_OK) {
        (void)kill(proc->pid, SIGKILL);
        goto out;
    }
    for (int i = 0; i < 3; i++) {
        close(theirs[i]);
    }
    *out = proc;
    return CH_OK;
out:
    close_pairs(pairs);
    free(proc);
    return r;
}

static void
proc_signal(void *arg)
{
    struct ch_proc *proc = arg;

    proc->timer = NULL;
    if (kill(-proc->pid, proc->signal) != 0) {
        (void)kill(proc->pid, proc->signal);
    }
    if (proc->signal == SIGTERM) {
        proc->signal = SIGKILL;
        proc->timer =
            ch_loop_timer(proc->loop, PROC_KILL_MS, proc_signal, proc);
    }
}

void
ch_proc_free(struct ch_proc *proc, int grace_ms)
{
    if (proc == NULL) {
        return;
    }
    proc->owned = 0;
    if (proc->exited) {
        proc_destroy(proc);
        return;
    }
    proc->signal = SIGTERM;
    if (grace_ms == 0) {
        proc_signal(proc);
    } else {
        proc->timer = ch_loop_timer(proc->loop, grace_ms, proc_signal, proc);
    }
}
