"""Where the history lies, and whether it is safe to keep it there.

    DIR/                    0700, ours
      history.sqlite        0600: the database (store.py)
      import.lock           held by the one process that writes to the database
      runs/TIME-ID.jsonl    0600: what a run has said so far, until it is in the database (spool.py, ingest.py)

Every file holds what plays did: so the folder must be ours alone, and nothing in it may be a link, a special file or a file with a second name.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
import typing as t

DEFAULT = "~/.ansible/churten/history"


class Unusable(Exception):
    """A sentence for the user: what is wrong with the history, and the way out."""


class Place:
    """The paths of a history. `make` and `check` look at the disk; nothing else here does."""

    def __init__(self, directory: str | None = None) -> None:
        given = directory or os.environ.get("CHURTEN_HISTORY_DIR") or DEFAULT
        self.directory = os.path.abspath(os.path.expanduser(os.path.expandvars(given)))
        self.database = os.path.join(self.directory, "history.sqlite")
        self.runs = os.path.join(self.directory, "runs")
        self._lock = os.path.join(self.directory, "import.lock")

    def make(self) -> None:
        """Create what is missing. Raises Unusable."""
        try:
            os.makedirs(os.path.dirname(self.directory), exist_ok=True)
            for path in (self.directory, self.runs):
                with contextlib.suppress(FileExistsError):
                    os.mkdir(path, 0o700)
        except OSError as ex:
            raise Unusable(f"the history {self.directory} cannot be made: {ex.strerror}") from ex
        self.check()

    def check(self) -> None:
        """Raises Unusable unless both folders are there and ours alone."""
        for path in (self.directory, self.runs):
            try:
                found = os.lstat(path)
            except OSError as ex:
                raise Unusable(f"the history {path} cannot be read: {ex.strerror}") from ex
            if not stat.S_ISDIR(found.st_mode):
                raise Unusable(f"the history {path} is not a directory: give one of its own (history_dir)")
            if found.st_uid != os.geteuid():
                raise Unusable(f"the history {path} belongs to somebody else: give a directory of your own (history_dir)")
            if found.st_mode & 0o077:
                raise Unusable(f"the history {path} is open to others: chmod 700 {path}, or give a directory of its own (history_dir)")

    @contextlib.contextmanager
    def lock(self, wait_s: float) -> t.Iterator[bool]:
        """Be the one writer; answers False if another one stays it for `wait_s`. Raises Unusable."""
        fd = open_private(self._lock)
        try:
            yield _locked(fd, wait_s)
        finally:
            os.close(fd)


def open_private(path: str, more: int = 0) -> int:
    """A descriptor to read and write `path`, made 0600 if missing. Raises Unusable if the file is no plain file of ours."""
    try:
        with contextlib.suppress(FileNotFoundError):
            _check(path, os.lstat(path))  # a device or a fifo must not even be opened
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | more, 0o600)
    except OSError as ex:
        raise Unusable(f"{path}: {ex.strerror}") from ex
    try:
        _check(path, os.fstat(fd))
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check(path: str, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise Unusable(f"{path} is not a regular file: remove it")
    if found.st_uid != os.geteuid():
        raise Unusable(f"{path} belongs to somebody else")
    if found.st_nlink > 1:
        raise Unusable(f"{path} has more than one name (hard links)")


def _locked(fd: int, wait_s: float) -> bool:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as ex:
            if ex.errno not in (errno.EAGAIN, errno.EINTR):
                raise Unusable(f"the history cannot be locked: {ex.strerror}") from ex
            if time.monotonic() >= deadline:
                return False
        time.sleep(0.02)
