/*
 * py_keywords.c - churten._core.Keywords: walks over the keywords of a class
 * of playbook objects. What its methods do, in Python:
 *
 *     class Keywords:
 *         def __init__(self, rows, nothing, shared): ...
 *             # a row: (name, key, places, flags, default, empty); reading
 *             # the keyword `name` may be reading held[key]; setting it sets
 *             # held[place] for each place; held is the object's __dict__
 *         def copy(self, old, new, other):
 *             for name, key, places, flags, default, empty in rows:
 *                 value = old.get(key, nothing)
 *                 if not isinstance(value, shared):
 *                     value = other(value)  # [] and {}: copied here
 *                 new.update(dict.fromkeys(places, value))
 *         def validate(self, owner, held, settled, known, templar):
 *             validate = owner.post_validate_attribute
 *             for row, answers in zip(rows, known):
 *                 if SKIPPED, or SKIPPED_IF_HELD and held has the key:
 *                     continue
 *                 value = what is held, if DIRECT and settled; the default,
 *                         if that may be; else getattr(owner, name)
 *                 if STATIC and value is an empty list or dict: continue
 *                 if value is an empty list and empty is not None:
 *                     result = value if SAME else a copy of empty
 *                 elif answers.get(id(value), (None,))[0] is value:
 *                     result = answers[id(value)][1]
 *                 else:
 *                     result = validate(name, templar=templar)
 *                 if result is not nothing:
 *                     held.update(dict.fromkeys(places, result))
 *         def dump(self, owner, held, of_object):
 *             # {name: value}; OBJECT: of_object(value)
 *         def squash(self, owner, held, around):
 *             # around: what may say keywords beside the owner, a flat list of
 *             # dicts (objects' __dict__) and frozensets (classes' names)
 *             for row in rows:
 *                 value = held.get(key, nothing)
 *                 if value is nothing and QUICK and (OWN or nobody around
 *                         says it):
 *                     value = default() if CALLABLE else default
 *                 elif value is nothing or not TAKEN:
 *                     value = getattr(owner, name)
 *                 held.update(dict.fromkeys(places, value))
 *
 * WHY. A host-task copies, validates, squashes and dumps some 700 keywords,
 * nearly all of which come out as they went in.
 *
 * WHAT HOLDS. Who makes the rows (churten/compat/keywords.py and squash.py)
 * says what may be read and set without asking the object. Between two calls
 * into Python nothing changes what is held; after each, everything is looked
 * at anew.
 *
 * OWNERSHIP. A Keywords owns its rows. The caller owns the dicts.
 */
#include "py.h"

enum flag {
    FLAG_DIRECT = 1,
    FLAG_SKIPPED = 2,
    FLAG_SKIPPED_IF_HELD = 4,
    FLAG_STATIC = 8,
    FLAG_SAME = 16,
    FLAG_OBJECT = 32,
    FLAG_CALLABLE = 64,
    FLAG_TAKEN = 128,
    FLAG_QUICK = 256,
    FLAG_OWN = 512,
};

struct row {
    PyObject *name;
    PyObject *key;
    PyObject *places; /* tuple of str */
    PyObject *fallback;
    PyObject *empty; /* list or None */
    long flags;
};

typedef struct {
    PyObject_HEAD
    PyObject *rows; /* tuple; owns what the array lends */
    PyObject *nothing;
    PyObject *shared; /* type or tuple of types */
    PyObject *validator; /* "post_validate_attribute" */
    PyObject *templar; /* ("templar",) */
    struct row *row;
    Py_ssize_t n;
} KeywordsObject;

#define KEYWORDS(op) ((KeywordsObject *)(op))

static int
row_set(const struct row *row, PyObject *held, PyObject *value)
{
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(row->places); i++) {
        PyObject *place = PyTuple_GET_ITEM(row->places, i);

        if (PyDict_SetItem(held, place, value) < 0) {
            return -1;
        }
    }
    return 0;
}

/* New reference to what is held for the row; NULL without an exception if that
 * is nothing. */
static PyObject *
row_held(const KeywordsObject *self, const struct row *row, PyObject *held)
{
    PyObject *value = PyDict_GetItemWithError(held, row->key);

    return value == self->nothing ? NULL : Py_XNewRef(value);
}

/* --- copy --- */

static PyObject *
copied(const KeywordsObject *self, PyObject *value, PyObject *other)
{
    int shares;

    if (value == Py_None || value == self->nothing || PyBool_Check(value) ||
        PyUnicode_CheckExact(value) || PyLong_CheckExact(value)) {
        return Py_NewRef(value);
    }
    if (PyList_CheckExact(value)) {
        return PyList_GetSlice(value, 0, PyList_GET_SIZE(value));
    }
    if (PyDict_CheckExact(value)) {
        return PyDict_Copy(value);
    }
    shares = PyObject_IsInstance(value, self->shared);
    if (shares < 0) {
        return NULL;
    }
    return shares ? Py_NewRef(value) : PyObject_CallOneArg(other, value);
}

static PyObject *
keywords_copy(PyObject *op, PyObject *args)
{
    KeywordsObject *self = KEYWORDS(op);
    PyObject *old, *new, *other;

    if (!PyArg_ParseTuple(args, "O!O!O:copy", &PyDict_Type, &old, &PyDict_Type,
                          &new, &other)) {
        return NULL;
    }
    for (Py_ssize_t i = 0; i < self->n; i++) {
        const struct row *row = &self->row[i];
        PyObject *value = PyDict_GetItemWithError(old, row->key);
        int r;

        if (value == NULL) {
            if (PyErr_Occurred()) {
                return NULL;
            }
            value = self->nothing;
        }
        Py_INCREF(value);
        Py_SETREF(value, copied(self, value, other));
        r = value == NULL ? -1 : row_set(row, new, value);
        Py_XDECREF(value);
        if (r < 0) {
            return NULL;
        }
    }
    Py_RETURN_NONE;
}

/* --- validate --- */

/* A list of the same, in which dicts are new ones. */
static PyObject *
copy_of_empty(PyObject *empty)
{
    PyObject *copy = PyList_GetSlice(empty, 0, PyList_GET_SIZE(empty));

    if (copy == NULL) {
        return NULL;
    }
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(copy); i++) {
        PyObject *one = PyList_GET_ITEM(copy, i);

        if (PyDict_CheckExact(one)) {
            PyObject *fresh = PyDict_Copy(one);

            if (fresh == NULL || PyList_SetItem(copy, i, fresh) < 0) {
                Py_DECREF(copy);
                return NULL;
            }
        }
    }
    return copy;
}

/* What was remembered for this very object: a borrowed reference; NULL
 * without an exception for nothing. */
static PyObject *
answer_for(PyObject *answers, PyObject *value)
{
    PyObject *number, *pair;

    if (PyDict_GET_SIZE(answers) == 0) {
        return NULL;
    }
    number = PyLong_FromVoidPtr(value);
    if (number == NULL) {
        return NULL;
    }
    pair = PyDict_GetItemWithError(answers, number);
    Py_DECREF(number);
    if (pair == NULL || !PyTuple_CheckExact(pair) ||
        PyTuple_GET_SIZE(pair) != 2 || PyTuple_GET_ITEM(pair, 0) != value) {
        return NULL;
    }
    return PyTuple_GET_ITEM(pair, 1);
}

static int
is_empty_container(PyObject *value)
{
    return (PyList_CheckExact(value) && PyList_GET_SIZE(value) == 0) ||
           (PyDict_CheckExact(value) && PyDict_GET_SIZE(value) == 0);
}

/* New reference: what reading the keyword gives. */
static PyObject *
value_of(const KeywordsObject *self, const struct row *row, PyObject *owner,
         PyObject *held, int settled)
{
    PyObject *value;

    if (!settled || (row->flags & FLAG_DIRECT) == 0) {
        return PyObject_GetAttr(owner, row->name);
    }
    value = row_held(self, row, held);
    if (value != NULL || PyErr_Occurred()) {
        return value;
    }
    if ((row->flags & FLAG_CALLABLE) == 0) {
        return Py_NewRef(row->fallback);
    }
    return PyObject_GetAttr(owner, row->name);
}

/* New reference to the result, or to nothing. Takes nothing over. */
static PyObject *
validated(const KeywordsObject *self, const struct row *row, PyObject *owner,
          PyObject *value, PyObject *answers, PyObject *templar)
{
    PyObject *answer, *args[3];

    if ((row->flags & FLAG_STATIC) != 0 && is_empty_container(value)) {
        return Py_NewRef(self->nothing);
    }
    if (row->empty != Py_None && PyList_CheckExact(value) &&
        PyList_GET_SIZE(value) == 0) {
        return (row->flags & FLAG_SAME) != 0 ? Py_NewRef(value)
                                             : copy_of_empty(row->empty);
    }
    answer = answer_for(answers, value);
    if (answer != NULL || PyErr_Occurred()) {
        return Py_XNewRef(answer);
    }
    args[0] = owner;
    args[1] = row->name;
    args[2] = templar;
    return PyObject_VectorcallMethod(self->validator, args, 2, self->templar);
}

static int
validate_row(const KeywordsObject *self, const struct row *row,
             PyObject *const *args, int settled, PyObject *answers)
{
    PyObject *owner = args[0], *held = args[1], *value, *result;
    int r = 0;

    if ((row->flags & FLAG_SKIPPED) != 0) {
        return 0;
    }
    if ((row->flags & FLAG_SKIPPED_IF_HELD) != 0) {
        value = PyDict_GetItemWithError(held, row->key);
        if (value != NULL && value != self->nothing) {
            return 0;
        }
    }
    value = value_of(self, row, owner, held, settled);
    if (value == NULL) {
        return -1;
    }
    result = validated(self, row, owner, value, answers, args[4]);
    Py_DECREF(value);
    if (result == NULL) {
        return -1;
    }
    if (result != self->nothing) {
        r = row_set(row, held, result);
    }
    Py_DECREF(result);
    return r;
}

static PyObject *
keywords_validate(PyObject *op, PyObject *const *args, Py_ssize_t n)
{
    KeywordsObject *self = KEYWORDS(op);
    int settled;

    if (n != 5 || !PyDict_Check(args[1]) || !PyTuple_Check(args[3]) ||
        PyTuple_GET_SIZE(args[3]) != self->n) {
        PyErr_SetString(
            PyExc_TypeError,
            "validate(owner, held: dict, settled, known: tuple, templar)");
        return NULL;
    }
    settled = PyObject_IsTrue(args[2]);
    if (settled < 0) {
        return NULL;
    }
    for (Py_ssize_t i = 0; i < self->n; i++) {
        PyObject *answers = PyTuple_GET_ITEM(args[3], i);

        if (!PyDict_CheckExact(answers)) {
            PyErr_SetString(PyExc_TypeError, "known: dicts");
            return NULL;
        }
        if (validate_row(self, &self->row[i], args, settled, answers) < 0) {
            return NULL;
        }
    }
    Py_RETURN_NONE;
}

/* --- dump --- */

static int
dump_row(const KeywordsObject *self, const struct row *row,
         PyObject *const *args, PyObject *dumped)
{
    PyObject *value = NULL;
    int r;

    if ((row->flags & FLAG_DIRECT) != 0) {
        value = row_held(self, row, args[1]);
    }
    if (value == NULL && !PyErr_Occurred()) {
        value = PyObject_GetAttr(args[0], row->name);
    }
    if (value != NULL && (row->flags & FLAG_OBJECT) != 0) {
        Py_SETREF(value, PyObject_CallOneArg(args[2], value));
    }
    r = value == NULL ? -1 : PyDict_SetItem(dumped, row->name, value);
    Py_XDECREF(value);
    return r;
}

static PyObject *
keywords_dump(PyObject *op, PyObject *const *args, Py_ssize_t n)
{
    KeywordsObject *self = KEYWORDS(op);
    PyObject *dumped;

    if (n != 3 || !PyDict_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError, "dump(owner, held: dict, of_object)");
        return NULL;
    }
    dumped = PyDict_New();
    for (Py_ssize_t i = 0; dumped != NULL && i < self->n; i++) {
        if (dump_row(self, &self->row[i], args, dumped) < 0) {
            Py_CLEAR(dumped);
        }
    }
    return dumped;
}

/* --- squash --- */

/* Whether one of those around may say the row's keyword; -1 with an exception.
 */
static int
is_said(const KeywordsObject *self, const struct row *row, PyObject *around)
{
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(around); i++) {
        PyObject *one = PyList_GET_ITEM(around, i);

        if (PyDict_Check(one)) {
            PyObject *value = PyDict_GetItemWithError(one, row->key);

            if (value != NULL && value != self->nothing) {
                return 1;
            }
            if (value == NULL && PyErr_Occurred()) {
                return -1;
            }
        }
        else {
            int said = PySet_Contains(one, row->key);

            if (said != 0) {
                return said;
            }
        }
    }
    return 0;
}

static PyObject *
squashed(const KeywordsObject *self, const struct row *row, PyObject *owner,
         PyObject *held, PyObject *around)
{
    PyObject *value = row_held(self, row, held);

    if (value != NULL && (row->flags & FLAG_TAKEN) != 0) {
        return value;
    }
    if (value == NULL && PyErr_Occurred()) {
        return NULL;
    }
    if (value == NULL && (row->flags & FLAG_QUICK) != 0) {
        int said =
            (row->flags & FLAG_OWN) != 0 ? 0 : is_said(self, row, around);

        if (said < 0) {
            return NULL;
        }
        if (said == 0) {
            return (row->flags & FLAG_CALLABLE) != 0
                       ? PyObject_CallNoArgs(row->fallback)
                       : Py_NewRef(row->fallback);
        }
    }
    Py_XDECREF(value);
    return PyObject_GetAttr(owner, row->name);
}

static PyObject *
keywords_squash(PyObject *op, PyObject *const *args, Py_ssize_t n)
{
    KeywordsObject *self = KEYWORDS(op);

    if (n != 3 || !PyDict_Check(args[1]) || !PyList_CheckExact(args[2])) {
        PyErr_SetString(PyExc_TypeError,
                        "squash(owner, held: dict, around: list)");
        return NULL;
    }
    for (Py_ssize_t i = 0; i < self->n; i++) {
        PyObject *value =
            squashed(self, &self->row[i], args[0], args[1], args[2]);
        int r = value == NULL ? -1 : row_set(&self->row[i], args[1], value);

        Py_XDECREF(value);
        if (r < 0) {
            return NULL;
        }
    }
    Py_RETURN_NONE;
}

/* --- the type --- */

static int
row_read(struct row *row, PyObject *from)
{
    if (!PyTuple_CheckExact(from) ||
        !PyArg_ParseTuple(from, "UUO!lOO:row", &row->name, &row->key,
                          &PyTuple_Type, &row->places, &row->flags,
                          &row->fallback, &row->empty)) {
        if (!PyErr_Occurred()) {
            PyErr_SetString(PyExc_TypeError, "a row must be a tuple");
        }
        return -1;
    }
    if (row->empty != Py_None && !PyList_CheckExact(row->empty)) {
        PyErr_SetString(PyExc_TypeError, "empty must be a list or None");
        return -1;
    }
    return 0;
}

static PyObject *
keywords_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"rows", "nothing", "shared", NULL};
    PyObject *rows, *nothing, *shared;
    KeywordsObject *self;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!OO:Keywords", names,
                                     &PyTuple_Type, &rows, &nothing,
                                     &shared)) {
        return NULL;
    }
    self = (KeywordsObject *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->rows = Py_NewRef(rows);
    self->nothing = Py_NewRef(nothing);
    self->shared = Py_NewRef(shared);
    self->validator = PyUnicode_InternFromString("post_validate_attribute");
    self->templar = Py_BuildValue("(s)", "templar");
    self->n = PyTuple_GET_SIZE(rows);
    self->row = PyMem_New(struct row, (size_t)self->n);
    if (self->row == NULL) {
        PyErr_NoMemory();
    }
    for (Py_ssize_t i = 0; !PyErr_Occurred() && i < self->n; i++) {
        row_read(&self->row[i], PyTuple_GET_ITEM(rows, i));
    }
    if (PyErr_Occurred()) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static int
keywords_traverse(PyObject *op, visitproc visit, void *arg)
{
    KeywordsObject *self = KEYWORDS(op);

    Py_VISIT(Py_TYPE(op));
    Py_VISIT(self->rows);
    Py_VISIT(self->nothing);
    Py_VISIT(self->shared);
    return 0;
}

static int
keywords_clear(PyObject *op)
{
    KeywordsObject *self = KEYWORDS(op);

    self->n = 0; /* the array lent what goes now */
    Py_CLEAR(self->rows);
    Py_CLEAR(self->nothing);
    Py_CLEAR(self->shared);
    Py_CLEAR(self->validator);
    Py_CLEAR(self->templar);
    return 0;
}

static void
keywords_dealloc(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);

    PyObject_GC_UnTrack(op);
    keywords_clear(op);
    PyMem_Free(KEYWORDS(op)->row);
    type->tp_free(op);
    Py_DECREF(type);
}

#define FAST(function) ((PyCFunction)(void (*)(void))(function))

static PyMethodDef keywords_methods[] = {
    {"copy", keywords_copy, METH_VARARGS,
     "copy(old, new, other): what new's keywords shall be."},
    {"validate", FAST(keywords_validate), METH_FASTCALL,
     "validate(owner, held, settled, known, templar)"},
    {"dump", FAST(keywords_dump), METH_FASTCALL,
     "dump(owner, held, of_object): dict of all keywords."},
    {"squash", FAST(keywords_squash), METH_FASTCALL,
     "squash(owner, held, around)"},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot keywords_slots[] = {
    {Py_tp_new, keywords_new},
    {Py_tp_dealloc, keywords_dealloc},
    {Py_tp_traverse, keywords_traverse},
    {Py_tp_clear, keywords_clear},
    {Py_tp_methods, keywords_methods},
    {Py_tp_doc, "Keywords(rows, nothing, shared): walks over keywords of "
                "playbook objects; see py_keywords.c."},
    {0, NULL},
};

static PyType_Spec keywords_spec = {
    .name = "churten._core.Keywords",
    .basicsize = sizeof(KeywordsObject),
    .flags =
        Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = keywords_slots,
};

static const struct {
    const char *name;
    enum flag flag;
} flags[] = {
    {"DIRECT", FLAG_DIRECT},
    {"SKIPPED", FLAG_SKIPPED},
    {"SKIPPED_IF_HELD", FLAG_SKIPPED_IF_HELD},
    {"STATIC", FLAG_STATIC},
    {"SAME", FLAG_SAME},
    {"OBJECT", FLAG_OBJECT},
    {"CALLABLE", FLAG_CALLABLE},
    {"TAKEN", FLAG_TAKEN},
    {"QUICK", FLAG_QUICK},
    {"OWN", FLAG_OWN},
};

int
ch_py_keywords_setup(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &keywords_spec, NULL);
    int r = type == NULL ? -1 : PyModule_AddType(module, (PyTypeObject *)type);

    Py_XDECREF(type);
    for (size_t i = 0; r == 0 && i < sizeof(flags) / sizeof(flags[0]); i++) {
        char name[32];

        PyOS_snprintf(name, sizeof(name), "KEYWORD_%s", flags[i].name);
        r = PyModule_AddIntConstant(module, name, flags[i].flag);
    }
    return r;
}
