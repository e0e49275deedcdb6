/*
 * py.h - what the py_*.c files share; the only header that includes
 * Python.h.
 *
 * Each py_<type>.c adds its type or functions to the module in a function
 * ch_py_<type>_setup(module), listed once in py_module.c. Our types are
 * heap types, and final but for Tally, so PyType_GetModuleState(Py_TYPE(op))
 * is always right.
 */
#ifndef CH_PY_H
#define CH_PY_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "ch.h"

typedef struct {
    PyObject *error;       /* churten._core.Error, owned */
    PyObject *facts_share; /* churten._core.FactsShare, owned */
    PyObject *stamp_names; /* tuple of attributes' names, owned */
} ch_state;

/* Raises the exception for code (a negative enum ch_err); what names the
 * thing that failed. Always returns NULL. */
PyObject *ch_raise(ch_state *state, int code, const char *what);

/* One per py_*.c: adds its types and functions to the module. */
int ch_py_client_setup(PyObject *module);
int ch_py_facts_encode_setup(PyObject *module);
int ch_py_facts_setup(PyObject *module);
int ch_py_facts_share_setup(PyObject *module);
int ch_py_isolate_setup(PyObject *module);
int ch_py_keywords_setup(PyObject *module);
int ch_py_reader_setup(PyObject *module);
int ch_py_results_setup(PyObject *module);
int ch_py_sched_setup(PyObject *module);
int ch_py_stamps_setup(PyObject *module);
int ch_py_tally_setup(PyObject *module);
int ch_py_timings_setup(PyObject *module);

#endif
