"""What a live view can tell of a play from callbacks alone: how many tasks run, how many are done of how many, and who has been at it longest.

The total is what the play's own task lists say, times its hosts, less what hosts that failed will not do any more. Tasks nobody could foresee (from
included files, handlers, rescue) are added as they start. So it may grow, and tasks that never start (an empty `block` of tags, an included file
that is not) leave it too high: it is a view of a run, not a record of it.
"""

from __future__ import annotations

import collections
import heapq
import typing as t

WINDOW_S = 10.0  # throughput is that of the last seconds


class Running(t.NamedTuple):
    """A host's task under way; orders by age."""

    since: float  # monotonic seconds
    host: str
    task: str


class Progress:
    """Counts of the current play. Every method takes the time it is, in monotonic seconds. Not for several threads at once."""

    def __init__(self) -> None:
        self.slots = 1
        self.done = 0
        self.total = 0
        self.running: dict[tuple[str, str], Running] = {}
        self.began: float | None = None
        self._planned: dict[str, bool] = {}  # uuid of a task: for all hosts, or for one
        self._of_host: collections.Counter[str] = collections.Counter()  # planned tasks that ended
        self._ends: collections.deque[float] = collections.deque()

    def play(self, planned: t.Mapping[str, bool], hosts: int, slots: int, now: float) -> None:
        """A play (or a batch) begins. `planned`: uuids of its tasks; False is for one host only."""
        self.slots = slots
        self.done = 0
        self.total = sum(hosts if everywhere else 1 for everywhere in planned.values())
        self.running.clear()
        self._planned = dict(planned)
        self._of_host.clear()
        self._ends.clear()
        self.began = now

    def start(self, host: str, uuid: str, task: str, now: float) -> None:
        """A worker took the task."""
        if uuid not in self._planned and (host, uuid) not in self.running:
            self.total += 1
        self.running[host, uuid] = Running(now, host, task)

    def end(self, host: str, uuid: str, now: float, lost: bool = False) -> None:
        """The result was handled; `lost`: the host does no more of this play."""
        if self.running.pop((host, uuid), None) is None:
            return
        self.done += 1
        self._ends.append(now)
        if self._planned.get(uuid):
            self._of_host[host] += 1
        if lost:
            left = sum(self._planned.values()) - self._of_host[host]
            self.total = max(self.done + len(self.running), self.total - left)

    def rate(self, now: float) -> float:
        """Tasks ended per second, lately."""
        while self._ends and self._ends[0] < now - WINDOW_S:
            self._ends.popleft()
        span = min(WINDOW_S, now - self.began) if self.began is not None else 0.0
        return len(self._ends) / max(span, 1.0)

    def longest(self, count: int) -> list[Running]:
        """The tasks that have been running longest, the longest first."""
        return heapq.nsmallest(count, self.running.values())
