"""Accounts whose shell or start-up files talk, hang or allow nothing: verdict and results as with the built-in connection."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from far import Far, inventory
from lab_plays import differences

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="accounts need root")
FREE = {"ANSIBLE_STRATEGY": "churten.core.free"}
NO_MASTER = {"ANSIBLE_SSH_ARGS": "-o ControlMaster=no -o ControlPath=none"}
TASKS = """
- hosts: all
  gather_facts: false
  tasks:
    - name: one
      shell: echo out; echo err >&2
    - name: two
      copy: content=abc dest={{ ansible_user_dir | default('/tmp') }}/chodd-{{ ansible_user }}
    - name: three
      command: "false"
      ignore_errors: true
"""


@pytest.fixture(scope="module")
def top():
    # Not pytest's directory: no other account may enter that.
    path = Path(tempfile.mkdtemp(prefix="ch-odd-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def account(top):
    """account(shell, bashrc): an account's name."""
    made = []

    def make(shell="/bin/bash", bashrc=""):
        name = f"chodd{os.getpid()}{len(made)}"
        home = top / name
        subprocess.run(["useradd", "-p", "*", "-m", "-k", "/dev/null", "-d", str(home), "-s", shell, name], check=True)
        made.append(name)
        (home / ".bashrc").write_text(bashrc)
        return name

    yield make
    for name in made:
        subprocess.run(["pkill", "-KILL", "-u", name], check=False)
        subprocess.run(["userdel", "-rf", name], check=False, stderr=subprocess.DEVNULL)
        Path(f"/tmp/chodd-{name}").unlink(missing_ok=True)


@pytest.fixture
def compare(play, tmp_path):
    def run(line, text=TASKS, rc=0, words=()):
        hosts = inventory(tmp_path / "hosts.ini", line)
        stock = play(text, "ssh", *words, inventory=hosts, env=NO_MASTER)
        for path in Path("/tmp").glob("chodd-*"):
            path.unlink()
        ours = play(text, "ssh", *words, inventory=hosts, env={**NO_MASTER, **FREE})
        found = [f"{where}\n  stock: {one!r}\n  ours:  {two!r}" for where, one, two in differences(stock.comparable(), ours.comparable())]
        assert not found, "\n".join(found)
        assert stock.results and stock.rc == ours.rc == (stock.rc if rc is None else rc), ours.text
        return stock, ours

    return run


NOISE = {
    "echo": "echo Welcome; echo careful >&2\n",
    "too much": "head -c 100000 /dev/zero | tr '\\0' x; echo\n",
    "slow": "sleep 2\n",
}


@pytest.mark.row("A18", "A19")
@pytest.mark.parametrize("noise", list(NOISE))
def test_start_up_files_that_talk(compare, top, account, noise):
    far = Far(top, "127.0.0.93", f"Banner {top}/banner\n")
    (top / "banner").write_text("This is a banner.\n" * 100)
    try:
        compare(far.line("odd", ansible_python_interpreter="/usr/bin/python3", ansible_user=account(bashrc=NOISE[noise])), rc=None)
    finally:
        far.stop()


@pytest.mark.row("A18")
def test_junk_between_frames(play, top, account, tmp_path):
    """A background process of the start-up file writes into the agent's stream: one task may be lost, then the stock way, with one warning."""
    far = Far(top, "127.0.0.94")
    text = "- hosts: all\n  gather_facts: false\n  tasks:\n" + "".join(
        f"    - name: t{n}\n      ignore_unreachable: true\n      shell: sleep 0.6; echo {n}\n" for n in range(6)
    )
    name = account(bashrc="(sleep 2; echo junk) &\n")
    try:
        hosts = inventory(tmp_path / "hosts.ini", far.line("odd", ansible_python_interpreter="/usr/bin/python3", ansible_user=name))
        run = play(text, "ssh", inventory=hosts, env={**NO_MASTER, **FREE})
    finally:
        far.stop()
    statuses = [line["status"] for line in run.results]
    assert len(statuses) == 6 and statuses.count("unreachable") <= 1, run.text
    assert [line["result"]["stdout"] for line in run.results if line["status"] != "unreachable"] == [
        str(n) for n in range(6) if statuses[n] != "unreachable"
    ]
    assert " ".join(run.text.split()).count("reached by the built-in plugin from now on") == 1, run.text


@pytest.mark.row("A19")
@pytest.mark.parametrize("shell", ["/usr/sbin/nologin", "/bin/false", "/usr/bin/tcsh", "/usr/bin/fish", "/bin/rbash"])
def test_login_shells(compare, top, account, shell):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    far = Far(top, "127.0.0.95")
    try:
        compare(far.line("odd", ansible_python_interpreter="/usr/bin/python3", ansible_user=account(shell)), rc=None)
    finally:
        far.stop()


@pytest.mark.row("A19")
@pytest.mark.parametrize("command", ["/bin/echo forced", "/bin/false", 'sh -c "$SSH_ORIGINAL_COMMAND"'])
def test_a_forced_command(compare, top, account, command):
    far = Far(top, "127.0.0.96", f"ForceCommand {command}\n")
    try:
        compare(far.line("odd", ansible_python_interpreter="/usr/bin/python3", ansible_user=account()), rc=None)
    finally:
        far.stop()


MUCH = """
- hosts: all
  gather_facts: false
  ignore_unreachable: true
  ignore_errors: true
  tasks:
    - {name: command, command: echo one}
    - {name: copy, copy: {content: "x", dest: "/tmp/churten-much-{{ inventory_hostname }}"}}
    - {name: raw, raw: echo two}
    - {name: template, template: {src: t.j2, dest: "/tmp/churten-much-{{ inventory_hostname }}"}}
    - {name: gone, file: {path: "/tmp/churten-much-{{ inventory_hostname }}", state: absent}}
    - {name: fetch, fetch: {src: /etc/hostname, dest: "{{ out }}/f"}}
    - {name: again, command: echo three}
"""


FLOOD = {
    "stderr": "head -c 60000 /dev/zero | tr '\\0' x >&2; echo >&2\n",
    "lines": "yes Welcome to this host | head -c 60000; echo\n",
    "at the limit": "head -c 65530 /dev/zero | tr '\\0' x; echo\n",
    "no line end": "head -c 60000 /dev/zero | tr '\\0' x\n",
    "more": "head -c 200000 /dev/zero | tr '\\0' x; echo\n",
}


@pytest.mark.row("A18")
@pytest.mark.slow
@pytest.mark.parametrize("noise", list(FLOOD))
def test_much_noise(play, top, account, tmp_path, noise):
    """As much as the marker is looked for in, or more: every task has stock's class and words, but for files that arrive whole here."""
    far = Far(top, "127.0.0.95")
    name = account(bashrc=FLOOD[noise])
    hosts = inventory(tmp_path / "hosts.ini", far.line("odd", ansible_python_interpreter="/usr/bin/python3", ansible_user=name))
    (tmp_path / "t.j2").write_text("t")
    try:
        runs = [play(MUCH, "ssh", inventory=hosts, env={**NO_MASTER, **env}, timeout=200) for env in ({}, {"ANSIBLE_STRATEGY": "churten.core.free"})]
    finally:
        far.stop()
    found = [{line["task"]: (line["status"], line["result"].get("msg")) for line in run.results} for run in runs]
    stock, ours = found
    if "checksum mismatch" in str(stock["fetch"][1]):  # the noise is in the file that stock fetched
        assert ours.pop("fetch")[0] == "ok" and stock.pop("fetch")
    assert ours == stock
