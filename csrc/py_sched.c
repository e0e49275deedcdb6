/*
 * py_sched.c - churten._core.Scheduler. The same thing in Python:
 *
 *     class Scheduler:
 *         def __init__(self, slots: int): ...
 *         free: int                           # slots that are not taken
 *         def slot_acquire(self) -> int       # -1: none is free
 *         def slot_release(self, slot) -> None
 *         def ready_put(self, id) -> None
 *         def ready_take(self) -> list[int]   # all that are ready, in order
 *         ready: int                          # how many are ready
 *         def throttle_enter(self, key, limit, id) -> bool
 *         def throttle_leave(self, key) -> int | None
 *         def timer_add(self, when_us, id) -> int
 *         def timer_cancel(self, handle) -> None
 *         def timer_take(self, now_us) -> list[tuple[int, int]]  # id, handle
 *         def timer_next(self) -> int         # -1: no timer is set
 *
 * Nothing here blocks, so the GIL is kept.
 */
#include "py.h"

#include "sched.h"

typedef struct {
    PyObject_HEAD
    struct ch_sched *sched; /* owned */
} SchedulerObject;

#define SCHED(op) (((SchedulerObject *)(op))->sched)
#define STATE(op) ((ch_state *)PyType_GetModuleState(Py_TYPE(op)))

static PyObject *
scheduler_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"slots", NULL};
    SchedulerObject *self;
    unsigned slots;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "I:Scheduler", names,
                                     &slots)) {
        return NULL;
    }
    if (slots == 0 || slots > 1000000) {
        PyErr_Format(PyExc_ValueError, "slots must be 1 to 1000000, not %u",
                     slots);
        return NULL;
    }

    self = (SchedulerObject *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->sched = ch_sched_new(slots);
    if (self->sched == NULL) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    return (PyObject *)self;
}

static void
scheduler_dealloc(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);

    ch_sched_free(SCHED(op));
    type->tp_free(op);
    Py_DECREF(type);
}

static PyObject *
scheduler_slot_acquire(PyObject *op, PyObject *Py_UNUSED(none))
{
    return PyLong_FromLong(ch_sched_slot_acquire(SCHED(op)));
}

static PyObject *
scheduler_slot_release(PyObject *op, PyObject *arg)
{
    unsigned long slot = PyLong_AsUnsignedLong(arg);
    int r;

    if (PyErr_Occurred()) {
        return NULL;
    }
    r = ch_sched_slot_release(SCHED(op), (unsigned)slot);
    if (r != CH_OK) {
        return ch_raise(STATE(op), r, "slot_release");
    }
    Py_RETURN_NONE;
}

static PyObject *
scheduler_ready_put(PyObject *op, PyObject *arg)
{
    unsigned long long id = PyLong_AsUnsignedLongLong(arg);
    int r;

    if (PyErr_Occurred()) {
        return NULL;
    }
    r = ch_sched_ready_put(SCHED(op), id);
    if (r != CH_OK) {
        return ch_raise(STATE(op), r, "ready_put");
    }
    Py_RETURN_NONE;
}

static PyObject *
scheduler_ready_take(PyObject *op, PyObject *Py_UNUSED(none))
{
    PyObject *list = PyList_New(0);
    uint64_t id;

    while (list != NULL && ch_sched_ready_take(SCHED(op), &id) == CH_OK) {
        PyObject *item = PyLong_FromUnsignedLongLong(id);

        if (item == NULL || PyList_Append(list, item) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(item);
    }
    return list;
}

static PyObject *
scheduler_throttle_enter(PyObject *op, PyObject *args)
{
    unsigned long long key, id;
    unsigned limit;
    int r;

    if (!PyArg_ParseTuple(args, "KIK:throttle_enter", &key, &limit, &id)) {
        return NULL;
    }
    r = ch_sched_throttle_enter(SCHED(op), key, limit, id);
    if (r != CH_OK && r != CH_ERR_AGAIN) {
        return ch_raise(STATE(op), r, "throttle_enter");
    }
    return PyBool_FromLong(r == CH_OK);
}

static PyObject *
scheduler_throttle_leave(PyObject *op, PyObject *arg)
{
    unsigned long long key = PyLong_AsUnsignedLongLong(arg);
    uint64_t next = 0;
    int r;

    if (PyErr_Occurred()) {
        return NULL;
    }
    r = ch_sched_throttle_leave(SCHED(op), key, &next);
    if (r == CH_ERR_AGAIN) {
        Py_RETURN_NONE;
    }
    if (r != CH_OK) {
        return ch_raise(STATE(op), r, "throttle_leave");
    }
    return PyLong_FromUnsignedLongLong(next);
}

static PyObject *
scheduler_timer_add(PyObject *op, PyObject *args)
{
    long long when_us;
    unsigned long long id;
    uint32_t handle = 0;
    int r;

    if (!PyArg_ParseTuple(args, "LK:timer_add", &when_us, &id)) {
        return NULL;
    }
    r = ch_sched_timer_add(SCHED(op), when_us, id, &handle);
    if (r != CH_OK) {
        return ch_raise(STATE(op), r, "timer_add");
    }
    return PyLong_FromUnsignedLong(handle);
}

static PyObject *
scheduler_timer_cancel(PyObject *op, PyObject *arg)
{
    unsigned long handle = PyLong_AsUnsignedLong(arg);
    int r;

    if (PyErr_Occurred()) {
        return NULL;
    }
    r = ch_sched_timer_cancel(SCHED(op), (uint32_t)handle);
    if (r != CH_OK) {
        return ch_raise(STATE(op), r, "timer_cancel");
    }
    Py_RETURN_NONE;
}

static PyObject *
scheduler_timer_take(PyObject *op, PyObject *arg)
{
    long long now_us = PyLong_AsLongLong(arg);
    PyObject *list;
    uint64_t id;
    uint32_t handle;

    if (PyErr_Occurred()) {
        return NULL;
    }
    list = PyList_New(0);
    while (list != NULL &&
           ch_sched_timer_take(SCHED(op), now_us, &id, &handle) == CH_OK) {
        PyObject *item =
            Py_BuildValue("(KI)", (unsigned long long)id, (unsigned)handle);

        if (item == NULL || PyList_Append(list, item) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(item);
    }
    return list;
}

static PyObject *
scheduler_timer_next(PyObject *op, PyObject *Py_UNUSED(none))
{
    return PyLong_FromLongLong(ch_sched_timer_next(SCHED(op)));
}

static PyObject *
scheduler_get_free(PyObject *op, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLong(ch_sched_slots_free(SCHED(op)));
}

static PyObject *
scheduler_get_ready(PyObject *op, void *Py_UNUSED(closure))
{
    return PyLong_FromSize_t(ch_sched_ready_count(SCHED(op)));
}

static PyMethodDef scheduler_methods[] = {
    {"slot_acquire", scheduler_slot_acquire, METH_NOARGS,
     "slot_acquire() -> the lowest free slot, or -1"},
    {"slot_release", scheduler_slot_release, METH_O, "slot_release(slot)"},
    {"ready_put", scheduler_ready_put, METH_O, "ready_put(id)"},
    {"ready_take", scheduler_ready_take, METH_NOARGS,
     "ready_take() -> list of all ready ids, in order"},
    {"throttle_enter", scheduler_throttle_enter, METH_VARARGS,
     "throttle_enter(key, limit, id) -> False if id has to wait in line"},
    {"throttle_leave", scheduler_throttle_leave, METH_O,
     "throttle_leave(key) -> id that holds the place now, or None"},
    {"timer_add", scheduler_timer_add, METH_VARARGS,
     "timer_add(when_us, id) -> handle"},
    {"timer_cancel", scheduler_timer_cancel, METH_O, "timer_cancel(handle)"},
    {"timer_take", scheduler_timer_take, METH_O,
     "timer_take(now_us) -> list of (id, handle) that are due"},
    {"timer_next", scheduler_timer_next, METH_NOARGS,
     "timer_next() -> when the earliest timer is due, or -1"},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef scheduler_getset[] = {
    {"free", scheduler_get_free, NULL, "slots that are not taken", NULL},
    {"ready", scheduler_get_ready, NULL, "how many ids are ready", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot scheduler_slots[] = {
    {Py_tp_new, scheduler_new},
    {Py_tp_dealloc, scheduler_dealloc},
    {Py_tp_methods, scheduler_methods},
    {Py_tp_getset, scheduler_getset},
    {Py_tp_doc, "Scheduler(slots): slots, ready queue, throttles, timers."},
    {0, NULL},
};

static PyType_Spec scheduler_spec = {
    .name = "churten._core.Scheduler",
    .basicsize = sizeof(SchedulerObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = scheduler_slots,
};

int
ch_py_sched_setup(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &scheduler_spec, NULL);
    int r;

    if (type == NULL) {
        return -1;
    }
    r = PyModule_AddType(module, (PyTypeObject *)type);
    Py_DECREF(type);
    return r;
}
