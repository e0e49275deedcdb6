/* link.c - finds the implementation of a transport by its name and passes
 * each call on to it. */
#include "link.h"

#include <string.h>

static const struct ch_link_ops *const all_ops[] = {
    &ch_ssh_ops,
    &ch_sshproc_ops,
    &ch_local_ops,
};

static const struct ch_link_ops *
ops_of(const void *object)
{
    return ((const struct ch_link_head *)object)->ops;
}

static const struct ch_link_ops *
ops_find(const char *transport)
{
    for (size_t i = 0; i < sizeof(all_ops) / sizeof(*all_ops); i++) {
        if (strcmp(all_ops[i]->transport, transport) == 0) {
            return all_ops[i];
        }
    }
    return NULL;
}

int
ch_link_known(const char *transport)
{
    return ops_find(transport) != NULL;
}

struct ch_link *
ch_link_new(struct ch_loop *loop, const struct ch_link_options *options,
            const struct ch_link_events *events, void *arg)
{
    const struct ch_link_ops *ops = ops_find(options->transport);

    return ops == NULL ? NULL : ops->link_new(loop, options, events, arg);
}

void
ch_link_free(struct ch_link *link)
{
    if (link != NULL) {
        ops_of(link)->link_free(link);
    }
}

int
ch_chan_new(struct ch_link *link, const char *command, const char *term,
            const struct ch_chan_events *events, void *arg,
            struct ch_chan **out)
{
    return ops_of(link)->chan_new(link, command, term, events, arg, out);
}

long
ch_chan_write(struct ch_chan *chan, const uint8_t *data, size_t len)
{
    return ops_of(chan)->chan_write(chan, data, len);
}

long
ch_chan_backlog(const struct ch_chan *chan)
{
    return ops_of(chan)->chan_backlog(chan);
}

void
ch_chan_eof(struct ch_chan *chan)
{
    ops_of(chan)->chan_eof(chan);
}

void
ch_chan_pause(struct ch_chan *chan, int pause)
{
    ops_of(chan)->chan_pause(chan, pause);
}

void
ch_chan_free(struct ch_chan *chan)
{
    if (chan != NULL) {
        ops_of(chan)->chan_free(chan);
    }
}
