"""The light build of modules for ansible-core 2.19 and later; see modules.py."""

from __future__ import annotations

import dataclasses
import inspect
import json
import typing as t

from ansible import constants as C
from ansible._internal._ansiballz import _builder
from ansible._internal._templating._engine import TemplateOptions
from ansible.errors import AnsibleError
from ansible.executor import module_common
from ansible.module_utils.common.json import Direction, get_module_encoder

from churten.transport.payload import ModuleCall

from .modules import Known, ModuleBuilder

try:
    from ansible.module_utils import secrets as core_secrets
except ImportError:  # to 2.21
    core_secrets = None  # type: ignore[assignment]


class Builder(ModuleBuilder):
    """Follows `_find_module_utils` of executor/module_common.py."""

    def __init__(self, stock: t.Callable[..., t.Any]) -> None:
        super().__init__(stock)
        self._shebang_parameters = set(inspect.signature(module_common._get_shebang).parameters)

    def parts(self, built: t.Any) -> tuple[bytes | None, t.Any]:
        program = built.b_module_data if built.module_style == "new" else None
        return program, dataclasses.replace(built, b_module_data=b"")

    def is_plain(self, kwargs: dict[str, t.Any]) -> bool:
        return not _builder.ExtensionManager.create(task_vars=kwargs["task_vars"]).extension_names

    def light(self, known: Known, kwargs: dict[str, t.Any]) -> t.Any:
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
        if rlimit < 0:
            return self.stock(**kwargs)  # the wrapper fails with it, an agent need not know how
        module = dataclasses.replace(known.module, params=params.encode(), rlimit_nofile=rlimit, secrets=_secrets(params))
        call = ModuleCall.light(module, lambda: t.cast(bytes, self.stock(**kwargs).b_module_data))
        return dataclasses.replace(known.built, b_module_data=call, shebang=shebang)


def _secrets(params: str) -> str:
    """The secrets inside `params` as a JSON list, where the core knows them; else empty."""
    if core_secrets is None:
        return ""
    found = core_secrets._secret_masker.secrets_in_json(params)
    return json.dumps(sorted(found)) if found else ""
