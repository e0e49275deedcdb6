"""What a user sees when something is killed under a running play: that host is unreachable, the others finish, nothing hangs, the next run is fine."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import threading
import time

import pytest

SLEEPS = """
- hosts: lab
  gather_facts: false
  tasks:
    - command: sleep {{ nap }}
      name: nap
    - command: echo after
      name: after
"""


def processes(pattern):
    found = subprocess.run(["pgrep", "-f", pattern], capture_output=True, text=True, check=False).stdout.split()
    return [int(pid) for pid in found]


def parents(pid):
    """The process and all above it."""
    while pid > 1:
        yield pid
        with open(f"/proc/{pid}/stat") as file:
            pid = int(file.read().rpartition(")")[2].split()[1])


def session_of(pid):
    """The sshd process that carries the session in which `pid` runs."""
    for one in parents(pid):
        with open(f"/proc/{one}/cmdline") as file:
            if file.read().startswith("sshd:"):
                return one
    raise AssertionError("no sshd above it")


def both(nap):
    """The two hosts' processes, once both are there."""
    found = processes(f"^sleep {nap}$")
    return found if len(found) == 2 else []


def when(condition, action, failures, seconds=60):
    """In a thread: `action(condition())` as soon as that is true."""

    def body():
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            if time.monotonic() > deadline:
                failures.append("the play never got there")
                return
            time.sleep(0.05)
        action(found)

    thread = threading.Thread(target=body)
    thread.start()
    return thread


def statuses(run):
    return {(line["host"], line["task"]): line["status"] for line in run.results}


@pytest.mark.row("A9")
def test_a_killed_session_makes_only_its_host_unreachable(play, lab):
    nap = f"5.{os.getpid()}"
    failures = []
    killed = []

    def kill(pids):
        killed.append(pids[0])
        os.kill(session_of(pids[0]), signal.SIGKILL)

    thread = when(lambda: both(nap), kill, failures)
    run = play(SLEEPS, "ssh", env={"ANSIBLE_STRATEGY": "churten.core.free"}, nap=nap)
    thread.join()
    assert not failures and killed, run.text
    assert run.rc == 4, run.text
    found = statuses(run)
    assert sorted(found.values()).count("unreachable") == 1, run.text
    assert [status for (_host, task), status in found.items() if task == "after"] == ["ok"], run.text
    again = play(SLEEPS, "ssh", env={"ANSIBLE_STRATEGY": "churten.core.free"}, nap="0.1")
    assert again.rc == 0, again.text


@pytest.mark.row("E5")
def test_a_killed_pool_ends_what_it_carried_and_a_new_one_serves_the_next_task(play, lab, pool_dir):
    nap = f"6.{os.getpid()}"
    failures = []
    text = SLEEPS.replace("name: nap\n", "name: nap\n      ignore_unreachable: true\n", 1)

    def kill(_pids):
        from churten.transport.pool import STATUS, Pool

        status = json.loads(Pool.get().control(STATUS).stdout)
        Pool.get().close()
        os.kill(status["pid"], signal.SIGKILL)

    thread = when(lambda: both(nap), kill, failures)
    begin = time.monotonic()
    run = play(text, "ssh", env={"ANSIBLE_STRATEGY": "churten.core.free"}, nap=nap)
    thread.join()
    assert not failures, run.text
    assert time.monotonic() - begin < 60
    found = statuses(run)
    assert all(status == "unreachable" for (_host, task), status in found.items() if task == "nap"), run.text
    assert all(status == "ok" for (_host, task), status in found.items() if task == "after"), run.text
    assert len(found) == 4 and run.rc == 0, run.text


@pytest.mark.row("E11", "E13")
def test_hosts_for_which_the_pool_has_no_room_go_the_stock_way(play, lab, pool_dir):
    from churten.transport.pool import STATUS, Pool

    pid = json.loads(Pool.get().control(STATUS).stdout)["pid"]
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE, (33, resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]))
    try:
        text = "- hosts: lab\n  gather_facts: false\n  tasks:\n    - meta: reset_connection\n    - command: echo there\n"
        run = play(text, "ssh", "-vvv", env={"ANSIBLE_STRATEGY": "churten.core.free"})
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    assert run.rc == 0, run.text
    assert run.text.count("leaves no room for another session") >= 2
    assert sorted(line["status"] for line in run.results if line["task"] == "command") == ["ok", "ok"] or "changed" in run.text


def test_an_idle_controller_uses_no_cpu(play, lab):
    nap = f"14.{os.getpid()}"
    failures = []
    used = []

    def measure(_pids):
        me = [pid for pid in processes("ansible-playbook .*play.yml") if nap in open(f"/proc/{pid}/cmdline").read()]
        with contextlib.suppress(FileNotFoundError):
            before = cpu_ticks(me[0])
            time.sleep(5)
            used.append(cpu_ticks(me[0]) - before)

    thread = when(lambda: both(nap), measure, failures)
    run = play(SLEEPS, "ssh", env={"ANSIBLE_STRATEGY": "churten.core.free"}, nap=nap)
    thread.join()
    assert run.rc == 0 and not failures, run.text
    assert used and used[0] <= 10, f"{used} ticks of 10 ms in 5 s"  # 2 % of a core


def cpu_ticks(pid):
    with open(f"/proc/{pid}/stat") as file:
        words = file.read().rpartition(")")[2].split()
    return int(words[11]) + int(words[12])


def test_an_unreachable_host_is_tried_once(play, tmp_path):
    """The session is opened before the module is built; when that fails it must not be opened again for the same task."""
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(30)
    tries = []

    def refuse():
        with contextlib.suppress(OSError):
            while True:
                tries.append(server.accept()[0])
                with tries[-1]:
                    tries[-1].sendall(b"SSH-1.5-too_old\r\n")

    thread = threading.Thread(target=refuse)
    thread.start()
    inventory = tmp_path / "one.ini"
    inventory.write_text(f"closed ansible_host=127.0.0.1 ansible_port={server.getsockname()[1]} ansible_python_interpreter=/usr/bin/python3\n")
    try:
        text = "- hosts: all\n  gather_facts: false\n  tasks:\n    - ping:\n"
        run = play(text, "ssh", inventory=inventory, env={"ANSIBLE_STRATEGY": "churten.core.free"})
    finally:
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
        server.close()
    assert run.rc == 4 and "UNREACHABLE" in run.text, run.text
    assert len(tries) == 1
