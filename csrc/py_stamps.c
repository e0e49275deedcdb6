/*
 * py_stamps.c - churten._core.Stamps: when each step of a host's task
 * happened. The same thing in Python:
 *
 *     class Stamps:
 *         def __init__(self, eligible: float | None = None): ...
 *         eligible, slot, start, connect_begin, connect_end, sent,
 *         remote_begin, remote_end, received, processed: float | None
 *         connect_open: float | None  # begin of a phase that is not ended
 *         connect_s, remote_s, ran_s: float
 *         worker: int | None
 *         engine: str | None          # "fiber", "fork"; None: not ours
 *         seen: bool                  # a connection of ours did something
 *         lost: bool                  # a worker could not tell all
 *         ticket: int
 *         spans: list[tuple[float, float, float]]  # begin, sent, end
 *         phased: bool                # connecting and remote work are known
 *         def request(self, begin, sent, end, ran) -> None
 *         def since(self, n) -> tuple[int, float, float]
 *         def fill(self, result, seconds, now, zero) -> None
 *         def line(self, common, host, status, items, started, attempts,
 *                  delegated, quote, at, seconds, now, zero) -> bytes
 *         def phases(self, seconds) -> tuple  # queue, connect, remote,
 *                                             # controller; None: unknown
 *
 * WHY. There is a record for every task on every host, it is written to a
 * dozen times between other things, and read once.
 *
 * WHAT HOLDS. Times are seconds of the monotonic clock; NaN is a step that
 * nobody saw, None for Python. connect_begin and remote_begin keep the first
 * time, *_end the last, connect_s and remote_s the sum, spans every request.
 *
 * OWNERSHIP. A record owns its spans and its engine's name.
 */
#include "py_stamps.h"

#include <math.h>
#include <stddef.h>
#include <structmember.h>

#define MOMENTS CH_STAMP_NAMES X(connect_open)

/* What fill() sets beside t. */
#define FILLED                                                                \
    X(engine)                                                                 \
    X(worker)                                                                 \
    X(source)                                                                 \
    X(queue)                                                                  \
    X(connect)                                                                \
    X(remote)                                                                 \
    X(ran)                                                                    \
    X(controller)                                                             \
    X(t)

enum name {
#define X(name) N_##name,
    MOMENTS FILLED
#undef X
        N_COUNT,
    MOMENT_COUNT = N_connect_open + 1
};

static const char *const names[N_COUNT] = {
#define X(name) #name,
    MOMENTS FILLED
#undef X
};

struct span {
    double begin;
    double sent;
    double end;
};

typedef struct {
    PyObject_HEAD
    double when[MOMENT_COUNT]; /* NaN: nobody saw it */
    double connect_s;
    double remote_s;
    double ran_s; /* of remote_s: what the targets measured */
    struct span *spans;
    Py_ssize_t n_spans;
    Py_ssize_t room;
    PyObject *engine; /* owned, NULL is None */
    unsigned long long ticket;
    long worker; /* -1 is None */
    char seen;
    char lost;
} StampsObject;

#define STAMPS(op) ((StampsObject *)(op))

static double
least(double a, double b)
{
    return b < a ? b : a;
}

static double
most(double a, double b)
{
    return b > a ? b : a;
}

/* 0, or -1 with an exception. */
static int
to_time(PyObject *value, double *when)
{
    if (value == NULL || value == Py_None) {
        *when = NAN;
        return 0;
    }
    *when = PyFloat_AsDouble(value);
    return *when == -1.0 && PyErr_Occurred() ? -1 : 0;
}

static PyObject *
from_time(double when)
{
    return isnan(when) ? Py_NewRef(Py_None) : PyFloat_FromDouble(when);
}

static PyObject *
stamps_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *words[] = {"eligible", NULL};
    PyObject *eligible = NULL;
    StampsObject *self;

    if ((PyTuple_GET_SIZE(args) != 0 || kwargs != NULL) &&
        !PyArg_ParseTupleAndKeywords(args, kwargs, "|O:Stamps", words,
                                     &eligible)) {
        return NULL;
    }
    self = STAMPS(type->tp_alloc(type, 0));
    if (self == NULL) {
        return NULL;
    }
    for (int i = 0; i < MOMENT_COUNT; i++) {
        self->when[i] = NAN;
    }
    self->worker = -1;
    if (to_time(eligible, &self->when[N_eligible]) < 0) {
        Py_CLEAR(self);
    }
    return (PyObject *)self;
}

static void
stamps_dealloc(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);

    PyMem_Free(STAMPS(op)->spans);
    Py_XDECREF(STAMPS(op)->engine);
    type->tp_free(op);
    Py_DECREF(type);
}

static int
add_span(StampsObject *self, struct span span)
{
    if (self->n_spans == self->room) {
        Py_ssize_t room = self->room == 0 ? 1 : 4 * self->room;
        struct span *more = self->spans;

        if (PyMem_Resize(more, struct span, (size_t)room) == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        self->spans = more;
        self->room = room;
    }
    self->spans[self->n_spans++] = span;
    return 0;
}

/* Connecting until `sent`, then remote work until `end`. */
static int
note_request(StampsObject *self, double begin, double sent, double end,
             double ran)
{
    double *when = self->when;
    double known = isnan(when[N_connect_end]) ? begin : when[N_connect_end];
    double earliest = least(most(sent, begin), end);
    double late;

    /* A request may go out before the wait for its session or agent is over:
     * what of the two overlaps is connecting, and counts once. */
    sent = least(most(sent, known), end);
    self->seen = 1;
    when[N_connect_begin] = isnan(when[N_connect_begin])
                                ? begin
                                : least(when[N_connect_begin], begin);
    /* A busy controller notices late that the wait is over: what the target
     * says it worked was not connecting. */
    late = least(ran, end - earliest) - (end - sent);
    if (late > 0) {
        sent -= late;
        self->connect_s = most(0.0, self->connect_s - late);
        known = sent;
    }
    when[N_connect_end] = most(sent, known);
    self->connect_s += most(0.0, sent - most(begin, known));
    if (end > sent) {
        if (isnan(when[N_remote_begin])) {
            when[N_remote_begin] = sent;
        }
        when[N_sent] = sent;
        when[N_remote_end] = end;
        self->remote_s += end - sent;
        self->ran_s += least(ran, end - sent);
    }
    return add_span(self, (struct span){begin, sent, end});
}

/* 0, or -1 with an exception. */
static int
take_numbers(PyObject *const *args, Py_ssize_t given, double *found,
             Py_ssize_t n, const char *what)
{
    if (given != n) {
        PyErr_Format(PyExc_TypeError, "%s takes %zd numbers, not %zd", what, n,
                     given);
        return -1;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        found[i] = PyFloat_AsDouble(args[i]);
        if (found[i] == -1.0 && PyErr_Occurred()) {
            return -1;
        }
    }
    return 0;
}

static PyObject *
stamps_request(PyObject *op, PyObject *const *args, Py_ssize_t n)
{
    double at[4];

    if (take_numbers(args, n, at, 4, "request") < 0 ||
        note_request(STAMPS(op), at[0], at[1], at[2], at[3]) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *
stamps_since(PyObject *op, PyObject *arg)
{
    StampsObject *self = STAMPS(op);
    Py_ssize_t n = PyNumber_AsSsize_t(arg, PyExc_OverflowError);
    double connect = 0, remote = 0;

    if (n == -1 && PyErr_Occurred()) {
        return NULL;
    }
    for (Py_ssize_t i = n < 0 ? 0 : n; i < self->n_spans; i++) {
        connect += self->spans[i].sent - self->spans[i].begin;
        remote += self->spans[i].end - self->spans[i].sent;
    }
    return Py_BuildValue("(ndd)", self->n_spans, connect, remote);
}

static int
is_phased(const StampsObject *self)
{
    int fiber = self->engine != NULL && PyUnicode_Check(self->engine) &&
                PyUnicode_CompareWithASCIIString(self->engine, "fiber") == 0;

    return !self->lost && (self->seen || fiber);
}

/* result.<name> = value, which is taken over; NULL passes an exception on. */
static int
set(PyObject *result, PyObject *all, enum name name, PyObject *value)
{
    int r = value == NULL ? -1
                          : PyObject_SetAttr(
                                result, PyTuple_GET_ITEM(all, name), value);

    Py_XDECREF(value);
    return r;
}

static PyObject *
moments(const StampsObject *self, PyObject *all, double now, double zero)
{
    PyObject *dict = PyDict_New();

    for (int i = 0; dict != NULL && i <= N_processed; i++) {
        double when = i == N_processed ? now : self->when[i];
        PyObject *value;

        if (isnan(when)) {
            continue;
        }
        value = PyFloat_FromDouble(when - zero);
        if (value == NULL ||
            PyDict_SetItem(dict, PyTuple_GET_ITEM(all, i), value) < 0) {
            Py_CLEAR(dict);
        }
        Py_XDECREF(value);
    }
    return dict;
}

const char *const ch_stamp_names[CH_STAMPS] = {
#define X(name) #name,
    CH_STAMP_NAMES
#undef X
};

/* What is known of a result that took `seconds` and was handled at `now`. 0,
 * or -1 with an exception. */
static int
read_all(const StampsObject *self, double seconds, double now,
         struct ch_stamped *out)
{
    double queue = self->when[N_slot] - self->when[N_eligible];
    double rest = seconds - self->connect_s - self->remote_s;
    int phased = is_phased(self);
    int ours = self->engine == NULL ? 0 : PyObject_IsTrue(self->engine);

    for (int i = 0; i < CH_STAMPS; i++) {
        out->when[i] = i == N_processed ? now : self->when[i];
    }
    out->queue = isnan(queue) ? NAN : most(0.0, queue);
    out->connect = phased ? self->connect_s : NAN;
    out->remote = phased ? self->remote_s : NAN;
    out->ran = phased ? self->ran_s : NAN;
    out->controller = phased ? most(0.0, rest) : NAN;
    out->engine = self->engine == NULL ? Py_None : self->engine;
    out->worker = self->worker;
    out->source = ours         ? "executor"
                  : self->seen ? "connection"
                               : "callbacks";
    return ours < 0 ? -1 : 0;
}

static int
fill(const StampsObject *self, PyObject *all, PyObject *result, double seconds,
     double now)
{
    struct ch_stamped found;

    if (read_all(self, seconds, now, &found) < 0 ||
        set(result, all, N_engine, Py_NewRef(found.engine)) < 0 ||
        set(result, all, N_worker,
            found.worker < 0 ? Py_NewRef(Py_None)
                             : PyLong_FromLong(found.worker)) < 0 ||
        set(result, all, N_source, PyUnicode_FromString(found.source)) < 0) {
        return -1;
    }
    if (set(result, all, N_queue, from_time(found.queue)) < 0 ||
        set(result, all, N_connect, from_time(found.connect)) < 0 ||
        set(result, all, N_remote, from_time(found.remote)) < 0 ||
        set(result, all, N_ran, from_time(found.ran)) < 0) {
        return -1;
    }
    return set(result, all, N_controller, from_time(found.controller));
}

static PyObject *
stamps_phases(PyObject *op, PyObject *arg)
{
    double seconds = PyFloat_AsDouble(arg);
    struct ch_stamped found;
    PyObject *phases;

    if ((seconds == -1.0 && PyErr_Occurred()) ||
        read_all(STAMPS(op), seconds, 0.0, &found) < 0) {
        return NULL;
    }
    phases = PyTuple_New(4);
    for (int i = 0; phases != NULL && i < 4; i++) {
        const double all[] = {found.queue, found.connect, found.remote,
                              found.controller};
        PyObject *value = from_time(all[i]);

        if (value == NULL) {
            Py_CLEAR(phases);
        } else {
            PyTuple_SET_ITEM(phases, i, value);
        }
    }
    return phases;
}

static PyObject *
stamps_fill(PyObject *op, PyObject *const *args, Py_ssize_t n)
{
    ch_state *state = PyType_GetModuleState(Py_TYPE(op));
    PyObject *all = state->stamp_names;
    double at[3]; /* seconds, now, zero */

    if (n != 4 || take_numbers(args + 1, n - 1, at, 3, "fill") < 0) {
        if (!PyErr_Occurred()) {
            PyErr_SetString(PyExc_TypeError, "fill takes 4 arguments");
        }
        return NULL;
    }
    if (fill(STAMPS(op), all, args[0], at[0], at[1]) < 0 ||
        set(args[0], all, N_t, moments(STAMPS(op), all, at[1], at[2])) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *
stamps_line(PyObject *op, PyObject *const *args, Py_ssize_t n)
{
    struct ch_timed timed;
    struct ch_stamped found;
    double at[4]; /* at, seconds, now, zero */

    if (n != 12) {
        PyErr_SetString(PyExc_TypeError, "line takes 12 arguments");
        return NULL;
    }
    if (take_numbers(args + 8, 4, at, 4, "line") < 0 ||
        read_all(STAMPS(op), at[1], at[2], &found) < 0) {
        return NULL;
    }
    timed = (struct ch_timed){args[0], args[1], args[2], args[3],
                              args[4], args[5], args[6], args[7],
                              at[0],   at[1],   at[3]};
    return ch_timed_line(&timed, &found);
}

static PyObject *
get_moment(PyObject *op, void *offset)
{
    return from_time(*(double *)((char *)op + (size_t)offset));
}

static int
set_moment(PyObject *op, PyObject *value, void *offset)
{
    return to_time(value, (double *)((char *)op + (size_t)offset));
}

static PyObject *
get_worker(PyObject *op, void *Py_UNUSED(closure))
{
    long worker = STAMPS(op)->worker;

    return worker < 0 ? Py_NewRef(Py_None) : PyLong_FromLong(worker);
}

static int
set_worker(PyObject *op, PyObject *value, void *Py_UNUSED(closure))
{
    long worker = -1;

    if (value != NULL && value != Py_None) {
        worker = PyLong_AsLong(value);
        if (worker == -1 && PyErr_Occurred()) {
            return -1;
        }
    }
    STAMPS(op)->worker = worker;
    return 0;
}

static PyObject *
get_spans(PyObject *op, void *Py_UNUSED(closure))
{
    StampsObject *self = STAMPS(op);
    PyObject *list = PyList_New(self->n_spans);

    for (Py_ssize_t i = 0; list != NULL && i < self->n_spans; i++) {
        struct span *span = &self->spans[i];
        PyObject *item =
            Py_BuildValue("(ddd)", span->begin, span->sent, span->end);

        if (item == NULL) {
            Py_CLEAR(list);
        } else {
            PyList_SET_ITEM(list, i, item);
        }
    }
    return list;
}

static PyObject *
get_phased(PyObject *op, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(is_phased(STAMPS(op)));
}

static PyMethodDef stamps_methods[] = {
    {"request", (PyCFunction)(void (*)(void))stamps_request, METH_FASTCALL,
     "request(begin, sent, end, ran): connecting until sent, then remote work "
     "until end, of which the target says it worked ran seconds"},
    {"since", stamps_since, METH_O,
     "since(n) -> number of requests, and seconds of connecting and of remote "
     "work of those from number n on"},
    {"fill", (PyCFunction)(void (*)(void))stamps_fill, METH_FASTCALL,
     "fill(result, seconds, now, zero): set what the result (model.Result) "
     "has from here; moments count from zero"},
    {"line", (PyCFunction)(void (*)(void))stamps_line, METH_FASTCALL,
     "line(common, host, status, items, started, attempts, delegated, quote, "
     "at, seconds, now, zero) -> bytes: the line of the timing log"},
    {"phases", stamps_phases, METH_O,
     "phases(seconds) -> queue, connect, remote and controller of a result "
     "that took so long; None: not known"},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef stamps_members[] = {
    {"connect_s", T_DOUBLE, offsetof(StampsObject, connect_s), READONLY, NULL},
    {"remote_s", T_DOUBLE, offsetof(StampsObject, remote_s), READONLY, NULL},
    {"ran_s", T_DOUBLE, offsetof(StampsObject, ran_s), READONLY, NULL},
    {"engine", T_OBJECT, offsetof(StampsObject, engine), 0, NULL},
    {"ticket", T_ULONGLONG, offsetof(StampsObject, ticket), 0, NULL},
    {"seen", T_BOOL, offsetof(StampsObject, seen), 0, NULL},
    {"lost", T_BOOL, offsetof(StampsObject, lost), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef stamps_getset[] = {
#define X(name)                                                               \
    {#name, get_moment, set_moment, NULL,                                     \
     (void *)offsetof(StampsObject, when[N_##name])},
    MOMENTS
#undef X
    {"worker", get_worker, set_worker, "slot number", NULL},
    {"spans", get_spans, NULL, "(begin, sent, end) of each request", NULL},
    {"phased", get_phased, NULL,
     "whether connecting and remote work are known", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot stamps_slots[] = {
    {Py_tp_new, stamps_new},
    {Py_tp_dealloc, stamps_dealloc},
    {Py_tp_methods, stamps_methods},
    {Py_tp_members, stamps_members},
    {Py_tp_getset, stamps_getset},
    {Py_tp_doc, "Stamps(eligible=None): the steps of one task on one host."},
    {0, NULL},
};

/* Without garbage collection: of objects it holds only a text. */
static PyType_Spec stamps_spec = {
    .name = "churten._core.Stamps",
    .basicsize = sizeof(StampsObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = stamps_slots,
};

int
ch_py_stamps_setup(PyObject *module)
{
    ch_state *state = PyModule_GetState(module);
    PyObject *type = NULL;
    int r = -1;

    state->stamp_names = PyTuple_New(N_COUNT);
    for (int i = 0; state->stamp_names != NULL && i < N_COUNT; i++) {
        PyObject *name = PyUnicode_InternFromString(names[i]);

        if (name == NULL) {
            return -1; /* the module's clear takes the tuple */
        }
        PyTuple_SET_ITEM(state->stamp_names, i, name);
    }
    if (state->stamp_names != NULL) {
        type = PyType_FromModuleAndSpec(module, &stamps_spec, NULL);
    }
    if (type != NULL) {
        r = PyModule_AddType(module, (PyTypeObject *)type);
    }
    Py_XDECREF(type);
    return r;
}
