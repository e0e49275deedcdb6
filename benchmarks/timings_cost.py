#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the callback churten.core.timings and its log cost a run of small tasks.

    benchmarks/timings_cost.py [--hosts 20] [--tasks 30] [--repeat 7] [--strategy churten.core.free] [--live] [--instructions]

The same play over local hosts (churten.core.local), in turn without and with the callback and its log, after one run of each that does not count.
Prints medians of wall time and of the controller's CPU time, and the differences. On a machine that has other things to do they are noise; so the last
line is counted in one more run from inside, as CPU time of the thread: what the callback and the stamps take, with the copy of each result that core
makes for a callback, as part of all CPU time of that process. With --live: the live view instead, both on a pseudo-terminal. With --instructions, which
needs valgrind: the instructions that ansible-playbook executes, which other work on the machine hardly changes; each pair of runs has another seed of
Python's hashes.
"""

from __future__ import annotations

import argparse
import os
import pty
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAIN = "import sys; from ansible.cli.playbook import main; sys.argv[0] = 'ansible-playbook'; sys.exit(main())"
# The counting itself is taken off, as measured over a function that does nothing.
INSIDE = """
import atexit, functools, os, sys, threading, time
from churten.live import session, view
from churten.timings import later, options, record, stamps
from ansible.executor import task_result
spent = {"ours": 0.0, "copies": 0.0, "nothing": 0.0}
calls = dict.fromkeys(spent, 0)
inside = threading.local()
def count(owner, name, what, share=1.0):
    function = getattr(owner, name)
    @functools.wraps(function)
    def counted(*args, **kwargs):
        if getattr(inside, "now", False):
            return function(*args, **kwargs)
        inside.now = True
        began = time.thread_time()
        try:
            return function(*args, **kwargs)
        finally:
            spent[what] += (time.thread_time() - began) * share
            calls[what] += share
            inside.now = False
    setattr(owner, name, counted)
if os.environ.get("ANSIBLE_STDOUT_CALLBACK"):
    for name in ("play", "start", "end", "finish", "lines"):
        count(session.Session, name, "ours")
    for name in ("_erase", "_put", "_compose"):
        count(view.View, name, "ours")
else:
    for name in ("playbook", "play", "task", "start", "item", "retry", "done", "finish"):
        count(record.Recorder, name, "ours")
    count(later.Later, "flush", "ours")
    for name in ("begin", "enter", "request", "connecting", "connected", "arrived"):
        count(stamps, name, "ours")
    copy = getattr(task_result, "_RawTaskResult", None)
    if copy is not None and "churten" not in os.environ["COST_STRATEGY"]:  # churten's make none for this callback
        count(copy, "as_callback_task_result", "copies", 0.5)  # the other half is for the stdout callback
class Nothing:
    def nothing(self):
        pass
count(Nothing, "nothing", "nothing")
def tell():
    total = time.process_time()
    for _ in range(5000):
        Nothing().nothing()
    each = spent["nothing"] / 5000
    with open(os.environ["COST_OUT"], "w") as out:
        print(spent["ours"] - each * calls["ours"], spent["copies"] - each * calls["copies"], total, file=out)
atexit.register(tell)
"""
PLAY = """
- hosts: all
  gather_facts: false
  strategy: {strategy}
  tasks:
"""


def run(where: Path, hosts: int, env: dict[str, str], terminal: bool, before: str = "", under: list[str] | None = None) -> tuple[float, float]:
    """Wall and CPU seconds of one ansible-playbook."""
    inventory = ",".join(f"host{number:03}" for number in range(hosts)) + ","
    variables = ["-e", "ansible_connection=local", "-e", f"ansible_python_interpreter={sys.executable}"]
    words = [*(under or ()), sys.executable, "-c", before + MAIN, "-i", inventory, *variables, "-f", str(hosts), str(where / "site.yml")]
    master, slave = pty.openpty() if terminal else (-1, os.open(os.devnull, os.O_RDWR))
    reader = threading.Thread(target=read_all, args=(master,), daemon=True) if terminal else None
    if reader is not None:
        reader.start()
    began = time.monotonic()
    child = subprocess.Popen(words, cwd=where, env=env, stdin=subprocess.DEVNULL, stdout=slave, stderr=subprocess.PIPE)
    _, status, used = os.wait4(child.pid, 0)
    wall = time.monotonic() - began
    child.returncode = os.waitstatus_to_exitcode(status)
    os.close(slave)
    assert child.stderr is not None
    if child.returncode:
        sys.exit(f"the play failed:\n{child.stderr.read().decode()}")
    child.stderr.close()
    if reader is not None:
        reader.join()
        os.close(master)
    return wall, used.ru_utime + used.ru_stime


def instructions(where: Path, hosts: int, kinds: dict[str, dict[str, str]], repeat: int, count: int) -> None:
    """Count them with and without, in turn, and print."""
    run(where, hosts, kinds["with"], False)  # Python compiles what it has not compiled yet
    found: dict[str, list[int]] = {kind: [] for kind in kinds}
    for seed in range(1, repeat + 1):
        for kind, env in kinds.items():
            log = where / "valgrind.log"
            before = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", f"--log-file={log}"]
            run(where, hosts, env | {"PYTHONHASHSEED": str(seed)}, False, "", before)
            found[kind].append(int(re.findall(r"Collected : (\d+)", log.read_text())[0]))
    more = [100 * (one - other) / other for one, other in zip(found["with"], found["without"], strict=True)]
    each = (statistics.mean(found["with"]) - statistics.mean(found["without"])) / count
    print(f"instructions: without {statistics.mean(found['without']) / 1e6:.0f} million, with it {statistics.mean(more):+.2f} % ", end="")
    print(f"({min(more):+.2f} to {max(more):+.2f} %), {each / 1000:+.0f} thousand per task")


def read_all(fd: int) -> None:
    """What a terminal does: take it."""
    try:
        while os.read(fd, 65536):
            pass
    except OSError:
        pass


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=20)
    parser.add_argument("--tasks", type=int, default=30)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--strategy", default="churten.core.free")
    parser.add_argument("--live", action="store_true")
    parser.add_argument("--instructions", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="churten-cost-") as name:
        where = Path(name)
        core = where / "c" / "ansible_collections" / "churten" / "core"
        core.mkdir(parents=True)
        (core / "plugins").symlink_to(ROOT / "plugins")
        tasks = "".join(f"    - {{name: task {number}, command: 'true'}}\n" for number in range(arguments.tasks))
        (where / "site.yml").write_text(PLAY.format(strategy=arguments.strategy) + tasks)
        env = {k: v for k, v in os.environ.items() if not k.startswith(("ANSIBLE_", "CHURTEN_")) and k not in ("CI", "PYTHONDONTWRITEBYTECODE")}
        env |= {
            "ANSIBLE_COLLECTIONS_PATH": str(where / "c"),
            "ANSIBLE_DEPRECATION_WARNINGS": "0",
            "HOME": name,
            "PYTHONPATH": str(ROOT),
            "PYTHONPYCACHEPREFIX": str(where / "cache"),
            "TERM": "xterm",
        }
        with_it = {"ANSIBLE_STDOUT_CALLBACK": "churten.core.live"}
        if not arguments.live:
            with_it = {
                "ANSIBLE_CALLBACKS_ENABLED": "churten.core.timings",
                "CHURTEN_TIMINGS_LOG": str(where / "t.log"),
                "CHURTEN_TIMINGS_RECAP": "0",
            }
        # Local modules are given all of the environment: it has the same size without.
        kinds = {"without": env | {f"X{name}": value for name, value in with_it.items()}, "with": env | with_it}
        count = arguments.hosts * arguments.tasks
        if arguments.instructions:
            print(f"{arguments.strategy}, {arguments.hosts} hosts x {arguments.tasks} tasks, {arguments.repeat} runs each, in turn")
            instructions(where, arguments.hosts, kinds, arguments.repeat, count)
            stop(env, where)
            return 0
        figures: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
        for number in range(arguments.repeat + 1):
            for kind in sorted(kinds, reverse=bool(number % 2)):
                found = run(where, arguments.hosts, kinds[kind], arguments.live)
                if number:
                    figures[kind].append(found)
        print(f"{arguments.strategy}, {arguments.hosts} hosts x {arguments.tasks} tasks, {arguments.repeat} runs each, in turn")
        for column, what in enumerate(("wall", "CPU")):
            median = {kind: statistics.median(one[column] for one in figures[kind]) for kind in kinds}
            more = median["with"] - median["without"]
            print(
                f"{what:>5}: without {median['without']:.3f} s, with {median['with']:.3f} s:"
                f" {100 * more / median['without']:+.1f} %, {1e6 * more / count:+.0f} us per task"
            )
        run(where, arguments.hosts, env | with_it | {"COST_OUT": str(where / "cost"), "COST_STRATEGY": arguments.strategy}, arguments.live, INSIDE)
        ours, copies, total = map(float, (where / "cost").read_text().split())
        print(
            f"inside: {100 * (ours + copies) / total:.2f} % of {total:.3f} s CPU:"
            f" {1e6 * ours / count:.0f} us per task, and {1e6 * copies / count:.0f} us core's copy of the result"
        )
        stop(env, where)
    return 0


def stop(env: dict[str, str], where: Path) -> None:
    """End the pool of the runs."""
    subprocess.run([sys.executable, "-m", "churten.cli.main", "pool", "stop"], env=env, cwd=where, capture_output=True, check=False)


if __name__ == "__main__":
    sys.exit(main())
