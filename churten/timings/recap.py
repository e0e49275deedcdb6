"""The recap: profile_tasks' look, with figures that are right when hosts run independently.

TASKS RECAP *******************************************************************
Saturday 21 November 2026  10:11:12 +0000                    0:00:05.880 ******
===============================================================================
task                               count        sum       span        max  host
nginx : install package ------------- 20     12.31s      3.20s      1.02s  web-07
"""

from __future__ import annotations

import dataclasses
import time
import typing as t

from .model import Figures, Model
from .workers import one_line

_FIGURES = 40  # columns of count, sum, span and max


@dataclasses.dataclass(slots=True)
class Look:
    """What the recap shows."""

    sort_order: str = "descending"  # by sum; "ascending", or "none": in the order tasks ended first
    limit: int | None = 20  # None is all
    min_seconds: float = 0.0  # tasks with a smaller sum are not shown
    paths: bool = False  # a second line with file and line of the task
    columns: int = 79


def lines(model: Model, look: Look, with_date: bool = True) -> t.Iterator[str]:
    """The recap without its title, line by line. `with_date` begins with now and the run's wall time, as profile_tasks does."""
    if with_date:
        yield _stars(f"{time.strftime('%A %d %B %Y  %H:%M:%S %z')}  {_clock(model.wall_s)} ", look.columns)
    yield "=" * look.columns
    shown = _chosen(model, look)
    hosts = max((len(row.max_host) for row in shown), default=0)
    width = max(24, look.columns - _FIGURES - 2 - min(hosts, 16))
    yield f"{'task':<{width}}{'count':>6}{'sum':>11}{'span':>11}{'max':>12}  host"
    for row in shown:
        yield _row(row, width)
        if look.paths and row.path:
            yield f"{row.path + ' ':-<{look.columns}}"
    if len(shown) < len(model.rows):
        yield f"({len(model.rows) - len(shown)} of {len(model.rows)} tasks not shown)"
    yield "-" * look.columns
    for play in model.plays.values():
        yield _row(dataclasses.replace(play, name="play: " + play.name), width)
    if model.phased_s > 0:
        share = ", ".join(f"{name} {model.phases[name]:.2f}s" for name in ("connect", "remote", "controller"))
        yield f"host time {model.phased_s:.2f}s: {share}; waited for a slot {model.phases['queue']:.2f}s"
    yield f"{'total ':-<{width + 6}} {model.wall_s:>9.2f}s"


def title(columns: int) -> str:
    """The banner line, for those who have no Display."""
    return _stars("TASKS RECAP ", columns)


def _chosen(model: Model, look: Look) -> list[Figures]:
    rows = [row for row in model.rows if row.sum_s >= look.min_seconds]
    if look.sort_order != "none":
        rows.sort(key=lambda row: row.sum_s, reverse=look.sort_order == "descending")
    return rows if look.limit is None else rows[: max(0, look.limit)]


def _row(row: Figures, width: int) -> str:
    name = one_line(row.name) + " "
    return f"{name:-<{width}}{' ' + str(row.count):->6}{row.sum_s:>10.2f}s{row.span_s:>10.2f}s{row.max_s:>11.2f}s  {one_line(row.max_host)}"


def _stars(text: str, columns: int) -> str:
    return text + "*" * max(3, columns - len(text))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(max(0.0, seconds), 60)
    return f"{int(minutes // 60)}:{int(minutes % 60):02}:{rest:06.3f}"
