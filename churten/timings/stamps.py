"""When each step of a host's task happened: filled where it happens, read once by the timings callback.

The executor, the connection and the hub call `begin`, `mark` and `here`; the callback calls `take` when the result was handled. All times are
`time.monotonic()` seconds of the controller (the pool's CLOCK_MONOTONIC microseconds divided by 1e6 are the same clock).

Nothing is recorded until somebody asks for it with `enable()`, so a run without the callback pays one `if`. A task may connect and run remotely more
than once (loops, retries, transfers): `connect_begin` and `remote_begin` keep the first time, `*_end` the last, and `connect_s` and `remote_s` the sum.
A forked worker's marks die with its process, like all its state.
"""

from __future__ import annotations

import contextvars
import dataclasses
import time

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


@dataclasses.dataclass(slots=True)
class Stamps:
    """The steps of one task on one host; None is a step nobody saw."""

    eligible: float | None = None  # the host could have run this task
    slot: float | None = None  # it got a worker slot
    start: float | None = None  # its TaskExecutor began (fiber or worker)
    connect_begin: float | None = None
    connect_end: float | None = None
    sent: float | None = None  # the last request's bytes were written to the transport
    remote_begin: float | None = None
    remote_end: float | None = None
    received: float | None = None  # the final frame or the worker's result was read
    processed: float | None = None  # the strategy handled the result
    connect_s: float = 0.0
    remote_s: float = 0.0
    worker: int | None = None  # slot number, if the engine has one
    engine: str | None = None  # "fiber" or "fork"
    connect_open: float | None = None  # begin of the phase that is not ended yet
    remote_open: float | None = None


_live: dict[tuple[str, str], Stamps] = {}
_on = False
_current: contextvars.ContextVar[Stamps | None] = contextvars.ContextVar("churten_stamps", default=None)


def enable() -> None:
    """Start recording; called by whoever will `take` what was recorded."""
    global _on
    _on = True


def disable() -> None:
    """Stop recording and forget everything."""
    global _on
    _on = False
    _live.clear()


def begin(host: str, uuid: str) -> Stamps | None:
    """A new record for this host and task (an older one is dropped). None when nobody records."""
    if not _on:
        return None
    record = _live[host, uuid] = Stamps()
    return record


def enter(host: str, uuid: str) -> None:
    """Make the record the one `here` writes to, in this contextvars context (one per fiber)."""
    if _on:
        _current.set(_live.get((host, uuid)))


def mark(host: str, uuid: str, name: str, when: float | None = None) -> None:
    """Stamp one step (a name of NAMES) at `when`, by default now. Without a record: nothing."""
    if _on and (record := _live.get((host, uuid))) is not None:
        _set(record, name, time.monotonic() if when is None else when)


def here(name: str, when: float | None = None) -> None:
    """`mark` for code that does not know its task, such as a connection: the record of `enter`."""
    if _on and (record := _current.get()) is not None:
        _set(record, name, time.monotonic() if when is None else when)


def request(received: float, sent: float, ended: float) -> None:
    """A request of the current record as the pool saw it: taken from us, written to the transport, its last frame read.

    Until it was written it waited for its session or agent: that counts as connecting.
    """
    if _on and (record := _current.get()) is not None:
        for name, when in (
            ("connect_begin", received),
            ("connect_end", sent),
            ("sent", sent),
            ("remote_begin", sent),
            ("remote_end", ended),
        ):
            _set(record, name, when)


def engine(host: str, uuid: str, name: str, worker: int | None = None) -> None:
    """Note what runs the task ("fiber" or "fork") and in which slot."""
    if _on and (record := _live.get((host, uuid))) is not None:
        record.engine = name
        record.worker = worker


def take(host: str, uuid: str) -> Stamps | None:
    """Remove and return the record, or None."""
    return _live.pop((host, uuid), None) if _live else None


def _set(record: Stamps, name: str, when: float) -> None:
    if name == "connect_begin":
        record.connect_open = when
        if record.connect_begin is None:
            record.connect_begin = when
    elif name == "remote_begin":
        record.remote_open = when
        if record.remote_begin is None:
            record.remote_begin = when
    elif name == "connect_end":
        record.connect_end = when
        if record.connect_open is not None:
            record.connect_s += max(0.0, when - record.connect_open)
            record.connect_open = None
    elif name == "remote_end":
        record.remote_end = when
        if record.remote_open is not None:
            record.remote_s += max(0.0, when - record.remote_open)
            record.remote_open = None
    else:
        setattr(record, name, when)
