/*
 * facts.c - the fact cache's files and their JSON.
 *
 * Why: the built-in jsonfile cache decodes and encodes in Python and, on a
 * full disk, renames a truncated file over good data. Here a file is either
 * replaced whole or not at all, and decoded by jansson.
 *
 * The life of a write:
 *
 *     open directory -> .churten-<random> (O_EXCL, 0600) -> write all
 *         -> fchmod -> close -> rename over the old file
 *     any step fails -> unlink the temporary file, errno kept, old file kept
 *
 * What always holds:
 *  - no symbolic link is followed for the file itself, neither reading nor
 *    writing, and a fifo or device is never waited for;
 *  - a file larger than the caller's limit is not read into memory, even if
 *    it grows while it is read;
 *  - jansson is only used to parse: its writer prints other text than
 *    Python's (digits of floats, case of escapes), and files must be equal
 *    to the built-in plugin's byte by byte. py_facts.c writes;
 *  - jansson 2.14 recurses without limit in dump, equal and deep_copy, so
 *    none of them is called. Parsing stops at 2048 levels, and freeing what
 *    was parsed goes no deeper;
 *  - what jansson refuses is never called invalid here: Python's json has
 *    the last word (CH_ERR_UNSUPPORTED).
 *
 * Owner: the process that runs the play; called without the GIL, no statics.
 */
#include "facts.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#define READ_SPARE 1u /* one byte more than fstat said, to see it grow */

static int
read_all(int fd, char *data, size_t cap, size_t *len)
{
    *len = 0;
    while (*len < cap) {
        ssize_t n = read(fd, data + *len, cap - *len);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return CH_ERR_SYS;
        }
        if (n == 0) {
            return CH_OK;
        }
        *len += (size_t)n;
    }
    return CH_ERR_LIMIT; /* it grew: somebody writes in place */
}

int
ch_facts_read(const char *path, size_t limit, char **data, size_t *len)
{
    int r = CH_ERR_SYS, keep, fd;
    char *buf = NULL;
    struct stat st;

    *data = NULL;
    *len = 0;
    fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
    if (fd < 0) {
        return errno == ELOOP ? CH_ERR_REFUSED : CH_ERR_SYS;
    }
    if (fstat(fd, &st) < 0) {
        goto out;
    }
    if (!S_ISREG(st.st_mode)) {
        r = CH_ERR_REFUSED;
        goto out;
    }
    if (st.st_size < 0 || (uintmax_t)st.st_size > limit) {
        r = CH_ERR_LIMIT;
        goto out;
    }
    buf = malloc((size_t)st.st_size + READ_SPARE);
    if (buf == NULL) {
        r = CH_ERR_NOMEM;
        goto out;
    }
    r = read_all(fd, buf, (size_t)st.st_size + READ_SPARE, len);
    if (r == CH_OK) {
        *data = buf;
        buf = NULL;
    }
out:
    keep = errno;
    free(buf);
    close(fd);
    errno = keep;
    return r;
}

static int
write_all(int fd, const char *data, size_t len)
{
    while (len > 0) {
        ssize_t n = write(fd, data, len);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            if (n == 0) {
                errno = EIO;
            }
            return CH_ERR_SYS;
        }
        data += n;
        len -= (size_t)n;
    }
    return CH_OK;
}

/* Opens the directory part of path; *name is set to the rest. */
static int
open_parent(const char *path, const char **name)
{
    const char *slash = strrchr(path, '/');
    char *dir = NULL;
    int fd, keep;

    *name = slash == NULL ? path : slash + 1;
    if (**name == '\0') {
        errno = EISDIR;
        return -1;
    }
    if (slash == NULL) {
        return open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    }
    dir = strndup(path, (size_t)(slash - path) + 1);
    if (dir == NULL) {
        return -1;
    }
    fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    keep = errno;
    free(dir);
    errno = keep;
    return fd;
}

/* Creates a new file in dir; its name is written to name. */
static int
create_temp(int dir, char *name, size_t size)
{
    for (int tries = 0; tries < 16; tries++) {
        uint64_t word;
        int fd;

        if (getrandom(&word, sizeof(word), 0) != (ssize_t)sizeof(word)) {
            return -1;
        }
        snprintf(name, size, ".churten-%016llx", (unsigned long long)word);
        fd =
            openat(dir, name,
                   O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
        if (fd >= 0 || errno != EEXIST) {
            return fd;
        }
    }
    return -1;
}

int
ch_facts_write(const char *path, const void *data, size_t len, unsigned mode)
{
    int r = CH_ERR_SYS, keep, dir, fd = -1;
    const char *name;
    char temp[40] = "";

    dir = open_parent(path, &name);
    if (dir < 0) {
        return CH_ERR_SYS;
    }
    fd = create_temp(dir, temp, sizeof(temp));
    if (fd < 0) {
        temp[0] = '\0';
        goto out;
    }
    if (write_all(fd, data, len) < 0 || fchmod(fd, (mode_t)mode) < 0) {
        goto out;
    }
    r = close(fd); /* network file systems report a full disk here */
    fd = -1;
    if (r < 0 || renameat(dir, temp, dir, name) < 0) {
        r = CH_ERR_SYS;
        goto out;
    }
    temp[0] = '\0';
    r = CH_OK;
out:
    keep = errno;
    if (fd >= 0) {
        close(fd);
    }
    if (temp[0] != '\0') {
        unlinkat(dir, temp, 0);
    }
    close(dir);
    errno = keep;
    return r;
}

/* A struct ch_facts is the root's json_t and a struct ch_fact any json_t:
 * names for what the header hides. */
static json_t *
json_of(const struct ch_fact *fact)
{
    return (json_t *)(uintptr_t)fact;
}

static const struct ch_fact *
fact_of(const json_t *json)
{
    return (const struct ch_fact *)json;
}

int
ch_facts_parse(const char *data, size_t len, struct ch_facts **out)
{
    json_t *json;

    json = json_loadb(data, len, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
    *out = (struct ch_facts *)json;
    return json == NULL ? CH_ERR_UNSUPPORTED : CH_OK;
}

/* The character that stands for the escape \c, or 0. */
static char
unescaped(char c)
{
    switch (c) {
    case '"':
    case '\\':
    case '/':
        return c;
    case 'b':
        return '\b';
    case 'f':
        return '\f';
    case 'n':
        return '\n';
    case 'r':
        return '\r';
    case 't':
        return '\t';
    default:
        return 0;
    }
}

int
ch_facts_unwrap(const char *data, size_t len, const char *key, char **out,
                size_t *out_len)
{
    size_t at = strlen(key), end, n = 0;
    char *text = NULL;
    int r = CH_ERR_UNSUPPORTED;

    *out = NULL;
    if (len < at + 8 || memcmp(data, "{\"", 2) != 0 ||
        memcmp(data + 2, key, at) != 0 ||
        memcmp(data + 2 + at, "\": \"", 4) != 0 ||
        memcmp(data + len - 2, "\"}", 2) != 0) {
        return r;
    }
    at += 6;
    end = len - 2;
    text = malloc(end - at + 1);
    if (text == NULL) {
        return CH_ERR_NOMEM;
    }
    while (at < end) {
        unsigned char c = (unsigned char)data[at++];
        if (c == '\\') {
            c = at < end ? (unsigned char)unescaped(data[at++]) : 0;
        } else if (c == '"') {
            c = 0;
        } else if (c < 0x20 || c >= 0x7f) {
            c = 0;
        }
        if (c == 0) {
            goto out;
        }
        text[n++] = (char)c;
    }
    *out = text;
    *out_len = n;
    text = NULL;
    r = CH_OK;
out:
    free(text);
    return r;
}

void
ch_facts_free(struct ch_facts *facts)
{
    json_decref((json_t *)facts);
}

const struct ch_fact *
ch_facts_root(const struct ch_facts *facts)
{
    return (const struct ch_fact *)facts;
}

enum ch_fact_type
ch_fact_type(const struct ch_fact *fact)
{
    switch (json_typeof(json_of(fact))) {
    case JSON_OBJECT:
        return CH_FACT_OBJECT;
    case JSON_ARRAY:
        return CH_FACT_ARRAY;
    case JSON_STRING:
        return CH_FACT_STRING;
    case JSON_INTEGER:
        return CH_FACT_INTEGER;
    case JSON_REAL:
        return CH_FACT_REAL;
    case JSON_TRUE:
        return CH_FACT_TRUE;
    case JSON_FALSE:
        return CH_FACT_FALSE;
    case JSON_NULL:
        break;
    }
    return CH_FACT_NULL;
}

int64_t
ch_fact_integer(const struct ch_fact *fact)
{
    return json_integer_value(json_of(fact));
}

double
ch_fact_real(const struct ch_fact *fact)
{
    return json_real_value(json_of(fact));
}

const char *
ch_fact_string(const struct ch_fact *fact, size_t *len)
{
    *len = json_string_length(json_of(fact));
    return json_string_value(json_of(fact));
}

size_t
ch_fact_size(const struct ch_fact *fact)
{
    if (ch_fact_type(fact) == CH_FACT_ARRAY) {
        return json_array_size(json_of(fact));
    }
    return json_object_size(json_of(fact));
}

const struct ch_fact *
ch_fact_item(const struct ch_fact *fact, size_t index)
{
    return fact_of(json_array_get(json_of(fact), index));
}

const struct ch_fact *
ch_fact_member(const struct ch_fact *fact, const char *key)
{
    return fact_of(json_object_get(json_of(fact), key));
}

void
ch_fact_iter_init(struct ch_fact_iter *iter, const struct ch_fact *object)
{
    iter->object = object;
    iter->at = json_object_iter(json_of(object));
}

int
ch_fact_iter_next(struct ch_fact_iter *iter, const char **key,
                  const struct ch_fact **value)
{
    if (iter->at == NULL) {
        return 0;
    }
    *key = json_object_iter_key(iter->at);
    *value = fact_of(json_object_iter_value(iter->at));
    iter->at = json_object_iter_next(json_of(iter->object), iter->at);
    return 1;
}
