"""`PlayContext.set_task_and_variable_override` without core's detours while one of our strategies runs: it is called twice for each task and host.

What it sets are keywords of a fresh copy. Core sets each through a descriptor that makes up the name of its place, and goes on through the variables of a
keyword that is settled. Here they are put into the copy's `__dict__`. Tasks that are delegated take core's way, and so does everything if core's function does
not look as it is known to.
"""

from __future__ import annotations

import contextlib
import types
import typing as t

from ansible import constants as C
from ansible.playbook import play_context
from ansible.playbook.play_context import PlayContext

from .keywords import keyword_places

_STOCK: t.Any = PlayContext.set_task_and_variable_override

_NAMES = set(
    "C DEFAULT_REMOTE_PORT DEFAULT_TRANSPORT LOCALHOST MAGIC_VARIABLE_MAPPING TASK_ATTRIBUTE_OVERRIDES append check_mode connection connection_user copy debug "
    "delegate_to dict diff display get getattr int isinstance items len port remote_addr remote_user setattr warning".split()
)
_KNOWN = (_NAMES, _NAMES | {"template"})  # from 2.19; to 2.18


def is_known() -> bool:
    """Whether the running core's function is the one that is stood for."""
    return set(_STOCK.__code__.co_names) in _KNOWN and _STOCK.__code__.co_argcount == 4


def _override(self: t.Any, task: t.Any, variables: t.Any, templar: t.Any) -> t.Any:
    places = keyword_places(type(self))
    if task.delegate_to is not None or places is None:
        return _STOCK(self, task, variables, templar)
    new_info = self.copy()
    held = new_info.__dict__

    def put(name: str, value: t.Any) -> None:
        if name in places:
            for place in places[name]:
                held[place] = value
        else:
            setattr(new_info, name, value)

    for name in play_context.TASK_ATTRIBUTE_OVERRIDES:
        value = getattr(task, name, None)
        if value is not None:
            put(name, value)
    mapping = C.MAGIC_VARIABLE_MAPPING
    for variable in mapping.get("executable"):
        if variable in variables:
            put("executable", variables.get(variable))
    for name, names in mapping.items():
        for variable in names:
            if variable in variables:
                put(name, variables[variable])
                break
    if new_info.port is None and C.DEFAULT_REMOTE_PORT is not None:
        new_info.port = int(C.DEFAULT_REMOTE_PORT)
    if new_info.connection == "local" and not new_info.connection_user:
        new_info.connection_user = new_info.remote_user
    if new_info.remote_addr == "inventory_hostname":
        return _STOCK(self, task, variables, templar)  # which has something to say about it
    if task.check_mode is not None:
        put("check_mode", task.check_mode)
    if task.diff is not None:
        put("diff", task.diff)
    return new_info


@contextlib.contextmanager
def quick_overrides() -> t.Iterator[None]:
    """While active, play contexts learn from tasks and variables in one go."""
    if PlayContext.set_task_and_variable_override is not _STOCK or not is_known():
        yield
        return
    PlayContext.set_task_and_variable_override = _override  # type: ignore[method-assign]
    try:
        yield
    finally:
        PlayContext.set_task_and_variable_override = t.cast(types.FunctionType, _STOCK)  # type: ignore[method-assign]
