#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""What recording a run costs: nothing, churten.core.history, and ARA's own callback with its server on loopback.

    benchmarks/history_cost.py [--hosts 5] [--tasks 20] [--repeat 5] [--strategy linear] [--ara DIR] [--no-ara]

The same play over local hosts, in turn with each recorder, after one run of each that does not count. ARA's callback is installed with --ara: an environment
with ara[server] (build/ara, which `make test-ara` makes); its server runs in its own process with a database of its own. Prints medians of the wall time of
ansible-playbook and of its CPU time, and how long `churten history push` takes to send the same run to the same server afterwards.
"""

from __future__ import annotations

import argparse
import glob
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "plugins"))

from ara_servers import Real  # noqa: E402

MAIN = "import sys; from ansible.cli.playbook import main; sys.argv[0] = 'ansible-playbook'; sys.exit(main())"


def run(where: Path, arguments: argparse.Namespace, env: dict[str, str]) -> tuple[float, float]:
    """Wall and CPU seconds of one ansible-playbook."""
    inventory = ",".join(f"host{number:03}" for number in range(arguments.hosts)) + ","
    variables = ["-e", "ansible_connection=local", "-e", f"ansible_python_interpreter={sys.executable}"]
    words = [sys.executable, "-c", MAIN, "-i", inventory, *variables, "-f", str(arguments.hosts), str(where / "site.yml")]
    with open(where / "out", "wb") as out:
        began = time.monotonic()
        child = subprocess.Popen(words, cwd=where, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        _, status, used = os.wait4(child.pid, 0)
        wall = time.monotonic() - began
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"the play failed:\n{(where / 'out').read_text()}")
    return wall, used.ru_utime + used.ru_stime


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=5)
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--strategy", default="linear")
    parser.add_argument("--module", default="debug: {msg: x}")
    parser.add_argument("--ara", default=os.environ.get("CHURTEN_ARA") or str(ROOT / "build" / "ara"))
    parser.add_argument("--no-ara", action="store_true")
    arguments = parser.parse_args()
    os.environ["CHURTEN_ARA"] = arguments.ara
    with tempfile.TemporaryDirectory(prefix="churten-cost-") as name:
        where = Path(name)
        core = where / "c" / "ansible_collections" / "churten" / "core"
        core.mkdir(parents=True)
        (core / "plugins").symlink_to(ROOT / "plugins")
        tasks = "".join(f"    - {{name: task {number}, {arguments.module}}}\n" for number in range(arguments.tasks))
        (where / "site.yml").write_text(f"- hosts: all\n  gather_facts: false\n  strategy: {arguments.strategy}\n  tasks:\n{tasks}")
        keep = {k: v for k, v in os.environ.items() if not k.startswith(("ANSIBLE_", "CHURTEN_", "PYTHON", "ARA_"))}
        bare = keep | {"HOME": name, "PYTHONPATH": f"{ROOT}:{where / 'c'}", "ANSIBLE_NOCOLOR": "1", "ANSIBLE_DEPRECATION_WARNINGS": "0"}
        ours = {"CHURTEN_HISTORY_DIR": str(where / "h"), "ANSIBLE_CALLBACKS_ENABLED": "churten.core.history"}
        kinds = {"nothing": {}, "history": ours, "history with content": ours | {"CHURTEN_HISTORY_CONTENT": "1"}}
        server = None
        if not arguments.no_ara:
            server = Real(where)
            (site,) = glob.glob(f"{arguments.ara}/lib/python3*/site-packages")
            kinds["ARA's callback"] = {
                "PYTHONPATH": bare["PYTHONPATH"] + ":" + site,
                "ANSIBLE_CALLBACK_PLUGINS": f"{site}/ara/plugins/callback",
                "ARA_API_CLIENT": "http",
                "ARA_API_SERVER": server.url,
            }
        try:
            measure(where, arguments, bare, kinds, server)
        finally:
            if server is not None:
                server.close()
    return 0


def measure(where: Path, arguments: argparse.Namespace, bare: dict[str, str], kinds: dict[str, dict[str, str]], server: Real | None) -> None:
    """The table."""
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    for number in range(arguments.repeat + 1):
        for kind, env in kinds.items():
            figures = run(where, arguments, bare | env)
            if number:
                found[kind].append(figures)
            time.sleep(1.0)  # the importer of a history run
    print(f"{arguments.hosts} hosts x {arguments.tasks} tasks ({arguments.module}), strategy {arguments.strategy}, medians of {arguments.repeat}")
    base = [statistics.median(one[i] for one in found["nothing"]) for i in (0, 1)]
    for kind, rows in found.items():
        wall, cpu = (statistics.median(one[i] for one in rows) for i in (0, 1))
        print(f"{kind:<22} wall {wall:6.2f} s ({wall / base[0] - 1:+.1%})  CPU {cpu:6.2f} s ({cpu / base[1] - 1:+.1%})")
    if server is not None:
        plays = len(server.all("playbooks"))
        results = len(server.all("results"))
        print(f"ARA's callback recorded {plays} playbooks, {results} results")
        words = [sys.executable, "-m", "churten.cli.main", "history", "push", "--dir", str(where / "h"), "--ara", server.url, "last"]
        began = time.monotonic()
        subprocess.run(words, env=bare, check=True, timeout=600)
        print(f"churten history push of the last run: {time.monotonic() - began:.2f} s")


if __name__ == "__main__":
    sys.exit(main())
