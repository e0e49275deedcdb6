"""Whether somebody is asked something on the terminal by a program that Ansible knows nothing of: an OpenSSH client about a host key, sudo about a password.

Who asks so switches the terminal's echo off, or keeps /dev/tty open for as long as it asks (OpenSSH does, and every getpass). Looked at are this process
and what descends from it, where the kernel lists that; elsewhere only the echo tells.
"""

from __future__ import annotations

import contextlib
import os
import termios
import time

_FRESH_S = 0.02
_PROCESSES_MAX = 200
_LOCAL_FLAGS = 3  # in what tcgetattr answers


class Asking:
    """Called: whether somebody is asked on the terminal `fd`. Looks anew after 20 ms; never raises."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._echo = _echo(fd)  # who has it off all the time is not asked all the time
        self._looked = 0.0
        self._found = False

    def __call__(self) -> bool:
        now = time.monotonic()
        if now - self._looked >= _FRESH_S:
            self._looked = now
            self._found = (self._echo and not _echo(self._fd)) or any(map(_has_tty, _processes()))
        return self._found


def _echo(fd: int) -> bool:
    try:
        return bool(termios.tcgetattr(fd)[_LOCAL_FLAGS] & termios.ECHO)
    except termios.error:
        return True


def _processes() -> list[str]:
    """This process and its descendants, the nearest first."""
    found = ["self"]
    for pid in found:
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{pid}/task"):
                with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{thread}/children") as file:
                    found += file.read().split()
        if len(found) >= _PROCESSES_MAX:
            break
    return found[:_PROCESSES_MAX]


def _has_tty(pid: str) -> bool:
    with contextlib.suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/fd/{fd}") == "/dev/tty":
                    return True
    return False
