/* sha1.c - FIPS 180-4 SHA-1 and RFC 2104 HMAC, straight from the texts. */
#include "sha1.h"

#include <assert.h>
#include <string.h>

#define BLOCK 64u

struct sha1 {
    uint32_t h[5];
    uint64_t total; /* bytes so far */
    uint8_t block[BLOCK];
};

static uint32_t
rotate(uint32_t v, unsigned n)
{
    return v << n | v >> (32 - n);
}

static void
sha1_block(struct sha1 *s)
{
    uint32_t w[80], a = s->h[0], b = s->h[1], c = s->h[2], d = s->h[3],
                    e = s->h[4];

    for (unsigned t = 0; t < 16; t++) {
        const uint8_t *p = s->block + 4 * t;

        w[t] = (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 |
               (uint32_t)p[2] << 8 | p[3];
    }
    for (unsigned t = 16; t < 80; t++) {
        w[t] = rotate(w[t - 3] ^ w[t - 8] ^ w[t - 14] ^ w[t - 16], 1);
    }
    for (unsigned t = 0; t < 80; t++) {
        uint32_t f, k, next;

        if (t < 20) {
            f = (b & c) | (~b & d);
            k = 0x5a827999;
        } else if (t < 40) {
            f = b ^ c ^ d;
            k = 0x6ed9eba1;
        } else if (t < 60) {
            f = (b & c) | (b & d) | (c & d);
            k = 0x8f1bbcdc;
        } else {
            f = b ^ c ^ d;
            k = 0xca62c1d6;
        }
        next = rotate(a, 5) + f + e + k + w[t];
        e = d;
        d = c;
        c = rotate(b, 30);
        b = a;
        a = next;
    }
    s->h[0] += a;
    s->h[1] += b;
    s->h[2] += c;
    s->h[3] += d;
    s->h[4] += e;
}

static void
sha1_init(struct sha1 *s)
{
    static const uint32_t start[5] = {0x67452301, 0xefcdab89, 0x98badcfe,
                                      0x10325476, 0xc3d2e1f0};

    memcpy(s->h, start, sizeof(start));
    s->total = 0;
}

static void
sha1_add(struct sha1 *s, const uint8_t *data, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        s->block[s->total++ % BLOCK] = data[i];
        if (s->total % BLOCK == 0) {
            sha1_block(s);
        }
    }
}

static void
sha1_end(struct sha1 *s, uint8_t out[CH_SHA1_LEN])
{
    static const uint8_t one = 0x80, zero = 0;
    uint64_t bits = s->total * 8;
    uint8_t length[8];

    sha1_add(s, &one, 1);
    while (s->total % BLOCK != BLOCK - sizeof(length)) {
        sha1_add(s, &zero, 1);
    }
    for (unsigned i = 0; i < 8; i++) {
        length[i] = (uint8_t)(bits >> (56 - 8 * i));
    }
    sha1_add(s, length, sizeof(length));
    for (unsigned i = 0; i < CH_SHA1_LEN; i++) {
        out[i] = (uint8_t)(s->h[i / 4] >> (24 - 8 * (i % 4)));
    }
}

void
ch_sha1(const uint8_t *data, size_t len, uint8_t out[CH_SHA1_LEN])
{
    struct sha1 s;

    sha1_init(&s);
    sha1_add(&s, data, len);
    sha1_end(&s, out);
}

void
ch_hmac_sha1(const uint8_t *key, size_t key_len, const uint8_t *data,
             size_t len, uint8_t out[CH_SHA1_LEN])
{
    uint8_t pad[BLOCK], inner[CH_SHA1_LEN];
    struct sha1 s;

    assert(key_len <= BLOCK);
    memset(pad, 0x36, sizeof(pad));
    for (size_t i = 0; i < key_len; i++) {
        pad[i] ^= key[i];
    }
    sha1_init(&s);
    sha1_add(&s, pad, sizeof(pad));
    sha1_add(&s, data, len);
    sha1_end(&s, inner);
    for (size_t i = 0; i < sizeof(pad); i++) {
        pad[i] ^= 0x36 ^ 0x5c;
    }
    sha1_init(&s);
    sha1_add(&s, pad, sizeof(pad));
    sha1_add(&s, inner, sizeof(inner));
    sha1_end(&s, out);
}
