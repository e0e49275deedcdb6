/* fuzz_facts.c - any bytes as a fact cache file: no crash, at any depth; what
 * was parsed can be walked to its end, and each member found by its key. */
#include <stdlib.h>
#include <string.h>

#include "../../csrc/facts.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static size_t
walk(const struct ch_fact *fact)
{
    struct ch_fact_iter iter;
    const struct ch_fact *value;
    const char *key;
    size_t n = 1, len = 0;

    switch (ch_fact_type(fact)) {
    case CH_FACT_STRING:
        if (ch_fact_string(fact, &len) == NULL) {
            abort();
        }
        break;
    case CH_FACT_INTEGER:
        n += (size_t)(ch_fact_integer(fact) & 1);
        break;
    case CH_FACT_REAL:
        n += ch_fact_real(fact) > 0;
        break;
    case CH_FACT_ARRAY:
        for (size_t i = 0; i < ch_fact_size(fact); i++) {
            n += walk(ch_fact_item(fact, i));
        }
        break;
    case CH_FACT_OBJECT:
        ch_fact_iter_init(&iter, fact);
        while (ch_fact_iter_next(&iter, &key, &value)) {
            if (ch_fact_member(fact, key) != value) {
                abort();
            }
            n += walk(value);
        }
        break;
    default:
        break;
    }
    return n;
}

/* What is unwrapped by hand is what jansson unwraps. */
static void
unwrap(const char *data, size_t size)
{
    struct ch_facts *facts = NULL;
    const struct ch_fact *value;
    char *text = NULL;
    size_t n, len;

    if (ch_facts_unwrap(data, size, "__payload__", &text, &n) != CH_OK) {
        return;
    }
    if (ch_facts_parse(data, size, &facts) != CH_OK) {
        abort();
    }
    value = ch_fact_member(ch_facts_root(facts), "__payload__");
    if (value == NULL || ch_fact_type(value) != CH_FACT_STRING) {
        abort();
    }
    if (memcmp(ch_fact_string(value, &len), text, n) != 0 || len != n) {
        abort();
    }
    ch_facts_free(facts);
    free(text);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct ch_facts *facts = NULL;

    if (ch_facts_parse((const char *)data, size, &facts) == CH_OK) {
        /* Nothing can have more values than bytes. */
        if (walk(ch_facts_root(facts)) > 2 * size + 2) {
            abort();
        }
        ch_facts_free(facts);
    }
    unwrap((const char *)data, size);
    return 0;
}
