"""The results of one run as columns: what every analysis but the recap works on.

46 bytes per result and the names once, so two million results (a log of 1 GB) take 100 MB. Results stand in the order they ended, which is the order in
which a log has them; a log that was put together otherwise is sorted.
"""

from __future__ import annotations

import array
import math
import typing as t

from .model import Result
from .reading import Log, Run
from .rows import Rows, Task

STATUSES = ("ok", "changed", "skipped", "failed", "ignored", "unreachable")
UNKNOWN = -1.0  # in a phase's column: nobody measured it


class Columns:
    """One run. All times in seconds; `at` counts from the start of the run."""

    def __init__(
        self,
        results: t.Iterable[Result] = (),
        seconds: float | None = None,
        slots: int | None = None,
        strategies: t.Mapping[str, str] | None = None,
    ) -> None:
        self.rows = Rows()
        self.seconds = seconds
        self._slots = slots
        self.strategies = strategies or {}  # by play_uuid, where they are known
        self.at = array.array("d")
        self.end = array.array("d")
        self.host = array.array("I")
        self.row = array.array("I")
        self.worker = array.array("i")  # -1: unknown
        self.status = array.array("B")  # number in STATUSES
        self.queue = array.array("f")
        self.connect = array.array("f")
        self.remote = array.array("f")
        self.controller = array.array("f")
        self._sorted = True
        for result in results:
            self._add(result)
        if not self._sorted:
            self._sort()

    def __len__(self) -> int:
        return len(self.at)

    def _add(self, result: Result) -> None:
        row, host = self.rows.find(result, result.host)
        end = result.at + max(0.0, result.seconds)
        if self.end and end < self.end[-1]:
            # Handled at the same moment, to the rounding of the log.
            if self.end[-1] - end < 0.0005:
                end = self.end[-1]
            else:
                self._sorted = False
        self.at.append(min(result.at, end))
        self.end.append(end)
        self.host.append(host)
        self.row.append(row)
        worker = result.worker
        self.worker.append(worker if worker is not None and -1 <= worker < 1 << 31 else -1)
        self.status.append(STATUSES.index(result.status) if result.status in STATUSES else 0)
        for name in ("queue", "connect", "remote", "controller"):
            value = getattr(result, name)
            getattr(self, name).append(UNKNOWN if value is None else max(0.0, value))

    def _sort(self) -> None:
        order = sorted(range(len(self)), key=self.end.__getitem__)
        for name in ("at", "end", "host", "row", "worker", "status", "queue", "connect", "remote", "controller"):
            column = getattr(self, name)
            setattr(self, name, array.array(column.typecode, (column[i] for i in order)))

    @property
    def hosts(self) -> list[str]:
        """Names by number."""
        return list(self.rows.hosts)

    @property
    def tasks(self) -> list[Task]:
        """Rows by number."""
        return self.rows.tasks

    @property
    def plays(self) -> list[str]:
        """Names by number."""
        return [name for _, name in self.rows.plays.values()]

    @property
    def wall_s(self) -> float:
        """Wall time of the run; of one that did not end, that of its last result."""
        last = self.end[-1] if self.end else 0.0
        return max(last, self.seconds) if self.seconds is not None else last

    @property
    def busy_s(self) -> float:
        """Host-seconds of all results."""
        return math.fsum(self.end) - math.fsum(self.at)

    @property
    def slots(self) -> int | None:
        """How many tasks could run at once: as the log says, or as many as workers were seen."""
        return self._slots or max(self.worker, default=-1) + 1 or None


def read(log: Log, run: Run) -> Columns:
    """The columns of one run of a log."""
    strategies = {uuid: play.strategy for uuid, play in run.plays.items()}
    return Columns(log.results(run), run.seconds, run.slots, strategies)
