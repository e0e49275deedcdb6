"""ansible-core 2.19 and 2.20: TaskExecutor takes the task as arguments, results are dicts in _RawTaskResult."""

from __future__ import annotations

import typing as t

from ansible._internal import _task
from ansible._internal._errors import _error_utils
from ansible.errors import AnsibleError
from ansible.executor.task_executor import TaskExecutor
from ansible.executor.task_result import _RawTaskResult, _WireTaskResult
from ansible.plugins.strategy import StrategyBase

from churten.executor.hub import FiberHub

from .base import FiberQueue
from .line_219 import Line219


class CoreAdapter(Line219):
    """See the module's text; follows executor/process/worker.py of these lines."""

    needs = ((StrategyBase, "_convert_wire_task_result_to_raw"), (_RawTaskResult, "as_wire_task_result"), (_task, "TaskContext"))
    executor_arguments = "host task job_vars play_context loader shared_loader_obj final_q variable_manager"
    records = (_WireTaskResult,)

    def run_task(self, strategy: t.Any, hub: FiberHub, host: t.Any, task: t.Any, task_vars: dict[str, t.Any], play_context: t.Any) -> t.Any:
        def convert(raw: t.Any) -> t.Any:
            return strategy._convert_wire_task_result_to_raw(self.through_pickle(raw.as_wire_task_result()))

        def callback(method_name: str, raw: t.Any) -> None:
            wire = self.through_pickle(raw.as_wire_task_result())
            hub.outside.run(lambda: strategy._tqm.send_callback(method_name, strategy._convert_wire_task_result_to_raw(wire)))

        task = self.fiber_task(task)
        with _task.TaskContext(task), self.fiber_loader(strategy._loader) as loader:
            result = TaskExecutor(
                host,
                task,
                task_vars,
                self.fiber_play_context(play_context),
                loader,
                self.namespace(),
                t.cast(t.Any, FiberQueue(hub, callback)),
                strategy._variable_manager,
            ).run()
            try:
                return convert(_RawTaskResult(host=host, task=task, return_data=result, task_fields=task.dump_attrs()))
            except Exception as ex:
                # The same surrogate as stock's worker sends when its result cannot be pickled.
                return strategy._convert_wire_task_result_to_raw(self._send_failure(host, task, ex).as_wire_task_result())

    def _send_failure(self, host: t.Any, task: t.Any, cause: Exception) -> t.Any:
        try:
            raise AnsibleError("Task result omitted due to queue send failure.") from cause
        except Exception as ex:
            return _RawTaskResult(host=host, task=task, return_data=_error_utils.result_dict_from_exception(ex), task_fields={})

    def status(self, result: t.Any) -> str:
        if result is None:
            return "unknown"
        for name in ("unreachable", "failed", "skipped", "changed"):
            if getattr(result, f"is_{name}")():
                return name
        return "ok"

    def lost_result(self, strategy: t.Any, host: t.Any, task: t.Any, message: str) -> t.Any:
        return _RawTaskResult(host=host, task=task, return_data={"failed": True, "changed": False, "msg": message}, task_fields=task.dump_attrs())
