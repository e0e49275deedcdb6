"""The light build of modules for ansible-core 2.16 to 2.18; see modules.py."""

from __future__ import annotations

import dataclasses
import json
import typing as t

from ansible import constants as C
from ansible.errors import AnsibleError
from ansible.executor import module_common
from ansible.module_utils.common.json import AnsibleJSONEncoder
from ansible.module_utils.common.text.converters import to_native

from churten.transport.payload import ModuleCall

from .modules import Known, ModuleBuilder


class Builder(ModuleBuilder):
    """Follows `_find_module_utils` of executor/module_common.py."""

    def parts(self, built: t.Any) -> tuple[bytes | None, t.Any]:
        data, style, _shebang = built
        return data if style == "new" else None, None

    def light(self, known: Known, kwargs: dict[str, t.Any]) -> t.Any:
        task_vars, templar = kwargs["task_vars"], kwargs["templar"]
        try:
            params = json.dumps({"ANSIBLE_MODULE_ARGS": kwargs["module_args"]}, cls=AnsibleJSONEncoder, vault_to_text=True)
        except TypeError as ex:
            raise AnsibleError(f"Unable to pass options to module, they must be JSON serializable: {to_native(ex)}") from ex
        shebang, _interpreter = module_common._get_shebang(
            known.interpreter, task_vars, templar, known.arguments, remote_is_local=kwargs.get("remote_is_local", False)
        )
        rlimit = C.config.get_config_value("PYTHON_MODULE_RLIMIT_NOFILE", variables=task_vars)
        if not isinstance(rlimit, int):
            rlimit = int(templar.template(rlimit))
        if rlimit < 0:
            return self.stock(**kwargs)  # the wrapper fails with it, an agent need not know how
        module = dataclasses.replace(known.module, params=params.encode(), rlimit_nofile=rlimit)
        return ModuleCall.light(module, lambda: t.cast(bytes, self.stock(**kwargs)[0])), "new", shebang
