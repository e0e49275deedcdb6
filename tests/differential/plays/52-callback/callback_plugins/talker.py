from ansible.plugins.callback import CallbackBase


class CallbackModule(CallbackBase):
    """Warns from events that arrive while a task is running."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "talker"

    def v2_runner_item_on_ok(self, result):
        self._display.warning(f"talker: item of {result._host.get_name()}")

    def v2_runner_retry(self, result):
        self._display.warning(f"talker: retry of {result._host.get_name()}")

    def v2_runner_on_async_ok(self, result):
        self._display.warning(f"talker: async of {result._host.get_name()}")

    def v2_runner_on_ok(self, result):
        self._display.warning(f"talker: {result._task.get_name()} of {result._host.get_name()}")
