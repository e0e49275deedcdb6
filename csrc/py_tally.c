/*
 * py_tally.c - churten._core.Tally: the figures of a task, a play, a role or
 * a host, one result after the other. The same thing in Python:
 *
 *     class Tally:
 *         def __init__(self, name, path=None, *, times=False, hosts=False,
 *                      phases=False): ...
 *         name: str
 *         path: str | None
 *         count: int
 *         sum_s, first_s, last_s, max_s: float
 *         max_host: str
 *         worst: int                   # the highest rank of a status; -1
 *         times: list[float] | None    # of each result, if wanted
 *         hosts: set[str] | None       # their names, if wanted
 *         phases: dict[str, float | None] | None
 *         def add(self, at, seconds, rank, host, phases) -> None
 *
 * WHY. Every result of a run is added to four of them while it runs.
 *
 * WHAT HOLDS. phases has sums of queue, connect, remote and controller, None
 * for one that no result knew.
 *
 * OWNERSHIP. A Tally owns its times and its objects. It may be subclassed, so
 * nothing here asks a type for its module.
 */
#include "py.h"

#include <math.h>
#include <stddef.h>
#include <structmember.h>

enum { PHASES = 4 };

static const char *const phase_names[PHASES] = {"queue", "connect", "remote",
                                                "controller"};

typedef struct {
    PyObject_HEAD
    PyObject *name;     /* these four owned */
    PyObject *path;     /* or None */
    PyObject *max_host; /* a str */
    PyObject *hosts;    /* a set, or NULL: not wanted */
    Py_ssize_t count;
    double sum_s;
    double first_s;
    double last_s;
    double max_s;
    double phases[PHASES]; /* NaN: of no result */
    double *times;
    Py_ssize_t n_times;
    Py_ssize_t room;
    int worst;
    char with_times;
    char with_phases;
} TallyObject;

#define TALLY(op) ((TallyObject *)(op))

static PyObject *
tally_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *words[] = {"name", "path", "times", "hosts", "phases", NULL};
    PyObject *name, *path = Py_None;
    int times = 0, hosts = 0, phases = 0;
    TallyObject *self;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "U|O$ppp:Tally", words,
                                     &name, &path, &times, &hosts, &phases)) {
        return NULL;
    }
    self = TALLY(type->tp_alloc(type, 0));
    if (self == NULL) {
        return NULL;
    }
    self->name = Py_NewRef(name);
    self->path = Py_NewRef(path);
    self->max_s = -1.0;
    self->worst = -1;
    self->with_times = (char)times;
    self->with_phases = (char)phases;
    for (int i = 0; i < PHASES; i++) {
        self->phases[i] = NAN;
    }
    self->max_host = PyUnicode_FromStringAndSize(NULL, 0);
    self->hosts = hosts ? PySet_New(NULL) : NULL;
    if (self->max_host == NULL || (hosts && self->hosts == NULL)) {
        Py_CLEAR(self);
    }
    return (PyObject *)self;
}

static int
tally_traverse(PyObject *op, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(TALLY(op)->name);
    Py_VISIT(TALLY(op)->path);
    Py_VISIT(TALLY(op)->max_host);
    Py_VISIT(TALLY(op)->hosts);
    return 0;
}

static int
tally_clear(PyObject *op)
{
    Py_CLEAR(TALLY(op)->name);
    Py_CLEAR(TALLY(op)->path);
    Py_CLEAR(TALLY(op)->max_host);
    Py_CLEAR(TALLY(op)->hosts);
    return 0;
}

static void
tally_dealloc(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);

    PyObject_GC_UnTrack(op);
    (void)tally_clear(op);
    PyMem_Free(TALLY(op)->times);
    type->tp_free(op);
    Py_DECREF(type);
}

static int
add_time(TallyObject *self, double seconds)
{
    if (self->n_times == self->room) {
        Py_ssize_t room = self->room == 0 ? 8 : 2 * self->room;
        double *more = self->times;

        if (PyMem_Resize(more, double, (size_t)room) == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        self->times = more;
        self->room = room;
    }
    self->times[self->n_times++] = seconds;
    return 0;
}

static int
add_phases(TallyObject *self, PyObject *phases)
{
    if (!PyTuple_Check(phases) || PyTuple_GET_SIZE(phases) != PHASES) {
        PyErr_SetString(PyExc_TypeError, "phases is not a tuple of four");
        return -1;
    }
    for (int i = 0; i < PHASES; i++) {
        PyObject *value = PyTuple_GET_ITEM(phases, i);
        double seconds;

        if (value == Py_None) {
            continue;
        }
        seconds = PyFloat_AsDouble(value);
        if (seconds == -1.0 && PyErr_Occurred()) {
            return -1;
        }
        if (isnan(self->phases[i])) {
            self->phases[i] = 0.0;
        }
        self->phases[i] += seconds;
    }
    return 0;
}

static int
add_result(TallyObject *self, double at, double seconds, int rank,
           PyObject *host)
{
    if (self->with_times && add_time(self, seconds) < 0) {
        return -1;
    }
    if (self->hosts != NULL && PySet_Add(self->hosts, host) < 0) {
        return -1;
    }
    if (self->count == 0 || at < self->first_s) {
        self->first_s = at;
    }
    if (self->count == 0 || at + seconds > self->last_s) {
        self->last_s = at + seconds;
    }
    self->count++;
    self->sum_s += seconds;
    if (rank > self->worst) {
        self->worst = rank;
    }
    if (seconds > self->max_s) {
        self->max_s = seconds;
        Py_SETREF(self->max_host, Py_NewRef(host));
    }
    return 0;
}

PyDoc_STRVAR(add_doc,
             "add(at, seconds, rank, host, phases): count one result.\n\n"
             "phases is a tuple of queue, connect, remote and controller; it "
             "is looked at if they are wanted.");

static PyObject *
tally_add(PyObject *op, PyObject *const *args, Py_ssize_t n)
{
    double at, seconds;
    long rank;

    if (n != 5 || !PyUnicode_Check(args[3])) {
        PyErr_SetString(PyExc_TypeError,
                        "add takes two numbers, a rank, a host and a tuple");
        return NULL;
    }
    at = PyFloat_AsDouble(args[0]);
    if (at == -1.0 && PyErr_Occurred()) {
        return NULL;
    }
    seconds = PyFloat_AsDouble(args[1]);
    if (seconds == -1.0 && PyErr_Occurred()) {
        return NULL;
    }
    rank = PyLong_AsLong(args[2]);
    if (rank == -1 && PyErr_Occurred()) {
        return NULL;
    }
    if ((TALLY(op)->with_phases && add_phases(TALLY(op), args[4]) < 0) ||
        add_result(TALLY(op), at, seconds, (int)rank, args[3]) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *
get_times(PyObject *op, void *Py_UNUSED(closure))
{
    TallyObject *self = TALLY(op);
    PyObject *list;

    if (!self->with_times) {
        Py_RETURN_NONE;
    }
    list = PyList_New(self->n_times);
    for (Py_ssize_t i = 0; list != NULL && i < self->n_times; i++) {
        PyObject *item = PyFloat_FromDouble(self->times[i]);

        if (item == NULL) {
            Py_CLEAR(list);
        } else {
            PyList_SET_ITEM(list, i, item);
        }
    }
    return list;
}

static PyObject *
get_phases(PyObject *op, void *Py_UNUSED(closure))
{
    TallyObject *self = TALLY(op);
    PyObject *dict;

    if (!self->with_phases) {
        Py_RETURN_NONE;
    }
    dict = PyDict_New();
    for (int i = 0; dict != NULL && i < PHASES; i++) {
        PyObject *value = isnan(self->phases[i])
                              ? Py_NewRef(Py_None)
                              : PyFloat_FromDouble(self->phases[i]);

        if (value == NULL ||
            PyDict_SetItemString(dict, phase_names[i], value) < 0) {
            Py_CLEAR(dict);
        }
        Py_XDECREF(value);
    }
    return dict;
}

static PyMethodDef tally_methods[] = {
    {"add", (PyCFunction)(void (*)(void))tally_add, METH_FASTCALL, add_doc},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef tally_members[] = {
    {"name", T_OBJECT, offsetof(TallyObject, name), READONLY, NULL},
    {"path", T_OBJECT, offsetof(TallyObject, path), READONLY, NULL},
    {"count", T_PYSSIZET, offsetof(TallyObject, count), READONLY, NULL},
    {"sum_s", T_DOUBLE, offsetof(TallyObject, sum_s), READONLY, NULL},
    {"first_s", T_DOUBLE, offsetof(TallyObject, first_s), READONLY, NULL},
    {"last_s", T_DOUBLE, offsetof(TallyObject, last_s), READONLY, NULL},
    {"max_s", T_DOUBLE, offsetof(TallyObject, max_s), READONLY, NULL},
    {"max_host", T_OBJECT, offsetof(TallyObject, max_host), READONLY, NULL},
    {"worst", T_INT, offsetof(TallyObject, worst), READONLY, NULL},
    {"hosts", T_OBJECT, offsetof(TallyObject, hosts), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef tally_getset[] = {
    {"times", get_times, NULL, "of each result, if wanted", NULL},
    {"phases", get_phases, NULL, "sums by name, if wanted", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot tally_slots[] = {
    {Py_tp_new, tally_new},
    {Py_tp_dealloc, tally_dealloc},
    {Py_tp_traverse, tally_traverse},
    {Py_tp_clear, tally_clear},
    {Py_tp_methods, tally_methods},
    {Py_tp_members, tally_members},
    {Py_tp_getset, tally_getset},
    {Py_tp_doc, "Tally(name, path=None, *, times, hosts, phases)"},
    {0, NULL},
};

static PyType_Spec tally_spec = {
    .name = "churten._core.Tally",
    .basicsize = sizeof(TallyObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC |
             Py_TPFLAGS_IMMUTABLETYPE,
    .slots = tally_slots,
};

int
ch_py_tally_setup(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &tally_spec, NULL);
    int r;

    if (type == NULL) {
        return -1;
    }
    r = PyModule_AddType(module, (PyTypeObject *)type);
    Py_DECREF(type);
    return r;
}
