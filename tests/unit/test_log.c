/* test_log.c - text from peers made safe, and the log file's rules. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "../../csrc/log.h"

static void
escaped(const char *in, size_t len, const char *want)
{
    char out[200];
    uint8_t *exact = malloc(len > 0 ? len : 1);

    memcpy(exact, in, len);
    assert_string_equal(ch_text_escape(out, sizeof(out), exact, len), want);
    free(exact);
}

static void
test_escape(void **state)
{
    (void)state;
    escaped("plain", 5, "plain");
    escaped("", 0, "");
    escaped("a\nb\tc\0d\x1b[31m", 12, "a\\nb\\tc\\x00d\\x1b[31m");
    escaped("gr\xc3\xbc\xc3\x9f \xe2\x82\xac \xf0\x9f\x98\x80", 15,
            "gr\xc3\xbc\xc3\x9f \xe2\x82\xac \xf0\x9f\x98\x80");
    /* cut, overlong, surrogate, C1 control, beyond Unicode */
    escaped("\xe2\x82", 2, "\\xe2\\x82");
    escaped("\xc0\xaf", 2, "\\xc0\\xaf");
    escaped("\xed\xa0\x80", 3, "\\xed\\xa0\\x80");
    escaped("\xc2\x9b", 2, "\\xc2\\x9b");
    escaped("\xf4\x90\x80\x80", 4, "\\xf4\\x90\\x80\\x80");
}

static void
test_cut_and_clean(void **state)
{
    char out[8];

    (void)state;
    ch_text_escape(out, sizeof(out), (const uint8_t *)"1234567890", 10);
    assert_string_equal(out, "1234567");
    ch_text_escape(out, sizeof(out), (const uint8_t *)"123456\xc3\xbc", 8);
    assert_string_equal(out, "123456");
    ch_text_clean(out, sizeof(out), (const uint8_t *)"a\r\n\tb", 5);
    assert_string_equal(out, "a\r\n\tb");
    ch_text_clean(out, sizeof(out), (const uint8_t *)"\x1b", 1);
    assert_string_equal(out, "\\x1b");
}

static void
test_file(void **state)
{
    char dir[] = "/tmp/chlogXXXXXX", path[64], link_path[64], line[300];
    struct stat st;
    FILE *f;

    (void)state;
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/log", dir);
    snprintf(link_path, sizeof(link_path), "%s/link", dir);
    assert_int_equal(symlink(path, link_path), 0);
    assert_int_equal(ch_log_open(link_path), CH_ERR_SYS);
    assert_int_equal(ch_log_open("/dev/null"), CH_ERR_REFUSED);
    assert_int_equal(ch_log_open(path), CH_OK);
    assert_int_equal(ch_log_set_level("loud"), CH_ERR_UNSUPPORTED);
    ch_log_at(CH_LOG_DEBUG, "not written");
    ch_log("%s said %s", "host", "two\nlines");
    assert_int_equal(ch_log_set_level("error"), CH_OK);
    ch_log("not written");
    assert_int_equal(ch_log_set_level("info"), CH_OK);
    ch_log_close();
    ch_log("not written");
    assert_int_equal(ch_log_open(NULL), CH_OK);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    f = fopen(path, "r");
    assert_non_null(fgets(line, sizeof(line), f));
    assert_non_null(strstr(line, " info host said two\\nlines\n"));
    assert_null(fgets(line, sizeof(line), f));
    fclose(f);
    unlink(path);
    unlink(link_path);
    rmdir(dir);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_escape),
        cmocka_unit_test(test_cut_and_clean),
        cmocka_unit_test(test_file),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
