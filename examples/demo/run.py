"""The demo: the same playbook over lab hosts, first by stock Ansible, then by churten.

Both run `strategy: free` with pipelining and kept connections, on empty directories; then the recaps and every file on
the hosts are compared. Ends with exit code 0 only if both runs succeeded with the same results.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "benchmarks"))

from harness import recap, tree  # noqa: E402

from churten.lab import Lab  # noqa: E402

LOGS = HERE.parents[1] / "build" / "demo"
MODES = {
    "stock": {"ANSIBLE_STRATEGY": "free"},
    "churten": {"ANSIBLE_STRATEGY": "churten.core.free", "ANSIBLE_CALLBACKS_ENABLED": "churten.core.timings"},
    "connection": {"ANSIBLE_STRATEGY": "free", "ANSIBLE_TRANSPORT": "churten.core.ssh"},
}


def play(lab: Lab, mode: str, base: Path) -> tuple[float, int, str]:
    """Runs the playbook; returns (seconds, exit code, output)."""
    settings = {
        **{name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")},
        "ANSIBLE_CONFIG": str(lab.ansible_cfg),
        "ANSIBLE_FORKS": str(len(lab.hosts)),
        "CHURTEN_POOL_DIR": str(base / "pool"),
        **MODES[mode],
    }
    log = LOGS / f"{mode}.log"
    print(f"\n== {mode}: {' '.join(f'{k}={v}' for k, v in MODES[mode].items())}", flush=True)
    begin = time.monotonic()
    with log.open("w") as file:
        command = [Path(sys.executable).with_name("ansible-playbook"), HERE / "site.yml"]
        done = subprocess.run(command, env=settings, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
    seconds = time.monotonic() - begin
    output = log.read_text(errors="replace")
    start = output.find("PLAY RECAP")
    print(output[start:].rstrip() if start >= 0 else output[-4000:])
    print(f"-- {mode}: {seconds:.1f} s, exit code {done.returncode}, full output in {log}", flush=True)
    return seconds, done.returncode, output


def collect(lab: Lab, name: str) -> dict[str, tuple[object, ...]]:
    """What the run left on the hosts; moved aside so that the next run begins with nothing."""
    state = tree(lab.dir / "hosts", "site")
    for host in lab.hosts:
        folder = lab.dir / "hosts" / host.name
        if (folder / "site").exists():
            os.rename(folder / "site", folder / name)
    return state


def compare(results: dict[str, tuple[float, int, str]], states: dict[str, dict[str, tuple[object, ...]]]) -> bool:
    """Says how the runs differ from the first one."""
    first, *others = results
    good = results[first][1] == 0 and bool(states[first])
    print()
    for other in others:
        same_recap = recap(results[first][2]) == recap(results[other][2]) != {}
        changed = {path for path in states[first] | states[other] if states[first].get(path) != states[other].get(path)}
        good = good and results[other][1] == 0 and same_recap and not changed
        print(f"{other}: recap {'the same' if same_recap else 'DIFFERS'}; {len(states[other])} files and directories,")
        print(f"  {'all the same' if not changed else f'{len(changed)} DIFFER: {sorted(changed)[:5]}'}")
        ratio = results[first][0] / results[other][0]
        print(f"  {first} {results[first][0]:.1f} s, {other} {results[other][0]:.1f} s: {ratio:.1f} times as fast")
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hosts", type=int, default=10)
    parser.add_argument("--modes", nargs="+", choices=sorted(MODES), default=["stock", "churten"])
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    LOGS.mkdir(parents=True, exist_ok=True)
    base = Path(tempfile.mkdtemp(prefix="chdemo-", dir="/var/tmp"))
    base.chmod(0o755)
    (base / "pool").mkdir(mode=0o700)
    lab = Lab(base / "lab")
    try:
        lab.up(arguments.hosts)
        core = importlib.metadata.version("ansible-core")
        print(f"{len(lab.hosts)} hosts on loopback, forks {len(lab.hosts)}, {os.cpu_count()} cores (controller and hosts")
        print(f"share them), ansible-core {core}, Python {sys.version.split()[0]}, pipelining on, ControlPersist 60 s")
        results, states = {}, {}
        for mode in arguments.modes:
            results[mode] = play(lab, mode, base)
            states[mode] = collect(lab, mode)
        return 0 if compare(results, states) else 1
    finally:
        environment = {**os.environ, "CHURTEN_POOL_DIR": str(base / "pool")}
        stop = [sys.executable, "-m", "churten.cli.main", "pool", "stop"]
        subprocess.run(stop, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=30)
        lab.down()
        shutil.rmtree(base)


if __name__ == "__main__":
    sys.exit(main())
