# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's own troubles: signals, deaths, another pool, many runs at once. What is left behind, what the next run finds."""

import contextlib
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import pytest
from runs import CHURTEN, ROOT, processes, until

from churten import __version__

SLEEPS = """
- hosts: lab
  gather_facts: false
  tasks:
    - name: nap
      command: sleep {{ nap }}
"""
# A third-party action plugin runs in a forked worker; it sleeps on the controller.
FORKS = """
- hosts: lab
  gather_facts: false
  tasks:
    - name: nap
      doze:
"""
DOZE = {
    "action_plugins/doze.py": "import time\nfrom ansible.plugins.action import ActionBase\n"
    "class ActionModule(ActionBase):\n    def run(self, tmp=None, task_vars=None):\n"
    "        open(task_vars['out'] + '/dozing-' + task_vars['inventory_hostname'], 'w').close()\n"
    "        time.sleep(300)\n        return {}\n"
}
PING = "- hosts: lab\n  gather_facts: false\n  tasks:\n    - ping:\n"
BOUND_S = 20  # where the rows say 1 or 2 seconds, for a machine under load


@pytest.fixture
def nap():
    """Seconds to sleep that nobody else sleeps."""
    return f"301.{os.getpid()}{time.monotonic_ns() % 1000:03d}"


def asleep(run, nap, count=2):
    def there():
        assert run.process.poll() is None, run.text
        found = processes(f"^sleep {nap}$")
        return found if len(found) == count else None

    return until(there, what="the tasks never ran\n" + run.text)


def begun(bench, kind, nap):
    """A run in the middle of its tasks."""
    if kind == "fibers":
        run = bench.start(SLEEPS, nap=nap)
        asleep(run, nap)
    elif kind == "forks":
        run = bench.start(FORKS, before=DOZE)
        until(lambda: len(list(run.folder.glob("dozing-*"))) == 2 or run.process.poll() is not None, what=run.text)
        assert run.process.poll() is None, run.text
    elif kind == "stock":  # an ssh client of the built-in plugin, in a thread
        run = bench.start(SLEEPS, nap=nap, ansible_churten_transport="stock")
        asleep(run, nap)
    else:  # while it connects: a host that accepts and says nothing
        server = socket.create_server(("127.0.0.1", 0))
        inventory = bench.top / "silent"
        inventory.write_text(
            f"[lab]\nsilent ansible_host=127.0.0.1 ansible_port={server.getsockname()[1]} ansible_python_interpreter={sys.executable}\n"
        )
        run = bench.start(PING, "-T", "60", inventory=inventory)
        server.settimeout(60)
        run.peer = server.accept()[0], server
    return run


def assert_gone(bench, run, nap):
    """Nothing of the run is left here, on the targets or in the pool; the next run works."""
    until(lambda: not run.left(), BOUND_S, f"left behind: {run.left()}")
    until(lambda: not processes(f"^sleep {nap}$"), BOUND_S, "a task's process still runs on the target")
    until(
        lambda: (
            (s := bench.status()) is None or (s["clients"] == 1 and not any(one["requests"] for one in s["sessions"]))
        ),
        BOUND_S,
        str(bench.status()),
    )
    again = bench.play(PING)
    assert again.rc == 0, again.text


@pytest.mark.row("E1")
@pytest.mark.parametrize("kind", ["fibers", "forks", "connecting"])
def test_ctrl_c(bench, nap, kind):
    """At a real terminal: 99, soon, the terminal as it was; the pool keeps its sessions for the next run."""
    warm = bench.play(PING)
    assert warm.rc == 0, warm.text
    before = bench.status()
    master, slave = pty.openpty()
    modes = termios.tcgetattr(slave)
    try:
        run = begun_at_terminal(bench, kind, nap, slave)
        begin = time.monotonic()
        os.write(master, b"\x03")
        drained = drain(master, run.process)
        assert run.wait() == 99, drained
        assert time.monotonic() - begin < BOUND_S
        assert "Traceback" not in drained
        assert termios.tcgetattr(slave) == modes
    finally:
        os.close(slave)
        os.close(master)
    assert_gone(bench, run, nap)
    after = bench.status()
    assert after["pid"] == before["pid"]
    assert {s["name"] for s in before["sessions"]} <= {s["name"] for s in after["sessions"]}


@pytest.mark.row("E1", "E3")
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_the_history_says_how_it_ended(bench, nap, number):
    """An interrupted run is in the list at once, as interrupted, with what it had done until then."""
    env = {"ANSIBLE_CALLBACKS_ENABLED": "churten.core.history", "CHURTEN_HISTORY_DIR": str(bench.top / "history")}
    run = bench.start(SLEEPS.replace("    - name: nap", "    - ping:\n    - name: nap"), nap=nap, env=env)
    asleep(run, nap)
    os.kill(run.pid, number)
    run.wait(BOUND_S)

    def listed():
        done = subprocess.run([CHURTEN, "history", "list", "--json"], env={**os.environ, **env}, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        (line,) = json.loads(done.stdout)
        return line if line["state"] != "running" else None

    found = until(listed)
    assert found["state"] == "interrupted", found
    assert_gone(bench, run, nap)


def begun_at_terminal(bench, kind, nap, slave):
    """As `begun`, with the terminal as its own."""
    start = bench.start

    def own(text, *words, **more):
        return start(text, *words, terminal=slave, **more)

    bench.start = own
    try:
        return begun(bench, kind, nap)
    finally:
        bench.start = start


def drain(master, process):
    out = b""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if select.select([master], [], [], 0.2)[0]:
            out += os.read(master, 65536)
        elif process.poll() is not None:
            break
    return out.decode(errors="replace")


@pytest.mark.row("E2")
@pytest.mark.parametrize("kind", ["fibers", "forks", "connecting"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_run_leaves_nothing_behind(bench, nap, number, kind):
    run = begun(bench, kind, nap)
    os.kill(run.pid, number)
    assert run.wait(BOUND_S) in (-number, 128 + number, 99), run.text
    assert "Traceback" not in run.text
    assert_gone(bench, run, nap)


@pytest.mark.row("E3")
@pytest.mark.parametrize("kind", ["fibers", "forks", "connecting"])
def test_a_killed_run_leaves_nothing_behind(bench, nap, kind):
    run = begun(bench, kind, nap)
    os.kill(run.pid, signal.SIGKILL)
    run.wait(BOUND_S)
    assert_gone(bench, run, nap)


DIE = {
    "action_plugins/die.py": "import os, signal, uuid\nfrom ansible.plugins.action import ActionBase\n"
    "class ActionModule(ActionBase):\n    def run(self, tmp=None, task_vars=None):\n"
    "        with open(task_vars['out'] + '/deaths', 'a') as file:\n            file.write('x')\n"
    "        os.kill(os.getpid(), getattr(signal, self._task.args['by']))\n"
}


@pytest.mark.row("E4")
@pytest.mark.parametrize("by", ["SIGKILL", "SIGSEGV", "SIGTERM"])
def test_a_dead_worker_is_one_failed_task(bench, by):
    """Stock ends the whole run. Here the task has failed, is not run again, and the other hosts go on."""
    one, two = (host.name for host in bench.lab.hosts)
    text = f"""
- hosts: lab
  gather_facts: false
  tasks:
    - name: dies
      die: by={by}
      when: inventory_hostname == '{one}'
    - name: after
      command: echo after
"""
    run = bench.play(text, before=DIE)
    assert run.rc == 2, run.text
    assert run.statuses() == {(one, "dies"): "failed", (two, "dies"): "skipped", (two, "after"): "ok"}, run.text
    assert f"died with exit code -{getattr(signal, by).value}" in run.text
    assert (run.folder / "deaths").read_text() == "x"
    assert not run.left()


@pytest.mark.row("E4")
def test_workers_that_die_one_after_the_other_end_the_run(bench):
    """The fourth within a minute is no accident: the run ends in stock's words, and runs none of the tasks again."""
    text = """
- hosts: lab
  gather_facts: false
  ignore_errors: true
  tasks:
    - {name: one, die: {by: SIGKILL}}
    - {name: two, die: {by: SIGKILL}}
    - {name: three, die: {by: SIGKILL}}
    - {name: four, command: echo four}
"""
    stock = bench.play(text.replace("ignore_errors: true", "strategy: linear"), before=DIE)
    run = bench.play(text, before=DIE)
    assert "A worker was found in a dead state" in stock.text and "A worker was found in a dead state" in run.text
    assert run.rc == stock.rc, run.text
    assert 4 <= len((run.folder / "deaths").read_text()) <= 6
    assert not run.left() and "Traceback" not in run.text
    assert bench.play(PING).rc == 0


@pytest.mark.row("E5")
@pytest.mark.slow
def test_a_pool_that_stands_still_is_noticed(bench, nap):
    """Its hosts become unreachable within half a minute; what follows goes another way; nothing hangs."""
    text = (
        SLEEPS.replace("      command: sleep", "      ignore_unreachable: true\n      command: sleep")
        + "    - name: after\n      command: echo after\n"
    )
    run = bench.start(text, nap=nap)
    asleep(run, nap)
    pid = bench.status()["pid"]
    os.kill(pid, signal.SIGSTOP)
    begin = time.monotonic()
    try:
        assert run.wait(180) == 0, run.text
        assert time.monotonic() - begin < 30 + BOUND_S
        found = run.statuses()
        assert sorted(found.values()) == ["ok", "ok", "unreachable", "unreachable"], run.text
        assert all(status == "ok" for (_, task), status in found.items() if task == "after")
    finally:
        os.kill(pid, signal.SIGKILL)
    again = bench.play(PING)
    assert again.rc == 0, again.text


def leftover_socket(path):
    """What a killed pool leaves."""
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


def silent(path):
    """Somebody who accepts and says nothing."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()
    return server


def answering(reply):
    def make(path):
        server = silent(path)

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    peer = server.accept()[0]
                    with contextlib.suppress(OSError), peer:
                        peer.recv(1000)
                        peer.sendall(reply)

        threading.Thread(target=serve, daemon=True).start()
        return server

    return make


def a_file(path):
    path.write_text("pid 1")


def a_link(path):
    path.symlink_to("/nonexistent/socket")


def stale_lock(path):
    path.with_suffix(".lock").write_text("1")  # a pid that lives


def a_folder(path):
    path.mkdir()


@pytest.mark.row("E6", "F1")
@pytest.mark.parametrize(
    "make",
    [leftover_socket, silent, answering(b"HTTP/1.1 400\r\n\r\n"), answering(b""), a_file, a_link, stale_lock, a_folder],
    ids=["stale", "silent", "garbage", "closes", "file", "link", "lock", "folder"],
)
def test_whatever_lies_where_the_pool_should_be_the_run_works(bench, make):
    kept = make(Path(bench.pool_dir) / f"pool-{__version__}.sock")
    run = bench.play(PING)
    assert run.rc == 0, run.text
    assert run.text.count("connections are not accelerated") <= 1
    assert run.seconds < 60, "not every task pays for it"
    if kept is not None:
        kept.close()


@pytest.mark.row("E6")
def test_a_pool_of_another_version_is_left_alone(bench, tmp_path):
    """An upgrade under running playbooks: each version has its own pool in the same folder."""
    assert bench.play(PING).rc == 0
    before = bench.status()
    script = (
        "import sys, churten; churten.__version__ = '9.9.9'\n"
        "from churten.transport import runtime; runtime.__version__ = '9.9.9'\n"
        f"assert runtime.socket_path({bench.pool_dir!r}).endswith('pool-9.9.9.sock')\n"
        "from churten import _core\n"
        f"try:\n    _core.Client({bench.pool_dir!r} + '/pool-{__version__}.sock', '9.9.9')\n"
        "except _core.Error as ex:\n    print(ex)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert "another version" in done.stdout, done.stdout + done.stderr
    assert bench.status()["pid"] == before["pid"]


TOGETHER = """
- hosts: lab
  gather_facts: false
  tasks:
    - name: mine
      shell: sleep 0.2; echo {{ who }}-{{ inventory_hostname }}-{{ item }}
      loop: [1, 2, 3]
      register: said
    - assert: {that: "said.results | map(attribute='stdout') | list == [who ~ '-' ~ inventory_hostname ~ '-1', who ~ '-' ~ inventory_hostname ~ '-2',
                      who ~ '-' ~ inventory_hostname ~ '-3']"}
    - copy: {content: "{{ who * 1000 }}", dest: "/tmp/churten-e9-{{ who }}-{{ mark }}"}
    - slurp: {src: "/tmp/churten-e9-{{ who }}-{{ mark }}"}
      register: back
    - assert: {that: "back.content | b64decode == who * 1000"}
    - file: {path: "/tmp/churten-e9-{{ who }}-{{ mark }}", state: absent}
    - set_fact: {kept: "{{ who }}", cacheable: true}
"""


@pytest.mark.row("E9")
def test_runs_at_the_same_time_share_pool_cache_and_log(bench, nap):
    """CH_RUNS of them; one is killed in the middle. Nobody else notices, every file is whole."""
    count = int(os.environ.get("CH_RUNS", "4"))
    cache, log = bench.top / "cache", bench.top / "timings.jsonl"
    env = {
        "ANSIBLE_CACHE_PLUGIN": "churten.core.jsonfile",
        "ANSIBLE_CACHE_PLUGIN_CONNECTION": str(cache),
        "ANSIBLE_CALLBACKS_ENABLED": "churten_results,churten.core.timings",
        "CHURTEN_TIMINGS_LOG": str(log),
    }
    victim = bench.start(SLEEPS, nap=nap, env=env)
    asleep(victim, nap)
    runs = [bench.start(TOGETHER, env=env, who=f"w{n}", mark=nap) for n in range(count)]
    until(lambda: any(run.results for run in runs) or all(run.process.poll() is not None for run in runs))
    os.kill(victim.pid, signal.SIGKILL)
    for run in runs:
        assert run.wait(180) == 0, run.text
        assert set(run.statuses().values()) == {"ok"}, run.text
    status = bench.status()
    assert len(status["sessions"]) == 2, "one session per host for all"
    values = set()
    for path in cache.iterdir():
        payload = json.loads(path.read_text())
        payload = json.loads(payload["__payload__"]) if "__payload__" in payload else payload
        values.add(str(payload["kept"]))
    assert len(list(cache.iterdir())) == 2
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    begins = [line["run"] for line in lines if line["ev"] == "run"]
    ends = [line["run"] for line in lines if line["ev"] == "end"]
    assert len(begins) == len(set(begins)) == count + 1 and len(ends) == len(set(ends)) == count
    until(lambda: not processes(f"^sleep {nap}$"), BOUND_S)


@pytest.mark.row("E2", "E1")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ssh_clients_of_the_stock_path_end_with_the_run(bench, nap, number):
    """What runs on the target goes on, as under stock."""
    run = begun(bench, "stock", nap)
    os.kill(run.pid, number)
    assert run.wait(BOUND_S) in (-number, 99), run.text
    try:
        until(lambda: not [one for one in run.left() if "[mux]" not in one[1]], BOUND_S, f"left behind: {run.left()}")
    finally:
        for pid in processes(f"^sleep {nap}$"):
            os.kill(pid, signal.SIGKILL)
