/*
 * list.h - an intrusive doubly linked list: a ring through a member of the
 * elements, with a head that is not an element. An element that is in no
 * list points to itself.
 */
#ifndef CH_LIST_H
#define CH_LIST_H

#include <stddef.h>

struct ch_list {
    struct ch_list *next, *prev;
};

static inline void
ch_list_init(struct ch_list *at)
{
    at->next = at->prev = at;
}

static inline int
ch_list_empty(const struct ch_list *at)
{
    return at->next == at;
}

static inline void
ch_list_add_tail(struct ch_list *head, struct ch_list *at)
{
    at->next = head;
    at->prev = head->prev;
    head->prev->next = at;
    head->prev = at;
}

static inline void
ch_list_remove(struct ch_list *at)
{
    at->prev->next = at->next;
    at->next->prev = at->prev;
    ch_list_init(at);
}

#define CH_LIST_OF(at, type, member)                                          \
    ((type *)(void *)((char *)(at)-offsetof(type, member)))
#define CH_LIST_FIRST(head, type, member)                                     \
    (ch_list_empty(head) ? NULL : CH_LIST_OF((head)->next, type, member))
#define CH_LIST_EACH(at, head)                                                \
    for (struct ch_list *at = (head)->next; at != (head); at = at->next)
/* For bodies that remove the element they are at, and no other. */
#define CH_LIST_EACH_SAFE(at, head)                                           \
    for (struct ch_list *at = (head)->next, *at##_next;                       \
         at != (head) && (at##_next = at->next, 1); at = at##_next)

#endif
