"""What the demo and the benchmarks share: measuring a run, and comparing what runs said and left behind."""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import os
import re
import resource
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from churten.lab import procs

PR_SET_CHILD_SUBREAPER = 36
RECAP_LINE = re.compile(r"^(\S+)\s+: (ok=\d+ .*?)\s*$")


def recap(output: str) -> dict[str, str]:
    """Host -> counters of the PLAY RECAP."""
    found = {}
    for line in output[max(output.rfind("PLAY RECAP"), 0) :].splitlines():
        match = RECAP_LINE.match(re.sub(r"\x1b\[[0-9;]*m", "", line))
        if match:
            found[match[1]] = " ".join(match[2].split())
    return found


def pyinfra_recap(output: str) -> dict[str, str]:
    """The same from pyinfra's output: each operation that a host reports as done has changed something."""
    counts: dict[str, int] = {}
    for line in re.sub(r"\x1b\[[0-9;]*m", "", output).splitlines():
        match = re.match(r"\s+\[(\S+)\] Success\s*$", line)
        if match:
            counts[match[1]] = counts.get(match[1], 0) + 1
    return {host: f"ok={n} changed={n} unreachable=0 failed=0 skipped=0 rescued=0 ignored=0" for host, n in counts.items()}


def tree(hosts: Path, name: str) -> dict[str, tuple[object, ...]]:
    """Every file below HOST/name of every host: type, mode, owner, and content or link target."""
    found: dict[str, tuple[object, ...]] = {}
    for top in sorted(hosts.iterdir()):
        for folder, directories, files in os.walk(top / name):
            for entry in [Path(folder, item) for item in directories + files]:
                status = entry.lstat()
                content = ""
                if entry.is_symlink():
                    content = os.readlink(entry)
                elif entry.is_file():
                    with entry.open("rb") as file:
                        content = hashlib.file_digest(file, "sha256").hexdigest()
                kind = (stat.filemode(status.st_mode), status.st_uid, status.st_gid, content)
                found[f"{top.name}/{entry.relative_to(top / name)}"] = kind
    return found


def random_file(path: Path, megabytes: int) -> None:
    """Nobody gains by compressing it."""
    with path.open("wb") as file:
        for _ in range(megabytes):
            file.write(os.urandom(1000 * 1000))


def adopt_orphans(wanted: bool = True) -> None:
    """From now on the background processes that a run leaves behind become our children: their CPU can be counted. Or no longer."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


@dataclasses.dataclass
class Measure:
    """One run."""

    code: int  # exit code
    wall: float  # seconds
    controller_cpu: float  # user + system seconds of ansible-playbook and every child it waited for
    background_cpu: float  # the same of what it left running: the pool, ssh masters
    peak_mb: float  # highest sampled sum of PSS over all of these processes
    output: str
    begin: float = 0.0  # CLOCK_MONOTONIC, seconds
    curve: list[tuple[float, float]] = dataclasses.field(default_factory=list)  # (seconds from begin, CPU seconds until then)
    figures: dict[str, float] = dataclasses.field(default_factory=dict)  # what else was measured; figures.py


class Sampler(threading.Thread):
    """Looks at the memory and the CPU time of all our descendants once a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_kb = 0
        self.curve: list[tuple[float, float]] = []  # (monotonic seconds, CPU seconds)
        self.stop = threading.Event()

    def run(self) -> None:
        pause = 0.4  # short runs get a sample, too
        while not self.stop.wait(pause):
            pause = 1.0
            found = procs.descendants([os.getpid()])
            self.curve.append((time.monotonic(), living_cpu(found)))
            self.peak_kb = max(self.peak_kb, sum(pss_kb(pid) for pid in found))


def living_cpu(pids: Iterable[int]) -> float:
    """User + system seconds of these processes and of the children they have waited for."""
    ticks = sum(int(field) for pid in pids for field in procs.stat_fields(pid)[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def pss_kb(pid: int) -> int:
    """Proportional set size: shared pages count once over all who share them."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    except OSError:
        pass
    return 0


def children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run(command: list[str], environment: dict[str, str], log: Path, timeout: float, keep: bool = False) -> Measure:
    """Runs the command, ends what it leaves behind (unless `keep`), and accounts for both. `adopt_orphans()` must have been called.

    What an earlier run with `keep` left is ended now; of its CPU time only what it used during this run counts.
    """
    reap_all()
    before = children_cpu() + living_cpu(procs.descendants([os.getpid()]))
    sampler = Sampler()
    with log.open("wb") as file:
        begin = time.monotonic()
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        sampler.start()
        code, own = _wait(process, begin + timeout)
        wall = time.monotonic() - begin
        sampler.stop.set()
    sampler.join()
    if not keep:
        end_leftovers()
    after = children_cpu() + living_cpu(procs.descendants([os.getpid()]))
    return Measure(
        code=code,
        wall=wall,
        controller_cpu=own,
        background_cpu=max(0.0, after - before - own),
        peak_mb=sampler.peak_kb / 1024,
        output=log.read_text(errors="replace"),
        begin=begin,
        curve=[(at - begin, cpu) for at, cpu in sampler.curve],
    )


def _wait(process: subprocess.Popen[bytes], deadline: float) -> tuple[int, float]:
    """Exit code (124: killed at the deadline) and CPU seconds of the process and the children it has reaped."""
    timer = threading.Timer(deadline - time.monotonic(), lambda: os.killpg(process.pid, signal.SIGKILL))
    timer.daemon = True
    timer.start()
    _, status, usage = os.wait4(process.pid, 0)
    expired = not timer.is_alive()
    timer.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    return (124 if expired else process.returncode), usage.ru_utime + usage.ru_stime


def reap_all() -> None:
    """Collects what has ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0] != 0:
            pass
    except ChildProcessError:
        pass


def end_leftovers() -> None:
    """A run starts cold: pool, agents and ssh masters of the run before are ended and collected."""
    procs.end(procs.descendants([os.getpid()]))
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.01)
        except ChildProcessError:
            return
