/*
 * zip.h - bodies of frames with the ZLIB flag: a u32 raw length, then a zlib
 * stream. The only part that knows zlib.
 */
#ifndef CH_ZIP_H
#define CH_ZIP_H

#include "buf.h"
#include "ch.h"

#define CH_ZIP_MIN 1024u /* smaller bodies are never compressed */

/* Appends the compressed form of data to out if that saves at least 10 %;
 * CH_ERR_UNSUPPORTED and out unchanged if it does not. */
CH_MUST_USE int ch_zip_deflate(const uint8_t *data, size_t len,
                               struct ch_buf *out);

/* The raw length a compressed body claims: CH_OK, or CH_ERR_PROTOCOL if it
 * is over max or the body is too short. */
CH_MUST_USE int ch_zip_raw_len(const uint8_t *body, size_t len, size_t max,
                               size_t *raw_len);

/* Inflates body into place, which has room for exactly the raw length.
 * CH_ERR_PROTOCOL if the stream is damaged, longer or shorter. */
CH_MUST_USE int ch_zip_inflate(const uint8_t *body, size_t len, uint8_t *place,
                               size_t raw_len);

/* Inflates only the first bytes (at most size); *got says how many. */
CH_MUST_USE int ch_zip_peek(const uint8_t *body, size_t len, uint8_t *place,
                            size_t size, size_t *got);

#endif
