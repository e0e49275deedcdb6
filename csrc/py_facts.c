/*
 * py_facts.c - the fact cache for Python: read, write and decode
 * (py_facts_encode.c encodes).
 *
 * WHY. The built-in plugin decodes with a Python function per JSON object.
 * Here jansson's tree is walked in C, and Python is asked only about objects
 * that carry one of `hook_keys`: `hook` is ansible-core's own, so nothing is
 * guessed.
 *
 * WHAT HOLDS. facts_decode returns what json.loads returns or refuses with
 * churten._core.Error; the caller then asks json.loads. Too deep values end
 * in RecursionError: the caller treats every exception as a refusal.
 *
 * OWNERSHIP. facts_decode frees jansson's tree before it returns.
 */
#include "py_facts.h"

#include <stdlib.h>
#include <string.h>

#include "facts.h"

#define PAYLOAD "__payload__"
/* Bytes of a text that is interned: most short ones ("off [fixed]", "rw",
 * versions) are the same within a host and from host to host. */
#define SHORT 32u

struct decoder {
    ch_state *state;
    PyObject *hook_keys; /* tuple of str, borrowed */
    PyObject *hook;      /* callable, borrowed */
    PyObject *share;     /* FactsShare, borrowed; NULL: nothing is shared */
    const struct ch_fact *root; /* not to be shared */
    int plain;           /* what was decoded last may be inside a shared one */
};

static PyObject *decode_fact(struct decoder *d, const struct ch_fact *fact);

/* Takes the container decoded from fact; plain: so are all its members. */
static PyObject *
shared(struct decoder *d, const struct ch_fact *fact, PyObject *made,
       int plain)
{
    d->plain = 0;
    return plain && d->share != NULL && fact != d->root
               ? ch_facts_share(d->share, made, &d->plain)
               : made;
}

static PyObject *
decode_array(struct decoder *d, const struct ch_fact *fact)
{
    size_t size = ch_fact_size(fact);
    PyObject *list = PyList_New((Py_ssize_t)size);
    int plain = 1;

    for (size_t i = 0; list != NULL && i < size; i++) {
        PyObject *item = decode_fact(d, ch_fact_item(fact, i));
        if (item == NULL) {
            Py_CLEAR(list);
        } else {
            PyList_SET_ITEM(list, (Py_ssize_t)i, item);
            plain &= d->plain;
        }
    }
    return list == NULL ? NULL : shared(d, fact, list, plain);
}

static int
decode_hooked(const struct decoder *d, PyObject *dict)
{
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(d->hook_keys); i++) {
        int r = PyDict_Contains(dict, PyTuple_GET_ITEM(d->hook_keys, i));
        if (r != 0) {
            return r;
        }
    }
    return 0;
}

static PyObject *
decode_object(struct decoder *d, const struct ch_fact *fact)
{
    struct ch_fact_iter iter;
    const char *name;
    const struct ch_fact *member;
    PyObject *dict = PyDict_New(), *key = NULL, *value = NULL, *out;
    int r = dict == NULL ? -1 : 0, special = 0, plain = 1;

    ch_fact_iter_init(&iter, fact);
    while (r == 0 && ch_fact_iter_next(&iter, &name, &member)) {
        special |= strncmp(name, "__ansible_", 10) == 0;
        /* Interned: hosts have the same names a thousand times over. */
        key = PyUnicode_InternFromString(name);
        value = key == NULL ? NULL : decode_fact(d, member);
        plain &= d->plain;
        r = value == NULL ? -1 : PyDict_SetItem(dict, key, value);
        Py_CLEAR(key);
        Py_CLEAR(value);
    }
    if (r == 0 && special) {
        r = decode_hooked(d, dict);
    }
    if (r == 0) {
        return shared(d, fact, dict, plain);
    }
    d->plain = 0;
    out = r < 0 ? NULL : PyObject_CallOneArg(d->hook, dict);
    Py_XDECREF(dict);
    return out;
}

static PyObject *
decode_fact(struct decoder *d, const struct ch_fact *fact)
{
    enum ch_fact_type type = ch_fact_type(fact);
    PyObject *out;
    const char *utf8;
    size_t len;

    d->plain = 1;
    switch (type) {
    case CH_FACT_NULL:
        return Py_NewRef(Py_None);
    case CH_FACT_FALSE:
        return Py_NewRef(Py_False);
    case CH_FACT_TRUE:
        return Py_NewRef(Py_True);
    case CH_FACT_INTEGER:
        return PyLong_FromLongLong(ch_fact_integer(fact));
    case CH_FACT_REAL:
        return PyFloat_FromDouble(ch_fact_real(fact));
    case CH_FACT_STRING:
        utf8 = ch_fact_string(fact, &len);
        out = PyUnicode_DecodeUTF8(utf8, (Py_ssize_t)len, NULL);
        if (out != NULL && len <= SHORT) {
            PyUnicode_InternInPlace(&out);
        }
        return out;
    case CH_FACT_ARRAY:
    case CH_FACT_OBJECT:
        break;
    }
    if (Py_EnterRecursiveCall(" while decoding facts")) {
        return NULL;
    }
    out =
        type == CH_FACT_ARRAY ? decode_array(d, fact) : decode_object(d, fact);
    Py_LeaveRecursiveCall();
    return out;
}

/* The root itself is nobody else's: core changes it. */
static PyObject *
decode_root(struct decoder *d, const struct ch_fact *root, PyObject *share)
{
    if (share == Py_None) {
        return decode_fact(d, root);
    }
    ch_facts_share_next(share);
    d->share = share;
    d->root = root;
    return decode_fact(d, root);
}

/* Parses data, or with envelope the text inside its __payload__. */
static int
parse(const char *data, size_t len, int envelope, struct ch_facts **out)
{
    const struct ch_fact *payload = NULL;
    struct ch_facts *outer = NULL;
    char *inner = NULL;
    size_t n;
    int r;

    *out = NULL;
    if (!envelope) {
        return ch_facts_parse(data, len, out);
    }
    r = ch_facts_unwrap(data, len, PAYLOAD, &inner, &n);
    if (r == CH_OK) {
        r = ch_facts_parse(inner, n, out);
        free(inner);
        return r;
    }
    r = ch_facts_parse(data, len, &outer);
    if (r < 0) {
        return r;
    }
    if (ch_fact_type(ch_facts_root(outer)) == CH_FACT_OBJECT) {
        payload = ch_fact_member(ch_facts_root(outer), PAYLOAD);
    }
    r = CH_ERR_FORMAT;
    if (payload != NULL && ch_fact_type(payload) == CH_FACT_STRING) {
        const char *text = ch_fact_string(payload, &n);
        r = ch_facts_parse(text, n, out);
    }
    ch_facts_free(outer);
    return r;
}

PyDoc_STRVAR(
    decode_doc,
    "facts_decode(data, envelope, hook_keys, hook, share=None, /) -> object"
    "\n--\n\n"
    "json.loads(data), or with envelope json.loads(json.loads(data)"
    "['__payload__']).\nhook(dict) replaces objects that hold one of "
    "hook_keys (which begin with __ansible_).\nWith a FactsShare equal "
    "containers below the root are those of values decoded before: nobody "
    "may\nchange them.");

static PyObject *
facts_decode(PyObject *module, PyObject *args)
{
    struct decoder d = {.state = PyModule_GetState(module)};
    struct ch_facts *facts = NULL;
    PyObject *result = NULL;
    PyObject *share = Py_None;
    Py_buffer data;
    int envelope, r;

    if (!PyArg_ParseTuple(args, "y*pO!O|O:facts_decode", &data, &envelope,
                          &PyTuple_Type, &d.hook_keys, &d.hook, &share)) {
        return NULL;
    }
    if (share != Py_None && !ch_facts_share_check(d.state, share)) {
        PyErr_SetString(PyExc_TypeError, "share is not a FactsShare");
        PyBuffer_Release(&data);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    r = parse(data.buf, (size_t)data.len, envelope, &facts);
    Py_END_ALLOW_THREADS
    if (r < 0) {
        ch_raise(d.state, r, "facts");
    } else {
        result = decode_root(&d, ch_facts_root(facts), share);
    }
    ch_facts_free(facts);
    PyBuffer_Release(&data);
    return result;
}

PyDoc_STRVAR(
    read_doc,
    "facts_read(path, limit, /) -> bytes\n--\n\n"
    "A regular file of at most limit bytes. OSError, or Error for a link, "
    "a special\nor a too large file.");

static PyObject *
facts_read(PyObject *module, PyObject *args)
{
    PyObject *path, *result = NULL;
    Py_ssize_t limit;
    char *data = NULL;
    size_t len = 0;
    int r;

    if (!PyArg_ParseTuple(args, "O&n:facts_read", PyUnicode_FSConverter, &path,
                          &limit)) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    r = ch_facts_read(PyBytes_AS_STRING(path), (size_t)limit, &data, &len);
    Py_END_ALLOW_THREADS
    if (r < 0) {
        ch_raise(PyModule_GetState(module), r, PyBytes_AS_STRING(path));
    } else {
        result = PyBytes_FromStringAndSize(data, (Py_ssize_t)len);
    }
    free(data);
    Py_DECREF(path);
    return result;
}

PyDoc_STRVAR(
    write_doc,
    "facts_write(path, data, mode, /)\n--\n\n"
    "Replaces the file atomically or raises OSError and leaves it as it is.");

static PyObject *
facts_write(PyObject *module, PyObject *args)
{
    PyObject *path;
    Py_buffer data;
    unsigned mode;
    int r;

    if (!PyArg_ParseTuple(args, "O&y*I:facts_write", PyUnicode_FSConverter,
                          &path, &data, &mode)) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    r = ch_facts_write(PyBytes_AS_STRING(path), data.buf, (size_t)data.len,
                       mode);
    Py_END_ALLOW_THREADS
    if (r < 0) {
        ch_raise(PyModule_GetState(module), r, PyBytes_AS_STRING(path));
    }
    PyBuffer_Release(&data);
    Py_DECREF(path);
    return r < 0 ? NULL : Py_NewRef(Py_None);
}

static PyMethodDef facts_methods[] = {
    {"facts_decode", facts_decode, METH_VARARGS, decode_doc},
    {"facts_read", facts_read, METH_VARARGS, read_doc},
    {"facts_write", facts_write, METH_VARARGS, write_doc},
    {NULL, NULL, 0, NULL},
};

int
ch_py_facts_setup(PyObject *module)
{
    return PyModule_AddFunctions(module, facts_methods);
}
