"""Sends a run to an ARA server (1.6 or later), which shows it as if its own callback had recorded it.

Everything is posted once, in its final form, oldest things first: playbook, files, plays, tasks, hosts, results, records. Nothing of it is remembered here:
the server is asked what it has got. The playbook is found by its label `churten:<run>`, plays and tasks by their uuids, hosts by name, results by task,
host and start; the record comes last and says that all is there. So a push that was cut anywhere is taken up by the next one, and nothing is there twice.

Known traps of ARA: a duration of whole seconds is shown wrong (so none is sent); texts end at 255 characters; a file's text may not be empty; uuids must be
uuids; stamps need a time zone; NUL and lone surrogates cannot be stored.
"""

from __future__ import annotations

import base64
import collections
import datetime
import http.client
import json
import sqlite3
import ssl
import typing as t
import urllib.parse
import uuid

import churten

from ..timings.workers import one_line
from . import query
from .place import Unusable
from .serve import is_loopback

TIMEOUT_S = 60.0
RECORD = "churten_timings"
_TEXT_MAX = 254
_PAGE = 1000
_NO_TEXT = "# The text of this file was not kept (history_files).\n"


class Server:
    """One connection to an ARA server. Every error is one sentence: Unusable."""

    def __init__(self, url: str, login: tuple[str, str] | None = None) -> None:
        """`url`: as in a browser, with a path if the server has one. `login`: user and password, for Basic authentication."""
        split = urllib.parse.urlsplit(url)
        if split.scheme not in ("http", "https") or not split.hostname:
            raise Unusable(f"{url!r} is not the address of a server (http://host:port or https://host)")
        if split.username is not None or split.password is not None:
            raise Unusable("the address of a server must not hold a user or a password: use --user")
        if login is not None and split.scheme == "http" and not is_loopback(split.hostname):
            raise Unusable(f"the password would travel to {split.hostname} in the clear: use https")
        self.url = f"{split.scheme}://{split.netloc}{split.path.rstrip('/')}"
        self._base = split.path.rstrip("/") + "/api/v1/"
        self._headers = {"Accept": "application/json", "User-Agent": f"churten/{churten.__version__}"}
        if login is not None:
            self._headers["Authorization"] = "Basic " + base64.b64encode(":".join(login).encode()).decode()
        self._http = (
            http.client.HTTPSConnection(split.hostname, split.port, timeout=TIMEOUT_S, context=ssl.create_default_context())
            if split.scheme == "https"
            else http.client.HTTPConnection(split.hostname, split.port, timeout=TIMEOUT_S)
        )

    def close(self) -> None:
        """Hang up."""
        self._http.close()

    def post(self, what: str, body: dict[str, object]) -> int:
        """Create something; answers its id."""
        found = self._ask("POST", what, json.dumps(clean(body)).encode())
        if not isinstance(found, dict) or not isinstance(found.get("id"), int):
            raise Unusable(f"{self.url} is no ARA server: its answer has no id")
        return int(found["id"])

    def all(self, what: str, **filters: object) -> t.Iterator[dict[str, t.Any]]:
        """Everything of a kind that fits."""
        offset = 0
        while True:
            asked = urllib.parse.urlencode(filters | {"limit": _PAGE, "offset": offset, "order": "id"})
            found = self._ask("GET", f"{what}?{asked}", None)
            if not isinstance(found, dict) or not isinstance(found.get("results"), list):
                raise Unusable(f"{self.url} is no ARA server: its answer has no results")
            yield from found["results"]
            offset += len(found["results"])
            if not found.get("next") or not found["results"]:
                return

    def _ask(self, method: str, what: str, body: bytes | None) -> object:
        headers = self._headers | ({"Content-Type": "application/json"} if body is not None else {})
        try:
            self._http.request(method, self._base + what, body, headers)
            answer = self._http.getresponse()
            data = answer.read()
        except (OSError, http.client.HTTPException) as ex:
            self._http.close()
            raise Unusable(f"{self.url} does not answer: {ex or type(ex).__name__}; run the same command again to go on from here") from ex
        if answer.status in (401, 403):
            raise Unusable(f"{self.url} wants another user or password ({answer.status} {answer.reason}): --user NAME")
        if not 200 <= answer.status < 300:
            words = one_line(data.decode("utf-8", "replace"))[:300]
            raise Unusable(f"{self.url} refused {method} {what.partition('?')[0]}: {answer.status} {answer.reason}: {words}")
        try:
            return json.loads(data)
        except ValueError:
            raise Unusable(f"{self.url} is no ARA server: its answer is not JSON") from None


class Pushed(t.NamedTuple):
    """What a push did: the playbook's id there, how many things were new, and how many were there already."""

    playbook: int
    new: int
    known: int


def push(db: sqlite3.Connection, run: sqlite3.Row, server: Server) -> Pushed:
    """Send a run that has ended. Raises Unusable; then the same call goes on where it stopped."""
    if run["state"] == "running":
        raise Unusable(f"run {run['run']} has not ended yet")
    return _Push(db, run, server).run()


class _Push:
    def __init__(self, db: sqlite3.Connection, run: sqlite3.Row, server: Server) -> None:
        self._db = db
        self._run = run
        self._server = server
        self._label = f"churten:{run['run']}"
        self._new = self._known = 0
        self._playbook = 0

    def run(self) -> Pushed:
        found = [one for one in self._server.all("playbooks", label=self._label) if self._label in (label["name"] for label in one["labels"])]
        if found:
            self._playbook = found[0]["id"]
            self._known += 1
            if any(record["key"] == RECORD for record in self._server.all("records", playbook=self._playbook)):
                return Pushed(self._playbook, 0, found[0]["items"]["results"])
        else:
            self._playbook = self._post("playbooks", self._playbook_body())
        again = bool(found)
        files = self._files(again)
        plays = self._plays(again)
        tasks = self._tasks(again, files, plays)
        hosts = self._hosts(again)
        self._results(again, plays, tasks, hosts)
        self._post("records", {"playbook": self._playbook, "key": RECORD, "type": "json", "value": self._record()})
        return Pushed(self._playbook, self._new, self._known)

    def _post(self, what: str, body: dict[str, object]) -> int:
        self._new += 1
        return self._server.post(what, body)

    def _there(self, what: str, again: bool) -> t.Iterator[dict[str, t.Any]]:
        """What the server has got of the playbook already."""
        for one in self._server.all(what, playbook=self._playbook) if again else ():
            self._known += 1
            yield one

    def _playbook_body(self) -> dict[str, object]:
        run = self._run
        return {
            "ansible_version": run["ansible"] or "unknown",
            "client_version": f"churten {run['churten'] or churten.__version__}",
            "python_version": run["python"],
            "path": run["path"] or run["playbook"],
            "status": {"completed": "completed", "failed": "failed"}.get(run["state"], "expired"),
            "controller": run["controller"] or "localhost",
            "user": run["user"],
            "arguments": json.loads(run["arguments"] or "{}") | {"forks": run["forks"]},
            "labels": [self._label, *(run["labels"] or "").split()],
        } | stamps(run["started"], run["seconds"])

    def _files(self, again: bool) -> dict[str, int]:
        there = {one["path"]: one["id"] for one in self._there("files", again)}
        texts = dict(tuple(row) for row in self._db.execute("SELECT path, content FROM files WHERE run_id = ?", (self._run["id"],)))
        paths = [self._run["path"] or self._run["playbook"]]
        paths += [_split(row["path"], "")[0] for row in self._db.execute("SELECT DISTINCT path FROM tasks WHERE run_id = ? ORDER BY id", (self._run["id"],))]
        found = {}
        for path in dict.fromkeys(path for path in paths if path):
            text = texts.get(path, _NO_TEXT)
            sent = clean(path)[:_TEXT_MAX]
            found[path] = there.get(sent) or self._post("files", {"playbook": self._playbook, "path": sent, "content": text if text.strip() else "# empty\n"})
        return found

    def _plays(self, again: bool) -> dict[int, int]:
        there = {str(one["uuid"]): one["id"] for one in self._there("plays", again)}
        found = {}
        for play in query.plays(self._db, self._run["id"]):
            name = self._uuid(play["uuid"])
            when = stamps(play["started"] or self._run["started"], (play["last"] or 0.0) - (play["first"] or 0.0))
            body: dict[str, object] = {"playbook": self._playbook, "name": play["name"], "uuid": name, "status": "completed"} | when
            found[play["id"]] = there.get(name) or self._post("plays", body)
        return found

    def _tasks(self, again: bool, files: dict[str, int], plays: dict[int, int]) -> dict[int, int]:
        there = {str(one["uuid"]): one["id"] for one in self._there("tasks", again)}
        found = {}
        book = self._run["path"] or self._run["playbook"]
        for task in query.tasks(self._db, self._run["id"]):
            path, line = _split(task["path"], book)
            name = self._uuid(task["uuid"])
            body: dict[str, object] = {
                "playbook": self._playbook,
                "play": plays[task["play_id"]],
                "file": files[path or book],
                "name": task["name"],
                "uuid": name,
                "action": task["action"],
                "lineno": line,
                "handler": bool(task["handler"]),
                "tags": json.loads(task["tags"]),
                "status": "failed" if task["failed"] or task["unreachable"] else "completed",
            } | stamps(task["started"] or self._run["started"], (task["last"] or 0.0) - (task["first"] or 0.0))
            found[task["id"]] = there.get(name) or self._post("tasks", body)
        return found

    def _hosts(self, again: bool) -> dict[str, int]:
        there = {one["name"]: one["id"] for one in self._there("hosts", again)}
        found = {}
        for host in query.hosts(self._db, self._run["id"]):
            facts = self._db.execute("SELECT facts FROM hosts WHERE id = ?", (host["id"],)).fetchone()[0]
            body: dict[str, object] = {"playbook": self._playbook, "name": host["name"], "facts": json.loads(facts or "{}")} | _counts(host)
            sent = clean(host["name"])[:_TEXT_MAX]
            found[host["name"]] = there.get(sent) or self._post("hosts", body)
        sql = "SELECT DISTINCT delegated FROM results WHERE run_id = ? AND delegated IS NOT NULL"
        for (name,) in self._db.execute(sql, (self._run["id"],)):
            if name not in found:
                found[name] = there.get(clean(name)[:_TEXT_MAX]) or self._post("hosts", {"playbook": self._playbook, "name": name, "facts": {}})
        return found

    def _results(self, again: bool, plays: dict[int, int], tasks: dict[int, int], hosts: dict[str, int]) -> None:
        there = collections.Counter((one["task"], one["host"], _moment(one["started"])) for one in self._there("results", again))
        for row in query.results(self._db, self._run["id"]):
            when = stamps(row["started"], row["seconds"])
            key = tasks[row["task_id"]], hosts[row["host"]], _moment(when["started"])
            if there[key]:
                there[key] -= 1
                continue
            status = {"changed": "ok", "ignored": "failed"}.get(row["status"], row["status"])
            body: dict[str, object] = {
                "playbook": self._playbook,
                "play": plays[row["play_id"]],
                "task": key[0],
                "host": key[1],
                "delegated_to": [hosts[row["delegated"]]] if row["delegated"] else [],
                "status": status,
                "changed": row["status"] == "changed",
                "ignore_errors": row["status"] == "ignored",
                "content": json.loads(row["content"] or "{}"),
            }
            self._post("results", body | when)

    def _record(self) -> dict[str, object]:
        sums = ", ".join(f"sum({name})" for name in ("seconds", "queue", "connect", "remote", "controller"))
        row = self._db.execute(f"SELECT count(*), {sums} FROM results WHERE run_id = ?", (self._run["id"],)).fetchone()
        found: dict[str, object] = dict(zip(("results", "host_seconds", "queue", "connect", "remote", "controller"), row, strict=True))
        slowest = sorted(query.tasks(self._db, self._run["id"]), key=lambda task: -task["sum"])[:20]
        return {"run": self._run["run"], "wall_seconds": self._run["seconds"], "forks": self._run["forks"]} | found | {
            "tasks": [{name: task[name] for name in ("name", "path", "count", "sum", "max")} for task in slowest],
            "strategies": {play["name"]: play["strategy"] for play in query.plays(self._db, self._run["id"])},
        }  # fmt: skip

    def _uuid(self, text: str) -> str:
        try:
            return str(uuid.UUID(text[:36]))
        except ValueError:
            return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{self._run['run']} {text}"))


def stamps(started: float, seconds: float | None) -> dict[str, str]:
    """`started` and `ended` for ARA. Never a whole number of seconds apart."""
    first = round(started * 1e6)
    length = max(0, round((seconds or 0.0) * 1e6))
    length += length % 1_000_000 == 0
    return {"started": _iso(first), "ended": _iso(first + length)}


def _iso(micros: int) -> str:
    return (datetime.datetime.fromtimestamp(micros // 1_000_000, datetime.timezone.utc) + datetime.timedelta(microseconds=micros % 1_000_000)).isoformat(
        timespec="microseconds"
    )


def _moment(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))


def _split(path: str | None, otherwise: str) -> tuple[str, int]:
    name, colon, line = (path or "").rpartition(":")
    return (name, int(line)) if colon and line.isdigit() else (path or otherwise, 1)


def _counts(host: sqlite3.Row) -> dict[str, object]:
    if host["stats"]:
        stats = json.loads(host["stats"])
        return {"ok": stats["ok"], "changed": stats["changed"], "failed": stats["failures"], "skipped": stats["skipped"], "unreachable": stats["unreachable"]}
    found = {name: host[name] or 0 for name in ("changed", "failed", "skipped", "unreachable")}
    return found | {"ok": (host["ok"] or 0) + (host["changed"] or 0) + (host["ignored"] or 0)}


def clean(value: t.Any, key: str | None = None) -> t.Any:
    """`value` as a server can store it: no NUL, no lone surrogates; names cut to what its columns hold."""
    if isinstance(value, str):
        text = value.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()
        return text[:_TEXT_MAX] if key in ("name", "path", "action", "controller", "user", "labels") else text
    if isinstance(value, dict):
        inside = key in ("content", "facts", "value", "arguments", "inside")
        return {clean(name): clean(item, "inside" if inside else name) for name, item in value.items()}
    if isinstance(value, list):
        return [clean(item, key) for item in value]
    return value
