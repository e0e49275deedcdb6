"""Log files that are safe to keep in a shared directory: private, append-only, one write per line, and never the reason a play fails.

The usual example is /tmp/ansible-timings.log, where anybody may have put something of that name first. So the file is created 0600, no link is
followed, and a file that is not regular, not ours or has a second name is refused. A line is one write(2) on an O_APPEND descriptor: on a local
filesystem lines of concurrent runs never mix. The first thing that goes wrong is said once as a warning; after it the log is closed and stays closed.
"""

from __future__ import annotations

import os
import stat
import typing as t


class Refused(OSError):
    """The file is there, but writing to it would not be safe."""


def open_append(path: str) -> int:
    """A descriptor to append to `path`, created 0600 when missing. Raises OSError with a sentence for the user. Never blocks on a fifo."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    try:
        before = os.lstat(path)
    except FileNotFoundError:
        pass
    else:
        _check(before)  # a device or a fifo must not even be opened
    fd = os.open(path, flags, 0o600)
    try:
        _check(found := os.fstat(fd))
        if found.st_size and os.pread(fd, 1, found.st_size - 1) != b"\n":
            os.write(fd, b"\n")  # somebody's half line (a full disk) must not spoil our first
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check(found: os.stat_result) -> None:
    if stat.S_ISLNK(found.st_mode):
        raise Refused("it is a symbolic link")
    if not stat.S_ISREG(found.st_mode):
        raise Refused("it is not a regular file")
    if found.st_uid != os.geteuid():
        raise Refused("it belongs to somebody else")
    if found.st_nlink != 1:
        raise Refused("it has more than one name (hard links)")


class LineFile:
    """Lines appended to one file, opened at the first line. `warn` is called at most once."""

    def __init__(self, path: str, warn: t.Callable[[str], object], what: str = "timing log") -> None:
        self.path = os.path.abspath(os.path.expanduser(os.path.expandvars(path)))
        self._warn = warn
        self._what = what
        self._fd: int | None = None
        self._pid = os.getpid()
        self._broken = False

    def write(self, line: str) -> bool:
        """Append `line` (without its newline). False if the log is broken; never raises. A forked child writes nothing."""
        if self._broken or os.getpid() != self._pid:
            return False
        data = line.encode("utf-8", "surrogateescape") + b"\n"
        try:
            if self._fd is None:
                self._fd = open_append(self.path)
            if os.write(self._fd, data) != len(data):
                raise OSError("the line was written only in part (disk full?)")
        except (OSError, ValueError) as ex:
            self.close()
            self._broken = True
            self._warn(f"the {self._what} {self.path} is not written: {ex}")
            return False
        return True

    def close(self) -> None:
        """Close the file; the next write opens it again."""
        if self._fd is not None and os.getpid() == self._pid:
            os.close(self._fd)
        self._fd = None
