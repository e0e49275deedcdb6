"""The fact cache on a bad disk, on a full one, and with several runs at once."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from playing import ROOT

HERE = Path(__file__).parent
OPEN = f"""
import os, sys
sys.path[:0] = [{str(ROOT)!r}, {str(HERE)!r}]
from test_jsonfile import Cache
"""
WRITE = OPEN + """
where, switch, call = sys.argv[1:]
store = Cache(where)
store.set("h", {"n": "good"})
with open(switch, "w") as file:
    file.write(call)
store.set("h", {"n": "lost" * 1000})
store.set("new", {"n": "lost"})
assert store.get("h") == {"n": "lost" * 1000}, "the run goes on with what it has"
assert len(store.said) == 1 and "Input/output error" in store.said[0], store.said
os.unlink(switch)
assert Cache(where).get("h") == {"n": "good"}
assert not Cache(where).contains("new")
store.set("h", {"n": "again"})
assert Cache(where).get("h") == {"n": "again"}
"""
FULL = OPEN + """
where = sys.argv[1]
store = Cache(where)
store.set("h", {"n": "good"})
ballast = os.open(where + "/ballast", os.O_CREAT | os.O_WRONLY)
try:
    while True:
        os.write(ballast, b"x" * 4096)
except OSError:
    pass
store.set("h", {"n": "lost" * 5000})
assert len(store.said) == 1 and "No space left" in store.said[0], store.said
assert Cache(where).get("h") == {"n": "good"}
os.unlink(where + "/ballast")
assert len(os.listdir(where)) == 1, os.listdir(where)
"""
MANY = OPEN + """
where, number = sys.argv[1], int(sys.argv[2])
for turn in range(150):
    if number % 2:
        Cache(where).set("h", {"n": str(number) * 20000})
    else:
        value = Cache(where).get("h")["n"]
        assert len(value) == 20000 and len(set(value)) == 1
    assert not Cache(where).said
"""


def run(code, *words, **more):
    return subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, timeout=120, **more)


@pytest.mark.parametrize("call", ["write", "close", "rename"])
def test_a_bad_disk_keeps_the_old_facts(tmp_path, call):
    """EIO, at each step of a write."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler (build-essential)")
    library = tmp_path / "eio.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, HERE / "eio.c", "-ldl"], check=True)
    (tmp_path / "facts").mkdir()
    switch = tmp_path / "switch"
    done = run(WRITE, tmp_path / "facts", switch, call, env={**os.environ, "LD_PRELOAD": str(library), "CHURTEN_EIO": str(switch)})
    assert done.returncode == 0, done.stderr
    assert len(os.listdir(tmp_path / "facts")) == 1, "no temporary file stays"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_full_disk(tmp_path):
    """ENOSPC on a real file system."""
    script = 'mount -t tmpfs -o size=64k none "$1" && exec "$2" -c "$3" "$1"'
    done = subprocess.run(["unshare", "-m", "sh", "-c", script, "sh", tmp_path, sys.executable, FULL], capture_output=True, text=True, timeout=120)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no mount namespace here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr


def test_runs_at_once_never_see_half_a_file(tmp_path):
    done = run(OPEN + "Cache(sys.argv[1]).set('h', {'n': '0' * 20000})", tmp_path)
    assert done.returncode == 0, done.stderr
    words = [[sys.executable, "-c", MANY, str(tmp_path), str(number)] for number in range(1, 6)]
    processes = [subprocess.Popen(one, stderr=subprocess.PIPE, text=True) for one in words]
    for process in processes:
        said = process.communicate(timeout=120)[1]
        assert process.returncode == 0, said
    assert len(os.listdir(tmp_path)) == 1
