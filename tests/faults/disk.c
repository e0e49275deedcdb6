/*
 * disk.c - a bad disk for tests, to be preloaded: calls on files below
 * $CH_DISK fail with the number in $CH_DISK_ERRNO, each with the chance of
 * one in $CH_DISK_ONE_IN (1: always).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static int
fails(int fd)
{
    static unsigned seed;
    const char *top = getenv("CH_DISK"), *why = getenv("CH_DISK_ERRNO");
    const char *one_in = getenv("CH_DISK_ONE_IN");
    char link[64], name[4096];
    ssize_t n;

    if (top == NULL || why == NULL || one_in == NULL) {
        return 0;
    }
    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    n = readlink(link, name, sizeof(name) - 1);
    name[n < 0 ? 0 : n] = '\0';
    if (strncmp(name, top, strlen(top)) != 0) {
        return 0;
    }
    if (seed == 0) {
        seed = (unsigned)getpid();
    }
    if (rand_r(&seed) % (unsigned)atoi(one_in) != 0) {
        return 0;
    }
    errno = atoi(why);
    return 1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t
write(int fd, const void *data, size_t n)
{
    return fails(fd) ? -1 : REAL(write)(fd, data, n);
}

ssize_t
pwrite(int fd, const void *data, size_t n, off_t at)
{
    return fails(fd) ? -1 : REAL(pwrite)(fd, data, n, at);
}

ssize_t
pwrite64(int fd, const void *data, size_t n, off64_t at)
{
    return fails(fd) ? -1 : REAL(pwrite64)(fd, data, n, at);
}

ssize_t
writev(int fd, const struct iovec *parts, int n)
{
    return fails(fd) ? -1 : REAL(writev)(fd, parts, n);
}

int
fsync(int fd)
{
    return fails(fd) ? -1 : REAL(fsync)(fd);
}

int
fdatasync(int fd)
{
    return fails(fd) ? -1 : REAL(fdatasync)(fd);
}

int
ftruncate(int fd, off_t size)
{
    return fails(fd) ? -1 : REAL(ftruncate)(fd, size);
}
