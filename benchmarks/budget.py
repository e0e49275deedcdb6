#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the CPU time of a churten run goes: controller, pool, sshd, agents, modules.

    benchmarks/budget.py [--hosts 20] [--repeat 3] [--strategy churten.core.free] [--playbook playbooks/cmd20.yml]
    benchmarks/budget.py --scenario file100m20 --strategy free,churten.core.free

The play runs on lab hosts cold (no session, no agent) and then warm (what the first run left); after each run the CPU time of every process of the hosts
and of the pool is read from /proc while they live. Prints medians in ms per host-task. `agents` is what the agents themselves use, with the fork of each
child; `modules` is what their children use, those that have ended and those that stand; `sshd` is all of the login, too. Several strategies take turns; under
a built-in one `pool` is its ssh masters, and what ran on the hosts and has ended is `sshd`.
"""

from __future__ import annotations

import argparse
import compileall
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import end_leftovers, random_file, recap, run
from scenario import Scenario, World, load
from surroundings import Hosts, hosts

import churten
from churten.lab import procs

HERE = Path(__file__).resolve().parent
TICK = os.sysconf("SC_CLK_TCK")
PARTS = ("controller", "pool", "sshd", "agents", "modules", "other")
TIMEOUT = 600.0


def stat(pid: int) -> tuple[int, float, float] | None:
    """Parent, CPU seconds of the process itself, and of the children it has waited for; None if it has gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    utime, stime, cutime, cstime = (int(field) / TICK for field in fields[11:15])
    return int(fields[1]), utime + stime, cutime + cstime


def snapshot(listeners: set[int], pool_dir: Path) -> dict[str, float]:
    """CPU seconds so far of everything below the hosts' sshd, and of the pool."""
    found = {int(name): known for name in os.listdir("/proc") if name.isdigit() and (known := stat(int(name)))}
    below = set(listeners)
    while more := {pid for pid, (parent, _, _) in found.items() if parent in below} - below:
        below |= more
    spent = dict.fromkeys(PARTS, 0.0)
    lines = {pid: procs.command_line(pid) for pid in found}
    for pid, (parent, own, children) in found.items():
        line = lines[pid]
        if pid not in below:
            spent["pool"] += own if f"churten-pool --dir {pool_dir}" in line else 0.0
        elif "sshd" in line:
            spent["sshd"] += own + children
        elif "python" in line:
            spent["modules" if line == lines.get(parent) else "agents"] += own  # one that stands looks like its agent
            spent["modules"] += children
        else:
            spent["other"] += own + children
    return spent


def asked() -> tuple[Scenario, list[str], int]:
    """What the command line says: a scenario, the strategies, how often."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hosts", type=int)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--strategy", default="churten.core.free", help="or several, with commas between them")
    parser.add_argument("--playbook", type=Path, default=HERE / "playbooks" / "cmd20.yml")
    parser.add_argument("--scenario", help="its hosts, its playbook and its file")
    given = parser.parse_args()
    scenario = load(given.scenario) if given.scenario else Scenario("", "", 20, 20, str(given.playbook.resolve()))
    if given.hosts:
        scenario.hosts = scenario.forks = given.hosts
    return scenario, given.strategy.split(","), given.repeat


def turn(world: Hosts, base: Path, pool_dir: Path, scenario: Scenario, strategy: str) -> tuple[dict[str, float], int]:
    """One run: CPU seconds by part, wall seconds, and how many host-tasks there were."""
    listeners = {host.pid for host in world.lab.hosts}
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("ANSIBLE_", "CHURTEN_"))}
    env = {
        **keep,
        "ANSIBLE_CONFIG": str(world.lab.ansible_cfg),
        "ANSIBLE_FORKS": str(scenario.forks),
        "ANSIBLE_STRATEGY": strategy,
        "ANSIBLE_PIPELINING": "True",
        "ANSIBLE_SSH_ARGS": "-o ControlMaster=auto -o ControlPersist=60s",
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(pool_dir),
        "CHURTEN_POOL_DIR": str(pool_dir),
        "BENCH_FILE": str(base / "file"),
    }
    for host in world.lab.hosts if scenario.state else ():
        shutil.rmtree(world.lab.dir / "hosts" / host.name / scenario.state, ignore_errors=True)
    command = [str(Path(sys.executable).with_name("ansible-playbook")), str(HERE / scenario.playbook)]
    before = snapshot(listeners, pool_dir)
    measure = run(command, env, base / "log", TIMEOUT, True)
    if measure.code != 0:
        raise SystemExit(f"budget: the play failed: {measure.output[-2000:]}")
    after = snapshot(listeners, pool_dir)
    spent = {part: after[part] - before[part] for part in PARTS} | {"controller": measure.controller_cpu, "wall": measure.wall}
    if not strategy.startswith("churten"):
        spent["pool"] = measure.background_cpu
    return spent, sum(int(counts.split()[0].partition("=")[2]) for counts in recap(measure.output).values())


def main() -> int:
    scenario, strategies, repeat = asked()
    base = Path(tempfile.mkdtemp(prefix="chb-", dir="/var/tmp"))
    base.chmod(0o755)
    random_file(base / "file", scenario.file_mb)
    seen: dict[tuple[str, str], list[dict[str, float]]] = {}
    tasks = 0
    # As in run.py: pip compiles what it installs.
    compileall.compile_dir(Path(churten.__file__).parent, quiet=1)
    try:
        with hosts(base, scenario.hosts, World()) as world:
            for number in range(repeat):
                for strategy in strategies:
                    pool_dir = base / f"p{number}{strategy[:1]}"  # short: sockets lie in it
                    pool_dir.mkdir(mode=0o700)
                    for state in ("cold", "warm"):
                        spent, tasks = turn(world, base, pool_dir, scenario, strategy)
                        seen.setdefault((strategy, state), []).append(spent)
                    end_leftovers()
    finally:
        end_leftovers()
        shutil.rmtree(base, ignore_errors=True)
    cores = subprocess.run(["nproc"], capture_output=True, text=True, check=True).stdout.strip()
    print(f"{Path(scenario.playbook).name}, {scenario.hosts} hosts, {tasks} host-tasks, {cores} cores; CPU ms per host-task, median of {repeat}\n")
    print(f"| | {' | '.join(PARTS)} | all | wall s |\n|---|{'---|' * (len(PARTS) + 2)}")
    for (strategy, state), lines in seen.items():
        middle = {part: statistics.median(line[part] for line in lines) for part in (*PARTS, "wall")}
        cells = [f"{middle[part] / tasks * 1000:.2f}" for part in PARTS]
        name = f"{strategy}, {state}" if len(strategies) > 1 else state
        print(f"| {name} | {' | '.join(cells)} | {sum(middle[part] for part in PARTS) / tasks * 1000:.2f} | {middle['wall']:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
