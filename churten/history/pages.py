"""The history as HTML: pages for `serve`, and one page of a run for `export html`. Everything is escaped; no page loads anything."""

from __future__ import annotations

import json
import sqlite3
import time
import typing as t
import urllib.parse

import jinja2

from . import query
from .place import Unusable

PER_PAGE = 100
ROWS_PER_PAGE = 1000

_environment = jinja2.Environment(
    loader=jinja2.PackageLoader("churten.history", "page"), autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined
)
_environment.filters["clock"] = lambda when: time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when))
_environment.filters["seconds"] = lambda value: "" if value is None else f"{value:.2f}"
_environment.globals["statuses"] = query.STATUSES


class NoPage(Exception):
    """There is no such page."""


def page(db: sqlite3.Connection, path: str, question: str) -> str:
    """The page of a path (percent-decoded) and a query string. Raises NoPage."""
    asked = {key: values[-1] for key, values in urllib.parse.parse_qs(question, max_num_fields=20).items()}
    words = [word for word in path.split("/") if word]
    if not words:
        return _runs(db, asked)
    if words == ["search"]:
        found = query.search(db, asked.get("text", ""), limit=ROWS_PER_PAGE)
        return _render("rows.html", f"Results with {asked.get('text', '')!r}", run=None, results=found, show_host=True, show_task=True)
    if words[0] != "run" or len(words) not in (2, 4) or not all(_is_number(word) for word in words[1::2]):
        raise NoPage
    try:
        run = query.by_id(db, int(words[1]))
    except Unusable as ex:
        raise NoPage from ex
    if len(words) == 2:
        return run_page(db, run, links=True)
    kind, number = words[2], int(words[3])
    if kind == "host":
        return _host(db, run, number, asked)
    if kind == "task":
        return _task(db, run, number, asked)
    if kind == "result":
        return _result(db, run, number)
    raise NoPage


def run_page(db: sqlite3.Connection, run: sqlite3.Row, links: bool, results: t.Iterable[sqlite3.Row] | None = None) -> str:
    """All of a run on one page; with `results` also every result."""
    run_id = run["id"]
    return _render(
        "run.html",
        f"{run['playbook']} {run['run'][:8]}",
        run=run,
        links=links,
        plays=query.plays(db, run_id),
        tasks=query.tasks(db, run_id),
        hosts=query.hosts(db, run_id),
        results=results,
        files=db.execute("SELECT path, content FROM files WHERE run_id = ? ORDER BY path", (run_id,)).fetchall(),
    )


def _runs(db: sqlite3.Connection, asked: dict[str, str]) -> str:
    names = ("playbook", "label", "host", "task")
    chosen = query.Filter(asked.get("playbook") or None, asked.get("label") or None, asked.get("host") or None, asked.get("task") or None)
    offset = _offset(asked)
    found = query.runs(db, chosen, PER_PAGE + 1, offset)
    more = urllib.parse.urlencode(asked | {"from": str(offset + PER_PAGE)}) if len(found) > PER_PAGE else ""
    return _render("runs.html", "Runs", runs=found[:PER_PAGE], more=more, asked={name: asked.get(name, "") for name in names})


def _host(db: sqlite3.Connection, run: sqlite3.Row, number: int, asked: dict[str, str]) -> str:
    host = db.execute("SELECT * FROM hosts WHERE id = ? AND run_id = ?", (number, run["id"])).fetchone()
    if host is None:
        raise NoPage
    facts = json.dumps(json.loads(host["facts"]), indent=2, sort_keys=True) if host["facts"] else None
    return _rows(db, run, f"Host {host['name']}", asked, host=number, show_host=False, facts=facts)


def _task(db: sqlite3.Connection, run: sqlite3.Row, number: int, asked: dict[str, str]) -> str:
    task = db.execute("SELECT * FROM tasks WHERE id = ? AND run_id = ?", (number, run["id"])).fetchone()
    if task is None:
        raise NoPage
    about = ", ".join(str(task[name]) for name in ("action", "role", "path") if task[name])
    return _rows(db, run, f"Task {task['name']}", asked, task=number, show_task=False, about=about)


def _rows(
    db: sqlite3.Connection,
    run: sqlite3.Row,
    title: str,
    asked: dict[str, str],
    host: int | None = None,
    task: int | None = None,
    show_host: bool = True,
    show_task: bool = True,
    about: str = "",
    facts: str | None = None,
) -> str:
    offset = _offset(asked)
    found = list(query.results(db, run["id"], host, task, ROWS_PER_PAGE + 1, offset))
    more = f"from={offset + ROWS_PER_PAGE}" if len(found) > ROWS_PER_PAGE else ""
    return _render(
        "rows.html",
        title,
        run=run,
        results=found[:ROWS_PER_PAGE],
        show_host=show_host,
        show_task=show_task,
        about=about,
        facts=facts,
        more=more,
    )


def _result(db: sqlite3.Connection, run: sqlite3.Row, number: int) -> str:
    found = db.execute("SELECT host_id, task_id FROM results WHERE id = ? AND run_id = ?", (number, run["id"])).fetchone()
    if found is None:
        raise NoPage
    row = next(row for row in query.results(db, run["id"], found["host_id"], found["task_id"]) if row["id"] == number)
    content = None if row["content"] is None else json.dumps(json.loads(row["content"]), indent=2, sort_keys=True, ensure_ascii=False)
    return _render("result.html", row["task"], run=run, row=row, content=content)


def _render(template: str, title: str, **values: object) -> str:
    return _environment.get_template(template).render({"title": title, "about": "", "facts": None, "more": "", "links": True} | values)


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdigit() and len(word) < 16


def _offset(asked: dict[str, str]) -> int:
    return int(asked["from"]) if _is_number(asked.get("from", "")) else 0
