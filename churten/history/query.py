"""Questions to the history. Answers are sqlite3.Row or plain values; times in seconds since 1970, durations in seconds."""

from __future__ import annotations

import calendar
import dataclasses
import re
import sqlite3
import time
import typing as t

from .place import Unusable

STATES = ("running", "completed", "failed", "interrupted")
STATUSES = ("ok", "changed", "skipped", "failed", "ignored", "unreachable")
_UNITS = {"h": 3600.0, "d": 86400.0, "w": 604800.0}

_COUNTS = ", ".join(f"sum(status = '{status}') AS {status}" for status in STATUSES)


@dataclasses.dataclass(frozen=True)
class Filter:
    """Which runs. Texts match anywhere in what they are compared with; None is all."""

    playbook: str | None = None
    label: str | None = None
    host: str | None = None
    task: str | None = None
    state: str | None = None
    since: float | None = None
    until: float | None = None

    def where(self) -> tuple[str, list[object]]:
        """SQL after WHERE, and its values."""
        parts: list[str] = ["1"]
        values: list[object] = []
        for text, sql in (
            (self.playbook, r"coalesce(path, playbook) LIKE ? ESCAPE '\'"),
            (self.label, r"id IN (SELECT run_id FROM labels WHERE name LIKE ? ESCAPE '\')"),
            (self.host, r"id IN (SELECT run_id FROM hosts WHERE name LIKE ? ESCAPE '\')"),
            (self.task, r"id IN (SELECT run_id FROM tasks WHERE name LIKE ? ESCAPE '\')"),
        ):
            if text is not None:
                parts.append(sql)
                values.append(like(text))
        for value, sql in ((self.state, "state = ?"), (self.since, "started >= ?"), (self.until, "started < ?")):
            if value is not None:
                parts.append(sql)
                values.append(value)
        return " AND ".join(parts), values


def like(text: str) -> str:
    """The pattern for LIKE (with ESCAPE '\\') that finds `text` anywhere."""
    return "%" + re.sub(r"([\\%_])", r"\\\1", text) + "%"


def runs(db: sqlite3.Connection, chosen: Filter | None = None, limit: int | None = None, offset: int = 0) -> list[sqlite3.Row]:
    """Runs, the latest first."""
    where, values = (chosen or Filter()).where()
    return db.execute(
        f"SELECT *, (SELECT group_concat(name, ' ') FROM labels WHERE run_id = runs.id) AS labels, "
        "(SELECT count(*) FROM hosts WHERE run_id = runs.id) AS hosts "
        f"FROM runs WHERE {where} ORDER BY started DESC, id DESC LIMIT ? OFFSET ?",
        (*values, -1 if limit is None else limit, offset),
    ).fetchall()


def run(db: sqlite3.Connection, wanted: str | None) -> sqlite3.Row:
    """The run a user means: None or 'last', 'last-1' and so on, or the beginning of its id. Raises Unusable."""
    if wanted is None or re.fullmatch(r"last(-\d{1,6})?", wanted):
        back = int((wanted or "last")[5:] or 0)
        found = runs(db, limit=1, offset=back)
        if not found:
            count = db.execute("SELECT count(*) FROM runs").fetchone()[0]
            raise Unusable("the history has no runs yet" if not count else f"the history has {count} runs: no {wanted!r}")
        return found[0]
    ids = db.execute("SELECT id FROM runs WHERE run LIKE ? ESCAPE '\\' LIMIT 2", (like(wanted)[1:],)).fetchall()
    if len(ids) != 1:
        raise Unusable(f"no run in the history whose id begins with {wanted!r}" if not ids else f"more than one run's id begins with {wanted!r}")
    return by_id(db, ids[0][0])


def by_id(db: sqlite3.Connection, run_id: int) -> sqlite3.Row:
    """A run by its row. Raises Unusable."""
    found = db.execute(
        "SELECT *, (SELECT group_concat(name, ' ') FROM labels WHERE run_id = runs.id) AS labels, "
        "(SELECT count(*) FROM hosts WHERE run_id = runs.id) AS hosts FROM runs WHERE id = ?",
        (run_id,),
    ).fetchone()
    if found is None:
        raise Unusable(f"no run {run_id} in the history")
    return t.cast(sqlite3.Row, found)


def plays(db: sqlite3.Connection, run_id: int) -> list[sqlite3.Row]:
    """Plays with their counts, in order."""
    return db.execute(
        "SELECT p.id, p.name, p.uuid, p.strategy, p.slots, count(r.id) AS results, min(r.at) AS first, max(r.at + r.seconds) AS last, "
        f"min(r.started) AS started, {_COUNTS} FROM plays p LEFT JOIN tasks t ON t.play_id = p.id LEFT JOIN results r ON r.task_id = t.id "
        "WHERE p.run_id = ? GROUP BY p.id ORDER BY p.id",
        (run_id,),
    ).fetchall()


def tasks(db: sqlite3.Connection, run_id: int) -> list[sqlite3.Row]:
    """Tasks with their counts and times, in the order they were first done."""
    return db.execute(
        "SELECT t.*, count(r.id) AS count, coalesce(sum(r.seconds), 0) AS sum, max(r.seconds) AS max, min(r.at) AS first, "
        f"max(r.at + r.seconds) AS last, min(r.started) AS started, {_COUNTS} FROM tasks t LEFT JOIN results r ON r.task_id = t.id "
        "WHERE t.run_id = ? GROUP BY t.id ORDER BY first, t.id",
        (run_id,),
    ).fetchall()


def hosts(db: sqlite3.Connection, run_id: int) -> list[sqlite3.Row]:
    """Hosts with their counts and times, by name."""
    return db.execute(
        f"SELECT h.id, h.name, h.stats, h.facts IS NOT NULL AS has_facts, count(r.id) AS count, coalesce(sum(r.seconds), 0) AS sum, {_COUNTS} "
        "FROM hosts h LEFT JOIN results r ON r.host_id = h.id WHERE h.run_id = ? GROUP BY h.id ORDER BY h.name",
        (run_id,),
    ).fetchall()


def results(
    db: sqlite3.Connection, run_id: int, host: int | None = None, task: int | None = None, limit: int | None = None, offset: int = 0
) -> t.Iterator[sqlite3.Row]:
    """Results of a run, of one host or task, in the order they began; `content` as JSON text."""
    where, values = "r.run_id = ?", [run_id]
    for column, value in (("host_id", host), ("task_id", task)):
        if value is not None:
            where += f" AND r.{column} = ?"
            values.append(value)
    yield from db.execute(
        "SELECT r.*, t.name AS task, t.action, t.role, t.path, t.uuid AS task_uuid, h.name AS host, p.name AS play, p.id AS play_id "
        "FROM results r JOIN tasks t ON t.id = r.task_id JOIN hosts h ON h.id = r.host_id JOIN plays p ON p.id = t.play_id "
        f"WHERE {where} ORDER BY r.at, r.id LIMIT ? OFFSET ?",
        (*values, -1 if limit is None else limit, offset),
    )


def search(db: sqlite3.Connection, text: str, status: str | None = None, chosen: Filter | None = None, limit: int = 100) -> list[sqlite3.Row]:
    """Results whose task, action, role, place, host or content has the text, of the latest runs first."""
    where, values = (chosen or Filter()).where()
    pattern = like(text)
    return db.execute(
        "SELECT r.*, u.run, u.started AS run_started, t.name AS task, t.action, t.path, h.name AS host "
        "FROM runs u JOIN results r ON r.run_id = u.id JOIN tasks t ON t.id = r.task_id JOIN hosts h ON h.id = r.host_id "
        f"WHERE u.id IN (SELECT id FROM runs WHERE {where}) AND (? IS NULL OR r.status = ?) AND ("
        + " OR ".join(rf"{column} LIKE ? ESCAPE '\'" for column in ("t.name", "t.action", "t.role", "t.path", "h.name", "r.content"))
        + ") ORDER BY u.started DESC, u.id DESC, r.at LIMIT ?",
        (*values, status, status, *[pattern] * 6, limit),
    ).fetchall()


class Change(t.NamedTuple):
    """A task in two runs: statuses by host where they differ, sums of seconds; None where a run does not have it."""

    play: str
    task: str
    path: str | None
    before: float | None
    after: float | None
    hosts: dict[str, tuple[str, str]]


def diff(db: sqlite3.Connection, one: int, two: int) -> list[Change]:
    """The tasks of both runs, matched by play, name and order among equal names; in the order of the later run, then what is gone."""
    left, right = (_by_task(db, run_id) for run_id in (one, two))
    found = []
    for key in [*right, *(key for key in left if key not in right)]:
        a, b = left.get(key), right.get(key)
        statuses = {}
        hosts_a, hosts_b = (side[1] if side else {} for side in (a, b))
        for host in sorted({*hosts_a, *hosts_b}):
            pair = hosts_a.get(host, "-"), hosts_b.get(host, "-")
            if pair[0] != pair[1]:
                statuses[host] = pair
        some = b or a
        assert some is not None
        found.append(Change(key[0], key[1], some[2], a[0] if a else None, b[0] if b else None, statuses))
    return found


def _by_task(db: sqlite3.Connection, run_id: int) -> dict[tuple[str, str, int], tuple[float, dict[str, str], str | None]]:
    """(play, name, which of that name on the host) -> seconds, status by host, place."""
    found: dict[tuple[str, str, int], tuple[float, dict[str, str], str | None]] = {}
    seen: dict[tuple[str, str, str], int] = {}
    for row in results(db, run_id):
        mine = row["play"], row["task"], row["host"]
        number = seen[mine] = seen.get(mine, -1) + 1
        key = row["play"], row["task"], number
        seconds, statuses, path = found.get(key, (0.0, {}, row["path"]))
        statuses[row["host"]] = row["status"]
        found[key] = seconds + row["seconds"], statuses, path
    return found


def moment(text: str, now: float | None = None) -> float:
    """A time as users write it: 2026-11-21, 2026-11-21T10:11 (local time), or an age: 12h, 30d, 4w. ValueError otherwise."""
    if match := re.fullmatch(r"(\d{1,6})([hdw])", text):
        return (time.time() if now is None else now) - int(match[1]) * _UNITS[match[2]]
    for form in ("%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M"):
        try:
            return time.mktime(time.strptime(text, form))
        except (ValueError, OverflowError):
            continue
    if match := re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d+)?Z", text):
        return float(calendar.timegm(time.strptime(match[1], "%Y-%m-%dT%H:%M:%S")))
    raise ValueError(f"{text!r} is neither a date (2026-11-21, 2026-11-21T10:11) nor an age (12h, 30d, 4w)")
