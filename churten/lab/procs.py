"""Finding and ending the lab's own processes, through /proc, never by a name alone."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterable
from pathlib import Path


def start_time(pid: int) -> int | None:
    """Clock ticks after boot at which `pid` began, None if there is no such (living) process.

    A pid together with its start time names one process for as long as the machine runs.
    """
    fields = stat_fields(pid)
    return int(fields[19]) if fields and fields[0] not in ("Z", "X") else None


def stat_fields(pid: int) -> list[str]:
    """/proc/PID/stat from the state field (index 0) on; empty if the process is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return []
    return text[text.rindex(")") + 2 :].split()


def all_pids() -> list[int]:
    """Every living process this user may see, without ourselves."""
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]
    return [pid for pid in pids if start_time(pid) is not None]


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def command_line(pid: int) -> str:
    """The words of the process's command line, blanks between."""
    return _read(pid, "cmdline").replace(b"\0", b" ").decode(errors="replace")


def has_marker(pid: int, marker: str) -> bool:
    """Does the environment the process was started with hold `NAME=value`?"""
    return marker.encode() in _read(pid, "environ").split(b"\0")


def owner(pid: int) -> int | None:
    """Real uid of the process."""
    for line in _read(pid, "status").splitlines():
        if line.startswith(b"Uid:"):
            return int(line.split()[1])
    return None


def descendants(roots: Iterable[int]) -> set[int]:
    """All children, grandchildren, ... of `roots`, without the roots."""
    children: dict[int, list[int]] = {}
    for pid in all_pids():
        fields = stat_fields(pid)
        if fields:
            children.setdefault(int(fields[1]), []).append(pid)
    found: set[int] = set()
    todo = list(roots)
    while todo:
        for child in children.get(todo.pop(), []):
            if child not in found:
                found.add(child)
                todo.append(child)
    return found


def end(pids: Iterable[int], grace: float = 2.0) -> list[int]:
    """TERM, then KILL after `grace` seconds, then wait; returns those that would not go (normally none)."""
    handles = {}
    for pid in set(pids):
        try:
            handles[os.pidfd_open(pid)] = pid
        except OSError:
            continue
    try:
        left = dict(handles)
        for number, wait in ((signal.SIGTERM, grace), (signal.SIGKILL, 5.0)):
            for fd in left:
                try:
                    signal.pidfd_send_signal(fd, number)
                except OSError:
                    continue
            left = _wait_gone(left, wait)
            if not left:
                break
        return sorted(left.values())
    finally:
        for fd in handles:
            os.close(fd)


def _wait_gone(handles: dict[int, int], seconds: float) -> dict[int, int]:
    """A pidfd is readable when its process has ended."""
    left = dict(handles)
    poller = select.poll()
    for fd in left:
        poller.register(fd, select.POLLIN)
    deadline = time.monotonic() + seconds
    while left:
        rest = deadline - time.monotonic()
        ready = poller.poll(max(0, int(rest * 1000))) if rest > 0 else poller.poll(0)
        if not ready:
            break
        for fd, _ in ready:
            poller.unregister(fd)
            pid = left.pop(fd)
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                pass
    return left
