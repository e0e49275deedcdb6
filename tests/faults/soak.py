# SPDX-License-Identifier: GPL-3.0-or-later
"""Many tasks through one pool: `make soak TASKS=100000`. Memory, descriptors and processes must stay what they were when everything was warm.

Twenty lab hosts, plays of commands, files, templates, become and loops over the same sessions and agents. After each play: memory (PSS) of the pool and of all
agents, descriptors of the pool, processes of the lab, files left in temporary folders. Ends with 1 if anything of it grew after the first fifth.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from churten.lab import Lab, procs  # noqa: E402

HOSTS, BLOCKS = 20, 10
GROWTH = 1.10  # of memory, from the first fifth to the end
# Nine tasks for each host (the loop counts as three).
BLOCK = """
    - command: echo {n}
      register: r
    - copy: {{content: "{n} {{{{ r.stdout }}}}", dest: "{{{{ lab_dir }}}}/copied"}}
    - template: {{src: t.j2, dest: "{{{{ lab_dir }}}}/templated"}}
    - file: {{path: "{{{{ lab_dir }}}}/copied", mode: "0600"}}
    - command: id -un
      become: true
    - shell: echo {{{{ item }}}}; head -c 20000 /dev/zero
      loop: [1, 2, 3]
    - stat: {{path: "{{{{ lab_dir }}}}/templated"}}
"""
PER_PLAY = HOSTS * BLOCKS * 9


def pss_kb(pid: int) -> int:
    with contextlib.suppress(OSError, StopIteration):
        return int(next(line for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() if line.startswith("Pss:")).split()[1])
    return 0


class Soak:
    """The lab and its pool."""

    def __init__(self, top: Path, base: Path) -> None:
        self.base = base
        self.lab = Lab(top / "lab")
        self.lab.up(HOSTS)
        core = base / "collections" / "ansible_collections" / "churten" / "core"
        core.mkdir(parents=True)
        (core / "plugins").symlink_to(ROOT / "plugins")
        (base / "pool").mkdir(mode=0o700)
        (base / "t.j2").write_text("{{ r.stdout }} of {{ inventory_hostname }}\n")
        tasks = "".join(BLOCK.format(n=n) for n in range(BLOCKS))
        (base / "play.yml").write_text("- hosts: lab\n  gather_facts: false\n  tasks:\n" + tasks)
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("ANSIBLE_", "CHURTEN_"))},
            "ANSIBLE_CONFIG": str(self.lab.ansible_cfg),
            "ANSIBLE_STRATEGY": "churten.core.free",
            "ANSIBLE_COLLECTIONS_PATH": str(base / "collections"),
            "ANSIBLE_DEPRECATION_WARNINGS": "0",
            "CHURTEN_POOL_DIR": str(base / "pool"),
            "PYTHONPATH": str(ROOT),
        }

    def play(self) -> None:
        words = [str(Path(sys.executable).with_name("ansible-playbook")), str(self.base / "play.yml")]
        done = subprocess.run(words, env=self.env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900)
        if done.returncode:
            raise SystemExit(f"a play failed with {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")

    def settled(self) -> dict[str, int]:
        """The least of some samples: what still ends after a play is not counted."""
        samples = []
        for _ in range(4):
            time.sleep(0.5)
            samples.append(self.sample())
        return {name: min(one[name] for one in samples) for name in samples[0]}

    def sample(self) -> dict[str, int]:
        pool = int(subprocess.run(["pgrep", "-f", f"churten-pool --dir {self.base}/pool "], capture_output=True, text=True, check=True).stdout.split()[0])
        processes = self.lab.processes()
        agents = [pid for pid in processes if "python" in procs.command_line(pid).split(" ")[0]]
        own = pwd.getpwnam(self.lab.account).pw_uid
        temporary = sum(owner(entry) == own for folder in ("/tmp", "/var/tmp") for entry in os.scandir(folder))
        return {
            "pool KiB": pss_kb(pool),
            "pool descriptors": len(os.listdir(f"/proc/{pool}/fd")),
            "agents": len(agents),
            "agents KiB": sum(pss_kb(pid) for pid in agents),
            "processes": len(processes),
            "temporary files": temporary,
        }

    def close(self) -> None:
        words = [sys.executable, "-m", "churten.cli.main", "pool", "stop"]
        subprocess.run(words, env=self.env, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
        self.lab.down()


def owner(entry: os.DirEntry[str]) -> int:
    """The user id of a file's owner; -1 if it has gone since it was listed: others use these folders, too."""
    try:
        return entry.stat(follow_symlinks=False).st_uid
    except FileNotFoundError:
        return -1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=100_000)
    words = parser.parse_args()
    plays = max(5, -(-words.tasks // PER_PLAY))
    top = Path(tempfile.mkdtemp(prefix="churten-soak-", dir="/var/tmp" if os.geteuid() == 0 else None))
    base = Path(tempfile.mkdtemp(prefix="cs-", dir="/tmp"))
    top.chmod(0o755)
    soak = Soak(top, base)
    samples, begin = [], time.monotonic()
    try:
        for number in range(plays):
            soak.play()
            samples.append(soak.settled())
            if number == 0:
                print(f"{'tasks':>8} {'s':>6} " + " ".join(f"{name:>16}" for name in samples[0]), flush=True)
            if number % max(1, plays // 20) == 0 or number == plays - 1:
                print(f"{(number + 1) * PER_PLAY:>8} {time.monotonic() - begin:>6.0f} " + " ".join(f"{n:>16}" for n in samples[-1].values()), flush=True)
    finally:
        soak.close()
        shutil.rmtree(top, ignore_errors=True)
        shutil.rmtree(base, ignore_errors=True)
    warm, grew = samples[plays // 5], []
    for name, value in samples[-1].items():
        if value > warm[name] * (GROWTH if name.endswith("KiB") else 1):
            grew.append(f"{name}: {warm[name]} -> {value}")
    print(f"{plays * PER_PLAY} tasks: " + ("; ".join(grew) + " grew" if grew else "nothing grew"))
    return int(bool(grew))


if __name__ == "__main__":
    sys.exit(main())
