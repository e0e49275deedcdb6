/*
 * knownhosts.c - why not libssh's verdict: it reads only the first user
 * file, skips @revoked and @cert-authority lines, knows no HostKeyAlias and
 * answers OK to a changed key when checking is off. This file answers as
 * OpenSSH's client does (hostfile.c and check_host_key() there are the
 * rules), from the same files.
 *
 * A query names the files and the host. Loading keeps only the lines whose
 * host part matches one of at most two names:
 *
 *   the name      host, [host]:port, or the alias     all verdicts
 *   the bare name host, when port is not 22 and       where the name is
 *                 there is no alias                   silent; not "changed"
 *
 * What always holds: an entry has a well-formed key of a type known to
 * OpenSSH; everything else in a file (comments, damaged lines, future key
 * types, lines over 64 KiB) is as if it were not there. A revoked key is
 * revoked whatever else is listed. Any listed key that is not the offered
 * one makes the host CHANGED, also one of another type, as in OpenSSH: the
 * key exchange therefore asks for known types first (ch_known_hosts_order).
 * Ownership: entries own their bytes; answers borrow from them.
 */
#include "knownhosts.h"

#include "b64.h"
#include "hostkey.h"
#include "sha1.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#define LINE_MAX_BYTES (64u * 1024u)
#define FILE_MAX_BYTES (64u * 1024u * 1024u)
#define BLOB_MAX       (16u * 1024u)
#define PATTERN_MAX    1023u

enum marker { MARK_NONE, MARK_AUTHORITY, MARK_REVOKED };

struct entry {
    enum marker marker;
    int bare; /* matched by the bare name only */
    uint8_t *blob;
    size_t len;
    char *file;
    unsigned long line;
};

struct ch_known_hosts {
    char *name; /* as filed */
    char *bare; /* NULL if there is none */
    struct entry *entries;
    size_t n, cap;
};

/* --- names and patterns --- */

/* Glob with * and ?, linear in pattern times name. Case of the pattern is
 * ignored; name is lower case. */
static int
glob_match(const char *name, const char *pattern, size_t len)
{
    const char *end = pattern + len, *star = NULL, *retry = NULL;

    while (*name != '\0') {
        if (pattern < end && *pattern == '*') {
            star = ++pattern;
            retry = name;
        } else if (pattern < end &&
                   (*pattern == '?' ||
                    tolower((unsigned char)*pattern) == *name)) {
            pattern++;
            name++;
        } else if (star != NULL) {
            pattern = star;
            name = ++retry;
        } else {
            return 0;
        }
    }
    while (pattern < end && *pattern == '*') {
        pattern++;
    }
    return pattern == end;
}

/* A comma list of globs; a match of one with ! in front beats all others. */
static int
list_match(const char *name, const char *list, size_t len)
{
    int matched = 0;

    while (len > 0) {
        const char *comma = memchr(list, ',', len);
        size_t n = comma == NULL ? len : (size_t)(comma - list);
        int negated = n > 0 && list[0] == '!';
        size_t skip = negated ? 1 : 0;

        if (n - skip > PATTERN_MAX) {
            return 0;
        }
        if (glob_match(name, list + skip, n - skip)) {
            if (negated) {
                return 0;
            }
            matched = 1;
        }
        n += comma == NULL ? 0 : 1;
        list += n;
        len -= n;
    }
    return matched;
}

/* hosts is |1|salt|hash: is that the hash of name? */
static int
hashed_match(const char *name, const char *hosts, size_t len)
{
    uint8_t salt[CH_SHA1_LEN], want[CH_SHA1_LEN], have[CH_SHA1_LEN];
    const char *bar;
    size_t n;

    if (len < 3 || memcmp(hosts, "|1|", 3) != 0) {
        return 0;
    }
    hosts += 3;
    len -= 3;
    bar = memchr(hosts, '|', len);
    if (bar == NULL ||
        ch_b64_decode(hosts, (size_t)(bar - hosts), salt, sizeof(salt), &n) !=
            CH_OK ||
        n != sizeof(salt)) {
        return 0;
    }
    len -= (size_t)(bar + 1 - hosts);
    if (ch_b64_decode(bar + 1, len, want, sizeof(want), &n) != CH_OK ||
        n != sizeof(want)) {
        return 0;
    }
    ch_hmac_sha1(salt, sizeof(salt), (const uint8_t *)name, strlen(name),
                 have);
    return memcmp(want, have, sizeof(want)) == 0;
}

static int
hosts_match(const char *name, const char *hosts, size_t len)
{
    return len > 0 && hosts[0] == '|' ? hashed_match(name, hosts, len)
                                      : list_match(name, hosts, len);
}

static char *
lower_copy(const char *text)
{
    char *copy = strdup(text);

    for (char *p = copy; p != NULL && *p != '\0'; p++) {
        *p = (char)tolower((unsigned char)*p);
    }
    return copy;
}

static int
names_make(struct ch_known_hosts *known, const struct ch_host_query *query)
{
    char *host = lower_copy(query->alias != NULL ? query->alias : query->host);
    int r = CH_ERR_NOMEM;

    if (host == NULL) {
        return r;
    }
    if (query->alias != NULL || query->port == 0 || query->port == 22) {
        known->name = host;
        return CH_OK;
    }
    known->bare = host;
    if (asprintf(&known->name, "[%s]:%d", host, query->port) < 0) {
        known->name = NULL;
        return r;
    }
    return CH_OK;
}

/* --- one line --- */

/* Cuts the next word (up to blank or tab) off *at. */
static size_t
word_next(const char **at, const char *end, const char **word)
{
    const char *p = *at;

    while (p < end && (*p == ' ' || *p == '\t')) {
        p++;
    }
    *word = p;
    while (p < end && *p != ' ' && *p != '\t') {
        p++;
    }
    *at = p;
    return (size_t)(p - *word);
}

static int
entry_add(struct ch_known_hosts *known, struct entry *new, const char *file)
{
    struct entry *grown;
    size_t cap;

    if (known->n == known->cap) {
        cap = known->cap == 0 ? 8 : known->cap * 2;
        grown = realloc(known->entries, cap * sizeof(*grown));
        if (grown == NULL) {
            return CH_ERR_NOMEM;
        }
        known->entries = grown;
        known->cap = cap;
    }
    new->file = strdup(file);
    if (new->file == NULL) {
        return CH_ERR_NOMEM;
    }
    known->entries[known->n++] = *new;
    return CH_OK;
}

/* Reads "type base64 ..." into new->blob (owned by new, also on error). */
static int
key_read(const char *at, const char *end, struct entry *new)
{
    const char *type, *text, *inner;
    size_t type_len = word_next(&at, end, &type);
    size_t text_len = word_next(&at, end, &text);
    size_t room = text_len / 4 * 3;

    if (!ch_hostkey_type_is_known(type, type_len) || room == 0 ||
        room > BLOB_MAX) {
        return CH_ERR_FORMAT;
    }
    new->blob = malloc(room);
    if (new->blob == NULL) {
        return CH_ERR_NOMEM;
    }
    if (ch_b64_decode(text, text_len, new->blob, room, &new->len) != CH_OK ||
        ch_hostkey_type(new->blob, new->len, &inner) != type_len ||
        memcmp(inner, type, type_len) != 0) {
        return CH_ERR_FORMAT;
    }
    return CH_OK;
}

static int
marker_read(const char *word, size_t len, enum marker *marker)
{
    static const char authority[] = "@cert-authority", revoked[] = "@revoked";

    if (len == sizeof(authority) - 1 && memcmp(word, authority, len) == 0) {
        *marker = MARK_AUTHORITY;
    } else if (len == sizeof(revoked) - 1 && memcmp(word, revoked, len) == 0) {
        *marker = MARK_REVOKED;
    } else {
        return CH_ERR_FORMAT;
    }
    return CH_OK;
}

/* CH_OK also for a line that is not for us; CH_ERR_NOMEM alone is an error. */
static int
line_read(struct ch_known_hosts *known, const char *file, unsigned long number,
          const char *line, size_t len)
{
    const char *at = line, *end = line + strnlen(line, len), *hosts;
    struct entry new = {.line = number};
    size_t hosts_len;
    int r;

    if (end > line && end[-1] == '\r') {
        end--;
    }
    hosts_len = word_next(&at, end, &hosts);
    if (hosts_len == 0 || hosts[0] == '#') {
        return CH_OK;
    }
    if (hosts[0] == '@') {
        if (marker_read(hosts, hosts_len, &new.marker) != CH_OK) {
            return CH_OK;
        }
        hosts_len = word_next(&at, end, &hosts);
    }
    if (!hosts_match(known->name, hosts, hosts_len)) {
        if (known->bare == NULL ||
            !hosts_match(known->bare, hosts, hosts_len)) {
            return CH_OK;
        }
        new.bare = 1;
    }
    r = key_read(at, end, &new);
    if (r == CH_OK) {
        r = entry_add(known, &new, file);
    }
    if (r != CH_OK) {
        free(new.blob);
    }
    return r == CH_ERR_NOMEM ? r : CH_OK;
}

static int
text_read(struct ch_known_hosts *known, const char *file, const char *text,
          size_t len)
{
    unsigned long number = 0;
    int r = CH_OK;

    while (len > 0 && r == CH_OK) {
        const char *newline = memchr(text, '\n', len);
        size_t n = newline == NULL ? len : (size_t)(newline - text);

        number++;
        if (n <= LINE_MAX_BYTES) {
            r = line_read(known, file, number, text, n);
        }
        n += newline == NULL ? 0 : 1;
        text += n;
        len -= n;
    }
    return r;
}

/* --- files --- */

int
ch_known_hosts_read(int fd, char **text, size_t *len)
{
    size_t cap = 0;

    for (;;) {
        ssize_t n;

        if (*len == cap) {
            char *grown;

            cap = cap == 0 ? 16 * 1024 : cap * 2;
            grown = cap > FILE_MAX_BYTES ? NULL : realloc(*text, cap);
            if (grown == NULL) {
                return CH_ERR_NOMEM;
            }
            *text = grown;
        }
        n = read(fd, *text + *len, cap - *len);
        if (n == 0) {
            return CH_OK;
        }
        if (n > 0) {
            *len += (size_t)n;
        } else if (errno != EINTR) {
            return CH_ERR_SYS;
        }
    }
}

static int
file_read(struct ch_known_hosts *known, const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    struct stat st;
    char *text = NULL;
    size_t len = 0;
    int r = CH_OK;

    if (fd < 0) {
        return CH_OK;
    }
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        goto out;
    }
    r = ch_known_hosts_read(fd, &text, &len);
    if (r == CH_OK) {
        r = text_read(known, path, text, len);
    } else if (r == CH_ERR_SYS) {
        r = CH_OK;
    }
out:
    free(text);
    close(fd);
    return r;
}

static int
files_read(struct ch_known_hosts *known, char **files)
{
    int r = CH_OK;

    for (; files != NULL && *files != NULL && r == CH_OK; files++) {
        if (strcasecmp(*files, "none") != 0) {
            r = file_read(known, *files);
        }
    }
    return r;
}

static struct ch_known_hosts *
known_new(const struct ch_host_query *query)
{
    struct ch_known_hosts *known = calloc(1, sizeof(*known));

    if (known != NULL && names_make(known, query) != CH_OK) {
        ch_known_hosts_free(known);
        known = NULL;
    }
    return known;
}

int
ch_known_hosts_load(const struct ch_host_query *query,
                    struct ch_known_hosts **out)
{
    struct ch_known_hosts *known = known_new(query);
    int r = known == NULL ? CH_ERR_NOMEM : CH_OK;

    *out = NULL;
    if (r == CH_OK) {
        r = files_read(known, query->user_files);
    }
    if (r == CH_OK) {
        r = files_read(known, query->global_files);
    }
    if (r == CH_OK) {
        *out = known;
        known = NULL;
    }
    ch_known_hosts_free(known);
    return r;
}

int
ch_known_hosts_parse(const struct ch_host_query *query, const char *file,
                     const char *text, size_t len, struct ch_known_hosts **out)
{
    int r;

    *out = known_new(query);
    if (*out == NULL) {
        return CH_ERR_NOMEM;
    }
    r = text_read(*out, file, text, len);
    if (r != CH_OK) {
        ch_known_hosts_free(*out);
        *out = NULL;
    }
    return r;
}

void
ch_known_hosts_free(struct ch_known_hosts *known)
{
    if (known == NULL) {
        return;
    }
    for (size_t i = 0; i < known->n; i++) {
        free(known->entries[i].blob);
        free(known->entries[i].file);
    }
    free(known->entries);
    free(known->name);
    free(known->bare);
    free(known);
}

/* --- questions --- */

const char *
ch_known_hosts_name(const struct ch_known_hosts *known)
{
    return known->name;
}

int
ch_known_hosts_has_authority(const struct ch_known_hosts *known)
{
    for (size_t i = 0; i < known->n; i++) {
        if (known->entries[i].marker == MARK_AUTHORITY) {
            return 1;
        }
    }
    return 0;
}

/* What one entry says about the key; higher beats lower. */
enum say { SAY_NOTHING, SAY_CHANGED, SAY_OK, SAY_AUTHORITY, SAY_REVOKED };

static enum say
entry_says(const struct entry *e, const uint8_t *blob, size_t len)
{
    int same = e->len == len && memcmp(e->blob, blob, len) == 0;

    if (e->marker == MARK_REVOKED) {
        return same ? SAY_REVOKED : SAY_NOTHING;
    }
    if (e->marker == MARK_AUTHORITY) {
        return SAY_AUTHORITY;
    }
    if (same) {
        return SAY_OK;
    }
    return e->bare ? SAY_NOTHING : SAY_CHANGED;
}

enum ch_host_verdict
ch_known_hosts_check(const struct ch_known_hosts *known, const uint8_t *blob,
                     size_t len, const char **file, unsigned long *line)
{
    static const enum ch_host_verdict verdicts[] = {
        [SAY_NOTHING] = CH_HOST_NEW,
        [SAY_CHANGED] = CH_HOST_CHANGED,
        [SAY_OK] = CH_HOST_OK,
        [SAY_REVOKED] = CH_HOST_REVOKED,
        [SAY_AUTHORITY] = CH_HOST_UNSUPPORTED,
    };
    enum say best = SAY_NOTHING, best_bare = SAY_NOTHING;
    const struct entry *by = NULL;

    for (size_t i = 0; i < known->n; i++) {
        const struct entry *e = &known->entries[i];
        enum say say = entry_says(e, blob, len);

        if (e->bare) {
            /* The bare name counts only where the full one is silent, but
             * a revoked key is bad under any name. */
            best_bare = say > best_bare ? say : best_bare;
        } else if (say > best) {
            best = say;
            by = e;
        }
    }
    if (best == SAY_NOTHING || best_bare == SAY_REVOKED) {
        best = best_bare;
        by = NULL;
    }
    if (file != NULL) {
        *file = by == NULL ? NULL : by->file;
    }
    if (line != NULL) {
        *line = by == NULL ? 0 : by->line;
    }
    return verdicts[best];
}

enum ch_host_action
ch_known_hosts_action(enum ch_host_verdict verdict, const char *mode,
                      int can_add)
{
    int no = mode != NULL && strcmp(mode, "no") == 0;
    int add = no || (mode != NULL && strcmp(mode, "accept-new") == 0);

    switch (verdict) {
    case CH_HOST_OK:
        return CH_HOST_ACCEPT;
    case CH_HOST_UNSUPPORTED:
        return CH_HOST_FALL_BACK;
    case CH_HOST_NEW:
        return add && can_add ? CH_HOST_ADD : CH_HOST_REFUSE;
    case CH_HOST_CHANGED:
    case CH_HOST_REVOKED:
    default:
        return no ? CH_HOST_UNSAFE : CH_HOST_REFUSE;
    }
}

static int
has_type(const struct ch_known_hosts *known, const char *type)
{
    for (size_t i = 0; type != NULL && i < known->n; i++) {
        const struct entry *e = &known->entries[i];
        const char *inner;
        size_t n = ch_hostkey_type(e->blob, e->len, &inner);

        if (!e->bare && e->marker == MARK_NONE && strlen(type) == n &&
            memcmp(type, inner, n) == 0) {
            return 1;
        }
    }
    return 0;
}

/* Appends to out (big enough) those algorithms whose type is known (want 1)
 * or not (want 0). */
static void
order_append(const struct ch_known_hosts *known, const char *list, int want,
             char *out)
{
    const char *start = out;

    while (*list != '\0') {
        size_t n = strcspn(list, ",");

        if (n > 0 &&
            has_type(known, ch_hostkey_of_algorithm(list, n)) == want) {
            out += strlen(out);
            if (out != start) {
                *out++ = ',';
            }
            memcpy(out, list, n); /* the rest of out is zero */
        }
        list += n + (list[n] == ',' ? 1 : 0);
    }
}

int
ch_known_hosts_order(const struct ch_known_hosts *known,
                     const char *algorithms, char **out)
{
    size_t first = strcspn(algorithms, ",");

    *out = calloc(1, strlen(algorithms) + 2);
    if (*out == NULL) {
        return CH_ERR_NOMEM;
    }
    if (has_type(known, ch_hostkey_of_algorithm(algorithms, first))) {
        /* the best one is known already */
        memcpy(*out, algorithms, strlen(algorithms) + 1);
        return CH_OK;
    }
    order_append(known, algorithms, 1, *out);
    order_append(known, algorithms, 0, *out);
    return CH_OK;
}
