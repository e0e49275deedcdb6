"""What play contexts learn from tasks and variables, in one go and as core finds it."""

import pytest
from ansible import constants as C
from ansible.playbook.play_context import PlayContext
from ansible.playbook.task import Task
from ansible.template import Templar
from test_keywords import play, state, things  # noqa: F401

from churten import compat
from churten.compat import keywords, overrides, readers

VARIABLES = [
    {},
    {"ansible_host": "10.0.0.1", "ansible_port": 2200, "ansible_user": "u", "inventory_hostname": "h"},
    {"ansible_ssh_host": "a", "ansible_host": "b", "ansible_ssh_port": "1", "ansible_connection": "local", "ansible_shell_executable": "/bin/bash"},
    {"ansible_connection": "local", "ansible_user": "me", "ansible_become": "yes", "ansible_become_user": "{{ b }}", "ansible_become_pass": "p"},
    {"ansible_password": "s", "ansible_ssh_pass": "t", "ansible_shell_type": "sh", "ansible_network_os": "n", "ansible_pipelining": False},
    {"ansible_host": "inventory_hostname", "inventory_hostname": "h"},
]


def test_core_is_known():
    """On every supported line it is in use."""
    assert overrides.is_known()
    stock = PlayContext.set_task_and_variable_override
    with overrides.quick_overrides():
        assert PlayContext.set_task_and_variable_override is overrides._override
    assert PlayContext.set_task_and_variable_override is stock


@pytest.mark.parametrize("variables", VARIABLES)
def test_the_same_as_core(play, variables, monkeypatch):  # noqa: F811
    contexts = [PlayContext(play=play), PlayContext(play=play, passwords={"conn_pass": "c", "become_pass": "b"})]
    contexts[1].remote_addr, contexts[1].remote_user, contexts[1].connection = "x", "y", "local"
    n = 0
    for context in contexts:
        for port in (None, 222):
            monkeypatch.setattr(C, "DEFAULT_REMOTE_PORT", port)
            for task in [one for one in things(play) if isinstance(one, Task)]:
                for own in ({}, {"check_mode": True, "diff": False, "remote_user": "r", "port": 5, "no_log": False, "delegate_to": None}):
                    mine = task.copy()
                    for name, value in own.items():
                        setattr(mine, name, value)
                    mine.squash()
                    templar = Templar(loader=play._loader, variables=variables)
                    stock = context.set_task_and_variable_override(mine, dict(variables), templar)
                    with keywords.quick_copies(), readers.quick_reads(), overrides.quick_overrides():
                        ours = context.set_task_and_variable_override(mine, dict(variables), templar)
                        again = ours.set_task_and_variable_override(mine, dict(variables), templar)
                    assert type(ours) is PlayContext and state(ours) == state(stock), (task, own)
                    assert state(again) == state(stock.set_task_and_variable_override(mine, dict(variables), templar))
                    n += 1
    assert n > 30


def test_copies_are_made_without_constructors_where_these_say_nothing(play, monkeypatch):  # noqa: F811
    """A copy has a `__dict__` of its own, and one that a constructor would have filled in another way is made by it."""
    made = []
    stock = Task.__init__
    with keywords.quick_copies():
        task = Task.load({"command": "/bin/true", "tags": ["a"]}, loader=play._loader)
        task.copy()
        monkeypatch.setattr(Task, "__init__", lambda self, *args, **kwargs: (made.append(1), stock(self, *args, **kwargs))[1])
        first, second = task.copy(), task.copy()
        assert (made == [] or compat.core_version() < (2, 19)) and first.tags is not second.tags and first.__dict__ is not second.__dict__
        assert first._uuid == task._uuid and Task()._uuid != Task()._uuid

        class Own(Task):
            def __init__(self, *args, **kwargs):
                super().__init__(*args, **kwargs)
                self.more = []

        own = Own().copy()
        assert own.more == []
