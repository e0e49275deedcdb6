"""One run in the formats of others: CSV, JSON, Perfetto (Chrome trace events), Prometheus (text file), OTLP as JSON.

Each function gives pieces of text, so a large run is never held as text in memory.
"""

from __future__ import annotations

import csv
import datetime
import hashlib
import io
import json
import math
import typing as t

import churten

from . import analysis
from .columns import STATUSES, Columns, read
from .model import PHASES, Result
from .reading import Log, Run

_FIELDS = tuple(name for name in Result.__slots__ if name != "t")


def as_csv(log: Log, run: Run) -> t.Iterator[str]:
    """A line per result, times in seconds; the first line names the columns. What is unknown is empty."""
    line = io.StringIO()
    writer = csv.writer(line, lineterminator="\n")
    writer.writerow(("run", *_FIELDS))
    for result in log.results(run):
        writer.writerow((run.id, *(getattr(result, name) for name in _FIELDS)))
        if line.tell() > 1 << 16:
            yield line.getvalue()
            line.seek(0)
            line.truncate()
    yield line.getvalue()


def as_json(log: Log, run: Run) -> t.Iterator[str]:
    """One document: the run's fields, and `results`, with the fields of docs/timing-log.md."""
    head: dict[str, object] = {"run": run.id, **(run.facts or {}), "seconds": run.seconds}
    yield json.dumps(head, separators=(",", ":"))[:-1] + ',"results":['
    for number, result in enumerate(log.results(run)):
        body = {name: getattr(result, name) for name in _FIELDS} | ({"t": result.t} if result.t else {})
        yield (",\n" if number else "\n") + json.dumps(body, separators=(",", ":"))
    yield "\n]}\n"


def perfetto(log: Log, run: Run) -> t.Iterator[str]:
    """Chrome's trace event format: a track per host (queue, task; in the task connect and remote), one per worker, and how many tasks ran.

    Slices of a track never overlap but by nesting, as the format demands: a worker that lent its slot shows the later task cut.
    """
    other = {"run": run.id, "churten": churten.__version__} | {k: str(v) for k, v in (run.facts or {}).items()}
    yield json.dumps({"displayTimeUnit": "ms", "otherData": other}, separators=(",", ":"))[:-1] + ',"traceEvents":[\n'
    yield _event(ph="M", pid=1, name="process_name", args={"name": "hosts"})
    hosts: dict[str, int] = {}
    workers: set[int] = set()
    ended: dict[tuple[int, int], int] = {}  # track -> end of its last slice
    for result in log.results(run):
        host = hosts.get(result.host)
        if host is None:
            host = hosts[result.host] = len(hosts) + 1
            yield "," + _event(ph="M", pid=1, tid=host, name="thread_name", args={"name": result.host})
        begin, end = _micros(result.at), _micros(result.at + max(0.0, result.seconds))
        before = ended.get((1, host), 0)
        begin = max(begin, before)
        ended[1, host] = end = max(begin, end)
        waited = max(before, begin - _micros(result.queue or 0.0))
        if begin > waited:
            yield "," + _event(ph="X", pid=1, tid=host, ts=waited, dur=begin - waited, name="queue", cat="queue")
        args = {name: getattr(result, name) for name in ("action", "path", "role", "play", "status", "engine", "worker", "items", "attempts")}
        args |= {name: getattr(result, name) for name in PHASES}
        args = {name: value for name, value in args.items() if value is not None}
        yield "," + _event(ph="X", pid=1, tid=host, ts=begin, dur=end - begin, name=result.task, cat=result.status, args=args)
        for name, one, two in _phases(result, begin, end):
            yield "," + _event(ph="X", pid=1, tid=host, ts=one, dur=two - one, name=name, cat=name)
        worker = result.worker
        if worker is not None and worker >= 0:
            if worker not in workers:
                if not workers:
                    yield "," + _event(ph="M", pid=2, name="process_name", args={"name": "workers"})
                workers.add(worker)
                yield "," + _event(ph="M", pid=2, tid=worker + 1, name="thread_name", args={"name": f"worker {worker}"})
            begin = max(begin, ended.get((2, worker), 0))
            if end > begin:
                ended[2, worker] = end
                yield "," + _event(ph="X", pid=2, tid=worker + 1, ts=begin, dur=end - begin, name=f"{result.host}: {result.task}", cat=result.status)
    for when, running in analysis.active(read(log, run)):
        yield "," + _event(ph="C", pid=1, ts=_micros(when), name="tasks running", args={"tasks": running})
    yield "]}\n"


def _phases(result: Result, begin: int, end: int) -> t.Iterator[tuple[str, int, int]]:
    """(name, begin, end) of connect and remote: as long as they were, beginning when they first did, inside the task."""
    stamps = result.t or {}
    for name in ("connect", "remote"):
        length = _micros(getattr(result, name) or 0.0)
        if length > 0:
            begin = min(end, max(begin, _micros(stamps.get(f"{name}_begin", 0.0))))
            until = min(end, begin + length)
            if until > begin:
                yield name, begin, until
            begin = until


def _event(**fields: object) -> str:
    return json.dumps(fields, separators=(",", ":")) + "\n"


def _micros(seconds: float) -> int:
    return round(seconds * 1e6)


def prometheus(log: Log, run: Run) -> t.Iterator[str]:
    """The text format, for node_exporter's textfile collector. Labels are names only; of a run the newest figures replace those before it."""
    columns = read(log, run)
    playbook = {"playbook": run.fact("playbook")}
    whole: list[tuple[str, str, float | None]] = [
        ("run_duration_seconds", "Wall time of the run.", columns.wall_s),
        ("run_started_timestamp_seconds", "When the run started.", _epoch(run.fact("started"))),
        ("run_finished", "1 if the run reached its end.", float(run.seconds is not None)),
        ("run_slots", "How many tasks could run at once.", columns.slots),
        ("run_active_max", "How many tasks ran at once at most.", max(number for _, number in analysis.active(columns))),
        ("run_efficiency_ratio", "Host-seconds by slots times wall time.", analysis.efficiency(columns)),
        ("run_hosts", "Hosts with results.", len(columns.rows.hosts)),
        ("run_busy_seconds", "Host-seconds of all tasks.", columns.busy_s),
    ]
    for name, text, value in whole:
        if value is not None:
            yield _family(name, text) + _sample(name, playbook, value)
    yield _family("run_results", "Results by status.")
    for number, status in enumerate(STATUSES):
        yield _sample("run_results", playbook | {"status": status}, columns.status.count(number))
    known = {name: math.fsum(value for value in getattr(columns, name) if value >= 0) for name in PHASES}
    yield _family("run_phase_seconds", "Host-seconds by phase, where they were measured.")
    for name, seconds in known.items():
        yield _sample("run_phase_seconds", playbook | {"phase": name}, seconds)
    yield from _task_metrics(columns, playbook)
    yield from _host_metrics(columns, playbook)


def _task_metrics(columns: Columns, playbook: dict[str, str]) -> t.Iterator[str]:
    groups = [(playbook | {"play": group.play, "task": group.name}, group) for group in analysis.top(columns, "names")]
    yield _family("task_seconds", "Seconds of a task per host.", "summary")
    for labels, group in groups:
        yield _sample("task_seconds", labels | {"quantile": "0.5"}, group.p50_s)
        yield _sample("task_seconds", labels | {"quantile": "0.95"}, group.p95_s)
        yield _sample("task_seconds_sum", labels, group.sum_s) + _sample("task_seconds_count", labels, group.count)
    yield _family("task_max_seconds", "Seconds of a task on its slowest host.")
    for labels, group in groups:
        yield _sample("task_max_seconds", labels, group.max_s)
    yield _family("task_span_seconds", "Wall time of a task, from its first start to its last end.")
    for labels, group in groups:
        yield _sample("task_span_seconds", labels, group.span_s)


def _host_metrics(columns: Columns, playbook: dict[str, str]) -> t.Iterator[str]:
    hosts = analysis.hosts(columns)
    for name, field, text in (
        ("host_busy_seconds", "busy_s", "Seconds of a host's tasks."),
        ("host_queue_seconds", "queue_s", "Seconds a host was ready, but no slot was free."),
        ("host_idle_seconds", "idle_s", "Seconds a host waited between two tasks."),
        ("host_failed_tasks", "failed", "Tasks that failed on a host, or did not reach it."),
    ):
        yield _family(name, text)
        for host in hosts:
            if (value := getattr(host, field)) is not None:
                yield _sample(name, playbook | {"host": host.name}, value)


def _family(name: str, text: str, kind: str = "gauge") -> str:
    return f"# HELP churten_{name} {text}\n# TYPE churten_{name} {kind}\n"


def _sample(name: str, labels: dict[str, str], value: float) -> str:
    inside = ",".join(f'{key}="{_label(text)}"' for key, text in labels.items())
    return f"churten_{name}{{{inside}}} {float(value)!r}\n"


def _label(text: str) -> str:
    whole = text.encode("utf-8", "replace").decode()  # a lone surrogate is no text
    return whole.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def otlp_json(log: Log, run: Run) -> t.Iterator[str]:
    """OTLP traces as JSON lines, at most 500 spans each: a span for the run, below it one per play, below these one per task and host.

    Every line is an ExportTraceServiceRequest, as collectors read from files and take by HTTP.
    """
    zero: int | None = None
    plays: dict[str, list[t.Any]] = {}  # uuid -> name, first, last
    spans: list[dict[str, object]] = []
    trace = _identity(32, run.id)
    root = _identity(16, run.id, "run")
    failed = False
    for number, result in enumerate(log.results(run)):
        if zero is None:
            zero = _nanos(_epoch(result.started) or 0.0) - _nanos(result.at)
        begin, end = zero + _nanos(result.at), zero + _nanos(result.at + max(0.0, result.seconds))
        play = plays.setdefault(result.play_uuid, [result.play, begin, end])
        play[1], play[2] = min(play[1], begin), max(play[2], end)
        bad = result.status in ("failed", "unreachable")
        failed = failed or bad
        attributes = {
            "ansible.task.name": result.task,
            "ansible.task.module": result.action,
            "ansible.task.host.name": result.host,
            "ansible.task.host.status": result.status,
            "ansible.task.role": result.role,
            "code.filepath": result.path,
            "churten.engine": result.engine,
            "churten.worker": result.worker,
            "churten.attempts": result.attempts,
        } | {f"churten.{name}_seconds": getattr(result, name) for name in PHASES}
        parent = _identity(16, run.id, "play", result.play_uuid)
        spans.append(_span(trace, _identity(16, run.id, str(number)), parent, result.task, begin, end, attributes, bad))
        if len(spans) == 500:
            yield _request(run, spans)
            spans = []
    for uuid, (name, begin, end) in plays.items():
        spans.append(_span(trace, _identity(16, run.id, "play", uuid), root, name, begin, end, {"ansible.play.name": name}, False))
    first = zero or _nanos(_epoch(run.fact("started")) or 0.0)
    last = max([first + _nanos(run.seconds or 0.0), *(play[2] for play in plays.values())])
    facts = {f"churten.run.{name}": value for name, value in (run.facts or {}).items() if isinstance(value, (str, int, float))}
    spans.append(_span(trace, root, "", run.fact("playbook") or run.id, first, last, {"churten.run": run.id} | facts, failed))
    yield _request(run, spans)


def _span(
    trace: str, identity: str, parent: str, name: str, begin: int, end: int, attributes: dict[str, t.Any], failed: bool
) -> dict[str, object]:
    span: dict[str, object] = {"traceId": trace, "spanId": identity, "name": _text(name), "kind": 1}
    if parent:
        span["parentSpanId"] = parent
    span |= {"startTimeUnixNano": str(begin), "endTimeUnixNano": str(end), "attributes": _attributes(attributes)}
    return span | {"status": {"code": 2} if failed else {}}


def _attributes(values: dict[str, t.Any]) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    for key, value in values.items():
        if isinstance(value, bool):
            found.append({"key": key, "value": {"boolValue": value}})
        elif isinstance(value, int):
            found.append({"key": key, "value": {"intValue": str(value)}})
        elif isinstance(value, float):
            found.append({"key": key, "value": {"doubleValue": value}})
        elif value is not None:
            found.append({"key": key, "value": {"stringValue": _text(value)}})
    return found


def _request(run: Run, spans: list[dict[str, object]]) -> str:
    resource = {"service.name": "ansible", "service.version": run.fact("ansible") or None}
    scope = {"name": "churten.timings", "version": churten.__version__}
    traced = [{"resource": {"attributes": _attributes(resource)}, "scopeSpans": [{"scope": scope, "spans": spans}]}]
    return json.dumps({"resourceSpans": traced}, separators=(",", ":")) + "\n"


def _identity(digits: int, *words: str) -> str:
    return hashlib.sha256("\0".join(words).encode("utf-8", "replace")).hexdigest()[:digits]


def _text(text: object) -> str:
    return str(text).encode("utf-8", "replace").decode()


def _nanos(seconds: float) -> int:
    return round(seconds * 1_000_000) * 1000


def _epoch(text: str) -> float | None:
    """Seconds since 1970 of an ISO time, None if it is none."""
    try:
        return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    except (ValueError, OverflowError):
        return None


FORMATS: dict[str, t.Callable[[Log, Run], t.Iterator[str]]] = {
    "csv": as_csv,
    "json": as_json,
    "perfetto": perfetto,
    "prometheus": prometheus,
    "otlp-json": otlp_json,
}
