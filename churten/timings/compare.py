"""Runs against each other: two of them task by task, or the newest against those before it.

Tasks of different runs are the same if play and name are: line numbers and uuids change. Several tasks of one name in a play count together.
"""

from __future__ import annotations

import dataclasses
import statistics
import typing as t

from .model import Result
from .reading import Run
from .workers import one_line

Key = tuple[str, str]  # play, task


@dataclasses.dataclass(slots=True)
class Total:
    """All results of a task in one run, without those that did nothing (skipped) or reached nobody."""

    count: int = 0
    sum_s: float = 0.0
    max_s: float = 0.0
    max_host: str = ""
    first_s: float = 0.0
    last_s: float = 0.0

    @property
    def mean_s(self) -> float:
        """Seconds per result."""
        return self.sum_s / self.count if self.count else 0.0

    @property
    def span_s(self) -> float:
        """Wall time from the first start to the last end."""
        return self.last_s - self.first_s

    def add(self, result: Result) -> None:
        """Count one result."""
        end = result.at + result.seconds
        self.first_s = min(self.first_s, result.at) if self.count else result.at
        self.last_s = max(self.last_s, end) if self.count else end
        self.count += 1
        self.sum_s += result.seconds
        if result.seconds > self.max_s or not self.max_host:
            self.max_s, self.max_host = result.seconds, result.host


class Totals:
    """A run's tasks, added up."""

    def __init__(self, run: Run, results: t.Iterable[Result]) -> None:
        self.run = run
        self.tasks: dict[Key, Total] = {}
        self.hosts: dict[str, float] = {}  # host-seconds
        self.slots = run.slots or 0
        self.last_s = 0.0
        for result in results:
            self.hosts[result.host] = self.hosts.get(result.host, 0.0) + result.seconds
            self.last_s = max(self.last_s, result.at + result.seconds)
            if result.worker is not None and not run.slots:
                self.slots = max(self.slots, result.worker + 1)
            if result.status not in ("skipped", "unreachable"):
                key = result.play, result.task
                total = self.tasks.get(key)
                if total is None:
                    total = self.tasks[key] = Total()
                total.add(result)

    @property
    def wall_s(self) -> float:
        """Wall time of the run, or of what there is of it."""
        return max(self.last_s, self.run.seconds or 0.0)


def gain(before: float, after: float) -> float | None:
    """What became of the time: (before - after) / before; negative when it grew. None if there was none before."""
    return (before - after) / before if before > 0 else None


@dataclasses.dataclass(slots=True)
class Delta:
    """One task in two runs; None where it did not run."""

    play: str
    task: str
    a: Total | None
    b: Total | None

    @property
    def delta_s(self) -> float:
        """Host-seconds more in the second run."""
        return (self.b.sum_s if self.b else 0.0) - (self.a.sum_s if self.a else 0.0)

    @property
    def gain(self) -> float | None:
        """(a - b) / a of the host-seconds, where it ran in both."""
        return gain(self.a.sum_s, self.b.sum_s) if self.a and self.b else None


def compare(a: Totals, b: Totals) -> list[Delta]:
    """Every task of either run, what grew most first."""
    keys = list(a.tasks) + [key for key in b.tasks if key not in a.tasks]
    return sorted((Delta(*key, a.tasks.get(key), b.tasks.get(key)) for key in keys), key=lambda delta: -delta.delta_s)


def slower(delta: Delta, share: float, seconds: float) -> bool:
    """Did the mean of this task grow by more than `share` (0.1 is 10 %) and `seconds`?"""
    if not delta.a or not delta.b:
        return False
    grown = delta.b.mean_s - delta.a.mean_s
    return grown > seconds and grown > share * delta.a.mean_s


@dataclasses.dataclass(slots=True)
class Trend:
    """A task over runs, oldest first; None where it did not run."""

    play: str
    task: str
    means_s: list[float | None]
    median_s: float | None  # of the runs before the newest
    newest_s: float | None
    earlier: int  # runs before the newest in which it ran
    slow: bool

    @property
    def factor(self) -> float | None:
        """The newest by the median before."""
        return self.newest_s / self.median_s if self.newest_s is not None and self.median_s else None


@dataclasses.dataclass(slots=True)
class Limits:
    """When a task counts as slower than it was."""

    factor: float = 3.0
    seconds: float = 0.5  # its mean must be at least this now
    earlier: int = 3  # and it must have run this often before


def trend(runs: t.Sequence[Totals], limits: Limits) -> list[Trend]:
    """The tasks of the newest run, by how much slower they became. `runs`: oldest first, at least one."""
    found = []
    for key, newest in runs[-1].tasks.items():
        means = [run.tasks[key].mean_s if key in run.tasks else None for run in runs]
        before = [mean for mean in means[:-1] if mean is not None]
        median = statistics.median(before) if before else None
        enough = median is not None and len(before) >= limits.earlier
        slow = enough and newest.mean_s >= max(limits.seconds, limits.factor * t.cast(float, median))
        found.append(Trend(*key, means, median, newest.mean_s, len(before), slow))
    return sorted(found, key=lambda task: (not task.slow, -(task.factor or 0.0)))


@dataclasses.dataclass(slots=True)
class Peak:
    """The moment of a run when the most tasks ran: how many, and the last of them to begin."""

    active: int
    worker: int | None
    task: str
    host: str


def orchestrator(a: Totals, b: Totals, peak: Peak, environment: str | None, action: str | None, date: str) -> t.Iterator[str]:
    """The comparison in the form of a worker-pool orchestrator's test report (Markdown): `a` ran with fewer workers, `b` with more."""
    won = gain(a.wall_s, b.wall_s)
    slots = b.slots or peak.active
    active = min(peak.active, slots)  # a slot may be free, and taken again, before its last result is handled
    parallel = slots > 1
    worker = 0 if peak.worker is None else peak.worker
    yield f"### Test Parallel Execution - {date}"
    yield ""
    yield "**Configuration**:"
    yield f"- Environment: {_plain(environment or b.run.fact('playbook') or '-')}"
    yield f"- Servers: {len(b.hosts)}"
    yield f"- Workers: {slots}"
    yield f"- Action: {_plain(action or b.run.fact('playbook') or '-')}"
    yield ""
    yield "**Résultats**:"
    yield f"- Mode: {'Parallel ✅' if parallel else 'Sequential ❌'}"
    yield f"- Temps total: {duration(b.wall_s)} (avant: {duration(a.wall_s)} avec {a.slots or '?'} workers)"
    yield f"- Temps par serveur: {duration(statistics.mean(b.hosts.values()) if b.hosts else 0.0)}"
    yield f"- Workers actifs: {active}/{slots}"
    yield f"- Gain vs séquentiel: {'-' if won is None else f'{100 * won:.0f}%'}"
    yield ""
    yield "**Logs clés**:"
    yield "```"
    yield f"[churten] Running in {f'PARALLEL mode with {slots} workers' if parallel else 'SEQUENTIAL mode'}"
    task, host = (one_line(text).replace("`", "'") for text in (peak.task, peak.host))
    yield f"[churten] Worker {worker} processing: {task} for server {host} (active: {active}/{slots})"
    yield "```"
    yield ""
    worked = parallel and won is not None and won > 0
    yield f"**Conclusion**: {'Exécution parallèle fonctionnelle ✅' if worked else 'Aucun gain ❌'}"


def duration(seconds: float) -> str:
    """12.3 s, 5 min 07 s, 2 h 03 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def _plain(text: str) -> str:
    """One line without what Markdown would take for a mark."""
    return "".join("\\" + char if char in "`*_[]<>#|\\" else char for char in one_line(text))
