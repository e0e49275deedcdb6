from __future__ import annotations

from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    TRANSFERS_FILES = False

    def run(self, tmp=None, task_vars=None):
        super().run(tmp, task_vars)
        first = self._low_level_execute_command("echo low level; echo err >&2; exit 3")
        second = self._execute_module(module_name="ansible.legacy.command", module_args={"_raw_params": "echo twice"}, task_vars=task_vars)
        return {"low": {k: first[k] for k in ("rc", "stdout")}, "second": second["stdout"], "text": self._task.args["text"], "changed": True}
