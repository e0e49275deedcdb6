/*
 * py_facts_share.c - churten._core.FactsShare: what the facts of many hosts
 * have in common is in memory once.
 *
 * WHY. Facts as Python objects take more room than as text: a dict of twenty
 * names is 460 bytes, however equal it is on all hosts. The built-in plugin
 * keeps texts.
 *
 * HOW. Each decoded dict or list that holds nothing but plain values and
 * containers found here already is looked for in a table. If an equal one is
 * there that these facts have not used yet, it takes the new one's place.
 *
 * WHAT HOLDS. Equal means: the same types, the same values, the same order of
 * names, floats bit for bit. One facts object never holds a container twice,
 * so a copy of it has no two places that change together; the root is never
 * shared. Whoever reads facts from the cache copies them before anything may
 * change (ansible-core does, and churten.compat.facts_memo). The table does
 * not grow and forgets nothing: what comes first is what is shared.
 *
 * OWNERSHIP. The table keeps a reference to each container in it, so nothing
 * that is compared by address can go away.
 */
#include "py_facts.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define SLOTS 32768u          /* a power of two */
#define FILLED (SLOTS / 4 * 3) /* no new ones beyond */
#define TRIES 128
#define MEMBERS 64 /* larger ones are rarely equal */

struct slot {
    uint64_t hash;
    PyObject *made; /* owned; NULL: free */
    uint64_t used;  /* number of the facts that have it */
};

typedef struct {
    PyObject_HEAD
    struct slot *slots; /* owned */
    size_t filled;
    uint64_t facts; /* number of the facts being decoded */
} ShareObject;

static uint64_t
mixed(uint64_t hash, uint64_t word)
{
    hash = (hash ^ word) * 0x9E3779B97F4A7C15u;
    return hash ^ hash >> 29;
}

/* A word for a value that is no container, or is one of the table. */
static uint64_t
word_of(PyObject *value)
{
    uint64_t word;

    if (PyUnicode_CheckExact(value)) {
        return (uint64_t)PyObject_Hash(value);
    }
    if (PyLong_CheckExact(value)) {
        return (uint64_t)PyObject_Hash(value) ^ 0x5555u;
    }
    if (PyFloat_CheckExact(value)) {
        double number = PyFloat_AS_DOUBLE(value);

        memcpy(&word, &number, sizeof(word));
        return word;
    }
    return (uint64_t)(uintptr_t)value;
}

static int
same_value(PyObject *a, PyObject *b)
{
    int overflow_a, overflow_b;

    if (a == b) {
        return 1;
    }
    if (Py_TYPE(a) != Py_TYPE(b)) {
        return 0;
    }
    if (PyUnicode_CheckExact(a)) {
        return PyUnicode_Compare(a, b) == 0;
    }
    if (PyLong_CheckExact(a)) {
        return PyLong_AsLongLongAndOverflow(a, &overflow_a) ==
                   PyLong_AsLongLongAndOverflow(b, &overflow_b) &&
               !overflow_a && !overflow_b;
    }
    if (PyFloat_CheckExact(a)) {
        return word_of(a) == word_of(b);
    }
    return 0;
}

static uint64_t
hash_of(PyObject *made)
{
    PyObject *key, *value;
    Py_ssize_t at = 0;
    uint64_t hash;

    if (PyList_CheckExact(made)) {
        hash = mixed(1, (uint64_t)PyList_GET_SIZE(made));
        for (Py_ssize_t i = 0; i < PyList_GET_SIZE(made); i++) {
            hash = mixed(hash, word_of(PyList_GET_ITEM(made, i)));
        }
        return hash;
    }
    hash = mixed(2, (uint64_t)PyDict_GET_SIZE(made));
    while (PyDict_Next(made, &at, &key, &value)) {
        hash = mixed(mixed(hash, word_of(key)), word_of(value));
    }
    return hash;
}

static int
same_dict(PyObject *a, PyObject *b)
{
    PyObject *key_a, *key_b, *value_a, *value_b;
    Py_ssize_t at_a = 0, at_b = 0;

    if (PyDict_GET_SIZE(a) != PyDict_GET_SIZE(b)) {
        return 0;
    }
    while (PyDict_Next(a, &at_a, &key_a, &value_a) &&
           PyDict_Next(b, &at_b, &key_b, &value_b)) {
        if (!same_value(key_a, key_b) || !same_value(value_a, value_b)) {
            return 0;
        }
    }
    return 1;
}

static int
same_made(PyObject *a, PyObject *b)
{
    if (Py_TYPE(a) != Py_TYPE(b)) {
        return 0;
    }
    if (PyDict_CheckExact(a)) {
        return same_dict(a, b);
    }
    if (PyList_GET_SIZE(a) != PyList_GET_SIZE(b)) {
        return 0;
    }
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(a); i++) {
        if (!same_value(PyList_GET_ITEM(a, i), PyList_GET_ITEM(b, i))) {
            return 0;
        }
    }
    return 1;
}

PyObject *
ch_facts_share(PyObject *share, PyObject *made, int *shared)
{
    ShareObject *self = (ShareObject *)share;
    uint64_t hash;

    *shared = 0;
    if ((PyDict_CheckExact(made) ? PyDict_GET_SIZE(made)
                                 : PyList_GET_SIZE(made)) > MEMBERS) {
        return made;
    }
    hash = hash_of(made);
    for (int i = 0; i < TRIES; i++, hash = mixed(hash, 3)) {
        struct slot *slot = &self->slots[hash & (SLOTS - 1)];

        if (slot->made == NULL) {
            if (self->filled >= FILLED) {
                return made;
            }
            *slot = (struct slot){hash, Py_NewRef(made), self->facts};
            self->filled++;
            *shared = 1;
            return made;
        }
        if (slot->hash == hash && slot->used != self->facts &&
            same_made(slot->made, made)) {
            slot->used = self->facts;
            Py_DECREF(made);
            *shared = 1;
            return Py_NewRef(slot->made);
        }
    }
    return made;
}

void
ch_facts_share_next(PyObject *share)
{
    ((ShareObject *)share)->facts++;
}

int
ch_facts_share_check(ch_state *state, PyObject *share)
{
    return Py_IS_TYPE(share, (PyTypeObject *)state->facts_share);
}

static PyObject *
share_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {NULL};
    ShareObject *self;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, ":FactsShare", names)) {
        return NULL;
    }
    self = (ShareObject *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->slots = PyMem_Calloc(SLOTS, sizeof(*self->slots));
    if (self->slots == NULL) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    return (PyObject *)self;
}

static void
share_dealloc(PyObject *op)
{
    ShareObject *self = (ShareObject *)op;
    PyTypeObject *type = Py_TYPE(op);

    for (size_t i = 0; self->slots != NULL && i < SLOTS; i++) {
        Py_XDECREF(self->slots[i].made);
    }
    PyMem_Free(self->slots);
    type->tp_free(op);
    Py_DECREF(type);
}

static PyType_Slot share_slots[] = {
    {Py_tp_new, share_new},
    {Py_tp_dealloc, share_dealloc},
    {Py_tp_doc, "FactsShare(): for facts_decode: equal parts of the facts of "
                "many hosts are one object."},
    {0, NULL},
};

static PyType_Spec share_spec = {
    .name = "churten._core.FactsShare",
    .basicsize = sizeof(ShareObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = share_slots,
};

int
ch_py_facts_share_setup(PyObject *module)
{
    ch_state *state = PyModule_GetState(module);

    state->facts_share = PyType_FromModuleAndSpec(module, &share_spec, NULL);
    return state->facts_share == NULL
               ? -1
               : PyModule_AddType(module, (PyTypeObject *)state->facts_share);
}
