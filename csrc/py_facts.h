/*
 * py_facts.h - what py_facts.c uses of py_facts_share.c.
 */
#ifndef CH_PY_FACTS_H
#define CH_PY_FACTS_H

#include "py.h"

/* Whether the object is a FactsShare. */
int ch_facts_share_check(ch_state *state, PyObject *share);

/* The next facts begin: they may use each shared container once. */
void ch_facts_share_next(PyObject *share);

/* Takes made, an exact dict or list of plain values and of containers that
 * came from here with *shared set, and returns it or an equal one in its
 * place (owned). *shared: it is one of the table now, which stays alive as
 * long as share does. Never fails. */
PyObject *ch_facts_share(PyObject *share, PyObject *made, int *shared);

#endif
