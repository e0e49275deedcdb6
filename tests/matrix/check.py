# SPDX-License-Identifier: GPL-3.0-or-later
"""Run by the Python of one core line: everything of churten imports, the adapter fits, and what fibers share with the controller is what they may."""

import importlib
import pkgutil

from ansible.parsing.yaml import objects
from ansible.playbook.block import Block
from ansible.playbook.play_context import PlayContext
from ansible.playbook.task import Task

import churten
from churten import _core, compat
from churten.compat import base
from churten.executor import strategy


def modules_import():
    others = {"core_218", "core_219", "core_222", "line_219", "modules_218", "modules_219", "templating", "compiled", "alarms"}
    for found in pkgutil.walk_packages(churten.__path__, "churten."):
        if found.name.rpartition(".")[2] not in others:
            importlib.import_module(found.name)


def adapter_fits():
    adapter = compat.adapter()
    assert isinstance(adapter, base.Adapter)
    assert strategy.FreeFiberStrategy


def variables_are_isolated():
    shared = objects.AnsibleUnicode("text") if compat.core_version() < (2, 19) else "text"
    source = objects.AnsibleMapping({"list": objects.AnsibleSequence([shared, {"deep": [1]}])})
    if compat.core_version() < (2, 19):
        from ansible.utils.native_jinja import NativeJinjaText
        from ansible.utils.unsafe_proxy import AnsibleUnsafeText, wrap_var

        source.ansible_pos = ("file.yml", 3, 4)
        source["vault"] = objects.AnsibleVaultEncryptedUnicode(b"$ANSIBLE_VAULT;1.1;AES256\n00")
        source["native"], source["unsafe"] = NativeJinjaText("n"), wrap_var({"key": ["value"]})
    copy = _core.isolate(source)
    assert type(copy) is type(source) and type(copy["list"]) is type(source["list"])
    assert copy is not source and copy["list"] is not source["list"] and copy["list"][1]["deep"] is not source["list"][1]["deep"]
    assert copy["list"][0] is source["list"][0]
    if compat.core_version() < (2, 19):
        assert copy.ansible_pos == ("file.yml", 3, 4)
        assert copy["vault"] is source["vault"] and copy["native"] is source["native"]
        assert type(copy["unsafe"]["key"][0]) is AnsibleUnsafeText and copy["unsafe"]["key"] is not source["unsafe"]["key"]
        copy.ansible_pos = ("other.yml", 1, 1)
        assert source.ansible_pos == ("file.yml", 3, 4)


def play_objects_are_isolated():
    adapter = compat.adapter()
    outer, inner, task = Block(), Block(), Task()
    task._parent, inner._parent, outer.name = inner, outer, "{{ name }}"
    mine = adapter.fiber_task(task)
    mine._parent._parent.name = "changed"
    mine._parent._finalized = True
    assert outer.name == "{{ name }}" and not inner._finalized and mine._uuid == task._uuid
    context = PlayContext()
    adapter.fiber_play_context(context).connection = "other"
    assert context.connection != "other"


for step in (modules_import, adapter_fits, variables_are_isolated, play_objects_are_isolated):
    step()
    print(step.__name__, "ok")
