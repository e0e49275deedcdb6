/*
 * pool_main.c - the executable churten-pool: arguments, socket, daemon.
 *
 * How the socket comes to be (as OpenSSH's mux does it): the directory must
 * be ours alone, checked by lstat; a lock file in it is held from here to
 * the end of the process, so only one pool of a version can serve or clean
 * up; a socket file that is there although the lock is free was left by a
 * killed pool, and is removed only after connect() said ECONNREFUSED; ours
 * is bound under umask 0177 to a temporary name, listens, and is then
 * linked into place, so nobody ever meets a socket that does not answer.
 *
 * The process forks after that, so whoever started it sees the failure, or
 * the ready byte. No core dumps, not traceable: it holds passwords and
 * session keys.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "link.h"
#include "log.h"
#include "pool.h"
#include "proc.h"

#define DEFAULT_IDLE_MS 60000
#define SOCKET_NAME     "pool-" CH_VERSION ".sock"
#define LOCK_NAME       "pool-" CH_VERSION ".lock"
#define LOCK_TRIES      40 /* x 50 ms: another pool is starting or leaving */

struct options {
    const char *dir;
    const char *log;
    int64_t idle_ms;
    int ready_fd;
    int foreground;
};

static struct {
    struct ch_loop *loop;
    char path[PATH_MAX];
} self;

static void die(const char *format, ...) CH_PRINTF(1, 2)
    __attribute__((noreturn));

static void
die(const char *format, ...)
{
    va_list ap;

    va_start(ap, format);
    fputs("churten-pool: ", stderr);
    vfprintf(stderr, format, ap);
    fputc('\n', stderr);
    va_end(ap);
    exit(1);
}

static void
usage(FILE *out)
{
    fputs("usage: churten-pool --dir DIR [--idle-ms N] [--log FILE] "
          "[--log-level error|info|debug]\n"
          "                    [--ready-fd N] [--foreground]\n"
          "Keeps SSH sessions for churten; normally started by it.\n",
          out);
}

static long
number(const char *text, long most)
{
    char *end = NULL;
    long value;

    errno = 0;
    value = strtol(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || value < 0 ||
        value > most) {
        die("not a number in range: %s", text);
    }
    return value;
}

static void
options_read(struct options *o, int argc, char **argv)
{
    static const struct option known[] = {
        {"dir", required_argument, NULL, 'd'},
        {"idle-ms", required_argument, NULL, 'i'},
        {"log", required_argument, NULL, 'l'},
        {"log-level", required_argument, NULL, 'L'},
        {"ready-fd", required_argument, NULL, 'r'},
        {"foreground", no_argument, NULL, 'f'},
        {"version", no_argument, NULL, 'V'},
        {"libssh", no_argument, NULL, 'S'},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    int c;

    while ((c = getopt_long(argc, argv, "", known, NULL)) != -1) {
        switch (c) {
        case 'd':
            o->dir = optarg;
            break;
        case 'i':
            o->idle_ms = number(optarg, 7 * 86400000L);
            break;
        case 'l':
            o->log = optarg;
            break;
        case 'L':
            if (ch_log_set_level(optarg) != CH_OK) {
                die("the level of the log is error, info or debug, not %s",
                    optarg);
            }
            break;
        case 'r':
            o->ready_fd = (int)number(optarg, 1 << 20);
            break;
        case 'f':
            o->foreground = 1;
            break;
        case 'V':
            puts(CH_VERSION);
            exit(0);
        case 'S':
            puts(ch_link_library());
            exit(0);
        case 'h':
            usage(stdout);
            exit(0);
        default:
            usage(stderr);
            exit(2);
        }
    }
    if (o->dir == NULL || o->dir[0] != '/' || optind != argc) {
        usage(stderr);
        die("--dir needs an absolute path");
    }
}

/* --- the directory and the socket --- */

static void
dir_check(const char *dir)
{
    struct stat st;

    if (mkdir(dir, 0700) != 0 && errno != EEXIST) {
        die("cannot make %s: %s", dir, strerror(errno));
    }
    if (lstat(dir, &st) != 0) {
        die("cannot look at %s: %s", dir, strerror(errno));
    }
    if (!S_ISDIR(st.st_mode)) {
        die("%s is not a directory (links are not followed)", dir);
    }
    if (st.st_uid != geteuid()) {
        die("%s belongs to another user", dir);
    }
    if ((st.st_mode & 077) != 0) {
        die("%s is open to other users (mode %03o, must be 700)", dir,
            (unsigned)(st.st_mode & 0777));
    }
}

static void
address_make(struct sockaddr_un *sa, const char *path)
{
    memset(sa, 0, sizeof(*sa));
    sa->sun_family = AF_UNIX;
    if (strlen(path) >= sizeof(sa->sun_path)) {
        die("%s is too long for a socket path", path);
    }
    memcpy(sa->sun_path, path, strlen(path) + 1);
}

/* 1: a pool answers; 0: nobody does and the file may be removed. */
static int
socket_answers(const char *path)
{
    struct sockaddr_un sa;
    struct stat st;
    int fd, error;

    if (lstat(path, &st) != 0) {
        if (errno == ENOENT) {
            return 0;
        }
        die("cannot look at %s: %s", path, strerror(errno));
    }
    if (!S_ISSOCK(st.st_mode) || st.st_uid != geteuid()) {
        die("%s is in the way and is not a socket of ours", path);
    }
    address_make(&sa, path);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        die("cannot make a socket: %s", strerror(errno));
    }
    error = connect(fd, (struct sockaddr *)&sa, sizeof(sa)) == 0 ? 0 : errno;
    close(fd);
    if (error == 0 || error == EAGAIN) {
        return 1;
    }
    if (error != ECONNREFUSED) {
        die("cannot tell whether %s is in use: %s", path, strerror(error));
    }
    if (unlink(path) != 0 && errno != ENOENT) {
        die("cannot remove the stale %s: %s", path, strerror(errno));
    }
    return 0;
}

/* Holds the lock for good, or finds that a pool serves already (-1). The
 * file is never removed: that would let two hold "the" lock. */
static int
lock_take(const char *dir, const char *path)
{
    char name[PATH_MAX];
    int fd;

    snprintf(name, sizeof(name), "%s/%s", dir, LOCK_NAME);
    fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) {
        die("cannot open %s: %s", name, strerror(errno));
    }
    for (int i = 0; i < LOCK_TRIES; i++) {
        struct timespec pause = {0, 50 * 1000000};
        struct stat st;

        if (flock(fd, LOCK_EX | LOCK_NB) == 0) {
            return fd;
        }
        /* The holder serves, or is about to, or is about to leave. */
        if (lstat(path, &st) == 0) {
            struct sockaddr_un sa;
            int probe =
                socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
            int ok;

            address_make(&sa, path);
            ok = probe >= 0 &&
                 (connect(probe, (struct sockaddr *)&sa, sizeof(sa)) == 0 ||
                  errno == EAGAIN);
            close(probe);
            if (ok) {
                close(fd);
                return -1;
            }
        }
        nanosleep(&pause, NULL);
    }
    die("another pool holds %s but does not answer", name);
}

static int
socket_listen(const char *dir, const char *path)
{
    struct sockaddr_un sa;
    char temp[PATH_MAX];
    mode_t mask;
    int fd, bound;

    snprintf(temp, sizeof(temp), "%s/.pool.%ld", dir, (long)getpid());
    address_make(&sa, temp);
    (void)unlink(temp);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        die("cannot make a socket: %s", strerror(errno));
    }
    mask = umask(0177);
    bound = bind(fd, (struct sockaddr *)&sa, sizeof(sa));
    umask(mask);
    if (bound != 0) {
        die("cannot bind %s: %s", temp, strerror(errno));
    }
    if (listen(fd, 128) != 0 || link(temp, path) != 0) {
        int error = errno;

        (void)unlink(temp);
        die("cannot serve %s: %s", path, strerror(error));
    }
    (void)unlink(temp);
    return fd;
}

/* --- the process --- */

static void
harden(void)
{
    struct rlimit core;

    ch_proc_limits_save();
    if (getrlimit(RLIMIT_CORE, &core) == 0) {
        core.rlim_cur = 0;
        (void)setrlimit(RLIMIT_CORE, &core);
    }
#ifndef __SANITIZE_ADDRESS__ /* its leak check must trace us */
    (void)prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
#endif
    (void)signal(SIGPIPE, SIG_IGN);
    (void)signal(SIGHUP, SIG_IGN);
}

/* As many descriptors as allowed: one or more per session. */
static void
descriptors_raise(void)
{
    struct rlimit nofile;

    if (getrlimit(RLIMIT_NOFILE, &nofile) == 0 &&
        nofile.rlim_cur < nofile.rlim_max) {
        nofile.rlim_cur = nofile.rlim_max > 65536 ? 65536 : nofile.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &nofile);
    }
}

static void
ready_tell(int *fd)
{
    if (*fd >= 0) {
        (void)!write(*fd, "R", 1);
        close(*fd);
        *fd = -1;
    }
}

/* Leaves the caller's terminal, directory and descriptors. The lock goes
 * along, because flock belongs to the open file. */
static void
daemonise(int *ready_fd)
{
    int null;
    pid_t pid = fork();

    if (pid < 0) {
        die("cannot fork: %s", strerror(errno));
    }
    if (pid > 0) {
        _exit(0);
    }
    (void)setsid();
    null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null < 0 || chdir("/") != 0) {
        die("cannot become a daemon: %s", strerror(errno));
    }
    ready_tell(ready_fd);
    for (int fd = 0; fd < 3; fd++) {
        (void)dup2(null, fd);
    }
    if (null > 2) {
        close(null);
    }
}

/* Descriptors of whoever started us are not ours to keep open. */
static void
descriptors_close(int but)
{
#ifdef SYS_close_range
    if ((but <= 3 ||
         syscall(SYS_close_range, 3u, (unsigned)but - 1, 0u) == 0) &&
        syscall(SYS_close_range, but < 3 ? 3u : (unsigned)but + 1, ~0u, 0u) ==
            0) {
        return;
    }
#endif
    for (int fd = 3; fd < 65536; fd++) {
        if (fd != but) {
            close(fd);
        }
    }
}

static void
on_end(void *arg)
{
    (void)arg;
    (void)unlink(self.path);
    ch_loop_stop(self.loop);
}

static void
loop_stop(void *arg)
{
    ch_loop_stop(arg);
}

/* TERM and INT end the pool as STOP does. */
static void
on_signal(void *arg, int fd, unsigned events)
{
    struct signalfd_siginfo info;

    (void)events;
    while (read(fd, &info, sizeof(info)) > 0) {
        ch_log("signal %u", info.ssi_signo);
        ch_pool_stop(arg);
    }
}

static int
signals_watch(struct ch_pool *pool, int *fd)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    if (sigprocmask(SIG_BLOCK, &set, NULL) != 0) {
        return CH_ERR_SYS;
    }
    *fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    return *fd < 0
               ? CH_ERR_SYS
               : ch_loop_watch(self.loop, *fd, CH_LOOP_READ, on_signal, pool);
}

/* The socket is gone: a new pool may serve while we see our children off. */
static int
leave(struct ch_pool *pool, int signal_fd, int lock_fd)
{
    int r;

    ch_loop_unwatch(self.loop, signal_fd);
    ch_pool_free(pool);
    close(lock_fd);
    /* One more turn gives the memory back. */
    r = ch_loop_defer(self.loop, loop_stop, self.loop);
    r = r == CH_OK ? ch_loop_run(self.loop) : r;
    return r == CH_OK ? ch_proc_drain(self.loop) : r;
}

static int
serve(int listen_fd, int lock_fd, const struct options *o)
{
    struct ch_pool *pool;
    int signal_fd = -1;
    int r = CH_ERR_NOMEM;

    self.loop = ch_loop_new();
    if (self.loop == NULL) {
        return r;
    }
    pool = ch_pool_new(self.loop, listen_fd, o->idle_ms, on_end, NULL);
    if (pool != NULL) {
        r = signals_watch(pool, &signal_fd);
        r = r == CH_OK ? ch_loop_run(self.loop) : r;
        r = r == CH_OK ? leave(pool, signal_fd, lock_fd) : r;
    }
    ch_loop_free(self.loop);
    if (signal_fd >= 0) {
        close(signal_fd);
    }
    return r;
}

int
main(int argc, char **argv)
{
    struct options o = {.idle_ms = DEFAULT_IDLE_MS, .ready_fd = -1};
    int lock_fd, listen_fd, r;

    options_read(&o, argc, argv);
    descriptors_close(o.ready_fd);
    if (o.ready_fd >= 0 && fcntl(o.ready_fd, F_SETFD, FD_CLOEXEC) != 0) {
        die("descriptor %d is not open", o.ready_fd);
    }
    harden();
    dir_check(o.dir);
    if ((size_t)snprintf(self.path, sizeof(self.path), "%s/%s", o.dir,
                         SOCKET_NAME) >= sizeof(self.path)) {
        die("%s is too long", o.dir);
    }
    r = ch_log_open(o.log);
    if (r != CH_OK) {
        die("cannot write the log %s: %s", o.log,
            r == CH_ERR_SYS ? strerror(errno) : "not a file of ours");
    }
    lock_fd = lock_take(o.dir, self.path);
    if (lock_fd < 0 || socket_answers(self.path)) {
        ready_tell(&o.ready_fd);
        return 0;
    }
    listen_fd = socket_listen(o.dir, self.path);
    descriptors_raise();
    if (o.foreground) {
        ready_tell(&o.ready_fd);
    } else {
        daemonise(&o.ready_fd);
    }
    ch_log("pool " CH_VERSION " serves %s", self.path);
    r = serve(listen_fd, lock_fd, &o);
    ch_log("pool ends: %s", ch_strerror(r));
    ch_log_close();
    return r == CH_OK ? 0 : 1;
}
