"""When each step of a host's task happened: filled where it happens, read once by the timings callback.

The executor makes a record with `begin`, writes its own moments into it and says `enter` in the task's fiber; connections say `connecting`, `connected`
and `request`. The callback calls `take` when a result was handled. `announce` comes before a task is handed to a worker: from the callback under any
strategy, from churten's own where they fork. All times are `time.monotonic()` seconds of the controller (the pool's CLOCK_MONOTONIC microseconds
divided by 1e6 are the same clock).

Nothing is recorded until somebody asks for it with `enable()`, so a run without the callback pays one `if`. A task may connect and run remotely more
than once (loops, retries, transfers): `connect_begin` and `remote_begin` keep the first time, `*_end` the last, `connect_s` and `remote_s` the sum, and
`spans` every single one.

A forked worker, of whatever strategy, inherits the record that was announced last before the fork: it is that task's worker, since core announces a
task and forks for it in one step. The worker tells its parent through a pipe, one message of fixed size per event, before it sends its result; so
they are there when the callback takes the record. A full pipe never holds a worker up: it goes on without saying more, and says so with the next
message that fits.
"""

from __future__ import annotations

import contextlib
import contextvars
import fcntl
import os
import struct
import time
import typing as t

from churten import _core

NAMES = (
    "eligible",
    "slot",
    "start",
    "connect_begin",
    "connect_end",
    "sent",
    "remote_begin",
    "remote_end",
    "received",
    "processed",
)


Stamps = _core.Stamps  # csrc/py_stamps.c: the steps of one task on one host; None is a step nobody saw
_now = time.monotonic

_live: dict[tuple[str, str], Stamps] = {}
_tickets: dict[int, Stamps] = {}
_firsts: list[t.Callable[[], None]] = []
_on = False
_taken: tuple[str, str, Stamps] | None = None
_slots: int | None = None
_current: contextvars.ContextVar[Stamps | None] = contextvars.ContextVar("churten_stamps", default=None)

# Between a worker and its parent. A message: ticket, kind, lost, begin, sent, end, ran.
_MESSAGE = struct.Struct("<QBBdddd")
_START, _REQUEST = range(2)
_PIPE_BYTES = 1 << 20
_pipe: tuple[int, int] | None = None
_announced = 0  # ticket of the task that a fork of this process would be for
_forked = False  # in the parent: there may be messages
_ticket = 0  # in a worker: its own
_lost = False


def enable() -> None:
    """Start recording; called by whoever will `take` what was recorded."""
    global _on, _pipe
    _on = True
    if _pipe is None:
        with contextlib.suppress(OSError):
            _pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            fcntl.fcntl(_pipe[1], fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


def disable() -> None:
    """Stop recording and forget everything."""
    global _on, _pipe, _announced, _forked, _slots, _taken
    _on = _forked = False
    _taken = None
    _announced = 0
    _slots = None
    _live.clear()
    _tickets.clear()
    _firsts.clear()
    if _pipe is not None:
        for fd in _pipe:
            os.close(fd)
        _pipe = None


def slots(number: int | None) -> None:
    """How many tasks may run at once, told by an executor that has its own number; None: it has ended."""
    global _slots
    _slots = number


def slot_limit() -> int | None:
    """What `slots` said last."""
    return _slots


def at_first(tell: t.Callable[[], None]) -> None:
    """Call it at the next `begin`, once."""
    if tell not in _firsts:
        _firsts.append(tell)


def begin(host: str, uuid: str) -> Stamps | None:
    """A new record for this host and task (an older one is dropped), with the moment it became eligible. None when nobody records."""
    global _taken
    if not _on:
        return None
    while _firsts:
        _firsts.pop(0)()
    _taken = None
    record = _live[host, uuid] = Stamps(_now())
    return record


_last_ticket = 0


def announce(host: str, uuid: str) -> Stamps | None:
    """The task starts on the host, maybe in a worker forked next. Answers its record; of a strategy that made none, a new one.

    Several callbacks may announce the same task.
    """
    global _announced, _last_ticket, _taken
    if not _on:
        return None
    record = _live.get((host, uuid))
    if record is not None and record.engine == "fiber":
        return record
    if record is None:
        _taken = None
        record = _live[host, uuid] = Stamps()
    if not record.ticket:
        _last_ticket += 1
        record.ticket = _last_ticket
        _tickets[record.ticket] = record
    _announced = record.ticket
    return record


def enter(record: Stamps | None) -> None:
    """This is its fiber, which starts now: what its connection does goes into this record (None: nowhere)."""
    if record is not None:
        record.start = _now()
    _current.set(record)


def arrived(host: str, uuid: str) -> None:
    """The result is with the strategy."""
    if _live and (record := _live.get((host, uuid))) is not None:
        record.received = _now()


def connecting() -> None:
    """The current record waits for a session or an agent, until `connected`."""
    if _on and (record := _current.get()) is not None:
        record.connect_open = _now()


def connected() -> None:
    """The wait of `connecting` is over."""
    if _on and (record := _current.get()) is not None and record.connect_open is not None:
        began, record.connect_open = record.connect_open, None
        now = _now()
        _note(record, began, now, now, 0.0)


def request(received: float, sent: float, ended: float, ran: float = 0.0) -> None:
    """A request of the current record as the pool saw it: taken from us, written to the transport, its last frame read; `ran`: seconds on the target.

    Until it was written it waited for its session or agent: that counts as connecting.
    """
    if _on and (record := _current.get()) is not None:
        _note(record, received, sent, ended, ran)


@contextlib.contextmanager
def foreign() -> t.Iterator[None]:
    """Around work of a built-in connection plugin: remote work as a whole, its connecting cannot be told apart."""
    began = _now()
    try:
        yield
    finally:
        request(began, began, _now())


def look(host: str, uuid: str) -> Stamps | None:
    """The record as far as it is known, or None."""
    if _forked:
        _drain()
    return _live.get((host, uuid))


def take(host: str, uuid: str) -> Stamps | None:
    """Remove and return the record, or None."""
    global _taken
    record = _live.pop((host, uuid), None) if _live else None
    if record is None:
        return None
    if _forked:
        _drain()
    if record.ticket:
        _tickets.pop(record.ticket, None)
    _taken = host, uuid, record
    return record


def taken(host: str, uuid: str) -> Stamps | None:
    """The record that was taken last, if it is this one: two callbacks may want to know about the same result."""
    return _taken[2] if _taken is not None and _taken[:2] == (host, uuid) else None


# --- forked workers ---


def _note(record: Stamps, began: float, sent: float, ended: float, ran: float) -> None:
    if _ticket:
        _tell(_REQUEST, began, sent, ended, ran)
    else:
        record.request(began, sent, ended, ran)


def _tell(kind: int, *times: float) -> None:
    global _lost
    assert _pipe is not None
    try:
        os.write(_pipe[1], _MESSAGE.pack(_ticket, kind, _lost, *times))
    except OSError:
        _lost = True


def _drain() -> None:
    """Read what workers said."""
    if _pipe is None:
        return
    while True:
        try:
            data = os.read(_pipe[0], 1024 * _MESSAGE.size)
        except OSError:  # BlockingIOError: no more
            return
        for ticket, kind, lost, began, sent, ended, ran in _MESSAGE.iter_unpack(data):
            record = _tickets.get(ticket)
            if record is None:
                continue
            record.lost |= bool(lost)
            if kind == _START:
                record.start = began
            else:
                record.request(began, sent, ended, ran)


def _after_fork_in_parent() -> None:
    global _forked
    _forked = _on


def _after_fork_in_child() -> None:
    """This is the worker of the task announced last, unless a worker forked it: then it is nobody's."""
    global _on, _ticket
    if not _on:
        return
    record = _tickets.get(_announced)
    if _ticket or record is None or _pipe is None:
        _on = False
        _ticket = 0
        return
    _ticket = _announced
    _current.set(record)
    _tell(_START, _now(), 0.0, 0.0, 0.0)


os.register_at_fork(after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
