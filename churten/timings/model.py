"""Timings of one run: results go in, figures per task and per play come out. Shared by the callback and by `churten timings report`.

Time is counted per host and task, from the moment the task got a slot to the moment its result was handled. So the sum of a task is host-seconds (under a
parallel strategy it exceeds the wall time), and its span is wall time from the first start to the last end.
"""

from __future__ import annotations

import dataclasses
import math

from churten import _core

from .rows import Rows

PHASES = ("queue", "connect", "remote", "controller")
STATUSES = ("skipped", "ok", "changed", "ignored", "failed", "unreachable")  # the worst last
_RANK = {status: rank for rank, status in enumerate(STATUSES)}
NO_ROLE = "(no role)"


@dataclasses.dataclass(slots=True, kw_only=True)
class Result:
    """One task on one host. Times in seconds; `at` counts from the start of the run on the monotonic clock. None is unknown."""

    play: str
    play_uuid: str
    task: str
    uuid: str
    action: str
    role: str | None
    path: str | None
    host: str
    status: str  # ok changed skipped failed ignored unreachable
    items: int | None  # of a loop
    started: str  # wall clock, UTC
    at: float
    seconds: float
    queue: float | None = None  # ready, but no slot free; before `at`
    connect: float | None = None
    remote: float | None = None
    controller: float | None = None  # the rest of `seconds`
    engine: str | None = None
    worker: int | None = None
    source: str | None = None  # who measured: executor, connection or callbacks; None in logs of older releases
    attempts: int = 1  # over all items
    delegated: str | None = None  # to this host
    ran: float | None = None  # of `remote`: as measured on the targets
    t: dict[str, float] | None = None  # stamps by name, seconds from the start of the run


@dataclasses.dataclass(slots=True, kw_only=True)
class Item:
    """One item of a loop, or one attempt (`until`), of a task on a host. Times as in Result."""

    play_uuid: str
    uuid: str
    host: str
    item: int | None
    label: str | None = None
    attempt: int
    status: str
    at: float
    seconds: float
    connect: float | None
    remote: float | None
    delegated: str | None = None


class Figures(_core.Tally):
    """What is shown of a task, a play, a role or a host: csrc/py_tally.c counts. `phases`, `times` and `hosts` are None where they are not wanted."""

    __slots__ = ()

    @property
    def span_s(self) -> float:
        """Wall time from the first start to the last end."""
        return self.last_s - self.first_s

    @property
    def status(self) -> str | None:
        """The worst status of any result."""
        return STATUSES[self.worst] if self.worst >= 0 else None

    def percentile(self, percent: float) -> float:
        """The time that `percent` of the results did not exceed (nearest rank); 0 without results."""
        ordered = sorted(self.times or ())
        return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)] if ordered else 0.0


class Model:
    """The figures of one run. What makes a row of tasks: rows.py."""

    def __init__(self) -> None:
        self.rows: list[Figures] = []  # of tasks, in the order they first ended
        self.plays: dict[str, Figures] = {}
        self.roles: dict[str, Figures] = {}
        self.hosts: dict[str, Figures] = {}
        self.slots = 0  # how many tasks could run at once, in the play that had most; 0: not known
        self.run = Figures("", phases=True)  # of the results whose phases are known
        self.total_s: float | None = None  # wall time of the run, once it ended
        self._rows = Rows()

    def add(self, result: Result) -> None:
        """Count one result for its task, its play and the run."""
        row, _ = self._rows.find(result)
        play_uuid, role, host = result.play_uuid, result.role or NO_ROLE, result.host
        if row == len(self.rows):
            self.rows.append(Figures(result.task, result.path, times=True))
        if (play := self.plays.get(play_uuid)) is None:
            play = self.plays[play_uuid] = Figures(result.play)
        if (of_role := self.roles.get(role)) is None:
            of_role = self.roles[role] = Figures(role, hosts=True)
        if (of_host := self.hosts.get(host)) is None:
            of_host = self.hosts[host] = Figures(host, phases=True)
        at, seconds, rank = result.at, result.seconds, _RANK.get(result.status, -1)
        phases = result.queue, result.connect, result.remote, result.controller
        self.rows[row].add(at, seconds, rank, host, phases)
        play.add(at, seconds, rank, host, phases)
        of_role.add(at, seconds, rank, host, phases)
        of_host.add(at, seconds, rank, host, phases)
        if result.controller is not None:
            self.run.add(at, seconds, rank, host, phases)

    @property
    def phases(self) -> dict[str, float]:
        """Seconds by phase, of the results whose phases are known."""
        return {name: seconds or 0.0 for name, seconds in (self.run.phases or {}).items()}

    @property
    def phased_s(self) -> float:
        """Seconds of the results whose phases are known."""
        return self.run.sum_s

    @property
    def busy(self) -> float:
        """How many slots were busy on average, at most `slots` (a host that is being connected to may have lent its slot)."""
        total = sum(play.sum_s for play in self.plays.values())
        mean = total / self.wall_s if self.wall_s > 0 else 0.0
        return min(mean, float(self.slots)) if self.slots else mean

    @property
    def wall_s(self) -> float:
        """Wall time of the run; until it ended, that of its last result."""
        if self.total_s is not None:
            return self.total_s
        return max((play.last_s for play in self.plays.values()), default=0.0)
