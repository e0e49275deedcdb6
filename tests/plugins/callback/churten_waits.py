"""Writes to $CHURTEN_WAITS, per result of a task, how often its run had to wait for an answer of the pool: each is a round trip. For tests with one host."""

import json
import os

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: churten_waits
type: notification
short_description: waits as JSON lines
description: For tests.
"""


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "churten_waits"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self):
        super().__init__()
        from churten.transport.pool import Pool

        self.waits = 0
        stock = Pool._wait

        def wait(pool, pending, deadline):
            self.waits += not pending.done
            return stock(pool, pending, deadline)

        Pool._wait = wait

    def _write(self, result):
        task = getattr(result, "task", None) or result._task
        with open(os.environ["CHURTEN_WAITS"], "a") as file:
            file.write(json.dumps([task.get_name(), self.waits]) + "\n")
        self.waits = 0

    v2_runner_on_ok = v2_runner_on_failed = v2_runner_on_unreachable = lambda self, result, **_: self._write(result)
