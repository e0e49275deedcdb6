"""The verbs of `churten timings`, printed: as columns of plain text, or with --json as one JSON document."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
import time
import typing as t

from churten.timings import analysis, chain
from churten.timings import compare as comparing
from churten.timings import export as exporting
from churten.timings import html as page
from churten.timings.columns import Columns, read
from churten.timings.compare import Totals
from churten.timings.model import Figures
from churten.timings.reading import Log, Run, Unreadable
from churten.timings.workers import one_line

from . import _output
from ._tables import bar, percent, seconds, spark, table

SLOWER = 3  # exit code: a task became slower


def runs(arguments: argparse.Namespace) -> int:
    """`timings runs`."""
    with Log(arguments.log) as log:
        if not log.runs:
            log.choose(None)
        skipped(log)
        if arguments.json:
            print_json([run_json(run) for run in log.runs.values()])
            return 0
        rows = [
            (run.id, run.fact("started"), run.fact("playbook"), run.results, seconds(run.seconds) or "did not end", run.fact("ansible"))
            for run in log.runs.values()
        ]
        _print(table(("<run", "<started", "<playbook", "results", "seconds", "<ansible-core"), rows, 2))
    return 0


def top(arguments: argparse.Namespace) -> int:
    """`timings top`."""
    run, columns = _columns(arguments)
    groups = analysis.top(columns, arguments.by)
    groups.sort(key=lambda group: -getattr(group, arguments.sort if arguments.sort == "count" else arguments.sort + "_s"))
    if arguments.json:
        print_json(run_json(run) | {arguments.by: _all(groups, arguments.limit)})
        return 0
    rows = [
        (g.name, g.count, *map(seconds, (g.sum_s, g.p50_s, g.p95_s, g.max_s, g.span_s)), g.max_at)
        for g in groups[: arguments.limit]
    ]
    last = "<task" if arguments.by == "hosts" else "<host"
    _print(table(("<" + arguments.by[:-1], "count", "sum", "p50", "p95", "max", "span", f"{last} with the max"), rows))
    _more(len(groups), arguments.limit, arguments.by)
    return 0


def hosts(arguments: argparse.Namespace) -> int:
    """`timings hosts`."""
    run, columns = _columns(arguments)
    found = analysis.hosts(columns)
    share = analysis.efficiency(columns)
    summary = {"wall": columns.wall_s, "busy": columns.busy_s, "slots": columns.slots, "efficiency": share}
    if arguments.json:
        print_json(run_json(run) | summary | {"hosts": _all(found, arguments.limit)})
        return 0
    rows = [
        (h.name, h.count, h.failed, *map(seconds, (h.busy_s, h.queue_s, h.idle_s, h.after_s)), f"{h.skew:.2f}", seconds(h.longest_s), h.longest)
        for h in found[: arguments.limit]
    ]
    _print(table(("<host", "tasks", "failed", "busy", "queue", "idle", "done early", "skew", "longest", "<task"), rows, 9))
    _more(len(found), arguments.limit, "hosts")
    text = f"{len(found)} hosts, {columns.busy_s:.2f} host-seconds in {columns.wall_s:.2f}s"
    if share is not None:
        text += f"; {columns.slots} slots, {100 * share:.0f} % used"
    print(text)
    return 0


def critical_path(arguments: argparse.Namespace) -> int:
    """`timings critical-path`."""
    run, columns = _columns(arguments)
    found = chain.critical_path(columns)
    names, tasks, plays = columns.hosts, columns.tasks, columns.plays
    if arguments.json:
        links = [
            dataclasses.asdict(link)
            | {"host": names[columns.host[link.number]], "task": tasks[columns.row[link.number]].name}
            | {"play": plays[found.play_of[columns.row[link.number]]], "path": tasks[columns.row[link.number]].path}
            for link in found.links
        ]
        whole = {"wall": found.wall_s, "tasks": found.task_s, "gaps": found.gap_s, "end": found.end_s}
        steps = {f"{number}: {name}": found.lockstep[number] for number, name in enumerate(plays)}
        print_json(run_json(run) | whole | {"lockstep": steps, "links": links})
        return 0
    rows = []
    longest = sorted(found.links, key=lambda link: -link.gap_s - link.seconds)[: arguments.limit]
    for link in sorted(longest, key=lambda link: link.at_s):
        i = link.number
        parts = [(name, getattr(columns, name)[i]) for name in ("connect", "remote", "controller")]
        rows.append(
            (
                f"{link.at_s:.2f}",
                link.cause,
                seconds(link.gap_s),
                seconds(link.seconds),
                names[columns.host[i]],
                tasks[columns.row[i]].name,
                ", ".join(f"{name} {value:.2f}s" for name, value in parts if value >= 0.005),
            )
        )
    _print(table(("at", "<waited for", "gap", "seconds", "<host", "<task", "<of which"), rows, 5))
    _more(len(found.links), arguments.limit, "links")
    print()
    shares = chain.by_task(found, columns)
    summed = [(tasks[row].name, number, seconds(share), percent(share / found.wall_s) if found.wall_s else "") for row, number, share in shares[:10]]
    _print(table(("<task", "links", "seconds", "of the wall time"), summed))
    _more(len(shares), 10, "tasks")
    print(
        f"wall {found.wall_s:.2f}s = {found.task_s:.2f}s in {len(found.links)} tasks of the chain + {found.gap_s:.2f}s between them"
        f" + {found.end_s:.2f}s after the last"
    )
    return 0


def throughput(arguments: argparse.Namespace) -> int:
    """`timings throughput`."""
    run, columns = _columns(arguments)
    every = arguments.every or _round_up(columns.wall_s / 20)
    try:
        pieces = analysis.throughput(columns, every)
    except ValueError as ex:
        raise Unreadable(f"{ex}; choose a longer --every") from ex
    most = max((piece.active for piece in pieces), default=0.0)
    limit = columns.slots
    whole = {
        "wall": columns.wall_s,
        "ended": len(columns),
        "per_minute": 60 * len(columns) / columns.wall_s if columns.wall_s else None,
        "slots": limit,
        "efficiency": analysis.efficiency(columns),
    }
    if arguments.json:
        print_json(run_json(run) | whole | {"intervals": [dataclasses.asdict(piece) for piece in pieces]})
        return 0
    rows = [
        (
            f"{p.at_s:.1f}",
            p.ended,
            f"{p.ended / p.seconds:.2f}",
            f"{60 * p.ended / p.seconds:.0f}",
            f"{p.active:.1f}",
            bar(p.active / max(limit or 0, most, 1), 30),
        )
        for p in pieces
    ]
    _print(table(("from second", "ended", "per second", "per minute", "active", "<"), rows))
    rate = whole["per_minute"]
    print(
        f"{len(columns)} results in {columns.wall_s:.2f}s"
        + (f", {rate:.0f} per minute" if isinstance(rate, float) else "")
        + (f"; {limit} slots" if limit else "")
    )
    return 0


def compare(arguments: argparse.Namespace) -> int:
    """`timings compare`."""
    with contextlib.ExitStack() as stack:
        log_a = stack.enter_context(Log(arguments.log))
        log_b = log_a if arguments.log_b in (None, arguments.log) else stack.enter_context(Log(arguments.log_b))
        run_a = _one(log_a, arguments.run_a or ("last-1" if log_a is log_b else None), "--run-a")
        run_b = _one(log_b, arguments.run_b, "--run-b")
        a, b = Totals(run_a, log_a.results(run_a)), Totals(run_b, log_b.results(run_b))
        peak = None
        if arguments.report == "orchestrator" and not arguments.json:
            columns = read(log_b, run_b)
            most, i = analysis.peak(columns)
            if i < 0:
                raise Unreadable(f"run {run_b.id} of {log_b.path} has no results")
            worker = columns.worker[i] if columns.worker[i] >= 0 else None
            peak = comparing.Peak(most, worker, columns.tasks[columns.row[i]].name, columns.hosts[columns.host[i]])
        skipped(log_a)
        if log_b is not log_a:
            skipped(log_b)
    deltas = comparing.compare(a, b)
    worse = [delta for delta in deltas if comparing.slower(delta, arguments.share, arguments.seconds)]
    won = comparing.gain(a.wall_s, b.wall_s)
    if peak is not None:
        _print(comparing.orchestrator(a, b, peak, arguments.environment, arguments.action, time.strftime("%Y-%m-%d")))
    elif arguments.json:
        tasks = [_delta_json(delta) | {"slower": any(delta is one for one in worse)} for delta in deltas]
        whole = {"wall_a": a.wall_s, "wall_b": b.wall_s, "gain": won, "slower": len(worse)}
        print_json({"a": run_json(run_a), "b": run_json(run_b)} | whole | {"tasks": tasks})
    else:
        _compared(arguments, a, b, deltas, worse, won)
    return SLOWER if worse and arguments.fail else 0


def _compared(
    arguments: argparse.Namespace,
    a: Totals,
    b: Totals,
    deltas: list[comparing.Delta],
    worse: list[comparing.Delta],
    won: float | None,
) -> None:
    print(f"A: run {a.run.id}: {a.run.title}")
    print(f"B: run {b.run.id}: {b.run.title}")
    limit = arguments.limit
    shown = sorted(deltas, key=lambda delta: -abs(delta.delta_s))[:limit]
    rows = []
    for delta in sorted(shown, key=lambda delta: -delta.delta_s):
        mark = "slower" if any(delta is one for one in worse) else "only in A" if not delta.b else "only in B" if not delta.a else ""
        one, two = delta.a, delta.b
        rows.append(
            (
                delta.task,
                seconds(one.sum_s if one else None),
                seconds(two.sum_s if two else None),
                f"{delta.delta_s:+.2f}s",
                percent(delta.gain),
                seconds(one.mean_s if one else None),
                seconds(two.mean_s if two else None),
                mark,
            )
        )
    _print(table(("<task", "sum A", "sum B", "delta", "gain", "mean A", "mean B", "<"), rows))
    _more(len(deltas), limit, "tasks")
    print(
        f"wall A {a.wall_s:.2f}s, B {b.wall_s:.2f}s: gain {percent(won) or 'unknown'}"
        f", which is (A - B) / A; {len(worse)} {'task' if len(worse) == 1 else 'tasks'} slower"
    )


def trend(arguments: argparse.Namespace) -> int:
    """`timings trend`."""
    totals = history([arguments.log, *arguments.more], arguments.playbook, arguments.last + 1)
    limits = comparing.Limits(arguments.factor, arguments.seconds, arguments.earlier)
    tasks = comparing.trend(totals, limits)
    slow = [task for task in tasks if task.slow]
    newest = totals[-1]
    if arguments.json:
        runs = [run_json(total.run) | {"wall": total.wall_s} for total in totals]
        print_json({"runs": runs, "slow": len(slow), "tasks": [dataclasses.asdict(task) | {"factor": task.factor} for task in tasks]})
        return SLOWER if slow else 0
    print(f"run {newest.run.id}: {newest.run.title}; compared with {len(totals) - 1} before it")
    rows = [
        (
            task.task,
            task.earlier,
            seconds(task.median_s),
            seconds(task.newest_s),
            "" if task.factor is None else f"{task.factor:.2f}x",
            spark(task.means_s),
            "slow" if task.slow else "",
        )
        for task in tasks[: arguments.limit]
    ]
    _print(table(("<task", "runs", "median", "newest", "factor", "<per host, oldest first", "<"), rows))
    _more(len(tasks), arguments.limit, "tasks")
    for task in slow:
        print(f"slow: {one_line(task.task)} took {task.newest_s:.2f}s per host, {task.factor:.1f} times its median of {task.median_s:.2f}s")
    if len(totals) <= limits.earlier:
        print(f"too few runs to judge: {len(totals) - 1} before the newest, {limits.earlier} are needed (--earlier)")
    return SLOWER if slow else 0


def history(paths: list[str], playbook: str | None, most: int) -> list[Totals]:
    """The newest `most` runs of one playbook in these logs, oldest first. Raises Unreadable."""
    with contextlib.ExitStack() as stack:
        logs = [stack.enter_context(Log(path)) for path in paths]
        known = [(log, run) for log in logs for run in log.runs.values() if run.results]
        known.sort(key=lambda pair: pair[1].fact("started"))  # stable: logs in the order given
        if not known:
            raise Unreadable(f"no run in {', '.join(paths)}{''.join(log.trouble() for log in logs)}")
        wanted = known[-1][1].fact("playbook") if playbook is None else playbook
        chosen = [pair for pair in known if pair[1].fact("playbook") == wanted][-most:]
        if not chosen:
            names = sorted({run.fact("playbook") for _, run in known})
            raise Unreadable(f"no run of {playbook!r} in {', '.join(paths)}; there is {one_line(', '.join(names))}")
        totals = [Totals(run, log.results(run)) for log, run in chosen]
        for log in logs:
            skipped(log)
    return totals


def export(arguments: argparse.Namespace) -> int:
    """`timings export`."""
    with Log(arguments.log) as log:
        run = _one(log, arguments.run_id, "--run")
        _write(arguments.output, exporting.FORMATS[arguments.format](log, run))
        skipped(log)
    return 0


def _write(path: str | None, pieces: t.Iterable[str]) -> None:
    try:
        _output.write(path, pieces)
    except BrokenPipeError:
        raise
    except OSError as ex:
        raise Unreadable(f"{path or 'the standard output'} is not written: {ex.strerror or ex}") from ex


def html(arguments: argparse.Namespace) -> int:
    """`timings html`."""
    with Log(arguments.log) as log:
        run = _one(log, arguments.run_id, "--run")
        columns = read(log, run)
        if not len(columns):
            raise Unreadable(f"run {run.id} of {arguments.log} has no results")
        before = [one for one in log.runs.values() if one.results and one.fact("playbook") == run.fact("playbook")]
        before = before[: before.index(run) + 1][-21:]
        totals = [Totals(one, log.results(one)) for one in before] if len(before) > 1 else []
        skipped(log)
    _write(arguments.output, page.report(run, columns, totals, arguments.max_results))
    return 0


def _columns(arguments: argparse.Namespace) -> tuple[Run, Columns]:
    """The run that was asked for; warns of lines that were skipped."""
    with Log(arguments.log) as log:
        run = _one(log, arguments.run_id, "--run")
        columns = read(log, run)
        skipped(log)
    if not len(columns):
        raise Unreadable(f"run {run.id} of {arguments.log} has no results")
    return run, columns


def _one(log: Log, wanted: str | None, option: str) -> Run:
    found = log.choose(wanted)
    if len(found) > 1:
        raise Unreadable(f"{option} {wanted!r} means {len(found)} runs; `churten timings runs` lists them")
    return found[0]


def skipped(log: Log) -> None:
    """Says on the standard error how many lines were not valid."""
    if log.bad:
        print(f"churten: {log.bad} {'line' if log.bad == 1 else 'lines'} of {log.path} skipped ({log.first_bad})", file=sys.stderr)


def run_json(run: Run) -> dict[str, object]:
    """What JSON output says of a run."""
    facts: dict[str, object] = dict(run.facts or {})
    return {"run": run.id, "format": run.format} | facts | {"seconds": run.seconds, "results": run.results}


def row_json(row: Figures) -> dict[str, object]:
    """A row of the recap."""
    names = {"task": row.name, "path": row.path, "count": row.count, "max_host": row.max_host}
    return names | {"sum_s": row.sum_s, "span_s": row.span_s, "max_s": row.max_s}


def _delta_json(delta: comparing.Delta) -> dict[str, object]:
    body: dict[str, object] = {"play": delta.play, "task": delta.task, "delta_s": delta.delta_s, "gain": delta.gain}
    for name, total in (("a", delta.a), ("b", delta.b)):
        body[name] = dataclasses.asdict(total) | {"mean_s": total.mean_s} if total else None
    return body


def print_json(body: object) -> None:
    """One document; for eyes on a terminal, on one line for programs."""
    json.dump(body, sys.stdout, indent=2 if sys.stdout.isatty() else None)
    print()


def _all(found: t.Sequence[t.Any], limit: int | None) -> list[dict[str, object]]:
    return [dataclasses.asdict(one) for one in found[:limit]]


def _more(count: int, limit: int | None, what: str) -> None:
    if limit is not None and count > limit:
        print(f"({count - limit} of {count} {what} not shown)")


def _print(lines: t.Iterable[str]) -> None:
    for line in lines:
        print(line)


def _round_up(least: float) -> float:
    """The next of 0.1 s, 0.2, 0.5, 1, 2, 5, 10, 30, 60 s, and then minutes."""
    for nice in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600):
        if nice >= least:
            return float(nice)
    return float(-(-least // 3600) * 3600)
