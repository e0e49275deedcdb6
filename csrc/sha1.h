/*
 * sha1.h - SHA-1 and its HMAC, only for the hashed host names of known_hosts
 * (a format, not a protection; nothing here relies on SHA-1 being strong).
 */
#ifndef CH_SHA1_H
#define CH_SHA1_H

#include "ch.h"

#define CH_SHA1_LEN 20u

void ch_sha1(const uint8_t *data, size_t len, uint8_t out[CH_SHA1_LEN]);
/* key_len <= 64. */
void ch_hmac_sha1(const uint8_t *key, size_t key_len, const uint8_t *data,
                  size_t len, uint8_t out[CH_SHA1_LEN]);

#endif
