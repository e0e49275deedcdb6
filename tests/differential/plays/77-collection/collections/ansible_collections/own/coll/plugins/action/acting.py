from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    """Runs another module of the collection, and a command."""

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        got = self._execute_module(module_name="own.coll.answer", module_args={"n": 4}, task_vars=task_vars)
        said = self._low_level_execute_command("echo said")
        result.update(changed=True, got=got["answer"], said=said["stdout_lines"], item=task_vars.get("item"))
        return result
