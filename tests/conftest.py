"""For all tests: the signals they start from, and the table of faults (`make faults`)."""

import importlib.util
import signal
from pathlib import Path

import pytest

# Start from the signals an interactive shell gives, also under nohup or as a background job, whose ignored signals children inherit.
for _number, _default in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL)):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, _default)

_spec = importlib.util.spec_from_file_location("fault_rows", Path(__file__).parent / "faults" / "rows.py")
rows = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(rows)


def pytest_addoption(parser):
    parser.addoption("--row", help="comma list of rows of tests/faults/rows.py: only their tests")


def _rows(item):
    return [name for mark in item.iter_markers("row") for name in mark.args]


def pytest_collection_modifyitems(config, items):
    for item in items:
        unknown = set(_rows(item)) - set(rows.ROWS)
        if unknown:
            raise pytest.UsageError(f"{item.nodeid}: {', '.join(sorted(unknown))} is not in tests/faults/rows.py")
    if wanted := config.getoption("--row"):
        kept = [item for item in items if set(_rows(item)) & set(wanted.split(","))]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


class Table:
    """Verdict and time of every row, from the tests that carry it."""

    def __init__(self):
        self.found = {}  # row -> [[outcome, seconds, node], ...]
        self.carried = {}  # node -> rows

    def pytest_collection_finish(self, session):
        self.carried = {item.nodeid: _rows(item) for item in session.items}

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.outcome != "passed":
            for row in self.carried.get(report.nodeid, ()):
                self.found.setdefault(row, []).append((report.outcome, report.duration, report.nodeid))

    def pytest_terminal_summary(self, terminalreporter):
        write, counts = terminalreporter.write_line, {}
        write("")
        for row, title in rows.ROWS.items():
            results = self.found.get(row, [])
            outcomes = {outcome for outcome, _, _ in results}
            if "failed" in outcomes:
                verdict = "FAILED"
            elif "passed" in outcomes:
                verdict = "passed"
            elif "skipped" in outcomes:
                verdict = "skipped"
            else:
                verdict = "cannot run" if row in rows.CANNOT else "no test"
            counts[verdict] = counts.get(verdict, 0) + 1
            seconds = sum(duration for _, duration, _ in results)
            why = f"  {rows.CANNOT[row]}" if row in rows.CANNOT and verdict != "passed" else ""
            write(f"{row:<4} {verdict:<10} {len(results):>3} tests {seconds:>7.1f} s  {title}{why}")
        for row in (row for row in rows.LESS if row in self.found):
            write(f"{row:<4} not asserted: {rows.LESS[row]}")
        write(f"{len(rows.ROWS)} rows: " + ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items())))


def pytest_configure(config):
    if "row" in config.getoption("markexpr", "").split() or config.getoption("--row"):
        config.pluginmanager.register(Table())
