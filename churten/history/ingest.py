"""From lines to rows: what runs have said (spool.py), and timing logs of any format that `churten timings` reads.

A file of runs/ is read from where the last import stopped; its rows and the new position are one transaction. So an import may be cut off anywhere, and
nothing is lost or doubled. A file whose run has ended is removed when all of it is in the database; one whose run died says so by missing its last line.
"""

from __future__ import annotations

import calendar
import contextlib
import dataclasses
import json
import os
import sqlite3
import time
import typing as t

from ..timings import log, reading
from ..timings.model import Result
from . import store
from .place import Place, Unusable, open_private
from .spool import SUFFIX, lives

BATCH_BYTES = 4 << 20
_YOUNG_S = 60.0
_FAILED = ("failed", "unreachable")


@dataclasses.dataclass
class Done:
    """What an import did."""

    runs: int = 0  # runs that got new rows
    results: int = 0
    known: int = 0  # runs of a log that were there already
    bad: int = 0
    first_bad: str = ""
    busy: bool = False  # somebody else is importing


_BATCH = 1000  # results that are kept back at most


class Rows:
    """Writes one run."""

    def __init__(self, connection: sqlite3.Connection, run_id: int) -> None:
        self._db = connection
        self.run_id = run_id
        self._plays: dict[str, int] = {}
        self._tasks: dict[str, int] = {}
        self._hosts: dict[str, int] = {}
        self._batch: list[tuple[object, ...]] = []

    def flush(self) -> None:
        """Write the results that were kept back."""
        if self._batch:
            self._db.executemany(f"INSERT INTO results ({', '.join(_RESULT)}) VALUES ({', '.join('?' * len(_RESULT))})", self._batch)
            self._db.execute("UPDATE runs SET results = results + ? WHERE id = ?", (len(self._batch), self.run_id))
            self._batch.clear()

    def result(self, result: Result, content: object = None, tags: object = None, handler: bool = False) -> None:
        """One result. `tags` and `handler` are its task's, told with the first result."""
        self._batch.append(
            (
                self.run_id,
                self._task(result, tags, handler),
                self.host(result.host),
                result.status,
                result.at,
                wall(result.started) or 0.0,
                result.seconds,
                result.queue,
                result.connect,
                result.remote,
                result.controller,
                result.engine,
                result.worker,
                result.items,
                result.attempts,
                result.delegated,
                None if content is None else json.dumps(content, separators=(",", ":"), sort_keys=True),
            )
        )
        if len(self._batch) >= _BATCH:
            self.flush()

    def play(self, uuid: str, name: str, strategy: str | None = None, slots: int | None = None, at: float | None = None) -> int:
        """The play's row; of a play in batches the first one counts."""
        found = self._plays.get(uuid)
        if found is None:
            self._db.execute(
                "INSERT INTO plays (run_id, uuid, name, strategy, slots, at) VALUES (?, ?, ?, ?, ?, ?) "
                "ON CONFLICT DO UPDATE SET strategy = coalesce(strategy, excluded.strategy), slots = coalesce(slots, excluded.slots), "
                "at = coalesce(at, excluded.at)",
                (self.run_id, uuid, name, strategy, slots, at),
            )
            found = self._plays[uuid] = self._id("plays", "uuid", uuid)
        return found

    def host(self, name: str) -> int:
        """The host's row."""
        found = self._hosts.get(name)
        if found is None:
            self._db.execute("INSERT INTO hosts (run_id, name) VALUES (?, ?) ON CONFLICT DO NOTHING", (self.run_id, name))
            found = self._hosts[name] = self._id("hosts", "name", name)
        return found

    def _task(self, result: Result, tags: object, handler: bool) -> int:
        found = self._tasks.get(result.uuid)
        if found is None:
            play = self.play(result.play_uuid, result.play)
            words = json.dumps([str(tag) for tag in tags] if isinstance(tags, list) else [])
            self._db.execute(
                "INSERT INTO tasks (run_id, play_id, uuid, name, action, role, path, tags, handler) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (self.run_id, play, result.uuid, result.task, result.action, result.role, result.path, words, int(handler)),
            )
            found = self._tasks[result.uuid] = self._id("tasks", "uuid", result.uuid)
        return found

    def _id(self, table: str, column: str, value: str) -> int:
        return int(self._db.execute(f"SELECT id FROM {table} WHERE run_id = ? AND {column} = ?", (self.run_id, value)).fetchone()[0])

    def end(self, seconds: float | None) -> None:
        """The run ended, or died (None)."""
        self.flush()
        state = "interrupted"
        if seconds is None:
            row = self._db.execute("SELECT max(at + seconds) FROM results WHERE run_id = ?", (self.run_id,)).fetchone()
            seconds = row[0] or 0.0
        else:
            state = "failed" if self._failed() else "completed"
        self._db.execute("UPDATE runs SET state = ?, seconds = ? WHERE id = ?", (state, seconds, self.run_id))

    def _failed(self) -> bool:
        """As core sees it: what was rescued has not failed. A log does not know that."""
        told = [json.loads(row[0]) for row in self._db.execute("SELECT stats FROM hosts WHERE run_id = ? AND stats IS NOT NULL", (self.run_id,))]
        if told:
            return any(counts.get("failures") or counts.get("dark") for counts in told)
        marks = ", ".join("?" * len(_FAILED))
        return bool(
            self._db.execute(f"SELECT 1 FROM results WHERE run_id = ? AND status IN ({marks}) LIMIT 1", (self.run_id, *_FAILED)).fetchone()
        )


_RESULT = (
    "run_id task_id host_id status at started seconds queue connect remote controller engine worker items attempts delegated content".split()
)


def add_run(connection: sqlite3.Connection, run: str, facts: dict[str, object], source: str) -> int:
    """A row for a run that begins."""

    def text(name: str) -> str | None:
        value = facts.get(name)
        return value if isinstance(value, str) else None

    forks = facts.get("forks")
    cursor = connection.execute(
        "INSERT INTO runs (run, state, playbook, path, started, ansible, churten, python, controller, user, forks, arguments, source) "
        "VALUES (?, 'running', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            run,
            text("playbook") or "?",
            text("path"),
            wall(text("started")) or 0.0,
            *(text(name) for name in ("ansible", "churten", "python", "controller", "user")),
            forks if isinstance(forks, int) else None,
            json.dumps(facts["arguments"]) if isinstance(facts.get("arguments"), dict) else None,
            source,
        ),
    )
    run_id = int(cursor.lastrowid or 0)
    labels = facts.get("labels")
    for label in labels if isinstance(labels, list) else []:
        connection.execute("INSERT OR IGNORE INTO labels VALUES (?, ?)", (run_id, str(label)))
    return run_id


def pending(place: Place) -> list[str]:
    """Names of the files of runs/, oldest first."""
    try:
        return sorted(name for name in os.listdir(place.runs) if name.endswith(SUFFIX) and not name.startswith("."))
    except FileNotFoundError:
        return []


def runs(place: Place, wait_s: float = 5.0) -> Done:
    """Import what the runs have said so far. Raises Unusable; what is not imported then stays where it is."""
    done = Done()
    place.make()
    if not pending(place):
        return done
    with place.lock(wait_s) as mine:
        if not mine:
            done.busy = True
            return done
        with store.opened(place, write=True) as connection:
            for name in pending(place):
                try:
                    _one(connection, place, name, done)
                except Unusable as ex:
                    done.bad += 1
                    done.first_bad = done.first_bad or str(ex)
    return done


def _one(connection: sqlite3.Connection, place: Place, name: str, done: Done) -> None:
    path = os.path.join(place.runs, name)
    fd = open_private(path)
    try:
        alive = lives(fd)  # asked before reading: what it wrote before it died is read
        found = os.fstat(fd)
        if not found.st_size and (alive or time.time() - found.st_mtime < _YOUNG_S):
            return
        row = connection.execute("SELECT position, run_id FROM imports WHERE name = ?", (name,)).fetchone()
        file = _File(connection, name, row["run_id"] if row else None, done)
        position = int(row["position"]) if row else 0
        while data := _whole_lines(fd, position):
            with store.transaction(connection):
                file.lines(data)
                position += len(data)
                connection.execute(
                    "INSERT INTO imports VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET position = excluded.position, run_id = excluded.run_id",
                    (name, position, file.run_id),
                )
        if not alive:
            with store.transaction(connection):
                if file.run_id is not None:
                    file.close()
                connection.execute("DELETE FROM imports WHERE name = ?", (name,))
            os.unlink(path)
    finally:
        os.close(fd)


def _whole_lines(fd: int, position: int) -> bytes:
    size = BATCH_BYTES
    while True:
        data = os.pread(fd, size, position)
        end = data.rfind(b"\n") + 1
        if end or len(data) < size:
            return data[:end]
        size *= 4  # a very long line


class _File:
    """Takes in the lines of one run."""

    def __init__(self, connection: sqlite3.Connection, name: str, run_id: int | None, done: Done) -> None:
        self._db = connection
        self._name = name
        self._done = done
        self.run_id = run_id
        self._rows = Rows(connection, run_id) if run_id is not None else None
        self._known = False

    def lines(self, data: bytes) -> None:
        before = self._done.results
        for line in data.splitlines():
            try:
                self._line(line.decode("utf-8", "replace"))
            except (ValueError, RecursionError) as ex:
                self._done.bad += 1
                self._done.first_bad = self._done.first_bad or f"{self._name}: {ex}"
        if self._rows is not None:
            self._rows.flush()
        self._done.runs += self._done.results > before

    def _line(self, line: str) -> None:
        if self._known:
            return
        event, run, body = log.read(line)
        if event == "run":
            if self._rows is None:
                if self._db.execute("SELECT 1 FROM runs WHERE run = ?", (run,)).fetchone() is not None:
                    self._known = True  # all of it was imported, but its file could not be removed
                    return
                self.run_id = add_run(self._db, run, body, "callback")
                self._rows = Rows(self._db, self.run_id)
            return
        if self._rows is None:
            raise ValueError("a line before the run's first")
        if event == "result":
            self._rows.result(log.read_result(body), body.get("content"), body.get("tags"), body.get("handler") is True)
            self._done.results += 1
        elif event == "play":
            self._play(body)
        elif event == "stats":
            hosts = body.get("hosts")
            for host, counts in hosts.items() if isinstance(hosts, dict) else ():
                self._db.execute("UPDATE hosts SET stats = ? WHERE id = ?", (json.dumps(counts), self._rows.host(host)))
        elif event == "facts":
            facts = json.dumps(body.get("facts"), separators=(",", ":"))
            self._db.execute("UPDATE hosts SET facts = ? WHERE id = ?", (facts, self._rows.host(str(body.get("host")))))
        elif event == "file":
            self._db.execute(
                "INSERT OR IGNORE INTO files (run_id, path, content) VALUES (?, ?, ?)",
                (self.run_id, str(body.get("path")), str(body.get("content"))),
            )
        elif event == "end":
            seconds = body.get("seconds")
            if not isinstance(seconds, (int, float)) or isinstance(seconds, bool):
                raise ValueError("field 'seconds'")
            self._rows.end(float(seconds))

    def _play(self, body: dict[str, object]) -> None:
        assert self._rows is not None
        uuid, name, strategy, slots, at = (body.get(key) for key in ("play_uuid", "play", "strategy", "slots", "at"))
        if not isinstance(uuid, str) or not isinstance(name, str):
            raise ValueError("field 'play_uuid' or 'play'")
        self._rows.play(
            uuid,
            name,
            strategy if isinstance(strategy, str) else None,
            slots if isinstance(slots, int) else None,
            at if isinstance(at, (int, float)) else None,
        )

    def close(self) -> None:
        """There will be no more lines."""
        assert self._rows is not None
        state = self._db.execute("SELECT state FROM runs WHERE id = ?", (self.run_id,)).fetchone()
        if state is not None and state[0] == "running":
            self._rows.end(None)


def timing_log(place: Place, path: str, labels: t.Sequence[str] = ()) -> Done:
    """Import the runs of a timing log that are not in the history yet. A run that had not ended when it was imported is replaced. Raises Unusable."""
    done = Done()
    try:
        with place_lock(place), store.opened(place, write=True) as connection, reading.Log(path) as source:
            for run in source.runs.values():
                with store.transaction(connection):
                    _log_run(connection, source, run, labels, done)
            done.bad, done.first_bad = source.bad, source.first_bad
    except reading.Unreadable as ex:
        raise Unusable(str(ex)) from ex
    return done


@contextlib.contextmanager
def place_lock(place: Place) -> t.Iterator[None]:
    """Be the one writer, or raise Unusable."""
    place.make()
    with place.lock(60.0) as mine:
        if not mine:
            raise Unusable("somebody else writes to the history for a minute already: try again later")
        yield


def _log_run(connection: sqlite3.Connection, source: reading.Log, run: reading.Run, labels: t.Sequence[str], done: Done) -> None:
    found = connection.execute("SELECT id, state, source FROM runs WHERE run = ?", (run.id,)).fetchone()
    if found is not None:
        if found["source"] != "log" or found["state"] != "interrupted":
            done.known += 1
            return
        connection.execute("DELETE FROM runs WHERE id = ?", (found["id"],))
    rows: Rows | None = None
    for result in source.results(run):
        if rows is None:
            facts: dict[str, object] = {"started": result.started} | (run.facts or {}) | {"labels": list(labels)}
            rows = Rows(connection, add_run(connection, run.id, facts, "log"))
            done.runs += 1
        if result.play_uuid in run.plays:
            play = run.plays[result.play_uuid]
            rows.play(result.play_uuid, result.play, play.strategy, play.slots)
        rows.result(result)
        done.results += 1
    if rows is not None:
        rows.end(run.seconds)


def wall(text: str | None) -> float | None:
    """Seconds since 1970 of a log's wall clock, `2026-11-21T10:11:12.345Z`; None if it is no such text."""
    if text is None:
        return None
    try:
        return calendar.timegm(time.strptime(text[:19], "%Y-%m-%dT%H:%M:%S")) + (float("0" + text[19:-1]) if len(text) > 20 else 0.0)
    except ValueError:
        return None


def main(directory: str) -> int:
    """What a run starts when it has ended: nobody waits for it and nobody reads its words."""
    with contextlib.suppress(Unusable, OSError):
        runs(Place(directory), wait_s=30.0)
    return 0


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1]))
