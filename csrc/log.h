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
/* What is written: errors; sessions, agents and clients too (the default);
 * every request too. */
enum ch_log_level { CH_LOG_ERROR, CH_LOG_INFO, CH_LOG_DEBUG };
/* "error", "info" or "debug"; CH_ERR_UNSUPPORTED for another word. */
CH_MUST_USE int ch_log_set_level(const char *word);
/* One line with time stamp and level; control characters are escaped. */
void ch_log_at(enum ch_log_level level, const char *format, ...)
    CH_PRINTF(2, 3);
#define ch_log(...) ch_log_at(CH_LOG_INFO, __VA_ARGS__)

/* Text from a peer made safe for logs and messages: control characters
 * become \xNN, invalid UTF-8 too, cut at size - 1. Returns out. */
char *ch_text_escape(char *out, size_t size, const uint8_t *text, size_t len);
/* The same for messages that people read: newline, return and tab stay. */
char *ch_text_clean(char *out, size_t size, const uint8_t *text, size_t len);

#endif
