"""The harness counts what it says it counts, and sees differences."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import harness  # noqa: E402

# Runs in a process of its own: adopt_orphans() changes the process for good.
MEASURE = """
import dataclasses, json, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import harness
harness.adopt_orphans()
measure = harness.run([sys.executable, "-c", sys.argv[3]], dict(os.environ), Path(sys.argv[2]) / "log", float(sys.argv[4]))
left = harness.procs.descendants([os.getpid()])
print(json.dumps({**dataclasses.asdict(measure), "left": sorted(left)}))
"""
BURN = "import time\nwhile time.process_time() < {0}: pass\n"
DAEMON = """
import os, time
ready, tell = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while time.process_time() < 0.4: pass
        os.write(tell, b"x")
        time.sleep(600)
    os._exit(0)
os.wait()
os.read(ready, 1)
print("said")
raise SystemExit(3)
"""
RECAP = """PLAY [all] ***
lab001 : ok=9 this is no recap
PLAY RECAP *****
\x1b[0;33mlab001\x1b[0m                     : ok=43   changed=24   unreachable=0    failed=0    skipped=0
lab002                     : ok=1    changed=0    unreachable=1    failed=0    skipped=0

TASKS RECAP ****
x : y
"""


def measure(tmp_path, code, timeout=60):
    words = [sys.executable, "-c", MEASURE, str(ROOT / "benchmarks"), str(tmp_path), code, str(timeout)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_cpu_of_the_run_and_of_its_children(tmp_path):
    code = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {BURN.format(0.4)!r}])\n" + BURN.format(0.4)
    found = measure(tmp_path, code)
    assert found["code"] == 0 and found["controller_cpu"] >= 0.8 and found["background_cpu"] < 0.4


def test_what_a_run_leaves_behind_is_counted_and_ended(tmp_path):
    found = measure(tmp_path, DAEMON)
    assert found["code"] == 3 and found["output"] == "said\n"
    assert found["background_cpu"] >= 0.4 > found["controller_cpu"]
    assert found["left"] == []


def test_memory_of_all_processes(tmp_path):
    hold = "import time; data = bytearray(b'x') * (64 << 20); time.sleep(2)"
    code = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {hold!r}])"
    assert measure(tmp_path, code)["peak_mb"] > 64


def test_a_run_that_hangs_is_ended(tmp_path):
    found = measure(tmp_path, "import time; time.sleep(600)", timeout=1)
    assert found["code"] == 124


def test_recap():
    found = harness.recap(RECAP)
    assert found == {
        "lab001": "ok=43 changed=24 unreachable=0 failed=0 skipped=0",
        "lab002": "ok=1 changed=0 unreachable=1 failed=0 skipped=0",
    }
    assert harness.recap("nothing") == {}


@pytest.mark.parametrize("change", ["content", "mode", "missing", "link"])
def test_tree_sees_every_difference(tmp_path, change):
    for name in ("a", "b"):
        folder = tmp_path / name / "lab001" / "site" / "sub"
        folder.mkdir(parents=True)
        (folder / "file").write_text("same")
        (folder / "link").symlink_to("file")
    assert harness.tree(tmp_path / "a", "site") == harness.tree(tmp_path / "b", "site")
    assert len(harness.tree(tmp_path / "a", "site")) == 3
    changed = tmp_path / "b" / "lab001" / "site" / "sub"
    if change == "content":
        (changed / "file").write_text("else")
    elif change == "mode":
        (changed / "file").chmod(0o600)
    elif change == "missing":
        (changed / "file").unlink()
    else:
        (changed / "link").unlink()
        os.symlink("elsewhere", changed / "link")
    assert harness.tree(tmp_path / "a", "site") != harness.tree(tmp_path / "b", "site")
