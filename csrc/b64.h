/*
 * b64.h - base64 with the standard alphabet, as known_hosts and key files
 * use it.
 */
#ifndef CH_B64_H
#define CH_B64_H

#include "ch.h"

/* Bytes of text for n bytes of data, without the final NUL. */
#define CH_B64_LEN(n) (((n) + 2) / 3 * 4)

/* Writes CH_B64_LEN(len) characters and a NUL to out. */
void ch_b64_encode(char *out, const uint8_t *data, size_t len);
/* Decodes exactly len characters into out (room bytes). *used is set.
 * CH_ERR_FORMAT on any foreign character, wrong padding or non-zero rest
 * bits, CH_ERR_LIMIT if room is too small. */
CH_MUST_USE int ch_b64_decode(const char *text, size_t len, uint8_t *out,
                              size_t room, size_t *used);

#endif
