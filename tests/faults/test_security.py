# SPDX-License-Identifier: GPL-3.0-or-later
"""Secrets, other users, hostile data: what docs/security.md promises, on real plays and a real pool."""

import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from runs import ROOT, read_proc

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
NOBODY = 65534
PING_PLAY = "- hosts: lab\n  gather_facts: false\n  tasks:\n    - ping:\n"


class Sampler(threading.Thread):
    """Command lines and environments of all processes, many times a second: which canaries were there."""

    def __init__(self, canaries, but):
        super().__init__(daemon=True)
        self.canaries, self.but = canaries, but
        self.found, self.samples = set(), 0
        self._stop_it = threading.Event()

    def run(self):
        me = str(os.getpid())
        while not self._stop_it.wait(0.01):
            self.samples += 1
            for entry in os.listdir("/proc"):
                if not entry.isdigit() or entry == me:
                    continue
                for name in ("cmdline", "environ"):
                    data = read_proc(entry, name)
                    for what, canary in self.canaries.items():
                        if canary.encode() in data and (what, name) not in self.but:
                            self.found.add((what, name, read_proc(entry, "cmdline").replace(b"\0", b" ")[:300]))

    def stop(self):
        self._stop_it.set()
        self.join()
        return self.found


SECRETS = """
- hosts: lab
  gather_facts: false
  vars:
    ansible_ssh_password: "{{ ssh_password }}"
  tasks:
    - name: arguments
      command: echo {{ no_log_argument }}
      no_log: true
      register: kept
    - name: loop
      command: echo {{ item }}
      no_log: true
      loop: ["{{ no_log_item }}"]
    - name: stdin
      command: {cmd: cat, stdin: "{{ no_log_stdin }}"}
      no_log: true
    - name: content
      copy: {content: "{{ no_log_content }}", dest: "/tmp/churten-f4-{{ inventory_hostname }}-{{ mark }}"}
      no_log: true
    - name: gone
      file: {path: "/tmp/churten-f4-{{ inventory_hostname }}-{{ mark }}", state: absent}
    - name: environment
      command: "true"
      environment: {TOKEN: "{{ no_log_environment }}"}
      no_log: true
    - name: vault
      command: {cmd: cat, stdin: "{{ vaulted }}"}
      no_log: true
    - name: parameter that is secret by its module
      uri: {url: "http://127.0.0.1:1/", url_username: me, url_password: "{{ module_password }}", timeout: 2}
      ignore_errors: true
    - name: fails under no_log
      command: "false {{ no_log_failure }}"
      no_log: true
      ignore_errors: true
    - name: crashes under no_log
      command: {cmd: cat, stdin: "{{ no_log_crash }}", chdir: /nonexistent}
      no_log: true
      ignore_errors: true
    - name: raw
      raw: "printf %s {{ no_log_raw }} >/dev/null"
      vars: {ansible_ssh_use_tty: false}  # with a terminal it goes the stock way, which prints the command
      no_log: true
    - name: fork
      hush: text={{ no_log_fork }}
      no_log: true
- hosts: lab001
  gather_facts: false
  vars: {ansible_user: "{{ lab_asking_user }}", ansible_become_password: "{{ lab_password }}"}
  tasks:
    - name: become
      command: id -un
      become: true
    - name: wrong become password
      command: id -un
      become: true
      vars: {ansible_become_password: "{{ wrong_become_password }}"}
      ignore_errors: true
"""
HUSH = {
    "action_plugins/hush.py": "from ansible.plugins.action import ActionBase\nclass ActionModule(ActionBase):\n"
    "    def run(self, tmp=None, task_vars=None):\n        return {'said': self._task.args['text']}\n"
}
SLOTS = [
    "ssh_password", "no_log_argument", "no_log_item", "no_log_stdin", "no_log_content", "no_log_environment", "vaulted", "module_password",
    "no_log_failure", "no_log_crash", "no_log_raw", "no_log_fork", "wrong_become_password", "vault_password",
]  # fmt: skip
# What the play itself asks for: a command has its words and its environment.
ALLOWED = {
    ("no_log_argument", "cmdline"),
    ("no_log_item", "cmdline"),
    ("no_log_failure", "cmdline"),
    ("no_log_raw", "cmdline"),
    ("no_log_environment", "environ"),
}


@pytest.mark.row("F4")
@root
@pytest.mark.parametrize("become", ["auto", "stock"])
def test_secrets_are_nowhere_else(bench, become):
    """A canary in every slot, -vvvvv, every log there is on; all of /proc watched meanwhile, all that was written searched afterwards."""
    canaries = {slot: "canary" + secrets.token_hex(12) for slot in SLOTS}
    canaries["lab_password"] = bench.lab.password
    box = bench.top / "secret"
    box.mkdir(mode=0o700)
    (box / "vault").write_text(canaries["vault_password"])
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible-vault"), "encrypt_string", "--vault-password-file", box / "vault", "--stdin-name", "vaulted"],
        input=canaries["vaulted"], capture_output=True, text=True, check=True,
    )  # fmt: skip
    (box / "vars.yml").write_text(
        "".join(f"{k}: {v}\n" for k, v in canaries.items() if k not in ("vaulted", "vault_password", "lab_password"))
        + done.stdout
    )
    places = {name: bench.top / name for name in ("ansible.log", "pool.log", "timings.jsonl", "workers.log", "cache")}
    env = {
        "ANSIBLE_LOG_PATH": str(places["ansible.log"]),
        "CHURTEN_POOL_LOG": str(places["pool.log"]),
        "CHURTEN_POOL_LOG_LEVEL": "debug",
        "ANSIBLE_CALLBACKS_ENABLED": "churten.core.timings",
        "CHURTEN_TIMINGS_LOG": str(places["timings.jsonl"]),
        "CHURTEN_WORKER_LOG": str(places["workers.log"]),
        "ANSIBLE_CACHE_PLUGIN": "churten.core.jsonfile",
        "ANSIBLE_CACHE_PLUGIN_CONNECTION": str(places["cache"]),
    }
    before = set(os.listdir("/tmp"))
    sampler = Sampler(canaries, ALLOWED)
    sampler.start()
    mark = secrets.token_hex(4)
    words = ["-vvvvv", "-e", f"@{box}/vars.yml", "--vault-password-file", str(box / "vault")]
    run = bench.play(SECRETS, *words, before=HUSH, env=env, mark=mark, ansible_churten_become=become)
    found = sampler.stop()
    assert run.rc == 0, run.text[-3000:]
    assert sampler.samples > 20
    assert not found
    assert "arguments" in places["timings.jsonl"].read_text() and places["pool.log"].stat().st_size
    assert canaries["no_log_fork"] not in run.text
    written = [
        run.log,
        *places.values(),
        Path(bench.pool_dir),
        bench.top / "home",
        *(Path("/tmp") / name for name in set(os.listdir("/tmp")) - before),
    ]
    for place in written:
        for path in [place, *place.rglob("*")] if place.is_dir() else [place]:
            if path.is_file() and not path.is_relative_to(box):
                data = path.read_bytes()
                assert [what for what, canary in canaries.items() if canary.encode() in data] == [], path
    status = json.dumps(bench.status())
    assert [what for what, canary in canaries.items() if canary in status] == []


@pytest.mark.row("F5")
@root
def test_nobody_looks_into_the_pool_of_an_account():
    """No core files; its memory, environment and open files are closed to other processes of the same account."""
    with tempfile.TemporaryDirectory(prefix="ch") as top:
        os.chmod(top, 0o755)
        directory = Path(top) / "d"
        directory.mkdir(mode=0o700)
        os.chown(directory, NOBODY, NOBODY)
        executable = Path(top) / "churten-pool"
        executable.write_bytes((ROOT / "churten" / "churten-pool").read_bytes())
        executable.chmod(0o755)
        ready, told = os.pipe()
        drop = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        process = subprocess.Popen(
            [executable, "--dir", directory, "--foreground", "--ready-fd", str(told)], pass_fds=[told], cwd="/", **drop
        )
        os.close(told)
        try:
            assert os.read(ready, 1) == b"R"
            script = (
                "for name in mem environ maps; do head -c 1 /proc/$0/$name >/dev/null 2>&1 && echo open $name; done; "
                "ls /proc/$0/fd >/dev/null 2>&1 && echo fds; echo done"
            )
            done = subprocess.run(
                ["/bin/sh", "-c", script, str(process.pid)], capture_output=True, text=True, cwd="/", **drop
            )
            assert done.stdout == "done\n"
            assert re.search(r"Max core file size\s+0 ", read_proc(process.pid, "limits").decode())
        finally:
            os.close(ready)
            process.kill()
            process.wait()
