/*
 * py_results.c - what core does with each result before a callback sees it.
 *
 * WHY. Core deep-copies a result for every callback plugin and takes internal
 * keys out of the copy, both in Python: some 20 microseconds per result and
 * plugin, much of what recording a run of small tasks would cost. From 2.19 on
 * it visits every value instead, to make native ones of its own.
 *
 * WHAT HOLDS. The functions do what ansible.vars.clean's do, for exact dict
 * and list; everything below anything else is left to `other`, which is core's
 * own function. Containers that occur twice are copied twice, as there.
 *
 * OWNERSHIP. response_copy returns a new value; response_strip changes the one
 * it is given and returns nothing.
 */
#include "py.h"

#define INTERNAL "_ansible_"

static PyObject *copy_value(PyObject *value, PyObject *other);

static PyObject *
copy_dict(PyObject *value, PyObject *other)
{
    PyObject *copy = PyDict_Copy(value);
    PyObject *key, *item;
    Py_ssize_t at = 0;

    /* Only values of keys that are there are set: the iteration holds. */
    while (copy != NULL && PyDict_Next(copy, &at, &key, &item)) {
        PyObject *mine;

        if (!PyDict_Check(item) && !PyList_Check(item)) {
            continue;
        }
        Py_INCREF(key);
        mine = copy_value(item, other);
        if (mine == NULL || PyDict_SetItem(copy, key, mine) < 0) {
            Py_CLEAR(copy);
        }
        Py_XDECREF(mine);
        Py_DECREF(key);
    }
    return copy;
}

static PyObject *
copy_list(PyObject *value, PyObject *other)
{
    PyObject *copy = PyList_GetSlice(value, 0, PyList_GET_SIZE(value));

    for (Py_ssize_t i = 0; copy != NULL && i < PyList_GET_SIZE(copy); i++) {
        PyObject *item = PyList_GET_ITEM(copy, i);
        PyObject *mine;

        if (!PyDict_Check(item) && !PyList_Check(item)) {
            continue;
        }
        mine = copy_value(item, other);
        if (mine == NULL || PyList_SetItem(copy, i, mine) < 0) {
            Py_CLEAR(copy);
        }
    }
    return copy;
}

static PyObject *
copy_value(PyObject *value, PyObject *other)
{
    PyObject *copy;

    if (!PyDict_CheckExact(value) && !PyList_CheckExact(value)) {
        return PyObject_CallOneArg(other, value);
    }
    if (Py_EnterRecursiveCall(" in response_copy()")) {
        return NULL;
    }
    copy = PyDict_CheckExact(value) ? copy_dict(value, other)
                                    : copy_list(value, other);
    Py_LeaveRecursiveCall();
    return copy;
}

PyDoc_STRVAR(copy_doc,
             "response_copy(value, other) -> a deep copy of dicts and lists.\n"
             "\nother(part) copies what is neither an exact dict nor an exact "
             "list.");

static PyObject *
core_response_copy(PyObject *Py_UNUSED(module), PyObject *const *args,
                   Py_ssize_t n)
{
    if (n != 2) {
        PyErr_SetString(PyExc_TypeError, "response_copy takes 2 arguments");
        return NULL;
    }
    return copy_value(args[0], args[1]);
}

struct strip {
    PyObject *exceptions; /* borrowed, like the others */
    PyObject *containers; /* tuple of abstract classes */
    PyObject *other;
};

static int strip_value(const struct strip *s, PyObject *value);

/* 1 if core looks inside this value, 0 if not, -1 with an exception. */
static int
is_container(const struct strip *s, PyObject *value)
{
    if (PyDict_CheckExact(value) || PyList_CheckExact(value)) {
        return 1;
    }
    if (PyUnicode_CheckExact(value) || PyBool_Check(value) ||
        PyLong_CheckExact(value) || PyFloat_CheckExact(value) ||
        value == Py_None) {
        return 0;
    }
    return PyObject_IsInstance(value, s->containers);
}

/* 1 if the key goes, 0 if not, -1 with an exception. */
static int
is_internal(const struct strip *s, PyObject *key)
{
    int r;

    if (!PyUnicode_Check(key)) {
        return 0;
    }
    if (PyUnicode_CheckExact(key)) {
        const char *text = PyUnicode_IS_COMPACT_ASCII(key)
                               ? PyUnicode_AsUTF8(key)
                               : NULL;

        /* One that is not ASCII may begin with it all the same. */
        if (text != NULL && text[0] != INTERNAL[0]) {
            return 0;
        }
    }
    {
        PyObject *said =
            PyObject_CallMethod(key, "startswith", "s", INTERNAL);

        r = said == NULL ? -1 : PyObject_IsTrue(said);
        Py_XDECREF(said);
    }
    if (r > 0) {
        r = PySequence_Contains(s->exceptions, key);
        r = r < 0 ? r : !r;
    }
    return r;
}

static int
drop_keys(PyObject *dict, PyObject *keys)
{
    for (Py_ssize_t i = 0; keys != NULL && i < PyList_GET_SIZE(keys); i++) {
        if (PyDict_DelItem(dict, PyList_GET_ITEM(keys, i)) < 0) {
            return -1;
        }
    }
    return 0;
}

static int
strip_dict(const struct strip *s, PyObject *dict)
{
    PyObject *key, *value, *gone = NULL;
    Py_ssize_t at = 0;
    int r = 0;

    while (r >= 0 && PyDict_Next(dict, &at, &key, &value)) {
        r = is_internal(s, key);
        if (r > 0) {
            if (gone == NULL && (gone = PyList_New(0)) == NULL) {
                r = -1;
            } else {
                r = PyList_Append(gone, key);
            }
        } else if (r == 0 && (r = is_container(s, value)) > 0) {
            Py_INCREF(value);
            r = strip_value(s, value);
            Py_DECREF(value);
        }
    }
    if (r >= 0) {
        r = drop_keys(dict, gone);
    }
    Py_XDECREF(gone);
    return r;
}

static int
strip_value(const struct strip *s, PyObject *value)
{
    int r = 0;

    if (!PyDict_CheckExact(value) && !PyList_CheckExact(value)) {
        PyObject *done = PyObject_CallFunctionObjArgs(s->other, value,
                                                      s->exceptions, NULL);

        Py_XDECREF(done);
        return done == NULL ? -1 : 0;
    }
    if (Py_EnterRecursiveCall(" in response_strip()")) {
        return -1;
    }
    if (PyDict_CheckExact(value)) {
        r = strip_dict(s, value);
    }
    for (Py_ssize_t i = 0;
         r >= 0 && PyList_CheckExact(value) && i < PyList_GET_SIZE(value);
         i++) {
        PyObject *item = Py_NewRef(PyList_GET_ITEM(value, i));

        r = is_container(s, item);
        if (r > 0) {
            r = strip_value(s, item);
        }
        Py_DECREF(item);
    }
    Py_LeaveRecursiveCall();
    return r < 0 ? -1 : 0;
}

PyDoc_STRVAR(
    strip_doc,
    "response_strip(value, exceptions, containers, other): take keys that "
    "begin with _ansible_ out of dicts, but for the exceptions.\n\nLooks "
    "into instances of containers (abstract classes); other(part, "
    "exceptions) does what is neither an exact dict nor an exact list.");

static PyObject *
core_response_strip(PyObject *Py_UNUSED(module), PyObject *const *args,
                    Py_ssize_t n)
{
    struct strip s;

    if (n != 4) {
        PyErr_SetString(PyExc_TypeError, "response_strip takes 4 arguments");
        return NULL;
    }
    s = (struct strip){args[1], args[2], args[3]};
    if (strip_value(&s, args[0]) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

/* 1 if value is what a JSON file has, but for containers. */
static int
is_native_leaf(PyObject *value)
{
    return value == Py_None || PyUnicode_CheckExact(value) ||
           PyBool_Check(value) || PyLong_CheckExact(value) ||
           PyFloat_CheckExact(value);
}

/* New reference; NULL with an exception, or without one if there is something
 * that is not native. */
static PyObject *
native_copy(PyObject *value)
{
    PyObject *copy = NULL, *key, *item, *mine;
    Py_ssize_t at = 0;

    if (is_native_leaf(value)) {
        return Py_NewRef(value);
    }
    if (Py_EnterRecursiveCall(" in native_copy()")) {
        return NULL;
    }
    if (PyDict_CheckExact(value)) {
        copy = PyDict_New();
        /* Nothing that runs here could change the dict. */
        while (copy != NULL && PyDict_Next(value, &at, &key, &item)) {
            mine = is_native_leaf(key) ? native_copy(item) : NULL;
            if (mine == NULL || PyDict_SetItem(copy, key, mine) < 0) {
                Py_CLEAR(copy);
            }
            Py_XDECREF(mine);
        }
    } else if (PyList_CheckExact(value)) {
        copy = PyList_New(PyList_GET_SIZE(value));
        for (; copy != NULL && at < PyList_GET_SIZE(value); at++) {
            mine = native_copy(PyList_GET_ITEM(value, at));
            if (mine == NULL) {
                Py_CLEAR(copy);
            } else {
                PyList_SET_ITEM(copy, at, mine);
            }
        }
    }
    Py_LeaveRecursiveCall();
    return copy;
}

PyDoc_STRVAR(native_doc,
             "native_copy(value) -> a deep copy, or NotImplemented.\n\n"
             "Copies exact dicts and lists of exact str, int, float, bool "
             "and None; of nothing else.");

static PyObject *
core_native_copy(PyObject *Py_UNUSED(module), PyObject *value)
{
    PyObject *copy = native_copy(value);

    if (copy == NULL && !PyErr_Occurred()) {
        return Py_NewRef(Py_NotImplemented);
    }
    return copy;
}

static PyMethodDef results_methods[] = {
    {"native_copy", core_native_copy, METH_O, native_doc},
    {"response_copy", (PyCFunction)(void (*)(void))core_response_copy,
     METH_FASTCALL, copy_doc},
    {"response_strip", (PyCFunction)(void (*)(void))core_response_strip,
     METH_FASTCALL, strip_doc},
    {NULL, NULL, 0, NULL},
};

int
ch_py_results_setup(PyObject *module)
{
    return PyModule_AddFunctions(module, results_methods);
}
