"""The critical path: the chain of host-tasks that determined the wall time of a run.

It is found backwards. The last result to end comes last in the chain; before each link comes the result that it had to wait for:

  slot     it waited for a worker slot: the result that had its slot before (without slot numbers, the last one to end before it started). Where
           nobody measured the wait it is inferred: more hosts than slots, and the slot was taken when the host was ready
  barrier  under linear a task begins when the one before it has ended on all hosts: the last result of that task
  host     under free and host_pinned a host waits only for itself: its own task before
  play     its host's first task in a play (or batch of `serial`): the last result of what ran before
  start    nothing ran before

Where a link's cause ended before the link began, the time between is `gap`: the controller's own work (loading files, templating names, callbacks), or a wait
that no log shows. So `start gap + (gap + seconds) of all links + end` is the wall time, to the rounding.

Whether a play was in lock-step says its strategy (linear and debug are). Where the log does not name it, or it is another one, it is seen: in lock-step
no host begins a task before all have ended the one before.
"""

from __future__ import annotations

import array
import bisect
import dataclasses
import math

from .columns import UNKNOWN, Columns

KNOWN = {"linear": True, "debug": True, "free": False, "host_pinned": False}
TOLERANCE = 0.001  # seconds: rounding, and what a log of wall-clock times may be off


@dataclasses.dataclass(slots=True)
class Link:
    """One host-task of the chain."""

    number: int  # in Columns
    cause: str  # slot, barrier, host, play or start: why it did not begin before
    gap_s: float  # between the end of the link before and its start
    at_s: float
    seconds: float  # as far as the chain goes through it: up to where the next link could begin


@dataclasses.dataclass(slots=True)
class Chain:
    """The links, first to last, and what they add up to."""

    links: list[Link]
    wall_s: float
    end_s: float  # from the end of the last link to the end of the run
    lockstep: list[bool]  # per play: linear, as seen
    play_of: list[int]  # of each row

    @property
    def task_s(self) -> float:
        """Seconds of the chain inside of tasks."""
        return math.fsum(link.seconds for link in self.links)

    @property
    def gap_s(self) -> float:
        """Seconds of the chain between tasks."""
        return math.fsum(link.gap_s for link in self.links)


def by_task(chain: Chain, columns: Columns) -> list[tuple[int, int, float]]:
    """(row, links, seconds) of the tasks in the chain, the most seconds first."""
    found: dict[int, tuple[int, float]] = {}
    for link in chain.links:
        number, seconds = found.get(columns.row[link.number], (0, 0.0))
        found[columns.row[link.number]] = number + 1, seconds + link.seconds
    return sorted(((row, *share) for row, share in found.items()), key=lambda one: -one[2])


def lockstep(columns: Columns) -> list[bool]:
    """For each play: did all its hosts finish a task before any began the next? Without a known strategy one task or one host counts as lock-step."""
    known = [columns.strategies.get(uuid, "").rpartition(".")[2] for uuid in columns.rows.plays]
    if all(name in KNOWN for name in known):
        return [KNOWN[name] for name in known]
    found = [KNOWN.get(name, True) for name in known]
    row = [-1] * len(found)  # of the step that is running
    before = [-math.inf] * len(found)  # end of the step before it
    last = [-math.inf] * len(found)  # latest end so far
    of_row = [task.play for task in columns.tasks]
    for i, current in enumerate(columns.row):
        play = of_row[current]
        if current != row[play]:
            row[play], before[play] = current, last[play]
        if columns.at[i] < before[play] - TOLERANCE and known[play] not in KNOWN:
            found[play] = False
        last[play] = columns.end[i]
    return found


def critical_path(columns: Columns) -> Chain:
    """The chain of a run; without results it is empty."""
    steps = lockstep(columns)
    of_row = [task.play for task in columns.tasks]
    links: list[Link] = []
    own = _own_before(columns, of_row)
    # With a slot for every host nobody waits for one, whatever else passes until a task begins.
    scarce = columns.slots is None or len(columns.rows.hosts) > columns.slots
    i = len(columns) - 1
    until = columns.end[i] if i >= 0 else 0.0
    while i >= 0:
        cause, before = _cause(columns, steps, of_row, own, i, scarce)
        # A slot may be free a moment before its last result is handled: the chain leaves the link before when the next began.
        begin = min(columns.at[i], until)
        came_from = min(columns.end[before], begin) if before >= 0 else 0.0
        links.append(Link(i, cause, begin - came_from, begin, max(0.0, until - begin)))
        until = came_from
        i = before
    links.reverse()
    end = columns.wall_s - columns.end[-1] if len(columns) else columns.wall_s
    return Chain(links, columns.wall_s, max(0.0, end), steps, of_row)


def _own_before(columns: Columns, of_row: list[int]) -> array.array[int]:
    """For each result the one before it of the same host in the same play, or -1."""
    found = array.array("i")
    latest: dict[tuple[int, int], int] = {}
    for i, host in enumerate(columns.host):
        key = host, of_row[columns.row[i]]
        found.append(latest.get(key, -1))
        latest[key] = i
    return found


def _cause(columns: Columns, steps: list[bool], of_row: list[int], own: array.array[int], i: int, scarce: bool) -> tuple[str, int]:
    """Why result `i` did not begin before, and the result that it waited for (-1: none). That one began earlier, so the walk ends."""
    at, queue = columns.at[i], columns.queue[i]
    waited = max(0.0, queue)
    if waited > TOLERANCE and scarce:
        before = _slot_before(columns, i)
        if before >= 0 and columns.end[before] > at - waited - TOLERANCE:
            return "slot", before
    play = of_row[columns.row[i]]
    last = _last_before(columns, at - waited, i)
    if steps[play]:
        if last < 0:
            return "start", -1
        if of_row[columns.row[last]] != play:
            return "play", last
        if columns.host[last] == columns.host[i]:
            return "host", last
        if columns.row[last] != columns.row[i]:
            return "barrier", last
        return "slot", _slot_before(columns, i)  # other hosts have done this task already: nobody measured the wait
    before = own[i]
    if before >= 0 and (columns.at[before], before) < (at, i):
        if scarce and at > columns.end[before] + 50 * TOLERANCE:
            # It began long after its host was ready. If its slot was taken until later than that, this is why.
            holder = _slot_before(columns, i)
            if holder >= 0 and columns.end[holder] > columns.end[before] + TOLERANCE:
                return "slot", holder
        return "host", before
    if last < 0:
        return "start", -1
    return ("slot" if queue == UNKNOWN and of_row[columns.row[last]] == play else "play"), last


def _slot_before(columns: Columns, i: int) -> int:
    """The result whose worker slot result `i` got."""
    worker, at = columns.worker[i], columns.at[i]
    if worker >= 0:
        j = i - 1
        # Among results that ended before this one, the latest to begin on its worker.
        while j >= 0:
            if columns.worker[j] == worker and columns.at[j] < at:
                return j
            j -= 1
    return _last_before(columns, at, i)


def _last_before(columns: Columns, when: float, i: int) -> int:
    """The last result that had ended at `when`, other than `i`, and began before it."""
    j = bisect.bisect_right(columns.end, when + TOLERANCE) - 1
    while j >= 0 and (j == i or (columns.at[j], j) >= (columns.at[i], i)):
        j -= 1
    return j
