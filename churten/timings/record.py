"""What the timings callback does at each event: open a result, close it, count it, log it; at the end the recap.

Stock hooks give start and end of each host's task. Where churten's own executor runs, `churten.timings.stamps` adds when the host was ready, when a slot
was free, and what the connection did.
"""

from __future__ import annotations

import secrets
import time
import typing as t
from pathlib import PurePath

import churten

from ..compat import callback as compat
from . import stamps
from .log import TimingLog
from .model import Model, Result


class Recorder:
    """The timings of this process's run. Its methods are called by one thread at a time (core holds a lock around callbacks)."""

    def __init__(self, log_path: str | None, warn: t.Callable[[str], object]) -> None:
        self.model = Model()
        self._zero = time.monotonic()
        self._open: dict[tuple[str, str], tuple[float, float]] = {}  # monotonic, wall
        self._items: dict[tuple[str, str], int] = {}
        self._play = ("", "")
        self._results = 0
        self._log = TimingLog(log_path, warn, secrets.token_hex(8)) if log_path else None
        stamps.enable()

    def playbook(self, playbook: t.Any, core_version: str, forks: int) -> None:
        """A playbook begins; the run is the first one of the command."""
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

    def start(self, host: t.Any, task: t.Any) -> None:
        """The strategy hands a host's task to a worker."""
        self._open[host.name, compat.uuid(task)] = (time.monotonic(), time.time())

    def item(self, result: t.Any) -> None:
        """One item of a loop ended."""
        key = compat.host_name(result), compat.uuid(compat.task(result))
        self._items[key] = self._items.get(key, 0) + 1

    def done(self, result: t.Any, status: str) -> None:
        """The result of a host's task was handled."""
        now = time.monotonic()
        host, task = compat.host_name(result), compat.task(result)
        uuid = compat.uuid(task)
        stamp = stamps.take(host, uuid)
        items = self._items.pop((host, uuid), None)
        opened, wall = self._open.pop((host, uuid), (now, time.time()))
        begin = stamp.slot if stamp is not None and stamp.slot is not None else opened
        timed = Result(
            play=self._play[0],
            play_uuid=self._play[1],
            task=str(task.get_name()),
            uuid=uuid,
            action=str(task.action),
            role=compat.role_name(task),
            path=str(task.get_path() or "") or None,
            host=host,
            status=status,
            items=items,
            started=_utc(wall - (opened - begin)),
            at=begin - self._zero,
            seconds=now - begin,
        )
        if stamp is not None:
            _split(timed, stamp)
        self.model.add(timed)
        self._results += 1
        if self._log is not None:
            self._log.result(timed)

    def finish(self) -> None:
        """The run ended."""
        self.model.total_s = time.monotonic() - self._zero
        if self._log is not None:
            self._log.end(self.model.total_s, self._results)


def _split(result: Result, stamp: stamps.Stamps) -> None:
    """Fill in what the stamps know. A fork's stamps end at its slot: it says nothing about connect and remote."""
    result.engine, result.worker = stamp.engine, stamp.worker
    if stamp.eligible is not None and stamp.slot is not None:
        result.queue = max(0.0, stamp.slot - stamp.eligible)
    if stamp.engine == "fork":
        return
    result.connect, result.remote = stamp.connect_s, stamp.remote_s
    result.controller = max(0.0, result.seconds - stamp.connect_s - stamp.remote_s)


def _utc(when: float) -> str:
    millis = round(when * 1000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(millis // 1000)) + f".{millis % 1000:03}Z"
