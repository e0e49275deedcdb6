"""The recaps: profile_tasks' look, with figures that are right when hosts run independently.

TASKS RECAP *******************************************************************
Saturday 21 November 2026  10:11:12 +0000  0:00:05.880 ************************
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

SORT_KEYS: dict[str, t.Callable[[Figures], t.Any]] = {
    "sum": lambda row: row.sum_s,
    "span": lambda row: row.span_s,
    "max": lambda row: row.max_s,
    "p50": lambda row: (row.percentile(50), row.sum_s),  # rows without percentiles: by their sum
    "p95": lambda row: (row.percentile(95), row.sum_s),
    "count": lambda row: row.count,
    "name": lambda row: row.name,
}
_HOST_MAX = 16
_NAME_MIN = 24
_WIDE = 100  # columns from which percentiles are shown

# title, width, what it shows
Column = tuple[str, int, t.Callable[[Figures], str]]


@dataclasses.dataclass(slots=True)
class Look:
    """What a recap shows."""

    sort_order: str = "descending"  # by `sort_by`; "ascending", or "none": in the order tasks ended first
    limit: int | None = 20  # None is all
    min_seconds: float = 0.0  # tasks with a smaller sum are not shown
    paths: bool = False  # a second line with file and line of the task
    columns: int = 79
    sort_by: str = "sum"  # a key of SORT_KEYS


class Line(t.NamedTuple):
    """A line, and the worst status of what it speaks of (None: nothing to colour)."""

    text: str
    status: str | None = None


def lines(model: Model, look: Look, with_date: bool = True) -> t.Iterator[str]:
    """The recap of tasks without its title, line by line. `with_date` begins with now and the run's wall time, as profile_tasks does."""
    return (line.text for line in task_lines(model, look, with_date))


def task_lines(model: Model, look: Look, with_date: bool = True) -> t.Iterator[Line]:
    """`lines`, with statuses."""
    if with_date:
        yield Line(_stars(f"{time.strftime('%A %d %B %Y  %H:%M:%S %z')}  {_clock(model.wall_s)} ", look.columns))
    yield Line("=" * look.columns)
    shown = _chosen(model.rows, look)
    host_width = max((len(row.max_host) for row in shown), default=0)
    table: list[Column] = [
        ("count", 6, lambda row: str(row.count)),
        ("sum", 11, lambda row: _seconds(row.sum_s)),
        ("span", 11, lambda row: _seconds(row.span_s)),
        *(_PERCENTILES if look.columns >= _WIDE else ()),
        ("max", 12, lambda row: _seconds(row.max_s)),
    ]
    width = _name_width(table, look, min(host_width, _HOST_MAX) + 2)
    yield Line(_head("task", table, width) + "  host")
    for row in shown:
        yield Line(f"{_row(row, table, width)}  {one_line(row.max_host)}", row.status)
        if look.paths and row.path:
            yield Line(f"{row.path + ' ':-<{look.columns}}")
    if len(shown) < len(model.rows):
        yield Line(f"({len(model.rows) - len(shown)} of {len(model.rows)} tasks not shown)")
    yield Line("-" * look.columns)
    for play in model.plays.values():
        yield Line(f"{_row(play, table, width, 'play: ')}  {one_line(play.max_host)}", play.status)
    if model.phased_s > 0:
        share = ", ".join(f"{name} {model.phases[name]:.2f}s" for name in ("connect", "remote", "controller"))
        yield Line(f"host time {model.phased_s:.2f}s: {share}; waited for a slot {model.phases['queue']:.2f}s")
    if model.slots:
        yield Line(f"slots: on average {model.busy:.1f} of {model.slots} busy ({100 * model.busy / model.slots:.0f} %)")
    yield Line(f"{'total ':-<{width + 6}} {model.wall_s:>9.2f}s")


def role_lines(model: Model, look: Look) -> t.Iterator[Line]:
    """A row per role, with its share of all host-seconds."""
    total = sum(row.sum_s for row in model.roles.values()) or 1.0
    table: list[Column] = [
        ("count", 6, lambda row: str(row.count)),
        ("hosts", 7, lambda row: str(len(row.hosts or ()))),
        ("sum", 11, lambda row: _seconds(row.sum_s)),
        ("share", 8, lambda row: f"{100 * row.sum_s / total:.0f} %"),
        ("span", 11, lambda row: _seconds(row.span_s)),
        ("max", 12, lambda row: _seconds(row.max_s)),
    ]
    yield from _plain("role", list(model.roles.values()), table, look)


def host_lines(model: Model, look: Look) -> t.Iterator[Line]:
    """A row per host: how long it was busy, with what, and how long nothing ran for it."""
    table: list[Column] = [
        ("count", 6, lambda row: str(row.count)),
        ("busy", 11, lambda row: _seconds(row.sum_s)),
        ("idle", 11, lambda row: _seconds(max(0.0, model.wall_s - row.sum_s))),
        *((name, max(9, len(name) + 2), _phase(name)) for name in ("queue", "connect", "remote", "controller")),
    ]
    if look.columns < _WIDE:
        del table[3:]
    yield from _plain("host", list(model.hosts.values()), table, look)


def title(columns: int) -> str:
    """The banner line, for those who have no Display."""
    return _stars("TASKS RECAP ", columns)


def _plain(what: str, rows: list[Figures], table: list[Column], look: Look) -> t.Iterator[Line]:
    width = _name_width(table, look, 0)
    yield Line(_head(what, table, width))
    shown = _chosen(rows, look)
    for row in shown:
        yield Line(_row(row, table, width), row.status)
    if len(shown) < len(rows):
        yield Line(f"({len(rows) - len(shown)} of {len(rows)} {what}s not shown)")


def _chosen(all_rows: list[Figures], look: Look) -> list[Figures]:
    rows = [row for row in all_rows if row.sum_s >= look.min_seconds]
    if look.sort_order != "none":
        rows.sort(key=SORT_KEYS[look.sort_by], reverse=look.sort_order == "descending")
    return rows if look.limit is None else rows[: max(0, look.limit)]


def _name_width(table: list[Column], look: Look, beside: int) -> int:
    return max(_NAME_MIN, look.columns - sum(width for _, width, _ in table) - beside)


def _head(what: str, table: list[Column], width: int) -> str:
    return f"{what:<{width}}" + "".join(f"{name:>{space}}" for name, space, _ in table)


def _row(row: Figures, table: list[Column], width: int, prefix: str = "") -> str:
    first, *rest = [f"{show(row):>{space}}" for _, space, show in table]
    # The name's dashes lead up to the first figure.
    return f"{prefix + one_line(row.name) + ' ':-<{width}}{' ' + first.lstrip():->{len(first)}}{''.join(rest)}"


def _phase(name: str) -> t.Callable[[Figures], str]:
    def show(row: Figures) -> str:
        seconds = (row.phases or {}).get(name)
        return "-" if seconds is None else _seconds(seconds)

    return show


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f}s"


def _percentile(row: Figures, percent: float) -> str:
    return "-" if row.times is None else _seconds(row.percentile(percent))


def _stars(text: str, columns: int) -> str:
    return text + "*" * max(3, columns - len(text))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(max(0.0, seconds), 60)
    return f"{int(minutes // 60)}:{int(minutes % 60):02}:{rest:06.3f}"


_PERCENTILES: tuple[Column, ...] = (
    ("p50", 10, lambda row: _percentile(row, 50)),
    ("p95", 10, lambda row: _percentile(row, 95)),
)
