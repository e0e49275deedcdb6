/*
 * facts.h - the fact cache's files and their JSON: read whole, replace
 * atomically, parse. The only user of jansson; knows no Python.
 */
#ifndef CH_FACTS_H
#define CH_FACTS_H

#include "ch.h"

/* Reads the regular file at path into *data (malloc, the caller frees it).
 * CH_ERR_SYS with errno, CH_ERR_REFUSED (a symbolic link or anything else
 * that is not a regular file), CH_ERR_LIMIT (more than limit bytes). Never
 * blocks on a fifo. */
CH_MUST_USE int ch_facts_read(const char *path, size_t limit, char **data,
                              size_t *len);

/* Replaces the file at path by data with these permission bits, or leaves it
 * as it is: a temporary file in the same directory (its name begins with a
 * dot), then rename. CH_ERR_SYS with errno. */
CH_MUST_USE int ch_facts_write(const char *path, const void *data, size_t len,
                               unsigned mode);

/* A parsed JSON text. Nodes are borrowed from it. */
struct ch_facts;
struct ch_fact;

enum ch_fact_type {
    CH_FACT_NULL,
    CH_FACT_FALSE,
    CH_FACT_TRUE,
    CH_FACT_INTEGER,
    CH_FACT_REAL,
    CH_FACT_STRING,
    CH_FACT_ARRAY,
    CH_FACT_OBJECT
};

/* CH_ERR_UNSUPPORTED for everything jansson refuses: invalid JSON, but also
 * valid JSON that Python reads (integers beyond 64 bit, NaN, lone
 * surrogates, NUL in keys, more than 2048 levels). */
CH_MUST_USE int ch_facts_parse(const char *data, size_t len,
                               struct ch_facts **out);
/* The text inside an object {"key": "text"} of one line of ASCII, to be
 * freed: what jansson would say of it, faster. CH_ERR_UNSUPPORTED for all
 * other forms, also those that are right (\u escapes, other spaces). */
CH_MUST_USE int ch_facts_unwrap(const char *data, size_t len, const char *key,
                                char **out, size_t *out_len);
void ch_facts_free(struct ch_facts *facts);
const struct ch_fact *ch_facts_root(const struct ch_facts *facts);

enum ch_fact_type ch_fact_type(const struct ch_fact *fact);
int64_t ch_fact_integer(const struct ch_fact *fact);
double ch_fact_real(const struct ch_fact *fact);
/* UTF-8; may hold NUL bytes. */
const char *ch_fact_string(const struct ch_fact *fact, size_t *len);
/* Items of an array or members of an object. */
size_t ch_fact_size(const struct ch_fact *fact);
const struct ch_fact *ch_fact_item(const struct ch_fact *fact, size_t index);
/* The member called key, or NULL. */
const struct ch_fact *ch_fact_member(const struct ch_fact *fact,
                                     const char *key);

/* Walks an object's members in the order of the text; a repeated key keeps
 * its first place and its last value, as in Python. */
struct ch_fact_iter {
    const struct ch_fact *object;
    void *at;
};
void ch_fact_iter_init(struct ch_fact_iter *iter,
                       const struct ch_fact *object);
/* 1 and the next member, or 0 at the end. */
int ch_fact_iter_next(struct ch_fact_iter *iter, const char **key,
                      const struct ch_fact **value);

#endif
