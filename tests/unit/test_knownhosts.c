/* Tests of csrc/knownhosts*.c, hostkey.c, sha1.c and b64.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "../../csrc/b64.h"
#include "../../csrc/hostkey.h"
#include "../../csrc/knownhosts.h"
#include "../../csrc/sha1.h"

/* Three keys of ssh-keygen; the bytes say their type, nothing checks more. */
#define A                                                                     \
    "ssh-ed25519 "                                                            \
    "AAAAC3NzaC1lZDI1NTE5AAAAIIIzpDxOgeAeEO1V/y4Jvg02IHwGnDKqXEl/Au0qekU1"
#define B                                                                     \
    "ssh-ed25519 "                                                            \
    "AAAAC3NzaC1lZDI1NTE5AAAAIFyF0d3nJ1YzG8pTfVfYy6sV2p0GdY7Pp7Q2mBq5cXyW"
#define R "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAABAAAAAE="

static void
hex(const uint8_t *data, size_t len, char *out)
{
    for (size_t i = 0; i < len; i++) {
        sprintf(out + 2 * i, "%02x", data[i]);
    }
}

static size_t
blob(const char *key, uint8_t *out)
{
    const char *text = strchr(key, ' ') + 1;
    size_t len;

    assert_int_equal(ch_b64_decode(text, strlen(text), out, 512, &len), CH_OK);
    return len;
}

static struct ch_host_query
query(const char *host, int port)
{
    struct ch_host_query q = {.host = host, .port = port};

    return q;
}

static enum ch_host_verdict
verdict_of(const struct ch_host_query *q, const char *text, const char *key)
{
    struct ch_known_hosts *known;
    enum ch_host_verdict verdict;
    uint8_t bytes[512];
    size_t len = blob(key, bytes);

    assert_int_equal(
        ch_known_hosts_parse(q, "file", text, strlen(text), &known), CH_OK);
    verdict = ch_known_hosts_check(known, bytes, len, NULL, NULL);
    ch_known_hosts_free(known);
    return verdict;
}

/* The verdict on key A for host h (port 22 unless said otherwise). */
static enum ch_host_verdict
verdict(const char *host, int port, const char *text)
{
    struct ch_host_query q = query(host, port);

    return verdict_of(&q, text, A);
}

static void
sha1_vectors(void **state)
{
    static const struct {
        const char *text, *sum;
    } cases[] = {
        {"", "da39a3ee5e6b4b0d3255bfef95601890afd80709"},
        {"abc", "a9993e364706816aba3e25717850c26c9cd0d89d"},
        {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
         "84983e441c3bd26ebaae4aa1f95129e5e54670f1"},
    };
    uint8_t sum[CH_SHA1_LEN], million[1000];
    char text[41];

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        ch_sha1((const uint8_t *)cases[i].text, strlen(cases[i].text), sum);
        hex(sum, sizeof(sum), text);
        assert_string_equal(text, cases[i].sum);
    }
    memset(million, 'a', sizeof(million));
    ch_sha1(million, sizeof(million), sum);
    hex(sum, sizeof(sum), text);
    assert_string_equal(text, "291e9a6c66994949b57ba5e650361e98fc36b1ba");
}

/* RFC 2202 */
static void
hmac_vectors(void **state)
{
    uint8_t key[64], data[64], sum[CH_SHA1_LEN];
    char text[41];

    (void)state;
    memset(key, 0x0b, 20);
    ch_hmac_sha1(key, 20, (const uint8_t *)"Hi There", 8, sum);
    hex(sum, sizeof(sum), text);
    assert_string_equal(text, "b617318655057264e28bc0b6fb378c8ef146be00");
    ch_hmac_sha1((const uint8_t *)"Jefe", 4,
                 (const uint8_t *)"what do ya want for nothing?", 28, sum);
    hex(sum, sizeof(sum), text);
    assert_string_equal(text, "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79");
    memset(key, 0xaa, 20);
    memset(data, 0xdd, 50);
    ch_hmac_sha1(key, 20, data, 50, sum);
    hex(sum, sizeof(sum), text);
    assert_string_equal(text, "125d7342b9ac11cd91a39af48aa17b4f63f175d3");
}

static void
base64(void **state)
{
    static const char *const texts[] = {
        "", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"};
    static const char *const bad[] = {"Zg=",      "Zg",    "Zh==", "Zm9=",
                                      "Z===",     "====",  "=g==", "Zm 9",
                                      "Zg==Zg==", "Zm9v\n"};
    uint8_t out[16];
    char text[16];
    size_t n;

    (void)state;
    for (size_t i = 0; i < 7; i++) {
        ch_b64_encode(text, (const uint8_t *)"foobar", i);
        assert_string_equal(text, texts[i]);
        if (i > 0) {
            assert_int_equal(
                ch_b64_decode(text, strlen(text), out, sizeof(out), &n),
                CH_OK);
            assert_int_equal(n, i);
            assert_memory_equal(out, "foobar", n);
            assert_int_equal(ch_b64_decode(text, strlen(text), out, i - 1, &n),
                             CH_ERR_LIMIT);
        }
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_int_equal(
            ch_b64_decode(bad[i], strlen(bad[i]), out, sizeof(out), &n),
            CH_ERR_FORMAT);
    }
}

static void
plain_lines(void **state)
{
    (void)state;
    assert_int_equal(verdict("h", 22, ""), CH_HOST_NEW);
    assert_int_equal(verdict("h", 22, "h " A "\n"), CH_HOST_OK);
    assert_int_equal(verdict("h", 22, "h " A), CH_HOST_OK);
    assert_int_equal(verdict("h", 22, "h " A " a comment\n"), CH_HOST_OK);
    assert_int_equal(verdict("h", 22, "h " A "\r\n"), CH_HOST_OK);
    assert_int_equal(verdict("h", 22, "  h\t" A "\n"), CH_HOST_OK);
    assert_int_equal(verdict("H", 22, "h " A "\n"), CH_HOST_OK);
    assert_int_equal(verdict("h", 22, "H " A "\n"), CH_HOST_OK);
    assert_int_equal(verdict("h", 22, "x " A "\n"), CH_HOST_NEW);
    assert_int_equal(verdict("h", 22, "hh " A "\n"), CH_HOST_NEW);
    assert_int_equal(verdict("h", 22, "#h " A "\n"), CH_HOST_NEW);
    assert_int_equal(verdict("h", 22, "x,h,y " A "\n"), CH_HOST_OK);
    assert_int_equal(verdict("::1", 22, "::1 " A "\n"), CH_HOST_OK);
}

static void
other_keys(void **state)
{
    (void)state;
    assert_int_equal(verdict("h", 22, "h " B "\n"), CH_HOST_CHANGED);
    assert_int_equal(verdict("h", 22, "h " B "\nh " A "\n"), CH_HOST_OK);
    assert_int_equal(verdict("h", 22, "h " A "\nh " B "\n"), CH_HOST_OK);
    assert_int_equal(verdict("h", 22, "h " R "\n"), CH_HOST_CHANGED);
    assert_int_equal(verdict("h", 22, "x " B "\n"), CH_HOST_NEW);
}

static void
damaged_lines_are_not_there(void **state)
{
    char *big = malloc(200000);

    (void)state;
    assert_non_null(big);
    assert_int_equal(verdict("h", 22, "h\n"), CH_HOST_NEW);
    assert_int_equal(verdict("h", 22, "h ssh-ed25519\n"), CH_HOST_NEW);
    assert_int_equal(verdict("h", 22, "h ssh-ed25519 AAAA\n"), CH_HOST_NEW);
    assert_int_equal(verdict("h", 22,
                             "h ssh-rsa " /* another type inside */
                             "AAAAC3NzaC1lZDI1NTE5AAAAIIIzpDxOgeAeEO1"
                             "V/y4Jvg02IHwGnDKqXEl/Au0qekU1\n"),
                     CH_HOST_NEW);
    assert_int_equal(verdict("h", 22, "h 1024 65537 1234567\n"), CH_HOST_NEW);
    assert_int_equal(verdict("h", 22, "h ssh-future AAAACnNzaC1mdXR1cmU=\n"),
                     CH_HOST_NEW);
    assert_int_equal(verdict("h", 22, "@odd h " A "\n"), CH_HOST_NEW);
    assert_int_equal(verdict("h", 22, "|1|x|y " B "\nh " A "\n"), CH_HOST_OK);
    memset(big, 'x', 100000);
    snprintf(big + 100000, 1000, ",h " B "\nh " A "\n");
    assert_int_equal(verdict("h", 22, big), CH_HOST_OK);
    free(big);
}

static void
patterns(void **state)
{
    (void)state;
    assert_int_equal(verdict("a.b.c", 22, "* " A "\n"), CH_HOST_OK);
    assert_int_equal(verdict("a.b.c", 22, "*.C " A "\n"), CH_HOST_OK);
    assert_int_equal(verdict("a.b.c", 22, "a.?.c " A "\n"), CH_HOST_OK);
    assert_int_equal(verdict("a.bb.c", 22, "a.?.c " A "\n"), CH_HOST_NEW);
    assert_int_equal(verdict("a.b.c", 22, "*,!a.* " A "\n"), CH_HOST_NEW);
    assert_int_equal(verdict("a.b.c", 22, "!a.*,* " A "\n"), CH_HOST_NEW);
    assert_int_equal(verdict("x.b.c", 22, "!a.*,* " A "\n"), CH_HOST_OK);
    assert_int_equal(verdict("a.b.c", 22, "!x.* " A "\n"), CH_HOST_NEW);
    assert_int_equal(verdict("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab", 22,
                             "*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*c " A "\n"),
                     CH_HOST_NEW);
    assert_int_equal(verdict("a", 22, "a, " A "\n"), CH_HOST_OK);
    assert_int_equal(verdict("a", 22, ",, " A "\n"), CH_HOST_NEW);
}

static void
ports(void **state)
{
    (void)state;
    assert_int_equal(verdict("h", 2222, "[h]:2222 " A "\n"), CH_HOST_OK);
    assert_int_equal(verdict("h", 2222, "[h]:2223 " A "\n"), CH_HOST_NEW);
    assert_int_equal(verdict("h", 22, "[h]:22 " A "\n"), CH_HOST_NEW);
    assert_int_equal(verdict("::1", 2222, "[::1]:2222 " A "\n"), CH_HOST_OK);
    assert_int_equal(verdict("h", 2222, "[*]:2222 " A "\n"), CH_HOST_OK);
    /* Without its port a host may be accepted, not refused. */
    assert_int_equal(verdict("h", 2222, "h " A "\n"), CH_HOST_OK);
    assert_int_equal(verdict("h", 2222, "h " B "\n"), CH_HOST_NEW);
    assert_int_equal(verdict("h", 2222, "h " A "\n[h]:2222 " B "\n"),
                     CH_HOST_CHANGED);
    assert_int_equal(verdict("h", 2222, "@revoked h " A "\n[h]:2222 " A "\n"),
                     CH_HOST_REVOKED);
}

static void
aliases(void **state)
{
    struct ch_host_query q = query("h", 2222);

    (void)state;
    q.alias = "Alias";
    assert_int_equal(verdict_of(&q, "alias " A "\n", A), CH_HOST_OK);
    assert_int_equal(verdict_of(&q, "[alias]:2222 " A "\n", A), CH_HOST_NEW);
    assert_int_equal(verdict_of(&q, "h,[h]:2222 " A "\n", A), CH_HOST_NEW);
}

static void
markers(void **state)
{
    (void)state;
    assert_int_equal(verdict("h", 22, "@revoked * " A "\nh " A "\n"),
                     CH_HOST_REVOKED);
    assert_int_equal(verdict("h", 22, "h " A "\n@revoked h " A "\n"),
                     CH_HOST_REVOKED);
    assert_int_equal(verdict("h", 22, "@revoked x " A "\nh " A "\n"),
                     CH_HOST_OK);
    assert_int_equal(verdict("h", 22, "@revoked h " B "\n"), CH_HOST_NEW);
    assert_int_equal(verdict("h", 22, "@cert-authority h " B "\n"),
                     CH_HOST_UNSUPPORTED);
    assert_int_equal(verdict("h", 22, "@cert-authority x " B "\n"),
                     CH_HOST_NEW);
    assert_int_equal(verdict("h", 22, "@cert-authority h " B "\nh " A "\n"),
                     CH_HOST_UNSUPPORTED);
    assert_int_equal(
        verdict("h", 22, "@cert-authority * " B "\n@revoked * " A "\n"),
        CH_HOST_REVOKED);
}

/* Lines of `ssh-keygen -H` for the names h and [h]:2222. */
static void
hashed_names(void **state)
{
    uint8_t salt[CH_SHA1_LEN], sum[CH_SHA1_LEN];
    char salt_text[40], sum_text[40], line[400];
    static const char *const names[] = {"h", "[h]:2222"};

    (void)state;
    memset(salt, 7, sizeof(salt));
    ch_b64_encode(salt_text, salt, sizeof(salt));
    for (size_t i = 0; i < 2; i++) {
        ch_hmac_sha1(salt, sizeof(salt), (const uint8_t *)names[i],
                     strlen(names[i]), sum);
        ch_b64_encode(sum_text, sum, sizeof(sum));
        snprintf(line, sizeof(line), "|1|%s|%s " A "\n", salt_text, sum_text);
        assert_int_equal(verdict("h", i == 0 ? 22 : 2222, line), CH_HOST_OK);
        assert_int_equal(verdict("H", i == 0 ? 22 : 2222, line), CH_HOST_OK);
        assert_int_equal(verdict("g", i == 0 ? 22 : 2222, line), CH_HOST_NEW);
    }
    snprintf(line, sizeof(line), "|1|%s|%s " A "\n", salt_text, "AAAA");
    assert_int_equal(verdict("h", 22, line), CH_HOST_NEW);
    snprintf(line, sizeof(line), "|2|%s|%s " A "\n", salt_text, sum_text);
    assert_int_equal(verdict("h", 2222, line), CH_HOST_NEW);
}

static void
what_modes_make_of_it(void **state)
{
    static const struct {
        enum ch_host_verdict verdict;
        const char *mode;
        int can_add;
        enum ch_host_action action;
    } cases[] = {
        {CH_HOST_OK, "yes", 0, CH_HOST_ACCEPT},
        {CH_HOST_OK, "no", 0, CH_HOST_ACCEPT},
        {CH_HOST_NEW, "yes", 1, CH_HOST_REFUSE},
        {CH_HOST_NEW, "ask", 1, CH_HOST_REFUSE},
        {CH_HOST_NEW, NULL, 1, CH_HOST_REFUSE},
        {CH_HOST_NEW, "accept-new", 1, CH_HOST_ADD},
        {CH_HOST_NEW, "accept-new", 0, CH_HOST_REFUSE},
        {CH_HOST_NEW, "no", 1, CH_HOST_ADD},
        {CH_HOST_CHANGED, "yes", 1, CH_HOST_REFUSE},
        {CH_HOST_CHANGED, "accept-new", 1, CH_HOST_REFUSE},
        {CH_HOST_CHANGED, "no", 1, CH_HOST_UNSAFE},
        {CH_HOST_REVOKED, "accept-new", 1, CH_HOST_REFUSE},
        {CH_HOST_REVOKED, "no", 1, CH_HOST_UNSAFE},
        {CH_HOST_UNSUPPORTED, "no", 1, CH_HOST_FALL_BACK},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        assert_int_equal(ch_known_hosts_action(cases[i].verdict, cases[i].mode,
                                               cases[i].can_add),
                         cases[i].action);
    }
}

static void
algorithms_of_known_keys_come_first(void **state)
{
    static const char wanted[] =
        "ssh-ed25519,ecdsa-sha2-nistp256,rsa-sha2-512,rsa-sha2-256";
    static const struct {
        const char *text, *order;
    } cases[] = {
        {"", wanted},
        {"h " A "\n", wanted},
        {"h " R "\nh " A "\n", wanted},
        {"h " R "\n",
         "rsa-sha2-512,rsa-sha2-256,ssh-ed25519,ecdsa-sha2-nistp256"},
        {"@revoked h " R "\n", wanted},
        {"x " R "\n", wanted},
    };
    struct ch_host_query q = query("h", 22);
    struct ch_known_hosts *known;
    char *order;

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        assert_int_equal(ch_known_hosts_parse(&q, "f", cases[i].text,
                                              strlen(cases[i].text), &known),
                         CH_OK);
        assert_int_equal(ch_known_hosts_order(known, wanted, &order), CH_OK);
        assert_string_equal(order, cases[i].order);
        free(order);
        ch_known_hosts_free(known);
    }
}

static void
what_decided(void **state)
{
    static const char text[] = "# one\nh " B "\nh " A "\n";
    struct ch_host_query q = query("h", 22);
    struct ch_known_hosts *known;
    const char *file;
    unsigned long line;
    uint8_t bytes[512];
    size_t len = blob(A, bytes);

    (void)state;
    assert_int_equal(
        ch_known_hosts_parse(&q, "name", text, strlen(text), &known), CH_OK);
    assert_int_equal(ch_known_hosts_check(known, bytes, len, &file, &line),
                     CH_HOST_OK);
    assert_string_equal(file, "name");
    assert_int_equal(line, 3);
    assert_string_equal(ch_hostkey_kind(bytes, len), "ED25519");
    len = blob(R, bytes);
    assert_int_equal(ch_known_hosts_check(known, bytes, len, &file, &line),
                     CH_HOST_CHANGED);
    assert_int_equal(line, 2);
    assert_string_equal(ch_hostkey_kind(bytes, len), "RSA");
    assert_string_equal(ch_hostkey_kind(bytes, 3), "unknown");
    ch_known_hosts_free(known);
}

/* --- files --- */

static char dir[] = "/tmp/ch-known-XXXXXX";

static int
dir_make(void **state)
{
    (void)state;
    return mkdtemp(dir) == NULL;
}

static int
dir_remove(void **state)
{
    char command[64];

    (void)state;
    snprintf(command, sizeof(command), "rm -rf %s", dir);
    return system(command) != 0;
}

static void
path_in_dir(char *out, const char *name)
{
    snprintf(out, 100, "%s/%s", dir, name);
}

static void
write_file(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");

    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static void
read_file(const char *path, char *out, size_t size)
{
    FILE *f = fopen(path, "r");

    assert_non_null(f);
    out[fread(out, 1, size - 1, f)] = '\0';
    fclose(f);
}

static enum ch_host_verdict
verdict_of_files(const struct ch_host_query *q, const char *key)
{
    struct ch_known_hosts *known;
    enum ch_host_verdict v;
    uint8_t bytes[512];
    size_t len = blob(key, bytes);

    assert_int_equal(ch_known_hosts_load(q, &known), CH_OK);
    v = ch_known_hosts_check(known, bytes, len, NULL, NULL);
    ch_known_hosts_free(known);
    return v;
}

static void
all_files_count(void **state)
{
    char one[100], two[100], none[100], fifo[100];
    char *user[] = {NULL, NULL, NULL, NULL, NULL}, *global[] = {NULL, NULL};
    struct ch_host_query q = query("h", 22);

    (void)state;
    path_in_dir(one, "one");
    path_in_dir(two, "two");
    path_in_dir(none, "missing");
    path_in_dir(fifo, "fifo");
    write_file(one, "x " A "\n");
    write_file(two, "h " A "\n");
    assert_int_equal(mkfifo(fifo, 0600), 0);
    q.user_files = user;
    q.global_files = global;
    user[0] = none;
    user[1] = (char *)"/dev/null";
    user[2] = fifo;
    user[3] = one;
    assert_int_equal(verdict_of_files(&q, A), CH_HOST_NEW);
    global[0] = two;
    assert_int_equal(verdict_of_files(&q, A), CH_HOST_OK);
    global[0] = NULL;
    user[0] = (char *)"none";
    user[3] = two;
    assert_int_equal(verdict_of_files(&q, A), CH_HOST_OK);
}

static void
adding(void **state)
{
    char path[100], text[1000], sub[100];
    char *user[] = {path, NULL};
    struct ch_host_query q = query("Host", 2222);
    struct stat st;
    uint8_t bytes[512];
    size_t len = blob(A, bytes);

    (void)state;
    path_in_dir(path, "new/known_hosts");
    path_in_dir(sub, "new");
    q.user_files = user;
    assert_true(ch_known_hosts_can_add(&q));
    assert_int_equal(ch_known_hosts_add(&q, bytes, len, 0), CH_OK);
    assert_int_equal(ch_known_hosts_add(&q, bytes, len, 0), CH_OK);
    read_file(path, text, sizeof(text));
    assert_string_equal(text, "[host]:2222 " A "\n");
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(stat(sub, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
    assert_int_equal(verdict_of_files(&q, A), CH_HOST_OK);

    write_file(path, "# no newline");
    assert_int_equal(ch_known_hosts_add(&q, bytes, len, 1), CH_OK);
    read_file(path, text, sizeof(text));
    assert_memory_equal(text, "# no newline\n|1|", 16);
    assert_null(strstr(text, "host]"));
    assert_int_equal(verdict_of_files(&q, A), CH_HOST_OK);
    assert_int_equal(verdict_of_files(&q, B), CH_HOST_CHANGED);
}

static void
what_cannot_be_added(void **state)
{
    char *none[] = {(char *)"none", NULL},
         *null[] = {(char *)"/dev/null", NULL};
    struct ch_host_query q = query("h", 22);
    uint8_t bytes[512];
    size_t len = blob(A, bytes);

    (void)state;
    assert_false(ch_known_hosts_can_add(&q));
    q.user_files = none;
    assert_false(ch_known_hosts_can_add(&q));
    assert_int_equal(ch_known_hosts_add(&q, bytes, len, 0), CH_ERR_REFUSED);
    q.user_files = null;
    assert_true(ch_known_hosts_can_add(&q));
    assert_int_equal(ch_known_hosts_add(&q, bytes, len, 0), CH_OK);
    q.host = "a b";
    assert_false(ch_known_hosts_can_add(&q));
    q.host = "*";
    assert_false(ch_known_hosts_can_add(&q));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sha1_vectors),
        cmocka_unit_test(hmac_vectors),
        cmocka_unit_test(base64),
        cmocka_unit_test(plain_lines),
        cmocka_unit_test(other_keys),
        cmocka_unit_test(damaged_lines_are_not_there),
        cmocka_unit_test(patterns),
        cmocka_unit_test(ports),
        cmocka_unit_test(aliases),
        cmocka_unit_test(markers),
        cmocka_unit_test(hashed_names),
        cmocka_unit_test(what_modes_make_of_it),
        cmocka_unit_test(algorithms_of_known_keys_come_first),
        cmocka_unit_test(what_decided),
        cmocka_unit_test(all_files_count),
        cmocka_unit_test(adding),
        cmocka_unit_test(what_cannot_be_added),
    };

    return cmocka_run_group_tests(tests, dir_make, dir_remove);
}
