/* table.c - chained hash table, doubled when full. Keys come from our own
 * user only, so FNV-1a needs no secret seed. */
#include "table.h"

#include <stdlib.h>
#include <string.h>

struct ch_table_entry {
    struct ch_table_entry *next;
    void *value;
    uint64_t hash;
    size_t len;
    uint8_t key[];
};

static uint64_t
hash_of(const void *key, size_t len)
{
    const uint8_t *at = key;
    uint64_t h = 0xcbf29ce484222325u;

    for (size_t i = 0; i < len; i++) {
        h = (h ^ at[i]) * 0x100000001b3u;
    }
    return h ^ (h >> 32);
}

void
ch_table_init(struct ch_table *table)
{
    memset(table, 0, sizeof(*table));
}

void
ch_table_fini(struct ch_table *table)
{
    for (size_t i = 0; i < table->cap; i++) {
        while (table->slots[i] != NULL) {
            struct ch_table_entry *e = table->slots[i];

            table->slots[i] = e->next;
            free(e);
        }
    }
    free(table->slots);
    ch_table_init(table);
}

/* The link that points to the entry, or to the NULL where it would be. */
static struct ch_table_entry **
place_of(const struct ch_table *table, const void *key, size_t len,
         uint64_t hash)
{
    struct ch_table_entry **at = &table->slots[hash & (table->cap - 1)];

    while (*at != NULL && ((*at)->hash != hash || (*at)->len != len ||
                           memcmp((*at)->key, key, len) != 0)) {
        at = &(*at)->next;
    }
    return at;
}

static int
table_grow(struct ch_table *table)
{
    size_t cap = table->cap == 0 ? 16 : table->cap * 2;
    struct ch_table_entry **slots = calloc(cap, sizeof(*slots));

    if (slots == NULL) {
        return CH_ERR_NOMEM;
    }
    for (size_t i = 0; i < table->cap; i++) {
        while (table->slots[i] != NULL) {
            struct ch_table_entry *e = table->slots[i];

            table->slots[i] = e->next;
            e->next = slots[e->hash & (cap - 1)];
            slots[e->hash & (cap - 1)] = e;
        }
    }
    free(table->slots);
    table->slots = slots;
    table->cap = cap;
    return CH_OK;
}

int
ch_table_put(struct ch_table *table, const void *key, size_t len, void *value)
{
    uint64_t hash = hash_of(key, len);
    struct ch_table_entry **at;
    struct ch_table_entry *e;

    if (table->used >= table->cap && table_grow(table) != CH_OK) {
        return CH_ERR_NOMEM;
    }
    at = place_of(table, key, len, hash);
    if (*at != NULL) {
        (*at)->value = value;
        return CH_OK;
    }
    e = malloc(sizeof(*e) + len);
    if (e == NULL) {
        return CH_ERR_NOMEM;
    }
    e->next = NULL;
    e->value = value;
    e->hash = hash;
    e->len = len;
    memcpy(e->key, key, len);
    *at = e;
    table->used++;
    return CH_OK;
}

void *
ch_table_find(const struct ch_table *table, const void *key, size_t len)
{
    struct ch_table_entry **at;

    if (table->used == 0) {
        return NULL;
    }
    at = place_of(table, key, len, hash_of(key, len));
    return *at == NULL ? NULL : (*at)->value;
}

void *
ch_table_remove(struct ch_table *table, const void *key, size_t len)
{
    struct ch_table_entry **at;
    struct ch_table_entry *e;
    void *value;

    if (table->used == 0) {
        return NULL;
    }
    at = place_of(table, key, len, hash_of(key, len));
    e = *at;
    if (e == NULL) {
        return NULL;
    }
    value = e->value;
    *at = e->next;
    free(e);
    table->used--;
    return value;
}

void *
ch_table_any(const struct ch_table *table)
{
    for (size_t i = 0; table->used > 0 && i < table->cap; i++) {
        if (table->slots[i] != NULL) {
            return table->slots[i]->value;
        }
    }
    return NULL;
}

void
ch_table_each(const struct ch_table *table, void (*fn)(void *value, void *arg),
              void *arg)
{
    for (size_t i = 0; i < table->cap; i++) {
        for (struct ch_table_entry *e = table->slots[i]; e; e = e->next) {
            fn(e->value, arg);
        }
    }
}
