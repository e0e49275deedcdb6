"""What others wrote about a run, as lines of our timing log: the events of ansible.posix.jsonl and of ansible-runner (AWX, Automation Platform).

Both say when a host's task started and when its result was handled, on the wall clock. Nobody measured queue, connect and remote there, so these are
null. jsonl under `linear` gives the start of the task, not of the host: there the wait for a slot is inside `seconds`.

ansible-runner keeps a file per event in `artifacts/ID/job_events`; given a directory above, every job_events below is a run. `ansible-runner -j` prints
the same events as lines.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import itertools
import json
import os
import re
import typing as t
from pathlib import PurePath

JSONL = "ansible.posix.jsonl"
RUNNER = "job_events"
_STATUS = {"ok": "ok", "failed": "failed", "unreachable": "unreachable", "skipped": "skipped"}
_EVENT_FILE = re.compile(r"(\d+)-[\w-]+\.json")
_ROLE = re.compile(r"/roles/([^/]+)/(?:tasks|handlers)/")
_LARGEST_EVENT = 64 << 20  # bytes


@dataclasses.dataclass(slots=True)
class Bad:
    """An event that cannot be used."""

    where: str
    reason: str


def kind(line: bytes) -> str | None:
    """The format one line belongs to: "churten", JSONL, RUNNER, or None if it tells nothing."""
    text = line.lstrip(b"\x1e \t\r\n")
    if not text.startswith(b"{"):
        return None
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if "v" in body and "ev" in body:
        return "churten"
    if "_event" in body and "_timestamp" in body:
        return JSONL
    if "event" in body and "event_data" in body:
        return RUNNER
    return None


def lines(form: str, source: t.Iterable[bytes]) -> t.Iterator[str | Bad]:
    """The lines of our log for the lines of another."""
    reader: _Reader = _Jsonl() if form == JSONL else _Runner()
    for number, line in enumerate(source, 1):
        if not line.strip():
            continue
        yield from reader.take(line, f"line {number}")
    yield from reader.finish()


def job_events(top: str) -> t.Iterator[str | Bad]:
    """The lines of our log for every job_events directory at or below `top`, oldest first. OSError if there is none."""
    found = []
    for where, folders, names in os.walk(top):
        folders.sort()
        numbered = sorted((int(match[1]), name) for name in names if (match := _EVENT_FILE.fullmatch(name)))
        if numbered and (os.path.basename(os.path.abspath(where)) == "job_events" or where == top):
            paths = [os.path.join(where, name) for _, name in numbered]
            found.append((os.stat(paths[0]).st_mtime, paths))
    if not found:
        raise OSError(None, "there are no files of ansible-runner's job_events in this directory")
    for _, paths in sorted(found):
        reader = _Runner()
        for path in paths:
            name = os.path.relpath(path, top)
            try:
                with open(path, "rb") as file:
                    data = file.read(_LARGEST_EVENT)
            except OSError as ex:
                yield Bad(name, str(ex.strerror))
                continue
            yield from reader.take(data, name)
        yield from reader.finish()


class _Reader:
    """Events in, lines out. A subclass gives `event`."""

    def __init__(self) -> None:
        self._run: str | None = None
        self._zero = self._last = 0.0
        self._results = 0
        self._ended = False

    def take(self, data: bytes, where: str) -> t.Iterator[str | Bad]:
        """What one event says."""
        try:
            body = json.loads(data.lstrip(b"\x1e"))
            if not isinstance(body, dict):
                raise ValueError("not an event")
            made = list(self.event(body))
        except RecursionError:
            yield Bad(where, "nested too deeply")
        except (ValueError, TypeError, KeyError, AttributeError) as ex:
            yield Bad(where, f"{type(ex).__name__}: {ex}" if not isinstance(ex, ValueError) else str(ex))
        else:
            yield from made

    def event(self, body: dict[str, t.Any]) -> t.Iterator[str]:
        """The lines for one event. May raise ValueError, TypeError, KeyError or AttributeError for a malformed one."""
        raise NotImplementedError

    def begin(self, key: str, when: float, playbook: str, forks: object = None) -> t.Iterator[str]:
        """A run begins."""
        self._run = hashlib.sha256(f"{key} {when}".encode("utf-8", "replace")).hexdigest()[:16]
        self._zero = self._last = when
        self._results, self._ended = 0, False
        facts: dict[str, object] = {"started": _utc(when), "playbook": PurePath(playbook).name}
        yield self._line("run", facts)

    def result(self, body: dict[str, object], start: float, end: float) -> str:
        """A result that started and ended at these times."""
        self._last = max(self._last, end)
        self._results += 1
        path = body.get("path")
        role = body.get("role") or ((match := _ROLE.search(str(path))) and match[1]) or None
        fixed = {
            "started": _utc(start),
            "at": round(max(0.0, start - self._zero), 6),
            "seconds": round(max(0.0, end - start), 6),
        }
        nobody = dict.fromkeys(("queue", "connect", "remote", "controller", "engine", "worker"))
        return self._line("result", body | {"role": role} | fixed | nobody)

    def end(self) -> t.Iterator[str]:
        """The run is over."""
        if self._run is not None and not self._ended:
            self._ended = True
            yield self._line("end", {"seconds": round(self._last - self._zero, 6), "results": self._results})

    def finish(self) -> t.Iterator[str]:
        """There are no more events. A run without its last event did not end."""
        return iter(())

    def _line(self, event: str, body: dict[str, object]) -> str:
        return json.dumps({"v": 1, "ev": event, "run": self._run} | body, separators=(",", ":"))


class _Jsonl(_Reader):
    def __init__(self) -> None:
        super().__init__()
        self._play: dict[str, t.Any] = {}

    def event(self, body: dict[str, t.Any]) -> t.Iterator[str]:
        event = body["_event"]
        if event == "v2_playbook_on_play_start":
            self._play = body["play"]
            if self._run is None or self._ended:
                path = str(self._play.get("path") or "").rpartition(":")[0]
                yield from self.begin(str(self._play["id"]), _when(self._play["duration"]["start"]), path)
        elif event == "v2_playbook_on_stats":
            self._last = max(self._last, _when(body["_timestamp"]))
            yield from self.end()
        elif event.startswith("v2_runner_on_") and event != "v2_runner_on_start":
            task = body["task"]
            start, end = _when(task["duration"]["start"]), _when(body["_timestamp"])
            if self._run is None or self._ended:
                yield from self.begin(str(task["id"]), start, "")
            for host, found in body["hosts"].items():
                shared = {
                    "play": str(self._play.get("name") or ""),
                    "play_uuid": str(self._play.get("id") or ""),
                    "task": str(task["name"]),
                    "uuid": str(task["id"]),
                    "action": str(found.get("action") or ""),
                    "path": task.get("path") or None,
                    "host": str(host),
                }
                status = {"status": _status(event, found, False), "items": _items(found)}
                yield self.result(shared | status, start, end)


class _Runner(_Reader):
    def event(self, body: dict[str, t.Any]) -> t.Iterator[str]:
        event, data = body["event"], body.get("event_data") or {}
        if event == "playbook_on_start":
            yield from self.end()
            ident = f"{body.get('runner_ident')} {data.get('playbook_uuid')}"
            yield from self.begin(ident, _when(body["created"]), str(data.get("playbook") or ""))
        elif event == "playbook_on_stats":
            self._last = max(self._last, _when(body["created"]))
            yield from self.end()
        elif event in ("runner_on_ok", "runner_on_failed", "runner_on_unreachable", "runner_on_skipped"):
            end = _when(data.get("end") or body["created"])
            start = _when(data["start"]) if data.get("start") else end - float(data.get("duration") or 0)
            if self._run is None:
                yield from self.begin(str(data.get("playbook_uuid")), start, str(data.get("playbook") or ""))
            found = data.get("res") or {}
            shared = {
                "play": str(data.get("play") or ""),
                "play_uuid": str(data.get("play_uuid") or ""),
                "task": str(data.get("task") or ""),
                "uuid": str(data["task_uuid"]),
                "action": str(data.get("task_action") or ""),
                "role": data.get("role") or None,
                "path": data.get("task_path") or None,
                "host": str(data["host"]),
            }
            if shared["role"]:
                # As our log and Ansible's screen name it.
                shared["task"] = f"{shared['role']} : {shared['task']}"
            status = {"status": _status(event, found, bool(data.get("ignore_errors"))), "items": _items(found)}
            yield self.result(shared | status, start, end)


def _status(event: str, found: dict[str, t.Any], ignored: bool) -> str:
    status = _STATUS[event.rpartition("_")[2]]
    if status == "ok" and found.get("changed"):
        return "changed"
    return "ignored" if status == "failed" and ignored else status


def _items(found: dict[str, t.Any]) -> int | None:
    """Items of a loop: ansible marks each one's result with the loop variable."""
    results = found.get("results")
    if isinstance(results, list) and results and all(isinstance(one, dict) for one in itertools.islice(results, 1)):
        return len(results) if "ansible_loop_var" in results[0] else None
    return None


def _when(text: object) -> float:
    """Seconds since 1970 of an ISO time; one without a zone is UTC."""
    if not isinstance(text, str):
        raise ValueError(f"{text!r} is not a time")
    when = datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))
    return (when if when.tzinfo else when.replace(tzinfo=datetime.timezone.utc)).timestamp()


def _utc(when: float) -> str:
    moment = datetime.datetime.fromtimestamp(round(when, 3), datetime.timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
