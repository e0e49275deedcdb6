"""The lab: hosts that really answer, and a `down` that leaves nothing behind."""

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from churten.lab import Lab, LabError, Options, procs

ROOT = os.geteuid() == 0
ANSIBLE = Path(sys.executable).with_name("ansible")
needs_root = pytest.mark.skipif(not ROOT, reason="accounts and sudo need root")


def system_state():
    """Everything a lab touches outside its own directory."""
    state = {name: Path(name).read_text() for name in ("/etc/passwd", "/etc/group")}
    if ROOT:
        state["shadow"] = Path("/etc/shadow").read_text()
    return state


def traces(lab):
    """What of this lab exists outside its directory."""
    found = [str(path) for path in Path("/etc/sudoers.d").glob(f"*{lab.id}*")] if ROOT else []
    found += [entry.pw_name for entry in pwd.getpwall() if lab.id in entry.pw_name]
    found += [str(pid) for pid in procs.all_pids() if str(lab.dir) + "/" in procs.command_line(pid)]
    found += [str(pid) for pid in procs.all_pids() if procs.has_marker(pid, f"CHURTEN_LAB={lab.id}")]
    return found


@pytest.fixture
def empty_lab():
    parent = Path(tempfile.mkdtemp(prefix="chlab-"))
    parent.chmod(0o755)
    lab = Lab(parent / "lab")
    try:
        yield lab
    finally:
        Lab(lab.dir).down()
        shutil.rmtree(parent)


@pytest.fixture(scope="module")
def lab():
    parent = Path(tempfile.mkdtemp(prefix="chlab-"))
    parent.chmod(0o755)
    lab = Lab(parent / "lab")
    try:
        lab.up(3)
        yield lab
    finally:
        lab.down()
        shutil.rmtree(parent)


def ssh(lab, host, command, user=None, options=()):
    key = lab.dir / "keys" / "user_ed25519"
    words = ["ssh", "-F", "/dev/null", "-o", f"UserKnownHostsFile={lab.dir}/known_hosts", "-o", "BatchMode=yes"]
    words += ["-o", "GlobalKnownHostsFile=/dev/null", "-i", key, "-p", str(host.port), *options]
    words += [f"{user or lab.account}@{host.address}", command]
    return subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)


def ansible(lab, *words):
    environment = {**os.environ, "ANSIBLE_CONFIG": str(lab.ansible_cfg), "ANSIBLE_FORCE_COLOR": "0"}
    return subprocess.run(
        [ANSIBLE, "lab", *words], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    )


def test_ssh_reaches_every_host_with_host_key_checking(lab):
    for host in lab.hosts:
        command = 'echo "$SSH_CONNECTION $CHURTEN_LAB"; id -un'
        done = ssh(lab, host, command, options=["-o", "StrictHostKeyChecking=yes"])
        assert done.returncode == 0, done.stderr
        assert done.stdout.split()[2:] == [host.address, str(host.port), lab.id, lab.account]
        assert done.stderr == ""


def test_sessions_ignore_no_signals_of_ours(empty_lab):
    # As under nohup, in the background of a script.
    code = "import signal, sys; from churten.lab import Lab\n"
    code += "for s in (1, 2, 3): signal.signal(s, signal.SIG_IGN)\n"
    code += "Lab(sys.argv[1]).up(1)\n"
    subprocess.run([sys.executable, "-c", code, str(empty_lab.dir)], check=True, timeout=60)
    lab = Lab(empty_lab.dir)
    done = ssh(lab, lab.hosts[0], "grep SigIgn /proc/self/status")
    # 32 and 33 belong to the C library; glibc's posix_spawn (make uses it) leaves them ignored.
    assert int(done.stdout.split()[1], 16) & ~(3 << 31) == 0


def test_a_stranger_is_refused(lab):
    done = ssh(lab, lab.hosts[0], "id", user="nobody")
    assert done.returncode == 255 and "Permission denied" in done.stderr


def test_ansible_ping_and_own_directories(lab):
    done = ansible(lab, "-m", "ansible.builtin.ping")
    assert done.returncode == 0 and done.stdout.count('"ping": "pong"') == 3, done.stdout + done.stderr
    done = ansible(lab, "-a", "touch {{ lab_dir }}/mark")
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.parent.name for path in lab.dir.glob("hosts/*/mark")) == ["lab001", "lab002", "lab003"]


@needs_root
def test_sudo_without_a_password(lab):
    done = ssh(lab, lab.hosts[0], "sudo -n id -u")
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
    done = ssh(lab, lab.hosts[0], "sudo -n id -u", user=lab.asking_account)
    assert done.returncode != 0 and "password is required" in done.stderr


@needs_root
def test_sudo_with_a_password_through_the_inventory(lab):
    lab.up(3, Options(sudo="password"))
    try:
        done = ansible(lab, "-b", "-a", "id -un")
        assert done.returncode == 0 and done.stdout.count("\nroot\n") == 3, done.stdout + done.stderr
        done = ansible(lab, "-b", "-a", "id -un", "-e", "ansible_become_password=wrong")
        assert done.returncode != 0
    finally:
        lab.up(3, Options())


@needs_root
@pytest.mark.skipif(shutil.which("sshpass") is None, reason="sshpass is not installed")
def test_login_with_a_password(lab):
    words = ["sshpass", "-e", "ssh", "-F", "/dev/null", "-o", f"UserKnownHostsFile={lab.dir}/known_hosts"]
    words += ["-o", "PubkeyAuthentication=no", "-p", str(lab.hosts[0].port)]
    words += [f"{lab.account}@{lab.hosts[0].address}", "echo in"]
    for password, code in ((lab.password, 0), ("wrong", 5)):
        environment = {**os.environ, "SSHPASS": password}
        done = subprocess.run(words, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=30)
        assert done.returncode == code, done.stderr


def test_up_again_changes_nothing_that_runs(lab):
    before = [(host.name, host.address, host.pid) for host in lab.hosts]
    keys = (lab.dir / "keys" / "user_ed25519").read_text()
    again = Lab(lab.dir)
    again.up(3)
    assert [(host.name, host.address, host.pid) for host in again.hosts] == before
    assert (lab.dir / "keys" / "user_ed25519").read_text() == keys


def test_growing_and_shrinking_keeps_the_others(lab):
    before = [host.pid for host in lab.hosts]
    lab.up(5)
    assert [host.pid for host in lab.hosts[:3]] == before
    assert ssh(lab, lab.hosts[4], "echo in").stdout == "in\n"
    gone = lab.hosts[4].pid
    lab.up(3)
    assert [host.pid for host in lab.hosts] == before and procs.start_time(gone) is None


def test_ending_one_host_leaves_the_others(lab):
    first, second = lab.hosts[:2]
    others = [host.pid for host in lab.hosts[1:]]
    idle = {pid for host in lab.hosts for pid in lab.sessions(host.name)}
    words = ["ssh", "-F", "/dev/null", "-o", f"UserKnownHostsFile={lab.dir}/known_hosts", "-i"]
    words += [lab.dir / "keys" / "user_ed25519", "-p", str(first.port), f"{lab.account}@{first.address}"]
    with subprocess.Popen([*words, "echo in; exec sleep 60"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as client:
        assert client.stdout.readline() == b"in\n"
        assert set(lab.sessions(first.name)) - idle and set(lab.sessions(second.name)) <= idle
        lab.stop(first.name)
        assert client.wait(timeout=10) == 255
    assert not first.alive() and [host.pid for host in lab.hosts[1:] if host.alive()] == others
    lab.start(first.name)
    assert ssh(lab, first, "echo back").stdout == "back\n"


def test_down_leaves_nothing(empty_lab):
    before = system_state()
    lab = empty_lab
    lab.up(3)
    assert ssh(lab, lab.hosts[0], "setsid sleep 300 >/dev/null 2>&1 </dev/null &").returncode == 0
    if ROOT:
        assert ssh(lab, lab.hosts[0], "sudo -n setsid sleep 301 >/dev/null 2>&1 </dev/null &").returncode == 0
    assert traces(lab)
    pids = lab.processes()
    lab.down()
    assert traces(lab) == [] and not lab.dir.exists()
    assert [pid for pid in pids if procs.start_time(pid) is not None] == []
    after = system_state()
    # Another lab may come or go meanwhile: compare without the lines of labs.
    for name in before:
        clean = [[line for line in state[name].splitlines() if "churten-lab-" not in line] for state in (before, after)]
        assert clean[0] == clean[1], name


def test_down_cleans_after_a_crash(empty_lab):
    lab = empty_lab
    lab.up(2)
    os.kill(lab.hosts[0].pid, signal.SIGKILL)
    # As if `up` had died before it could write down what it had started, and the user had removed the directory.
    shutil.rmtree(lab.dir)
    assert traces(lab)
    Lab(lab.dir).down()
    assert traces(lab) == []


def test_a_foreign_directory_is_left_alone(empty_lab):
    empty_lab.dir.mkdir()
    precious = empty_lab.dir / "precious"
    precious.write_text("mine")
    with pytest.raises(LabError, match="not empty"):
        empty_lab.up(1)
    empty_lab.down()
    assert precious.read_text() == "mine"


@needs_root
def test_a_directory_the_account_cannot_reach_is_refused(empty_lab):
    empty_lab.dir.parent.chmod(0o700)
    with pytest.raises(LabError, match="cannot enter"):
        empty_lab.up(1)
    empty_lab.dir.rmdir()


def test_command_line(empty_lab):
    def churten(*words):
        words = [sys.executable, "-m", "churten.cli.main", "lab", *words, "--dir", str(empty_lab.dir)]
        return subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)

    assert churten("status").returncode == 3
    done = churten("up", "--hosts", "2", "--discover", "--sshd-option", "MaxSessions 1")
    assert done.returncode == 0 and str(empty_lab.inventory) in done.stdout, done.stderr
    assert "ansible_python_interpreter" not in empty_lab.inventory.read_text()
    assert (empty_lab.dir / "sshd_config").read_text().startswith("MaxSessions 1\n")
    assert churten("status").returncode == 0
    done = churten("up", "--hosts", "2", "--sshd-option", "NoSuchOption 1")
    assert done.returncode == 1 and done.stderr.startswith("churten lab: sshd refuses")
    assert churten("down").returncode == 0 and churten("status").returncode == 3


def test_one_sshd_for_all_hosts(empty_lab):
    empty_lab.up(3, Options(one_sshd=True, logs=True))
    assert len({(host.pid, host.port) for host in empty_lab.hosts}) == 1
    assert len({host.address for host in empty_lab.hosts}) == 3
    empty_lab.up(260)
    assert len({(host.pid, host.port) for host in empty_lab.hosts}) == 1
    before = empty_lab.logins("lab001")
    for host in (empty_lab.hosts[0], empty_lab.hosts[259]):
        done = ssh(empty_lab, host, "echo $SSH_CONNECTION", options=["-o", "StrictHostKeyChecking=yes"])
        assert done.stdout.split()[2:] == [host.address, str(host.port)], done.stderr
    assert empty_lab.logins("lab260") == before + 2
    with pytest.raises(LabError, match="stopped alone"):
        empty_lab.stop("lab002")
    with pytest.raises(LabError, match="take it down first"):
        empty_lab.up(3, Options())
    pid = empty_lab.hosts[0].pid
    empty_lab.up(2)
    assert empty_lab.hosts[1].alive() and empty_lab.hosts[1].pid == pid
    empty_lab.down()
    assert not traces(empty_lab)


def test_logins_are_counted_per_host(empty_lab):
    empty_lab.up(2, Options(logs=True))
    for _ in range(2):
        ssh(empty_lab, empty_lab.hosts[1], "true")
    assert [empty_lab.logins(host.name) for host in empty_lab.hosts] == [0, 2]
