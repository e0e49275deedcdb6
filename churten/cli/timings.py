"""`churten timings`: what a timing log says."""

from __future__ import annotations

import argparse
import shutil
import sys
import typing as t

from churten.timings import log, recap
from churten.timings.model import Model


def add_parser(subparsers: t.Any) -> None:
    """Adds `timings report`."""
    parser = subparsers.add_parser("timings", help="reports from timing logs (callback churten.core.timings)")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    report = verbs.add_parser("report", help="print the recap of a run again")
    report.add_argument("log", metavar="LOG", help="timing log, or - for the standard input")
    report.add_argument(
        "--run",
        dest="run_id",
        metavar="ID",
        help="the run to show: the beginning of its id, or 'all' (default: the last one in the log)",
    )
    report.add_argument(
        "--sort",
        choices=("descending", "ascending", "none"),
        default="descending",
        help="order of the tasks by sum (default: descending)",
    )
    report.add_argument(
        "--limit", type=_limit, default=20, metavar="N", help="how many tasks to show, or 'all' (default: 20)"
    )
    report.add_argument(
        "--min-seconds", type=float, default=0.0, metavar="S", help="leave out tasks with a smaller sum"
    )
    report.add_argument("--paths", action="store_true", help="also print where each task is defined")
    report.set_defaults(run=_report)


class Runs:
    """The models of the runs of a log, read line by line; only figures are kept."""

    def __init__(self) -> None:
        self.models: dict[str, Model] = {}  # in the order the runs began
        self.names: dict[str, str] = {}
        self.bad = 0
        self.first_bad = ""

    def read(self, lines: t.Iterable[str], wanted: str | None = None) -> None:
        """Take in all lines; those that are not valid are counted. `wanted`: only runs whose id begins so."""
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                event, run, body = log.read(line)
                if wanted is None or run.startswith(wanted):
                    self._take(event, run, body)
            except (ValueError, RecursionError) as ex:
                self.bad += 1
                self.first_bad = self.first_bad or f"line {number}: {ex}"

    def _take(self, event: str, run: str, body: dict[str, object]) -> None:
        model = self.models.get(run)
        if model is None:
            model = self.models[run] = Model()
        if event == "result":
            model.add(log.read_result(body))
        elif event == "run":
            self.names.setdefault(
                run, f"{body.get('playbook')}, started {body.get('started')}, ansible-core {body.get('ansible')}"
            )
        elif event == "end":
            seconds = body.get("seconds")
            if not isinstance(seconds, (int, float)) or isinstance(seconds, bool):
                raise ValueError("field 'seconds'")
            model.total_s = float(seconds)


def _report(arguments: argparse.Namespace) -> int:
    runs = Runs()
    chosen = arguments.run_id
    try:
        if arguments.log == "-":
            runs.read(sys.stdin, None if chosen in (None, "all") else chosen)
        else:
            with open(arguments.log, encoding="utf-8", errors="replace") as lines:
                runs.read(lines, None if chosen in (None, "all") else chosen)
    except OSError as ex:
        print(f"churten: {arguments.log}: {ex.strerror}", file=sys.stderr)
        return 1
    if runs.bad:
        print(f"churten: {runs.bad} lines of {arguments.log} skipped ({runs.first_bad})", file=sys.stderr)
    ids = list(runs.models)
    if not ids:
        print(f"churten: no run in {arguments.log}", file=sys.stderr)
        return 1
    columns = max(79, shutil.get_terminal_size((80, 24)).columns - 1)
    look = recap.Look(arguments.sort, arguments.limit, arguments.min_seconds, arguments.paths, columns)
    for run in ids if chosen is not None else ids[-1:]:
        model = runs.models[run]
        print(recap.title(columns))
        print(
            f"run {run}: {runs.names.get(run, 'its first line is missing')}"
            + ("" if model.total_s is not None else " (did not end)")
        )
        for line in recap.lines(model, look, with_date=False):
            print(line)
    return 0


def _limit(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor 'all'")
    return int(text)
