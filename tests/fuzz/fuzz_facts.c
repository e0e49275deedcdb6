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
    return 0;
}
