"""Playbooks over a bad network or odd servers: nothing runs twice, nothing hangs, files are whole, and what works with the built-in plugin works here."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from far import Far, inventory
from lab_plays import differences
from sshds import children, kill

from churten.lab.chaos import Chaos, Script, Way

FREE = {"ANSIBLE_STRATEGY": "churten.core.free"}
NO_MASTER = {"ANSIBLE_SSH_ARGS": "-o ControlMaster=no -o ControlPath=none"}
ALIVE = "-o ServerAliveInterval=1 -o ServerAliveCountMax=2"
FACTOR = int(os.environ.get("CHURTEN_FAULTS_FACTOR", "1"))


@pytest.fixture(scope="module")
def top(tmp_path_factory):
    path = tmp_path_factory.mktemp("plays")
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def far(top):
    made = Far(top, "127.0.0.86")
    yield made
    made.stop()


@pytest.fixture
def proxy(far):
    with Chaos(far.address) as made:
        yield made


@pytest.fixture
def ours(play, tmp_path):
    """A play with churten over these inventory lines."""

    def run(text, *lines, env=None, words=(), **variables):
        hosts = inventory(tmp_path / "ours.ini", *lines)
        return play(text, "ssh", *words, inventory=hosts, env={**FREE, **NO_MASTER, **(env or {})}, **variables)

    return run


@pytest.fixture
def compare(play, ours, tmp_path):
    """The same play with the built-in plugin and with ours; both runs."""

    def run(text, *lines, rc=0, env=None, between=lambda: None, **variables):
        hosts = inventory(tmp_path / "hosts.ini", *lines)
        stock = play(text, "ssh", inventory=hosts, env={**NO_MASTER, **(env or {})}, **variables)
        between()
        mine = ours(text, *lines, env=env, **variables)
        found = [f"{where}\n  stock: {one!r}\n  ours:  {two!r}" for where, one, two in differences(stock.comparable(), mine.comparable())]
        assert not found, "\n".join(found)
        assert stock.results and mine.rc == stock.rc == (stock.rc if rc is None else rc), mine.text
        return stock, mine

    return run


def when(condition, action, seconds=60):
    """In a thread: `action()` as soon as `condition()` is true."""

    def body():
        deadline = time.monotonic() + seconds
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.02)
        action()

    thread = threading.Thread(target=body)
    thread.start()
    return thread


def tasks(*texts, **keywords):
    head = "- hosts: all\n  gather_facts: false\n" + "".join(f"  {k}: {v}\n" for k, v in keywords.items()) + "  tasks:\n"
    return head + "".join("    - " + text.replace("\n", "\n      ") + "\n" for text in texts)


def statuses(run):
    return {(line["host"], line["task"]): line["status"] for line in run.results}


# --- A9, A11, A13, A10 ---


@pytest.mark.row("A9")
def test_a_killed_session_runs_nothing_twice(ours, far, tmp_path):
    mark = tmp_path / "ran"
    text = tasks(
        f"name: one\nignore_unreachable: true\nshell: echo x >> {mark}; sleep 20",
        "name: two\nping:",
    )
    thread = when(mark.exists, lambda: [kill(pid) for pid in children(far.server.process.pid)])
    began = time.monotonic()
    run = ours(text, far.line("far"), env={"ANSIBLE_SSH_RETRIES": "3"})
    thread.join()
    assert statuses(run) == {("far", "one"): "unreachable", ("far", "two"): "ok"}, run.text
    assert time.monotonic() - began < 19
    assert mark.read_text() == "x\n"


@pytest.mark.row("A11")
def test_a_stall_is_unreachable_and_the_others_go_on(ours, far, proxy, tmp_path):
    mark = tmp_path / "ran"
    text = tasks(
        "name: one\nignore_unreachable: true\nshell: 'echo x >> {{ mark }}-{{ inventory_hostname }}; sleep {{ nap }}'",
        "name: two\nping:",
    )
    thread = when(Path(f"{mark}-stalled").exists, lambda: proxy.links[0].stall())
    run = ours(text, far.line("stalled", proxy, ALIVE, nap=60), far.line("fine", nap=5), mark=str(mark), env={"ANSIBLE_SSH_RETRIES": "2"})
    thread.join()
    assert statuses(run) == {("stalled", "one"): "unreachable", ("stalled", "two"): "ok", ("fine", "one"): "ok", ("fine", "two"): "ok"}, run.text
    assert "no answer for 2 seconds" in run.text
    assert Path(f"{mark}-stalled").read_text() == "x\n"


@pytest.mark.row("A11")
def test_a_session_that_stalled_between_two_tasks_is_replaced(ours, far, proxy, tmp_path):
    text = tasks("name: one\nping:", f"name: wait\ndelegate_to: fine\nshell: touch {tmp_path}/now; sleep 3", "name: two\nping:")
    thread = when((tmp_path / "now").exists, lambda: proxy.links[0].stall())
    run = ours(text, far.line("stalled", proxy, ALIVE), far.line("fine"), words=("-l", "stalled"))
    thread.join()
    assert run.rc == 0 and statuses(run)["stalled", "two"] == "ok", run.text
    assert len(proxy.links) == 2


@pytest.mark.row("A10")
@pytest.mark.parametrize("old", [True, False])
def test_a_copy_that_breaks_leaves_the_old_file(ours, far, proxy, tmp_path, old):
    size = (8 << 20) * FACTOR
    (tmp_path / "src").write_bytes(os.urandom(size))
    there = tmp_path / "there"
    there.mkdir()
    if old:
        (there / "file").write_text("old")
    text = tasks(f"name: one\ncopy: src={tmp_path}/src dest={there}/file")
    proxy.script = lambda number: Script(up=Way(reset_at=size // 2) if number == 0 else Way())
    first = ours(text, far.line("far", proxy))
    assert first.rc == 4 and first.one("one")["status"] == "unreachable", first.text
    assert [p.read_text() for p in there.iterdir()] == (["old"] if old else [])
    again = ours(text, far.line("far", proxy))
    assert again.rc == 0 and (there / "file").read_bytes() == (tmp_path / "src").read_bytes(), again.text


@pytest.mark.row("A10")
@pytest.mark.parametrize("old", [True, False])
def test_a_fetch_that_breaks_leaves_the_old_file(ours, far, proxy, tmp_path, old):
    size = (8 << 20) * FACTOR
    (tmp_path / "src").write_bytes(os.urandom(size))
    here = tmp_path / "here"
    here.mkdir()
    if old:
        (here / "file").write_text("old")
    text = tasks(f"name: one\nfetch: src={tmp_path}/src dest={here}/file flat=true")
    proxy.script = lambda number: Script(down=Way(reset_at=size // 2) if number == 0 else Way())
    first = ours(text, far.line("far", proxy))
    assert first.rc == 4 and first.one("one")["status"] == "unreachable", first.text
    assert [p.read_bytes() for p in here.iterdir()] == ([b"old"] if old else [])
    again = ours(text, far.line("far", proxy))
    assert again.rc == 0 and (here / "file").read_bytes() == (tmp_path / "src").read_bytes(), again.text


# --- A12 ---


@pytest.mark.row("A12")
@pytest.mark.slow
def test_a_far_thin_and_lossy_line(compare, far, tmp_path):
    """A module's first journey takes longer than the silence that would end the session."""
    text = tasks(
        "name: one\nping:",
        "name: two\nshell: head -c 20000 /dev/zero | tr '\\0' x; exit 3\nignore_errors: true",
    )

    def way():
        return Way(latency_s=0.25, bytes_per_s=60_000, hiccup=(0.01, 0.3))

    with Chaos(far.address, thin=True) as slow:
        begun = [10**6]
        slow.script = lambda number: Script(up=way(), down=way()) if number >= begun[0] else Script()

        def between():
            begun[0] = len(slow.links)

        _, mine = compare(text, far.line("far", slow, ALIVE), between=between)
        assert len(slow.links) == begun[0] + 1, mine.text  # one session for everything: nothing timed out


# --- A16 ---


@pytest.mark.row("A16")
def test_one_session_for_fifty_delegated_tasks(ours, top):
    made = Far(top, "127.0.0.87", "MaxSessions 1\n")
    try:
        text = tasks("name: one\ndelegate_to: narrow\nshell: sleep 0.3; echo {{ inventory_hostname }}")
        lines = [made.line("narrow"), *(f"h{n}" for n in range(50))]
        run = ours(text, *lines, words=("-l", "h*", "-f", "50"))
        assert run.rc == 0, run.text
        found = [line for line in run.results if line["task"] == "one"]
        assert sorted(line["result"]["stdout"] for line in found) == sorted(f"h{n}" for n in range(50))
    finally:
        made.stop()


@pytest.mark.row("A16")
def test_a_server_without_sessions(play, top, tmp_path):
    made = Far(top, "127.0.0.88", "MaxSessions 0\n")
    try:
        # The words of stock depend on whether ssh had ended before it got its input.
        hosts = inventory(tmp_path / "hosts.ini", made.line("none"))
        for env in ({}, FREE):
            run = play(tasks("name: one\nping:"), "ssh", inventory=hosts, env={**NO_MASTER, **env})
            assert (run.rc, run.one("one")["status"]) == (4, "unreachable"), run.text
    finally:
        made.stop()


def test_a_server_without_terminals(compare, top):
    made = Far(top, "127.0.0.89", "PermitTTY no\n")
    try:
        _, ours = compare(tasks("name: one\nraw: tty"), made.line("plain"), rc=None, env={"ANSIBLE_VERBOSITY": "3"})
        assert "no terminal: PTY allocation request failed" in ours.text
    finally:
        made.stop()


# --- A20 ---


@pytest.mark.row("A20")
def test_reset_connection_gets_a_new_login(compare, far):
    text = tasks("name: one\nshell: echo", "meta: reset_connection", "name: two\nshell: echo", "meta: reset_connection", "name: three\nraw: echo")
    compare(text, far.line("far"))


@pytest.mark.row("A20")
def test_reboots(play, lab):
    """The reboot action, with a `reboot` that ends the host's sshd and all its sessions and starts it again."""
    host = lab.hosts[0].name
    folder = lab.dir / "hosts" / host
    boot, wish, now = folder / "boot", folder / "reboot", folder / "now"
    boot.write_text("0")
    stop = threading.Event()

    def watch():
        while not stop.is_set():
            if wish.exists():
                wish.unlink()
                lab.stop(host)
                time.sleep(0.5)
                boot.write_text(str(int(boot.read_text()) + 1))
                lab.start(host)
            time.sleep(0.05)

    now.write_text(f"#!/bin/sh\ntouch {wish}\nsleep 60\n")
    now.chmod(0o755)
    count = 3 * FACTOR
    text = tasks(f"name: agent\nshell: cat {boot}; echo $PPID\nregister: before",
                 f"name: reboot\nreboot: reboot_command={now} boot_time_command='cat {boot}' test_command='echo fine' reboot_timeout=60 connect_timeout=5",
                 f"name: after\nshell: cat {boot}")  # fmt: skip
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        for n in range(count):
            run = play(text, "ssh", "-l", host, env=FREE)
            assert run.rc == 0, run.text
            assert run.one("after")["result"]["stdout"] == str(n + 1)
            assert run.one("reboot")["result"]["rebooted"] is True
    finally:
        stop.set()
        thread.join()
        if not lab.host(host).alive():
            lab.start(host)


@pytest.mark.row("A20")
def test_an_sshd_that_restarts_keeps_its_sessions(ours, top):
    """Debian restarts the listener alone: kept sessions stay good, new ones go to the new listener."""
    made = Far(top, "127.0.0.89")
    try:
        for _ in range(2):
            run = ours(tasks("name: one\nping:"), made.line("far"))
            assert run.rc == 0, run.text
            os.kill(made.server.process.pid, signal.SIGHUP)
        assert (made.dir / "sshd.log").read_text().count("Accepted publickey") == 1
        run = ours(tasks("meta: reset_connection", "name: one\nping:"), made.line("far"))
        assert run.rc == 0, run.text
        assert (made.dir / "sshd.log").read_text().count("Accepted publickey") == 2
    finally:
        made.stop()


# --- A21 ---


@pytest.mark.row("A21")
@pytest.mark.parametrize("limit", ["", pytest.param("MaxSessions 1\n", marks=pytest.mark.slow)])
def test_several_targets_behind_one_jump_host(ours, far, top, tmp_path, limit):
    """Each target has one way through it for all its tasks; when they break, those tasks are lost, the jump host is named, and the next tasks find new ways."""
    jump, count = Far(top, "127.0.0.90", limit), 4
    mark, config = tmp_path / "ran", tmp_path / "config"
    with Chaos(jump.address) as front:
        config.write_text(
            f"Host jump\n  HostName 127.0.0.1\n  Port {front.port}\n  IdentityFile {jump.key}\n  UserKnownHostsFile {jump.known}\n"
            f"Host 127.0.0.86\n  ProxyJump jump\n"
        )
        cut = f"name: cut\nignore_unreachable: true\nshell: echo x >> {mark}-{{{{ inventory_hostname }}}}; sleep 30"
        text = tasks("name: one\nping:", cut, "name: two\nping:")
        lines = [far.line(f"behind{n}", args=f"-F {config} -o SetEnv=N={n}") for n in range(count)]
        thread = when(lambda: len(list(tmp_path.glob("ran-*"))) == count, lambda: [link.reset() for link in front.open()])
        try:
            run = ours(text, *lines, words=("-f", "10"))
            thread.join()
            expected = {"one": "ok", "cut": "unreachable", "two": "ok"}
            assert statuses(run) == {(f"behind{n}", task): status for n in range(count) for task, status in expected.items()}, run.text
            assert {Path(f"{mark}-behind{n}").read_text() for n in range(count)} == {"x\n"}
            assert len(front.links) <= 2 * count
        finally:
            jump.stop()


@pytest.mark.row("A21")
@pytest.mark.parametrize("fault", ["none", "slow", "dead", "one session", "dies"])
def test_behind_a_jump_host(play, ours, far, top, tmp_path, fault):
    jump = Far(top, "127.0.0.90", "MaxSessions 1\n" if fault == "one session" else "")
    mark = tmp_path / "ran"
    config = tmp_path / "config"
    with Chaos(jump.address) as front:
        if fault == "slow":
            front.script = lambda number: Script(up=Way(latency_s=0.2), down=Way(latency_s=0.2))
        port = front.port if fault != "dead" else 9
        config.write_text(
            f"Host jump\n  HostName 127.0.0.1\n  Port {port}\n  IdentityFile {jump.key}\n  UserKnownHostsFile {jump.known}\n"
            f"Host 127.0.0.86\n  ProxyJump jump\n"
        )
        line = far.line("behind", args=f"-F {config}")
        text = tasks(f"name: one\nignore_unreachable: true\nshell: echo x >> {mark}; sleep {8 if fault == 'dies' else 0}", "name: two\nping:")
        thread = when(mark.exists, lambda: [link.reset() for link in front.open()]) if fault == "dies" else None
        try:
            run = ours(text, line)
            if thread:
                thread.join()
            if fault == "dies":
                assert statuses(run) == {("behind", "one"): "unreachable", ("behind", "two"): "ok"}, run.text
            elif fault == "dead":
                assert statuses(run) == {("behind", "one"): "unreachable", ("behind", "two"): "unreachable"}, run.text
                stock = play(text, "ssh", inventory=inventory(tmp_path / "stock.ini", line), env=NO_MASTER)
                assert run.one("one")["result"]["msg"] == stock.one("one")["result"]["msg"]
                assert "connect to host 127.0.0.1 port 9" in run.text
            else:
                assert statuses(run) == {("behind", "one"): "ok", ("behind", "two"): "ok"}, run.text
                assert len(front.links) == 1  # one way through for everything
            assert fault == "dead" or mark.read_text() == "x\n"
        finally:
            jump.stop()
