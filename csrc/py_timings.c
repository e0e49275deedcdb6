/*
 * py_timings.c - timing_line(common, values, quote): a line of the timing log.
 *
 * WHY. The log has a line for every task on every host, with up to twenty
 * times in it. In Python a line takes several times what everything else that
 * is recorded of a task does.
 *
 * WHAT HOLDS. The text is that of churten/timings/log.py: result_line, byte
 * for byte. Times have six decimals, correctly rounded (halves to even), as
 * Python prints them. Texts that JSON must escape are left to `quote`.
 *
 * OWNERSHIP. The line grows in an array that is freed before the function
 * returns; values are borrowed from the tuple.
 */
#include "py_stamps.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FIELDS                                                                \
    X(host)                                                                   \
    X(status)                                                                 \
    X(items)                                                                  \
    X(started)                                                                \
    X(at)                                                                     \
    X(seconds)                                                                \
    X(queue)                                                                  \
    X(connect)                                                                \
    X(remote)                                                                 \
    X(controller)                                                             \
    X(engine)                                                                 \
    X(worker)                                                                 \
    X(source)                                                                 \
    X(attempts)                                                               \
    X(delegated)                                                              \
    X(ran)                                                                    \
    X(t)

enum field {
#define X(name) F_##name,
    FIELDS
#undef X
        F_COUNT
};

static const char *const field_names[F_COUNT] = {
#define X(name) #name,
    FIELDS
#undef X
};

/* How the value of a field is written; t comes after all of them. */
enum kind { TEXT, RAW, WHOLE, TIME };

static const enum kind kinds[F_COUNT] = {
    [F_host] = TEXT,      [F_status] = TEXT,    [F_items] = WHOLE,
    [F_started] = RAW,    [F_at] = TIME,        [F_seconds] = TIME,
    [F_queue] = TIME,     [F_connect] = TIME,   [F_remote] = TIME,
    [F_controller] = TIME, [F_engine] = RAW,    [F_worker] = WHOLE,
    [F_source] = TEXT,    [F_attempts] = WHOLE, [F_delegated] = TEXT,
    [F_ran] = TIME,
};

struct line {
    char *data;
    size_t used;
    size_t size;
    PyObject *quote; /* borrowed */
};

static int
put(struct line *line, const char *data, size_t n)
{
    if (line->size - line->used < n) {
        size_t size = 2 * line->size + n + 1024;
        char *bigger = PyMem_Realloc(line->data, size);

        if (bigger == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        line->data = bigger;
        line->size = size;
    }
    memcpy(line->data + line->used, data, n);
    line->used += n;
    return 0;
}

static int
put_str(struct line *line, PyObject *text)
{
    Py_ssize_t n;
    const char *data = PyUnicode_AsUTF8AndSize(text, &n);

    return data == NULL ? -1 : put(line, data, (size_t)n);
}

/* Whether JSON in ASCII writes the text as it is. */
static int
is_simple(PyObject *text)
{
    const Py_UCS1 *data;

    if (!PyUnicode_CheckExact(text) || !PyUnicode_IS_COMPACT_ASCII(text)) {
        return 0;
    }
    data = PyUnicode_1BYTE_DATA(text);
    for (Py_ssize_t i = 0; i < PyUnicode_GET_LENGTH(text); i++) {
        if (data[i] < ' ' || data[i] > '~' || data[i] == '"' ||
            data[i] == '\\') {
            return 0;
        }
    }
    return 1;
}

static int
put_text(struct line *line, PyObject *text)
{
    PyObject *quoted;
    int r;

    if (is_simple(text)) {
        r = put(line, "\"", 1);
        r = r < 0 ? r : put_str(line, text);
        return r < 0 ? r : put(line, "\"", 1);
    }
    quoted = PyObject_CallOneArg(line->quote, text);
    if (quoted == NULL) {
        return -1;
    }
    r = put_str(line, quoted);
    Py_DECREF(quoted);
    return r;
}

/* Python's own way, for what format_time does not take. */
static int
put_any_time(struct line *line, double value)
{
    char *text = PyOS_double_to_string(value, 'f', 6, 0, NULL);
    int r;

    if (text == NULL) {
        return -1;
    }
    r = put(line, text, strlen(text));
    PyMem_Free(text);
    return r;
}

/*
 * value * 10^6, correctly rounded, for 0 <= value < 2^40: its fraction is
 * bits / 2^shift exactly, with bits below 2^53, so the product fits 128 bits.
 */
static uint64_t
to_micros(double value)
{
    double whole = floor(value);
    int exponent;
    uint64_t bits = (uint64_t)ldexp(frexp(value - whole, &exponent), 53);
    int shift = 53 - exponent;
    uint64_t micros = (uint64_t)whole * 1000000u;
    unsigned __int128 product, rest, half;

    if (bits == 0 || shift > 100) {
        return micros; /* below 2^-47 */
    }
    product = (unsigned __int128)bits * 1000000u;
    rest = product & (((unsigned __int128)1 << shift) - 1);
    half = (unsigned __int128)1 << (shift - 1);
    micros += (uint64_t)(product >> shift);
    if (rest > half || (rest == half && (micros & 1))) {
        micros++;
    }
    return micros;
}

static int
put_seconds(struct line *line, double value)
{
    char text[32];
    size_t at = sizeof(text);
    uint64_t micros;
    int digits = 0;

    if (!(fabs(value) < 1099511627776.0)) {
        return put_any_time(line, value);
    }
    micros = to_micros(fabs(value));
    while (digits < 7 || micros != 0) {
        if (digits == 6) {
            text[--at] = '.';
        }
        text[--at] = (char)('0' + micros % 10);
        micros /= 10;
        digits++;
    }
    if (signbit(value)) {
        text[--at] = '-';
    }
    return put(line, text + at, sizeof(text) - at);
}

static int
put_time(struct line *line, PyObject *object)
{
    double value = PyFloat_AsDouble(object);

    return value == -1.0 && PyErr_Occurred() ? -1 : put_seconds(line, value);
}

static int
put_whole(struct line *line, PyObject *object)
{
    PyObject *text = PyObject_Str(object);
    int r;

    if (text == NULL) {
        return -1;
    }
    r = put_str(line, text);
    Py_DECREF(text);
    return r;
}

static int
put_value(struct line *line, enum kind kind, PyObject *value)
{
    if (value == Py_None) {
        return put(line, "null", 4);
    }
    switch (kind) {
    case TEXT:
        return put_text(line, value);
    case WHOLE:
        return put_whole(line, value);
    case TIME:
        return put_time(line, value);
    case RAW:
        break;
    }
    if (put(line, "\"", 1) < 0 || put_str(line, value) < 0) {
        return -1;
    }
    return put(line, "\"", 1);
}

static int
put_name(struct line *line, const char *before, const char *name)
{
    if (put(line, before, strlen(before)) < 0 ||
        put(line, name, strlen(name)) < 0) {
        return -1;
    }
    return put(line, "\":", 2);
}

static int
put_moments(struct line *line, PyObject *moments)
{
    PyObject *name, *when;
    Py_ssize_t at = 0;
    const char *before = "\"";

    if (!PyDict_Check(moments)) {
        PyErr_SetString(PyExc_TypeError, "t is not a dict");
        return -1;
    }
    if (put(line, ",\"t\":{", 6) < 0) {
        return -1;
    }
    while (PyDict_Next(moments, &at, &name, &when)) {
        const char *text = PyUnicode_AsUTF8(name);

        if (text == NULL || put_name(line, before, text) < 0 ||
            put_time(line, when) < 0) {
            return -1;
        }
        before = ",\"";
    }
    return put(line, "}", 1);
}

static int
put_fields(struct line *line, PyObject *values)
{
    int r = 0;

    for (int i = 0; i < F_t && r == 0; i++) {
        r = put_name(line, ",\"", field_names[i]);
        r = r < 0 ? r : put_value(line, kinds[i], PyTuple_GET_ITEM(values, i));
    }
    if (r == 0 && PyTuple_GET_ITEM(values, F_t) != Py_None) {
        r = put_moments(line, PyTuple_GET_ITEM(values, F_t));
    }
    return r;
}

#define PUT(line, text) put(line, text, sizeof(text) - 1)

/* A time, or null; the name is given as ,"name":. */
static int
put_known(struct line *line, const char *name, size_t n, double value)
{
    if (put(line, name, n) < 0) {
        return -1;
    }
    return isnan(value) ? PUT(line, "null") : put_seconds(line, value);
}

#define KNOWN(line, name, value)                                              \
    put_known(line, ",\"" name "\":", sizeof(name) + 3, value)

static int
put_stamps(struct line *line, const struct ch_stamped *stamped, double zero)
{
    const char *before = "\"";

    if (PUT(line, ",\"t\":{") < 0) {
        return -1;
    }
    for (int i = 0; i < CH_STAMPS; i++) {
        if (isnan(stamped->when[i])) {
            continue;
        }
        if (put_name(line, before, ch_stamp_names[i]) < 0 ||
            put_seconds(line, stamped->when[i] - zero) < 0) {
            return -1;
        }
        before = ",\"";
    }
    return PUT(line, "}");
}

static int
put_worker(struct line *line, long worker)
{
    char text[32];
    int n = snprintf(text, sizeof(text), "%ld", worker);

    return worker < 0 ? PUT(line, "null") : put(line, text, (size_t)n);
}

static int
put_timed(struct line *line, const struct ch_timed *timed,
          const struct ch_stamped *stamped)
{
    if (put_str(line, timed->common) < 0 || PUT(line, ",\"host\":") < 0 ||
        put_value(line, TEXT, timed->host) < 0 ||
        PUT(line, ",\"status\":") < 0 ||
        put_value(line, TEXT, timed->status) < 0 ||
        PUT(line, ",\"items\":") < 0 ||
        put_value(line, WHOLE, timed->items) < 0 ||
        PUT(line, ",\"started\":") < 0 ||
        put_value(line, RAW, timed->started) < 0) {
        return -1;
    }
    if (KNOWN(line, "at", timed->at) < 0 ||
        KNOWN(line, "seconds", timed->seconds) < 0 ||
        KNOWN(line, "queue", stamped->queue) < 0 ||
        KNOWN(line, "connect", stamped->connect) < 0 ||
        KNOWN(line, "remote", stamped->remote) < 0 ||
        KNOWN(line, "controller", stamped->controller) < 0) {
        return -1;
    }
    if (PUT(line, ",\"engine\":") < 0 ||
        put_value(line, RAW, stamped->engine) < 0 ||
        PUT(line, ",\"worker\":") < 0 ||
        put_worker(line, stamped->worker) < 0 ||
        PUT(line, ",\"source\":\"") < 0 ||
        put(line, stamped->source, strlen(stamped->source)) < 0) {
        return -1;
    }
    if (PUT(line, "\",\"attempts\":") < 0 ||
        put_value(line, WHOLE, timed->attempts) < 0 ||
        PUT(line, ",\"delegated\":") < 0 ||
        put_value(line, TEXT, timed->delegated) < 0 ||
        KNOWN(line, "ran", stamped->ran) < 0 ||
        put_stamps(line, stamped, timed->zero) < 0) {
        return -1;
    }
    return PUT(line, "}\n");
}

PyObject *
ch_timed_line(const struct ch_timed *timed, const struct ch_stamped *stamped)
{
    struct line line = {NULL, 0, 0, timed->quote};
    PyObject *made = NULL;

    if (put_timed(&line, timed, stamped) == 0) {
        made = PyBytes_FromStringAndSize(line.data, (Py_ssize_t)line.used);
    }
    PyMem_Free(line.data);
    return made;
}

PyDoc_STRVAR(line_doc,
             "timing_line(common, values, quote) -> str: the line of a result "
             "without its closing brace.\n\ncommon is how the lines of its "
             "task begin, values are its other fields, a tuple in the order "
             "of the log; quote makes a JSON string of a text.");

static PyObject *
core_timing_line(PyObject *Py_UNUSED(module), PyObject *const *args,
                 Py_ssize_t n)
{
    struct line line = {NULL, 0, 0, NULL};
    PyObject *made = NULL;

    if (n != 3 || !PyUnicode_Check(args[0]) || !PyTuple_Check(args[1]) ||
        PyTuple_GET_SIZE(args[1]) != F_COUNT) {
        PyErr_SetString(PyExc_TypeError,
                        "timing_line takes a str, a tuple of the fields' "
                        "values and a function");
        return NULL;
    }
    line.quote = args[2];
    if (put_str(&line, args[0]) == 0 && put_fields(&line, args[1]) == 0) {
        made = PyUnicode_DecodeUTF8(line.data, (Py_ssize_t)line.used, NULL);
    }
    PyMem_Free(line.data);
    return made;
}

static PyMethodDef timings_methods[] = {
    {"timing_line", (PyCFunction)(void (*)(void))core_timing_line,
     METH_FASTCALL, line_doc},
    {NULL, NULL, 0, NULL},
};

int
ch_py_timings_setup(PyObject *module)
{
    return PyModule_AddFunctions(module, timings_methods);
}
