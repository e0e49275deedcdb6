/*
 * py_reader.c - churten._core.Reader. The same thing in Python:
 *
 *     class Reader:
 *         def __init__(self, stock, flags, keys, nothing, but=()): ...
 *         stock: Callable                     # what it stands for
 *         def __call__(self, attribute, thing, cls=None):
 *             places, held = keys(type(thing)), thing.__dict__
 *             if not flags or None in places or any(held.get(flag) is True
 *                                                   for flag in flags):
 *                 value = held.get(places.get(id(attribute)), nothing)
 *                 if value is not nothing and value not in but:
 *                     return value
 *             return stock(attribute, thing, cls)
 *
 * WHY. Core reads the keywords of tasks and plays through descriptors that
 * build the name of the place and ask for it three times; a host-task reads
 * some 300.
 *
 * WHAT HOLDS. keys(cls) is asked once for each class: a dict from id(attribute)
 * to the place in an object's __dict__, of those for which reading is that and
 * nothing else once a flag is true, or always if None is a key too. A Reader
 * is an attribute like a function: from an object it is bound.
 *
 * OWNERSHIP. A Reader owns what it was given and keeps the classes it met.
 */
#include "py.h"

#include <stddef.h>
#include <structmember.h>

typedef struct {
    PyObject_HEAD
    vectorcallfunc call;
    PyObject *stock;
    PyObject *flags; /* tuple of str */
    PyObject *keys;
    PyObject *nothing;
    PyObject *but;   /* tuple of str */
    PyObject *known; /* dict: class -> dict from id(attribute) to key */
} ReaderObject;

#define READER(op) ((ReaderObject *)(op))

/* Borrowed: the places of this class, or NULL with an exception. */
static PyObject *
reader_places(ReaderObject *self, PyObject *cls)
{
    PyObject *places = PyDict_GetItemWithError(self->known, cls);
    PyObject *asked;

    if (places != NULL || PyErr_Occurred()) {
        return places;
    }
    asked = PyObject_CallOneArg(self->keys, cls);
    if (asked != NULL && !PyDict_CheckExact(asked)) {
        PyErr_SetString(PyExc_TypeError, "keys() must return a dict");
        Py_CLEAR(asked);
    }
    if (asked == NULL || PyDict_SetItem(self->known, cls, asked) < 0) {
        Py_XDECREF(asked);
        return NULL;
    }
    Py_DECREF(asked); /* known has it */
    return asked;
}

/* Whether what is held counts; 0 for a flag that is no bool: stock decides. */
static int
reader_settled(ReaderObject *self, PyObject *places, PyObject *held)
{
    Py_ssize_t n = PyTuple_GET_SIZE(self->flags);

    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *flag =
            PyDict_GetItemWithError(held, PyTuple_GET_ITEM(self->flags, i));

        if (flag == Py_True) {
            return 1;
        }
        if (flag == NULL && PyErr_Occurred()) {
            return -1;
        }
    }
    return n == 0 ? 1 : PyDict_Contains(places, Py_None);
}

/* Whether stock has more to say about this value. */
static int
reader_leaves(ReaderObject *self, PyObject *value)
{
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(self->but); i++) {
        if (PyUnicode_Check(value) &&
            PyUnicode_Compare(value, PyTuple_GET_ITEM(self->but, i)) == 0) {
            return 1;
        }
    }
    return 0;
}

/* New reference, or NULL: with an exception, or without one if stock shall
 * answer. */
static PyObject *
reader_read(ReaderObject *self, PyObject *attribute, PyObject *thing)
{
    PyObject *held, *places, *number, *key = NULL, *value = NULL;

    places = reader_places(self, (PyObject *)Py_TYPE(thing));
    if (places == NULL || PyDict_GET_SIZE(places) == 0) {
        return NULL;
    }
    held = PyObject_GenericGetDict(thing, NULL);
    if (held == NULL) {
        if (PyErr_ExceptionMatches(PyExc_AttributeError)) {
            PyErr_Clear(); /* an object without a __dict__ */
        }
        return NULL;
    }
    if (reader_settled(self, places, held) > 0) {
        number = PyLong_FromVoidPtr(attribute);
        if (number != NULL) {
            key = PyDict_GetItemWithError(places, number);
            Py_DECREF(number);
        }
        if (key != NULL) {
            value = PyDict_GetItemWithError(held, key);
        }
    }
    if (value == NULL || value == self->nothing ||
        reader_leaves(self, value)) {
        value = NULL;
    }
    Py_XINCREF(value);
    Py_DECREF(held);
    return value;
}

static PyObject *
reader_vectorcall(PyObject *op, PyObject *const *args, size_t nargsf,
                  PyObject *names)
{
    ReaderObject *self = READER(op);
    Py_ssize_t n = PyVectorcall_NARGS(nargsf);

    if (names == NULL && (n == 2 || n == 3) && args[1] != Py_None) {
        PyObject *value = reader_read(self, args[0], args[1]);

        if (value != NULL || PyErr_Occurred()) {
            return value;
        }
    }
    return PyObject_Vectorcall(self->stock, args, (size_t)n, names);
}

static PyObject *
reader_bind(PyObject *op, PyObject *thing, PyObject *Py_UNUSED(type))
{
    if (thing == NULL || thing == Py_None) {
        return Py_NewRef(op);
    }
    return PyMethod_New(op, thing);
}

static PyObject *
reader_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"stock", "flags", "keys", "nothing", "but", NULL};
    PyObject *stock, *flags, *keys, *nothing, *but = NULL;
    ReaderObject *self;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO!OO|O!:Reader", names,
                                     &stock, &PyTuple_Type, &flags, &keys,
                                     &nothing, &PyTuple_Type, &but)) {
        return NULL;
    }
    for (Py_ssize_t i = 0; but != NULL && i < PyTuple_GET_SIZE(but); i++) {
        if (!PyUnicode_Check(PyTuple_GET_ITEM(but, i))) {
            PyErr_SetString(PyExc_TypeError, "but must be a tuple of str");
            return NULL;
        }
    }
    self = (ReaderObject *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->call = reader_vectorcall;
    self->stock = Py_NewRef(stock);
    self->flags = Py_NewRef(flags);
    self->keys = Py_NewRef(keys);
    self->nothing = Py_NewRef(nothing);
    self->but = but != NULL ? Py_NewRef(but) : PyTuple_New(0);
    self->known = PyDict_New();
    if (self->known == NULL || self->but == NULL) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static int
reader_traverse(PyObject *op, visitproc visit, void *arg)
{
    ReaderObject *self = READER(op);

    Py_VISIT(Py_TYPE(op));
    Py_VISIT(self->stock);
    Py_VISIT(self->flags);
    Py_VISIT(self->keys);
    Py_VISIT(self->nothing);
    Py_VISIT(self->but);
    Py_VISIT(self->known);
    return 0;
}

static int
reader_clear(PyObject *op)
{
    ReaderObject *self = READER(op);

    Py_CLEAR(self->stock);
    Py_CLEAR(self->flags);
    Py_CLEAR(self->keys);
    Py_CLEAR(self->nothing);
    Py_CLEAR(self->but);
    Py_CLEAR(self->known);
    return 0;
}

static void
reader_dealloc(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);

    PyObject_GC_UnTrack(op);
    reader_clear(op);
    type->tp_free(op);
    Py_DECREF(type);
}

static PyMemberDef reader_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(ReaderObject, call),
     READONLY, NULL},
    {"stock", T_OBJECT_EX, offsetof(ReaderObject, stock), READONLY,
     "what it stands for"},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot reader_slots[] = {
    {Py_tp_new, reader_new},
    {Py_tp_dealloc, reader_dealloc},
    {Py_tp_traverse, reader_traverse},
    {Py_tp_clear, reader_clear},
    {Py_tp_call, PyVectorcall_Call},
    {Py_tp_descr_get, reader_bind},
    {Py_tp_members, reader_members},
    {Py_tp_doc, "Reader(stock, flags, keys, nothing, but=()): reads keywords "
                "of playbook objects; see py_reader.c."},
    {0, NULL},
};

static PyType_Spec reader_spec = {
    .name = "churten._core.Reader",
    .basicsize = sizeof(ReaderObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC |
             Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = reader_slots,
};

int
ch_py_reader_setup(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &reader_spec, NULL);
    int r;

    if (type == NULL) {
        return -1;
    }
    r = PyModule_AddType(module, (PyTypeObject *)type);
    Py_DECREF(type);
    return r;
}
