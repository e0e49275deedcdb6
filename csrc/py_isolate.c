/*
 * py_isolate.c - isolate(obj): a copy of obj that shares no container.
 *
 * WHY. Stock Ansible runs each task in a forked process, so nothing a task
 * does to its variables reaches the controller. A fiber lives in the
 * controller. It gets task variables whose dicts, lists and sets are its
 * own; everything inside them that cannot change is shared.
 *
 * WHAT HOLDS. Two references to one container stay two references to one
 * copy (a memo by address), cycles included. Exact dict, list, tuple and
 * set, and subclasses of dict, list and set whose only extra state is the
 * slot _ansible_tags_mapping (ansible-core's tagged containers) are copied
 * here. Other subclasses of dict, list and set go through copy.copy() and
 * have their items isolated in place. Objects of all other types are
 * shared: they are immutable, or the controller's own (HostVars).
 *
 * OWNERSHIP. The memo borrows its keys (alive as long as obj is) and its
 * values (alive as long as the result is, which the caller holds).
 */
#include "py.h"

#include <stdint.h>

#define MEMO_START 1024u

struct memo {
    PyObject **slots; /* pairs: original (borrowed), copy (owned) */
    size_t mask;      /* number of pairs - 1; a power of two - 1 */
    size_t used;
};

struct walk {
    struct memo memo;
    PyObject *tags_name;    /* "_ansible_tags_mapping", owned */
    PyObject *copy_shallow; /* copy.copy, owned */
};

static PyObject *isolate_object(struct walk *walk, PyObject *obj);

static size_t
memo_at(const struct memo *memo, const PyObject *key)
{
    size_t i = (size_t)(((uintptr_t)key >> 4) * 0x9E3779B97F4A7C15ull >> 20);

    for (i &= memo->mask; memo->slots[2 * i] != NULL;
         i = (i + 1) & memo->mask) {
        if (memo->slots[2 * i] == key) {
            break;
        }
    }
    return i;
}

static int
memo_grow(struct memo *memo)
{
    size_t count = memo->slots == NULL ? MEMO_START : 2 * (memo->mask + 1);
    struct memo bigger = {NULL, count - 1, memo->used};

    bigger.slots = PyMem_Calloc(2 * count, sizeof(PyObject *));
    if (bigger.slots == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (size_t i = 0; memo->slots != NULL && i <= memo->mask; i++) {
        if (memo->slots[2 * i] != NULL) {
            size_t at = memo_at(&bigger, memo->slots[2 * i]);

            bigger.slots[2 * at] = memo->slots[2 * i];
            bigger.slots[2 * at + 1] = memo->slots[2 * i + 1];
        }
    }
    PyMem_Free(memo->slots);
    *memo = bigger;
    return 0;
}

/* Remembers that copy stands for key; keeps a reference to copy. */
static int
memo_put(struct memo *memo, PyObject *key, PyObject *copy)
{
    size_t at;

    if (memo->slots == NULL || memo->used * 2 > memo->mask) {
        if (memo_grow(memo) < 0) {
            return -1;
        }
    }
    at = memo_at(memo, key);
    memo->slots[2 * at] = key;
    memo->slots[2 * at + 1] = Py_NewRef(copy);
    memo->used++;
    return 0;
}

static PyObject *
memo_get(const struct memo *memo, const PyObject *key)
{
    if (memo->slots == NULL) {
        return NULL;
    }
    return memo->slots[2 * memo_at(memo, key) + 1];
}

static void
memo_fini(struct memo *memo)
{
    for (size_t i = 0; memo->slots != NULL && i <= memo->mask; i++) {
        Py_XDECREF(memo->slots[2 * i + 1]);
    }
    PyMem_Free(memo->slots);
}

/* Fills copy (a dict) with the isolated items of source. */
static int
fill_dict(struct walk *walk, PyObject *source, PyObject *copy)
{
    PyObject *key, *value;
    Py_ssize_t pos = 0;

    while (PyDict_Next(source, &pos, &key, &value)) {
        PyObject *item = isolate_object(walk, value);
        int r;

        if (item == NULL) {
            return -1;
        }
        r = PyDict_SetItem(copy, key, item);
        Py_DECREF(item);
        if (r < 0) {
            return -1;
        }
    }
    return 0;
}

/* Appends the isolated items of source (a list) to copy (a list). */
static int
fill_list(struct walk *walk, PyObject *source, PyObject *copy)
{
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(source); i++) {
        PyObject *item = isolate_object(walk, PyList_GET_ITEM(source, i));
        int r;

        if (item == NULL) {
            return -1;
        }
        r = PyList_Append(copy, item);
        Py_DECREF(item);
        if (r < 0) {
            return -1;
        }
    }
    return 0;
}

static PyObject *
isolate_tuple(struct walk *walk, PyObject *obj)
{
    Py_ssize_t n = PyTuple_GET_SIZE(obj);
    PyObject *copy = PyTuple_New(n);

    for (Py_ssize_t i = 0; copy != NULL && i < n; i++) {
        PyObject *item = isolate_object(walk, PyTuple_GET_ITEM(obj, i));

        if (item == NULL) {
            Py_CLEAR(copy);
            break;
        }
        PyTuple_SET_ITEM(copy, i, item);
    }
    return copy;
}

/* A new empty container of obj's own type with obj's tags, or NULL with no
 * exception set if obj is not one of the tagged containers. */
static PyObject *
empty_tagged(struct walk *walk, PyObject *obj, PyTypeObject *base)
{
    PyObject *tags, *none, *copy = NULL;

    if (Py_TYPE(obj)->tp_base != base || Py_TYPE(obj)->tp_dictoffset != 0 ||
        _PyType_Lookup(Py_TYPE(obj), walk->tags_name) == NULL) {
        return NULL;
    }
    tags = PyObject_GetAttr(obj, walk->tags_name);
    if (tags == NULL) {
        PyErr_Clear();
        return NULL;
    }
    none = PyTuple_New(0);
    if (none != NULL) {
        copy = base->tp_new(Py_TYPE(obj), none, NULL);
        Py_DECREF(none);
    }
    if (copy != NULL && PyObject_SetAttr(copy, walk->tags_name, tags) < 0) {
        Py_CLEAR(copy);
    }
    Py_DECREF(tags);
    return copy;
}

/* copy.copy(obj), then every item replaced by its isolated copy. */
static PyObject *
isolate_subclass(struct walk *walk, PyObject *obj)
{
    PyObject *copy = PyObject_CallOneArg(walk->copy_shallow, obj);
    int r = 0;

    if (copy == NULL || copy == obj || memo_put(&walk->memo, obj, copy) < 0) {
        return copy;
    }
    if (PyDict_Check(copy)) {
        PyObject *keys = PyDict_Keys(copy);

        for (Py_ssize_t i = 0; keys != NULL && i < PyList_GET_SIZE(keys);
             i++) {
            PyObject *key = PyList_GET_ITEM(keys, i);
            PyObject *old = PyDict_GetItemWithError(copy, key);
            PyObject *item = old ? isolate_object(walk, old) : NULL;

            r = item == NULL ? -1 : PyDict_SetItem(copy, key, item);
            Py_XDECREF(item);
            if (r < 0) {
                break;
            }
        }
        r = keys == NULL ? -1 : r;
        Py_XDECREF(keys);
    } else if (PyList_Check(copy)) {
        for (Py_ssize_t i = 0; i < PyList_GET_SIZE(copy) && r == 0; i++) {
            PyObject *item = isolate_object(walk, PyList_GET_ITEM(copy, i));

            r = item == NULL ? -1 : PyList_SetItem(copy, i, item);
        }
    }
    if (r < 0) {
        Py_CLEAR(copy);
    }
    return copy;
}

static PyObject *
isolate_dict(struct walk *walk, PyObject *obj)
{
    PyObject *copy = PyDict_CheckExact(obj)
                         ? PyDict_New()
                         : empty_tagged(walk, obj, &PyDict_Type);

    if (copy == NULL) {
        return PyErr_Occurred() ? NULL : isolate_subclass(walk, obj);
    }
    if (memo_put(&walk->memo, obj, copy) < 0 ||
        fill_dict(walk, obj, copy) < 0) {
        Py_CLEAR(copy);
    }
    return copy;
}

static PyObject *
isolate_list(struct walk *walk, PyObject *obj)
{
    PyObject *copy = PyList_CheckExact(obj)
                         ? PyList_New(0)
                         : empty_tagged(walk, obj, &PyList_Type);

    if (copy == NULL) {
        return PyErr_Occurred() ? NULL : isolate_subclass(walk, obj);
    }
    if (memo_put(&walk->memo, obj, copy) < 0 ||
        fill_list(walk, obj, copy) < 0) {
        Py_CLEAR(copy);
    }
    return copy;
}

static PyObject *
isolate_container(struct walk *walk, PyObject *obj)
{
    PyObject *copy = memo_get(&walk->memo, obj);

    if (copy != NULL) {
        return Py_NewRef(copy);
    }
    if (PyDict_Check(obj)) {
        return isolate_dict(walk, obj);
    }
    if (PyList_Check(obj)) {
        return isolate_list(walk, obj);
    }
    if (PyTuple_CheckExact(obj)) {
        return isolate_tuple(walk, obj);
    }
    /* Sets hold hashable, so unchangeable, items: a flat copy is enough. */
    if (PySet_CheckExact(obj)) {
        copy = PySet_New(obj);
    } else {
        copy = PyObject_CallOneArg(walk->copy_shallow, obj);
    }
    if (copy != NULL && memo_put(&walk->memo, obj, copy) < 0) {
        Py_CLEAR(copy);
    }
    return copy;
}

static PyObject *
isolate_object(struct walk *walk, PyObject *obj)
{
    PyObject *copy;

    if (PyUnicode_Check(obj) ||
        !(PyDict_Check(obj) || PyList_Check(obj) || PyTuple_CheckExact(obj) ||
          PySet_Check(obj))) {
        return Py_NewRef(obj);
    }
    if (Py_EnterRecursiveCall(" in isolate()")) {
        return NULL;
    }
    copy = isolate_container(walk, obj);
    Py_LeaveRecursiveCall();
    return copy;
}

PyDoc_STRVAR(isolate_doc,
             "isolate(obj) -> a copy of obj that shares no dict, list or set "
             "with it.\n\nImmutable values and objects of other types are "
             "shared; aliasing inside obj is kept.");

static PyObject *
core_isolate(PyObject *Py_UNUSED(module), PyObject *obj)
{
    struct walk walk = {{NULL, 0, 0}, NULL, NULL};
    PyObject *result = NULL;
    PyObject *copy_module = PyImport_ImportModule("copy");

    walk.tags_name = PyUnicode_InternFromString("_ansible_tags_mapping");
    if (copy_module == NULL || walk.tags_name == NULL) {
        goto out;
    }
    walk.copy_shallow = PyObject_GetAttrString(copy_module, "copy");
    if (walk.copy_shallow == NULL) {
        goto out;
    }
    result = isolate_object(&walk, obj);

out:
    memo_fini(&walk.memo);
    Py_XDECREF(walk.copy_shallow);
    Py_XDECREF(walk.tags_name);
    Py_XDECREF(copy_module);
    return result;
}

static PyMethodDef isolate_methods[] = {
    {"isolate", core_isolate, METH_O, isolate_doc},
    {NULL, NULL, 0, NULL},
};

int
ch_py_isolate_setup(PyObject *module)
{
    return PyModule_AddFunctions(module, isolate_methods);
}
