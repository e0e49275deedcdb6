/* log.c - the pool's log file. Process-wide on purpose: every part may say
 * what it does. */
#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define LOG_LINE 2048

static const char *const level_words[] = {"error", "info", "debug"};

static int log_fd = -1;
static enum ch_log_level log_level = CH_LOG_INFO;

int
ch_log_set_level(const char *word)
{
    for (int i = CH_LOG_ERROR; i <= CH_LOG_DEBUG; i++) {
        if (strcmp(word, level_words[i]) == 0) {
            log_level = (enum ch_log_level)i;
            return CH_OK;
        }
    }
    return CH_ERR_UNSUPPORTED;
}

int
ch_log_open(const char *path)
{
    struct stat st;
    int fd;

    ch_log_close();
    if (path == NULL) {
        return CH_OK;
    }
    fd = open(path,
              O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW |
                  O_NOCTTY | O_NONBLOCK,
              0600);
    if (fd < 0) {
        return CH_ERR_SYS;
    }
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) ||
        st.st_uid != geteuid() || st.st_nlink != 1) {
        close(fd);
        return CH_ERR_REFUSED;
    }
    log_fd = fd;
    return CH_OK;
}

void
ch_log_close(void)
{
    if (log_fd >= 0) {
        close(log_fd);
    }
    log_fd = -1;
}

/* Length of the UTF-8 sequence at text if it is printable, else 0. */
static size_t
utf8_len(const uint8_t *text, size_t len)
{
    size_t n = text[0] < 0x80                       ? 1
               : text[0] >= 0xc2 && text[0] <= 0xdf ? 2
               : text[0] >= 0xe0 && text[0] <= 0xef ? 3
               : text[0] >= 0xf0 && text[0] <= 0xf4 ? 4
                                                    : 0;

    if (n == 0 || n > len || text[0] < 0x20 || text[0] == 0x7f) {
        return 0;
    }
    for (size_t i = 1; i < n; i++) {
        if ((text[i] & 0xc0) != 0x80) {
            return 0;
        }
    }
    /* C1 controls, overlong forms, surrogates, beyond U+10FFFF */
    if ((n == 2 && text[0] == 0xc2 && text[1] < 0xa0) ||
        (n == 3 && text[0] == 0xe0 && text[1] < 0xa0) ||
        (n == 3 && text[0] == 0xed && text[1] >= 0xa0) ||
        (n == 4 && text[0] == 0xf0 && text[1] < 0x90) ||
        (n == 4 && text[0] == 0xf4 && text[1] >= 0x90)) {
        return 0;
    }
    return n;
}

static char *
text_copy(char *out, size_t size, const uint8_t *text, size_t len,
          const char *keep)
{
    static const char hex[] = "0123456789abcdef";
    size_t at = 0;

    if (size == 0) {
        return out;
    }
    for (size_t i = 0; i < len;) {
        size_t n = utf8_len(text + i, len - i);

        if (n == 0 && text[i] != 0 && strchr(keep, text[i]) != NULL) {
            n = 1;
        }
        if (at + (n > 0 ? n : 4) >= size) {
            break;
        }
        if (n > 0) {
            memcpy(out + at, text + i, n);
            at += n;
            i += n;
        } else if (text[i] == '\n' || text[i] == '\t') {
            out[at++] = '\\';
            out[at++] = text[i++] == '\n' ? 'n' : 't';
        } else {
            out[at++] = '\\';
            out[at++] = 'x';
            out[at++] = hex[text[i] >> 4];
            out[at++] = hex[text[i++] & 15];
        }
    }
    out[at] = '\0';
    return out;
}

char *
ch_text_escape(char *out, size_t size, const uint8_t *text, size_t len)
{
    return text_copy(out, size, text, len, "");
}

char *
ch_text_clean(char *out, size_t size, const uint8_t *text, size_t len)
{
    return text_copy(out, size, text, len, "\n\r\t");
}

void
ch_log_at(enum ch_log_level level, const char *format, ...)
{
    char text[LOG_LINE / 2], line[LOG_LINE];
    struct timespec now;
    struct tm tm;
    size_t n;
    va_list ap;

    if (log_fd < 0 || level > log_level) {
        return;
    }
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &tm);
    n = strftime(line, sizeof(line), "%Y-%m-%dT%H:%M:%S", &tm);
    n += (size_t)snprintf(line + n, sizeof(line) - n, ".%03ldZ %ld %s ",
                          now.tv_nsec / 1000000, (long)getpid(),
                          level_words[level]);
    va_start(ap, format);
    vsnprintf(text, sizeof(text), format, ap);
    va_end(ap);
    ch_text_escape(line + n, sizeof(line) - n - 1, (uint8_t *)text,
                   strlen(text));
    n = strlen(line);
    line[n++] = '\n';
    /* A full disk loses log lines, nothing else. */
    if (write(log_fd, line, n) < 0) {
        errno = 0;
    }
}
