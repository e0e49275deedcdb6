# SPDX-License-Identifier: GPL-3.0-or-later
"""Plays under random faults: `make chaos COUNT=2000 SEED=1`.

Six names of two lab hosts, each reached through a proxy of its own. While a play runs, connections are reset, stalled or cut, sshd sessions,
agents and the pool are killed, stopped or told to go. Every task writes a line on its host. Asserted of every play: it ends within its bound with an exit
code that Ansible has, every name is in the recap, no task ran twice on a host, a task that is reported as done ran once, and after the faults a plain play
works on all names. At the end: no process of the lab but its sshds, and as many descriptors in the pool as sessions need.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "differential"), str(HERE)]

from oven import Oven  # noqa: E402

from churten.lab import Lab, Options, procs  # noqa: E402
from churten.lab.chaos import Chaos, Script  # noqa: E402

NAMES = [f"h{number}" for number in range(6)]
ALIVE_S, ALIVE_COUNT = 1, 3  # ServerAliveInterval, ServerAliveCountMax: when a stall is noticed
CONNECT_S = 4
BOUND_S = 135.0  # a login that stands still has 120 s, as under sshd's LoginGraceTime (docs/protocol.md, login_timeout_ms), after CONNECT_S
STRATEGIES = ("churten.core.free", "churten.core.linear")


class Field:
    """The lab, its proxies, a pool directory and the ovens that plays come from."""

    def __init__(self, top: Path, base: Path) -> None:
        self.top, self.base = top, base
        self.lab = Lab(top / "lab")
        self.lab.up(2, Options())
        self.proxies = {name: Chaos((host.address, host.port)) for name, host in zip(NAMES, self.lab.hosts * 3)}
        self.counts = top / "counts"
        self.counts.mkdir(mode=0o777)
        self.counts.chmod(0o777)
        for name in NAMES:  # whoever comes first, the account or root
            (self.counts / name).touch()
            (self.counts / name).chmod(0o666)
        core = base / "collections" / "ansible_collections" / "churten" / "core"
        core.mkdir(parents=True)
        (core / "plugins").symlink_to(ROOT / "plugins")
        (base / "pool").mkdir(mode=0o700)
        key = " ".join((self.lab.dir / "keys/host_ed25519.pub").read_text().split()[:2])
        (base / "known").write_text("".join(f"[{proxy.host}]:{proxy.port} {key}\n" for proxy in self.proxies.values()))
        arguments = f"-o UserKnownHostsFile={base}/known -o GlobalKnownHostsFile=/dev/null -o ServerAliveInterval={ALIVE_S}"
        lines = [f"{name} ansible_host={proxy.host} ansible_port={proxy.port}" for name, proxy in self.proxies.items()]
        lines += ["[all:vars]", f"ansible_user={self.lab.account}", f"ansible_ssh_private_key_file={self.lab.dir}/keys/user_ed25519"]
        lines += [f"ansible_ssh_common_args='{arguments} -o ServerAliveCountMax={ALIVE_COUNT}'", "ansible_python_interpreter=/usr/bin/python3"]
        (base / "ansible.cfg").write_text("[defaults]\n")
        (base / "inventory").write_text("\n".join(lines) + "\n")
        self.ovens = {strategy: self._oven(strategy) for strategy in STRATEGIES}

    def _oven(self, strategy: str) -> Oven:
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.base),
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(ROOT),
            "PYTHONFAULTHANDLER": "1",
            "ANSIBLE_CONFIG": str(self.base / "ansible.cfg"),
            "ANSIBLE_INVENTORY": str(self.base / "inventory"),
            "ANSIBLE_STRATEGY": strategy,
            "ANSIBLE_COLLECTIONS_PATH": str(self.base / "collections"),
            "ANSIBLE_CALLBACK_PLUGINS": str(ROOT / "tests/plugins/callback"),
            "ANSIBLE_CALLBACKS_ENABLED": "churten_results",
            "ANSIBLE_FORKS": "4",
            "ANSIBLE_TIMEOUT": str(CONNECT_S),
            "ANSIBLE_DEPRECATION_WARNINGS": "0",
            "ANSIBLE_RETRY_FILES_ENABLED": "0",
            "CHURTEN_POOL_DIR": str(self.base / "pool"),
            "CHURTEN_POOL_LOG": str(self.base / "pool.log"),
        }
        return Oven([sys.executable, str(ROOT / "tests/differential/oven.py")], env)

    def play(self, number: object, strategy: str, text: str, *words: str) -> tuple[int, float, list[dict], str]:
        """Exit code, seconds, results and output of one run."""
        book, out = self.base / "play.yml", self.base / "out"
        book.write_text(text)
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        results = out / "results"
        results.touch()
        begin = time.monotonic()
        rc = self.ovens[strategy].run(["ansible-playbook", str(book), *words], self.base, {"CHURTEN_RESULTS": str(results)}, out, BOUND_S)
        seconds = time.monotonic() - begin
        lines = [json.loads(line) for line in results.read_text().splitlines()]
        return rc, seconds, lines, (out / "stdout").read_text(errors="replace") + (out / "stderr").read_text(errors="replace")

    # ---- what may go wrong ----

    def pool_pid(self) -> int | None:
        found = subprocess.run(["pgrep", "-f", f"^[^ ]*churten-pool --dir {self.base}/pool "], capture_output=True, text=True).stdout.split()
        return int(found[0]) if found else None

    def agents(self) -> list[int]:
        """Processes of the lab's account that are Python: agents and their children."""
        found = []
        for pid in self.lab.processes():
            with contextlib.suppress(OSError):
                if "python" in os.readlink(f"/proc/{pid}/exe"):
                    found.append(pid)
        return found

    def agents_proper(self) -> list[int]:
        """Without the modules that they run: a module that is stopped is one that never ends."""
        python = set(self.agents())
        return [pid for pid in python if int((procs.stat_fields(pid) or ["", "0"])[1]) not in python]

    def sessions(self) -> list[int]:
        return [pid for host in self.lab.hosts for pid in self.lab.sessions(host.name)]

    def disturb(self, rng: random.Random) -> str:
        """One random fault; answers what it was."""
        kind = rng.choice(["reset", "reset", "stall", "cut", "kill sshd", "kill agent", "stop agent", "kill pool", "pause pool", "pool stop", "refuse", "hang"])
        name = rng.choice(NAMES)
        proxy = self.proxies[name]
        open_links = proxy.open()
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            if kind in ("reset", "stall", "cut"):
                for link in open_links:
                    link.reset() if kind == "reset" else link.stall() if kind == "stall" else link.end(rng.choice(["up", "down", "both"]))
            elif kind == "kill sshd" and (pids := self.sessions()):
                os.kill(rng.choice(pids), signal.SIGKILL)
            elif kind in ("kill agent", "stop agent") and (pids := self.agents_proper()):
                os.kill(rng.choice(pids), signal.SIGKILL if kind == "kill agent" else signal.SIGSTOP)
            elif kind == "kill pool" and (pid := self.pool_pid()):
                os.kill(pid, signal.SIGKILL)
            elif kind == "pause pool" and (pid := self.pool_pid()):
                os.kill(pid, signal.SIGSTOP)
                time.sleep(rng.random())
                os.kill(pid, signal.SIGCONT)
            elif kind == "pool stop":
                self.stop_pool()
            elif kind in ("refuse", "hang"):
                proxy.script = lambda _number: Script(refuse=kind == "refuse", hang=kind == "hang")
        return f"{kind} {name}"

    def calm(self) -> None:
        """The network is well again; what was stopped goes on, stalled connections are gone."""
        for proxy in self.proxies.values():
            proxy.script = lambda _number: Script()
            for link in proxy.open():
                if link.up.stalled or link.down.stalled:
                    link.reset()
        for pid in self.agents():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def stop_pool(self) -> None:
        env = {**os.environ, "CHURTEN_POOL_DIR": str(self.base / "pool"), "PYTHONPATH": str(ROOT)}
        words = [sys.executable, "-m", "churten.cli.main", "pool", "stop"]
        subprocess.run(words, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=30)

    def close(self) -> list[str]:
        """Takes everything down; answers what was left that should not be."""
        problems = []
        self.calm()
        self.stop_pool()
        deadline = time.monotonic() + 30
        while (left := self.agents()) and time.monotonic() < deadline:
            time.sleep(0.2)
        if left:
            problems.append(f"agents left: {[procs.command_line(pid)[:80] for pid in left]}")
        for oven in self.ovens.values():
            oven.close()
        for proxy in self.proxies.values():
            proxy.close()
        self.lab.down()
        return problems


def book(rng: random.Random, number: int, counts: Path, tasks: int) -> str:
    """A play whose every task leaves a line `number.task.host` on its host."""
    lines = ["- hosts: all", "  gather_facts: false", "  tasks:"]
    for task in range(tasks):
        word = f"{number}.{task}.{{{{ inventory_hostname }}}}"
        nap = rng.choice([0, 0, 0.02, 0.1, 0.5])
        lines += [f"    - name: t{task}", f"      shell: echo {word} >> {counts}/{{{{ inventory_hostname }}}}; sleep {nap}"]
        if rng.random() < 0.2:
            lines.append("      become: true")
        if rng.random() < 0.2:
            lines.append("      ignore_errors: true")
        if rng.random() < 0.15:
            lines.append("      ignore_unreachable: true")
        if rng.random() < 0.1:
            lines.append("      timeout: 8")
    return "\n".join(lines) + "\n"


def one_play(field: Field, number: int, rng: random.Random) -> tuple[list[str], list[str], int]:
    """What was wrong with the play, what was done to it, and how many tasks were counted on the hosts."""
    strategy = rng.choice(STRATEGIES)
    tasks = rng.randint(2, 5)
    done: list[str] = []
    over = threading.Event()

    def trouble() -> None:
        for _ in range(rng.choice([0, 1, 1, 2, 3])):
            if over.wait(rng.random() * 1.5):
                return
            done.append(field.disturb(rng))

    thread = threading.Thread(target=trouble)
    thread.start()
    retries = rng.choice(["0", "0", "2"])
    rc, seconds, results, text = field.play(number, strategy, book(rng, number, field.counts, tasks), "-e", f"ansible_ssh_retries={retries}")
    over.set()
    thread.join()
    field.calm()
    problems = []
    if rc not in (0, 2, 4):
        problems.append(f"exit code {rc} after {seconds:.0f} s")
    recap = set(re.findall(r"(?m)^(h\d) +: ok=", text))
    if rc != -1000 and recap != set(NAMES):
        problems.append(f"not in the recap: {set(NAMES) - recap}")
    counted: collections.Counter[str] = collections.Counter()
    for name in NAMES:
        with contextlib.suppress(FileNotFoundError):
            for line in (field.counts / name).read_text().splitlines():
                if line.startswith(f"{number}."):
                    counted[line] += 1
    problems += [f"{what} ran {times} times" for what, times in counted.items() if times > 1]
    for line in results:
        what = f"{number}.{line['task'][1:]}.{line['host']}"
        if line["status"] in ("ok", "changed") and counted[what] != 1:
            problems.append(f"{what} is reported {line['status']} and ran {counted[what]} times")
    if problems:
        problems.append(f"{strategy}, retries {retries}\n{text[-4000:]}")
    return problems, done, sum(counted.values())


PLAIN = "- hosts: all\n  gather_facts: false\n  tasks:\n    - {name: plain, command: echo well}\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=None)
    words = parser.parse_args()
    seed = int(time.time()) if words.seed is None else words.seed
    top = Path(tempfile.mkdtemp(prefix="churten-chaos-", dir="/var/tmp" if os.geteuid() == 0 else None))
    base = Path(tempfile.mkdtemp(prefix="cx-", dir="/tmp"))
    top.chmod(0o755)
    field = Field(top, base)
    bad, total, faults, begin = 0, 0, collections.Counter(), time.monotonic()
    try:
        for number in range(words.count):
            problems, done, counted = one_play(field, number, random.Random(f"{seed}.{number}"))
            total += counted
            faults.update(what.rpartition(" ")[0] for what in done)
            # Whatever happened, the next run is fine.
            rc, seconds, _results, text = field.play(number, STRATEGIES[0], PLAIN)
            if rc:
                problems.append(f"the plain play after it: exit code {rc} after {seconds:.0f} s\n{text[-3000:]}")
            if problems:
                bad += 1
                print(f"==== seed {seed} play {number}: {', '.join(done)}\n" + "\n".join(problems), flush=True)
                if bad <= 5 and (base / "pool.log").exists():
                    kept = ROOT / "build" / "chaos" / f"{seed}-{number}.log"
                    kept.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(base / "pool.log", kept)
            if (number + 1) % 50 == 0:
                pid = field.pool_pid()
                files = len(os.listdir(f"/proc/{pid}/fd")) if pid else 0
                print(f"{number + 1} plays, {total} tasks on the hosts, {bad} bad, pool: {files} descriptors, {time.monotonic() - begin:.0f} s", flush=True)
                if files > 16 + 4 * len(NAMES):
                    bad += 1
                    print(f"descriptors pile up in the pool: {files}")
    finally:
        left = field.close()
        shutil.rmtree(top, ignore_errors=True)
        shutil.rmtree(base, ignore_errors=True)
    bad += bool(left)
    print(*left, sep="\n")
    seconds = time.monotonic() - begin
    print(f"seed {seed}: {words.count} plays, {total} tasks ran on the hosts, {bad} bad; faults: {dict(sorted(faults.items()))}, {seconds:.0f} s")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
