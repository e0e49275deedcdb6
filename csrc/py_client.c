/*
 * py_client.c - churten._core.Client, pack() and unpack().
 *
 * The GIL is held for everything except the wait in poll(2) itself, so two
 * threads may use one Client: what they share is only touched under the
 * GIL. A close() while another thread waits shuts the socket down (which
 * wakes the waiter) and the last waiter frees it. A send() that cannot
 * write everything while another thread waits wakes it through an eventfd,
 * because its poll set does not contain POLLOUT.
 */
#include "py.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdbool.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "client.h"
#include "zip.h"

#define BATCH_BYTES (4u * 1024u * 1024u) /* raw bytes per poll() */

typedef struct {
    PyObject_HEAD
    struct ch_client *client; /* NULL: closed */
    int kick_fd;              /* eventfd, -1 */
    int waiters;              /* threads inside poll(2) */
    bool gone;                /* the pool closed or broke the protocol */
    bool closing;             /* close() was called while waiters > 0 */
    long pid;
    uint32_t next_request;
} ClientObject;

static ch_state *
state_of(ClientObject *self)
{
    return PyType_GetModuleState(Py_TYPE(self));
}

static void
client_drop(ClientObject *self)
{
    ch_client_free(self->client);
    self->client = NULL;
    if (self->kick_fd >= 0) {
        close(self->kick_fd);
    }
    self->kick_fd = -1;
}

/* NULL with an exception set if the object cannot be used here. */
static struct ch_client *
client_get(ClientObject *self)
{
    if (self->pid != (long)getpid()) {
        PyErr_SetString(state_of(self)->error,
                        "this Client belongs to another process: after a "
                        "fork open a new one");
        return NULL;
    }
    if (self->client == NULL || self->closing) {
        PyErr_SetString(state_of(self)->error, "this Client is closed");
        return NULL;
    }
    if (self->gone) {
        PyErr_SetString(state_of(self)->error,
                        "the churten pool closed the connection");
        return NULL;
    }
    return self->client;
}

static PyObject *
client_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"path", "version", "timeout_ms", NULL};
    ch_state *state = PyType_GetModuleState(type);
    PyObject *path = NULL;
    const char *version = NULL;
    int timeout_ms = 5000;
    char why[512] = "";
    ClientObject *self = NULL;
    struct ch_client *client = NULL;
    int kick_fd = -1;
    int r, saved;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&s|$i:Client", names,
                                     PyUnicode_FSConverter, &path, &version,
                                     &timeout_ms)) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    r = ch_client_new(PyBytes_AS_STRING(path), version, timeout_ms, &client,
                      why, sizeof(why));
    saved = errno;
    Py_END_ALLOW_THREADS
    Py_DECREF(path);
    if (r == CH_ERR_NOMEM) {
        return PyErr_NoMemory();
    }
    if (r == CH_ERR_SYS) {
        PyObject *value = Py_BuildValue("(is)", saved, why);

        if (value != NULL) {
            PyErr_SetObject(PyExc_OSError, value);
            Py_DECREF(value);
        }
        return NULL;
    }
    if (r != CH_OK) {
        PyErr_SetString(state->error, why);
        return NULL;
    }
    kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (kick_fd < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        ch_client_free(client);
        return NULL;
    }
    self = (ClientObject *)type->tp_alloc(type, 0);
    if (self == NULL) {
        close(kick_fd);
        ch_client_free(client);
        return NULL;
    }
    self->client = client;
    self->kick_fd = kick_fd;
    self->pid = (long)getpid();
    return (PyObject *)self;
}

static void
client_dealloc(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);

    client_drop((ClientObject *)op);
    type->tp_free(op);
    Py_DECREF(type);
}

static PyObject *
client_fileno(PyObject *op, PyObject *ignored)
{
    struct ch_client *client = client_get((ClientObject *)op);

    (void)ignored;
    return client == NULL ? NULL : PyLong_FromLong(ch_client_fd(client));
}

static PyObject *
client_close(PyObject *op, PyObject *ignored)
{
    ClientObject *self = (ClientObject *)op;

    (void)ignored;
    /* In a forked child the waiters are not ours, and shutdown() would end
     * the parent's connection. */
    if (self->pid != (long)getpid() || self->waiters == 0) {
        client_drop(self);
    } else if (self->client != NULL && !self->closing) {
        self->closing = true;
        (void)shutdown(ch_client_fd(self->client), SHUT_RDWR);
    }
    Py_RETURN_NONE;
}

static PyObject *
client_request(PyObject *op, PyObject *ignored)
{
    ClientObject *self = (ClientObject *)op;

    (void)ignored;
    if (client_get(self) == NULL) {
        return NULL;
    }
    if (++self->next_request == 0) {
        self->next_request = 1;
    }
    return PyLong_FromUnsignedLong(self->next_request);
}

/* Puts the frame, with the descriptor if there is one; compressed if the
 * caller allows it and it pays. */
static int
client_put(struct ch_client *client, struct ch_frame *frame, int fd)
{
    struct ch_buf zipped;
    int r;

    if (fd >= 0) {
        return ch_client_put_fd(client, frame, fd);
    }
    if (!(frame->flags & CH_FLAG_ZLIB)) {
        return ch_client_put(client, frame);
    }
    frame->flags &= (uint8_t)~CH_FLAG_ZLIB;
    ch_buf_init(&zipped, SIZE_MAX / 4);
    r = ch_zip_deflate(frame->body, frame->len, &zipped);
    if (r == CH_OK) {
        frame->flags |= CH_FLAG_ZLIB;
        frame->body = ch_buf_data(&zipped);
        frame->len = (uint32_t)ch_buf_len(&zipped);
    }
    if (r == CH_OK || r == CH_ERR_UNSUPPORTED) {
        r = ch_client_put(client, frame);
    }
    ch_buf_fini(&zipped);
    return r;
}

static PyObject *
client_send(PyObject *op, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"type", "session", "agent", "request",
                            "body", "flags",   "fd",    NULL};
    ClientObject *self = (ClientObject *)op;
    struct ch_client *client;
    struct ch_frame frame;
    unsigned type = 0, agent = 0, flags = 0;
    unsigned long session = 0, request = 0;
    Py_buffer body;
    int fd = -1;
    int r;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "IkIky*|Ii:send", names,
                                     &type, &session, &agent, &request, &body,
                                     &flags, &fd)) {
        return NULL;
    }
    client = client_get(self);
    if (client == NULL) {
        goto error;
    }
    if (type > UINT8_MAX || ch_wire_body_max((uint8_t)type) == 0 ||
        agent > UINT16_MAX || session > UINT32_MAX || request > UINT32_MAX ||
        flags > CH_FLAG_ALL || (size_t)body.len > CH_WIRE_RAW_MAX) {
        PyErr_SetString(PyExc_ValueError,
                        "frame field out of range (docs/protocol.md)");
        goto error;
    }
    memset(&frame, 0, sizeof(frame));
    frame.type = (uint8_t)type;
    frame.flags = (uint8_t)flags;
    frame.agent = (uint16_t)agent;
    frame.session = (uint32_t)session;
    frame.request = (uint32_t)request;
    frame.body = body.buf;
    frame.len = (uint32_t)body.len;
    r = client_put(client, &frame, fd);
    if (r != CH_OK) {
        ch_raise(state_of(self), r, "frame for the churten pool");
        goto error;
    }
    r = ch_client_flush(client);
    if (r == CH_ERR_AGAIN && self->waiters > 0) {
        (void)eventfd_write(self->kick_fd, 1);
    }
    PyBuffer_Release(&body);
    Py_RETURN_NONE;
error:
    PyBuffer_Release(&body);
    return NULL;
}

/* The body as bytes, inflated if needed; NULL with an exception set, or
 * NULL without one if the pool broke the protocol. */
static PyObject *
body_bytes(const struct ch_frame *frame, uint8_t *flags)
{
    PyObject *out = NULL;
    size_t raw = 0;
    int r;

    *flags = frame->flags;
    if (!(frame->flags & CH_FLAG_ZLIB)) {
        return PyBytes_FromStringAndSize((const char *)frame->body,
                                         (Py_ssize_t)frame->len);
    }
    *flags &= (uint8_t)~CH_FLAG_ZLIB;
    r = ch_zip_raw_len(frame->body, frame->len, CH_WIRE_RAW_MAX, &raw);
    if (r != CH_OK) {
        return NULL;
    }
    out = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)raw);
    if (out == NULL) {
        return NULL;
    }
    r = ch_zip_inflate(frame->body, frame->len,
                       (uint8_t *)PyBytes_AS_STRING(out), raw);
    if (r != CH_OK) {
        Py_CLEAR(out);
        if (r == CH_ERR_NOMEM) {
            PyErr_NoMemory();
        }
    }
    return out;
}

/* Appends what has arrived to list; 0, or -1 with an exception set. */
static int
frames_take(ClientObject *self, PyObject *list)
{
    struct ch_frame frame;
    size_t total = 0;
    int r = CH_OK;

    while (total < BATCH_BYTES &&
           (r = ch_client_next(self->client, &frame)) == CH_OK) {
        uint8_t flags = 0;
        PyObject *body = body_bytes(&frame, &flags);
        PyObject *item = NULL;
        int bad;

        if (body == NULL && !PyErr_Occurred()) {
            r = CH_ERR_PROTOCOL;
            break;
        }
        if (body == NULL) {
            return -1;
        }
        total += (size_t)PyBytes_GET_SIZE(body);
        item = Py_BuildValue(
            "(BBkIkN)", frame.type, flags, (unsigned long)frame.session,
            (unsigned)frame.agent, (unsigned long)frame.request, body);
        if (item == NULL) {
            return -1;
        }
        bad = PyList_Append(list, item);
        Py_DECREF(item);
        if (bad != 0) {
            return -1;
        }
    }
    if (r == CH_ERR_PROTOCOL) {
        self->gone = true;
    }
    return 0;
}

/* Flush, read, take. 0, or -1 with an exception set. */
static int
client_turn(ClientObject *self, PyObject *list, bool *more_out)
{
    int r = ch_client_flush(self->client);

    *more_out = r == CH_ERR_AGAIN;
    /* Frames left over from the last batch first. */
    if (frames_take(self, list) != 0) {
        return -1;
    }
    if (PyList_GET_SIZE(list) > 0 || self->gone) {
        return 0;
    }
    r = ch_client_fill(self->client);
    if (r == CH_ERR_NOMEM) {
        PyErr_NoMemory();
        return -1;
    }
    if (r == CH_ERR_CLOSED) {
        self->gone = true;
    }
    return r == CH_OK ? frames_take(self, list) : 0;
}

/* Waits without the GIL. 1: look again, 0: stop waiting, -1: exception. */
static int
client_wait(ClientObject *self, int timeout_ms, int wake_fd, bool more_out)
{
    struct pollfd p[3] = {
        {.fd = ch_client_fd(self->client),
         .events = (short)(POLLIN | (more_out ? POLLOUT : 0))},
        {.fd = self->kick_fd, .events = POLLIN},
        {.fd = wake_fd, .events = POLLIN},
    };
    eventfd_t count;
    int n, saved;

    self->waiters++;
    Py_BEGIN_ALLOW_THREADS
    n = poll(p, 3, timeout_ms);
    saved = errno;
    Py_END_ALLOW_THREADS
    self->waiters--;
    if (self->closing) {
        if (self->waiters == 0) {
            client_drop(self);
        }
        PyErr_SetString(state_of(self)->error, "this Client was closed");
        return -1;
    }
    if (n < 0 && saved != EINTR) {
        errno = saved;
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    if (n < 0) {
        return PyErr_CheckSignals() != 0 ? -1 : 0;
    }
    if (p[1].revents != 0) {
        (void)eventfd_read(self->kick_fd, &count);
    }
    return p[0].revents != 0 || (p[1].revents != 0 && p[2].revents == 0);
}

static int64_t
clock_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static PyObject *
client_poll(PyObject *op, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"timeout_ms", "wake_fd", NULL};
    ClientObject *self = (ClientObject *)op;
    long long timeout_ms = 0;
    int64_t deadline_ms;
    int wake_fd = -1;
    bool more_out = false;
    PyObject *list = NULL;
    int again;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "L|i:poll", names,
                                     &timeout_ms, &wake_fd)) {
        return NULL;
    }
    if (client_get(self) == NULL) {
        return NULL;
    }
    list = PyList_New(0);
    if (list == NULL) {
        return NULL;
    }
    if (timeout_ms > INT_MAX) {
        timeout_ms = INT_MAX;
    }
    deadline_ms = timeout_ms < 0 ? -1 : clock_ms() + timeout_ms;
    do {
        int64_t left = -1;

        if (client_turn(self, list, &more_out) != 0) {
            goto error;
        }
        if (PyList_GET_SIZE(list) > 0 || self->gone) {
            break;
        }
        if (deadline_ms >= 0) {
            left = deadline_ms - clock_ms();
            if (left <= 0) {
                break;
            }
        }
        again = client_wait(self, (int)left, wake_fd, more_out);
        if (again < 0) {
            goto error;
        }
    } while (again > 0);
    return list;
error:
    Py_DECREF(list);
    return NULL;
}

static PyObject *
client_closed(PyObject *op, void *ignored)
{
    ClientObject *self = (ClientObject *)op;

    (void)ignored;
    return PyBool_FromLong(self->client == NULL || self->closing ||
                           self->gone);
}

static PyObject *
client_pid(PyObject *op, void *ignored)
{
    (void)ignored;
    return PyLong_FromLong(((ClientObject *)op)->pid);
}

/* --- pack and unpack --- */

static int
pack_item(struct ch_buf *out, PyObject *item)
{
    PyObject *text = NULL;
    char *data = NULL;
    Py_ssize_t len = 0;
    int r = -1;

    if (PyUnicode_Check(item)) {
        text = PyUnicode_AsEncodedString(item, "utf-8", "surrogateescape");
        if (text == NULL) {
            return -1;
        }
        item = text;
    }
    if (!PyBytes_Check(item)) {
        PyErr_Format(PyExc_TypeError, "pack() takes bytes or str, not %.80s",
                     Py_TYPE(item)->tp_name);
    } else if (PyBytes_AsStringAndSize(item, &data, &len) == 0) {
        if (ch_vec_put(out, data, (size_t)len) == CH_OK) {
            r = 0;
        } else {
            PyErr_SetString(PyExc_ValueError, "pack(): too large");
        }
    }
    Py_XDECREF(text);
    return r;
}

static PyObject *
core_pack(PyObject *module, PyObject *arg)
{
    PyObject *items = PySequence_Fast(arg, "pack() takes a list");
    PyObject *out = NULL;
    struct ch_buf buf;

    (void)module;
    if (items == NULL) {
        return NULL;
    }
    ch_buf_init(&buf, CH_WIRE_RAW_MAX);
    if (PySequence_Fast_GET_SIZE(items) > UINT16_MAX ||
        ch_vec_put_count(&buf, (unsigned)PySequence_Fast_GET_SIZE(items)) !=
            CH_OK) {
        PyErr_SetString(PyExc_ValueError, "pack(): more than 65535 items");
        goto out;
    }
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(items); i++) {
        if (pack_item(&buf, PySequence_Fast_GET_ITEM(items, i)) != 0) {
            goto out;
        }
    }
    out = PyBytes_FromStringAndSize((const char *)ch_buf_data(&buf),
                                    (Py_ssize_t)ch_buf_len(&buf));
out:
    ch_buf_fini(&buf);
    Py_DECREF(items);
    return out;
}

static PyObject *
core_unpack(PyObject *module, PyObject *arg)
{
    ch_state *state = PyModule_GetState(module);
    Py_buffer body;
    struct ch_vec vec;
    const uint8_t *item = NULL;
    size_t len = 0;
    PyObject *list = NULL;
    int r;

    if (PyObject_GetBuffer(arg, &body, PyBUF_SIMPLE) != 0) {
        return NULL;
    }
    list = PyList_New(0);
    r = ch_vec_init(&vec, body.buf, (size_t)body.len);
    while (list != NULL && r == CH_OK &&
           (r = ch_vec_next(&vec, &item, &len)) == CH_OK) {
        PyObject *one =
            PyBytes_FromStringAndSize((const char *)item, (Py_ssize_t)len);

        if (one == NULL || PyList_Append(list, one) != 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(one);
    }
    PyBuffer_Release(&body);
    if (list != NULL && r != CH_ERR_CLOSED) {
        Py_CLEAR(list);
        ch_raise(state, r, "unpack()");
    }
    return list;
}

/* --- tables --- */

static PyMethodDef client_methods[] = {
    {"fileno", client_fileno, METH_NOARGS,
     "fileno() -> int: the socket, readable when poll() has frames."},
    {"close", client_close, METH_NOARGS,
     "close(): close the connection; in a forked child only the fd."},
    {"request", client_request, METH_NOARGS,
     "request() -> int: the next unused request number."},
    {"send", (PyCFunction)(void (*)(void))client_send,
     METH_VARARGS | METH_KEYWORDS,
     "send(type, session, agent, request, body, flags=0): queue one frame "
     "and write what the socket takes now. With flag 1 (ZLIB) the body is "
     "compressed if that pays."},
    {"poll", (PyCFunction)(void (*)(void))client_poll,
     METH_VARARGS | METH_KEYWORDS,
     "poll(timeout_ms, wake_fd=-1) -> list of (type, flags, session, agent, "
     "request, body): send and receive; waits without the GIL until a frame "
     "came, wake_fd is readable or the time is over (-1: no limit). [] "
     "after a signal."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef client_getset[] = {
    {"closed", client_closed, NULL, "True if nothing can be sent any more.",
     NULL},
    {"pid", client_pid, NULL, "The process that opened the connection.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot client_slots[] = {
    {Py_tp_doc,
     "Client(path, version, *, timeout_ms=5000): a connection to the pool."},
    {Py_tp_new, client_new},
    {Py_tp_dealloc, client_dealloc},
    {Py_tp_methods, client_methods},
    {Py_tp_getset, client_getset},
    {0, NULL},
};

static PyType_Spec client_spec = {
    .name = "churten._core.Client",
    .basicsize = sizeof(ClientObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = client_slots,
};

static PyMethodDef core_functions[] = {
    {"pack", core_pack, METH_O,
     "pack(items) -> bytes: a vec of bytes or str (UTF-8, surrogateescape)."},
    {"unpack", core_unpack, METH_O,
     "unpack(body) -> list of bytes; Error if it is not a vec."},
    {NULL, NULL, 0, NULL},
};

int
ch_py_client_setup(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &client_spec, NULL);
    int r = -1;

    if (type != NULL && PyModule_AddType(module, (PyTypeObject *)type) == 0 &&
        PyModule_AddFunctions(module, core_functions) == 0) {
        r = 0;
    }
    Py_XDECREF(type);
    return r;
}
