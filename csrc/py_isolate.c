/*
 * py_isolate.c - isolate(obj): a copy of obj that shares no container, and
 * plain_copy(obj, ...): the same for what is known to be plain data only.
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
 * PLAIN COPIES. A result goes from a worker to the controller by pickle. For
 * one made of nothing but plain values the outcome is a copy of containers,
 * which is made here. The caller names the types besides None and exact
 * bool, int, float, str, bytes, dict, list and tuple: leaves, which cannot
 * change; tags that leaves and containers may bear; boxes, which are tagged
 * dicts and lists, or records with their slots. One value of another type
 * anywhere, and there is no copy (NotImplemented).
 *
 * OWNERSHIP. The memo borrows its keys (alive as long as obj is) and its
 * values (alive as long as the result is, which the caller holds).
 */
#include "py.h"

#include <stdint.h>

#define MEMO_START 128u

struct memo {
    PyObject **slots; /* pairs: original (borrowed), copy (owned) */
    size_t mask;      /* number of pairs - 1; a power of two - 1 */
    size_t used;
};

struct walk {
    struct memo memo;
    PyObject *tags_name;    /* "_ansible_tags_mapping", owned */
    PyObject *copy_shallow; /* copy.copy, owned; NULL for a plain copy */
    /* The rest is for plain copies only; borrowed. */
    PyObject *leaves; /* frozenset of types; NULL: not a plain copy */
    PyObject *boxes;  /* dict: type -> tuple of slots, or None */
    PyObject *tags;   /* frozenset of types of tags */
    int refused;      /* something was not plain */
};

static PyObject *isolate_object(struct walk *walk, PyObject *obj);
static PyObject *isolate_container(struct walk *walk, PyObject *obj);

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

/* Something is not plain: there will be no copy. Always NULL. */
static PyObject *
refuse(struct walk *walk)
{
    walk->refused = 1;
    if (!PyErr_Occurred()) {
        PyErr_SetString(PyExc_TypeError, "not plain");
    }
    return NULL;
}

/* 1 if all tags of obj are of known types, 0 if not, -1 with an error. */
static int
has_known_tags(struct walk *walk, PyObject *obj)
{
    PyObject *tags = PyObject_GetAttr(obj, walk->tags_name), *key, *value;
    Py_ssize_t pos = 0;
    int r = tags == NULL ? -1 : PyDict_Check(tags);

    while (r > 0 && PyDict_Next(tags, &pos, &key, &value)) {
        r = PySet_Contains(walk->tags, key);
    }
    Py_XDECREF(tags);
    return r;
}

/* 1 if obj is plain and cannot change, 0 if not, -1 with an error. */
static int
is_plain_leaf(struct walk *walk, PyObject *obj)
{
    int r;

    if (obj == Py_None || PyBool_Check(obj) || PyUnicode_CheckExact(obj) ||
        PyLong_CheckExact(obj) || PyFloat_CheckExact(obj) ||
        PyBytes_CheckExact(obj)) {
        return 1;
    }
    r = PySet_Contains(walk->leaves, (PyObject *)Py_TYPE(obj));
    return r > 0 ? has_known_tags(walk, obj) : r;
}

/* Fills copy (a dict) with the isolated items of source. */
static int
fill_dict(struct walk *walk, PyObject *source, PyObject *copy)
{
    PyObject *key, *value;
    Py_ssize_t pos = 0;

    while (PyDict_Next(source, &pos, &key, &value)) {
        PyObject *item;
        int r;

        if (walk->leaves != NULL && is_plain_leaf(walk, key) <= 0) {
            refuse(walk);
            return -1;
        }
        item = isolate_object(walk, value);
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
    PyObject *copy;
    int r = 0;

    if (walk->leaves != NULL) {
        return refuse(walk);
    }
    copy = PyObject_CallOneArg(walk->copy_shallow, obj);
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

/* Whether isolate() makes something new of the object. */
static int
is_walked(PyObject *obj)
{
    return !PyUnicode_Check(obj) &&
           (PyDict_Check(obj) || PyList_Check(obj) || PyTuple_CheckExact(obj) ||
            PySet_Check(obj));
}

/* Whether the value of a flat copy has to be replaced by a copy of its own. */
static int
needs_copy(struct walk *walk, PyObject *value)
{
    return walk->leaves != NULL ? is_plain_leaf(walk, value) <= 0
                                : is_walked(value);
}

/* Replaces the containers in copy, a flat copy of an exact dict. That is
 * several times faster than to fill a dict item by item: copying the whole
 * table needs no hashing. Only values of keys that are there are set, which
 * an iteration allows. */
static int
replace_in_dict(struct walk *walk, PyObject *copy)
{
    PyObject *key, *value;
    Py_ssize_t pos = 0;

    while (PyDict_Next(copy, &pos, &key, &value)) {
        PyObject *item;
        int r;

        if (walk->leaves != NULL && is_plain_leaf(walk, key) <= 0) {
            refuse(walk);
            return -1;
        }
        if (!needs_copy(walk, value)) {
            continue;
        }
        Py_INCREF(key);
        item = isolate_object(walk, value);
        r = item == NULL ? -1 : PyDict_SetItem(copy, key, item);
        Py_XDECREF(item);
        Py_DECREF(key);
        if (r < 0) {
            return -1;
        }
    }
    return 0;
}

/* The same in copy, a flat copy of an exact list. */
static int
replace_in_list(struct walk *walk, PyObject *copy)
{
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(copy); i++) {
        PyObject *value = PyList_GET_ITEM(copy, i);
        PyObject *item;

        if (!needs_copy(walk, value)) {
            continue;
        }
        item = isolate_object(walk, value);
        if (item == NULL || PyList_SetItem(copy, i, item) < 0) {
            return -1;
        }
    }
    return 0;
}

static PyObject *
isolate_dict(struct walk *walk, PyObject *obj)
{
    int exact = PyDict_CheckExact(obj);
    PyObject *copy =
        exact ? PyDict_Copy(obj) : empty_tagged(walk, obj, &PyDict_Type);

    if (copy == NULL) {
        return PyErr_Occurred() ? NULL : isolate_subclass(walk, obj);
    }
    if (memo_put(&walk->memo, obj, copy) < 0 ||
        (exact ? replace_in_dict(walk, copy) : fill_dict(walk, obj, copy)) <
            0) {
        Py_CLEAR(copy);
    }
    return copy;
}

static PyObject *
isolate_list(struct walk *walk, PyObject *obj)
{
    int exact = PyList_CheckExact(obj);
    PyObject *copy = exact ? PyList_GetSlice(obj, 0, PyList_GET_SIZE(obj))
                           : empty_tagged(walk, obj, &PyList_Type);

    if (copy == NULL) {
        return PyErr_Occurred() ? NULL : isolate_subclass(walk, obj);
    }
    if (memo_put(&walk->memo, obj, copy) < 0 ||
        (exact ? replace_in_list(walk, copy) : fill_list(walk, obj, copy)) <
            0) {
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

/* A new object of obj's type with isolated copies of what its slots hold. */
static PyObject *
copy_record(struct walk *walk, PyObject *obj, PyObject *slots)
{
    PyTypeObject *type = Py_TYPE(obj);
    PyObject *copy = PyType_GenericAlloc(type, 0);
    int r = copy == NULL ? -1 : memo_put(&walk->memo, obj, copy);

    for (Py_ssize_t i = 0; r == 0 && i < PyTuple_GET_SIZE(slots); i++) {
        PyObject *name = PyTuple_GET_ITEM(slots, i);
        PyObject *value = PyObject_GenericGetAttr(obj, name);
        PyObject *item = value ? isolate_object(walk, value) : NULL;

        r = item ? PyObject_GenericSetAttr(copy, name, item) : -1;
        Py_XDECREF(item);
        Py_XDECREF(value);
    }
    if (r < 0) {
        Py_CLEAR(copy);
    }
    return copy;
}

/* isolate_object() of a plain copy. */
static PyObject *
copy_plain(struct walk *walk, PyObject *obj)
{
    PyObject *slots, *copy = NULL;
    int r = is_plain_leaf(walk, obj);

    if (r != 0) {
        return r > 0 ? Py_NewRef(obj) : refuse(walk);
    }
    slots = PyDict_GetItemWithError(walk->boxes, (PyObject *)Py_TYPE(obj));
    if (!PyDict_CheckExact(obj) && !PyList_CheckExact(obj) &&
        !PyTuple_CheckExact(obj)) {
        if (slots == NULL || (slots == Py_None &&
                              (!(PyDict_Check(obj) || PyList_Check(obj)) ||
                               has_known_tags(walk, obj) <= 0))) {
            return refuse(walk);
        }
    }
    if (Py_EnterRecursiveCall(" in plain_copy()")) {
        return refuse(walk);
    }
    if (slots == NULL || slots == Py_None) {
        copy = isolate_container(walk, obj);
    } else if ((copy = memo_get(&walk->memo, obj)) != NULL) {
        Py_INCREF(copy);
    } else {
        copy = copy_record(walk, obj, slots);
    }
    Py_LeaveRecursiveCall();
    return copy != NULL ? copy : refuse(walk);
}

static PyObject *
isolate_object(struct walk *walk, PyObject *obj)
{
    PyObject *copy;

    if (walk->leaves != NULL) {
        return copy_plain(walk, obj);
    }
    if (!is_walked(obj)) {
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
    struct walk walk = {0};
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

PyDoc_STRVAR(plain_copy_doc,
             "plain_copy(obj, leaves, boxes, tags) -> a copy of obj that "
             "shares no container with it, or NotImplemented if there is "
             "anything but plain data in it.\n\nleaves: frozenset of types "
             "that cannot change; boxes: dict from types of tagged dicts and "
             "lists to None, and of records to the tuple of their slots; "
             "tags: frozenset of the types of tags that may be borne.");

static PyObject *
core_plain_copy(PyObject *Py_UNUSED(module), PyObject *args)
{
    struct walk walk = {0};
    PyObject *obj, *result;

    if (!PyArg_ParseTuple(args, "OO!O!O!:plain_copy", &obj,
                          &PyFrozenSet_Type, &walk.leaves, &PyDict_Type,
                          &walk.boxes, &PyFrozenSet_Type, &walk.tags)) {
        return NULL;
    }
    walk.tags_name = PyUnicode_InternFromString("_ansible_tags_mapping");
    if (walk.tags_name == NULL) {
        return NULL;
    }
    result = isolate_object(&walk, obj);
    memo_fini(&walk.memo);
    Py_DECREF(walk.tags_name);
    if (result == NULL && walk.refused) {
        PyErr_Clear();
        result = Py_NewRef(Py_NotImplemented);
    }
    return result;
}

/* 1 if the text begins with _ansible_, 0 if not, -1 with an exception. */
static int
is_internal(PyObject *key)
{
    PyObject *said;
    int r;

    if (PyUnicode_CheckExact(key) && PyUnicode_GET_LENGTH(key) > 0 &&
        PyUnicode_READ_CHAR(key, 0) != '_') {
        return 0;
    }
    said = PyObject_CallMethod(key, "startswith", "s", "_ansible_");
    r = said == NULL ? -1 : PyObject_IsTrue(said);
    Py_XDECREF(said);
    return r;
}

static int container_is_plain(struct memo *seen, PyObject *obj);

/* Like all of these: 1 for yes, 0 for no, -1 with an exception. */
static int
value_is_plain(struct memo *seen, PyObject *value)
{
    if (PyDict_Check(value) || PyList_Check(value)) {
        int r;

        if (Py_EnterRecursiveCall(" in is_plain()")) {
            return -1;
        }
        r = container_is_plain(seen, value);
        Py_LeaveRecursiveCall();
        return r;
    }
    return !PyTuple_Check(value) && !PyAnySet_Check(value) &&
           !PyByteArray_Check(value);
}

static int
container_is_plain(struct memo *seen, PyObject *obj)
{
    PyObject *key, *value;
    Py_ssize_t pos = 0;
    int r = 1;

    if (memo_get(seen, obj) != NULL) {
        return 0;
    }
    if (memo_put(seen, obj, obj) < 0) {
        return -1;
    }
    if (PyList_CheckExact(obj)) {
        for (Py_ssize_t i = 0; r > 0 && i < PyList_GET_SIZE(obj); i++) {
            r = value_is_plain(seen, PyList_GET_ITEM(obj, i));
        }
        return r;
    }
    if (!PyDict_CheckExact(obj)) {
        return 0;
    }
    while (r > 0 && PyDict_Next(obj, &pos, &key, &value)) {
        if (PyUnicode_Check(key) && (r = is_internal(key)) != 0) {
            return r < 0 ? -1 : 0;
        }
        r = value_is_plain(seen, value);
    }
    return r;
}

static int
facts_are_plain(struct memo *seen, PyObject *facts)
{
    PyObject *key, *value;
    Py_ssize_t pos = 0;
    int r = 1;

    if (!PyDict_CheckExact(facts)) {
        return 0;
    }
    if (memo_put(seen, facts, facts) < 0) {
        return -1;
    }
    while (r > 0 && PyDict_Next(facts, &pos, &key, &value)) {
        r = PyUnicode_CheckExact(key) ? value_is_plain(seen, value) : 0;
    }
    return r;
}

PyDoc_STRVAR(
    plain_doc,
    "is_plain(facts) -> whether a deep copy of the facts is the same whoever "
    "makes it, and nothing below the top is internal.\n\nThat is: exact "
    "dicts and lists, none of them twice, names of facts are exact texts, no "
    "name below begins with _ansible_, no tuple, set or bytearray.");

static PyObject *
core_is_plain(PyObject *Py_UNUSED(module), PyObject *facts)
{
    struct memo seen = {NULL, 0, 0};
    int r = facts_are_plain(&seen, facts);

    memo_fini(&seen);
    if (r < 0 && PyErr_ExceptionMatches(PyExc_RecursionError)) {
        PyErr_Clear(); /* too deep is not plain */
        r = 0;
    }
    return r < 0 ? NULL : PyBool_FromLong(r);
}

static PyMethodDef isolate_methods[] = {
    {"is_plain", core_is_plain, METH_O, plain_doc},
    {"isolate", core_isolate, METH_O, isolate_doc},
    {"plain_copy", core_plain_copy, METH_VARARGS, plain_copy_doc},
    {NULL, NULL, 0, NULL},
};

int
ch_py_isolate_setup(PyObject *module)
{
    return PyModule_AddFunctions(module, isolate_methods);
}
