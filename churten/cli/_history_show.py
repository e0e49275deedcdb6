"""The history on a terminal."""

from __future__ import annotations

import json
import sqlite3
import time
import typing as t

from churten.history import query
from churten.timings.workers import one_line

from ._tables import percent, seconds, table

_SHORT = {"ok": "ok", "changed": "chg", "skipped": "skip", "failed": "fail", "ignored": "ign", "unreachable": "unr"}
_SLOWER = 0.2
_SLOWER_S = 0.1


def runs(rows: t.Sequence[sqlite3.Row], as_json: bool) -> None:
    """One line per run."""
    if as_json:
        print(json.dumps([run_dict(row) for row in rows], indent=1))
        return
    if not rows:
        print("no runs")
        return
    lines = [
        (row["run"][:8], clock(row["started"]), row["state"], seconds(row["seconds"]), row["hosts"], row["results"], row["playbook"], row["labels"] or "")
        for row in rows
    ]
    for line in table(["<run", "<started", "<state", "seconds", "hosts", "results", "<playbook", "<labels"], lines, 6):
        print(line)


def run_dict(row: sqlite3.Row) -> dict[str, object]:
    """A run for programs."""
    found = {name: row[name] for name in row.keys() if name not in ("id", "labels", "arguments")}  # noqa: SIM118
    return found | {"labels": (row["labels"] or "").split(), "arguments": json.loads(row["arguments"] or "{}")}


def run(db: sqlite3.Connection, row: sqlite3.Row) -> None:
    """All of a run but its results."""
    words = [f"run {row['run']}: {row['path'] or row['playbook']}", f"started {clock(row['started'])}, {row['state']}"]
    if row["seconds"] is not None:
        words[1] += f", {row['seconds']:.2f}s"
    more = [f"{name} {row[name]}" for name in ("ansible", "churten", "forks", "controller", "user") if row[name] is not None]
    for line in [*words, ", ".join(more), *([f"labels: {row['labels']}"] if row["labels"] else [])]:
        print(one_line(line))
    for play in query.plays(db, row["id"]):
        print()
        print(one_line(f"play: {play['name']}" + (f" (strategy {play['strategy']})" if play["strategy"] else "")))
        lines = [
            (task["name"], task["count"], *(task[status] or "" for status in query.STATUSES), seconds(task["sum"]), seconds(task["max"]), task["action"])
            for task in query.tasks(db, row["id"])
            if task["play_id"] == play["id"]
        ]
        for line in table(["<task", "results", *_SHORT.values(), "sum", "max", "<action"], lines):
            print(line)
    print()
    lines = [(host["name"], host["count"], *(host[status] or "" for status in query.STATUSES), seconds(host["sum"])) for host in query.hosts(db, row["id"])]
    for line in table(["<host", "results", *_SHORT.values(), "sum"], lines):
        print(line)


def results(db: sqlite3.Connection, row: sqlite3.Row, host: str | None, task: str | None) -> bool:
    """Results of a host or of tasks. False if there are none."""
    found = [
        result
        for result in query.results(db, row["id"])
        if (host is None or result["host"] == host) and (task is None or task.lower() in result["task"].lower())
    ]
    if not found:
        return False
    lines = [(result["host"], result["task"], result["status"], seconds(result["at"]), seconds(result["seconds"]), result["path"] or "") for result in found]
    for line in table(["<host", "<task", "<status", "at", "seconds", "<file"], lines, 1):
        print(line)
    for result in found:
        if result["content"] is not None:
            print()
            print(one_line(f"{result['host']}, {result['task']}:"))
            print(json.dumps(json.loads(result["content"]), indent=2, sort_keys=True))
    return True


def diff(one: sqlite3.Row, two: sqlite3.Row, changes: t.Sequence[query.Change], everything: bool) -> None:
    """What changed from one run to another."""
    for mark, row in (("A", one), ("B", two)):
        print(one_line(f"{mark}: {row['run'][:8]} {clock(row['started'])} {row['playbook']} {row['state']} {seconds(row['seconds'])}"))
    lines = []
    for change in changes:
        gain = None if not change.before or change.after is None else (change.before - change.after) / change.before
        moved = change.before is None or change.after is None
        if not moved and gain is not None:
            moved = abs(gain) > _SLOWER and abs((change.after or 0.0) - (change.before or 0.0)) > _SLOWER_S
        if everything or moved or change.hosts:
            which = "only in B" if change.before is None else "only in A" if change.after is None else ""
            lines.append((change.task, seconds(change.before), seconds(change.after), percent(gain), which or _statuses(change.hosts)))
    if not lines:
        print("the same tasks with the same statuses, in about the same time")
        return
    for line in table(["<task", "A", "B", "gain", "<what changed"], lines):
        print(line)


def _statuses(hosts: dict[str, tuple[str, str]]) -> str:
    by_pair: dict[tuple[str, str], list[str]] = {}
    for host, pair in hosts.items():
        by_pair.setdefault(pair, []).append(host)
    words = []
    for (before, after), names in by_pair.items():
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        words.append(f"{before} -> {after}: {shown}")
    return "; ".join(words)


def found(rows: t.Sequence[sqlite3.Row]) -> None:
    """Results of several runs."""
    if not rows:
        print("nothing found")
        return
    lines = [(row["run"][:8], clock(row["run_started"]), row["host"], row["task"], row["status"], seconds(row["seconds"]), row["path"] or "") for row in rows]
    for line in table(["<run", "<started", "<host", "<task", "<status", "seconds", "<file"], lines, 3):
        print(line)


def clock(when: float) -> str:
    """Local date and time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when))
