"""Work that need not be done where it comes up: kept, and done together a moment later by a thread.

Between two tasks the controller's caches hold other things, so a few microseconds of work cost several times as much there as they do one after the
other. A thread that sleeps a little and then does all that has come is nearly free, and what is kept is never older than `PAUSE_S` (seconds).
"""

from __future__ import annotations

import atexit
import collections
import os
import threading
import time
import typing as t

PAUSE_S = 0.3
KEPT_MAX = 2000


class AtOnce:
    """In place of Later where what belongs to a thing changes with the next one."""

    def __init__(self, work: t.Callable[[t.Any], None]) -> None:
        self.put = work

    def flush(self) -> None:
        """Nothing is kept."""


class Later:
    """Calls `work(thing)` for everything that was put, in order. Only in the process that made it: a forked child neither keeps nor works."""

    def __init__(
        self, work: t.Callable[[t.Any], None], warn: t.Callable[[str], object], after: t.Callable[[], None] = lambda: None
    ) -> None:
        """`after` is called when all that was there is done, `warn` once if one of them raises."""
        self._work = work
        self._after = after
        self._warn = warn
        self._warned = False
        self._things: collections.deque[t.Any] = collections.deque()
        self._wake = threading.Event()
        self._lock = threading.Lock()  # of those who work
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()
        atexit.register(self.flush)
        # Core forks while the thread runs: not in the middle of work, which may hold a lock of Display that the child needs.
        os.register_at_fork(before=self._lock.acquire, after_in_parent=self._lock.release, after_in_child=self._lock.release)

    def put(self, thing: t.Any) -> None:
        """To be worked on soon."""
        self._things.append(thing)
        if len(self._things) >= KEPT_MAX:
            self.flush()  # the thread gets no time
        if not self._wake.is_set():
            self._wake.set()
            if self._thread is None and os.getpid() == self._pid:
                self._thread = threading.Thread(target=self._run, name="churten-timings", daemon=True)
                self._thread.start()

    def flush(self) -> None:
        """Work on everything now; returns when it is done."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            while self._things:
                thing = self._things.popleft()
                try:
                    self._work(thing)
                except Exception as ex:
                    self._lost(ex)
            try:
                self._after()
            except Exception as ex:
                self._lost(ex)

    def _lost(self, ex: Exception) -> None:
        if not self._warned:
            self._warned = True
            self._warn(f"churten.core.timings: a time was lost: {ex!r}")

    def _run(self) -> None:
        while True:
            self._wake.wait()
            time.sleep(PAUSE_S)
            self._wake.clear()
            self.flush()
