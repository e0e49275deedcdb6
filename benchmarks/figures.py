"""What is computed from runs beside what the clock shows: each figure by its name, with a title and its unit."""

from __future__ import annotations

import dataclasses
import json
import statistics
import typing as t
from collections.abc import Callable
from pathlib import Path

if t.TYPE_CHECKING:
    from harness import Measure
    from scenario import Scenario


@dataclasses.dataclass
class Seen:
    """One run of a contender and all that was noted about it."""

    scenario: Scenario
    measure: Measure
    parts: dict[str, Measure] = dataclasses.field(default_factory=dict)
    clock: Path | None = None  # what callbacks/bench_clock.py wrote
    logins: list[int] = dataclasses.field(default_factory=list)  # per host, during the run
    login_at: float = 0.0  # CLOCK_MONOTONIC when the first host had let the run in; 0: nobody looked


@dataclasses.dataclass
class Figure:
    title: str
    unit: str
    compute: Callable[[Seen], float | None]  # None: cannot be said of this run


def _work(seen: Seen) -> int:
    return seen.scenario.hosts * seen.scenario.tasks


def _controller_ms(seen: Seen) -> float | None:
    work = _work(seen)
    return (seen.measure.controller_cpu + seen.measure.background_cpu) / work * 1000 if work else None


def _wall_ms(seen: Seen) -> float | None:
    return seen.measure.wall / _work(seen) * 1000 if _work(seen) else None


def _idle(seen: Seen) -> float | None:
    """CPU of the controller and all it started, in percent of a core, between the two moments of the scenario."""
    begin, end = seen.scenario.idle
    inside = [(at, cpu) for at, cpu in seen.measure.curve if begin <= at <= end]
    if len(inside) < 2 or inside[-1][0] - inside[0][0] < (end - begin) / 2:
        return None
    return max(0.0, inside[-1][1] - inside[0][1]) / (inside[-1][0] - inside[0][0]) * 100


def _cost_ratio(seen: Seen) -> float | None:
    """Wall time per host-task of all hosts divided by that of the first few, each less an empty play over the same hosts."""
    if not {"few", "empty", "few_empty"} <= set(seen.parts):
        return None
    tasks = seen.scenario.tasks
    few = seen.scenario.parts["few"].limit
    all_ = (seen.measure.wall - seen.parts["empty"].wall) / (seen.scenario.hosts * tasks)
    small = (seen.parts["few"].wall - seen.parts["few_empty"].wall) / (few * tasks)
    return all_ / small if small > 0 else None


def _logins(seen: Seen) -> float | None:
    return float(max(seen.logins)) if seen.logins else None


# ---- round trips -----------------------------------------------------------------------------------------------------


def _steps(seen: Seen) -> list[tuple[str, float]]:
    """(task, seconds) of a run over one host: from the result before (or the play's start) to its own."""
    if seen.clock is None or not seen.clock.exists():
        return []
    lines = [json.loads(line) for line in seen.clock.read_text().splitlines()]
    steps, before = [], None
    for line in lines:
        if before is not None and line["ev"] == "result":
            steps.append((line["task"], line["at"] - before))
        before = line["at"]
    return steps


def _median_rtts(kind: str) -> Callable[[Seen], float | None]:
    """The median over the tasks whose name begins with `kind`, without the run's first task, in round trips."""

    def compute(seen: Seen) -> float | None:
        found = [seconds for task, seconds in _steps(seen)[1:] if task.startswith(kind)]
        return statistics.median(found) * 1000 / seen.scenario.world.rtt_ms if found else None

    return compute


def _first_rtts(seen: Seen) -> float | None:
    """From the start of the play to the first result."""
    steps = _steps(seen)
    return steps[0][1] * 1000 / seen.scenario.world.rtt_ms if steps else None


def _after_login_rtts(seen: Seen) -> float | None:
    """From the moment the controller learns that it is let in (half a round trip after sshd's log line) to the first result."""
    if seen.clock is None or not seen.clock.exists() or not seen.login_at:
        return None
    results = [line for line in map(json.loads, seen.clock.read_text().splitlines()) if line["ev"] == "result"]
    return (results[0]["at"] - seen.login_at) * 1000 / seen.scenario.world.rtt_ms - 0.5 if results else None


FIGURES = {
    "wall": Figure("wall", "s", lambda seen: seen.measure.wall),
    "wall_ms": Figure("wall per host-task", "ms", _wall_ms),
    "controller_cpu": Figure("controller CPU", "s", lambda seen: seen.measure.controller_cpu),
    "background_cpu": Figure("background CPU", "s", lambda seen: seen.measure.background_cpu),
    "controller_ms": Figure("controller CPU per host-task", "ms", _controller_ms),
    "peak_mb": Figure("peak PSS", "MB", lambda seen: seen.measure.peak_mb),
    "idle_percent": Figure("CPU while hosts work", "% of a core", _idle),
    "cost_ratio": Figure("cost per host-task against that of the few hosts", "x", _cost_ratio),
    "logins": Figure("logins per host", "", _logins),
    "task_rtts": Figure("per module task", "RTT", _median_rtts("Command")),
    "copy_rtts": Figure("per changed copy", "RTT", _median_rtts("Copy")),
    "first_rtts": Figure("play's start to first result", "RTT", _first_rtts),
    "after_login_rtts": Figure("login to first result", "RTT", _after_login_rtts),
}


def compute(seen: Seen) -> dict[str, float]:
    """Every figure that can be said of a run."""
    found = {}
    for name, figure in FIGURES.items():
        needs_idle = name == "idle_percent" and not seen.scenario.idle
        needs_rtt = name.endswith("_rtts") and not seen.scenario.world.rtt_ms
        value = None if needs_idle or needs_rtt else figure.compute(seen)
        if value is not None:
            found[name] = value
    return found
