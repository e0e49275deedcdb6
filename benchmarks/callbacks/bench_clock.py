"""Notes when plays begin and results come, for benchmarks/figures.py."""

from __future__ import annotations

import json
import os
import time

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: bench_clock
type: aggregate
short_description: moments of a benchmark
description: Appends a JSON line to the file that BENCH_CLOCK names when a play begins and whenever a result comes.
"""


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "bench_clock"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self._file = open(os.environ["BENCH_CLOCK"], "a", buffering=1)  # noqa: SIM115

    def _note(self, ev: str, **more: str) -> None:
        self._file.write(json.dumps({"ev": ev, "at": time.monotonic(), **more}) + "\n")

    def v2_playbook_on_play_start(self, play) -> None:
        self._note("play")

    def v2_runner_on_ok(self, result) -> None:
        self._note("result", host=result._host.name, task=result._task.get_name())

    def v2_runner_on_failed(self, result, ignore_errors=False) -> None:
        self.v2_runner_on_ok(result)

    def v2_runner_on_unreachable(self, result) -> None:
        self.v2_runner_on_ok(result)

    def v2_runner_on_skipped(self, result) -> None:
        self.v2_runner_on_ok(result)
