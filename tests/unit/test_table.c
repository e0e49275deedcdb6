/* test_table.c - the hash table against a plain array. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "../../csrc/table.h"

#define KEYS 500

static void
count(void *value, void *arg)
{
    (void)value;
    *(size_t *)arg += 1;
}

static void
test_against_an_array(void **state)
{
    struct ch_table table;
    void *model[KEYS] = {NULL};
    size_t used = 0, seen = 0;

    (void)state;
    srand(5);
    ch_table_init(&table);
    for (int turn = 0; turn < 50000; turn++) {
        int key = rand() % KEYS;

        if (rand() % 2) {
            used += model[key] == NULL;
            model[key] = &model[rand() % KEYS];
            assert_int_equal(
                ch_table_put(&table, &key, sizeof(key), model[key]), CH_OK);
        } else {
            used -= model[key] != NULL;
            assert_ptr_equal(ch_table_remove(&table, &key, sizeof(key)),
                             model[key]);
            model[key] = NULL;
        }
        key = rand() % KEYS;
        assert_ptr_equal(ch_table_find(&table, &key, sizeof(key)), model[key]);
        assert_int_equal(table.used, used);
    }
    ch_table_each(&table, count, &seen);
    assert_int_equal(seen, used);
    assert_non_null(ch_table_any(&table));
    ch_table_fini(&table);
    assert_null(ch_table_any(&table));
}

static void
test_keys_are_bytes(void **state)
{
    struct ch_table table;
    int a = 0, b = 0, c = 0;

    (void)state;
    ch_table_init(&table);
    assert_null(ch_table_find(&table, "", 0));
    assert_null(ch_table_remove(&table, "x", 1));
    assert_int_equal(ch_table_put(&table, "", 0, &a), CH_OK);
    assert_int_equal(ch_table_put(&table, "x", 1, &b), CH_OK);
    assert_int_equal(ch_table_put(&table, "x\0", 2, &c), CH_OK);
    assert_ptr_equal(ch_table_find(&table, "", 0), &a);
    assert_ptr_equal(ch_table_find(&table, "x", 1), &b);
    assert_ptr_equal(ch_table_find(&table, "x\0", 2), &c);
    ch_table_fini(&table);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_an_array),
        cmocka_unit_test(test_keys_are_bytes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
