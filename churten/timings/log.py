"""Log files that are safe to keep in a shared directory: private, append-only, whole lines per write, and never the reason a play fails.

The usual example is /tmp/ansible-timings.log, where anybody may have put something of that name first. So the file is created 0600, no link is
followed, and a file that is not regular, not ours or has a second name is refused. Every write(2) on the O_APPEND descriptor holds whole lines: on a local
filesystem lines of concurrent runs never mix. The first thing that goes wrong is said once as a warning; after it the log is closed and stays closed.

A log that has grown too large is put aside when a run opens it, never in between: so the lines of a run stay in one file, and runs that are writing go
on in the file they opened, whatever its name is by then.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import operator
import os
import stat
import time
import typing as t
from json.encoder import encode_basestring_ascii

from .model import Item, Place, Result

VERSION = 1
_LOCK_S = 2.0


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


class Rotation(t.NamedTuple):
    """When a log is put aside, and how many old ones are kept (LOG.1 is the latest)."""

    max_bytes: int = 0  # 0: never
    keep: int = 5


def rotate(path: str, how: Rotation) -> None:
    """Put the log aside if it is too large. Raises OSError; the log itself is as it was then.

    Of several runs that begin at once one does it: they take turns by a lock on the file, and who comes later finds another file under the name.
    """
    if how.max_bytes <= 0:
        return
    fd = open_append(path)
    try:
        mine = os.fstat(fd)
        if mine.st_size < how.max_bytes or not _locked(fd):
            return
        now = os.lstat(path)
        if (now.st_dev, now.st_ino) != (mine.st_dev, mine.st_ino):
            return
        names = [path] + [f"{path}.{number}" for number in range(1, max(1, how.keep) + 1)]
        for name in names[1:]:
            with contextlib.suppress(FileNotFoundError):
                _check_old(name)
        for old, new in reversed(list(itertools.pairwise(names))):
            with contextlib.suppress(FileNotFoundError):
                os.rename(old, new)
    finally:
        os.close(fd)


def _check_old(name: str) -> None:
    try:
        _check(os.lstat(name))
    except Refused as ex:
        raise Refused(f"{name} would be replaced, and {ex}") from None


def _locked(fd: int) -> bool:
    deadline = time.monotonic() + _LOCK_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)


class LineFile:
    """Lines appended to one file, opened at the first line. `warn` is called at most once for each: writing, rotating."""

    HELD_MAX = 1 << 16  # bytes of held lines

    def __init__(self, path: str, warn: t.Callable[[str], object], what: str = "timing log", rotation: Rotation | None = None) -> None:
        self.path = os.path.abspath(os.path.expanduser(os.path.expandvars(path)))
        self._warn = warn
        self._trouble = f"the {what} {self.path} is not written"
        self._what = what
        self._fd: int | None = None
        self._pid = os.getpid()
        self._broken = False
        self._rotation = rotation
        self._held: list[bytes] = []
        self._held_bytes = 0

    def write(self, line: str) -> bool:
        """Append `line` (without its newline), after what is held. False if nothing is written any more; never raises. A forked child writes nothing."""
        return self.hold(line) and self.flush()

    def hold(self, line: str) -> bool:
        """The same, but it may wait for the next `write`, `flush` or `close`: they write all that waits at once."""
        return self.hold_data(line.encode("utf-8", "surrogateescape") + b"\n")

    def hold_data(self, data: bytes) -> bool:
        """The same for a line that is encoded and has its newline."""
        if self._broken or os.getpid() != self._pid:
            return False
        if self._held_bytes + len(data) > self.HELD_MAX and not self.flush():
            return False
        self._held.append(data)
        self._held_bytes += len(data)
        return True

    def flush(self) -> bool:
        """Write what is held. Answers and fails as `write`."""
        if self._broken or os.getpid() != self._pid:
            return False
        data = b"".join(self._held)
        self._held.clear()
        self._held_bytes = 0
        try:
            if not data:
                return True
            if self._fd is None:
                self._fd = self._open()
            if os.write(self._fd, data) != len(data):
                raise OSError("a line was written only in part (disk full?)")
        except (OSError, ValueError) as ex:
            self._broken = True
            self.close()
            self._warn(f"{self._trouble}: {ex}")
            return False
        return True

    def _open(self) -> int:
        """A descriptor to append to. OSError or ValueError with a sentence for the user."""
        self._rotate()
        return open_append(self.path)

    def _rotate(self) -> None:
        rotation, self._rotation = self._rotation, None
        if rotation is not None:
            try:
                rotate(self.path, rotation)
            except OSError as ex:
                if not isinstance(ex, FileNotFoundError):
                    self._warn(f"the {self._what} {self.path} is not rotated: {ex}")

    def close(self) -> None:
        """Write what is held and close the file; the next write opens it again."""
        self.flush()
        if self._fd is not None and os.getpid() == self._pid:
            os.close(self._fd)
        self._fd = None


class TimingLog:
    """The timing log of one run (docs/timing-log.md)."""

    def __init__(self, file: LineFile, run: str) -> None:
        self._file = file
        self._run = run
        self._encode = json.JSONEncoder(separators=(",", ":")).encode

    def run(self, facts: dict[str, object]) -> None:
        """The run begins; `facts` names the playbook and the versions."""
        self._write("run", facts)

    def play(self, facts: dict[str, object]) -> None:
        """A play or a batch of one begins."""
        self._write("play", facts)

    def item(self, item: Item) -> None:
        """An item or an attempt ended."""
        body = {name: _rounded(getattr(item, name)) for name in _ITEM_FIELDS}
        for name in _ITEM_MORE:
            if (value := getattr(item, name)) is not None:
                body[name] = value
        self._write("item", body)

    def stamped(
        self, place: Place, stamp: t.Any, host: str, status: str, items: int | None, started: str, attempts: int, delegated: str | None, *times: float
    ) -> None:
        """One task ended on one host; `stamp` is the record of its steps, which makes the line (csrc/py_timings.c). `times`: at, seconds, now, and the
        start of the run. The line may wait for the next other event or `flush`."""
        self._file.hold_data(stamp.line(place.line or self._begin(place), host, status, items, started, attempts, delegated, _word, *times))

    def unstamped(self, place: Place, stamp: t.Any, *more: t.Any) -> None:
        """The same without its moments."""
        self._file.hold(self._without_moments(place, stamp, *more) + "}")

    def _without_moments(
        self, place: Place, stamp: t.Any, host: str, status: str, items: int | None, started: str, attempts: int, delegated: str | None, *times: float
    ) -> str:
        """The line without its closing brace."""
        at, seconds, now, zero = times
        found = Result(
            **{name: getattr(place, name) for name in _TASK_FIELDS},
            host=host, status=status, items=items, started=started, at=at, seconds=seconds,
            attempts=attempts, delegated=delegated,
        )
        stamp.fill(found, seconds, now, zero)
        found.t = None
        return line(place.line or self._begin(place), _fields(found), _word)

    def flush(self) -> None:
        """Write the results that are not written yet."""
        self._file.flush()

    def _begin(self, place: Place) -> str:
        # Lines are written once per host and task: what a task's lines have in common is encoded once.
        common = {name: getattr(place, name) for name in _TASK_FIELDS}
        place.line = self._encode({"v": VERSION, "ev": "result", "run": self._run} | common)[:-1]
        return place.line

    def end(self, seconds: float, results: int) -> None:
        """The run ended after `seconds`."""
        self._write("end", {"seconds": _rounded(seconds), "results": results})
        self._file.close()

    def _write(self, event: str, body: dict[str, object]) -> None:
        self._file.write(self._encode({"v": VERSION, "ev": event, "run": self._run} | body))


def _word(text: str | None) -> str:
    return "null" if text is None else encode_basestring_ascii(text)


def python_line(common: str, values: tuple[object, ...], quote: t.Callable[[str], str]) -> str:
    """What `timing_line` of the C part (csrc/py_timings.c) makes: the line of a result without its closing brace.

    `common` is how the lines of its task begin, `values` the fields of `_LINE_FIELDS`, `quote` makes a JSON string.
    """
    found: dict[str, t.Any] = dict(zip(_LINE_FIELDS, values, strict=True))
    moments = found.pop("t")
    text = common
    for name, value in found.items():
        if value is not None:
            value = f"{value:.6f}" if name in _TIMES else f'"{value}"' if name in _RAW else quote(value) if isinstance(value, str) else str(value)
        text += f',"{name}":{"null" if value is None else value}'
    if moments is not None:
        text += ',"t":{' + ",".join([f'"{name}":{when:.6f}' for name, when in moments.items()]) + "}"
    return text


try:
    from churten._core import timing_line as line
except ImportError:  # no extension, or an older one
    line = python_line


def _rounded(value: object) -> object:
    return round(value, 6) if isinstance(value, float) else value


def read(line: str) -> tuple[str, str, dict[str, object]]:
    """Event, run and body of one line. ValueError if it is not a line of this version. Unknown keys are ignored, unknown events returned."""
    body = json.loads(line)
    if not isinstance(body, dict) or body.pop("v", None) != VERSION:
        raise ValueError(f"not a line of version {VERSION}")
    event, run = body.pop("ev", None), body.pop("run", None)
    if not isinstance(event, str) or not isinstance(run, str):
        raise ValueError("no event or no run")
    return event, run, body


def read_result(body: dict[str, object]) -> Result:
    """The result of a `result` line's body. ValueError if a field is missing or of another type."""
    found = _checked(body, _RESULT_FIELDS)
    found |= {name: body[name] for name, types in _RESULT_MORE.items() if name in body and _is(body[name], types)}
    if "t" in found:
        found["t"] = {k: v for k, v in t.cast("dict[str, object]", found["t"]).items() if _is(v, _SECONDS)}
    return Result(**found)  # type: ignore[arg-type]


def read_item(body: dict[str, object]) -> Item:
    """The item of an `item` line's body. ValueError if a field is missing or of another type."""
    more = {name: body[name] for name in _ITEM_MORE if isinstance(body.get(name), str)}
    return Item(**_checked(body, _ITEM_FIELDS), **more)  # type: ignore[arg-type]


def _checked(body: dict[str, object], fields: dict[str, tuple[type, ...]]) -> dict[str, object]:
    for name, types in fields.items():
        if not _is(body.get(name), types):
            raise ValueError(f"field {name!r}")
    return {name: body.get(name) for name in fields}


def _is(value: object, types: tuple[type, ...]) -> bool:
    if not isinstance(value, types) or isinstance(value, bool):
        return False
    return not isinstance(value, float) or -1e12 < value < 1e12


_TEXT: tuple[type, ...] = (str,)
_SECONDS: tuple[type, ...] = (int, float)
_NONE = type(None)
_RESULT_FIELDS: dict[str, tuple[type, ...]] = {
    "play": _TEXT,
    "play_uuid": _TEXT,
    "task": _TEXT,
    "uuid": _TEXT,
    "action": _TEXT,
    "role": (str, _NONE),
    "path": (str, _NONE),
    "host": _TEXT,
    "status": _TEXT,
    "items": (int, _NONE),
    "started": _TEXT,
    "at": _SECONDS,
    "seconds": _SECONDS,
    "queue": (*_SECONDS, _NONE),
    "connect": (*_SECONDS, _NONE),
    "remote": (*_SECONDS, _NONE),
    "controller": (*_SECONDS, _NONE),
    "engine": (str, _NONE),
    "worker": (int, _NONE),
}
_TASK_FIELDS = ("play", "play_uuid", "task", "uuid", "action", "role", "path")
_LINE_FIELDS = (
    "host",
    "status",
    "items",
    "started",
    "at",
    "seconds",
    "queue",
    "connect",
    "remote",
    "controller",
    "engine",
    "worker",
    "source",
    "attempts",
    "delegated",
    "ran",
    "t",
)
_TIMES = frozenset(("at", "seconds", "queue", "connect", "remote", "controller", "ran"))
_RAW = frozenset(("started", "engine"))  # never anything that JSON escapes
_fields = operator.attrgetter(*_LINE_FIELDS)
_RESULT_MORE: dict[str, tuple[type, ...]] = {  # since 0.2
    "source": _TEXT,
    "attempts": (int,),
    "delegated": (str, _NONE),
    "ran": (*_SECONDS, _NONE),
    "t": (dict,),
}
_ITEM_FIELDS: dict[str, tuple[type, ...]] = {
    "play_uuid": _TEXT,
    "uuid": _TEXT,
    "host": _TEXT,
    "item": (int, _NONE),
    "attempt": (int,),
    "status": _TEXT,
    "at": _SECONDS,
    "seconds": _SECONDS,
    "connect": (*_SECONDS, _NONE),
    "remote": (*_SECONDS, _NONE),
}
_ITEM_MORE = ("label", "delegated")
