"""The worker log: which worker runs what, and how many are busy.

    Max workers set to 3 (0=sequential, >0=parallel)
    Running in PARALLEL mode with 3 workers
    Worker 0 started
    Worker 0 processing: deploy for server web-01 (active: 1/3)
    Worker 0 completed deploy for web-01 after 12.31s ok (active: 0/3)

A "worker" is a slot of the strategy, whether a fiber or a forked process fills it. In the file each line begins with the local date and time and
`[churten]`, so `grep "Worker.*completed" FILE | awk '{print $1, $2, $9, $11, $12}'` gives time, host, seconds and status of tasks with one-word names.
On the screen the lines appear at -vv, without the time.
"""

from __future__ import annotations

import time
import typing as t

if t.TYPE_CHECKING:
    from .log import LineFile, Rotation

_path: str | None = None
_rotation: Rotation | None = None


def configure(path: str | None, rotation: Rotation | None = None) -> None:
    """The file for WorkerLogs that are not given one: the timings callback's option `worker_log`. Rotated by the first of them alone."""
    global _path, _rotation
    _path = path or None
    _rotation = rotation


class Display(t.Protocol):
    """What is used of ansible's Display."""

    verbosity: int

    def vv(self, msg: str) -> object:
        """Show a line at -vv."""

    def warning(self, msg: str) -> object:
        """Show a warning."""


class WorkerLog:
    """Writes the lines above. Cheap when nobody reads them: without a file and below -vv each call is one test."""

    def __init__(self, path: str | None = None, display: Display | None = None) -> None:
        """`path` None: the callback's `worker_log`, if any. `display` None: ansible's own."""
        if display is None:
            from ansible.utils.display import Display as AnsibleDisplay

            display = t.cast(Display, AnsibleDisplay())
        self._display = display
        global _rotation
        path = path or _path
        self._file: LineFile | None = None
        if path:
            from .log import LineFile

            self._file = LineFile(path, display.warning, "worker log", _rotation)
        _rotation = None
        self._limit = 0
        self._seen: set[int] = set()

    @property
    def on(self) -> bool:
        """Whether anybody will see a line."""
        return self._file is not None or self._display.verbosity >= 2

    def started(self, limit: int) -> None:
        """The strategy begins with `limit` slots; 0 is one after the other."""
        self._limit = limit
        self._seen.clear()
        if self.on:
            self._say(f"Max workers set to {limit} (0=sequential, >0=parallel)")
            self._say(f"Running in PARALLEL mode with {limit} workers" if limit > 0 else "Running in SEQUENTIAL mode")

    def begin(self, worker: int, task: str, host: str, active: int) -> None:
        """Slot `worker` (from 0) took a task; `active` slots are busy now, this one included."""
        if self.on:
            if worker not in self._seen:
                self._seen.add(worker)
                self._say(f"Worker {worker} started")
            self._say(f"Worker {worker} processing: {task} for server {host} (active: {active}/{max(self._limit, 1)})")

    def end(self, worker: int, task: str, host: str, active: int, seconds: float, status: str) -> None:
        """The task of slot `worker` ended after `seconds`; `active` slots are still busy."""
        if self.on:
            self._say(
                f"Worker {worker} completed {task} for {host} after {seconds:.2f}s {status} (active: {active}/{max(self._limit, 1)})"
            )

    def close(self) -> None:
        """Close the file; a later line opens it again."""
        if self._file is not None:
            self._file.close()

    def _say(self, text: str) -> None:
        text = one_line(text)
        self._display.vv(text)
        if self._file is not None:
            self._file.write(time.strftime("%Y-%m-%d %H:%M:%S ") + "[churten] " + text)


def one_line(text: str) -> str:
    """`text` without control characters: a task's name cannot forge a second line."""
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)
