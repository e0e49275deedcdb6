"""Which results belong together: the rows of a recap or report."""

from __future__ import annotations

import bisect
import typing as t

if t.TYPE_CHECKING:
    from .model import Place, Result


class Task:
    """A row of tasks: one task, or the copies of one that `free` includes host by host."""

    __slots__ = ("name", "play", "action", "role", "path")

    def __init__(self, name: str, play: int, action: str, role: str | None, path: str | None) -> None:
        self.name = name
        self.play = play  # number in Columns.plays
        self.action = action
        self.role = role
        self.path = path


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

    def find(self, result: Result | Place, host_name: str) -> tuple[int, int]:
        """Numbers of the result's row and of its host; `result` or what it has in common with others of its task."""
        host = self.hosts.setdefault(host_name, len(self.hosts))
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

    def _new(self, result: Result | Place, host: int) -> int:
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
