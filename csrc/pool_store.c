/* pool_store.c - module payloads by key: the whole PAYLOAD body, shared with
 * every queue that sends it; the least recently used go first. */
#include "pool_int.h"

#include <stdlib.h>
#include <string.h>

struct payload {
    struct ch_list in_lru;
    struct ch_blob *blob;
    size_t key_len;
    uint8_t key[];
};

static void
payload_remove(struct ch_pool *pool, struct payload *p)
{
    (void)ch_table_remove(&pool->payloads, p->key, p->key_len);
    ch_list_remove(&p->in_lru);
    pool->payload_bytes -= p->blob->len;
    ch_blob_release(p->blob);
    free(p);
}

struct ch_blob *
store_find(struct ch_pool *pool, const uint8_t *key, size_t len)
{
    struct payload *p = ch_table_find(&pool->payloads, key, len);

    if (p == NULL) {
        return NULL;
    }
    ch_list_remove(&p->in_lru);
    ch_list_add_tail(&pool->payload_lru, &p->in_lru);
    return p->blob;
}

/* Out of memory means it is not kept: the next RUN gets NEED again. */
void
store_put(struct ch_pool *pool, const uint8_t *key, size_t len,
          const uint8_t *body, size_t body_len)
{
    struct payload *p;

    if (store_find(pool, key, len) != NULL) {
        return;
    }
    p = malloc(sizeof(*p) + len);
    if (p == NULL) {
        return;
    }
    p->blob = ch_blob_new(body, body_len);
    p->key_len = len;
    memcpy(p->key, key, len);
    if (p->blob == NULL ||
        ch_table_put(&pool->payloads, key, len, p) != CH_OK) {
        ch_blob_release(p->blob);
        free(p);
        return;
    }
    ch_list_add_tail(&pool->payload_lru, &p->in_lru);
    pool->payload_bytes += body_len;
    while (pool->payload_bytes > POOL_STORE_LIMIT) {
        payload_remove(
            pool, CH_LIST_FIRST(&pool->payload_lru, struct payload, in_lru));
    }
}

void
store_fini(struct ch_pool *pool)
{
    while (!ch_list_empty(&pool->payload_lru)) {
        payload_remove(
            pool, CH_LIST_FIRST(&pool->payload_lru, struct payload, in_lru));
    }
}
