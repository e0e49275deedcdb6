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

from ..timings.log import TimingLog
from ..timings.model import Item, Result
from .place import Place, Unusable, open_private

SUFFIX = ".jsonl"


class Spool:
    """The file of one run, opened at the first line. `warn` is called at most once; then nothing is written any more."""

    def __init__(self, place: Place, run: str, warn: t.Callable[[str], object]) -> None:
        self._place = place
        self.path = os.path.join(place.runs, time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()) + f"-{run}{SUFFIX}")
        self._warn = warn
        self._fd: int | None = None
        self._pid = os.getpid()
        self._broken = False
        self.written = False

    def write(self, line: str) -> bool:
        """Append `line` (without its newline). False if nothing is written any more; never raises. A forked child writes nothing."""
        if self._broken or os.getpid() != self._pid:
            return False
        data = line.encode("utf-8", "surrogateescape") + b"\n"
        try:
            if self._fd is None:
                self._place.make()
                self._fd = open_private(self.path, os.O_APPEND)
                fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # an empty young file is left alone by importers: nobody else tries
            if os.write(self._fd, data) != len(data):
                raise OSError("a line was written only in part (disk full?)")
        except (OSError, ValueError, Unusable) as ex:
            self._broken = True
            self.close()
            self._warn(f"the history of this run is not complete: {ex}")
            return False
        self.written = True
        return True

    def close(self) -> None:
        """The run has no more to say; the next line opens the file again."""
        if self._fd is not None and os.getpid() == self._pid:
            os.close(self._fd)
        self._fd = None


class SpoolLog(TimingLog):
    """Writes the events above."""

    def __init__(self, spool: Spool, run: str) -> None:
        super().__init__(spool.path, lambda text: None, run)
        self._file = spool  # type: ignore[assignment]
        self.more: dict[str, object] = {}  # fields for the result that is logged next

    def result(self, result: Result) -> None:
        """One task ended on one host."""
        result.t = None
        line = self._result_line(result)
        self._file.write(line + ("," + self._encode(self.more)[1:] if self.more else "}"))
        self.more = {}

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
