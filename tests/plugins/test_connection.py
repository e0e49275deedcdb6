"""churten.core.ssh and churten.core.local inside Ansible, under the stock `linear` strategy: the same results as with the built-in plugins."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from lab_plays import PLAYBOOK, ROOT, assert_same

HEAD = """
- hosts: lab001
  gather_facts: false
  tasks:
"""


def tasks(text):
    return HEAD + "\n".join("    " + line for line in text.strip("\n").splitlines()) + "\n"


MODULES = tasks(r"""
- ping:
    data: "gr\u00fc\u00dfe 'x' \"y\" \\ {{ '{{' }}"
- command: sh -c 'echo out; echo err >&2; exit 3'
  register: r
  failed_when: r.rc != 3
- command: /nonexistent
  ignore_errors: true
- shell: echo {{ item }} $A ${B-unset}; cat; tty
  loop: [1, 2]
  environment: {A: "it's a \"test\" $HOME"}
  failed_when: false
- shell: pwd; umask; echo $HOME $USER $LOGNAME $SHELL; ulimit -n; id
- setup:
    gather_subset: ["!all", "!min", "python", "user"]
    filter: [ansible_python_version, ansible_user_id, ansible_user_dir, ansible_python]
- ansible.builtin.stat: {path: /usr/bin/env}
- command: head -c 300000 /dev/zero
  register: big
  changed_when: big.stdout | length != 300000
- command: echo never
  when: false
- fail: {msg: "no {{ ansible_host }}"}
  ignore_errors: true
- command: sleep 10
  timeout: 1
  ignore_errors: true
- command: echo {{ lookup('pipe', 'echo here') }}
  environment: {PYTHONDONTWRITEBYTECODE: "1", LC_ALL: C.UTF-8}
""")


# What a job can see of how it was started; the terminal's number varies, and it is no longer the job's own.
JOB = tasks(r"""
- shell: >-
    env | grep -vE '^(SSH_C|XDG_|_=|CHURTEN)' | sed 's/^SSH_TTY=.*pts.*/SSH_TTY=pts/' | sort;
    umask; ulimit -a; pwd; tty; id; cut -d' ' -f7,8 /proc/self/stat
  environment: {A: "it's $HOME"}
  async: 60
  poll: 1
  register: r
  failed_when: "not probe is defined and 'SSH_TTY=pts' not in r.stdout"
- file: {path: /not/there, state: file}
  async: 60
  poll: 1
  ignore_errors: true
""")


AGAIN = tasks("- meta: reset_connection\n- ping:")


def test_a_job_is_started_on_a_terminal_of_the_server(same):
    _, ours = same(JOB)
    assert ours.text.count("churten: EXEC on a terminal") == 2
    assert not [line for line in ours.text.splitlines() if "the stock way" in line]


@pytest.mark.slow
def test_a_job_where_there_are_no_terminals(lab, same):
    """The key allows none: ssh says so and goes on without, so the job is started its way."""
    keys = lab.dir / "keys" / "authorized_keys"
    text = keys.read_text()
    keys.write_text("".join(f"no-pty {line}\n" for line in text.splitlines() if line))
    try:
        same(AGAIN)
        _, ours = same(JOB, probe=1)
        assert ours.text.count("the stock way: no terminal: PTY allocation request failed") == 2
    finally:
        keys.write_text(text)
        same(AGAIN)


def test_modules(same):
    _, ours = same(MODULES)
    assert "churten: RUN ansible.modules.command" in ours.text
    reasons = [line for line in ours.text.splitlines() if "the stock way" in line]
    assert not reasons


FILES = tasks(r"""
- file: {path: "~/t", state: directory}
- copy: {content: "one 1\n", dest: "~/t/c1", mode: "0640"}
- copy: {content: "one 1\n", dest: "~/t/c1"}
- copy: {content: "", dest: "~/t/empty"}
- template: {src: "{{ out }}/template", dest: "~/t/tmpl"}
- shell: cd ~/t && ls -l --time-style=+ && cat *
- fetch: {src: "~/t/c1", dest: "{{ out }}/fetched/", flat: false}
- fetch: {src: "~/t/empty", dest: "{{ out }}/fetched/e", flat: true}
- fetch: {src: "~/t/nothing", dest: "{{ out }}/fetched/"}
  ignore_errors: true
- script: "{{ out }}/script.sh a 'b c'"
- file: {path: "~/t", state: absent}
""")


def tree(top):
    """Contents and modes below `top`."""
    return {
        os.path.relpath(os.path.join(where, name), top): (
            os.stat(os.path.join(where, name)).st_mode,
            open(os.path.join(where, name)).read(),
        )
        for where, _, names in os.walk(top)
        for name in names
    }


def test_files(play, tmp_path):
    (tmp_path / "script.sh").write_text('#!/bin/sh\necho "$0" | sed \'s/.*script/script/\'; echo "$2"\n')
    (tmp_path / "script.sh").chmod(0o755)
    (tmp_path / "template").write_text("{{ 6 * 7 }}\n")
    seen = []
    for connection in ("ssh", "churten.core.ssh"):
        run = play(FILES, connection, "-vvv")
        seen.append((run, tree(tmp_path / "fetched")))
        shutil.rmtree(tmp_path / "fetched")
    assert_same(seen[0][0], seen[1][0])
    assert seen[1][1] == seen[0][1]


BECOME = tasks(r"""
- command: id -un
  become: true
- command: id -un
  become: true
  become_user: nobody
- shell: echo $HOME $USER $SUDO_USER; pwd; umask
  become: true
- command: id -un
- command: id -un
  become: true
  become_user: does-not-exist
  ignore_errors: true
- copy: {content: x, dest: "/etc/churten-test-{{ inventory_hostname }}"}
  become: true
- file: {path: "/etc/churten-test-{{ inventory_hostname }}", state: absent}
  become: true
- raw: id -un
  become: true
- command: id -un
  become: true
  become_user: "{{ item }}"
  loop: [nobody, root]
""")

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="lab accounts with sudo need root")


@needs_root
def test_become(same):
    _, ours = same(BECOME)
    assert "churten: RUN ansible.modules.command on agent 1" in ours.text


PASSWORD = """
- hosts: lab001
  gather_facts: false
  vars: {ansible_user: "{{ lab_asking_user }}"}
  tasks:
    - command: id -un
      name: right
      become: true
      vars: {ansible_become_password: "{{ lab_password }}"}
    - command: id -un
      name: wrong
      become: true
      ignore_errors: true
      vars: {ansible_become_password: "{{ wrong_password }}"}
    - command: id -un
      name: missing
      become: true
      ignore_errors: true
    - command: id -un
      name: right again
      become: true
      vars: {ansible_become_password: "{{ lab_password }}"}
    - raw: id -un
      name: raw
      become: true
      vars: {ansible_become_password: "{{ lab_password }}"}
"""


@pytest.mark.row("D1", "D2")
@needs_root
def test_become_password(same):
    _, ours = same(PASSWORD, wrong_password="not-this")
    assert ours.one("right")["result"]["stdout"] == "root"
    assert "Incorrect sudo password" in ours.one("wrong")["result"]["msg"]
    assert "Missing sudo password" in ours.one("missing")["result"]["msg"]
    assert "not-this" not in ours.text


def test_become_by_the_stock_way(play):
    run = play(
        tasks("- command: id -un\n  become: true\n  name: t"),
        "churten.core.ssh",
        "-vvv",
        ansible_churten_become="stock",
    )
    assert "churten_become is stock" in run.text
    assert run.rc == 0 or os.geteuid() != 0


RAW = tasks(r"""
- raw: echo out; echo err >&2; tty >/dev/null && echo tty
- raw: exit 7
  ignore_errors: true
- raw: printf 'a\nb'
  args: {executable: /bin/bash}
""")


def test_raw(same):
    _stock, ours = same(RAW)
    assert ours.text.count("churten: EXEC on a terminal") == 3, ours.text[-6000:]
    assert "the stock way" not in ours.text


@pytest.mark.parametrize("setting", ["-o LogLevel=VERBOSE", "-o ControlMaster=auto -o ControlPersist=no", "-o ForwardAgent=yes"])
def test_a_terminal_whose_farewell_is_not_known(play, setting):
    run = play(tasks("- raw: tty >/dev/null && echo terminal\n  name: t"), "churten.core.ssh", "-vvv", ansible_ssh_args=setting)
    assert run.one("t")["result"]["stdout"] == "terminal\r\n"
    assert "EXEC on a terminal" not in run.text and "the built-in plugin gives it a terminal" in run.text


LINKS = """
- hosts: lab001
  gather_facts: false
  ignore_unreachable: true
  tasks:
    - command: echo before
    - meta: reset_connection
    - command: echo after
    - wait_for_connection: {timeout: 20}
    - command: echo {{ item }}
      loop: [a, b]
    - ping:
      name: refused
      vars: {ansible_port: 1}
    - command: echo x
      name: no such host
      vars: {ansible_host: "churten-no-such-host.invalid"}
    - command: echo x
      name: wrong key
      vars: {ansible_ssh_private_key_file: "{{ out }}/otherkey"}
    - command: echo x
      name: unknown host key
      vars: {ansible_ssh_common_args: "-o UserKnownHostsFile=/dev/null -o GlobalKnownHostsFile=/dev/null"}
    - command: echo x
      name: changed host key
      vars: {ansible_ssh_common_args: "-o UserKnownHostsFile={{ out }}/known -o GlobalKnownHostsFile=/dev/null"}
    - command: echo still there
"""


def test_links(play, lab, tmp_path):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "otherkey")], check=True)
    host = lab.hosts[0]
    other = (tmp_path / "otherkey.pub").read_text().split()
    (tmp_path / "known").write_text(f"[{host.address}]:{host.port} {other[0]} {other[1]}\n")
    # Without ControlPersist, or stock would not notice that key and host key are others.
    env = {"ANSIBLE_SSH_ARGS": "-C"}
    stock = play(LINKS, "ssh", env=env)
    ours = play(LINKS, "churten.core.ssh", "-vvv", env=env)
    brief = [
        [(line["task"], line["status"], line["result"].get("stdout")) for line in run.results] for run in (stock, ours)
    ]
    assert brief[1] == brief[0], ours.text[-6000:]
    assert ours.rc == stock.rc
    for task, words in {
        "refused": ["127.", "port 1: Connection refused"],
        "no such host": ["Could not resolve hostname churten-no-such-host.invalid"],
        "wrong key": ["Permission denied"],
        "unknown host key": ["Host key verification failed"],
        "changed host key": ["Host key verification failed"],
    }.items():
        for run in (stock, ours):
            assert all(word in run.one(task)["result"]["msg"] for word in words), (task, run.one(task))
    assert "churten: RUN" in ours.text


def test_transports(play):
    text = tasks("- command: echo {{ 6 * 7 }}\n  name: t\n- copy: {content: x, dest: ~/x}")
    for transport in ("libssh", "ssh"):
        run = play(text, "churten.core.ssh", "-vvv", ansible_churten_transport=transport)
        assert run.one("t")["result"]["stdout"] == "42", run.text[-3000:]
        assert f"on agent 0 ({transport})" in run.text
    run = play(text, "churten.core.ssh", "-vvv", ansible_churten_transport="stock")
    assert run.one("t")["result"]["stdout"] == "42"
    assert "churten_transport is stock" in run.text and "churten: RUN" not in run.text
    run = play(
        text,
        "churten.core.ssh",
        "-l",
        "lab001",
        ansible_churten_transport="libssh",
        ansible_ssh_extra_args="-o ForwardAgent=yes",
    )
    assert "needs an OpenSSH client" in run.one("t")["result"]["msg"]


def test_pipelining_is_on_but_can_be_switched_off(play, tmp_path):
    (tmp_path / "empty.cfg").write_text("")
    text = tasks("- command: echo {{ 6 * 7 }}\n  name: t")
    on = play(text, "churten.core.ssh", "-vvv", env={"ANSIBLE_CONFIG": str(tmp_path / "empty.cfg")})
    assert "churten: RUN" in on.text and on.rc == 0, on.text[-3000:]
    for name, value in {"ANSIBLE_PIPELINING": "0", "ANSIBLE_KEEP_REMOTE_FILES": "1"}.items():
        off = play(text, "churten.core.ssh", "-vvv", env={name: value})
        assert "churten: RUN" not in off.text and off.one("t")["result"]["stdout"] == "42", off.text[-3000:]


@pytest.mark.row("E17")
def test_no_pool(play, tmp_path):
    (tmp_path / "public").mkdir(mode=0o755)
    run = play(
        tasks("- command: echo {{ 6 * 7 }}\n  name: t\n  run_once: true"),
        "churten.core.ssh",
        env={"CHURTEN_POOL_DIR": str(tmp_path / "public")},
    )
    assert run.one("t")["result"]["stdout"] == "42"
    assert "connections are not accelerated" in run.text


LOCAL = """
- hosts: localhost
  gather_facts: false
  tasks:
    - shell: pwd; umask; ulimit -n; env | sort | grep -v '^_='; id; tty; ps -o sid= -p $$ >/dev/null
      failed_when: false
      environment: {A: b}
    - command: echo {{ item }}
      loop: [1, 2]
    - command: /nonexistent
      ignore_errors: true
    - copy: {content: x, dest: "{{ out }}/local-copy"}
    - stat: {path: "{{ out }}/local-copy"}
    - raw: echo $$ >/dev/null; pwd
    - file: {path: "{{ out }}/local-copy", state: absent}
    - command: id -un
      become: true
      become_user: nobody
      vars: {ansible_python_interpreter: /usr/bin/python3}
"""


@needs_root
def test_local(play):
    env = {"PYTEST_CURRENT_TEST": ""}
    stock = play(LOCAL, "local", env=env)
    ours = play(LOCAL, "churten.core.local", "-vvv", env=env)
    assert_same(stock, ours)
    assert "churten: RUN ansible.modules.command on agent 0 (local)" in ours.text
    assert "churten: RUN ansible.modules.command on agent 1 (local)" in ours.text


@pytest.mark.parametrize("plugin", ["ssh", "local"])
def test_documentation(collections, plugin):
    """Every option of the installed core's own plugin, and ours; found without a compiled extension."""
    code = "import sys; sys.modules['churten._core'] = None; from ansible.cli.doc import main; main()"
    env = {
        **os.environ,
        "ANSIBLE_COLLECTIONS_PATH": collections,
        "PYTHONPATH": str(ROOT) + os.pathsep + os.environ.get("PYTHONPATH", ""),
    }
    found = {}
    for name in (plugin, f"churten.core.{plugin}"):
        words = [sys.executable, "-c", code, "-j", "-t", "connection", name]
        done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60, cwd=PLAYBOOK.parent)
        found[name] = next(iter(json.loads(done.stdout).values()))["doc"]["options"]
    theirs, ours = found.values()
    assert set(ours) - set(theirs) == {"churten_transport", "churten_become", "churten_standing"}
    for name, option in theirs.items():
        for kind in ("ini", "env", "vars", "type", "choices"):
            got, want = ours[name].get(kind), option.get(kind)
            if isinstance(want, list):
                got, want = [[_plain(e) for e in v] for v in (got, want)]
            assert got == want, (name, kind)
        assert ours[name].get("default") == (True if name == "pipelining" else option.get("default"))


def _plain(entry):
    return {k: v for k, v in entry.items() if not k.startswith("version_added")} if isinstance(entry, dict) else entry
