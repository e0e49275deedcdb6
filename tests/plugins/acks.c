/*
 * acks.c - to be preloaded: writes a byte to the file CHURTEN_ACKS for each
 * time that a socket is told to acknowledge at once.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

typedef int set_fn(int, int, int, const void *, socklen_t);

int
setsockopt(int fd, int level, int name, const void *value, socklen_t size)
{
    set_fn *real = (set_fn *)dlsym(RTLD_NEXT, "setsockopt");

    if (level == IPPROTO_TCP && name == TCP_QUICKACK) {
        int out = open(getenv("CHURTEN_ACKS"), O_WRONLY | O_APPEND | O_CLOEXEC);

        if (out >= 0) {
            (void)!write(out, "a", 1);
            (void)close(out);
        }
    }
    return real(fd, level, name, value, size);
}
