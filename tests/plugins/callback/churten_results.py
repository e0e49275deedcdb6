"""Writes every result as one JSON line to $CHURTEN_RESULTS, for the tests beside it."""

import json
import os

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: churten_results
type: notification
short_description: results as JSON lines
description: For tests.
"""


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "churten_results"
    CALLBACK_NEEDS_ENABLED = True

    def _write(self, status, result):
        values = getattr(result, "result", None) or result._result
        task = getattr(result, "task", None) or result._task
        host = getattr(result, "host", None) or result._host
        line = {"status": status, "host": host.get_name(), "task": task.get_name(), "result": values}
        with open(os.environ["CHURTEN_RESULTS"], "a") as file:
            file.write(json.dumps(line, default=str) + "\n")

    def v2_runner_on_ok(self, result):
        self._write("ok", result)

    def v2_runner_on_failed(self, result, ignore_errors=False):
        self._write("failed", result)

    def v2_runner_on_unreachable(self, result):
        self._write("unreachable", result)

    def v2_runner_on_skipped(self, result):
        self._write("skipped", result)
