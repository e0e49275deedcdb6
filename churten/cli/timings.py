"""`churten timings`: what a timing log says. Each verb reads a log (churten/timings/reading.py), works it out and prints it."""

from __future__ import annotations

import argparse
import shutil
import sys
import typing as t

from churten.timings import recap
from churten.timings.model import Model
from churten.timings.reading import Log, Run, Unreadable

from . import _timings_show as show
from ._mixed import MixedParser

SLOWER = 3  # exit code of trend and compare --fail


def add_parser(subparsers: t.Any) -> None:
    """Adds `timings` and its verbs."""
    parser = subparsers.add_parser(
        "timings",
        help="reports from timing logs (callback churten.core.timings)",
        description="Reads timing logs of churten.core.timings, the output of ansible.posix.jsonl and job_events of ansible-runner.",
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True, parser_class=MixedParser)

    report = _verb(verbs, "report", "print the recap of a run again", "report t.log --run last-1", _report)
    report.add_argument(
        "--sort",
        choices=("descending", "ascending", "none"),
        default="descending",
        help="order of the tasks by sum (default: descending)",
    )
    _limit_option(report)
    report.add_argument("--min-seconds", type=_seconds, default=0.0, metavar="S", help="leave out tasks with a smaller sum")
    report.add_argument("--paths", action="store_true", help="also print where each task is defined")

    _verb(verbs, "runs", "list the runs of a log", "runs t.log", show.runs, run_option=False)

    top = _verb(verbs, "top", "what took longest", "top tasks t.log --limit 5", show.top, before=("by",))
    _limit_option(top)
    top.add_argument(
        "--sort", choices=("sum", "count", "p50", "p95", "max", "span"), default="sum", help="largest first (default: sum)"
    )

    hosts = _verb(verbs, "hosts", "how each host spent the run: busy, waiting, idle", "hosts t.log", show.hosts)
    _limit_option(hosts)

    path = _verb(verbs, "critical-path", "the chain of tasks that determined the wall time", "critical-path t.log", show.critical_path)
    _limit_option(path, 40, "how many of the longest links to show")

    compare = _verb(
        verbs,
        "compare",
        "two runs task by task: what became faster, what slower",
        "compare before.log after.log\n  churten timings compare t.log   (its last two runs)",
        show.compare,
        run_option=False,
    )
    compare.add_argument("log_b", metavar="LOG_B", nargs="?", help="log of the second run (default: the first one)")
    compare.add_argument("--run-a", metavar="ID", help="the first run (default: the last of LOG; of one log, the last but one)")
    compare.add_argument("--run-b", metavar="ID", help="the second run (default: the last of LOG_B)")
    _limit_option(compare)
    compare.add_argument("--share", type=_percent, default=0.1, metavar="PERCENT", help="slower by more than this is slower (10)")
    compare.add_argument("--seconds", type=_seconds, default=0.1, metavar="S", help="and by more than this per host (0.1)")
    compare.add_argument("--fail", action="store_true", help=f"exit code {SLOWER} if a task became slower")
    compare.add_argument(
        "--report",
        choices=("text", "orchestrator"),
        default="text",
        help="orchestrator: a worker-pool orchestrator's test report, in Markdown",
    )
    compare.add_argument("--environment", metavar="NAME", help="what the orchestrator's report calls the environment")
    compare.add_argument("--action", metavar="NAME", help="and the action")

    trend = _verb(
        verbs,
        "trend",
        "tasks of the newest run that are slower than they were in the runs before it",
        "trend t.log --last 20 --factor 3",
        show.trend,
        run_option=False,
    )
    trend.epilog += f"\n\nExit code {SLOWER} if there is such a task, 0 if not."
    trend.add_argument("more", metavar="LOG", nargs="*", help="more logs, newer ones last")
    trend.add_argument("--playbook", metavar="NAME", help="runs of this playbook (default: that of the newest run)")
    trend.add_argument("--last", type=_positive, default=20, metavar="N", help="runs to compare with (20)")
    trend.add_argument("--factor", type=_factor, default=3.0, metavar="F", help="this many times the median is slow (3)")
    trend.add_argument("--seconds", type=_seconds, default=0.5, metavar="S", help="faster tasks are never slow (0.5 per host)")
    trend.add_argument("--earlier", type=_positive, default=3, metavar="N", help="a task must have run this often before (3)")
    _limit_option(trend)

    throughput = _verb(
        verbs, "throughput", "tasks ended per minute and tasks running, over the run", "throughput t.log --every 10", show.throughput
    )
    throughput.add_argument("--every", type=_factor, metavar="S", help="length of an interval in seconds (default: to fit 20 lines)")

    export = _verb(
        verbs,
        "export",
        "a run in another program's format",
        "export perfetto t.log -o run.json   (open it at ui.perfetto.dev)",
        show.export,
        before=("format",),
        json_option=False,
    )
    export.add_argument("-o", "--output", metavar="FILE", help="file to write, 0600 (default: the standard output)")

    html = _verb(
        verbs, "html", "a report to look at in a browser: one file, no network", "html t.log -o report.html", show.html, json_option=False
    )
    html.add_argument("-o", "--output", metavar="FILE", help="file to write, 0600 (default: the standard output)")
    html.add_argument(
        "--max-results", type=_positive, default=500_000, metavar="N", help="of a larger run only the busiest hosts are drawn (500000)"
    )


def _verb(
    verbs: t.Any,
    name: str,
    summary: str,
    example: str,
    run: t.Callable[[argparse.Namespace], int],
    *,
    before: tuple[str, ...] = (),
    run_option: bool = True,
    json_option: bool = True,
) -> t.Any:
    parser = verbs.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example:\n  churten timings {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    choices = {"by": ("tasks", "hosts", "roles"), "format": ("csv", "json", "perfetto", "prometheus", "otlp-json")}
    for argument in before:
        parser.add_argument(argument, choices=choices[argument])
    parser.add_argument("log", metavar="LOG", help="timing log or directory of job_events, or - for the standard input")
    if run_option:
        parser.add_argument(
            "--run", dest="run_id", metavar="ID", help="the beginning of a run's id, last (the default), last-1, ..., or all (report only)"
        )
    if json_option:
        parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=_guarded(run))
    return parser


def _guarded(run: t.Callable[[argparse.Namespace], int]) -> t.Callable[[argparse.Namespace], int]:
    def guarded(arguments: argparse.Namespace) -> int:
        try:
            return run(arguments)
        except Unreadable as ex:
            print(f"churten: {ex}", file=sys.stderr)
            return 1

    return guarded


def _limit_option(parser: t.Any, usual: int = 20, what: str = "how many lines to show") -> None:
    parser.add_argument("--limit", type=_limit, default=usual, metavar="N", help=f"{what}, or 'all' (default: {usual})")


def _report(arguments: argparse.Namespace) -> int:
    with Log(arguments.log) as opened:
        chosen = opened.choose(arguments.run_id)
        columns = max(79, shutil.get_terminal_size((80, 24)).columns - 1)
        look = recap.Look(arguments.sort, arguments.limit, arguments.min_seconds, arguments.paths, columns)
        found = []
        for run in chosen:
            model = _model(opened, run)
            if arguments.json:
                found.append(show.run_json(run) | {"wall": model.wall_s, "tasks": [show.row_json(row) for row in model.rows]})
                continue
            print(recap.title(columns))
            print(f"run {run.id}: {run.title}")
            for line in recap.lines(model, look, with_date=False):
                print(line)
        show.skipped(opened)
        if arguments.json:
            show.print_json(found)
    return 0


def _model(opened: Log, run: Run) -> Model:
    model = Model()
    for result in opened.results(run):
        model.add(result)
    model.total_s = run.seconds
    model.slots = run.slots or 0
    model.slots = run.slots or 0
    return model


def _limit(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor 'all'")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _seconds(text: str) -> float:
    return _number(text, 0.0, "a number of seconds")


def _factor(text: str) -> float:
    return _number(text, 1e-3, "a number above 0")


def _percent(text: str) -> float:
    return _number(text.rstrip("%"), 0.0, "a number of percent") / 100


def _number(text: str, least: float, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not least <= value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return value


