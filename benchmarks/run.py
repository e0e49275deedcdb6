"""Runs the contenders in turn over lab hosts and compares time, CPU, memory and results.

See README.md beside this file for what makes it fair. Results: benchmarks/results/SCENARIO-TIME.{json,md}.
"""

from __future__ import annotations

import argparse
import compileall
import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from contenders import Contender, all_contenders
from harness import Measure, adopt_orphans, recap, run, tree

import churten
from churten.lab import Lab

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
TIMEOUT = 1800.0


@dataclasses.dataclass
class Scenario:
    """scenarios/NAME.yml."""

    name: str
    title: str
    hosts: int
    forks: int
    playbook: str  # path relative to benchmarks/
    tasks: int = 0  # per host, for the title only
    state: str = ""  # directory below lab_dir that the play fills: emptied before, compared after each run
    settings: dict[str, str] = dataclasses.field(default_factory=dict)  # further environment for everybody


def load(name: str) -> Scenario:
    path = HERE / "scenarios" / f"{name}.yml"
    if not path.exists():
        known = sorted(p.stem for p in (HERE / "scenarios").glob("*.yml"))
        raise SystemExit(f"no scenario {name}; there are: {', '.join(known)}")
    return Scenario(name=name, **yaml.safe_load(path.read_text()))


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def facts(scenario: Scenario, repeat: int) -> dict[str, str]:
    """What a reader must know to judge the numbers."""
    ssh = subprocess.run(["ssh", "-V"], capture_output=True, text=True, check=False).stderr.strip()
    model = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return {
        "scenario": f"{scenario.name}: {scenario.title}",
        "hosts, forks": f"{scenario.hosts} hosts on loopback (controller and hosts share the cores), forks {scenario.forks}",
        "runs": f"{repeat} of each, in turn; medians; every run starts cold (no kept session, no fact cache)",
        "stock and all": "pipelining on, ControlPersist 60s, no compression, host keys checked, interpreter given",
        "versions": f"ansible-core {version('ansible-core')}, mitogen {version('mitogen')}, churten {version('churten')}, "
        f"Python {platform.python_version()}, {ssh.split(',')[0]}",
        "machine": f"{os.cpu_count()} cores ({(model or ['unknown'])[0]}), {platform.system()} {platform.release()}",
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


class Bench:
    """One scenario in a lab of its own."""

    def __init__(self, scenario: Scenario, lab: Lab, base: Path) -> None:
        self.scenario = scenario
        self.lab = lab
        self.base = base
        self.count = 0

    def environment(self, contender: Contender) -> dict[str, str]:
        """Nothing of the caller's Ansible settings; own directories for every run, so nothing is kept between runs."""
        self.count += 1
        own = self.base / f"r{self.count}"
        own.mkdir()
        (own / "pool").mkdir(mode=0o700)
        keep = {k: v for k, v in os.environ.items() if not k.startswith(("ANSIBLE_", "CHURTEN_", "MITOGEN_"))}
        return {
            **keep,
            "ANSIBLE_CONFIG": str(self.lab.ansible_cfg),
            "ANSIBLE_FORKS": str(self.scenario.forks),
            "ANSIBLE_PIPELINING": "True",
            "ANSIBLE_SSH_ARGS": "-o ControlMaster=auto -o ControlPersist=60s",
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(own / "cp"),
            "CHURTEN_POOL_DIR": str(own / "pool"),
            **self.scenario.settings,
            **contender.settings,
        }

    def once(self, contender: Contender) -> tuple[Measure, dict[str, tuple[object, ...]]]:
        """One run from a cold start, and what it left on the hosts."""
        if self.scenario.state:
            for host in self.lab.hosts:
                shutil.rmtree(self.lab.dir / "hosts" / host.name / self.scenario.state, ignore_errors=True)
        command = [str(Path(sys.executable).with_name("ansible-playbook")), str(HERE / self.scenario.playbook)]
        if contender.variables:
            command += ["-e", json.dumps(contender.variables)]
        log = self.base / f"{contender.name.replace(' ', '-')}.log"
        measure = run(command, self.environment(contender), log, TIMEOUT)
        state = tree(self.lab.dir / "hosts", self.scenario.state) if self.scenario.state else {}
        return measure, state


def measure_all(bench: Bench, contenders: list[Contender], repeat: int) -> tuple[dict[str, list[Measure]], list[str]]:
    """Everybody in turn, `repeat` times; a contender that fails or differs is out, and the reason is said."""
    results: dict[str, list[Measure]] = {contender.name: [] for contender in contenders}
    notes: list[str] = []
    out: set[str] = set()
    wanted: tuple[dict[str, str], dict[str, tuple[object, ...]]] | None = None
    for turn in range(repeat):
        # Nobody always runs first, or always after the same one.
        order = contenders[turn % len(contenders) :] + contenders[: turn % len(contenders)] if turn else contenders
        for contender in order:
            if contender.name in out:
                continue
            measure, state = bench.once(contender)
            seen = (recap(measure.output), state)
            if wanted is None and measure.code == 0:
                wanted = seen
            problem = ""
            if measure.code != 0:
                problem = f"exit code {measure.code}: {' | '.join(measure.output.strip().splitlines()[-3:])}"
            elif not seen[0]:
                problem = "no recap"
            elif wanted is not None and seen[0] != wanted[0]:
                problem = "its recap differs"
            elif wanted is not None and seen[1] != wanted[1]:
                problem = f"{sum(1 for k in state | wanted[1] if state.get(k) != wanted[1].get(k))} files differ"
            if problem:
                out.add(contender.name)
                notes.append(f"{contender.name} is out: {problem}")
                print(notes[-1], flush=True)
                continue
            results[contender.name].append(measure)
            print(
                f"{turn + 1}/{repeat} {contender.name:20} {measure.wall:7.2f} s wall  {measure.controller_cpu:6.2f} s CPU"
                f" + {measure.background_cpu:.2f} s background  {measure.peak_mb:6.0f} MB",
                flush=True,
            )
    return {name: found for name, found in results.items() if found and name not in out}, notes


def table(results: dict[str, list[Measure]]) -> str:
    """The markdown table: medians, and how many times as fast as stock free and Mitogen free."""

    def median(name: str, field: str) -> float:
        return statistics.median(getattr(measure, field) for measure in results[name])

    bases = [name for name in ("stock free", "mitogen free") if name in results]
    lines = ["| | wall s (min - max) | controller CPU s | background CPU s | peak MB |" + "".join(f" vs {b} |" for b in bases)]
    lines.append("|---|---|---|---|---|" + "---|" * len(bases))
    for name, measures in results.items():
        walls = [measure.wall for measure in measures]
        ratios = "".join(f" {median(base, 'wall') / median(name, 'wall'):.1f}x |" for base in bases)
        lines.append(
            f"| {name} | {median(name, 'wall'):.2f} ({min(walls):.2f} - {max(walls):.2f}) | {median(name, 'controller_cpu'):.2f}"
            f" | {median(name, 'background_cpu'):.2f} | {median(name, 'peak_mb'):.0f} |{ratios}"
        )
    return "\n".join(lines)


def save(scenario: Scenario, known: dict[str, str], results: dict[str, list[Measure]], notes: list[str], text: str) -> Path:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{scenario.name}-{datetime.datetime.now().strftime('%Y%m%d-%H%M%S')}.json"
    runs = {
        name: [{k: v for k, v in dataclasses.asdict(measure).items() if k != "output"} for measure in measures]
        for name, measures in results.items()
    }
    path.write_text(json.dumps({"schema": 1, "facts": known, "runs": runs, "notes": notes}, indent=1) + "\n")
    path.with_suffix(".md").write_text(text)
    return path


def write_readme(scenario: Scenario, repeat: int, known: dict[str, str], shown: str) -> None:
    """Puts the table between the markers `<!-- bench:NAME -->` and `<!-- /bench -->` of the project's README."""
    readme = HERE.parent / "README.md"
    command = f"make bench SCENARIO={scenario.name} REPEAT={repeat}"
    text = f"{scenario.title}: `{command}` on {known['machine']}, {known['date']};\n{known['versions']}; forks {scenario.forks}.\n\n{shown}"
    pattern = re.compile(rf"(<!-- bench:{scenario.name} -->\n).*?(<!-- /bench -->)", re.S)
    old = readme.read_text()
    if not pattern.search(old):
        raise SystemExit(f"README.md has no place for {scenario.name} (<!-- bench:{scenario.name} -->)")
    readme.write_text(pattern.sub(lambda match: f"{match[1]}{text}\n{match[2]}", old))


def bench(scenario: Scenario, repeat: int, only: list[str], readme: bool) -> int:
    known = facts(scenario, repeat)
    for name, value in known.items():
        print(f"{name}: {value}")
    contenders, skipped = [], []
    for contender in all_contenders():
        if only and contender.name not in only:
            continue
        reason = contender.missing()
        if reason:
            skipped.append(f"{contender.name} is skipped: {reason}")
            print(skipped[-1])
        else:
            contenders.append(contender)
    # pip compiles what it installs; a checkout has no compiled files where Python is told not to write them (PYTHONDONTWRITEBYTECODE).
    compileall.compile_dir(Path(churten.__file__).parent, quiet=1)
    base = Path(tempfile.mkdtemp(prefix="chb-", dir="/var/tmp"))
    base.chmod(0o755)
    lab = Lab(base / "lab")
    try:
        # Before adopt_orphans and in a process of its own: what the hosts leave behind is not the controller's.
        command = [sys.executable, "-m", "churten.cli.main", "lab", "up", "--hosts", str(scenario.hosts), "--dir", str(lab.dir)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        lab = Lab(base / "lab")
        adopt_orphans()
        results, notes = measure_all(Bench(scenario, lab, base), contenders, repeat)
        shown = table(results)
        text = "\n".join([*(f"- {k}: {v}" for k, v in known.items()), *(f"- {n}" for n in skipped + notes), "", shown, ""])
        print("\n" + shown)
        print(f"\nsaved as {save(scenario, known, results, skipped + notes, text)}")
        if readme:
            write_readme(scenario, repeat, known, shown)
        return 1 if notes else 0
    finally:
        lab.down()
        shutil.rmtree(base, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenario", default="cmd20x20")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", action="append", default=[], metavar="CONTENDER", help="repeatable")
    parser.add_argument("--readme", action="store_true", help="also write the table into README.md")
    parser.add_argument("--list", action="store_true", help="the scenarios and contenders")
    arguments = parser.parse_args()
    if arguments.list:
        for path in sorted((HERE / "scenarios").glob("*.yml")):
            print(f"{path.stem:12} {load(path.stem).title}")
        print("\n".join(contender.name for contender in all_contenders()))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    return bench(load(arguments.scenario), arguments.repeat, arguments.only, arguments.readme)


if __name__ == "__main__":
    sys.exit(main())
