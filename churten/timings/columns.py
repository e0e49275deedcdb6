"""The results of one run as columns: what every analysis but the recap works on.

46 bytes per result and the names once, so two million results (a log of 1 GB) take 100 MB. Results stand in the order they ended, which is the order in
which a log has them; a log that was put together otherwise is sorted.
"""

from __future__ import annotations

import array
import bisect
import dataclasses
import math
import typing as t

from .model import Result
from .reading import Log, Run

STATUSES = ("ok", "changed", "skipped", "failed", "ignored", "unreachable")
UNKNOWN = -1.0  # in a phase's column: nobody measured it


@dataclasses.dataclass(slots=True)
class Task:
    """A row of tasks: one task, or the copies of one that `free` includes host by host."""

    name: str
    play: int  # number in Columns.plays
    action: str
    role: str | None
    path: str | None


class Rows:
    """Which row a result belongs to. A row is a task's uuid.

    Under free, though, core includes a file once per host, and each time its tasks get new uuids: tasks of the same name and place share a row as long as no
    host would be in it under two uuids. So an include in a loop keeps a row per item.

    Uuids are remembered for a while only (the last 100,000 or more), or a long run of includes would fill the memory; rows are kept.
    """

    REMEMBERED = 100_000

    def __init__(self) -> None:
        self.tasks: list[Task] = []
        self.hosts: dict[str, int] = {}
        self.plays: dict[str, tuple[int, str]] = {}  # uuid -> number, name
        self._seen: list[int] = []  # hosts of each row, as bits
        self._young: dict[str, int] = {}
        self._old: dict[str, int] = {}
        self._by_place: dict[tuple[int, str, str], list[int]] = {}

    def find(self, result: Result) -> tuple[int, int]:
        """Numbers of the result's row and of its host."""
        host = self.hosts.setdefault(result.host, len(self.hosts))
        row = self._young.get(result.uuid)
        if row is None:
            row = self._old.get(result.uuid)
            if row is None:
                row = self._new(result, 1 << host)
            if len(self._young) >= self.REMEMBERED:
                self._old, self._young = self._young, {}
            self._young[result.uuid] = row
        self._seen[row] |= 1 << host
        return row, host

    def _new(self, result: Result, host: int) -> int:
        if (play := self.plays.get(result.play_uuid)) is None:
            play = self.plays[result.play_uuid] = len(self.plays), result.play
        rows = self._by_place.setdefault((play[0], result.path, result.task), []) if result.path else []
        # A host fills the rows of a place from the first on, so the first without it can be found by halves: a loop may include a file a thousand times.
        number = bisect.bisect_left(rows, True, key=lambda row: not self._seen[row] & host)
        if number < len(rows):
            return rows[number]
        row = len(self.tasks)
        rows.append(row)
        self.tasks.append(Task(result.task, play[0], result.action, result.role, result.path))
        self._seen.append(0)
        return row


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
        row, host = self.rows.find(result)
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
        """How many tasks could run at once; more than configured if more workers were seen."""
        seen = max(self.worker, default=-1) + 1
        return max(self._slots or 0, seen) or None


def read(log: Log, run: Run) -> Columns:
    """The columns of one run of a log."""
    strategies = {uuid: play.strategy for uuid, play in run.plays.items()}
    return Columns(log.results(run), run.seconds, run.slots, strategies)
