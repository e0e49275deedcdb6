"""Figures of one run: tasks, hosts and roles, who waited, and how many ran when."""

from __future__ import annotations

import array
import dataclasses
import math
import statistics
import typing as t

from .columns import UNKNOWN, Columns


@dataclasses.dataclass(slots=True)
class Group:
    """What is shown of a task, host or role. Seconds; quantiles are by nearest rank: each is a time that really occurred."""

    name: str
    count: int
    sum_s: float
    p50_s: float
    p95_s: float
    max_s: float
    max_at: str  # the host, or for a host the task, that took longest
    span_s: float  # wall time from the first start to the last end
    path: str | None = None
    play: str = ""


def quantile(ordered: t.Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed (nearest rank). ValueError without values."""
    if not ordered:
        raise ValueError("no values")
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def top(columns: Columns, by: str) -> list[Group]:
    """Groups by "tasks", "hosts", "roles" or "names", the largest sum first.

    Tasks outside of roles count for their play. By names, tasks of one name in a play count together.
    """
    tasks, hosts, plays = columns.tasks, columns.hosts, columns.plays
    if by == "tasks":
        keys: t.Sequence[int] = columns.row
        names = [task.name for task in tasks]
    elif by == "hosts":
        keys, names = columns.host, hosts
    elif by == "roles":
        named: dict[str, int] = {}
        of_row = [named.setdefault(task.role or f"(play: {plays[task.play]})", len(named)) for task in tasks]
        keys, names = array.array("I", (of_row[row] for row in columns.row)), list(named)
    elif by == "names":
        pairs: dict[tuple[str, str], int] = {}
        of_row = [pairs.setdefault((plays[task.play], task.name), len(pairs)) for task in tasks]
        keys, names = array.array("I", (of_row[row] for row in columns.row)), [name for _, name in pairs]
    else:
        raise ValueError(by)
    times = [array.array("d") for _ in names]
    first, last = [math.inf] * len(names), [-math.inf] * len(names)
    longest = [-1] * len(names)
    for i, key in enumerate(keys):
        at, end = columns.at[i], columns.end[i]
        times[key].append(end - at)
        if longest[key] < 0 or end - at > columns.end[longest[key]] - columns.at[longest[key]]:
            longest[key] = i
        first[key] = min(first[key], at)
        last[key] = max(last[key], end)
    groups = []
    for key, name in enumerate(names):
        if not times[key]:
            continue
        ordered = array.array("d", sorted(times[key]))
        where = longest[key]
        at_most = tasks[columns.row[where]].name if by == "hosts" else hosts[columns.host[where]]
        groups.append(
            Group(
                name,
                len(ordered),
                math.fsum(ordered),
                quantile(ordered, 0.5),
                quantile(ordered, 0.95),
                ordered[-1],
                at_most,
                last[key] - first[key],
                tasks[key].path if by == "tasks" else None,
                plays[tasks[columns.row[where]].play] if by in ("tasks", "names") else "",
            )
        )
        times[key] = array.array("d")
    return sorted(groups, key=lambda group: -group.sum_s)


@dataclasses.dataclass(slots=True)
class Host:
    """How a host spent the run. `busy + queue + idle + after` and the time before its first task are the wall time."""

    name: str
    count: int
    failed: int  # failed and unreachable
    busy_s: float  # its tasks
    queue_s: float | None  # ready, no slot free; None: not measured
    idle_s: float  # between two tasks: waiting for other hosts, or for the controller
    after_s: float  # nothing left to do while other hosts went on
    skew: float  # busy time by the median host's
    longest_s: float
    longest: str


def hosts(columns: Columns) -> list[Host]:
    """All hosts, the busiest first."""
    count = len(columns.rows.hosts)
    busy, queue = [0.0] * count, [0.0] * count
    measured = [False] * count
    number, failed = [0] * count, [0] * count
    first, last = [math.inf] * count, [0.0] * count
    longest = [-1] * count
    for i, host in enumerate(columns.host):
        at, end = columns.at[i], columns.end[i]
        number[host] += 1
        busy[host] += end - at
        waited = columns.queue[i]
        if waited != UNKNOWN:
            measured[host] = True
            queue[host] += waited
            at -= waited
        failed[host] += columns.status[i] in (3, 5)
        first[host] = min(first[host], at)
        last[host] = max(last[host], end)
        if longest[host] < 0 or end - columns.at[i] > columns.end[longest[host]] - columns.at[longest[host]]:
            longest[host] = i
    median = statistics.median(busy) if busy else 0.0
    total = columns.end[-1] if len(columns) else 0.0
    found = [
        Host(
            name,
            number[host],
            failed[host],
            busy[host],
            queue[host] if measured[host] else None,
            max(0.0, last[host] - first[host] - busy[host] - queue[host]),
            max(0.0, total - last[host]),
            busy[host] / median if median > 0 else 1.0,
            columns.end[longest[host]] - columns.at[longest[host]],
            columns.tasks[columns.row[longest[host]]].name,
        )
        for name, host in columns.rows.hosts.items()
        if number[host]
    ]
    return sorted(found, key=lambda host: -host.busy_s)


@dataclasses.dataclass(slots=True)
class Interval:
    """A piece of the run."""

    at_s: float
    seconds: float
    ended: int  # tasks that ended in it
    active: float  # tasks running, the mean over it


def throughput(columns: Columns, width_s: float) -> list[Interval]:
    """The run in pieces of `width_s` seconds; at most 100,000 of them."""
    total = columns.wall_s
    pieces = max(1, math.ceil(total / width_s - 1e-9))
    if pieces > 100_000:
        raise ValueError(f"{pieces} intervals of {width_s:g} s: more than 100000")
    ended = [0] * pieces
    # Work in each piece: full pieces through differences, the ends of a task by themselves.
    part, steps = [0.0] * pieces, [0] * (pieces + 1)
    for at, end in zip(columns.at, columns.end, strict=True):
        one, two = min(pieces - 1, int(max(0.0, at) / width_s)), min(pieces - 1, int(end / width_s))
        ended[two] += 1
        if one == two:
            part[one] += end - at
        else:
            part[one] += (one + 1) * width_s - at
            part[two] += end - two * width_s
            steps[one + 1] += 1
            steps[two] -= 1
    found, running = [], 0
    for piece in range(pieces):
        running += steps[piece]
        seconds = min(width_s, total - piece * width_s) or width_s
        found.append(Interval(piece * width_s, seconds, ended[piece], running + max(0.0, part[piece]) / seconds))
    return found


def efficiency(columns: Columns) -> float | None:
    """Share of the slots' time in which a task ran: host-seconds / (slots x wall time). None without known slots."""
    if not columns.slots or columns.wall_s <= 0:
        return None
    return columns.busy_s / (columns.slots * columns.wall_s)


def active(columns: Columns) -> t.Iterator[tuple[float, int]]:
    """(second, tasks running from then on), one pair per change, to the millisecond (coarser in a run of over 17 minutes)."""
    bins = 1 << 20
    width = max(0.001, columns.wall_s / (bins - 2))
    change = array.array("i", bytes(4 * bins))
    for at, end in zip(columns.at, columns.end, strict=True):
        change[int(max(0.0, at) / width)] += 1
        # A little earlier: a task that begins when another ends does not run beside it.
        change[int(max(at, 0.0, end - 1e-5) / width)] -= 1
    running = 0
    yield 0.0, 0
    for number, step in enumerate(change):  # changes within one bin cancel out
        if step:
            running += step
            yield number * width, running


def peak(columns: Columns) -> tuple[int, int]:
    """How many tasks ran at once at most, and the number of the result that began last before that moment (-1 in an empty run)."""
    when, most = max(active(columns), key=lambda change: change[1])
    running = [i for i in range(len(columns)) if columns.at[i] <= when + 0.001 and columns.end[i] >= when]
    return most, max(running, key=columns.at.__getitem__, default=-1)
