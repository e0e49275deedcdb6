/*
 * log.h - the pool's log: one line per event, to a file or nowhere. No
 * secrets, no module arguments, no output of modules.
 */
#ifndef CH_LOG_H
#define CH_LOG_H

#include "ch.h"

/* Opens path for appending (0600, no symlink followed); NULL: log nothing.
 * CH_ERR_SYS, or CH_ERR_REFUSED if it is not a file of ours. */
CH_MUST_USE int ch_log_open(const char *path);
void ch_log_close(void);
/* One line with time stamp; control characters are escaped. */
void ch_log(const char *format, ...) CH_PRINTF(1, 2);

/* Text from a peer made safe for logs and messages: control characters
 * become \xNN, invalid UTF-8 too, cut at size - 1. Returns out. */
char *ch_text_escape(char *out, size_t size, const uint8_t *text, size_t len);
/* The same for messages that people read: newline, return and tab stay. */
char *ch_text_clean(char *out, size_t size, const uint8_t *text, size_t len);

#endif
