"""Timing logs, read in bounded memory: first where each run lies, then the results of the runs that are asked for.

A log may hold many runs, mixed with one another, and may be larger than memory. So opening one makes an index (a run's name, its first and last line),
and only the lines between are read again. What comes from a pipe, and what is not our format (foreign.py), is first written to a file without a name.

A line that is not valid is counted and skipped. The index looks at every line, but only at what it is; a wrong field in a result is found, and counted,
when its run is read.
"""

from __future__ import annotations

import dataclasses
import io
import os
import stat
import sys
import tempfile
import typing as t

from . import foreign, log
from .model import Result
from .workers import one_line

LONGEST_LINE = 16 << 20  # bytes; a longer one is no line of a log
_RESULT = b'{"v":1,"ev":"result","run":"'
_ID = slice(len(_RESULT), len(_RESULT) + 16)
_AFTER_ID = slice(_ID.stop, _ID.stop + 2)
_SNIFFED = 1000  # lines looked at for the format


class Unreadable(Exception):
    """A sentence for the user: what cannot be read, and why."""


class Play(t.NamedTuple):
    """What a `play` line says."""

    strategy: str
    slots: int | None


@dataclasses.dataclass(slots=True)
class Run:
    """What is known of a run before its results are read."""

    id: str
    facts: dict[str, object] | None = None  # the first `run` line's fields; None: the line is missing
    seconds: float | None = None  # wall time; None: the run did not end
    results: int = 0  # result lines, valid or not
    first: int = 0  # offset of its first line
    last: int = 0  # offset behind its last line
    line: int = 0  # number of its first line
    format: str = "churten"
    plays: dict[str, Play] = dataclasses.field(default_factory=dict)  # by uuid, where the log has them

    def fact(self, name: str) -> str:
        """A field of the `run` line as text, "" if unknown."""
        value = (self.facts or {}).get(name)
        return "" if value is None else str(value)

    @property
    def slots(self) -> int | None:
        """How many tasks could run at once: the most of its plays, or forks."""
        slots = [play.slots for play in self.plays.values() if play.slots]
        return max(slots) if slots else self.forks

    @property
    def forks(self) -> int | None:
        """As configured."""
        value = (self.facts or {}).get("forks")
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None

    @property
    def title(self) -> str:
        """One line that says which run this is."""
        if self.facts is None:
            text = "its first line is missing"
        else:
            text = f"{self.fact('playbook')}, started {self.fact('started')}"
            if self.fact("ansible"):
                text += f", ansible-core {self.fact('ansible')}"
        return one_line(text) + ("" if self.seconds is not None else " (did not end)")


class Log:
    """The runs of a file or directory, in the order they began. Close it, or use it as a context manager. Raises Unreadable."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.runs: dict[str, Run] = {}
        self.bad = 0
        self.first_bad = ""
        self.format = "churten"
        self._checked: set[str] = set()
        try:
            self._file = self._open()
            self._index()
        except OSError as ex:
            raise Unreadable(f"{path}: {ex.strerror or ex}") from ex

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _open(self) -> t.BinaryIO:
        if self.path == "-":
            return self._convert(_spooled(sys.stdin.buffer))
        if os.path.isdir(self.path):
            self.format = "job_events"
            return self._converted(foreign.job_events(self.path))
        file = open(self.path, "rb")  # noqa: SIM115  (closed by __exit__)
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            with file:
                return self._convert(_spooled(file))
        return self._convert(file)

    def _convert(self, file: t.BinaryIO) -> t.BinaryIO:
        """The file itself, or its content in our format."""
        for _, line in zip(range(_SNIFFED), _lines(file, 0), strict=False):
            found = foreign.kind(line.data)
            if found:
                self.format = found
                break
        file.seek(0)
        if self.format == "churten":
            return file
        with file:
            return self._converted(foreign.lines(self.format, (line.data for line in _lines(file, 0))))

    def _converted(self, lines: t.Iterable[str | foreign.Bad]) -> t.BinaryIO:
        spool = tempfile.TemporaryFile(prefix="churten-timings-")  # noqa: SIM115
        for line in lines:
            if isinstance(line, foreign.Bad):
                self._bad(line.where, line.reason)
            else:
                spool.write(line.encode("utf-8", "surrogateescape") + b"\n")
        spool.seek(0)
        return t.cast(t.BinaryIO, spool)

    def _index(self) -> None:
        known: dict[bytes, Run] = {}
        for line in _lines(self._file, 0):
            data = line.data
            run = None
            if _is_result(data):
                run = known.get(data[_ID])
                if run is None:
                    run = known[data[_ID]] = self._run(data[_ID].decode("ascii", "replace"), line)
                run.results += 1
            elif data.strip():
                try:
                    run = self._other(data, line)
                except (ValueError, RecursionError) as ex:
                    self._bad(f"line {line.number}", str(ex))
            if run is not None:
                run.last = line.offset + len(data)

    def _other(self, data: bytes, line: _Line) -> Run:
        event, name, body = log.read(_text(data, line))
        run = self._run(name, line)
        if event == "run":
            run.facts = run.facts or body
        elif event == "end":
            seconds = body.get("seconds")
            if not isinstance(seconds, (int, float)) or isinstance(seconds, bool) or not 0 <= seconds < 1e12:
                raise ValueError("field 'seconds'")
            run.seconds = float(seconds)
        elif event == "play":
            uuid, strategy, slots = body.get("play_uuid"), body.get("strategy"), body.get("slots")
            if not isinstance(uuid, str) or not isinstance(strategy, str):
                raise ValueError("field 'play_uuid' or 'strategy'")
            whole = isinstance(slots, int) and not isinstance(slots, bool) and slots > 0
            run.plays[uuid] = Play(strategy, t.cast(int, slots) if whole else None)
        elif event == "result":
            run.results += 1
        return run

    def _run(self, name: str, line: _Line) -> Run:
        run = self.runs.get(name)
        if run is None:
            run = self.runs[name] = Run(name, first=line.offset, line=line.number, format=self.format)
        return run

    def results(self, run: Run) -> t.Iterator[Result]:
        """The results of one run, in the order they were written. Wrong ones are counted the first time."""
        for body in self.events(run, "result"):
            yield t.cast(Result, body)

    def events(self, run: Run, *wanted: str) -> t.Iterator[Result | dict[str, object]]:
        """The run's events of the kinds `wanted`: results as Result, others as the line's fields."""
        first_time = run.id not in self._checked
        self._checked.add(run.id)
        plain, others = _RESULT + run.id.encode() + b'"', b'"' + run.id.encode() + b'"'
        for line in _lines(self._file, run.first, run.last, run.line):
            data = line.data
            if not data.startswith(plain) and (data.startswith(_RESULT) or others not in data):
                continue
            try:
                event, name, body = log.read(_text(data, line))
            except (ValueError, RecursionError) as ex:
                if first_time and _is_result(data):  # the index has read all other lines, and counted them
                    self._bad(f"line {line.number}", str(ex))
                continue
            if name != run.id or event not in wanted:
                continue
            if event != "result":
                yield body
                continue
            try:
                yield log.read_result(body)
            except ValueError as ex:
                if first_time:
                    self._bad(f"line {line.number}", str(ex))

    def _bad(self, where: str, reason: str) -> None:
        self.bad += 1
        self.first_bad = self.first_bad or f"{where}: {reason}"

    def choose(self, wanted: str | None) -> list[Run]:
        """The runs a user means: None the last one, 'all', 'last', 'last-1', or the beginning of an id. Raises Unreadable."""
        runs = [run for run in self.runs.values() if run.results] or list(self.runs.values())
        if not runs:
            known = "a timing log, output of ansible.posix.jsonl or job_events of ansible-runner"
            raise Unreadable(f"no run in {self.path}: it is not {known}{self.trouble()}")
        if wanted == "all":
            return runs
        if wanted is None or wanted == "last" or wanted.startswith("last-"):
            back = (wanted or "last")[5:] or "0"
            if not back.isdigit():
                raise Unreadable(f"{wanted!r} is not 'last' or 'last-1' and so on")
            if int(back) >= len(runs):
                raise Unreadable(f"{self.path} has {len(runs)} {'run' if len(runs) == 1 else 'runs'}: no {wanted!r}")
            return [runs[-1 - int(back)]]
        found = [run for run in self.runs.values() if run.id.startswith(wanted)]
        if not found:
            raise Unreadable(f"no run in {self.path} whose id begins with {wanted!r} (its last is {runs[-1].id})")
        return found

    def trouble(self) -> str:
        """'; 3 lines skipped (line 7: ...)', or nothing."""
        return f"; {self.bad} lines skipped ({self.first_bad})" if self.bad else ""


class _Line(t.NamedTuple):
    data: bytes
    offset: int
    number: int
    whole: bool  # not longer than LONGEST_LINE


def _lines(file: t.BinaryIO, first: int, last: int | None = None, number: int = 1) -> t.Iterator[_Line]:
    """The lines from offset `first` to `last`. A line that is too long comes cut."""
    file.seek(first)
    offset, read = first, file.readline
    while last is None or offset < last:
        data = read(LONGEST_LINE)
        if not data:
            return
        whole, length = True, len(data)
        if length == LONGEST_LINE and not data.endswith(b"\n"):
            whole = False
            while rest := read(LONGEST_LINE):
                length += len(rest)
                if rest.endswith(b"\n"):
                    break
        yield _Line(data, offset, number, whole)
        offset += length
        number += 1


def _is_result(data: bytes) -> bool:
    """Does it look like a result as churten writes it? The index looks no further."""
    return data.startswith(_RESULT) and data[_AFTER_ID] == b'",' and data.endswith(b"}\n")


def _text(data: bytes, line: _Line) -> str:
    if not line.whole:
        raise ValueError(f"longer than {LONGEST_LINE >> 20} MiB")
    return data.decode("utf-8", "replace")


def _spooled(stream: t.IO[bytes]) -> t.BinaryIO:
    spool = tempfile.TemporaryFile(prefix="churten-timings-")  # noqa: SIM115
    while block := stream.read(io.DEFAULT_BUFFER_SIZE * 16):
        spool.write(block)
    spool.seek(0)
    return t.cast(t.BinaryIO, spool)
