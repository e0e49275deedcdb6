"""Timings of one run: results go in, figures per task and per play come out. Shared by the callback and by `churten timings report`.

Time is counted per host and task, from the moment the task got a slot to the moment its result was handled. So the sum of a task is host-seconds (under a
parallel strategy it exceeds the wall time), and its span is wall time from the first start to the last end.
"""

from __future__ import annotations

import math
import typing as t

from churten import _core

from .rows import Rows

PHASES = ("queue", "connect", "remote", "controller")
STATUSES = ("skipped", "ok", "changed", "ignored", "failed", "unreachable")  # the worst last
_RANK = {status: rank for rank, status in enumerate(STATUSES)}
NO_ROLE = "(no role)"


class Record:
    """Named values. Not a dataclass: each of those compiles its methods whenever it is imported, which a short run would pay for."""

    __slots__: tuple[str, ...] = ()
    defaults: t.ClassVar[dict[str, t.Any]] = {}

    def __init__(self, **values: t.Any) -> None:
        values = self.defaults | values
        if set(values) != set(self.__slots__):
            raise TypeError(f"{type(self).__name__} has other names: {', '.join(sorted(set(values) ^ set(self.__slots__)))}")
        for name, value in values.items():
            setattr(self, name, value)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name, None)!r}' for name in self.__slots__)})"


class Result(Record):
    """One task on one host. Times in seconds; `at` counts from the start of the run on the monotonic clock. None is unknown."""

    __slots__ = (
        *("play", "play_uuid", "task", "uuid", "action", "role", "path", "host", "status", "items", "started", "at", "seconds", "queue", "connect", "remote"),
        *("controller", "engine", "worker", "source", "attempts", "delegated", "ran", "t"),
    )
    defaults = dict.fromkeys(("queue", "connect", "remote", "controller", "engine", "worker", "source", "delegated", "ran", "t")) | {"attempts": 1}

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
    queue: float | None  # ready, but no slot free; before `at`
    connect: float | None
    remote: float | None
    controller: float | None  # the rest of `seconds`
    engine: str | None
    worker: int | None
    source: str | None  # who measured: executor, connection or callbacks; None in logs of older releases
    attempts: int  # over all items
    delegated: str | None  # to this host
    ran: float | None  # of `remote`: as measured on the targets
    t: dict[str, float] | None  # stamps by name, seconds from the start of the run


class Place:
    """What all results of a task have in common."""

    __slots__ = ("play", "play_uuid", "task", "uuid", "action", "role", "path", "line")

    def __init__(self, play: tuple[str, str], task: str, uuid: str, action: str, role: str | None, path: str | None) -> None:
        self.play, self.play_uuid = play
        self.task, self.uuid = task, uuid
        self.action, self.role, self.path = action, role, path
        self.line: str | None = None  # how lines of the log begin


class Item(Record):
    """One item of a loop, or one attempt (`until`), of a task on a host. Times as in Result."""

    __slots__ = ("play_uuid", "uuid", "host", "item", "label", "attempt", "status", "at", "seconds", "connect", "remote", "delegated")
    defaults = dict.fromkeys(("label", "delegated"))

    play_uuid: str
    uuid: str
    host: str
    item: int | None
    label: str | None
    attempt: int
    status: str
    at: float
    seconds: float
    connect: float | None
    remote: float | None
    delegated: str | None


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
        self.count(result, result.host, result.at, result.seconds, result.status, (result.queue, result.connect, result.remote, result.controller))

    def count(self, place: Result | Place, host: str, at: float, seconds: float, status: str, phases: tuple[float | None, ...]) -> None:
        """The same for a result of this task, play and so on."""
        row, _ = self._rows.find(place, host)
        play_uuid, role, rank = place.play_uuid, place.role or NO_ROLE, _RANK.get(status, -1)
        if row == len(self.rows):
            self.rows.append(Figures(place.task, place.path, times=True))
        if (play := self.plays.get(play_uuid)) is None:
            play = self.plays[play_uuid] = Figures(place.play)
        if (of_role := self.roles.get(role)) is None:
            of_role = self.roles[role] = Figures(role, hosts=True)
        if (of_host := self.hosts.get(host)) is None:
            of_host = self.hosts[host] = Figures(host, phases=True)
        self.rows[row].add(at, seconds, rank, host, phases)
        play.add(at, seconds, rank, host, phases)
        of_role.add(at, seconds, rank, host, phases)
        of_host.add(at, seconds, rank, host, phases)
        if phases[3] is not None:
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
