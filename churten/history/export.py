"""Runs for other programs: JSON with everything, CSV with a line per result, HTML as one page."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
import typing as t

from . import pages, query

COLUMNS = (
    "run playbook started play task uuid action role path host status at seconds queue connect remote controller engine worker items attempts delegated".split()
)


def to_json(db: sqlite3.Connection, runs: t.Sequence[sqlite3.Row]) -> t.Iterator[str]:
    """A list of runs, each with plays, tasks, hosts, results and files."""
    yield "["
    for number, run in enumerate(runs):
        yield ",\n" if number else "\n"
        head = _plain(run, ("arguments",)) | {"labels": (run["labels"] or "").split(), "hosts": []}
        head["plays"] = [_plain(row) for row in query.plays(db, run["id"])]
        head["tasks"] = [_plain(row, ("tags",)) for row in query.tasks(db, run["id"])]
        rows = db.execute("SELECT id, name, stats, facts FROM hosts WHERE run_id = ? ORDER BY name", (run["id"],))
        head["hosts"] = [_plain(row, ("stats", "facts")) for row in rows]
        head["files"] = [_plain(row) for row in db.execute("SELECT path, content FROM files WHERE run_id = ? ORDER BY path", (run["id"],))]
        head.pop("results", None)
        yield json.dumps(head)[:-1] + ', "results": ['
        for place, row in enumerate(query.results(db, run["id"])):
            yield (",\n" if place else "\n") + json.dumps(_plain(row, ("content",)))
        yield "]}"
    yield "\n]\n"


def to_csv(db: sqlite3.Connection, runs: t.Sequence[sqlite3.Row]) -> t.Iterator[str]:
    """A line per result. A text that a spreadsheet would take for a formula gets an apostrophe before it."""
    line = io.StringIO()
    writer = csv.writer(line)
    writer.writerow(COLUMNS)
    for run in runs:
        for row in query.results(db, run["id"]):
            known = {"run": run["run"], "playbook": run["playbook"], "uuid": row["task_uuid"]}
            writer.writerow([_cell(known[name] if name in known else row[name]) for name in COLUMNS])
            yield line.getvalue()
            line.seek(0)
            line.truncate()
    yield line.getvalue()


def to_html(db: sqlite3.Connection, run: sqlite3.Row) -> t.Iterator[str]:
    """One run."""
    yield pages.run_page(db, run, links=False, results=query.results(db, run["id"]))


def _plain(row: sqlite3.Row, as_json: t.Sequence[str] = ()) -> dict[str, t.Any]:
    found = dict(zip(row.keys(), row, strict=True))
    for name in as_json:
        found[name] = json.loads(found[name]) if found[name] else None
    return found


def _cell(value: object) -> object:
    return "'" + value if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
