/*
 * hostkey.h - SSH public keys as bytes: their types, and what OpenSSH calls
 * them. No libssh.
 */
#ifndef CH_HOSTKEY_H
#define CH_HOSTKEY_H

#include "ch.h"

/* The type name at the front of a key in wire form (borrowed, not
 * terminated); 0 if there is none. */
size_t ch_hostkey_type(const uint8_t *blob, size_t len, const char **type);
/* Is that a type OpenSSH can have in known_hosts? */
int ch_hostkey_type_is_known(const char *type, size_t len);
/* The type of the keys a host key algorithm uses, or NULL. */
const char *ch_hostkey_of_algorithm(const char *algorithm, size_t len);
/* "ED25519", "RSA", ... as ssh names the key's kind in messages. */
const char *ch_hostkey_kind(const uint8_t *blob, size_t len);

#endif
