"""Modules without their wrapper: for a fiber over a warm agent the 200 KB program text need not be built again for every task.

Core builds, for each task, a program that contains the module's archive (base64) and its parameters; our connection takes it apart again to send key and
parameters to the agent. The first build of a module is core's own, taken apart once; from then on only what depends on the host and the task is
computed, with core's own functions: interpreter, file limit, parameters, secrets. The program itself is built only if the connection must go the stock way.

What these functions are called differs: `modules_218.py` is for core 2.16 to 2.18, `modules_219.py` for 2.19 and later.
"""

from __future__ import annotations

import abc
import contextlib
import contextvars
import dataclasses
import os
import sys
import typing as t

import ansible.modules
import ansible.plugins.action
from ansible import constants as C
from ansible.executor import module_common

from churten import waiting
from churten.transport.payload import Module, ModuleCall, program, recognise

_action: contextvars.ContextVar[t.Any] = contextvars.ContextVar("churten_action", default=None)
_job: contextvars.ContextVar[t.Any] = contextvars.ContextVar("churten_job", default=None)  # the action that starts a job which an agent may make
# Core 2.18 and earlier give the first arguments of modify_module by position.
_POSITIONAL = ("module_name", "module_path", "module_args", "templar")
_STAT = ("ansible.legacy.stat", os.path.join(os.path.dirname(ansible.modules.__file__), "stat.py"))
# What `_execute_remote_stat` asks the module for. These actions of core read of its answer whether the file exists, is a directory or a link, and its checksum;
# for its type and attributes, which nobody reads, the module would run two programs (`file`, `lsattr`).
_LOOK = frozenset({"path", "follow", "get_checksum", "checksum_algorithm"})
_LOOKS = (_LOOK, _LOOK | {"get_size"})  # 2.16; 2.17 and later
_LOOKERS = frozenset(os.path.join(os.path.dirname(ansible.plugins.action.__file__), f"{name}.py") for name in ("assemble", "copy", "fetch", "unarchive"))
_UNREAD = {"get_mime": False, "get_attributes": False}


@dataclasses.dataclass(frozen=True)
class Known:
    """What does not change between two builds of one module."""

    source: tuple[int, int, int]  # inode, size, mtime of the module's file
    interpreter: str  # as its shebang line says
    arguments: t.Sequence[str]
    module: Module
    built: t.Any  # what the line's builder keeps of core's first build


class ModuleBuilder(abc.ABC):
    """Stands for `modify_module` inside core's action plugins."""

    def __init__(self, stock: t.Callable[..., t.Any]) -> None:
        self.stock = stock
        self._known: dict[tuple[str, str, str], Known | None] = {}

    def __call__(self, *args: t.Any, **kwargs: t.Any) -> t.Any:
        kwargs |= zip(_POSITIONAL, args, strict=False)
        action = _action.get()
        if action is None or waiting.current() is None or not _goes_to_an_agent(action):
            return self.stock(**kwargs)
        key = (kwargs["module_name"], kwargs["module_path"], kwargs.get("module_compression", "ZIP_STORED"))
        known = self._known.get(key)
        if known is None:
            if key in self._known:
                return self.stock(**kwargs)
            return self._learn(key, kwargs)
        if known.source != _identity(key[1]) or not self.is_plain(kwargs):
            return self.stock(**kwargs)
        if key[:2] == _STAT and _is_a_look(action, kwargs["module_args"]):
            kwargs["module_args"] = kwargs["module_args"] | _UNREAD
        return self.light(known, kwargs)

    def _learn(self, key: tuple[str, str, str], kwargs: dict[str, t.Any]) -> t.Any:
        """Core's own build, remembered if it is of the kind that agents run. It takes a while: the host is connected to meanwhile."""
        _action.get()._connection.begin()
        source = _identity(key[1])
        built = self.stock(**kwargs)
        known = None
        text, rest = self.parts(built)
        if text is not None and (call := ModuleCall.from_wrapper(text)) is not None:
            with open(key[1], "rb") as file:
                interpreter, arguments = module_common._extract_interpreter(file.read())
            known = Known(source, interpreter or "/usr/bin/python", arguments, call.module, rest)
        self._known[key] = known
        return built

    @abc.abstractmethod
    def parts(self, built: t.Any) -> tuple[bytes | None, t.Any]:
        """The program inside what core built (None if it is no new-style module), and what `light` needs of the rest."""

    @abc.abstractmethod
    def light(self, known: Known, kwargs: dict[str, t.Any]) -> t.Any:
        """What core's build would contain for these arguments, with a ModuleCall in place of the program."""

    def is_plain(self, kwargs: dict[str, t.Any]) -> bool:
        """Whether core would put nothing else into the program."""
        return True


def _identity(path: str) -> tuple[int, int, int]:
    status = os.stat(path)
    return status.st_ino, status.st_size, status.st_mtime_ns


def _goes_to_an_agent(action: t.Any) -> bool:
    """Whether the connection is ours and will get the module through `in_data`."""
    if not getattr(action._connection, "takes_module_calls", False) or (action._task.async_val and _job.get() is not action):
        return False
    return bool(action._is_pipelining_enabled("new", wrap_async=False))


def _may_hold(action: t.Any) -> bool:
    """Whether what starts this action's job may be held back: an agent may start it, and nobody else is to find the files on the target."""
    return (
        waiting.current() is not None
        and getattr(action._connection, "takes_jobs", False)
        and not C.DEFAULT_KEEP_REMOTE_FILES
        and not action._is_become_unprivileged()
        and bool(action._is_pipelining_enabled("new", wrap_async=False))
    )


def _is_a_look(action: t.Any, args: dict[str, t.Any]) -> bool:
    """Whether one of core's own actions looks at a file."""
    if getattr(sys.modules.get(type(action).__module__), "__file__", None) not in _LOOKERS:
        return False
    return {name for name in args if not name.startswith("_ansible_")} in _LOOKS


@contextlib.contextmanager
def light_modules(builder: type[ModuleBuilder]) -> t.Iterator[None]:
    """While active, core's action plugins build modules through `builder`."""
    actions = ansible.plugins.action
    stock_modify, stock_configure = actions.modify_module, actions.ActionBase._configure_module
    stock_transfer, stock_permit = actions.ActionBase._transfer_data, actions.ActionBase._fixup_perms2
    stock_execute = actions.ActionBase._execute_module

    def configure(self: t.Any, *args: t.Any, **kwargs: t.Any) -> t.Any:
        token = _action.set(self)
        try:
            return stock_configure(self, *args, **kwargs)
        finally:
            _action.reset(token)

    def execute(self: t.Any, *args: t.Any, **kwargs: t.Any) -> t.Any:
        if not kwargs.get("wrap_async") or not _may_hold(self):
            return stock_execute(self, *args, **kwargs)
        token = _job.set(self)
        try:
            return stock_execute(self, *args, **kwargs)
        finally:
            _job.reset(token)
            self._connection.drop_held()

    def transfer(self: t.Any, remote_path: t.Any, data: t.Any) -> t.Any:
        # An action plugin may start a module as an asynchronous job though its task is none (gather_facts with several modules): it becomes a file.
        def step() -> t.Any:
            return stock_transfer(self, remote_path, program(data) if isinstance(data, bytes) else data)

        module = recognise(data) if _job.get() is self and isinstance(data, bytes) else None
        if module is None:
            return step()
        self._connection.hold(remote_path, module, str(self._used_interpreter).removeprefix("#!").strip(), step)
        return remote_path

    def permit(self: t.Any, remote_paths: t.Any, *args: t.Any, **kwargs: t.Any) -> t.Any:
        def step() -> t.Any:
            return stock_permit(self, remote_paths, *args, **kwargs)

        if _job.get() is self and self._connection.hold_permission(remote_paths, step):
            return remote_paths
        return step()

    actions.modify_module = builder(stock_modify)  # type: ignore[attr-defined]
    actions.ActionBase._transfer_data = transfer  # type: ignore[method-assign]
    actions.ActionBase._configure_module = configure  # type: ignore[method-assign]
    actions.ActionBase._fixup_perms2, actions.ActionBase._execute_module = permit, execute  # type: ignore[method-assign]
    try:
        yield
    finally:
        actions.ActionBase._fixup_perms2, actions.ActionBase._execute_module = stock_permit, stock_execute  # type: ignore[method-assign]
        actions.ActionBase._configure_module = stock_configure  # type: ignore[method-assign]
        actions.ActionBase._transfer_data = stock_transfer  # type: ignore[method-assign]
        actions.modify_module = stock_modify  # type: ignore[attr-defined]
