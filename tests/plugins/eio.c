/*
 * eio.c - a bad disk for tests, to be preloaded: while the file named by
 * CHURTEN_EIO exists, the call it names ("write", "close" or "rename") fails
 * for files of the fact cache.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int
bad(const char *call, int fd)
{
    const char *path = getenv("CHURTEN_EIO");
    char link[64], name[4096], text[16] = "";
    FILE *file = path == NULL ? NULL : fopen(path, "re");
    ssize_t n;

    if (file == NULL) {
        return 0;
    }
    if (fgets(text, sizeof(text), file) == NULL) {
        text[0] = '\0';
    }
    fclose(file);
    if (strcmp(text, call) != 0) {
        return 0;
    }
    if (fd < 0) {
        return 1;
    }
    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    n = readlink(link, name, sizeof(name) - 1);
    name[n < 0 ? 0 : n] = '\0';
    return strstr(name, "/.churten-") != NULL;
}

ssize_t
write(int fd, const void *data, size_t n)
{
    ssize_t (*real)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");

    if (bad("write", fd)) {
        errno = EIO;
        return -1;
    }
    return real(fd, data, n);
}

int
close(int fd)
{
    int (*real)(int) = dlsym(RTLD_NEXT, "close");

    if (bad("close", fd)) {
        real(fd);
        errno = EIO;
        return -1;
    }
    return real(fd);
}

int
renameat(int old, const char *from, int new, const char *to)
{
    int (*real)(int, const char *, int, const char *) =
        dlsym(RTLD_NEXT, "renameat");

    if (strncmp(from, ".churten-", 9) == 0 && bad("rename", -1)) {
        errno = EIO;
        return -1;
    }
    return real(old, from, new, to);
}
