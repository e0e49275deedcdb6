# SPDX-License-Identifier: GPL-3.0-or-later
"""Which modules of a play may run in the process of the one before (transport/payload.py: _Zip.stays), over lab hosts.

What such a process is: tests/native/test_agent_standing.py.
"""

from pathlib import Path

import pytest

PLAY = """
- hosts: lab001
  gather_facts: false
  tasks:
    - {name: commands, shell: echo $PPID, loop: [1, 2, 3, 4, 5], register: ran}
    - {name: with rights, shell: echo $PPID, loop: [1, 2, 3, 4, 5], become: true}
    - {name: in its own environment, shell: echo $PPID, environment: {A: b}, loop: [1, 2, 3, 4]}
    - {name: refused, shell: echo $PPID, loop: [1, 2, 3, 4], vars: {ansible_churten_standing: false}}
    - {name: not core's own, ping: , loop: [1, 2, 3, 4]}
    - {name: core's own after it, shell: echo $PPID, loop: [1, 2]}
"""
OTHER = """#!/usr/bin/python
import os
from ansible.module_utils.basic import AnsibleModule
module = AnsibleModule(argument_spec={})
module.exit_json(stdout=str(os.getpid()))
"""


@pytest.mark.parametrize("strategy", ["churten.core.linear", "linear"])
def test_who_runs_in_the_same_process(play, tmp_path, strategy):
    (tmp_path / "ping.py").write_text(OTHER)
    run = play(PLAY, "churten.core.ssh", env={"ANSIBLE_STRATEGY": strategy, "ANSIBLE_LIBRARY": str(tmp_path)})
    assert run.rc == 0, run.text

    def processes(task):
        return [item["stdout"] for item in run.one(task)["result"]["results"]]

    first = processes("commands")
    # The first may go out before the target's Python is known, with code for another one; of the payload for the right one the first run teaches the
    # agent what is imported, and the child of the second may run it again.
    assert len(set(first[2:])) == 1
    assert len(set(processes("with rights")[2:])) == 1 and not set(processes("with rights")) & set(first)
    assert len(set(processes("in its own environment")[2:])) == 1
    assert len(set(processes("refused"))) == 4
    assert len(set(processes("not core's own"))) == 4
    assert processes("core's own after it")[1:] == first[-1:]


def test_an_archive_with_another_file_is_not_cores(tmp_path):
    """As a play's own module_utils would make it."""
    import io
    import zipfile

    import ansible

    from churten.transport.payload import _Zip

    root = Path(ansible.__file__).parent.parent
    names = ["ansible/modules/ping.py", "ansible/module_utils/basic.py", "ansible/module_utils/common/text/converters.py"]

    def archive(**changed):
        data = io.BytesIO()
        with zipfile.ZipFile(data, "w") as file:
            file.writestr("ansible/__init__.py", "made by core")
            for name in names:
                file.writestr(name, (root / name).read_bytes() + changed.get(name.rpartition("/")[2].partition(".")[0], b""))
            for name, text in changed.items():
                if name.startswith("ansible"):
                    file.writestr(name, text)
        return _Zip(data.getvalue())

    assert archive().stays("ansible.modules.ping")
    assert not archive().stays("ansible.modules.setup")
    assert not archive().stays("ansible.legacy.ping")
    assert not archive(converters=b"\n").stays("ansible.modules.ping")
    assert not archive(ping=b"\n").stays("ansible.modules.ping")
    assert not archive(**{"ansible/module_utils/more.py": b""}).stays("ansible.modules.ping")
