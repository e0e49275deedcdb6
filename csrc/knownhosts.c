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
#include "sha1.h"

#include <ctype.h>
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

#define LINE_MAX_BYTES (64u * 1024u)
#define FILE_MAX_BYTES (64u * 1024u * 1024u)
#define BLOB_MAX (16u * 1024u)
#define PATTERN_MAX 1023u

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

/* Key types OpenSSH can have in known_hosts, with the algorithms that use
 * them (all of one type must stand together). */
static const struct {
    const char *algorithm, *type, *kind;
} key_types[] = {
    {"ssh-ed25519", "ssh-ed25519", "ED25519"},
    {"ecdsa-sha2-nistp256", "ecdsa-sha2-nistp256", "ECDSA"},
    {"ecdsa-sha2-nistp384", "ecdsa-sha2-nistp384", "ECDSA"},
    {"ecdsa-sha2-nistp521", "ecdsa-sha2-nistp521", "ECDSA"},
    {"rsa-sha2-512", "ssh-rsa", "RSA"},
    {"rsa-sha2-256", "ssh-rsa", "RSA"},
    {"ssh-rsa", "ssh-rsa", "RSA"},
    {"ssh-dss", "ssh-dss", "DSA"},
    {"sk-ssh-ed25519@openssh.com", "sk-ssh-ed25519@openssh.com",
     "ED25519-SK"},
    {"sk-ecdsa-sha2-nistp256@openssh.com",
     "sk-ecdsa-sha2-nistp256@openssh.com", "ECDSA-SK"},
};
#define N_KEY_TYPES (sizeof(key_types) / sizeof(key_types[0]))

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
    char *host = lower_copy(query->alias != NULL ? query->alias
                                                 : query->host);
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

static uint32_t
read_u32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 |
           (uint32_t)p[2] << 8 | p[3];
}

/* The type name inside a key blob; 0 if the blob is too short for it. */
static size_t
blob_type(const uint8_t *blob, size_t len, const char **type)
{
    uint32_t n;

    if (len < 4) {
        return 0;
    }
    n = read_u32(blob);
    if (n > len - 4 || n > 255) {
        return 0;
    }
    *type = (const char *)blob + 4;
    return n;
}

static int
type_is_known(const char *type, size_t len)
{
    for (size_t i = 0; i < N_KEY_TYPES; i++) {
        if (strlen(key_types[i].type) == len &&
            memcmp(key_types[i].type, type, len) == 0) {
            return 1;
        }
    }
    return 0;
}

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

    if (!type_is_known(type, type_len) || room == 0 || room > BLOB_MAX) {
        return CH_ERR_FORMAT;
    }
    new->blob = malloc(room);
    if (new->blob == NULL) {
        return CH_ERR_NOMEM;
    }
    if (ch_b64_decode(text, text_len, new->blob, room, &new->len) != CH_OK ||
        blob_type(new->blob, new->len, &inner) != type_len ||
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

/* Reads from fd to its end; *text is the caller's, also on error. */
static int
fd_read_all(int fd, char **text, size_t *len)
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
    r = fd_read_all(fd, &text, &len);
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
                     const char *text, size_t len,
                     struct ch_known_hosts **out)
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
        [SAY_NOTHING] = CH_HOST_NEW,         [SAY_CHANGED] = CH_HOST_CHANGED,
        [SAY_OK] = CH_HOST_OK,               [SAY_REVOKED] = CH_HOST_REVOKED,
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

static const char *
algorithm_type(const char *algorithm, size_t len)
{
    for (size_t i = 0; i < N_KEY_TYPES; i++) {
        if (strlen(key_types[i].algorithm) == len &&
            memcmp(key_types[i].algorithm, algorithm, len) == 0) {
            return key_types[i].type;
        }
    }
    return NULL;
}

static int
has_type(const struct ch_known_hosts *known, const char *type)
{
    for (size_t i = 0; type != NULL && i < known->n; i++) {
        const struct entry *e = &known->entries[i];
        const char *inner;
        size_t n = blob_type(e->blob, e->len, &inner);

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
    while (*list != '\0') {
        size_t n = strcspn(list, ",");

        if (n > 0 && has_type(known, algorithm_type(list, n)) == want) {
            if (*out != '\0') {
                strcat(out, ",");
            }
            strncat(out, list, n);
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
    if (has_type(known, algorithm_type(algorithms, first))) {
        strcpy(*out, algorithms); /* the best one is known already */
        return CH_OK;
    }
    order_append(known, algorithms, 1, *out);
    order_append(known, algorithms, 0, *out);
    return CH_OK;
}

const char *
ch_known_hosts_kind(const uint8_t *blob, size_t len)
{
    const char *type;
    size_t n = blob_type(blob, len, &type);

    for (size_t i = 0; n > 0 && i < N_KEY_TYPES; i++) {
        if (strlen(key_types[i].type) == n &&
            memcmp(key_types[i].type, type, n) == 0) {
            return key_types[i].kind;
        }
    }
    return "unknown";
}

/* --- adding --- */

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
    size_t type_len = blob_type(blob, len, &type);
    char *text = malloc(CH_B64_LEN(len) + 1);
    int n;

    *line = NULL;
    if (text == NULL || type_len == 0) {
        free(text);
        return text == NULL ? CH_ERR_NOMEM : CH_ERR_FORMAT;
    }
    ch_b64_encode(text, blob, len);
    if (hash && getrandom(salt, sizeof(salt), 0) == (ssize_t)sizeof(salt)) {
        ch_hmac_sha1(salt, sizeof(salt), (const uint8_t *)known->name,
                     strlen(known->name), digest);
        ch_b64_encode(salt_text, salt, sizeof(salt));
        ch_b64_encode(hash_text, digest, sizeof(digest));
        n = asprintf(line, "%s|1|%s|%s %.*s %s\n", start, salt_text,
                     hash_text, (int)type_len, type, text);
    } else if (hash) {
        n = -1;
    } else {
        n = asprintf(line, "%s%s %.*s %s\n", start, known->name,
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
    int r = fd_read_all(fd, &text, &n);

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
    fd = open(path, O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC | O_NONBLOCK,
              0600);
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
