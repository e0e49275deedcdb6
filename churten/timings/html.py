"""The HTML report of a run: one file that loads nothing, from no network.

The page (page/report.html, .css, .js) is fixed; only data goes into it: figures and names as JSON, the results as columns of numbers in base64. Names come
from playbooks and inventories, so they may hold anything: in the JSON `<` is written as an escape, so no name can end its element, and the script makes text
of names, never markup. The page's Content-Security-Policy allows the one script and the one style, by their hashes, and no connection at all.
"""

from __future__ import annotations

import array
import base64
import dataclasses
import hashlib
import html
import importlib.resources
import json
import sys
import typing as t

import churten

from . import analysis, chain, compare
from .columns import Columns
from .compare import Totals
from .reading import Run

_TICK = 1e-4  # seconds: what times are counted in
_NONE = 0xFFFFFFFF
_MOST_LINKS = 2000


def report(run: Run, columns: Columns, totals: t.Sequence[Totals] = (), limit: int = 500_000) -> t.Iterator[str]:
    """The page, piece by piece. `totals`: this run and those before it, oldest first. Of more than `limit` results only the busiest hosts' are drawn."""
    drawn, note = _drawn(columns, limit)
    data, layout = _binary(columns, drawn)
    meta = _meta(run, columns, drawn) | {"columns": layout, "note": note, "trend": _trend(totals)}
    page, style, script = (_page(f"report.{ending}") for ending in ("html", "css", "js"))
    values = {
        "TITLE": html.escape(_title(run)),
        "STYLE": style,
        "SCRIPT": script,
        "STYLE_HASH": _hash(style),
        "SCRIPT_HASH": _hash(script),
        "META": _json(meta),
        "COLUMNS": base64.b64encode(data).decode(),
    }
    pieces = page.split("@")
    for number, piece in enumerate(pieces):
        yield values[piece] if number % 2 else piece


def _page(name: str) -> str:
    return importlib.resources.files(churten).joinpath("timings", "page", name).read_text("utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _json(value: object) -> str:
    """JSON that may stand inside a script element, whatever its texts are."""
    text = json.dumps(value, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _title(run: Run) -> str:
    return f"{run.fact('playbook') or 'run ' + run.id} {run.fact('started')[:19].replace('T', ' ')}".strip()


def _drawn(columns: Columns, limit: int) -> tuple[list[int] | range, str]:
    """Numbers of the results that are drawn, and what to say if these are not all."""
    if len(columns) <= limit:
        return range(len(columns)), ""
    chosen: set[int] = set()
    number = columns.rows.hosts
    room = limit
    for host in analysis.hosts(columns):
        room -= host.count
        if room < 0 and chosen:
            break
        chosen.add(number[host.name])
    drawn = [i for i, host in enumerate(columns.host) if host in chosen][:limit]
    part = f"{len(chosen)} busiest of {len(number)} hosts ({len(drawn)} of {len(columns)} results)"
    return drawn, f"The timeline shows the {part}; all figures are of the whole run."


def _binary(columns: Columns, drawn: t.Sequence[int]) -> tuple[bytes, list[tuple[str, str]]]:
    def ticks(values: t.Iterable[float]) -> array.array[int]:
        return array.array("I", (_NONE if value < 0 else min(_NONE - 1, round(value / _TICK)) for value in values))

    def numbers(values: t.Iterable[int], most: int) -> array.array[int]:
        return array.array("H" if most < 1 << 16 else "I", values)

    start = ticks(max(0.0, columns.at[i]) for i in drawn)
    end = ticks(columns.end[i] for i in drawn)
    found = {
        "start": start,
        "length": array.array("I", (max(0, two - one) for one, two in zip(start, end, strict=True))),
        "queue": ticks(columns.queue[i] for i in drawn),
        "connect": ticks(columns.connect[i] for i in drawn),
        "remote": ticks(columns.remote[i] for i in drawn),
        "controller": ticks(columns.controller[i] for i in drawn),
        "host": numbers((columns.host[i] for i in drawn), len(columns.rows.hosts)),
        "row": numbers((columns.row[i] for i in drawn), len(columns.tasks)),
        "worker": numbers((min(0xFFFF, columns.worker[i] + 1) for i in drawn), 0),  # 0: unknown
        "status": array.array("B", (columns.status[i] for i in drawn)),
    }
    if sys.byteorder == "big":
        for column in found.values():
            column.byteswap()
    return b"".join(column.tobytes() for column in found.values()), [(name, column.typecode) for name, column in found.items()]


def _meta(run: Run, columns: Columns, drawn: t.Sequence[int]) -> dict[str, object]:
    hosts = analysis.hosts(columns)
    share = analysis.efficiency(columns)
    waited = [host.queue_s for host in hosts if host.queue_s is not None]
    tiles = [
        ("wall time", compare.duration(columns.wall_s)),
        ("hosts", str(len(hosts))),
        ("results", str(len(columns))),
        ("failed", str(sum(host.failed for host in hosts))),
        ("host time", compare.duration(columns.busy_s)),
    ]
    if waited:
        tiles.append(("waited for a slot", compare.duration(sum(waited))))
    if columns.slots:
        tiles.append(("slots", str(columns.slots)))
    if share is not None:
        tiles.append(("slots used", f"{100 * share:.0f} %"))
    return {
        "title": _title(run),
        "subtitle": f"run {run.id}, " + ", ".join(_facts(run)),
        "footer": f"Made by churten {churten.__version__} from a log in the format {run.format}.",
        "wall": columns.wall_s,
        "slots": columns.slots,
        "count": len(drawn),
        "hosts": columns.hosts,
        "task_names": [task.name for task in columns.tasks],
        "tiles": tiles,
        "tasks": [dataclasses.asdict(group) for group in analysis.top(columns, "tasks")],
        "host_figures": [dataclasses.asdict(host) for host in hosts],
        "chain": _chain(columns, drawn),
    }


def _facts(run: Run) -> t.Iterator[str]:
    yield f"started {run.fact('started') or 'unknown'}"
    if run.fact("ansible"):
        yield f"ansible-core {run.fact('ansible')}"
    strategies = sorted({play.strategy for play in run.plays.values()})
    if strategies:
        yield f"strategy {', '.join(strategies)}"
    if run.seconds is None:
        yield "it did not end"


def _chain(columns: Columns, drawn: t.Sequence[int]) -> dict[str, object]:
    found = chain.critical_path(columns)
    number = {i: position for position, i in enumerate(drawn)} if len(drawn) < len(columns) else None
    names, tasks = columns.hosts, columns.tasks
    links = [
        {
            "number": link.number if number is None else number.get(link.number, -1),
            "at": round(link.at_s, 4),
            "cause": link.cause,
            "gap": round(link.gap_s, 4),
            "seconds": round(link.seconds, 4),
            "host": names[columns.host[link.number]],
            "task": tasks[columns.row[link.number]].name,
        }
        for link in found.links
    ]
    longest = ", ".join(f"{tasks[row].name} {compare.duration(seconds)}" for row, _, seconds in chain.by_task(found, columns)[:3])
    text = (
        f"The chain of {len(found.links)} tasks that determined the wall time: {compare.duration(found.task_s)} in tasks, "
        f"{compare.duration(found.gap_s)} between them. Most of it: {longest}."
    )
    if len(links) > _MOST_LINKS:
        links = sorted(links, key=lambda link: -float(t.cast(float, link["seconds"])))[:_MOST_LINKS]
        text += f" The {_MOST_LINKS} longest links are listed."
    return {"text": text, "links": links}


def _trend(totals: t.Sequence[Totals]) -> dict[str, object] | None:
    if len(totals) < 2:
        return None
    tasks = compare.trend(totals, compare.Limits())
    slow = [task.task for task in tasks if task.slow]
    text = f"This run and the {len(totals) - 1} before it of the same playbook: wall time, and seconds per host of each task."
    if slow:
        text += f" Slower than three times their median: {', '.join(slow)}."
    runs = [{"started": total.run.fact("started")[:19].replace("T", " "), "wall": total.wall_s} for total in totals]
    return {"text": text, "runs": runs, "tasks": [dataclasses.asdict(task) | {"factor": task.factor} for task in tasks]}
