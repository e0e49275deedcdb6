/* b64.c - base64: three bytes are four characters. */
#include "b64.h"

static const char alphabet[] =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

void
ch_b64_encode(char *out, const uint8_t *data, size_t len)
{
    for (size_t i = 0; i < len; i += 3) {
        size_t left = len - i;
        uint32_t v = (uint32_t)data[i] << 16;

        if (left > 1) {
            v |= (uint32_t)data[i + 1] << 8;
        }
        if (left > 2) {
            v |= data[i + 2];
        }
        *out++ = alphabet[v >> 18];
        *out++ = alphabet[(v >> 12) & 63];
        *out++ = left > 1 ? alphabet[(v >> 6) & 63] : '=';
        *out++ = left > 2 ? alphabet[v & 63] : '=';
    }
    *out = '\0';
}

static int
b64_value(char c)
{
    if (c >= 'A' && c <= 'Z') {
        return c - 'A';
    }
    if (c >= 'a' && c <= 'z') {
        return c - 'a' + 26;
    }
    if (c >= '0' && c <= '9') {
        return c - '0' + 52;
    }
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

int
ch_b64_decode(const char *text, size_t len, uint8_t *out, size_t room,
              size_t *used)
{
    size_t n = 0, pad = 0;

    *used = 0;
    if (len == 0 || len % 4 != 0) {
        return CH_ERR_FORMAT;
    }
    while (pad < 2 && text[len - 1 - pad] == '=') {
        pad++;
    }
    if (len / 4 * 3 - pad > room) {
        return CH_ERR_LIMIT;
    }
    for (size_t i = 0; i < len; i += 4) {
        size_t drop = i + 4 == len ? pad : 0; /* bytes missing at the end */
        uint32_t v = 0;

        for (size_t k = 0; k < 4; k++) {
            int bits = k + drop >= 4 ? 0 : b64_value(text[i + k]);

            if (bits < 0) {
                return CH_ERR_FORMAT;
            }
            v = v << 6 | (uint32_t)bits;
        }
        if (v & ((1u << (8 * drop)) - 1u)) {
            return CH_ERR_FORMAT;
        }
        for (size_t k = 0; k < 3 - drop; k++) {
            out[n++] = (uint8_t)(v >> (16 - 8 * k));
        }
    }
    *used = n;
    return CH_OK;
}
