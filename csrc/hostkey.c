/* hostkey.c - one table of key types, algorithms and names. */
#include "hostkey.h"

#include <string.h>

/* Key types OpenSSH can have in known_hosts, with the algorithms that use
 * them (all of one type must stand together). */
static const struct {
    const char *algorithm, *type, *kind;
} key_types[] = {
    {"ssh-ed25519", "ssh-ed25519", "ED25519"},
    {"ecdsa-sha2-nistp256", "ecdsa-sha2-nistp256", "ECDSA"},
    {"ecdsa-sha2-nistp384", "ecdsa-sha2-nistp384", "ECDSA"},
    {"ecdsa-sha2-nistp521", "ecdsa-sha2-nistp521", "ECDSA"},
    {"rsa-sha2-512", "ssh-rsa", "RSA"},
    {"rsa-sha2-256", "ssh-rsa", "RSA"},
    {"ssh-rsa", "ssh-rsa", "RSA"},
    {"ssh-dss", "ssh-dss", "DSA"},
    {"sk-ssh-ed25519@openssh.com", "sk-ssh-ed25519@openssh.com", "ED25519-SK"},
    {"sk-ecdsa-sha2-nistp256@openssh.com",
     "sk-ecdsa-sha2-nistp256@openssh.com", "ECDSA-SK"},
};
#define N_KEY_TYPES (sizeof(key_types) / sizeof(key_types[0]))

static uint32_t
read_u32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 |
           p[3];
}

size_t
ch_hostkey_type(const uint8_t *blob, size_t len, const char **type)
{
    uint32_t n;

    if (len < 4) {
        return 0;
    }
    n = read_u32(blob);
    if (n > len - 4 || n > 255) {
        return 0;
    }
    *type = (const char *)blob + 4;
    return n;
}

int
ch_hostkey_type_is_known(const char *type, size_t len)
{
    for (size_t i = 0; i < N_KEY_TYPES; i++) {
        if (strlen(key_types[i].type) == len &&
            memcmp(key_types[i].type, type, len) == 0) {
            return 1;
        }
    }
    return 0;
}

const char *
ch_hostkey_of_algorithm(const char *algorithm, size_t len)
{
    for (size_t i = 0; i < N_KEY_TYPES; i++) {
        if (strlen(key_types[i].algorithm) == len &&
            memcmp(key_types[i].algorithm, algorithm, len) == 0) {
            return key_types[i].type;
        }
    }
    return NULL;
}

const char *
ch_hostkey_kind(const uint8_t *blob, size_t len)
{
    const char *type;
    size_t n = ch_hostkey_type(blob, len, &type);

    for (size_t i = 0; n > 0 && i < N_KEY_TYPES; i++) {
        if (strlen(key_types[i].type) == n &&
            memcmp(key_types[i].type, type, n) == 0) {
            return key_types[i].kind;
        }
    }
    return "unknown";
}
