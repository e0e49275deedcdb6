"""Modules without their wrapper: for a fiber over a warm agent the 200 KB program text need not be built again for every task.

Core builds, for each task, a program that contains the module's archive (base64) and its parameters; our connection takes it apart again to send key and
parameters to the agent. The first build of a module is core's own, taken apart once; from then on only what depends on the host and the task is
computed, with core's own functions: interpreter, file limit, parameters, secrets. The program itself is built only if the connection must go the stock way.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import inspect
import json
import os
import typing as t

import ansible.plugins.action
from ansible import constants as C
from ansible._internal._ansiballz import _builder
from ansible._internal._templating._engine import TemplateOptions
from ansible.errors import AnsibleError
from ansible.executor import module_common
from ansible.module_utils.common.json import Direction, get_module_encoder

from churten import waiting
from churten.transport.payload import Module, ModuleCall

_action: contextvars.ContextVar[t.Any] = contextvars.ContextVar("churten_action", default=None)


@dataclasses.dataclass(frozen=True)
class _Known:
    """What does not change between two builds of one module."""

    source: tuple[int, int, int]  # inode, size, mtime of the module's file
    interpreter: str  # as its shebang line says
    arguments: t.Sequence[str]
    module: Module
    built: t.Any  # core's _BuiltModule of the first build, without the program


class ModuleBuilder:
    """Stands for `modify_module` inside core's action plugins."""

    def __init__(self, stock: t.Callable[..., t.Any]) -> None:
        self._stock = stock
        self._known: dict[tuple[str, str, str], _Known | None] = {}
        self._shebang_parameters = set(inspect.signature(module_common._get_shebang).parameters)

    def __call__(self, **kwargs: t.Any) -> t.Any:
        action = _action.get()
        if action is None or waiting.current() is None or not _goes_to_an_agent(action):
            return self._stock(**kwargs)
        key = (kwargs["module_name"], kwargs["module_path"], kwargs.get("module_compression", "ZIP_STORED"))
        known = self._known.get(key)
        if known is None:
            if key in self._known:
                return self._stock(**kwargs)
            return self._learn(key, kwargs)
        if known.source != _identity(key[1]) or _builder.ExtensionManager.create(task_vars=kwargs["task_vars"]).extension_names:
            return self._stock(**kwargs)
        return self._light(known, kwargs)

    def _learn(self, key: tuple[str, str, str], kwargs: dict[str, t.Any]) -> t.Any:
        """Core's own build, remembered if it is of the kind that agents run. It takes a while: the host is connected to meanwhile."""
        _action.get()._connection.begin()
        source = _identity(key[1])
        built = self._stock(**kwargs)
        known = None
        if built.module_style == "new" and (call := ModuleCall.from_wrapper(built.b_module_data)) is not None:
            with open(key[1], "rb") as file:
                interpreter, arguments = module_common._extract_interpreter(file.read())
            known = _Known(source, interpreter or "/usr/bin/python", arguments, call.module, dataclasses.replace(built, b_module_data=b""))
        self._known[key] = known
        return built

    def _light(self, known: _Known, kwargs: dict[str, t.Any]) -> t.Any:
        """What core's build would contain for these arguments."""
        task_vars, templar = kwargs["task_vars"], kwargs["templar"]
        also = {"remote_is_local": kwargs.get("remote_is_local", False)}
        if "default_interpreters" in self._shebang_parameters:
            also["default_interpreters"] = {}
        shebang, _interpreter = module_common._get_shebang(known.interpreter, task_vars, templar, known.arguments, **also)
        rlimit = C.config.get_config_value("PYTHON_MODULE_RLIMIT_NOFILE", variables=task_vars)
        if not isinstance(rlimit, int):
            rlimit = int(templar._engine.template(rlimit, options=TemplateOptions(value_for_omit=0)))
        encoder = get_module_encoder(known.built.serialization_profile, Direction.CONTROLLER_TO_MODULE)
        try:
            params = json.dumps({"ANSIBLE_MODULE_ARGS": kwargs["module_args"]}, cls=encoder)
        except TypeError as ex:
            raise AnsibleError(f"Failed to serialize arguments for the {kwargs['module_name']!r} module.") from ex
        module = dataclasses.replace(known.module, params=params.encode(), rlimit_nofile=rlimit, secrets=_secrets(params))
        call = ModuleCall.light(module, lambda: t.cast(bytes, self._stock(**kwargs).b_module_data))
        return dataclasses.replace(known.built, b_module_data=call, shebang=shebang)


def _identity(path: str) -> tuple[int, int, int]:
    status = os.stat(path)
    return status.st_ino, status.st_size, status.st_mtime_ns


def _goes_to_an_agent(action: t.Any) -> bool:
    """Whether the connection is ours and will get the module through `in_data`."""
    connection = action._connection
    if not getattr(connection, "takes_module_calls", False) or action._task.async_val:
        return False
    return bool(connection.is_pipelining_enabled(wrap_async=False))


def _secrets(params: str) -> str:
    """The secrets inside `params` as a JSON list, where the core knows them; else empty."""
    try:
        from ansible.module_utils import secrets as core_secrets
    except ImportError:
        return ""
    found = core_secrets._secret_masker.secrets_in_json(params)
    return json.dumps(sorted(found)) if found else ""


@contextlib.contextmanager
def light_modules() -> t.Iterator[None]:
    """While active, core's action plugins build modules through a ModuleBuilder."""
    actions = ansible.plugins.action
    stock_modify, stock_configure = actions.modify_module, actions.ActionBase._configure_module

    def configure(self: t.Any, *args: t.Any, **kwargs: t.Any) -> t.Any:
        token = _action.set(self)
        try:
            return stock_configure(self, *args, **kwargs)
        finally:
            _action.reset(token)

    actions.modify_module = ModuleBuilder(stock_modify)  # type: ignore[attr-defined]
    actions.ActionBase._configure_module = configure  # type: ignore[method-assign]
    try:
        yield
    finally:
        actions.ActionBase._configure_module = stock_configure  # type: ignore[method-assign]
        actions.modify_module = stock_modify  # type: ignore[attr-defined]
