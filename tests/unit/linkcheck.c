/*
 * linkcheck.c - drives one kind of link from the command line, for
 * tests/native/test_ssh_link.py. Not a test itself: it prints what happened,
 * one event per line, and the Python side judges.
 *
 *   linkcheck key=value...        (keys of the table below; lists repeat)
 *
 * open / failed CLASS LAYER MESSAGE / exit CHAN RC SIGNAL ERROR
 * stream CHAN NUMBER BYTES SHA1 / text CHAN NUMBER FIRST-200-BYTES
 * sent BYTES SHA1 / stalled TICKS / peak BYTES
 */
#include "../../csrc/link.h"
#include "../../csrc/loop.h"
#include "../../csrc/sha1.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHANS_MAX 64
#define LINKS_MAX 64

struct stream {
    uint8_t *data;
    size_t len, cap;
};

struct run; /* one link */

struct command {
    struct run *run;
    int number;
    struct ch_chan *chan;
    struct stream streams[2];
    int exited, seen_line;
};

struct run {
    struct ch_link *link;
    struct command commands[CHANS_MAX];
    int left, over;
    size_t sent;
    int sending, eof;
};

static struct ch_loop *loop;
static struct ch_link_options options;
static char *lists[8][32];
static char *execs[CHANS_MAX + 1];
static int n_execs, n_links = 1, runs_left, at_once = 1;
static size_t stdin_bytes;
static uint8_t *stdin_data;
static const char *on_line; /* "stop", "kill", "" */
static int pause_ms, drop_ms, drop_chan_ms;
static pid_t peer_pid;
static int ticks, stalled_at = -1;
static struct run runs[LINKS_MAX];

static void
print_text(const char *text, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        if (text[i] == '\r') {
            fputs("\\r", stdout);
        } else if (text[i] == '\n') {
            fputs("\\n", stdout);
        } else {
            putchar(text[i]);
        }
    }
}

static void
print_sum(const uint8_t *data, size_t len)
{
    uint8_t sum[CH_SHA1_LEN];

    ch_sha1(data, len, sum);
    printf("%zu ", len);
    for (size_t i = 0; i < sizeof(sum); i++) {
        printf("%02x", sum[i]);
    }
    putchar('\n');
}

static void
on_end(void *arg)
{
    (void)arg;
    ch_loop_stop(loop);
}

static void
run_over(struct run *run)
{
    if (run->over) {
        return;
    }
    run->over = 1;
    ch_ssh_ops.link_free(run->link);
    run->link = NULL;
    if (--runs_left == 0) {
        /* A thread that signs comes back to the loop first. */
        (void)!ch_loop_timer(loop, 50, on_end, NULL);
    }
}

static void
send_more(struct run *run)
{
    struct ch_chan *chan = run->commands[0].chan;
    long n = 0;

    if (!run->sending || run->eof || chan == NULL) {
        return;
    }
    while (run->sent < stdin_bytes) {
        n = ch_ssh_ops.chan_write(chan, stdin_data + run->sent,
                                  stdin_bytes - run->sent);
        if (n <= 0) {
            break;
        }
        run->sent += (size_t)n;
    }
    if (n < 0 || run->sent == stdin_bytes) {
        run->eof = 1;
        printf("sent ");
        print_sum(stdin_data, run->sent);
        ch_ssh_ops.chan_eof(chan);
    }
}

static void
on_resume(void *arg)
{
    struct command *command = arg;

    if (command->chan != NULL) {
        ch_ssh_ops.chan_pause(command->chan, 0);
    }
}

static void
on_continue(void *arg)
{
    (void)arg;
    printf("stalled %d\n", ticks - stalled_at);
    kill(peer_pid, SIGCONT);
}

static void
saw_line(struct command *command)
{
    if (on_line == NULL || command->number != 0 || command->seen_line) {
        return;
    }
    command->seen_line = 1;
    peer_pid = (pid_t)atol((const char *)command->streams[0].data);
    if (peer_pid <= 1) {
        return;
    }
    if (strcmp(on_line, "kill") == 0) {
        kill(peer_pid, SIGKILL);
    } else if (strcmp(on_line, "stop") == 0) {
        kill(peer_pid, SIGSTOP);
        stalled_at = ticks;
        (void)!ch_loop_timer(loop, 1000, on_continue, NULL);
    }
    command->run->sending = 1;
    send_more(command->run);
}

static void
on_data(void *arg, int number, const uint8_t *data, size_t len)
{
    struct command *command = arg;
    struct stream *s = &command->streams[number - 1];

    if (s->len + len + 1 > s->cap) {
        s->cap = (s->len + len + 1) * 2;
        s->data = realloc(s->data, s->cap);
    }
    memcpy(s->data + s->len, data, len);
    s->len += len;
    s->data[s->len] = 0;
    if (pause_ms > 0) {
        ch_ssh_ops.chan_pause(command->chan, 1);
        (void)!ch_loop_timer(loop, pause_ms, on_resume, command);
    }
    if (number == 1 && memchr(s->data, '\n', s->len) != NULL) {
        saw_line(command);
    }
}

static void
on_writable(void *arg)
{
    send_more(((struct command *)arg)->run);
}

static void
on_exit_(void *arg, int rc, int signal, const char *error)
{
    struct command *command = arg;

    printf("exit %d %d %d ", command->number, rc, signal);
    print_text(error == NULL ? "" : error, error == NULL ? 0 : strlen(error));
    putchar('\n');
    for (int i = 0; i < 2; i++) {
        struct stream *s = &command->streams[i];

        printf("stream %d %d ", command->number, i + 1);
        print_sum(s->data, s->len);
        printf("text %d %d ", command->number, i + 1);
        print_text((const char *)s->data, s->len < 200 ? s->len : 200);
        putchar('\n');
    }
    fflush(stdout);
    command->exited = 1;
    if (strcmp(error == NULL ? "" : error, "") != 0) {
        command->chan = NULL; /* leave it to link_free: both must work */
    } else {
        ch_ssh_ops.chan_free(command->chan);
        command->chan = NULL;
    }
    if (--command->run->left == 0 && (error == NULL || *error == '\0')) {
        run_over(command->run);
    }
}

static const struct ch_chan_events chan_events = {on_data, on_writable,
                                                  on_exit_};

static void
start_command(struct run *run, int i)
{
    struct command *command = &run->commands[i];

    if (ch_ssh_ops.chan_new(run->link, execs[i], NULL, &chan_events, command,
                            &command->chan) != CH_OK) {
        printf("chan_new failed\n");
        exit(1);
    }
}

static void
on_drop_chan(void *arg)
{
    struct run *run = arg;

    if (run->commands[0].chan != NULL) {
        ch_ssh_ops.chan_free(run->commands[0].chan);
        run->commands[0].chan = NULL;
        run->left--;
        printf("dropped chan\n");
    }
}

static void
on_open(void *arg, int64_t connect_us, int64_t auth_us, const char *banner)
{
    struct run *run = arg;

    printf("open %s %s\n",
           connect_us > 0 && auth_us >= connect_us ? "ok" : "?", banner);
    fflush(stdout);
    if (n_execs == 0) {
        run_over(run);
        return;
    }
    run->left = n_execs;
    for (int i = 0; i < n_execs; i++) {
        start_command(run, i);
    }
    if (on_line == NULL) {
        run->sending = stdin_bytes > 0;
        if (run->sending) {
            send_more(run);
        } else {
            for (int i = 0; i < n_execs; i++) {
                ch_ssh_ops.chan_eof(run->commands[i].chan);
            }
        }
    }
    if (drop_chan_ms > 0) {
        (void)!ch_loop_timer(loop, drop_chan_ms, on_drop_chan, run);
    }
}

static void
on_failed(void *arg, const char *fail_class, const char *layer,
          const char *message)
{
    printf("failed %s %s ", fail_class, layer);
    print_text(message, strlen(message));
    putchar('\n');
    fflush(stdout);
    run_over(arg);
}

static void
on_tick(void *arg)
{
    (void)arg;
    ticks++;
    (void)!ch_loop_timer(loop, 5, on_tick, NULL);
}

static void
on_drop(void *arg)
{
    (void)arg;
    printf("dropped\n");
    for (int i = 0; i < n_links; i++) {
        run_over(&runs[i]);
    }
}

static void
on_too_long(void *arg)
{
    (void)arg;
    printf("linkcheck: gave up\n");
    fflush(stdout);
    _Exit(3);
}

static void
add(char **list, char *value)
{
    while (*list != NULL) {
        list++;
    }
    *list = value;
}

static int
set(const char *key, char *value)
{
    static const struct {
        const char *key;
        const char **text;
    } texts[] = {
        {"host", &options.host},
        {"user", &options.user},
        {"agent", &options.identity_agent},
        {"password", &options.password},
        {"check", &options.host_key_checking},
        {"alias", &options.host_key_alias},
        {"ciphers", &options.ciphers},
        {"macs", &options.macs},
        {"kex", &options.kex},
        {"hostkeys", &options.host_key_algorithms},
        {"pubkeys", &options.pubkey_algorithms},
        {"family", &options.address_family},
        {"bind", &options.bind_address},
        {"on_line", &on_line},
    };
    static const char *const list_keys[] = {"identity", "auth", "known",
                                            "global", "env"};
    char ***const list_fields[] = {&options.identity_files, &options.auth,
                                   &options.known_hosts,
                                   &options.global_known_hosts, &options.env};

    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        if (strcmp(key, texts[i].key) == 0) {
            *texts[i].text = value;
            return 1;
        }
    }
    for (size_t i = 0; i < 5; i++) {
        if (strcmp(key, list_keys[i]) == 0) {
            *list_fields[i] = lists[i];
            add(lists[i], value);
            return 1;
        }
    }
    return 0;
}

static int
set_number(const char *key, char *value)
{
    int n = atoi(value);

    if (strcmp(key, "exec") == 0 && n_execs < CHANS_MAX) {
        execs[n_execs++] = value;
    } else if (strcmp(key, "port") == 0) {
        options.port = n;
    } else if (strcmp(key, "timeout_ms") == 0) {
        options.timeout_ms = n;
    } else if (strcmp(key, "login_timeout_ms") == 0) {
        options.login_timeout_ms = n;
    } else if (strcmp(key, "only") == 0) {
        options.identities_only = n;
    } else if (strcmp(key, "hash") == 0) {
        options.hash_known_hosts = n;
    } else if (strcmp(key, "rekey_bytes") == 0) {
        options.rekey_bytes = n;
    } else if (strcmp(key, "rekey_seconds") == 0) {
        options.rekey_seconds = n;
    } else if (strcmp(key, "stdin") == 0) {
        stdin_bytes = (size_t)n;
    } else if (strcmp(key, "links") == 0 && n <= LINKS_MAX) {
        n_links = n;
    } else if (strcmp(key, "pause_ms") == 0) {
        pause_ms = n;
    } else if (strcmp(key, "drop_ms") == 0) {
        drop_ms = n;
    } else if (strcmp(key, "drop_chan_ms") == 0) {
        drop_chan_ms = n;
    } else {
        return 0;
    }
    return 1;
}

static void
fill(void)
{
    uint32_t x = 1;

    stdin_data = malloc(stdin_bytes + 1);
    for (size_t i = 0; i < stdin_bytes; i++) {
        x = x * 1664525u + 1013904223u;
        stdin_data[i] = (uint8_t)(x >> 24);
    }
}

static const struct ch_link_events link_events = {on_open, on_failed};

int
main(int argc, char **argv)
{
    (void)at_once;
    for (int i = 1; i < argc; i++) {
        char *value = strchr(argv[i], '=');

        if (value == NULL) {
            return 2;
        }
        *value++ = '\0';
        if (!set(argv[i], value) && !set_number(argv[i], value)) {
            fprintf(stderr, "linkcheck: %s?\n", argv[i]);
            return 2;
        }
    }
    signal(SIGPIPE, SIG_IGN);
    loop = ch_loop_new();
    fill();
    runs_left = n_links;
    for (int i = 0; i < n_links; i++) {
        for (int k = 0; k < CHANS_MAX; k++) {
            runs[i].commands[k].run = &runs[i];
            runs[i].commands[k].number = k;
        }
        runs[i].link =
            ch_ssh_ops.link_new(loop, &options, &link_events, &runs[i]);
        if (runs[i].link == NULL) {
            return 1;
        }
    }
    on_tick(NULL);
    (void)!ch_loop_timer(loop, 60000, on_too_long, NULL);
    if (drop_ms > 0) {
        (void)!ch_loop_timer(loop, drop_ms, on_drop, NULL);
    }
    if (ch_loop_run(loop) != CH_OK) {
        return 1;
    }
    for (int i = 0; i < n_links; i++) {
        for (int k = 0; k < CHANS_MAX; k++) {
            free(runs[i].commands[k].streams[0].data);
            free(runs[i].commands[k].streams[1].data);
        }
    }
    free(stdin_data);
    ch_loop_free(loop);
    return 0;
}
