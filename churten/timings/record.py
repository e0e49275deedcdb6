"""What the timings callback does at each event: open a result, close it, count it, log it; at the end the recap.

Stock hooks give start and end of each host's task. Where churten's own executor runs, `churten.timings.stamps` adds when the host was ready, when a slot
was free, and what the connection did; under another strategy its forked workers tell what a connection of churten did.
"""

from __future__ import annotations

import heapq
import secrets
import time
import typing as t
from pathlib import PurePath

import churten

from ..compat import callback as compat
from . import stamps
from .later import AtOnce, Later
from .log import LineFile, Rotation, TimingLog
from .model import Item, Model, Place
from .workers import WorkerLog

_IN_STEP = ("linear", "debug")  # strategies where all hosts begin a task before any begins the next
_LABEL_MAX = 200
_BLOCK = 500  # results
_PLACES = 1000  # tasks remembered
_NO_STAMP = stamps.Stamps()


class Part:
    """Where a host's task has got to: what ended last, of its items and attempts."""

    __slots__ = ("end", "spans", "items", "attempt", "attempts", "delegated")

    def __init__(self, begin: float) -> None:
        self.end = begin
        self.spans = 0  # requests that belong to ended parts
        self.items = 0
        self.attempt = 1  # of the present item
        self.attempts = 0  # of all ended items
        self.delegated: set[str | None] = set()  # hosts of the ended items


class Lanes:
    """Workers as callbacks can tell them apart, for strategies that are not ours: a task takes the lowest number that is free.

    A worker counts as free when its result was handled, which is later than it was: for a moment there may be more than there are forks.
    """

    def __init__(self) -> None:
        self._free: list[int] = []
        self._made = 0
        self._log: WorkerLog | None = None

    def play(self, limit: int) -> None:
        """A play begins with `limit` forks."""
        self._free, self._made = [], 0
        self._log = WorkerLog()
        self._log.started(limit)

    def begin(self, task: t.Any, host: str) -> int:
        """The task's number."""
        if self._free:
            number = heapq.heappop(self._free)
        else:
            number, self._made = self._made, self._made + 1
        if self._log is not None and self._log.on:
            self._log.begin(number, task.get_name(), host, self._active)
        return number

    def end(self, number: int, task: str, host: str, seconds: float, status: str) -> None:
        """Its result was handled."""
        heapq.heappush(self._free, number)
        if self._log is not None and self._log.on:
            self._log.end(number, task, host, self._active, seconds, status)

    def close(self) -> None:
        """The run ended."""
        if self._log is not None:
            self._log.close()

    @property
    def _active(self) -> int:
        return self._made - len(self._free)


# A result as the callback got it: monotonic and wall clock, host, task, its uuid, the host it was delegated to, status, stamp, part, play.
Done = tuple[float, float, str, t.Any, str, str | None, str, stamps.Stamps | None, Part | None, tuple[str, str]]


class Recorder:
    """The timings of this process's run. Its methods are called by one thread at a time (core holds a lock around callbacks)."""

    def __init__(
        self, log_path: str | None, warn: t.Callable[[str], object], labels: bool = False, rotation: Rotation | None = None
    ) -> None:
        """`labels`: the log names the items of loops."""
        self.model = Model()
        self._zero = time.monotonic()
        self._parts: dict[tuple[str, str], Part] = {}
        self._places: dict[tuple[str, str, str], Place] = {}  # by uuid and name of the task, uuid of the play
        self._numbers: dict[tuple[str, str], int] = {}  # of workers, under strategies that are not ours
        self._play = ("", "")
        self._strategy = ""
        self._play_begun = 0.0
        self._play_told = True
        self._task_begun = 0.0
        self._last_done: dict[str, float] = {}
        self._forks = 1
        self._results = 0
        self._uncounted: list[tuple[Place, str, float, float, str, tuple[float | None, ...]]] = []
        self._later: Later | AtOnce = Later(self._take_in, warn, self._flush)
        self._labels = labels
        self._log = TimingLog(LineFile(log_path, warn, rotation=rotation), secrets.token_hex(8)) if log_path else None
        self._lanes = Lanes()
        stamps.enable()

    def playbook(self, playbook: t.Any, core_version: str, forks: int) -> None:
        """A playbook begins; the run is the first one of the command."""
        self._forks = max(1, forks)
        if self._log is not None:
            name = PurePath(compat.playbook_name(playbook)).name
            self._log.run(
                {
                    "started": _utc(time.time()),
                    "playbook": name,
                    "ansible": core_version,
                    "churten": churten.__version__,
                    "forks": forks,
                }
            )

    def play(self, play: t.Any) -> None:
        """A play, or the next batch of one, begins."""
        self._play = (str(play.get_name()), compat.uuid(play))
        self._strategy = str(play.strategy)
        self._play_begun = self._task_begun = time.monotonic()
        self._play_told = False
        self._last_done.clear()
        stamps.at_first(self._tell_play)

    def task(self) -> None:
        """The strategy turns to a task: all hosts if they go in step, else one host."""
        self._task_begun = time.monotonic()

    def start(self, host: t.Any, task: t.Any) -> None:
        """The strategy hands a host's task to a worker."""
        record = stamps.announce(host.name, compat.uuid(task))
        if record is not None and record.engine is None:
            name, now = host.name, time.monotonic()
            in_step = self._strategy.rpartition(".")[2] in _IN_STEP
            if record.slot is None:
                record.eligible = self._task_begun if in_step else self._last_done.get(name, self._play_begun)
                record.slot = now
            if not self._play_told and stamps.slot_limit() is None:
                self._lanes.play(self._forks)
            number = self._numbers[name, compat.uuid(task)] = self._lanes.begin(task, name)
            if record.worker is None:
                record.worker = number
        self._tell_play()

    def _tell_play(self) -> None:
        """At the play's first start."""
        if self._play_told:
            return
        self._play_told = True
        slots = stamps.slot_limit() or self._forks
        self.model.slots = max(self.model.slots, slots)
        if self._log is not None:
            self._later.put(
                {
                    "play": self._play[0],
                    "play_uuid": self._play[1],
                    "started": _utc(time.time() - (time.monotonic() - self._play_begun)),
                    "at": self._play_begun - self._zero,
                    "strategy": self._strategy,
                    "slots": slots,
                }
            )

    def item(self, result: t.Any, status: str) -> None:
        """One item of a loop ended."""
        part = self._ended(result, status, True)
        part.delegated.add(compat.delegated_to(result))
        part.items += 1
        part.attempts += part.attempt
        part.attempt = 1

    def retry(self, result: t.Any) -> None:
        """An attempt ended, another one follows."""
        self._ended(result, "retried", compat.is_loop(compat.task(result))).attempt += 1

    def _ended(self, result: t.Any, status: str, looped: bool) -> Part:
        """Log the part that ended; answers where the task has got to, for the caller to step on."""
        now = time.monotonic()
        host, uuid = compat.host_name(result), compat.uuid(compat.task(result))
        part = self._parts.get((host, uuid))
        stamp = stamps.look(host, uuid)
        if part is None:
            part = self._parts[host, uuid] = Part(_begin(stamp, now))
        if self._log is not None:
            to = compat.delegated_to(result)
            label = compat.item_label(result) if looped and self._labels and status != "retried" else None
            self._log_part(part, stamp, host, uuid, status, now, part.items if looped else None, label, to)
        part.end = now
        return part

    def _log_part(
        self,
        part: Part,
        stamp: stamps.Stamps | None,
        host: str,
        uuid: str,
        status: str,
        now: float,
        number: int | None,
        label: str | None,
        delegated: str | None,
    ) -> None:
        connect = remote = None
        if stamp is not None and stamp.phased:
            part.spans, connect, remote = stamp.since(part.spans)
        self._later.put(
            Item(
                play_uuid=self._play[1],
                uuid=uuid,
                host=host,
                item=number,
                label=label[:_LABEL_MAX] if label is not None else None,
                attempt=part.attempt,
                status=status,
                at=part.end - self._zero,
                seconds=now - part.end,
                connect=connect,
                remote=remote,
                delegated=delegated,
            )
        )

    def done(self, result: t.Any, status: str) -> None:
        """The result of a host's task was handled. Here only what must be done at once: `_take_in` does the rest."""
        now = time.monotonic()
        host, task = compat.host_and_task(result)
        uuid, delegated = compat.uuid(task), None if task.delegate_to is None else compat.delegated_to(result)
        key = host, uuid
        stamp = stamps.take(*key) or stamps.taken(*key)
        part = self._parts.pop(key, None) if self._parts else None
        if stamp is None or stamp.engine is None:
            self._last_done[host] = now
            if (number := self._numbers.pop(key, None)) is not None:
                self._lanes.end(number, str(task.get_name()), host, now - _begin(stamp, now), status)
        if part is not None and not part.items and part.attempt > 1 and self._log is not None:
            self._log_part(part, stamp, *key, status, now, None, None, delegated)
        self._results += 1
        self._later.put((now, time.time(), host, task, uuid, delegated, status, stamp, part, self._play))

    def finish(self) -> None:
        """The run ended."""
        self._later.flush()
        self._count()
        self.model.total_s = time.monotonic() - self._zero
        self._lanes.close()
        if self._log is not None:
            self._log.end(self.model.total_s, self._results)

    def _flush(self) -> None:
        if self._log is not None:
            self._log.flush()

    def _take_in(self, thing: t.Any) -> None:
        """Count and log what was kept."""
        if type(thing) is tuple:
            self._take_result(thing)
            if len(self._uncounted) >= _BLOCK:
                self._count()
        elif self._log is not None:
            if isinstance(thing, Item):
                self._log.item(thing)
            else:
                self._log.play(thing)

    def _count(self) -> None:
        """Bring what is not counted into the model: a block at a time, while the code for it is at hand."""
        for one in self._uncounted:
            self.model.count(*one)
        self._uncounted.clear()

    def _take_result(self, done: Done) -> None:
        now, clock, host, task, uuid, delegated, status, stamp, part, play = done
        begin = now if stamp is None or stamp.slot is None else stamp.slot
        at, seconds = begin - self._zero, now - begin
        place = self._place_of(task, uuid, play)
        self._uncounted.append((place, host, at, seconds, status, (stamp or _NO_STAMP).phases(seconds)))
        if self._log is None:
            return
        items, attempts = None, 1
        if part is not None:
            attempts = part.attempts if part.items else part.attempt
            if part.items:  # its result has the template as it was written: each item has its own host
                items, delegated = part.items, _the_one(part.delegated)
        log = self._log.unstamped if stamp is None else self._log.stamped
        log(place, stamp or _NO_STAMP, host, status, items, _utc(clock - seconds), attempts, delegated, at, seconds, now, self._zero)

    def _place_of(self, task: t.Any, uuid: str, play: tuple[str, str]) -> Place:
        key = uuid, str(task.get_name()), play[1]
        place = self._places.get(key)
        if place is None:
            if len(self._places) >= _PLACES:
                self._places.clear()
            place = self._places[key] = Place(play, key[1], uuid, str(task.action), compat.role_name(task), str(task.get_path() or "") or None)
        return place


def _begin(stamp: stamps.Stamps | None, now: float) -> float:
    return stamp.slot if stamp is not None and stamp.slot is not None else now


def _the_one(found: set[str | None]) -> str | None:
    return next(iter(found)) if len(found) == 1 else None


_second = (0, "")


def _utc(when: float) -> str:
    global _second
    seconds, millis = divmod(round(when * 1000), 1000)
    if _second[0] != seconds:
        _second = (seconds, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)))
    return f"{_second[1]}.{millis:03}Z"
