/* zip.c - compressed bodies; the only file with zlib. */
#include "zip.h"

#include <string.h>
#include <zlib.h>

#define ZIP_LEVEL 1 /* a module's arguments shrink 3x at 200 MB/s */
#define ZIP_HEAD  4u

int
ch_zip_deflate(const uint8_t *data, size_t len, struct ch_buf *out)
{
    uint8_t *place = NULL;
    uLongf got;
    size_t most;
    int r;

    if (len <= CH_ZIP_MIN || len > UINT32_MAX) {
        return CH_ERR_UNSUPPORTED;
    }
    most = ZIP_HEAD + compressBound((uLong)len);
    r = ch_buf_room(out, most, &place);
    if (r != CH_OK) {
        return r;
    }
    got = (uLongf)(most - ZIP_HEAD);
    if (compress2(place + ZIP_HEAD, &got, data, (uLong)len, ZIP_LEVEL) !=
        Z_OK) {
        return CH_ERR_NOMEM;
    }
    if (got + ZIP_HEAD > len - len / 10) {
        return CH_ERR_UNSUPPORTED;
    }
    place[0] = (uint8_t)(len >> 24);
    place[1] = (uint8_t)(len >> 16);
    place[2] = (uint8_t)(len >> 8);
    place[3] = (uint8_t)len;
    ch_buf_added(out, got + ZIP_HEAD);
    return CH_OK;
}

int
ch_zip_raw_len(const uint8_t *body, size_t len, size_t max, size_t *raw_len)
{
    if (len <= ZIP_HEAD) {
        return CH_ERR_PROTOCOL;
    }
    *raw_len = ((size_t)body[0] << 24) | ((size_t)body[1] << 16) |
               ((size_t)body[2] << 8) | body[3];
    return *raw_len <= max ? CH_OK : CH_ERR_PROTOCOL;
}

int
ch_zip_inflate(const uint8_t *body, size_t len, uint8_t *place, size_t raw_len)
{
    uLongf got = (uLongf)raw_len;
    uLong used = (uLong)(len - ZIP_HEAD);
    int z;

    if (len <= ZIP_HEAD) {
        return CH_ERR_PROTOCOL;
    }
    z = uncompress2(place, &got, body + ZIP_HEAD, &used);
    if (z == Z_MEM_ERROR) {
        return CH_ERR_NOMEM;
    }
    return z == Z_OK && got == raw_len && used == len - ZIP_HEAD
               ? CH_OK
               : CH_ERR_PROTOCOL;
}

int
ch_zip_peek(const uint8_t *body, size_t len, uint8_t *place, size_t size,
            size_t *got)
{
    z_stream z;
    int r;

    if (len <= ZIP_HEAD) {
        return CH_ERR_PROTOCOL;
    }
    memset(&z, 0, sizeof(z));
    if (inflateInit(&z) != Z_OK) {
        return CH_ERR_NOMEM;
    }
    z.next_in = (Bytef *)(uintptr_t)(body + ZIP_HEAD);
    z.avail_in = (uInt)(len - ZIP_HEAD);
    z.next_out = place;
    z.avail_out = (uInt)size;
    r = inflate(&z, Z_SYNC_FLUSH);
    *got = size - z.avail_out;
    inflateEnd(&z);
    return r == Z_OK || r == Z_STREAM_END || r == Z_BUF_ERROR
               ? CH_OK
               : CH_ERR_PROTOCOL;
}
