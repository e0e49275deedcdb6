# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs of ansible-playbook that a test watches, signals or has several of: each in a session of its own, over lab hosts, with a pool of the test's own."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

PLAYBOOK = Path(sys.executable).with_name("ansible-playbook")
CHURTEN = Path(sys.executable).with_name("churten")
ROOT = Path(__file__).parents[2]
LIMITS: list[tuple[int, tuple[int, int]]] = []  # of every run that starts
PATIENCE_S = 90  # for anything that a loaded machine does late


def until(condition, seconds=PATIENCE_S, what="it did not happen"):
    """What `condition` answers as soon as that is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
    return found


def processes(pattern):
    done = subprocess.run(["pgrep", "-f", pattern], capture_output=True, text=True, check=False)
    return [int(pid) for pid in done.stdout.split()]


def read_proc(pid, name):
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return file.read()
    except OSError:
        return b""


def executable(pid):
    """The path of what it runs, as it was started (a pool does not let others look at its exe)."""
    return read_proc(pid, "cmdline").split(b"\0")[0].decode()


class Bench:
    """Makes runs, and knows what became of them."""

    def __init__(self, lab, collections, top):
        self.lab, self.top = lab, Path(top)
        self.runs = []
        # Not below tmp_path: a socket's path is limited to 107 bytes.
        self._pool = tempfile.TemporaryDirectory(prefix="ch")
        self.pool_dir = self._pool.name
        self.collections = collections

    def environment(self, results, **more):
        keep = {k: v for k, v in os.environ.items() if not k.startswith(("ANSIBLE_", "CHURTEN_"))}
        return keep | {
            "ANSIBLE_CONFIG": str(self.lab.ansible_cfg),
            "ANSIBLE_COLLECTIONS_PATH": self.collections,
            "ANSIBLE_CALLBACK_PLUGINS": str(ROOT / "tests" / "plugins" / "callback"),
            "ANSIBLE_CALLBACKS_ENABLED": "churten_results",
            "ANSIBLE_HOME": str(self.top / "home"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_STRATEGY": "churten.core.free",
            "CHURTEN_RESULTS": str(results),
            "CHURTEN_POOL_DIR": self.pool_dir,
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
            **more,
        }

    def start(self, text, *words, name="play", inventory=None, env=None, before=None, terminal=None, **variables):
        folder = self.top / f"{name}{len(self.runs)}"
        folder.mkdir()
        book = folder / "play.yml"
        book.write_text(text)
        for part, body in (before or {}).items():
            (folder / part).parent.mkdir(parents=True, exist_ok=True)
            (folder / part).write_text(body)
        results = folder / "results"
        results.write_text("")
        extra = {"ansible_connection": "ssh", "out": str(folder), **variables}
        argv = [str(PLAYBOOK), "-i", str(inventory or self.lab.inventory), "-e", json.dumps(extra), *words, str(book)]
        run = Running(folder, argv, self.environment(results, **(env or {})), terminal)
        self.runs.append(run)
        return run

    def play(self, text, *words, **more):
        run = self.start(text, *words, **more)
        run.wait()
        return run

    def status(self):
        """What the pool says of itself; None if there is none."""
        env = {**os.environ, "CHURTEN_POOL_DIR": self.pool_dir, "PYTHONPATH": str(ROOT)}
        argv = [
            sys.executable,
            "-c",
            "import sys; from churten.cli.main import main; sys.exit(main(sys.argv[1:]))",
            "pool",
            "status",
            "--json",
        ]
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60)
        return json.loads(done.stdout) if done.returncode == 0 else None

    def close(self):
        for run in self.runs:
            run.close()
        with contextlib.suppress(Exception):
            if status := self.status():
                os.kill(status["pid"], signal.SIGTERM)
                until(
                    lambda: (
                        not Path(f"/proc/{status['pid']}").exists()
                        or b"Z" in read_proc(status["pid"], "stat").rpartition(b")")[2][:3]
                    ),
                    20,
                )
        self._pool.cleanup()


class Running:
    """One ansible-playbook."""

    def __init__(self, folder, argv, env, terminal):
        self.folder, self.argv, self.env = folder, argv, env
        self.log = folder / "log"
        with open(self.log, "wb") as log:
            out = log if terminal is None else terminal
            stdin = subprocess.DEVNULL if terminal is None else terminal
            limits = list(LIMITS)

            def own():
                if terminal is not None:
                    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
                for which, values in limits:
                    resource.setrlimit(which, values)

            self.process = subprocess.Popen(
                argv, env=env, cwd=folder, stdin=stdin, stdout=out, stderr=out, start_new_session=True, preexec_fn=own
            )
        self.pid = self.process.pid
        self.begun, self.seconds = time.monotonic(), 0.0

    @property
    def rc(self):
        return self.process.returncode

    @property
    def text(self):
        return self.log.read_text(errors="replace")

    @property
    def results(self):
        return [json.loads(line) for line in (self.folder / "results").read_text().splitlines()]

    def statuses(self):
        return {(line["host"], line["task"]): line["status"] for line in self.results}

    def wait(self, seconds=PATIENCE_S):
        try:
            rc = self.process.wait(seconds)
            self.seconds = time.monotonic() - self.begun
            return rc
        except subprocess.TimeoutExpired:
            raise AssertionError("the run did not end\n" + self.text[-3000:]) from None

    def left(self):
        """Processes of this run that live, whoever is their parent now, but the pool."""
        mark = f"CHURTEN_RESULTS={self.env['CHURTEN_RESULTS']}".encode()
        found = []
        for entry in os.listdir("/proc"):
            if (
                entry.isdigit()
                and mark in read_proc(entry, "environ").split(b"\0")
                and not executable(entry).endswith("churten-pool")
            ):
                found.append(
                    (int(entry), read_proc(entry, "cmdline").replace(b"\0", b" ").decode(errors="replace")[:200])
                )
        return found

    def close(self):
        for pid, _ in self.left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()


def comparable(run):
    """Status and normalised result of every task, per host in order."""
    from lab_plays import normal

    return [
        (line["host"], line["task"], line["status"], normal(line["result"]))
        for line in sorted(run.results, key=lambda line: line["host"])
    ]


def as_stock(bench, text, *words, env=None, **more):
    """Runs the play under stock and under churten; every result must be the same. Answers both runs."""
    from lab_plays import differences

    stock = bench.play(text, *words, name="stock", env={"ANSIBLE_STRATEGY": "linear", **(env or {})}, **more)
    ours = bench.play(text, *words, name="ours", env=env, **more)
    assert stock.results, stock.text[-3000:]
    out = [str(run.folder) for run in (stock, ours)]  # (NaN is what it says: it equals nothing, not even itself)
    for theirs, mine in zip(comparable(stock), comparable(ours), strict=True):
        found = list(
            differences(
                json.loads(json.dumps(theirs).replace(out[0], "OUT"), parse_constant=str),
                json.loads(json.dumps(mine).replace(out[1], "OUT"), parse_constant=str),
            )
        )
        assert not found, (found, ours.text[-2000:])
    assert ours.rc == stock.rc
    return stock, ours
