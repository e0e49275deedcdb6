"""Checksums of files on the controller. Core's action `copy` reads the whole file for each host; here it is read once.

A file has the checksum it had if it is the same file (device and number), of the same size, and neither its content nor anything else about it was changed
since: the time of its last change is the kernel's own, nobody can set it. That time is only as fine as the clock of the file system, so a checksum is kept
only if the file had been left alone for `SETTLED_NS` when it was begun.

`fetch` reads each file that it has brought, twice. Forks do that side by side; so for large files fibers do it in threads.
"""

from __future__ import annotations

import contextlib
import functools
import os
import stat
import time
import typing as t

from churten import waiting

SETTLED_NS = 2_000_000_000
SMALL = 65536  # bytes: looking twice costs more than reading
LARGE = 1 << 20  # bytes: longer than a thread takes to start
_LIMIT = 1000

State = tuple[int, int, int, int, int]


class Checksums:
    """Stands for the function `checksum` inside core's action."""

    def __init__(self, stock: t.Callable[..., t.Any]) -> None:
        self._stock = stock
        self._known: dict[State, str] = {}

    def __call__(self, filename: t.Any, *args: t.Any, **kwargs: t.Any) -> t.Any:
        state = _state(filename) if not args and not kwargs else None
        if state is None:
            return self._stock(filename, *args, **kwargs)
        found = self._known.get(state)
        if found is not None:
            return found
        settled = time.time_ns() - state[-1] > SETTLED_NS
        found = self._stock(filename)
        # What changed meanwhile has another state from now on, and this one never comes again.
        if settled and isinstance(found, str):
            if len(self._known) >= _LIMIT:
                self._known.clear()
            self._known[state] = found
        return found


def _state(filename: t.Any) -> State | None:
    """What changes when the file does; None if it is small, no plain file, or cannot be read."""
    try:
        # Opened, so that a file server is asked anew, and so that who may not read it gets core's error.
        fd = os.open(filename, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            found = os.fstat(fd)
        finally:
            os.close(fd)
    except (OSError, TypeError, ValueError):
        return None
    if not stat.S_ISREG(found.st_mode) or found.st_size < SMALL:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def aside(stock: t.Callable[..., t.Any]) -> t.Callable[..., t.Any]:
    """`stock`, a digest of a file, in a thread if that takes long and the fiber can wait."""

    @functools.wraps(stock)
    def digest(filename: t.Any, *args: t.Any, **kwargs: t.Any) -> t.Any:
        # A relative name means another file where another fiber has changed the working directory.
        if waiting.current() is not None and isinstance(filename, str) and os.path.isabs(filename):
            size = 0
            with contextlib.suppress(OSError, ValueError):
                size = os.stat(filename).st_size
            if size >= LARGE:
                return waiting.blocking(lambda: stock(filename, *args, **kwargs))
        return stock(filename, *args, **kwargs)

    return digest
