/* fuzz_knownhosts.c - any bytes as a known_hosts file: no crash, and no key
 * is accepted that is not in it. Input: one flag byte, then the file. */
#include <stdlib.h>
#include <string.h>

#include "../../csrc/knownhosts.h"

/* A key no input of the fuzzer contains by chance. */
static const uint8_t stranger[] = {
    0,   0, 0, 11, 's', 's',  'h',  '-',  'e',  'd',  '2',  '5',  '5', '1',
    '9', 0, 0, 0,  8,   0x9c, 0x31, 0x77, 0xe0, 0x15, 0xc8, 0x4a, 0xb6};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct ch_host_query query = {.host = "host.example", .port = 22};
    struct ch_known_hosts *known = NULL;
    char *order = NULL;

    if (size == 0) {
        return 0;
    }
    query.port = (data[0] & 1) ? 2222 : 22;
    query.alias = (data[0] & 2) ? "Alias" : NULL;
    if (ch_known_hosts_parse(&query, "file", (const char *)data + 1, size - 1,
                             &known) != CH_OK) {
        return 0;
    }
    if (ch_known_hosts_check(known, stranger, sizeof(stranger), NULL, NULL) ==
        CH_HOST_OK) {
        abort();
    }
    if (ch_known_hosts_order(known, "ssh-ed25519,rsa-sha2-512,,x", &order) ==
        CH_OK) {
        /* The same algorithms, but for empty names, in some order. */
        if (strlen(order) > strlen("ssh-ed25519,rsa-sha2-512,,x")) {
            abort();
        }
    }
    free(order);
    ch_known_hosts_free(known);
    return 0;
}
