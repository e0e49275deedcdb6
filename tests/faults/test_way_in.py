"""Hosts that cannot be reached, known or logged in to: the same verdict and the same words as with the built-in connection."""

import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from far import Far, inventory
from lab_plays import differences
from sshds import free_port, key_agent, keygen

PING = "- hosts: all\n  gather_facts: false\n  tasks:\n    - ping:\n      name: one\n"
FREE = {"ANSIBLE_STRATEGY": "churten.core.free"}
NO_MASTER = {"ANSIBLE_SSH_ARGS": "-o ControlMaster=no -o ControlPath=none"}  # a master of an earlier play would let stock in


@pytest.fixture(scope="module")
def top(tmp_path_factory):
    path = tmp_path_factory.mktemp("way")
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def far(top):
    made = Far(top, "127.0.0.84")
    yield made
    made.stop()


@pytest.fixture
def compare(play, tmp_path):
    """The same play with the built-in plugin and with ours; both runs."""

    def run(*lines, text=PING, rc=4, env=None, between=lambda: None):
        hosts = inventory(tmp_path / "hosts.ini", *lines)
        # Without -vvv, which would make ssh talk too.
        stock = play(text, "ssh", inventory=hosts, env={**NO_MASTER, **(env or {})})
        between()
        ours = play(text, "ssh", inventory=hosts, env={**FREE, **NO_MASTER, **(env or {})})
        found = [f"{where}\n  stock: {one!r}\n  ours:  {two!r}" for where, one, two in differences(stock.comparable(), ours.comparable())]
        assert not found, "\n".join(found)
        assert stock.results and ours.rc == stock.rc == (stock.rc if rc is None else rc), ours.text
        return stock, ours

    return run


def message(run):
    return run.one("one")["result"]["msg"]


# --- A1, A3: nobody there ---


@pytest.mark.row("A1")
def test_a_closed_port(compare, far):
    _, ours = compare(far.line("closed", ansible_port=free_port("127.0.0.84")))
    assert "Connection refused" in message(ours)


@pytest.mark.row("A3")
def test_a_name_nobody_knows(compare, far):
    _, ours = compare(far.line("nowhere", ansible_host="no-such-host.invalid"))
    assert "Could not resolve hostname no-such-host.invalid" in message(ours)


@pytest.mark.row("A2")
def test_a_server_that_says_nothing(compare, far):
    with socket.create_server(("127.0.0.84", 0)) as server:
        _, ours = compare(far.line("silent", ansible_port=server.getsockname()[1]), env={"ANSIBLE_TIMEOUT": "2"})
    assert "banner exchange" in message(ours)


@pytest.mark.row("A2")
def test_a_server_that_does_not_accept(compare, far):
    with socket.socket() as server:
        server.bind(("127.0.0.84", 0))
        server.listen(0)
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(server.getsockname())
        _, ours = compare(far.line("full", ansible_port=server.getsockname()[1]), env={"ANSIBLE_TIMEOUT": "2"})
        for filler in fillers:
            filler.close()
    assert "Connection timed out" in message(ours)


# --- A5, A6, A7: who is it ---


@pytest.mark.row("A5")
@pytest.mark.parametrize("mode", ["yes", "ask", "accept-new", "no"])
@pytest.mark.parametrize("file", ["missing", "empty", "none"])
def test_an_unknown_host_key(compare, far, tmp_path, mode, file):
    known = tmp_path / "known" if file != "none" else "none"

    def fresh():
        if file == "empty":
            known.write_text("")
        elif file == "missing":
            known.unlink(missing_ok=True)

    fresh()
    args = f"-o StrictHostKeyChecking={mode} -o UserKnownHostsFile={known} -o HashKnownHosts=no"
    found = []

    def between():
        found.append(known.read_text() if file != "none" and known.exists() else None)
        fresh()

    fine = mode in ("accept-new", "no")
    compare(far.line("new", ansible_ssh_common_args=f"{args} -o GlobalKnownHostsFile=/dev/null"), rc=0 if fine and file != "none" else None, between=between)
    now = known.read_text() if file != "none" and known.exists() else None
    if fine and file != "none":
        assert now == found[0] and now.count("\n") == 1


@pytest.mark.row("A6")
@pytest.mark.parametrize("mode", ["yes", "accept-new", "no"])
def test_a_changed_host_key(compare, far, tmp_path, mode):
    known = tmp_path / "known"
    known.write_text(far.server.host_line(key=keygen(tmp_path / "other")) + "\n")
    before = known.read_text()
    line = far.line("changed", ansible_ssh_common_args=f"-o StrictHostKeyChecking={mode} -o UserKnownHostsFile={known} -o GlobalKnownHostsFile=/dev/null")
    _, ours = compare(line, rc=0 if mode == "no" else 4)
    assert known.read_text() == before
    if mode != "no":
        assert f"{known}:1" in message(ours) and "Host key verification failed" in message(ours)


@pytest.mark.row("A6", "F14")
def test_a_session_to_a_changed_host_is_not_for_those_who_check(play, far, tmp_path):
    known = tmp_path / "known"
    known.write_text(far.server.host_line(key=keygen(tmp_path / "other")) + "\n")
    args = f"-o UserKnownHostsFile={known} -o GlobalKnownHostsFile=/dev/null -o StrictHostKeyChecking="
    hosts = inventory(tmp_path / "hosts.ini", far.line("changed"))
    for mode, rc in (("no", 0), ("yes", 4), ("no", 0)):
        run = play(PING, "ssh", inventory=hosts, env=FREE, ansible_ssh_common_args=args + mode)
        assert run.rc == rc, run.text


@pytest.mark.row("A7")
@pytest.mark.parametrize("how", ["revoked", "krl", "authority", "authority of another"])
def test_revoked_keys_and_authorities(compare, far, tmp_path, how):
    known, args, rc = tmp_path / "known", "", 4
    key = far.server.host_line().split(" ", 1)[1]
    if how == "revoked":
        known.write_text(f"{far.server.host_line()}\n@revoked * {key}\n")
    elif how == "krl":
        known.write_text(far.server.host_line() + "\n")
        subprocess.run(["ssh-keygen", "-q", "-k", "-f", tmp_path / "krl", f"{far.server.key}.pub"], check=True)
        args = f" -o RevokedHostKeys={tmp_path}/krl"
    else:
        keygen(tmp_path / "ca")
        other = keygen(tmp_path / "other-ca")
        ca = other if how == "authority of another" else tmp_path / "ca"
        for one in (far.server.key,):
            subprocess.run(["ssh-keygen", "-q", "-s", ca, "-I", "host", "-h", "-n", far.server.host, f"{one}.pub"], check=True)
        known.write_text(f"@cert-authority * {Path(f'{tmp_path}/ca.pub').read_text()}")
        made = Far(tmp_path, "127.0.0.85", f"HostKey {far.server.key}\nHostCertificate {far.server.key}-cert.pub\n")
        subprocess.run(["ssh-keygen", "-q", "-s", ca, "-I", "host", "-h", "-n", "127.0.0.85", f"{far.server.key}.pub"], check=True)
        made.stop()
        made = Far(tmp_path, "127.0.0.85", f"HostKey {far.server.key}\nHostCertificate {far.server.key}-cert.pub\n")
        rc = 0 if how == "authority" else 4
        try:
            line = made.line("certified", ansible_ssh_common_args=f"-o UserKnownHostsFile={known} -o GlobalKnownHostsFile=/dev/null")
            compare(line, rc=rc)
        finally:
            made.stop()
            Path(f"{far.server.key}-cert.pub").unlink()
        return
    line = far.line("revoked", ansible_ssh_common_args=f"-o UserKnownHostsFile={known} -o GlobalKnownHostsFile=/dev/null{args}")
    compare(line, rc=rc)


# --- A8, A22: who are we ---


@pytest.mark.row("A8")
def test_a_wrong_key(compare, far, tmp_path):
    start = (far.dir / "sshd.log").stat().st_size
    compare(far.line("wrong", ansible_ssh_private_key_file=keygen(tmp_path / "wrong")), env={"SSH_AUTH_SOCK": ""})
    log = (far.dir / "sshd.log").read_bytes()[start:]
    assert log.count(b"Connection closed by authenticating user") == 2  # one each: not tried again


@pytest.mark.row("A8")
@pytest.mark.parametrize("only", ["yes", "no"])
def test_more_keys_in_the_agent_than_the_server_lets_try(compare, far, tmp_path, only):
    with key_agent(tmp_path / "agent") as (add, _):
        add(*[keygen(tmp_path / f"k{n}") for n in range(8)])
        env = {"SSH_AUTH_SOCK": str(tmp_path / "agent")}
        # The configured file is offered first where the agent does not hold it only with IdentitiesOnly.
        compare(far.line("many", args=f"-o IdentitiesOnly={only}"), rc=0 if only == "yes" else 4, env=env)
        add(far.key)
        compare(far.line("many2", args=f"-o IdentitiesOnly={only}"), rc=0, env=env)


@pytest.mark.row("A8")
@pytest.mark.skipif(os.geteuid() != 0, reason="an account with a password needs root")
@pytest.mark.skipif(shutil.which("sshpass") is None, reason="sshpass is not installed")
def test_a_wrong_password(compare, far):
    start = (far.dir / "sshd.log").stat().st_size
    name = f"chway{os.getpid()}"
    subprocess.run(["useradd", "-M", "-d", "/", "-s", "/bin/sh", name], check=True)
    try:
        subprocess.run(["chpasswd"], input=f"{name}:right one\n", text=True, check=True)
        compare(far.line("wrong", ansible_user=name, ansible_password="wrong"))
    finally:
        subprocess.run(["userdel", name], check=True)
    log = (far.dir / "sshd.log").read_bytes()[start:]
    assert log.count(b"Failed password") == 2


@pytest.mark.row("A22")
@pytest.mark.parametrize("how", ["gone", "locked", "empty"])
def test_an_agent_without_the_key(compare, far, tmp_path, how):
    sock = tmp_path / "agent"
    env = {"SSH_AUTH_SOCK": str(sock), "SSH_ASKPASS": "/bin/false"}
    line = far.line("agent", ansible_ssh_private_key_file=None)
    if how == "gone":
        sock.write_text("")
        compare(line, env=env)
        return
    with key_agent(sock) as (add, _):
        if how == "locked":
            add(far.key)
            compare(line, env=env, rc=0)
            ask = tmp_path / "ask"
            ask.write_text("#!/bin/sh\necho secret\n")
            ask.chmod(0o700)
            subprocess.run(
                ["ssh-add", "-x"], env={**os.environ, "SSH_AUTH_SOCK": str(sock), "SSH_ASKPASS": str(ask), "SSH_ASKPASS_REQUIRE": "force"}, check=True
            )
        compare(line.replace("agent ", "agent2 ", 1), env=env, text=PING.replace("    - ping:\n", "    - meta: reset_connection\n    - ping:\n"))
