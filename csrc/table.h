/*
 * table.h - a hash table from byte strings (copied) to pointers (lent).
 */
#ifndef CH_TABLE_H
#define CH_TABLE_H

#include "ch.h"

struct ch_table_entry;

struct ch_table {
    struct ch_table_entry **slots; /* chains; NULL while empty */
    size_t cap;                    /* power of two, or 0 */
    size_t used;                   /* entries */
};

void ch_table_init(struct ch_table *table);
/* Forgets all entries; the values stay the caller's. */
void ch_table_fini(struct ch_table *table);
/* Adds or replaces. CH_OK or CH_ERR_NOMEM. */
CH_MUST_USE int ch_table_put(struct ch_table *table, const void *key,
                             size_t len, void *value);
/* The value, or NULL. */
void *ch_table_find(const struct ch_table *table, const void *key, size_t len);
/* Removes the entry and returns its value, or NULL. */
void *ch_table_remove(struct ch_table *table, const void *key, size_t len);
/* Any value, or NULL when the table is empty. */
void *ch_table_any(const struct ch_table *table);
/* Calls fn for every value; fn must not change the table. */
void ch_table_each(const struct ch_table *table,
                   void (*fn)(void *value, void *arg), void *arg);

#endif
