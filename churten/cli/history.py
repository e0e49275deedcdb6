"""`churten history`: what earlier runs did."""

from __future__ import annotations

import argparse
import functools
import sys
import typing as t

from churten.history import ingest, query, store
from churten.history.place import Place, Unusable

from . import _history_out
from . import _history_show as show
from ._mixed import MixedParser


def add_parser(subparsers: t.Any) -> None:
    """Adds `history list|show|diff|search|prune|import|export|serve|push`."""
    parser = subparsers.add_parser("history", help="what earlier runs did (callback churten.core.history)")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True, parser_class=MixedParser)

    found = _verb(verbs, "list", _list, "runs, the latest first")
    _filters(found)
    found.add_argument("--limit", type=_count, default=20, metavar="N", help="how many (default: 20)")
    found.add_argument("--json", action="store_true", help="for programs")

    found = _verb(verbs, "show", _show, "a run: plays, tasks and hosts")
    _which(found)
    found.add_argument("--host", metavar="HOST", help="the results of one host, with their content if it was kept")
    found.add_argument("--task", metavar="NAME", help="the results of the tasks whose name has this")

    found = _verb(verbs, "diff", _diff, "what is different between two runs")
    found.add_argument("one", metavar="A", nargs="?", default="last-1", help="the earlier run (default: last-1)")
    found.add_argument("two", metavar="B", nargs="?", default="last", help="the later run (default: last)")
    found.add_argument("--all", action="store_true", help="also tasks with the same statuses and about the same times")

    found = _verb(verbs, "search", _search, "results by a text in task, action, role, file, host or content")
    found.add_argument("text", metavar="TEXT")
    found.add_argument("--status", choices=query.STATUSES, help="only results of this status")
    _filters(found)
    found.add_argument("--limit", type=_count, default=100, metavar="N", help="how many (default: 100)")

    found = _verb(verbs, "import", _import, "bring the runs of a timing log into the history")
    found.add_argument("log", metavar="LOG", help="whatever `churten timings` reads")
    found.add_argument("--label", action="append", default=[], metavar="WORD", help="to find the runs by (repeatable)")

    found = _verb(verbs, "prune", _prune, "forget old runs")
    found.add_argument("--older", type=_moment, metavar="WHEN", help="runs before this: 90d, 12w, 2026-11-21")
    found.add_argument("--keep", type=_count, metavar="N", help="all but the latest N runs")
    found.add_argument("--run", dest="run_id", metavar="RUN", help="this one")
    found.add_argument("--dry-run", action="store_true", help="only say what would go")

    _history_out.add_verbs(functools.partial(_verb, verbs), catch_up)


def _verb(verbs: t.Any, name: str, function: t.Callable[..., int], words: str) -> argparse.ArgumentParser:
    parser = t.cast(argparse.ArgumentParser, verbs.add_parser(name, help=words, description=words[0].upper() + words[1:] + "."))
    parser.add_argument("--dir", metavar="DIR", help="the history (default: $CHURTEN_HISTORY_DIR, else ~/.ansible/churten/history)")
    parser.set_defaults(run=_guard(function))
    return parser


def _which(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("wanted", metavar="RUN", nargs="?", help="beginning of its id, last, last-1, ... (default: last)")


def _filters(parser: argparse.ArgumentParser) -> None:
    for name, words in (("playbook", "its path"), ("label", "a label"), ("host", "the name of a host"), ("task", "the name of a task")):
        parser.add_argument(f"--{name}", metavar="TEXT", help=f"runs where {words} has this text")
    parser.add_argument("--state", choices=query.STATES)
    parser.add_argument("--since", type=_moment, metavar="WHEN", help="2026-11-21, 2026-11-21T10:11, 12h, 30d, 4w")
    parser.add_argument("--until", type=_moment, metavar="WHEN")


def _filter(arguments: argparse.Namespace) -> query.Filter:
    return query.Filter(**{name: getattr(arguments, name) for name in ("playbook", "label", "host", "task", "state", "since", "until")})


def _guard(verb: t.Callable[[argparse.Namespace, Place], int]) -> t.Callable[[argparse.Namespace], int]:
    def run(arguments: argparse.Namespace) -> int:
        try:
            return verb(arguments, Place(arguments.dir))
        except Unusable as ex:
            print(f"churten history: {ex}", file=sys.stderr)
            return 1

    return run


def catch_up(place: Place) -> None:
    """Bring in what runs have said since; what cannot be brought in is said, and what is there is shown all the same."""
    try:
        done = ingest.runs(place)
    except Unusable as ex:
        print(f"churten history: the latest runs are missing: {ex}", file=sys.stderr)
        return
    if done.busy:
        print("churten history: another process is importing; what it has not finished is missing here", file=sys.stderr)
    if done.bad:
        print(f"churten history: {done.bad} lines skipped ({done.first_bad})", file=sys.stderr)


def _list(arguments: argparse.Namespace, place: Place) -> int:
    catch_up(place)
    with store.opened(place) as db:
        rows = query.runs(db, _filter(arguments), arguments.limit)
    show.runs(rows, arguments.json)
    return 0


def _show(arguments: argparse.Namespace, place: Place) -> int:
    catch_up(place)
    with store.opened(place) as db:
        run = query.run(db, arguments.wanted)
        if arguments.host is None and arguments.task is None:
            show.run(db, run)
        elif not show.results(db, run, arguments.host, arguments.task):
            raise Unusable(f"run {run['run']} has no results of that host or task")
    return 0


def _diff(arguments: argparse.Namespace, place: Place) -> int:
    catch_up(place)
    with store.opened(place) as db:
        one, two = query.run(db, arguments.one), query.run(db, arguments.two)
        show.diff(one, two, query.diff(db, one["id"], two["id"]), arguments.all)
    return 0


def _search(arguments: argparse.Namespace, place: Place) -> int:
    catch_up(place)
    with store.opened(place) as db:
        found = query.search(db, arguments.text, arguments.status, _filter(arguments), arguments.limit)
    show.found(found)
    return 0 if found else 1


def _import(arguments: argparse.Namespace, place: Place) -> int:
    done = ingest.timing_log(place, arguments.log, arguments.label)
    if done.bad:
        print(f"churten history: {done.bad} lines of {arguments.log} skipped ({done.first_bad})", file=sys.stderr)
    known = f"; {done.known} were there already" if done.known else ""
    print(f"{done.runs} runs, {done.results} results imported{known}")
    return 0


def _prune(arguments: argparse.Namespace, place: Place) -> int:
    if arguments.older is None and arguments.keep is None and arguments.run_id is None:
        raise Unusable("prune what? Give --older, --keep or --run")
    catch_up(place)
    with ingest.place_lock(place), store.opened(place, write=True) as db:
        if arguments.run_id is not None:
            rows = [query.run(db, arguments.run_id)]
        else:
            rows = query.runs(db)[arguments.keep or 0 :]
            rows = [row for row in rows if arguments.older is None or row["started"] < arguments.older]
        rows = [row for row in rows if row["state"] != "running"]
        if not arguments.dry_run:
            with store.transaction(db):
                db.executemany("DELETE FROM runs WHERE id = ?", [(row["id"],) for row in rows])
            if rows:
                db.execute("VACUUM")
    print(f"{len(rows)} runs {'would be ' if arguments.dry_run else ''}forgotten")
    return 0


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return int(text)


def _moment(text: str) -> float:
    try:
        return query.moment(text)
    except ValueError as ex:
        raise argparse.ArgumentTypeError(str(ex)) from None
