"""`make bench-plots`: what one host-task costs, against the number of hosts and of tasks, as plots/*.svg.

Every point is the median of a few runs from a cold start. A contender whose next point would take longer than the limit ends there.
The points are saved as results/plots-TIME.json; `--draw FILE` draws them again.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import report
from contenders import Contender, all_contenders
from harness import end_leftovers, recap
from run import Bench, machine
from scenario import Scenario, World
from surroundings import hosts

HERE = Path(__file__).resolve().parent
PLOTS = HERE / "plots"
NAMES = ["stock free", "mitogen free", "churten free"]
COLOURS = {"stock free": "#9aa0a6", "mitogen free": "#e8710a", "churten free": "#1a73e8"}
LIMIT_S = 300.0  # of one run


@dataclasses.dataclass
class Axis:
    """One plot: which plays over how many hosts."""

    name: str
    label: str
    points: list[tuple[int, int]]  # (hosts, tasks)
    forks: int
    of: int  # which of the two is the x axis


AXES = [
    Axis("hosts", "hosts (5 tasks each, forks 50)", [(10, 5), (50, 5), (200, 5), (1000, 5)], 50, 0),
    Axis("tasks", "tasks per host (20 hosts, forks 20)", [(20, 1), (20, 5), (20, 20), (20, 100)], 20, 1),
]


def within(costs: list[tuple[int, float]], work: int, limit: float) -> bool:
    """Whether `work` host-tasks will probably be done in `limit` seconds, by the last two points: (host-tasks, seconds)."""
    if len(costs) < 2:
        return not costs or costs[-1][1] <= limit
    (less, quick), (more, slow) = costs[-2:]
    return slow + (slow - quick) / (more - less) * (work - more) <= limit


def measure(axis: Axis, bench: Bench, contenders: list[Contender], repeat: int, limit: float) -> Iterator[tuple[str, int, float]]:
    """(contender, x, milliseconds of wall time per host-task)."""
    costs: dict[str, list[tuple[int, float]]] = {contender.name: [] for contender in contenders}
    bench.scenario.forks = axis.forks
    for point in axis.points:
        count, tasks = point
        for contender in contenders:
            if not within(costs[contender.name], count * tasks, limit):
                print(f"{contender.name} ends before {count} hosts, {tasks} tasks: it would take longer than {limit:.0f} s", flush=True)
                continue
            walls = []
            for _ in range(repeat):
                found = bench.play(contender, bench.own(), f"playbooks/cmd{tasks}.yml", count)
                said = recap(found.output)
                if found.code != 0 or len(said) != count or any(f"ok={tasks} " not in line for line in said.values()):
                    print(f"{contender.name} is out at {count} hosts, {tasks} tasks: exit code {found.code}", flush=True)
                    break
                walls.append(found.wall)
            else:
                costs[contender.name].append((count * tasks, statistics.median(walls)))
                cost = statistics.median(walls) / (count * tasks) * 1000
                print(f"{count:5} hosts {tasks:4} tasks {contender.name:14} {cost:8.2f} ms per host-task", flush=True)
                yield contender.name, point[axis.of], cost


def draw(saved: dict, folder: Path) -> list[Path]:
    """An SVG per axis."""
    try:
        import matplotlib
    except ImportError as error:
        raise SystemExit("bench-plots: matplotlib is not installed (pip install matplotlib, or the extra `bench`)") from error
    matplotlib.use("svg")
    # Text stays text, and the same points give the same file.
    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "churten", "font.size": 10}
    from matplotlib import pyplot, ticker

    folder.mkdir(exist_ok=True)
    made = []
    for axis in AXES:
        points = saved["points"].get(axis.name)
        if not points:
            continue
        figure, plot = pyplot.subplots(figsize=(7, 4.2))
        for name, found in points.items():
            if found:
                plot.plot(*zip(*found, strict=True), marker="o", label=name, color=COLOURS.get(name))
        plot.set_xscale("log")
        plot.set_yscale("log")
        plot.set_xticks([point[axis.of] for point in axis.points])
        plot.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        for one in (plot.xaxis, plot.yaxis):
            one.set_major_formatter(ticker.FormatStrFormatter("%g"))
            one.set_minor_formatter(ticker.NullFormatter())
        plot.set_xlabel(axis.label)
        plot.set_ylabel("wall time per host-task, ms")
        plot.set_title(f"command tasks, cold start; {saved['facts']['machine'].split(',')[0]}", fontsize=10)
        plot.grid(True, which="major", alpha=0.3)
        plot.legend(frameon=False)
        figure.tight_layout()
        path = folder / f"{axis.name}.svg"
        figure.savefig(path, metadata={"Date": None, "Creator": None})
        pyplot.close(figure)
        made.append(path)
    return made


def measure_everything(only: list[str], repeat: int, limit: float) -> dict:
    contenders = [one for one in all_contenders() if one.name in (only or NAMES) and not one.missing()]
    points: dict[str, dict[str, list[tuple[int, float]]]] = {}
    base = Path(tempfile.mkdtemp(prefix="chb-", dir="/var/tmp"))
    base.chmod(0o755)
    try:
        most = max(count for axis in AXES for count, _ in axis.points)
        world = World(one_sshd=True)
        with hosts(base, most, world) as lab:
            bench = Bench(Scenario("plots", "plots", most, 0, "playbooks/cmd5.yml", world=world), lab, base)
            for axis in AXES:
                points[axis.name] = {contender.name: [] for contender in contenders}
                for name, x, cost in measure(axis, bench, contenders, repeat, limit):
                    points[axis.name][name].append((x, cost))
    finally:
        end_leftovers()
        shutil.rmtree(base, ignore_errors=True)
    return {"schema": 1, "facts": machine(), "repeat": repeat, "points": points}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--limit", type=float, default=LIMIT_S, metavar="SECONDS", help="of one run (default: %(default).0f)")
    parser.add_argument("--only", action="append", default=[], metavar="CONTENDER", help="repeatable")
    parser.add_argument("--hosts", type=int, default=0, metavar="N", help="no points with more hosts than this")
    parser.add_argument("--draw", type=Path, metavar="FILE", help="measure nothing, draw what was saved")
    given = parser.parse_args()
    if given.draw:
        saved = json.loads(given.draw.read_text())
    else:
        for axis in AXES:
            axis.points = [point for point in axis.points if not given.hosts or point[0] <= given.hosts]
        saved = measure_everything(given.only, given.repeat, given.limit)
        report.RESULTS.mkdir(exist_ok=True)
        path = report.RESULTS / f"plots-{datetime.datetime.now().strftime('%Y%m%d-%H%M%S')}.json"
        path.write_text(json.dumps(saved, indent=1) + "\n")
        print(f"saved as {path}")
    for path in draw(saved, PLOTS):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
