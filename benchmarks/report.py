"""Tables, files and the place in README.md."""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
import statistics
from pathlib import Path

from figures import FIGURES
from harness import Measure
from scenario import OURS, Scenario

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
BASES = ("stock free", "mitogen free")

Results = dict[str, list[Measure]]


def median(results: Results, name: str, figure: str) -> float | None:
    """Of all runs of a contender that know this figure."""
    found = [measure.figures[figure] for measure in results.get(name, []) if figure in measure.figures]
    return statistics.median(found) if found else None


def verdicts(scenario: Scenario, results: Results) -> list[dict[str, object]]:
    """Each target: what was wanted, what was found, whether that is enough."""
    rows = []
    for target in scenario.targets:
        found = target.measured(lambda name, figure: median(results, name, figure))
        rows.append(
            {
                "of": target.of,
                "wanted": target.wanted(FIGURES[target.figure].title),
                "measured": found,
                "met": None if found is None else target.met(found),
                "verdict": target.verdict(found),
            }
        )
    return rows


def number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def table(scenario: Scenario, results: Results) -> str:
    """Medians; how many times as fast as stock free and Mitogen free; what is wanted and whether it is met."""
    bases = [name for name in BASES if name in results]
    judged = verdicts(scenario, results)
    head = ["", "wall s (min - max)", "controller CPU s", "background CPU s", *(["CPU per host-task ms"] if scenario.tasks else []), "peak MB"]
    head += [f"{FIGURES[name].title}{f' {FIGURES[name].unit}' if FIGURES[name].unit else ''}" for name in scenario.figures]
    head += [f"vs {name}" for name in bases] + (["wanted: met or missed"] if judged else [])
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name, measures in results.items():
        walls = [measure.wall for measure in measures]
        wall = statistics.median(walls)
        row = [name, f"{wall:.2f} ({min(walls):.2f} - {max(walls):.2f})"]
        row += [number(median(results, name, "controller_cpu")), number(median(results, name, "background_cpu"))]
        row += [number(median(results, name, "controller_ms"))] if scenario.tasks else []
        row += [number(median(results, name, "peak_mb"), 0)]
        row += [number(median(results, name, figure)) for figure in scenario.figures]
        row += [f"{statistics.median(m.wall for m in results[base]) / wall:.1f}x" for base in bases]
        if judged:
            row.append("; ".join(f"{one['wanted']}: {one['verdict']}" for one in judged if one["of"] == name))
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def save(scenario: Scenario, known: dict[str, str], results: Results, notes: list[str], text: str) -> Path:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{scenario.name}-{datetime.datetime.now().strftime('%Y%m%d-%H%M%S')}.json"
    runs = {
        name: [{k: v for k, v in dataclasses.asdict(measure).items() if k not in ("output", "curve", "begin")} for measure in measures]
        for name, measures in results.items()
    }
    whole = {"schema": 2, "facts": known, "runs": runs, "targets": verdicts(scenario, results), "notes": notes}
    path.write_text(json.dumps(whole, indent=1) + "\n")
    path.with_suffix(".md").write_text(text)
    return path


# ---- all scenarios ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Line:
    """One scenario in the summary."""

    scenario: Scenario
    results: Results
    notes: list[str]  # contenders that are out, and why
    date: str = ""  # when it was measured, if not now


def newest(scenario: Scenario, machine: str) -> Line | None:
    """The newest results of a scenario, if there are any from this machine."""
    for path in sorted(RESULTS.glob(f"{scenario.name}-*.json"), reverse=True):
        saved = json.loads(path.read_text())
        if saved.get("schema") != 2 or saved["facts"]["machine"] != machine:
            continue
        fields = {field.name for field in dataclasses.fields(Measure)}
        runs = {
            name: [Measure(**{"output": "", **{k: v for k, v in one.items() if k in fields}}) for one in measures]
            for name, measures in saved["runs"].items()
        }
        return Line(scenario, runs, [note for note in saved["notes"] if " is out: " in note], saved["facts"]["date"])
    return None


def summary(lines: list[Line]) -> str:
    """A row per scenario: churten, Mitogen, stock, the ratios, and what was wanted."""
    rows = ["| scenario | churten s | Mitogen s | stock s | vs Mitogen | vs stock | wanted: met or missed |", "|---|---|---|---|---|---|---|"]
    for line in lines:
        ours = OURS if OURS in line.results else next((name for name in line.results if name.startswith("churten")), "")
        walls = {name: statistics.median(m.wall for m in measures) for name, measures in line.results.items()}
        when = f" ({line.date})" if line.date else ""
        row = [f"{line.scenario.title}{when}", number(walls.get(ours)), number(walls.get("mitogen free")), number(walls.get("stock free"))]
        for base in ("mitogen free", "stock free"):
            row.append(f"{walls[base] / walls[ours]:.1f}x" if base in walls and ours in walls else "")
        judged = verdicts(line.scenario, line.results)
        row.append("; ".join([f"{one['wanted']}: {one['verdict']}" for one in judged] + [f"**{note}**" for note in line.notes]))
        rows.append(f"| {' | '.join(row)} |")
    return "\n".join(rows)


def save_summary(lines: list[Line], known: dict[str, str], notes: list[str], shown: str) -> Path:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"summary-{datetime.datetime.now().strftime('%Y%m%d-%H%M%S')}.json"
    whole = {
        "schema": 2,
        "facts": known,
        "notes": notes,
        "scenarios": {
            line.scenario.name: {
                "title": line.scenario.title,
                "date": line.date or known["date"],
                "runs": {name: [measure.figures for measure in measures] for name, measures in line.results.items()},
                "targets": verdicts(line.scenario, line.results),
                "notes": line.notes,
            }
            for line in lines
        },
    }
    path.write_text(json.dumps(whole, indent=1) + "\n")
    text = [*(f"- {k}: {v}" for k, v in known.items()), *(f"- {note}" for note in notes), "", shown, ""]
    path.with_suffix(".md").write_text("\n".join(text))
    return path


# ---- README.md -------------------------------------------------------------------------------------------------------


def write_readme(name: str, caption: str, shown: str, readme: Path = HERE.parent / "README.md") -> None:
    """Puts caption and table between the markers `<!-- bench:NAME -->` and `<!-- /bench -->`."""
    pattern = re.compile(rf"(<!-- bench:{re.escape(name)} -->\n).*?(<!-- /bench -->)", re.S)
    old = readme.read_text()
    if not pattern.search(old):
        raise SystemExit(f"{readme.name} has no place for {name} (<!-- bench:{name} --> and <!-- /bench -->)")
    readme.write_text(pattern.sub(lambda match: f"{match[1]}{caption}\n\n{shown}\n{match[2]}", old))
