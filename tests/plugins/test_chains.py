# SPDX-License-Identifier: GPL-3.0-or-later
"""Actions whose requests go out ahead (churten/compat/chains.py), over lab hosts: round trips, full disks, connections that break amid a chain.

What results they have is in the differential plays 85 and 86, what agents do with chains in tests/native/test_agent_chains.py.
"""

import json
import os
import re
import subprocess
import threading
import time

import pytest
from lab_plays import assert_same

from churten.lab.chaos import Chaos

WARM = """
- hosts: lab001
  gather_facts: false
  tasks:
    - {name: warm up, copy: {content: "0", dest: "{{ lab_dir }}/chain"}}
    - {name: and again, copy: {content: "0", dest: "{{ lab_dir }}/chain"}}
    - {name: and with rights, copy: {content: "0", dest: "{{ lab_dir }}/chain"}, become: true}
    - {name: command, command: "true"}
    - {name: changed copy, copy: {content: "1", dest: "{{ lab_dir }}/chain"}}
    - {name: unchanged copy, copy: {content: "1", dest: "{{ lab_dir }}/chain"}}
    - {name: changed template, template: {src: "{{ out }}/t.j2", dest: "{{ lab_dir }}/chained"}}
    - {name: changed folder, copy: {src: "{{ out }}/tree/", dest: "{{ lab_dir }}/chained-tree/"}}
    - {name: copy with rights, copy: {content: "2", dest: "{{ lab_dir }}/chain"}, become: true}
    - {name: refused copy, copy: {content: "3", dest: "{{ lab_dir }}/chain", validate: "false %s"}, ignore_errors: true}
    - {name: left, command: find .ansible/tmp -mindepth 1, args: {chdir: "~"}}
"""
FIBERS = {"ANSIBLE_STRATEGY": "churten.core.linear"}


def test_round_trips(play, tmp_path):
    """One to look, one to write: for a file of a folder, too."""
    (tmp_path / "t.j2").write_text("{{ inventory_hostname }}\n")
    (tmp_path / "tree").mkdir()
    for name in ("a", "b", "c"):
        (tmp_path / "tree" / name).write_text(name)
    waits = tmp_path / "waits"
    env = {**FIBERS, "ANSIBLE_CALLBACKS_ENABLED": "churten_results,churten_waits", "CHURTEN_WAITS": str(waits)}
    run = play(WARM, "ssh", env=env)
    assert run.rc == 0, run.text
    counted = dict(json.loads(line) for line in waits.read_text().splitlines())
    expected = {"command": 1, "changed copy": 2, "unchanged copy": 2, "changed template": 2, "copy with rights": 2, "refused copy": 2}
    expected["changed folder"] = 3 * 2 + 1  # and one to remove the temporary folder
    assert {name: counted[name] for name in expected} == expected
    assert run.one("left")["result"]["stdout"] == ""
    assert [line["task"] for line in run.results if line["status"] == "failed"] == ["refused copy"]


FULL = """
- hosts: lab001
  gather_facts: false
  tasks:
    - {name: warm up, copy: {content: "0", dest: "{{ lab_dir }}/chain"}}
    - {name: fits, copy: {src: "{{ out }}/small", dest: "{{ lab_dir }}/chain"}, vars: {ansible_remote_tmp: "{{ where }}/tmp"}, ignore_unreachable: true}
    - {name: does not fit, copy: {src: "{{ out }}/big", dest: "{{ lab_dir }}/chain"}, vars: {ansible_remote_tmp: "{{ where }}/tmp"},
       ignore_errors: true, ignore_unreachable: true}
    - {name: left, shell: "ls -A {{ where }} {{ where }}/tmp 2>&1; cat {{ lab_dir }}/chain"}
"""


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small filesystem")
@pytest.mark.parametrize("kind", ["full", "read-only"])
def test_no_room_for_what_was_sent_ahead(play, lab, tmp_path, kind):
    where = lab.dir / "hosts" / "lab001" / "ahead"
    where.mkdir(exist_ok=True)
    (tmp_path / "big").write_bytes(bytes(900_000))
    (tmp_path / "small").write_text("small")
    runs = []
    for env in ({"ANSIBLE_STRATEGY": "linear"}, FIBERS):
        (lab.dir / "hosts" / "lab001" / "chain").unlink(missing_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k,mode=777", "tmpfs", str(where)], check=True)
        try:
            if kind == "read-only":
                subprocess.run(["mount", "-o", "remount,ro", str(where)], check=True)
            runs.append(play(FULL, "ssh", "-vvv", env=env, where=str(where)))
        finally:
            for _ in range(100):
                if subprocess.run(["umount", str(where)], capture_output=True).returncode == 0:
                    break
                time.sleep(0.1)
    for line in runs[0].results + runs[1].results:
        line["result"]["msg"] = re.sub(r"copied, .*", "copied", str(line["result"].get("msg", "")))  # by dd, in so many seconds
    assert_same(*runs)
    assert "churten: once more, step by step" in runs[1].text


CUT = """
- hosts: lab001
  gather_facts: false
  tasks:
    - {name: warm up, copy: {content: "0", dest: "{{ lab_dir }}/cut"}}
    - name: cut
      copy: {content: "1", dest: "{{ lab_dir }}/cut", validate: "sh -c 'echo x >> {{ lab_dir }}/count; until [ -e {{ lab_dir }}/go ]; do sleep 0.1; done' %s"}
      ignore_unreachable: true
    - {name: left, shell: "cat {{ lab_dir }}/count; find ~/.ansible/tmp -mindepth 1"}
"""


@pytest.mark.slow
def test_a_connection_that_breaks_amid_a_chain(play, lab, tmp_path):
    """The module runs once; the host is unreachable; nothing that was to follow is done behind the play's back."""
    host = next(host for host in lab.hosts if host.name == "lab001")
    folder = lab.dir / "hosts" / "lab001"
    known = lab.dir / "known_hosts"
    with Chaos((host.address, host.port), host.address) as proxy:
        inventory = tmp_path / "inventory"
        text = lab.inventory.read_text()
        inventory.write_text(text.replace(f"ansible_port={host.port} lab_dir={folder}\n", f"ansible_port={proxy.port} lab_dir={folder}\n"))
        old = known.read_text()
        known.write_text(old.replace(f"[{host.address}]:{host.port} ", f"[{host.address}]:{proxy.port} ") + old)

        def cut():
            deadline = time.monotonic() + 60
            while not (folder / "count").exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            for link in list(proxy.links):
                link.reset()
            (folder / "go").touch()

        thread = threading.Thread(target=cut)
        thread.start()
        try:
            run = play(CUT, "ssh", "-vvv", env=FIBERS, inventory=str(inventory))
        finally:
            thread.join()
            known.write_text(old)
            for name in ("count", "go"):
                (folder / name).unlink(missing_ok=True)
    assert run.one("cut")["status"] == "unreachable", run.text[-3000:]
    assert run.one("left")["result"]["stdout_lines"] == ["x"], run.text[-3000:]


def test_every_way_to_name_an_action_is_known():
    from types import SimpleNamespace

    from ansible.plugins.loader import action_loader, init_plugin_loader

    from churten.compat import chains

    init_plugin_loader()
    classes = {}
    for name in chains.ACTIONS:
        for shown in (name, f"ansible.builtin.{name}", f"ansible.legacy.{name}"):
            classes[shown] = action_loader.get(shown, class_only=True)
    other = action_loader.get("ansible.builtin.command", class_only=True)
    derived = type("ActionModule", (classes["copy"],), {})
    stock = {action: action.run for action in (*classes.values(), other)}
    walk = classes["copy"].run.__globals__["_walk_dirs"]

    def make(action):
        return action(SimpleNamespace(), SimpleNamespace(), SimpleNamespace(), None, None, None)

    with chains.chained_actions():
        assert not derived.__dict__.get("run")
        for action in (derived, other, *classes.values()):
            make(action)
            make(action)
        assert other.run is stock[other]
        assert not derived.__dict__.get("run")
        assert all(action.run is not stock[action] for action in classes.values())
        assert all(action.run.__wrapped__ is stock[action] for action in classes.values())
        assert classes["copy"].run.__wrapped__.__globals__["_walk_dirs"].__wrapped__ is walk
    assert all(action.run is run for action, run in stock.items())
    assert classes["copy"].run.__globals__["_walk_dirs"] is walk


LOOKS = """
- hosts: lab001
  gather_facts: false
  tasks:
    - copy: {content: "0", dest: "{{ lab_dir }}/looked"}
    - copy: {content: "0", dest: "{{ lab_dir }}/looked"}
    - fetch: {src: "{{ lab_dir }}/looked", dest: "{{ out }}/fetched/", flat: true}
    - {name: asked, stat: {path: "{{ lab_dir }}/looked"}, environment: {PATH: "{{ out }}/bin:/usr/bin:/bin"}}
    - copy: {content: "0", dest: "{{ lab_dir }}/looked"}
      environment: {PATH: "{{ out }}/bin:/usr/bin:/bin"}
    - fetch: {src: "{{ lab_dir }}/looked", dest: "{{ out }}/fetched/", flat: true}
      environment: {PATH: "{{ out }}/bin:/usr/bin:/bin"}
"""


def test_a_look_runs_no_programs(play, tmp_path):
    """What copy and fetch want to know of a file needs neither `file` nor `lsattr`; a task that asks for their answers gets them."""
    (tmp_path / "bin").mkdir()
    for name in ("file", "lsattr"):
        (tmp_path / "bin" / name).write_text(f'#!/bin/sh\necho {name} >> {tmp_path}/ran\nexec /usr/bin/{name} "$@"\n')
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "ran").touch()
    (tmp_path / "ran").chmod(0o666)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    run = play(LOOKS, "ssh", env=FIBERS)
    assert run.rc == 0, run.text
    assert (tmp_path / "ran").read_text().split() == ["file", "lsattr"]
    assert "attr_flags" in run.one("asked")["result"]["stat"]


OWN_STAT = """
import json
from ansible.module_utils.basic import AnsibleModule
module = AnsibleModule(argument_spec=dict(path={}, follow={}, get_checksum={}, checksum_algorithm={}, get_mime=dict(default="not said")))
with open(module.params["path"] + ".stat", "a") as out:
    out.write(module.params["get_mime"] + "\\n")
module.exit_json(stat={"exists": False})
"""
STATS = """
- hosts: lab001
  gather_facts: false
  tasks:
    - {copy: {content: "{{ item }}", dest: "{{ lab_dir }}/own"}, loop: [a, b, c]}
    - {name: said, command: "cat {{ lab_dir }}/own.stat"}
"""


def test_a_stat_of_somebody_elses_is_asked_as_ever(play, tmp_path):
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "stat.py").write_text(OWN_STAT)
    run = play(STATS, "ssh", env=FIBERS)
    assert run.rc == 0, run.text
    assert run.one("said")["result"]["stdout_lines"] == ["not said"] * 3


def test_a_copy_of_a_task_without_those_around_it():
    from ansible.playbook.block import Block
    from ansible.playbook.task import Task

    from churten.compat import chains

    block = Block()
    block.block = [Task(), Task()]
    task = block.block[0]
    task._parent, task.args, task.name = block, {"a": 1}, "named"
    with chains.thin_copies(task):
        thin = task.copy()
    whole = task.copy()
    for copied in (thin, whole):
        assert (copied.args, copied.name, copied._uuid) == (task.args, task.name, task._uuid)
        assert copied.args is not task.args and copied._parent is not block and type(copied._parent) is Block
    assert thin._parent.block[1] is block.block[1] and whole._parent.block[1] is not block.block[1]
    assert "copy" not in vars(task) and "copy" not in vars(thin)
