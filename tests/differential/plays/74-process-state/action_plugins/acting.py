import os

from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    """Changes the process between two commands."""

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        os.environ["LEAKED"] = "by an action"
        os.umask(0o007)
        os.chdir("/tmp")
        said = self._low_level_execute_command("echo said")
        result.update(said=said["stdout"], here=os.getcwd(), environ=os.environ["LEAKED"])
        return result
