#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fact cache in a play that uses each host's facts in ten tasks: churten.core.jsonfile against the built-in plugin.

    benchmarks/facts_cost.py [--hosts 1000] [--kb 60] [--tasks 10] [--strategy churten.core.linear] [--repeat 1] [--python EXE]

Local hosts, the cache filled beforehand with what the running ansible-core's own plugin writes, gathering off. Each task is a `debug` whose message needs
facts: nothing runs on a target. In turn: no cache at all and variables of the same names in the inventory (what the tasks cost without any
cache), the built-in plugin, and ours. Prints wall and CPU seconds, peak memory, and what the cache itself cost: the difference to the run without one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAIN = "import sys; from ansible.cli.playbook import main; sys.argv[0] = 'ansible-playbook'; sys.exit(main())"
FILL = """
import json, sys
from ansible.plugins.loader import cache_loader, init_plugin_loader
init_plugin_loader([])
hosts, size = int(sys.argv[1]), int(sys.argv[2])
cache = cache_loader.get("ansible.builtin.jsonfile")
for number in range(hosts):
    facts, unit = {}, 0
    while len(json.dumps(facts)) < size:
        facts[f"ansible_unit{unit}"] = {
            "device": f"eth{unit}", "active": True, "mtu": 1500, "ipv4": {"address": f"10.{number // 250}.{unit}.{number % 250}", "prefix": "24"},
            "features": {f"feature_{n}": "off [fixed]" for n in range(20)}, "options": ["a", "b", "c"], "load": 0.25, "none": None,
        }
        unit += 1
    facts |= {"ansible_hostname": f"h{number:04}", "ansible_distribution": "Debian", "ansible_memtotal_mb": 4096, "_ansible_facts_gathered": True}
    facts["discovered_interpreter_python"] = sys.executable
    cache.set(f"h{number:04}", facts)
"""


def run(where: Path, arguments: argparse.Namespace, env: dict[str, str], inventory: Path, book: str) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and peak megabytes of one ansible-playbook."""
    words = [arguments.python, "-c", MAIN, "-i", str(inventory), "-f", str(arguments.forks), str(where / book)]
    with open(where / "out", "wb") as out:
        began = time.monotonic()
        child = subprocess.Popen(words, cwd=where, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        _, status, used = os.wait4(child.pid, 0)
        wall = time.monotonic() - began
    child.returncode = os.waitstatus_to_exitcode(status)
    text = (where / "out").read_text()
    if child.returncode or text.count("Debian 4096") != arguments.hosts * arguments.tasks:
        sys.exit(f"the play failed:\n{text[-3000:]}")
    return wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=1000)
    parser.add_argument("--kb", type=int, default=60)
    parser.add_argument("--tasks", type=int, default=10)
    parser.add_argument("--forks", type=int, default=50)
    parser.add_argument("--strategy", default="churten.core.linear")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--stock", action="store_true", help="also core's own linear strategy with its own plugin")
    parser.add_argument("--python", default=sys.executable)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="churten-facts-") as name:
        where = Path(name)
        core = where / "c" / "ansible_collections" / "churten" / "core"
        core.mkdir(parents=True)
        (core / "plugins").symlink_to(ROOT / "plugins")
        message = "{{ ansible_facts.hostname }} {{ ansible_facts.distribution }} {{ ansible_facts.memtotal_mb }}"
        plain = "{{ hostname }} {{ distribution }} {{ memtotal_mb }}"
        tasks = "".join(f'    - {{name: task {n}, debug: {{msg: "{{{{ message }}}}"}}}}\n' for n in range(arguments.tasks))
        for book, strategy in (("site.yml", arguments.strategy), ("stock.yml", "linear")):
            (where / book).write_text(f"- hosts: all\n  gather_facts: false\n  strategy: {strategy}\n  tasks:\n{tasks}")
        head = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        names = {f"h{number:04}": None for number in range(arguments.hosts)}
        (where / "facts.json").write_text(json.dumps({"all": {"hosts": names, "vars": head | {"message": message}}}))
        known = head | {"message": plain, "distribution": "Debian", "memtotal_mb": 4096, "hostname": "{{ inventory_hostname }}"}
        (where / "plain.json").write_text(json.dumps({"all": {"hosts": names, "vars": known}}))
        keep = {k: v for k, v in os.environ.items() if not k.startswith(("ANSIBLE_", "CHURTEN_", "PYTHON"))}
        bare = keep | {"HOME": name, "PYTHONPATH": f"{ROOT}:{where / 'c'}", "ANSIBLE_NOCOLOR": "1", "ANSIBLE_DEPRECATION_WARNINGS": "0"}
        cached = bare | {"ANSIBLE_CACHE_PLUGIN_CONNECTION": str(where / "facts")}
        subprocess.run([arguments.python, "-c", FILL, str(arguments.hosts), str(arguments.kb * 1024)], env=cached, check=True)
        found: dict[str, list[tuple[float, float, float]]] = {}
        for _ in range(arguments.repeat):
            kinds = [("no cache", None), ("built-in", "ansible.builtin.jsonfile"), ("churten", "churten.core.jsonfile")]
            for kind, plugin in kinds + ([("stock", "ansible.builtin.jsonfile")] if arguments.stock else []):
                env = bare if plugin is None else cached | {"ANSIBLE_CACHE_PLUGIN": plugin}
                inventory = where / ("plain.json" if plugin is None else "facts.json")
                found.setdefault(kind, []).append(run(where, arguments, env, inventory, "stock.yml" if kind == "stock" else "site.yml"))
        print(f"{arguments.hosts} hosts x {arguments.kb} KB, {arguments.tasks} tasks, {arguments.strategy}, medians of {arguments.repeat}")
        rows = {kind: [statistics.median(column) for column in zip(*figures, strict=True)] for kind, figures in found.items()}
        for kind, (wall, cpu, memory) in rows.items():
            over = cpu - rows["no cache"][1]
            print(f"{kind:<10} wall {wall:8.2f} s  CPU {cpu:8.2f} s  peak {memory:6.0f} MB  cache {over:8.2f} s CPU")
        built_in, ours = (rows[kind][1] for kind in ("built-in", "churten"))
        base = rows["no cache"][1]
        if arguments.stock:
            print(f"stock strategy and plugin against ours: wall {rows['stock'][0] / rows['churten'][0]:.1f}x, CPU {rows['stock'][1] / ours:.1f}x")
        share = f"{(built_in - base) / (ours - base):.1f}x" if ours - base > 0.05 * base else "ours is too small to measure"
        print(f"whole play {built_in / ours:.1f}x, the cache's share: {share} (CPU)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
