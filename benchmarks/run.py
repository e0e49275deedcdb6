"""Runs the contenders in turn over lab hosts and compares time, CPU, memory and results.

Without a scenario: all that fit into 20 minutes, and one summary. See README.md beside this file for what makes it fair.
Results: benchmarks/results/SCENARIO-TIME.{json,md}, summary-TIME.{json,md}.
"""

from __future__ import annotations

import argparse
import compileall
import datetime
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import contenders as who
import figures
import report
import scenario as scenarios
from contenders import Contender, all_contenders
from harness import Measure, end_leftovers, pyinfra_recap, random_file, recap, run, tree
from scenario import Scenario
from surroundings import Hosts, hosts

import churten

HERE = Path(__file__).resolve().parent
TIMEOUT = 1800.0
BUDGET = 1200.0  # seconds for all scenarios together


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def pyinfra_version() -> str:
    if not who.PYINFRA.exists():
        return "none"
    words = [str(who.PYINFRA.with_name("python")), "-c", "import importlib.metadata as m; print(m.version('pyinfra'))"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def machine() -> dict[str, str]:
    """What a reader must know of machine and programs to judge the numbers."""
    ssh = subprocess.run(["ssh", "-V"], capture_output=True, text=True, check=False).stderr.strip()
    model = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return {
        "versions": f"ansible-core {version('ansible-core')}, mitogen {version('mitogen')}, pyinfra {pyinfra_version()}, "
        f"churten {version('churten')}, Python {platform.python_version()}, {ssh.split(',')[0]}",
        "machine": f"{os.cpu_count()} cores ({(model or ['unknown'])[0]}), {platform.system()} {platform.release()}",
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def facts(scenario: Scenario, repeats: str) -> dict[str, str]:
    """The same of one scenario."""
    world = scenario.world
    far = f", {world.rtt_ms:g} ms round trip through a delay proxy" if world.rtt_ms else ""
    start = {
        "": "every run starts cold (no kept session, no fact cache)",
        "warm": "measured is the second of two runs; sessions, agents, ssh masters of the first are kept",
        "files": "measured is the second of two runs; of the first its files are kept (fact cache), but no session",
    }[scenario.second]
    given = "discovered by Ansible" if world.discover else "given"
    return {
        "scenario": f"{scenario.name}: {scenario.title}",
        "hosts, forks": f"{scenario.hosts} hosts on loopback{far} (controller and hosts share the cores), forks {scenario.forks}",
        "runs": f"{repeats}, in turn; medians; {start}",
        "stock and all": f"pipelining on, ControlPersist 60s, no compression, host keys checked, interpreter {given}",
        **machine(),
    }


class Unfit(Exception):
    """A contender cannot do this scenario; the text says why."""


class Bench:
    """One scenario on hosts of its own."""

    def __init__(self, scenario: Scenario, world: Hosts, base: Path) -> None:
        self.scenario = scenario
        self.world = world
        self.base = base
        self.count = 0

    def own(self) -> Path:
        """A directory for one run: control sockets, pool, caches. So nothing is kept between runs that is not meant to be.

        What churten keeps of modules and of `ssh_config` on disk (`cache-*`, as Python keeps `.pyc` files) is there from its second run on.
        """
        before = self.base / f"r{self.count}" / "pool"
        self.count += 1
        own = self.base / f"r{self.count}"
        (own / "pool").mkdir(mode=0o700, parents=True)
        for kept in before.glob("cache-*"):
            shutil.copy2(kept, own / "pool" / kept.name)
        return own

    def environment(self, contender: Contender, own: Path) -> dict[str, str]:
        """Nothing of the caller's Ansible settings."""
        keep = {k: v for k, v in os.environ.items() if not k.startswith(("ANSIBLE_", "CHURTEN_", "MITOGEN_"))}
        settings = {**self.scenario.settings, **self.scenario.per.get(contender.family, {})}
        clock = {
            "ANSIBLE_CALLBACK_PLUGINS": str(HERE / "callbacks"),
            "ANSIBLE_CALLBACKS_ENABLED": "bench_clock",
            "BENCH_CLOCK": str(own / "clock"),
        }
        return {
            **keep,
            "ANSIBLE_CONFIG": str(self.world.lab.ansible_cfg),
            "ANSIBLE_FORKS": str(self.scenario.forks),
            "ANSIBLE_PIPELINING": "True",
            "ANSIBLE_SSH_ARGS": "-o ControlMaster=auto -o ControlPersist=60s",
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(own / "cp"),
            "CHURTEN_POOL_DIR": str(own / "pool"),
            **({"BENCH_FILE": str(self.file())} if self.scenario.file_mb else {}),
            **(clock if self.scenario.world.rtt_ms else {}),
            **{name: str(value).replace("{own}", str(own)) for name, value in settings.items()},
            **contender.settings,
        }

    def file(self) -> Path:
        """The file to copy."""
        path = self.base / "file"
        if not path.exists():
            random_file(path, self.scenario.file_mb)
        return path

    def command(self, contender: Contender, own: Path, playbook: str, limit: int, warm: bool) -> list[str]:
        kind = {"ansible": self._ansible, "floor": self._floor, "pyinfra": self._pyinfra}[contender.kind]
        return kind(contender, own, HERE / playbook, limit, warm)

    def _ansible(self, contender: Contender, own: Path, playbook: Path, limit: int, warm: bool) -> list[str]:
        command = [str(Path(sys.executable).with_name("ansible-playbook")), str(playbook)]
        if limit:
            command += ["--limit", f"lab[0:{limit - 1}]"]
        return command + (["-e", json.dumps(contender.variables)] if contender.variables else [])

    def _floor(self, contender: Contender, own: Path, playbook: Path, limit: int, warm: bool) -> list[str]:
        import floor

        from churten.transport import bootstrap

        tasks = self.base / f"floor-{playbook.stem}"
        if not tasks.exists():
            words = [sys.executable, str(HERE / "floor.py"), "prepare", str(playbook), str(tasks)]
            done = subprocess.run(words, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
            if done.returncode != 0:
                raise Unfit((done.stderr.strip().splitlines() or ["floor.py failed"])[-1])
        names = [host.name for host in self.world.lab.hosts][: limit or None]
        login = bootstrap.login_command(str(self.world.lab.options.python), floor.NONCE)
        spec = {
            "hosts": {name: self.world.ssh(name, login) for name in names},
            "forks": self.scenario.forks,
            "warm": warm,
            "standing": "standing" in contender.name,
            "tasks": str(tasks),
            "errors": str(own),
        }
        (own / "spec.json").write_text(json.dumps(spec))
        return [sys.executable, str(HERE / "floor.py"), "run", str(own / "spec.json")]

    def _pyinfra(self, contender: Contender, own: Path, playbook: Path, limit: int, warm: bool) -> list[str]:
        names = [host.name for host in self.world.lab.hosts][: limit or None]
        shared = {
            "ssh_user": self.world.lab.account,
            "ssh_key": str(self.world.key),
            "ssh_known_hosts_file": str(self.world.lab.dir / "known_hosts"),
            "ssh_strict_host_key_checking": "yes",
        }
        each = [(name, {"ssh_hostname": self.world.at[name][0], "ssh_port": self.world.at[name][1]}) for name in names]
        (own / "inventory.py").write_text(f"lab = ({each!r}, {shared!r})\n")
        words = [str(who.PYINFRA), "--yes", "--no-wait", "--parallel", str(self.scenario.forks)]
        return [*words, str(own / "inventory.py"), str(playbook.with_suffix(".py"))]

    def _empty_state(self) -> None:
        if self.scenario.state:
            for host in self.world.lab.hosts:
                shutil.rmtree(self.world.lab.dir / "hosts" / host.name / self.scenario.state, ignore_errors=True)

    def play(self, contender: Contender, own: Path, playbook: str, limit: int = 0, keep: bool = False, warm: bool = False) -> Measure:
        """One run of a playbook on the first `limit` hosts (0: all); `keep`: what it leaves running goes on."""
        command = self.command(contender, own, playbook, limit, warm)
        log = self.base / f"{contender.name.replace(' ', '-')}.log"
        measure = run(command, self.environment(contender, own), log, TIMEOUT, keep)
        for line in measure.output.splitlines():
            if contender.kind == "floor" and line.startswith("MEASURED "):
                for name, value in json.loads(line.partition(" ")[2]).items():
                    setattr(measure, name, value)
        return measure

    def once(self, contender: Contender) -> tuple[Measure, dict[str, str], dict[str, tuple[object, ...]]]:
        """One measured run, what it said, and what it left on the hosts."""
        scenario, own = self.scenario, self.own()
        self._empty_state()
        warm = scenario.second == "warm"
        if contender.kind == "ansible" and (scenario.second == "files" or (warm and contender.keeps)):
            first = self.play(contender, own, scenario.playbook, keep=warm)
            if first.code != 0:
                end_leftovers()
                return first, recap(first.output), {}
            self._empty_state()
        before = self.world.logins()
        watch = self.world.watch()
        measure = self.play(contender, own, scenario.playbook, warm=warm)
        seen = figures.Seen(scenario, measure, clock=own / "clock", login_at=watch.end() if watch else 0.0)
        seen.logins = [after - old for old, after in zip(before, self.world.logins(), strict=True)]
        state = tree(self.world.lab.dir / "hosts", scenario.state) if scenario.state else {}
        said = pyinfra_recap(measure.output) if contender.kind == "pyinfra" else recap(measure.output)
        for name, part in scenario.parts.items():
            if measure.code == 0 and contender.kind == "ansible":
                found = self.play(contender, self.own(), part.playbook or scenario.playbook, part.limit)
                if found.code != 0:
                    return found, {}, {}
                seen.parts[name] = found
        measure.figures = figures.compute(seen)
        return measure, said, state


Wanted = tuple[dict[str, str], dict[str, tuple[object, ...]]]


def problem_of(measure: Measure, seen: Wanted, wanted: Wanted | None) -> str:
    """Why a run cannot be compared; empty if it can."""
    if measure.code == 124:
        return f"not done after {TIMEOUT:.0f} s"
    if measure.code != 0:
        return f"exit code {measure.code}: {' / '.join(measure.output.strip().splitlines()[-3:])}"
    if not seen[0]:
        return "no recap"
    if wanted is None:
        return ""
    differ = sorted(host for host in seen[0] | wanted[0] if seen[0].get(host) != wanted[0].get(host))
    if differ:
        return f"its recap differs for {len(differ)} hosts: {differ[0]} {seen[0].get(differ[0])}, not {wanted[0].get(differ[0])}"
    files = sorted(path for path in seen[1] | wanted[1] if seen[1].get(path) != wanted[1].get(path))
    return f"{len(files)} files differ, first {files[0]}" if files else ""


def measure_all(bench: Bench, contenders: list[Contender], repeats: Callable[[str], int]) -> tuple[report.Results, list[str]]:
    """Everybody in turn, as often as `repeats` says; a contender that fails or differs is out, and the reason is said."""
    results: report.Results = {contender.name: [] for contender in contenders}
    notes: list[str] = []
    out: set[str] = set()
    wanted: Wanted | None = None
    most = max((repeats(contender.name) for contender in contenders), default=0)
    for turn in range(most):
        # Nobody always runs first, or always after the same one.
        order = contenders[turn % len(contenders) :] + contenders[: turn % len(contenders)]
        for contender in order:
            if contender.name in out or turn >= repeats(contender.name):
                continue
            try:
                measure, said, state = bench.once(contender)
                seen = (said, state)
                problem = problem_of(measure, seen, wanted)
            except Unfit as error:
                problem = str(error)
            if problem:
                out.add(contender.name)
                notes.append(f"{contender.name} is out: {problem}")
                print(notes[-1], flush=True)
                continue
            wanted = wanted or seen
            results[contender.name].append(measure)
            more = [f"{figures.FIGURES[name].title} {measure.figures[name]:.2f}" for name in bench.scenario.figures if name in measure.figures]
            print(
                f"{turn + 1}/{repeats(contender.name)} {contender.name:20} {measure.wall:7.2f} s wall  {measure.controller_cpu:6.2f} s CPU"
                f" + {measure.background_cpu:.2f} s background  {measure.peak_mb:6.0f} MB  {', '.join(more)}".rstrip(),
                flush=True,
            )
    return {name: found for name, found in results.items() if found and name not in out}, notes


def choose(scenario: Scenario, only: list[str], everybody: bool) -> tuple[list[Contender], list[str]]:
    """Who takes part, and why others that were wanted do not."""
    wanted = only or [*scenario.contenders, *(scenario.on_request if everybody else [])]
    contenders, skipped = [], []
    for contender in all_contenders():
        if contender.name not in wanted:
            continue
        reason = contender.missing()
        if not reason and contender.kind == "pyinfra" and not (HERE / scenario.playbook).with_suffix(".py").exists():
            reason = "this scenario has no deploy for it"
        if reason:
            skipped.append(f"{contender.name} is skipped: {reason}")
        else:
            contenders.append(contender)
    return contenders, skipped


def bench(scenario: Scenario, only: list[str], repeats: Callable[[str], int], everybody: bool = False) -> report.Line:
    """Measures one scenario, prints and saves it."""
    contenders, skipped = choose(scenario, only, everybody)
    counts = sorted({repeats(contender.name) for contender in contenders})
    known = facts(scenario, f"{' or '.join(map(str, counts))} of each")
    for line in [*(f"{name}: {value}" for name, value in known.items()), *skipped]:
        print(line, flush=True)
    base = Path(tempfile.mkdtemp(prefix="chb-", dir="/var/tmp"))
    base.chmod(0o755)
    try:
        with hosts(base, scenario.hosts, scenario.world) as world:
            results, notes = measure_all(Bench(scenario, world, base), contenders, repeats)
    finally:
        end_leftovers()
        shutil.rmtree(base, ignore_errors=True)
    shown = report.table(scenario, results)
    text = "\n".join([*(f"- {k}: {v}" for k, v in known.items()), *(f"- {n}" for n in skipped + notes), "", shown, ""])
    print("\n" + shown)
    print(f"\nsaved as {report.save(scenario, known, results, skipped + notes, text)}\n", flush=True)
    return report.Line(scenario, results, notes)


def bench_all(readme: bool, budget: float) -> int:
    """Every scenario with a share in the whole, while the time lasts; one that fails does not stop the others."""
    begin = time.monotonic()
    lines: list[report.Line] = []
    for scenario in scenarios.everything():
        if scenario.whole is None:
            continue
        contenders, _ = choose(scenario, scenario.whole.only, False)
        repeats = whole_repeats(scenario)
        estimate = scenario.estimate([contender.name for contender in contenders], repeats)
        if time.monotonic() - begin + estimate > budget:
            print(f"no time left for {scenario.name} (about {estimate:.0f} s): make bench SCENARIO={scenario.name}\n", flush=True)
            continue
        try:
            lines.append(bench(scenario, scenario.whole.only, repeats))
        except Exception as error:
            print(f"{scenario.name} failed: {error}\n", flush=True)
            lines.append(report.Line(scenario, {}, [f"failed: {error}"]))
    summarise(lines, readme)
    print(f"{time.monotonic() - begin:.0f} s")
    return 1 if any(line.notes for line in lines) else 0


def summarise(lines: list[report.Line], readme: bool) -> None:
    """Prints and saves the summary: these scenarios, and of the others the newest results there are."""
    known = machine()
    done = {line.scenario.name: line for line in lines}
    rows, notes = [], []
    for scenario in scenarios.everything():
        line = done.get(scenario.name) or report.newest(scenario, machine()["machine"])
        if line is not None:
            rows.append(line)
        else:
            notes.append(f"not measured: {scenario.name} ({scenario.title}): make bench SCENARIO={scenario.name}")
    shown = report.summary(rows)
    for note in notes:
        print(note)
    print(f"\n{shown}\n\nsaved as {report.save_summary(rows, known, notes, shown)}")
    if readme:
        caption = f"`make bench` on {known['machine']}, {known['date']};\n{known['versions']}."
        report.write_readme("summary", caption, shown)


def whole_repeats(scenario: Scenario) -> Callable[[str], int]:
    """How often a contender runs in `make bench` without SCENARIO."""
    whole = scenario.whole
    return lambda name: 0 if whole is None else 1 if name in whole.once else whole.repeat


def show_list() -> None:
    total = 0.0
    for scenario in scenarios.everything():
        one = scenario.estimate(scenario.contenders, lambda _name: 1)
        share = 0.0
        if scenario.whole:
            share = scenario.estimate(scenario.whole.only or scenario.contenders, whole_repeats(scenario))
        total += share
        print(f"{scenario.name:14} {one:5.0f} s a turn, {f'{share:4.0f} s in the whole' if scenario.whole else 'not in the whole':18}  {scenario.title}")
    print(f"the whole: {total / 60:.0f} minutes, estimated for two cores")
    print("contenders: " + ", ".join(contender.name for contender in all_contenders()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenario", default="", help="one of --list; without it all that fit into 20 minutes")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", action="append", default=[], metavar="CONTENDER", help="repeatable, or a comma list")
    parser.add_argument("--everybody", action="store_true", help="also those that take too long to run by default")
    parser.add_argument("--budget", type=float, default=BUDGET, metavar="SECONDS", help="for all scenarios together (default: %(default).0f)")
    parser.add_argument("--readme", action="store_true", help="also write the table into README.md")
    parser.add_argument("--summary", action="store_true", help="run nothing: the summary of the newest results of all scenarios")
    parser.add_argument("--list", action="store_true", help="the scenarios and contenders")
    given = parser.parse_args()
    only = [name.strip() for names in given.only for name in names.split(",") if name.strip()]
    known = [contender.name for contender in all_contenders()]
    if unknown := [name for name in only if name not in known]:
        parser.error(f"no contender {unknown[0]!r}; there are: {', '.join(known)}")
    if given.repeat < 1:
        parser.error(f"--repeat {given.repeat}: at least 1")
    try:
        if given.list:
            show_list()
            return 0
        if given.summary:
            summarise([], given.readme)
            return 0
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        # pip compiles what it installs; a checkout has no compiled files where Python is told not to write them (PYTHONDONTWRITEBYTECODE).
        for folder in (Path(churten.__file__).parent, HERE.parent / "plugins"):
            compileall.compile_dir(folder, quiet=1)
        if not given.scenario:
            return bench_all(given.readme, given.budget)
        line = bench(scenarios.load(given.scenario), only, lambda _name: given.repeat, given.everybody)
    except scenarios.ScenarioError as error:
        raise SystemExit(f"bench: {error}") from error
    if given.readme:
        known_now = machine()
        command = f"make bench SCENARIO={line.scenario.name} REPEAT={given.repeat}" + (f' ONLY="{",".join(only)}"' if only else "")
        caption = f"{line.scenario.title}: `{command}` on {known_now['machine']}, {known_now['date']};\n{known_now['versions']}; forks {line.scenario.forks}."
        report.write_readme(line.scenario.name, caption, report.table(line.scenario, line.results))
    return 1 if line.notes else 0


if __name__ == "__main__":
    sys.exit(main())
