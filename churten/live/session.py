"""The live view of a run: when there is one, what callbacks tell it, what it shows.

    3/5 active  12/40 tasks  4.1/s  0:00:12
      web-07    12s  nginx : install package
      db-01      3s  wait for the database

It is for somebody who watches: it needs a terminal, and there is none with -v (whose output is long enough) or in CI.
"""

from __future__ import annotations

import io
import os
import sys
import threading
import time
import typing as t

from ansible import constants as C
from ansible.utils.color import ANSIBLE_COLOR

from churten.compat import callback as compat
from churten.timings import stamps
from churten.timings.workers import one_line

from .progress import Progress
from .view import View

_NAME_MAX = 24


def wanted(display: t.Any) -> bool:
    """Whether anybody could see a live view."""
    if display.verbosity > 0 or os.environ.get("CI", "").lower() not in ("", "0", "false"):
        return False
    if os.environ.get("TERM", "dumb") == "dumb":
        return False
    try:
        return os.isatty(sys.stdout.fileno())
    except (OSError, ValueError, AttributeError):
        return False


def begin(display: t.Any, hosts: int) -> Session | None:
    """The live view of this run, or None. Says so once if there could be one but for the library `rich`."""
    if not wanted(display):
        return None
    try:
        import rich.console  # noqa: F401
    except ImportError:
        display.warning(
            "churten.core.live shows no live view, only what the callback default shows: it needs the Python package rich"
            " (pip install 'churten[live]')."
        )
        return None
    return Session(display, hosts)


class Session:
    """What the callback `live` calls at each event. Events come from several threads, one at a time; the view reads in between."""

    def __init__(self, display: t.Any, hosts: int) -> None:
        """`hosts`: how many of those that have been at their task longest are named."""
        self._hosts = hosts
        self._lock = threading.Lock()
        self._progress = Progress()
        self._view = View(display, sys.stdout.fileno(), self.lines)
        self._restore: t.Callable[[], None] | None = None
        os.register_at_fork(before=self._lock.acquire, after_in_parent=self._lock.release, after_in_child=self._lock.release)

    def play(self, play: t.Any) -> None:
        """A play begins."""
        planned, hosts = compat.planned_tasks(play), compat.play_hosts(play)
        with self._lock:
            self._progress.play(planned, hosts, C.DEFAULT_FORKS, time.monotonic())

    def start(self, host: t.Any, task: t.Any) -> None:
        """A worker took a task."""
        with self._lock:
            self._progress.slots = stamps.slot_limit() or C.DEFAULT_FORKS
            self._progress.start(host.name, compat.uuid(task), str(task.get_name()), time.monotonic())
        if self._restore is None:
            self._restore = compat.around_debugger(lambda: self._view.aside(ends_line=False))
        self._view.show()

    def end(self, result: t.Any, lost: bool = False) -> None:
        """A result was handled; `lost`: its host does no more."""
        with self._lock:
            self._progress.end(compat.host_name(result), compat.uuid(compat.task(result)), time.monotonic(), lost)

    def finish(self) -> None:
        """The recap comes, or somebody will be asked something before the next play."""
        self._view.hide()
        if self._restore is not None:
            self._restore()
            self._restore = None

    def lines(self, columns: int) -> list[str]:
        """What to show now, as text for a terminal; no line is longer than `columns` cells."""
        from rich.console import Console
        from rich.text import Text

        now = time.monotonic()
        with self._lock:
            progress = self._progress
            if not progress.running or progress.began is None:
                return []
            active, slots, done, total = len(progress.running), progress.slots, progress.done, progress.total
            rate, began = progress.rate(now), progress.began
            longest = progress.longest(self._hosts)
        head = Text.assemble(
            (f"{active}/{max(active, slots)} active", "bold"),
            f"  {done}/{max(done + active, total)} tasks  {rate:.1f}/s  {_clock(now - began)}",
        )
        width = min(_NAME_MAX, max((len(one.host) for one in longest), default=0))
        rows = [
            Text.assemble(
                (f"  {one_line(one.host)[:width]:<{width}} ", "cyan"), f"{_age(now - one.since):>6}  ", (one_line(one.task), "dim")
            )
            for one in longest
        ]
        out = io.StringIO()
        console = Console(
            file=out, width=columns, force_terminal=True, color_system="standard" if ANSIBLE_COLOR else None, highlight=False, legacy_windows=False
        )
        for text in (head, *rows):
            console.print(text, no_wrap=True, overflow="ellipsis", crop=True)
        return out.getvalue().splitlines()


def _clock(seconds: float) -> str:
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def _age(seconds: float) -> str:
    return f"{int(seconds)}s" if seconds < 600 else f"{int(seconds // 60)}min"
