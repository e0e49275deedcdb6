"""Files to and from hosts, odd ones too: the same files, results and failures as with the built-in plugin."""

import contextlib
import hashlib
import os
import shutil
import subprocess
import threading
import time

import pytest
from lab_plays import assert_same

NAMES = ["sp ace", "-dash", "quo'te\"s", "umlaut-ü", "tab\tand\nnewline", "back\\slash", "a$b *"]
SIZES = [0, 1, 65535, 65536, 262144, 3_000_001]
MODES = [0o600, 0o4755, 0o000]

COPY = """
- hosts: lab001
  gather_facts: false
  vars:
    there: "{{ lab_dir }}/t"
  tasks:
    - file: {path: "{{ there }}", state: directory}
    - copy: {src: "{{ out }}/from/", dest: "{{ there }}/tree/", mode: preserve}
    - copy: {src: "{{ out }}/from/", dest: "{{ there }}/tree/", mode: preserve}
    - copy: {src: "{{ out }}/sparse", dest: "{{ there }}/sparse"}
    - copy: {src: "{{ out }}/from/size-65536", dest: "{{ there }}/fixed", mode: "0640"}
    - copy: {src: "{{ out }}/from/size-1", dest: "{{ there }}/fixed", backup: true}
    - copy: {src: "{{ out }}/from/size-1", dest: "{{ there }}/no/such/folder"}
      ignore_errors: true
    - copy: {src: "{{ out }}/from/size-1", dest: "{{ there }}/tree"}
    - copy: {src: "{{ out }}/from/size-1", dest: "/proc/nothing"}
      ignore_errors: true
    - copy: {src: "{{ out }}/from/size-1", dest: "/etc/not-for-this-account"}
      ignore_errors: true
    - copy: {src: "{{ out }}/nothing", dest: "{{ there }}/x"}
      ignore_errors: true
    - copy: {src: "{{ out }}/loose", dest: "{{ there }}/x"}
      ignore_errors: true
    - shell: ln -s fixed link; ln fixed hard; echo old > through; chmod 400 through
      args: {chdir: "{{ there }}"}
    - copy: {content: new, dest: "{{ there }}/{{ item }}"}
      loop: [link, hard, through]
    - shell: >-
        find . ! -name '*~' -printf '%y %m %s %n %p\\n' | LC_ALL=C sort; find . -type f ! -name '*~' -readable -print0 | LC_ALL=C sort -z | xargs -0 sha1sum
      args: {chdir: "{{ there }}"}
    - fetch: {src: "{{ there }}/tree/{{ item }}", dest: "{{ out }}/fetched/{{ item | hash('sha1') }}", flat: true}
      loop: "{{ names }}"
      ignore_errors: true
    - fetch: {src: "{{ there }}/{{ item }}", dest: "{{ out }}/fetched/"}
      loop: [sparse, fixed, link, nothing, tree]
      ignore_errors: true
    - fetch: {src: "{{ there }}/nothing", dest: "{{ out }}/fetched/", fail_on_missing: false}
    - fetch: {src: "{{ there }}/fixed", dest: "{{ out }}/from", flat: true}
      ignore_errors: true
    - fetch: {src: /dev/null, dest: "{{ out }}/fetched/"}
      ignore_errors: true
    - slurp: {src: "{{ there }}/tree/size-65536"}
    - script: "'{{ out }}/sp ace.sh' 'one two'"
    - unarchive: {src: "{{ out }}/a.tar.gz", dest: "{{ there }}"}
    - file: {path: "{{ there }}", state: absent}
"""


def pattern(size):
    block = hashlib.sha256(str(size).encode()).digest() * 32
    return (block * (size // len(block) + 1))[:size]


@pytest.fixture
def sources(tmp_path):
    top = tmp_path / "from"
    top.mkdir()
    for size in SIZES:
        (top / f"size-{size}").write_bytes(pattern(size))
    for number, name in enumerate(NAMES):
        (top / name).write_bytes(pattern(number))
    for mode in MODES:
        path = top / f"mode-{mode:o}"
        path.write_text("x")
        path.chmod(mode)
    with open(tmp_path / "sparse", "wb") as file:
        file.seek(20_000_000)
        file.write(b"end")
    (tmp_path / "loose").symlink_to("nowhere")
    (tmp_path / "sp ace.sh").write_text('#!/bin/sh\necho "$1"; cat "$0" | wc -c\n')
    subprocess.run(["tar", "-C", str(top), "-czf", str(tmp_path / "a.tar.gz"), "size-1", "size-65535"], check=True)
    return [*NAMES, *(f"size-{size}" for size in SIZES)]


def tree(top):
    found = {}
    for where, _folders, names in os.walk(top):
        for name in names:
            path = os.path.join(where, name)
            with open(path, "rb") as file:
                found[os.path.relpath(path, top)] = (os.lstat(path).st_mode, hashlib.sha1(file.read()).hexdigest())
    return found


@pytest.mark.slow
def test_files_of_every_kind(play, tmp_path, sources):
    seen = []
    for connection in ("ssh", "churten.core.ssh"):
        run = play(COPY, connection, "-vvv", names=sources)
        assert run.rc == 0, run.text[-3000:]
        seen.append((run, tree(tmp_path / "fetched")))
        shutil.rmtree(tmp_path / "fetched")
    assert len(seen[0][1]) >= len(SIZES) + len(NAMES)
    assert_same(seen[0][0], seen[1][0])
    assert seen[1][1] == seen[0][1]
    assert "churten: RUN" in seen[1][0].text


FULL = """
- hosts: lab001
  gather_facts: false
  vars: {ansible_remote_tmp: "{{ (kind == 'full') | ternary(where + '/tmp', '~/.ansible/tmp') }}"}
  tasks:
    - copy: {src: "{{ out }}/big", dest: "{{ where }}/big"}
      ignore_errors: true
    - copy: {src: "{{ out }}/small", dest: "{{ where }}/small"}
      ignore_errors: true
    - shell: ls -A {{ where }} {{ where }}/tmp 2>&1; cat {{ where }}/old
"""


@pytest.mark.row("B1", "B2")
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small filesystem")
@pytest.mark.parametrize("kind", ["full", "read-only"])
def test_a_target_without_room(play, lab, tmp_path, kind):
    where = lab.dir / "hosts" / "lab001" / "small"
    where.mkdir(exist_ok=True)
    (tmp_path / "big").write_bytes(pattern(3_000_000))
    (tmp_path / "small").write_text("small")
    runs = []
    for connection in ("ssh", "churten.core.ssh"):
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=777", "tmpfs", str(where)], check=True)
        try:
            (where / "old").write_text("old")
            if kind == "read-only":
                subprocess.run(["mount", "-o", "remount,ro", str(where)], check=True)
            runs.append(play(FULL, connection, "-vvv", where=str(where), kind=kind))
        finally:
            for _ in range(100):
                if subprocess.run(["umount", str(where)], capture_output=True).returncode == 0:
                    break
                time.sleep(0.1)
    stock, ours = runs
    assert [(line["task"], line["status"]) for line in ours.results] == [(line["task"], line["status"]) for line in stock.results], ours.text[-3000:]
    words = "No space left" if kind == "full" else "not writable"
    for run in runs:
        failed = [line["result"] for line in run.results if line["status"] in ("failed", "unreachable")]
        assert failed and any(words in str(result) for result in failed), failed
    left = [run.results[-1]["result"]["stdout_lines"] for run in runs if "stdout_lines" in run.results[-1]["result"]]
    assert all(lines[-1] == "old" and not any("churten" in line for line in lines) for lines in left)


GROWING = """
- hosts: lab001
  gather_facts: false
  tasks:
    - copy: {src: "{{ out }}/growing", dest: "{{ lab_dir }}/copied"}
      ignore_errors: true
    - fetch: {src: "{{ out }}/growing", dest: "{{ out }}/fetched", flat: true}
      ignore_errors: true
    - file: {path: "{{ lab_dir }}/copied", state: absent}
    - ping:
"""


def test_a_source_that_grows_meanwhile(play, tmp_path):
    """Whether it fails is chance; it ends, and it is never a mixture that is called good."""
    growing = tmp_path / "growing"
    growing.write_bytes(pattern(8_000_000))
    growing.chmod(0o644)
    for folder in [tmp_path, *tmp_path.parents][:3]:
        folder.chmod(folder.stat().st_mode | 0o055)
    stop = threading.Event()

    def grow():
        with open(growing, "ab") as file:
            while not stop.wait(0.002):
                file.write(pattern(5000))
                file.flush()

    thread = threading.Thread(target=grow)
    thread.start()
    try:
        runs = [play(GROWING, connection, "-vvv") for connection in ("ssh", "churten.core.ssh")]
    finally:
        stop.set()
        thread.join()
    for run in runs:
        assert run.results[-1]["status"] == "ok", run.text[-3000:]
        for line in run.results[:2]:
            assert line["status"] in ("failed", "ok"), line
            if line["status"] == "failed":
                assert any(word in line["result"]["msg"] for word in ("checksum", "does not match")), line


BIG = """
- hosts: lab001
  gather_facts: false
  tasks:
    - copy: {src: "{{ out }}/big", dest: "{{ lab_dir }}/big"}
    - fetch: {src: "{{ lab_dir }}/big", dest: "{{ out }}/back", flat: true}
    - file: {path: "{{ lab_dir }}/big", state: absent}
"""


@pytest.mark.skipif(not os.environ.get("CHURTEN_BIG_FILES"), reason="2 GB there and back: set CHURTEN_BIG_FILES=1")
def test_more_than_two_gigabytes(play, tmp_path):
    with open(tmp_path / "big", "wb") as file:
        for number in range(2100):
            file.write(pattern(number).ljust(1 << 20, b"."))
    seconds = {}
    for connection in ("ssh", "churten.core.ssh"):
        begin = time.monotonic()
        run = play(BIG, connection, timeout=900)
        seconds[connection] = time.monotonic() - begin
        assert run.rc == 0, run.text[-3000:]
        assert subprocess.run(["cmp", str(tmp_path / "big"), str(tmp_path / "back")]).returncode == 0
        os.unlink(tmp_path / "back")
    with contextlib.suppress(OSError):
        os.unlink(tmp_path / "big")
    print(seconds)
