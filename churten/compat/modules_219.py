"""The light build of modules for ansible-core 2.19 and later; see modules.py."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import json
import typing as t

from ansible import constants as C
from ansible._internal._ansiballz import _builder
from ansible._internal._datatag import _tags
from ansible._internal._templating._engine import TemplateOptions
from ansible.errors import AnsibleError
from ansible.executor import module_common
from ansible.module_utils._internal import _datatag
from ansible.module_utils._internal._json import _profiles as profiles
from ansible.module_utils._internal._json._profiles import _module_legacy_c2m as legacy
from ansible.module_utils.common.json import Direction, get_module_encoder

from churten import _core
from churten.transport.payload import ModuleCall

from .keywords import names_of
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
        try:
            params = self._printed({"ANSIBLE_MODULE_ARGS": kwargs["module_args"]}, known.built.serialization_profile)
        except TypeError as ex:
            raise AnsibleError(f"Failed to serialize arguments for the {kwargs['module_name']!r} module.") from ex
        if rlimit < 0:
            return self.stock(**kwargs)  # the wrapper fails with it, an agent need not know how
        module = dataclasses.replace(known.module, params=params.encode(), rlimit_nofile=rlimit, secrets=_secrets(params))
        call = ModuleCall.light(module, lambda: t.cast(bytes, self.stock(**kwargs).b_module_data))
        return dataclasses.replace(known.built, b_module_data=call, shebang=shebang)

    def _printed(self, value: dict[str, t.Any], profile: str) -> str:
        """`value` as core prints it for a module of this profile."""
        encoder = get_module_encoder(profile, Direction.CONTROLLER_TO_MODULE)
        if _is_known(encoder):
            with contextlib.suppress(Exception):  # something is not plain
                return _print(value)
        return json.dumps(value, cls=encoder)


_DERIVED = (_datatag._AnsibleTaggedStr, _datatag._AnsibleTaggedInt, _datatag._AnsibleTaggedFloat, _datatag._AnsibleTaggedDict, _datatag._AnsibleTaggedList)
# What core's encoder uses.
_DEFAULT = set("_WrappedValue _profile default dict get handle_key items list maybe_wrap serialize_map tuple type wrapped".split())


@functools.cache
def _is_known(encoder: t.Any) -> bool:
    """Whether core's encoder prints plain values as `json.dumps` does, and texts with tags as texts. It is tried, too."""
    tag = _tags.Origin(description="x").tag
    plain: dict[str, t.Any] = {"a": [1, True, None, 0.5, "\u00e4\u2028\U0001f600\"\\/\n\x7f", {"b": [], "": {}}]}
    sample = {**plain, "t": tag([tag("text"), tag(2), tag(2.5), tag({tag("key"): tag([])})])}
    functions = (profiles.AnsibleProfileJSONEncoder.default, profiles.AnsibleProfileJSONEncoder.encode)
    own = encoder is legacy.Encoder and (encoder.default, encoder.encode) == functions
    return own and names_of(functions[0].__code__) == _DEFAULT and json.dumps(sample, cls=encoder) == _print(sample)


def _print(value: t.Any) -> str:
    """Plain values as core's encoder prints them; an exception for others."""
    data: tuple[bytes, bool] = _core.facts_encode(value, "compact", _DERIVED, (_datatag._AnsibleTaggedStr,), None)
    return data[0].decode()


def _secrets(params: str) -> str:
    """The secrets inside `params` as a JSON list, where the core knows them; else empty."""
    if core_secrets is None:
        return ""
    found = core_secrets._secret_masker.secrets_in_json(params)
    return json.dumps(sorted(found)) if found else ""
