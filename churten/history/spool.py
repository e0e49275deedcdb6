"""What a run says about itself, one line per event, until it is in the database.

The run only appends lines: no database, no thread and no sync is in its way, and a worker it forks has nothing to inherit. A run that is killed leaves
its lines, which are imported by whoever looks next. While the run lives it holds a POSIX lock on its file (which ends with the process, and which a fork
does not inherit): so others know whether there is more to come.

The lines are those of the timing log (docs/timing-log.md), with more fields and more events:

| event | fields |
|---|---|
| `run` | also `path`, `python`, `controller`, `user`, `arguments`, `labels` |
| `result` | also `content`, on request; a task's first one also `tags`, `handler` |
| `facts` | `host`, `facts`: on request |
| `file` | `path`, `content`: on request |
| `stats` | `hosts`: core's own counts by host |
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
import typing as t

from ..timings.log import LineFile, TimingLog
from ..timings.model import Item
from ..timings.model import Place as TaskPlace
from .place import Place, Unusable, open_private

SUFFIX = ".jsonl"


class Spool(LineFile):
    """The file of one run, opened at the first line. `warn` is called at most once; then nothing is written any more."""

    def __init__(self, place: Place, run: str, warn: t.Callable[[str], object]) -> None:
        super().__init__(os.path.join(place.runs, time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()) + f"-{run}{SUFFIX}"), warn)
        self._trouble = "the history of this run is not complete"
        self._place = place
        self.written = False

    def _open(self) -> int:
        try:
            self._place.make()
            fd = open_private(self.path, os.O_APPEND)
        except Unusable as ex:
            raise ValueError(str(ex)) from ex
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # an empty young file is left alone by importers: nobody else tries
        self.written = True
        return fd


class SpoolLog(TimingLog):
    """Writes the events above."""

    def __init__(self, spool: Spool, run: str) -> None:
        super().__init__(spool, run)
        self.more: dict[str, object] = {}  # fields for the result that is logged next

    def stamped(self, place: TaskPlace, stamp: t.Any, *more: t.Any) -> None:
        """One task ended on one host."""
        line = self._without_moments(place, stamp, *more)
        self._file.write(line + ("," + self._encode(self.more)[1:] if self.more else "}"))
        self.more = {}

    unstamped = stamped

    def item(self, item: Item) -> None:
        """The history has no rows for items and attempts; results count them."""

    def event(self, name: str, body: dict[str, object]) -> None:
        """Another event."""
        self._write(name, body)


def lives(fd: int) -> bool:
    """Whether the run that writes this file is still there. Do not ask in the process that writes it."""
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    with contextlib.suppress(OSError):
        fcntl.lockf(fd, fcntl.LOCK_UN)
    return False
