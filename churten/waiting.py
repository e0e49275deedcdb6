"""How code that waits gives way: by parking its fiber, or by blocking when there is none.

The executor's hub installs itself with `set_hub`. Everything else calls `current()`, `park()` and `blocking()`; no other module knows about
greenlets. The process's pool client installs itself with `set_pump`, so that the hub can wait for the pool's answers.
"""

from __future__ import annotations

import contextlib
import os
import typing as t

T = t.TypeVar("T")


class Hub(t.Protocol):
    """What the executor's hub offers to code running inside a fiber."""

    no_park: int  # while it is not 0, `current()` is None and whoever waits blocks the process

    def current(self) -> object | None:
        """The fiber that runs now, or None when the caller is not inside a fiber that may park."""

    def acted(self) -> None:
        """The current fiber has done something that must not be done twice: it cannot begin anew elsewhere."""

    def park(self, deadline: float | None) -> bool:
        """Suspend the current fiber until `wake()` (True) or until time.monotonic() passes `deadline` (False)."""

    def wake(self, fiber: object) -> None:
        """Make a parked fiber runnable; harmless when it is not parked."""

    def blocking(self, function: t.Callable[[], T]) -> T:
        """Run `function` in a thread while the current fiber is parked; its result or exception."""

    def lend(self) -> bool:
        """Let another task have the slot of the current fiber, which only waits for a connection; False if it keeps it."""

    def retake(self) -> None:
        """After `lend()`: wait for a slot. Also when an exception is on its way: after a task's timeout the next item of its loop runs."""


class Pump(t.Protocol):
    """What the pool client offers to the hub."""

    @property
    def closed(self) -> bool:
        """True while there is no connection."""

    def pump(self, timeout_ms: int, wake_fd: int = -1) -> int:
        """Wait for answers (or until `wake_fd` is readable), wake their owners, return how many requests finished."""


_hub: Hub | None = None
_pump: Pump | None = None


def set_hub(hub: Hub | None) -> None:
    """Install (or with None remove) the hub of this process."""
    global _hub
    _hub = hub


def set_pump(pump: Pump | None) -> None:
    """Install (or with None remove) the pool client of this process."""
    global _pump
    _pump = pump


def pump() -> Pump | None:
    """The pool client of this process, if there has been one. Also when its connection has ended: its pump() then tells those who wait."""
    return _pump


def current() -> object | None:
    """The fiber that runs now, or None: then the caller must block itself."""
    return _hub.current() if _hub is not None else None


def park(deadline: float | None) -> bool:
    """Suspend the current fiber; see `Hub.park`. Only valid when `current()` is not None."""
    assert _hub is not None
    return _hub.park(deadline)


def acted() -> None:
    """See `Hub.acted`."""
    if _hub is not None:
        _hub.acted()


def wake(fiber: object) -> None:
    """Make `fiber` runnable; see `Hub.wake`."""
    if _hub is not None:
        _hub.wake(fiber)


def lend() -> bool:
    """See `Hub.lend`."""
    return _hub is not None and _hub.lend()


def retake() -> None:
    """See `Hub.retake`."""
    if _hub is not None:
        _hub.retake()


def blocking(function: t.Callable[[], T]) -> T:
    """Run something that blocks (a stock ssh client, a foreign connection): in a thread if a fiber asks, else directly."""
    if _hub is None or _hub.current() is None:
        return function()
    return _hub.blocking(function)


@contextlib.contextmanager
def uninterrupted() -> t.Iterator[None]:
    """Around what must not be left half done for another fiber to see: nobody parks inside, not even in `time.sleep`."""
    hub = _hub
    if hub is None:
        yield
        return
    hub.no_park += 1
    try:
        yield
    finally:
        hub.no_park -= 1


def _after_fork_in_child() -> None:
    # A forked worker is not inside a fiber and must not use its parent's socket.
    set_hub(None)
    set_pump(None)


os.register_at_fork(after_in_child=_after_fork_in_child)
