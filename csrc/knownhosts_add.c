/*
 * knownhosts_add.c - recording a new host key, as ssh does for accept-new
 * and no: one appended line, under a lock, and not twice.
 */
#include "knownhosts.h"

#include "b64.h"
#include "hostkey.h"
#include "sha1.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static const char *
first_user_file(const struct ch_host_query *query)
{
    char **files = query->user_files;

    return files == NULL || files[0] == NULL ||
                   strcasecmp(files[0], "none") == 0
               ? NULL
               : files[0];
}

int
ch_known_hosts_can_add(const struct ch_host_query *query)
{
    return first_user_file(query) != NULL &&
           query->host[strcspn(query->host, "@?*#[]|'\"\\ \t\r\n,")] == '\0';
}

/* The directory of path, 0700 if it has to be made (one level, as ssh). */
static void
make_directory(const char *path)
{
    const char *slash = strrchr(path, '/');
    char *dir;

    if (slash == NULL || slash == path) {
        return;
    }
    dir = strndup(path, (size_t)(slash - path));
    if (dir != NULL) {
        (void)mkdir(dir, 0700);
        free(dir);
    }
}

/* "name type base64\n", with a newline before it if the file lacks one. */
static int
line_format(const struct ch_known_hosts *known, const uint8_t *blob,
            size_t len, int hash, int newline, char **line)
{
    char salt_text[CH_B64_LEN(CH_SHA1_LEN) + 1];
    char hash_text[CH_B64_LEN(CH_SHA1_LEN) + 1];
    uint8_t salt[CH_SHA1_LEN], digest[CH_SHA1_LEN];
    const char *type, *start = newline ? "\n" : "";
    size_t type_len = ch_hostkey_type(blob, len, &type);
    char *text = malloc(CH_B64_LEN(len) + 1);
    int n;

    *line = NULL;
    if (text == NULL || type_len == 0) {
        free(text);
        return text == NULL ? CH_ERR_NOMEM : CH_ERR_FORMAT;
    }
    ch_b64_encode(text, blob, len);
    if (hash && getrandom(salt, sizeof(salt), 0) == (ssize_t)sizeof(salt)) {
        ch_hmac_sha1(salt, sizeof(salt),
                     (const uint8_t *)ch_known_hosts_name(known),
                     strlen(ch_known_hosts_name(known)), digest);
        ch_b64_encode(salt_text, salt, sizeof(salt));
        ch_b64_encode(hash_text, digest, sizeof(digest));
        n = asprintf(line, "%s|1|%s|%s %.*s %s\n", start, salt_text, hash_text,
                     (int)type_len, type, text);
    } else if (hash) {
        n = -1;
    } else {
        n = asprintf(line, "%s%s %.*s %s\n", start, ch_known_hosts_name(known),
                     (int)type_len, type, text);
    }
    free(text);
    if (n < 0) {
        *line = NULL;
        return CH_ERR_NOMEM;
    }
    return CH_OK;
}

/* Under the lock: is the key there already, and does the file end well? */
static int
file_append(int fd, const struct ch_host_query *query, const char *path,
            const uint8_t *blob, size_t len, int hash)
{
    struct ch_known_hosts *known = NULL;
    char *text = NULL, *line = NULL;
    size_t n = 0;
    ssize_t wrote;
    int r = ch_known_hosts_read(fd, &text, &n);

    if (r == CH_OK) {
        r = ch_known_hosts_parse(query, path, text, n, &known);
    }
    if (r != CH_OK ||
        ch_known_hosts_check(known, blob, len, NULL, NULL) == CH_HOST_OK) {
        goto out;
    }
    r = line_format(known, blob, len, hash, n > 0 && text[n - 1] != '\n',
                    &line);
    if (r != CH_OK) {
        goto out;
    }
    n = strlen(line);
    do {
        wrote = write(fd, line, n);
    } while (wrote < 0 && errno == EINTR);
    if (wrote != (ssize_t)n) {
        r = CH_ERR_SYS;
    }
out:
    ch_known_hosts_free(known);
    free(text);
    free(line);
    return r;
}

/* Others hold the lock for a read and a write only; who has it longer keeps
 * us from recording a key, not from working. */
static int
lock_soon(int fd)
{
    struct timespec nap = {0, 2000000};

    for (int i = 0; i < 10; i++) {
        if (flock(fd, LOCK_EX | LOCK_NB) == 0) {
            return CH_OK;
        }
        (void)nanosleep(&nap, NULL);
    }
    return CH_ERR_SYS;
}

int
ch_known_hosts_add(const struct ch_host_query *query, const uint8_t *blob,
                   size_t len, int hash)
{
    const char *path = first_user_file(query);
    struct stat st;
    int fd, r = CH_ERR_SYS;

    if (path == NULL || !ch_known_hosts_can_add(query)) {
        return CH_ERR_REFUSED;
    }
    make_directory(path);
    fd =
        open(path, O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0600);
    if (fd < 0) {
        return CH_ERR_SYS;
    }
    if (fstat(fd, &st) == 0 && !S_ISREG(st.st_mode)) {
        r = CH_OK; /* /dev/null: nothing to keep */
    } else if (lock_soon(fd) == CH_OK) {
        r = file_append(fd, query, path, blob, len, hash);
    }
    close(fd);
    return r;
}
