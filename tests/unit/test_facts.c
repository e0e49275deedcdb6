/* Tests of csrc/facts.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../../csrc/facts.h"

static char dir[64];

static int
setup(void **state)
{
    (void)state;
    strcpy(dir, "/tmp/churten-facts-XXXXXX");
    return mkdtemp(dir) == NULL ? -1 : 0;
}

/* Removes what a test left in dir; returns how many names there were. */
static int
sweep(void)
{
    DIR *d = opendir(dir);
    struct dirent *entry;
    int n = 0;

    assert_non_null(d);
    while ((entry = readdir(d)) != NULL) {
        if (strcmp(entry->d_name, ".") != 0 &&
            strcmp(entry->d_name, "..") != 0) {
            assert_int_equal(unlinkat(dirfd(d), entry->d_name, 0), 0);
            n++;
        }
    }
    closedir(d);
    return n;
}

static int
teardown(void **state)
{
    (void)state;
    sweep();
    return rmdir(dir);
}

static const char *
in_dir(const char *name)
{
    static char path[128];

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    return path;
}

static int
read_code(const char *name, size_t limit)
{
    char *data;
    size_t len;
    int r = ch_facts_read(in_dir(name), limit, &data, &len);

    if (r < 0) {
        assert_null(data);
    }
    free(data);
    return r;
}

static void
assert_holds(const char *name, const char *text)
{
    char *data;
    size_t len;

    assert_int_equal(ch_facts_read(in_dir(name), 4096, &data, &len), CH_OK);
    assert_int_equal(len, strlen(text));
    assert_memory_equal(data, text, len);
    free(data);
}

static void
what_is_written_is_read(void **state)
{
    struct stat st;
    mode_t old = umask(0077);

    (void)state;
    assert_int_equal(ch_facts_write(in_dir("h"), "one", 3, 0644), CH_OK);
    umask(old);
    assert_holds("h", "one");
    assert_int_equal(stat(in_dir("h"), &st), 0);
    assert_int_equal(st.st_mode & 07777, 0644);
    assert_int_equal(ch_facts_write(in_dir("h"), "", 0, 0600), CH_OK);
    assert_holds("h", "");
    assert_int_equal(sweep(), 1);
}

static void
only_regular_files_are_read(void **state)
{
    (void)state;
    assert_int_equal(read_code("none", 9), CH_ERR_SYS);
    assert_int_equal(errno, ENOENT);
    assert_int_equal(mkfifo(in_dir("fifo"), 0600), 0);
    assert_int_equal(read_code("fifo", 9), CH_ERR_REFUSED);
    assert_int_equal(ch_facts_write(in_dir("h"), "text", 4, 0600), CH_OK);
    assert_int_equal(symlink("h", in_dir("link")), 0);
    assert_int_equal(read_code("link", 9), CH_ERR_REFUSED);
    assert_int_equal(read_code(".", 9), CH_ERR_REFUSED);
    assert_int_equal(sweep(), 3);
}

static void
the_limit_is_exact(void **state)
{
    (void)state;
    assert_int_equal(ch_facts_write(in_dir("h"), "12345", 5, 0600), CH_OK);
    assert_int_equal(read_code("h", 5), CH_OK);
    assert_int_equal(read_code("h", 4), CH_ERR_LIMIT);
    sweep();
}

static void
a_link_is_replaced_not_followed(void **state)
{
    struct stat st;

    (void)state;
    assert_int_equal(ch_facts_write(in_dir("kept"), "old", 3, 0600), CH_OK);
    assert_int_equal(symlink("kept", in_dir("h")), 0);
    assert_int_equal(ch_facts_write(in_dir("h"), "new", 3, 0600), CH_OK);
    assert_holds("kept", "old");
    assert_holds("h", "new");
    assert_int_equal(lstat(in_dir("h"), &st), 0);
    assert_true(S_ISREG(st.st_mode));
    sweep();
}

static void
a_write_that_fails_keeps_the_old_file(void **state)
{
    struct rlimit old, small;
    static char big[10000];

    (void)state;
    assert_int_equal(ch_facts_write(in_dir("h"), "old", 3, 0600), CH_OK);
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    small = old;
    small.rlim_cur = 4096;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    assert_int_equal(ch_facts_write(in_dir("h"), big, sizeof(big), 0600),
                     CH_ERR_SYS);
    assert_int_equal(errno, EFBIG);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    assert_holds("h", "old");
    assert_int_equal(sweep(), 1);
}

static void
a_bad_place_is_an_error(void **state)
{
    (void)state;
    assert_int_equal(ch_facts_write(in_dir("no/h"), "x", 1, 0600), CH_ERR_SYS);
    assert_int_equal(errno, ENOENT);
    assert_int_equal(ch_facts_write(in_dir(""), "x", 1, 0600), CH_ERR_SYS);
    assert_int_equal(errno, EISDIR);
    assert_int_equal(mkdir(in_dir("d"), 0700), 0);
    assert_int_equal(ch_facts_write(in_dir("d"), "x", 1, 0600), CH_ERR_SYS);
    assert_int_equal(rmdir(in_dir("d")), 0);
    assert_int_equal(sweep(), 0);
}

static int
parse_code(const char *text, size_t len)
{
    struct ch_facts *facts;
    int r = ch_facts_parse(text, len, &facts);

    ch_facts_free(facts);
    return r;
}

static void
what_jansson_refuses_is_unsupported(void **state)
{
    static const char *const refused[] = {
        "",
        "{",
        "[1]x",
        "NaN",
        "[1e999]",
        "{'a':1}",
        "[\"\\ud800\"]",
        "12345678901234567890",
        "{\"a\\u0000\": 1}",
        "\"\xff\"",
    };
    char deep[5000];

    (void)state;
    for (size_t i = 0; i < sizeof(refused) / sizeof(*refused); i++) {
        assert_int_equal(parse_code(refused[i], strlen(refused[i])),
                         CH_ERR_UNSUPPORTED);
    }
    memset(deep, '[', 2500);
    memset(deep + 2500, ']', 2500);
    assert_int_equal(parse_code(deep, sizeof(deep)), CH_ERR_UNSUPPORTED);
    assert_int_equal(parse_code(deep + 1500, 2000), CH_OK);
}

static void
an_envelope_is_unwrapped_as_jansson_would_or_not_at_all(void **state)
{
    static const char *const texts[] = {
        "{\"k\": \"\"}",
        "{\"k\": \"{\\\"a\\\": [1, \\\"\\\\u00e9\\\"]}\"}",
        "{\"k\": \"\\b\\f\\n\\r\\t\\/\\\\\\\"\"}",
        /* left to jansson, or wrong */
        "{\"k\": \"\\u0041\"}",
        "{\"k\":\"x\"}",
        "{\"k\": \"x\", \"k\": \"y\"}",
        "{\"k\": \"a\"b\"}",
        "{\"k\": \"a\\\"}",
        "{\"k\": \"a\\x\"}",
        "{\"k\": \"\xc3\xa9\"}",
        "{\"k\": \"a\nb\"}",
        "{\"j\": \"x\"}",
        "{\"k\": \"x\"} ",
        "{\"k\": \"",
        "",
    };
    char *out;
    size_t n, len;

    (void)state;
    for (size_t i = 0; i < sizeof(texts) / sizeof(*texts); i++) {
        int r = ch_facts_unwrap(texts[i], strlen(texts[i]), "k", &out, &n);
        assert_int_equal(r, i < 3 ? CH_OK : CH_ERR_UNSUPPORTED);
        if (r == CH_OK) {
            struct ch_facts *facts;
            const char *text;
            assert_int_equal(
                ch_facts_parse(texts[i], strlen(texts[i]), &facts), CH_OK);
            text = ch_fact_string(
                ch_fact_member(ch_facts_root(facts), "k"), &len);
            assert_int_equal(n, len);
            assert_memory_equal(out, text, n);
            ch_facts_free(facts);
        }
        free(out);
    }
}

static void
scalars_have_their_values(void **state)
{
    static const char text[] =
        "[null, true, false, -9223372036854775808, 0.1, \"a\\u0000\xc3\xa9\"]";
    struct ch_facts *facts;
    const struct ch_fact *root;
    size_t len;

    (void)state;
    assert_int_equal(ch_facts_parse(text, strlen(text), &facts), CH_OK);
    root = ch_facts_root(facts);
    assert_int_equal(ch_fact_type(root), CH_FACT_ARRAY);
    assert_int_equal(ch_fact_size(root), 6);
    assert_int_equal(ch_fact_type(ch_fact_item(root, 0)), CH_FACT_NULL);
    assert_int_equal(ch_fact_type(ch_fact_item(root, 1)), CH_FACT_TRUE);
    assert_int_equal(ch_fact_type(ch_fact_item(root, 2)), CH_FACT_FALSE);
    assert_true(ch_fact_integer(ch_fact_item(root, 3)) == INT64_MIN);
    assert_true(ch_fact_real(ch_fact_item(root, 4)) == 0.1);
    assert_memory_equal(ch_fact_string(ch_fact_item(root, 5), &len),
                        "a\0\xc3\xa9", 4);
    assert_int_equal(len, 4);
    ch_facts_free(facts);
}

static void
members_come_in_order_and_the_last_value_wins(void **state)
{
    static const char text[] = "{\"b\": 1, \"a\": 2, \"b\": 3}";
    struct ch_facts *facts;
    struct ch_fact_iter iter;
    const struct ch_fact *value;
    const char *key;

    (void)state;
    assert_int_equal(ch_facts_parse(text, strlen(text), &facts), CH_OK);
    assert_int_equal(ch_fact_size(ch_facts_root(facts)), 2);
    ch_fact_iter_init(&iter, ch_facts_root(facts));
    assert_int_equal(ch_fact_iter_next(&iter, &key, &value), 1);
    assert_string_equal(key, "b");
    assert_int_equal(ch_fact_integer(value), 3);
    assert_int_equal(ch_fact_iter_next(&iter, &key, &value), 1);
    assert_string_equal(key, "a");
    assert_int_equal(ch_fact_integer(value), 2);
    assert_int_equal(ch_fact_iter_next(&iter, &key, &value), 0);
    value = ch_fact_member(ch_facts_root(facts), "a");
    assert_int_equal(ch_fact_integer(value), 2);
    assert_null(ch_fact_member(ch_facts_root(facts), "c"));
    ch_facts_free(facts);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_written_is_read),
        cmocka_unit_test(only_regular_files_are_read),
        cmocka_unit_test(the_limit_is_exact),
        cmocka_unit_test(a_link_is_replaced_not_followed),
        cmocka_unit_test(a_write_that_fails_keeps_the_old_file),
        cmocka_unit_test(a_bad_place_is_an_error),
        cmocka_unit_test(what_jansson_refuses_is_unsupported),
        cmocka_unit_test(
            an_envelope_is_unwrapped_as_jansson_would_or_not_at_all),
        cmocka_unit_test(scalars_have_their_values),
        cmocka_unit_test(members_come_in_order_and_the_last_value_wins),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
