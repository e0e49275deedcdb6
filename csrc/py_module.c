/* py_module.c - the module churten._core: state, setup, ch_raise(). */
#include "py.h"

#include <errno.h>
#include <sys/prctl.h>

static int (*const setups[])(PyObject *module) = {
    ch_py_client_setup,
    ch_py_facts_encode_setup,
    ch_py_facts_setup,
    ch_py_facts_share_setup,
    ch_py_isolate_setup,
    ch_py_keywords_setup,
    ch_py_reader_setup,
    ch_py_results_setup,
    ch_py_sched_setup,
    ch_py_stamps_setup,
    ch_py_tally_setup,
    ch_py_timings_setup,
    NULL,
};

PyObject *
ch_raise(ch_state *state, int code, const char *what)
{
    if (code == CH_ERR_NOMEM) {
        return PyErr_NoMemory();
    }
    if (code == CH_ERR_SYS && errno != 0) {
        return PyErr_SetFromErrnoWithFilename(PyExc_OSError, what);
    }
    PyErr_Format(state->error, "%s: %s", what, ch_strerror(code));
    return NULL;
}

static PyObject *
core_end_with_parent(PyObject *module, PyObject *number)
{
    ch_state *state = PyModule_GetState(module);
    long value = PyLong_AsLong(number);

    if (value == -1 && PyErr_Occurred()) {
        return NULL;
    }
    errno = 0;
    if (prctl(PR_SET_PDEATHSIG, (unsigned long)value, 0, 0, 0) != 0) {
        return ch_raise(state, CH_ERR_SYS, "prctl");
    }
    Py_RETURN_NONE;
}

static PyObject *
core_same_items(PyObject *Py_UNUSED(module), PyObject *const *args,
                Py_ssize_t n)
{
    Py_ssize_t a = 0, b = 0;
    PyObject *key, *value, *other_key, *other_value;

    if (n != 2 || !PyDict_Check(args[0]) || !PyDict_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError, "same_items(dict, dict)");
        return NULL;
    }
    if (PyDict_GET_SIZE(args[0]) != PyDict_GET_SIZE(args[1])) {
        Py_RETURN_FALSE;
    }
    while (PyDict_Next(args[0], &a, &key, &value)) {
        if (!PyDict_Next(args[1], &b, &other_key, &other_value) ||
            key != other_key || value != other_value) {
            Py_RETURN_FALSE;
        }
    }
    Py_RETURN_TRUE;
}

static PyMethodDef core_methods[] = {
    {"end_with_parent", core_end_with_parent, METH_O,
     "end_with_parent(signal): the kernel sends the signal to this process "
     "when the thread that forked it ends."},
    {"same_items", (PyCFunction)(void (*)(void))core_same_items, METH_FASTCALL,
     "same_items(a, b, /) -> bool: both dicts hold the very same objects in "
     "the same order."},
    {NULL, NULL, 0, NULL},
};

static int
core_exec(PyObject *module)
{
    ch_state *state = PyModule_GetState(module);

    state->error =
        PyErr_NewException("churten._core.Error", PyExc_RuntimeError, NULL);
    if (state->error == NULL) {
        return -1;
    }
    if (PyModule_AddObjectRef(module, "Error", state->error) < 0 ||
        PyModule_AddStringConstant(module, "VERSION", CH_VERSION) < 0) {
        return -1;
    }
    for (size_t i = 0; setups[i] != NULL; i++) {
        if (setups[i](module) < 0) {
            return -1;
        }
    }
    return 0;
}

static int
core_traverse(PyObject *module, visitproc visit, void *arg)
{
    ch_state *state = PyModule_GetState(module);

    Py_VISIT(state->error);
    Py_VISIT(state->facts_share);
    Py_VISIT(state->stamp_names);
    return 0;
}

static int
core_clear(PyObject *module)
{
    ch_state *state = PyModule_GetState(module);

    Py_CLEAR(state->error);
    Py_CLEAR(state->facts_share);
    Py_CLEAR(state->stamp_names);
    return 0;
}

static void
core_free(void *module)
{
    core_clear((PyObject *)module);
}

static PyModuleDef_Slot core_slots[] = {
    {Py_mod_exec, core_exec},
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
    {0, NULL},
};

static struct PyModuleDef core_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = "churten._core",
    .m_doc = "The C core of churten.",
    .m_size = sizeof(ch_state),
    .m_slots = core_slots,
    .m_methods = core_methods,
    .m_traverse = core_traverse,
    .m_clear = core_clear,
    .m_free = core_free,
};

PyMODINIT_FUNC PyInit__core(void);

PyMODINIT_FUNC
PyInit__core(void)
{
    return PyModuleDef_Init(&core_def);
}
