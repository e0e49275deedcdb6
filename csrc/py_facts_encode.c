/*
 * py_facts_encode.c - facts_encode: what json.dumps prints, byte by byte.
 *
 * WHY. json.dumps with ansible-core's encoders runs a Python function per
 * value. Here plain values are printed in C: escapes of ensure_ascii, repr
 * of floats, NaN and Infinity, separators of indent=4 or of none.
 *
 * WHAT HOLDS. Accepted are exact dict, list, str, int, float, bool and None,
 * and the derived types it is told; keys must be strings; tuples only where
 * json.dumps alone decides. Everything else goes to `leaf`, which asks
 * ansible-core; with no leaf the value is refused (churten._core.Error), and
 * the caller takes ansible-core's own encoder. Too deep or circular values
 * end in RecursionError: the caller treats every exception as a refusal.
 * `odd` is set by anything that may decode to another value than it was.
 *
 * OWNERSHIP. The text lives in a struct text of the call.
 */
#include "py.h"

#include <math.h>
#include <string.h>

#define INDENT 4

struct text {
    char *data; /* owned, PyMem_Raw */
    size_t len, cap;
};

static int
text_room(struct text *text, size_t n)
{
    size_t cap = text->cap == 0 ? 4096 : text->cap;
    char *data;

    if (text->cap - text->len >= n) {
        return 0;
    }
    while (cap - text->len < n) {
        if (cap > (size_t)PY_SSIZE_T_MAX / 2) {
            PyErr_NoMemory();
            return -1;
        }
        cap *= 2;
    }
    data = PyMem_RawRealloc(text->data, cap);
    if (data == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    text->data = data;
    text->cap = cap;
    return 0;
}

static int
text_put(struct text *text, const char *data, size_t n)
{
    if (text_room(text, n) < 0) {
        return -1;
    }
    memcpy(text->data + text->len, data, n);
    text->len += n;
    return 0;
}

static int
text_puts(struct text *text, const char *data)
{
    return text_put(text, data, strlen(data));
}

/* One escaped character of a JSON string; room for 12 bytes is there. */
static size_t
escape(char *at, Py_UCS4 c)
{
    static const char hex[] = "0123456789abcdef";
    const char *shorts = "\"\"\\\\\bb\ff\nn\rr\tt";

    for (const char *s = c < 128 ? shorts : ""; *s != '\0'; s += 2) {
        if ((Py_UCS4)(unsigned char)s[0] == c) {
            at[0] = '\\';
            at[1] = s[1];
            return 2;
        }
    }
    if (c > 0xFFFF) {
        size_t n = escape(at, 0xD800 + ((c - 0x10000) >> 10));
        return n + escape(at + n, 0xDC00 + ((c - 0x10000) & 0x3FF));
    }
    at[0] = '\\';
    at[1] = 'u';
    at[2] = hex[c >> 12 & 15];
    at[3] = hex[c >> 8 & 15];
    at[4] = hex[c >> 4 & 15];
    at[5] = hex[c & 15];
    return 6;
}

static int
text_put_string(struct text *text, PyObject *str)
{
    Py_ssize_t len = PyUnicode_GET_LENGTH(str);
    int kind = PyUnicode_KIND(str);
    const void *data = PyUnicode_DATA(str);

    if (text_puts(text, "\"") < 0) {
        return -1;
    }
    for (Py_ssize_t i = 0; i < len;) {
        Py_ssize_t stop = len - i > 4096 ? i + 4096 : len;
        char *at;

        if (text_room(text, (size_t)(stop - i) * 12) < 0) {
            return -1;
        }
        at = text->data + text->len;
        for (; i < stop; i++) {
            Py_UCS4 c = PyUnicode_READ(kind, data, i);
            if (c >= ' ' && c <= '~' && c != '"' && c != '\\') {
                *at++ = (char)c;
            } else {
                at += escape(at, c);
            }
        }
        text->len = (size_t)(at - text->data);
    }
    return text_puts(text, "\"");
}

static int
text_put_repr(struct text *text, PyObject *obj, const PyTypeObject *base)
{
    PyObject *repr = base->tp_repr(obj);
    Py_ssize_t len;
    const char *utf8;
    int r = -1;

    if (repr != NULL && (utf8 = PyUnicode_AsUTF8AndSize(repr, &len)) != NULL) {
        r = text_put(text, utf8, (size_t)len);
    }
    Py_XDECREF(repr);
    return r;
}

static int
text_put_float(struct text *text, PyObject *obj)
{
    double v = PyFloat_AS_DOUBLE(obj);

    if (isnan(v)) {
        return text_puts(text, "NaN");
    }
    if (isinf(v)) {
        return text_puts(text, v > 0 ? "Infinity" : "-Infinity");
    }
    return text_put_repr(text, obj, &PyFloat_Type);
}

struct encoder {
    ch_state *state;
    struct text text;
    int indented;        /* indent=4 and sorted keys */
    PyObject *str_types; /* tuple: printed as their base, borrowed */
    PyObject *key_types; /* tuple: as keys printed as str, borrowed */
    PyObject *leaf;      /* callable or NULL, borrowed */
    int odd;             /* seen what may decode to something else */
};

static int encode_value(struct encoder *e, PyObject *obj, int level);

static int
type_in(PyObject *types, PyObject *obj)
{
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(types); i++) {
        if ((PyObject *)Py_TYPE(obj) == PyTuple_GET_ITEM(types, i)) {
            return 1;
        }
    }
    return 0;
}

/* What stands before item number `index`, or before the closing bracket. */
static int
encode_gap(struct encoder *e, Py_ssize_t index, int level, int closing)
{
    if (index > 0 && !closing &&
        text_puts(&e->text, e->indented ? "," : ", ") < 0) {
        return -1;
    }
    if (!e->indented) {
        return 0;
    }
    if (text_room(&e->text, (size_t)level * INDENT + 1) < 0) {
        return -1;
    }
    e->text.data[e->text.len++] = '\n';
    memset(e->text.data + e->text.len, ' ', (size_t)level * INDENT);
    e->text.len += (size_t)level * INDENT;
    return 0;
}

/* Whether str might not come back as it is: surrogates may join or be
 * refused. */
static int
has_surrogates(PyObject *str)
{
    Py_ssize_t len = PyUnicode_GET_LENGTH(str);
    int kind = PyUnicode_KIND(str);

    for (Py_ssize_t i = 0; kind != PyUnicode_1BYTE_KIND && i < len; i++) {
        Py_UCS4 c = PyUnicode_READ(kind, PyUnicode_DATA(str), i);
        if (c >= 0xD800 && c <= 0xDFFF) {
            return 1;
        }
    }
    return 0;
}

static int
encode_key(struct encoder *e, PyObject *key)
{
    if (!PyUnicode_CheckExact(key)) {
        e->odd = 1;
        if (!PyUnicode_Check(key) || !type_in(e->key_types, key)) {
            ch_raise(e->state, CH_ERR_UNSUPPORTED, "key is not a string");
            return -1;
        }
    }
    if (has_surrogates(key) ||
        (PyUnicode_GET_LENGTH(key) > 1 && PyUnicode_READ_CHAR(key, 0) == '_' &&
         PyUnicode_READ_CHAR(key, 1) == '_')) {
        e->odd = 1; /* __ansible_type and the like mean something */
    }
    return text_put_string(&e->text, key);
}

static int
encode_member(struct encoder *e, PyObject *key, PyObject *value,
              Py_ssize_t index, int level)
{
    if (encode_gap(e, index, level, 0) < 0 || encode_key(e, key) < 0 ||
        text_puts(&e->text, ": ") < 0) {
        return -1;
    }
    return encode_value(e, value, level);
}

static int
encode_dict_sorted(struct encoder *e, PyObject *dict, int level)
{
    PyObject *keys = PyDict_Keys(dict);
    int r = -1;

    if (keys == NULL || PyList_Sort(keys) < 0) {
        goto out;
    }
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(keys); i++) {
        PyObject *key = PyList_GET_ITEM(keys, i);
        PyObject *value = Py_XNewRef(PyDict_GetItemWithError(dict, key));
        if (value == NULL) {
            if (!PyErr_Occurred()) {
                PyErr_SetObject(PyExc_KeyError, key);
            }
            goto out;
        }
        r = encode_member(e, key, value, i, level);
        Py_DECREF(value);
        if (r < 0) {
            goto out;
        }
    }
    r = 0;
out:
    Py_XDECREF(keys);
    return r;
}

static int
encode_dict(struct encoder *e, PyObject *dict, int level)
{
    Py_ssize_t pos = 0, index = 0;
    PyObject *key, *value;
    int r = 0;

    if (PyDict_GET_SIZE(dict) == 0) {
        return text_puts(&e->text, "{}");
    }
    if (text_puts(&e->text, "{") < 0) {
        return -1;
    }
    if (e->indented) {
        r = encode_dict_sorted(e, dict, level + 1);
    }
    while (!e->indented && r == 0 && PyDict_Next(dict, &pos, &key, &value)) {
        Py_INCREF(key); /* leaf may do anything, even change dict */
        Py_INCREF(value);
        r = encode_member(e, key, value, index++, level + 1);
        Py_DECREF(key);
        Py_DECREF(value);
    }
    if (r < 0 || encode_gap(e, 1, level, 1) < 0) {
        return -1;
    }
    return text_puts(&e->text, "}");
}

/* A list or a tuple. */
static int
encode_sequence(struct encoder *e, PyObject *seq, int level)
{
    if (PySequence_Fast_GET_SIZE(seq) == 0) {
        return text_puts(&e->text, "[]");
    }
    if (text_puts(&e->text, "[") < 0) {
        return -1;
    }
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(seq); i++) {
        PyObject *item = Py_NewRef(PySequence_Fast_GET_ITEM(seq, i));
        int r = encode_gap(e, i, level + 1, 0);
        if (r == 0) {
            r = encode_value(e, item, level + 1);
        }
        Py_DECREF(item);
        if (r < 0) {
            return -1;
        }
    }
    if (encode_gap(e, 1, level, 1) < 0) {
        return -1;
    }
    return text_puts(&e->text, "]");
}

static int
encode_leaf(struct encoder *e, PyObject *obj)
{
    PyObject *str;
    int r = -1;

    if (e->leaf == NULL) {
        ch_raise(e->state, CH_ERR_UNSUPPORTED, Py_TYPE(obj)->tp_name);
        return -1;
    }
    str = PyObject_CallOneArg(e->leaf, obj);
    if (str == NULL) {
        return -1;
    }
    if (PyUnicode_CheckExact(str) && PyUnicode_IS_ASCII(str)) {
        r = text_put(&e->text, PyUnicode_DATA(str),
                     (size_t)PyUnicode_GET_LENGTH(str));
    } else {
        PyErr_SetString(PyExc_TypeError, "leaf must return ASCII text");
    }
    Py_DECREF(str);
    return r;
}

static int
encode_container(struct encoder *e, PyObject *obj, int level)
{
    int r;

    if (Py_EnterRecursiveCall(" while encoding facts")) {
        return -1;
    }
    if (PyDict_CheckExact(obj)) {
        r = encode_dict(e, obj, level);
    } else if (PyList_CheckExact(obj)) {
        r = encode_sequence(e, obj, level);
    } else if (PyTuple_CheckExact(obj) && e->leaf == NULL) {
        e->odd = 1;
        r = encode_sequence(e, obj, level);
    } else {
        e->odd = 1;
        r = encode_leaf(e, obj);
    }
    Py_LeaveRecursiveCall();
    return r;
}

/* An object of one of str_types: as what it derives from. */
static int
encode_derived(struct encoder *e, PyObject *obj, int level)
{
    int r;

    if (PyUnicode_Check(obj)) {
        return text_put_string(&e->text, obj);
    }
    if (PyLong_Check(obj)) {
        return text_put_repr(&e->text, obj, &PyLong_Type);
    }
    if (PyFloat_Check(obj)) {
        return text_put_float(&e->text, obj);
    }
    if ((!PyDict_Check(obj) && !PyList_Check(obj)) ||
        Py_EnterRecursiveCall(" while encoding facts")) {
        return PyErr_Occurred() ? -1 : encode_leaf(e, obj);
    }
    r = PyDict_Check(obj) ? encode_dict(e, obj, level)
                          : encode_sequence(e, obj, level);
    Py_LeaveRecursiveCall();
    return r;
}

static int
encode_value(struct encoder *e, PyObject *obj, int level)
{
    if (PyUnicode_CheckExact(obj)) {
        e->odd |= has_surrogates(obj);
        return text_put_string(&e->text, obj);
    }
    if (obj == Py_None) {
        return text_puts(&e->text, "null");
    }
    if (obj == Py_True || obj == Py_False) {
        return text_puts(&e->text, obj == Py_True ? "true" : "false");
    }
    if (PyLong_CheckExact(obj)) {
        return text_put_repr(&e->text, obj, &PyLong_Type);
    }
    if (PyFloat_CheckExact(obj)) {
        return text_put_float(&e->text, obj);
    }
    if (type_in(e->str_types, obj)) {
        e->odd = 1;
        return encode_derived(e, obj, level);
    }
    return encode_container(e, obj, level);
}

/* {"__payload__": "<text as a JSON string>"}; text is ASCII without control
 * characters. */
static PyObject *
wrap_payload(const struct text *text)
{
    static const char head[] = "{\"__payload__\": \"";
    size_t extra = 0;
    PyObject *bytes;
    char *at;

    for (size_t i = 0; i < text->len; i++) {
        extra += text->data[i] == '"' || text->data[i] == '\\';
    }
    bytes = PyBytes_FromStringAndSize(
        NULL, (Py_ssize_t)(sizeof(head) - 1 + text->len + extra + 2));
    if (bytes == NULL) {
        return NULL;
    }
    at = PyBytes_AS_STRING(bytes);
    memcpy(at, head, sizeof(head) - 1);
    at += sizeof(head) - 1;
    for (size_t i = 0; i < text->len; i++) {
        if (text->data[i] == '"' || text->data[i] == '\\') {
            *at++ = '\\';
        }
        *at++ = text->data[i];
    }
    memcpy(at, "\"}", 2);
    return bytes;
}

static int
control_in(const struct text *text)
{
    for (size_t i = 0; i < text->len; i++) {
        if ((unsigned char)text->data[i] < ' ' || text->data[i] == 0x7f) {
            return 1;
        }
    }
    return 0;
}

PyDoc_STRVAR(
    encode_doc,
    "facts_encode(value, style, str_types, key_types, leaf, /) -> "
    "tuple[bytes, bool]\n--\n\n"
    "json.dumps(value) in style 'indent' (indent=4, sort_keys), 'compact' "
    "or 'envelope'\n({\"__payload__\": \"<compact>\"}), and whether decoding "
    "gives an equal value of equal types.");

static PyObject *
facts_encode(PyObject *module, PyObject *args)
{
    struct encoder e = {.state = PyModule_GetState(module)};
    PyObject *value, *leaf, *result = NULL;
    const char *style;

    if (!PyArg_ParseTuple(args, "OsO!O!O:facts_encode", &value, &style,
                          &PyTuple_Type, &e.str_types, &PyTuple_Type,
                          &e.key_types, &leaf)) {
        return NULL;
    }
    e.leaf = leaf == Py_None ? NULL : leaf;
    e.indented = strcmp(style, "indent") == 0;
    if (e.indented && e.leaf != NULL) {
        return PyErr_Format(PyExc_ValueError, "no leaf with indent");
    }
    if (encode_value(&e, value, 0) == 0) {
        if (strcmp(style, "envelope") != 0) {
            result =
                PyBytes_FromStringAndSize(e.text.data, (Py_ssize_t)e.text.len);
        } else if (control_in(&e.text)) {
            ch_raise(e.state, CH_ERR_UNSUPPORTED, "control characters");
        } else {
            result = wrap_payload(&e.text);
        }
    }
    PyMem_RawFree(e.text.data);
    if (result == NULL) {
        return NULL;
    }
    return Py_BuildValue("(NO)", result, e.odd ? Py_False : Py_True);
}

static PyMethodDef encode_methods[] = {
    {"facts_encode", facts_encode, METH_VARARGS, encode_doc},
    {NULL, NULL, 0, NULL},
};

int
ch_py_facts_encode_setup(PyObject *module)
{
    return PyModule_AddFunctions(module, encode_methods);
}
