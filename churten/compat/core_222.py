"""ansible-core 2.21 and 2.22: TaskExecutor finds its task in TaskContext, results are UnifiedTaskResult, workers reach the inventory by RPC."""

from __future__ import annotations

import queue
import typing as t

from ansible._internal import _task
from ansible._internal._task import HostTaskResult
from ansible._internal._worker._inventory_rpc import InventoryRPC
from ansible.errors import AnsibleError
from ansible.executor.task_executor import TaskExecutor
from ansible.inventory.host import Host
from ansible.playbook.task import Task
from ansible.plugins.strategy import StrategyBase

from churten.executor.hub import FiberHub

from .base import FiberQueue
from .line_219 import Line219


class DirectInventory:
    """What InventoryRPC does for a forked worker, done at once: a fiber is in the controller already."""

    add_host = staticmethod(t.cast(t.Any, InventoryRPC.add_host).__wrapped__)
    add_group = staticmethod(t.cast(t.Any, InventoryRPC.add_group).__wrapped__)


class WakingQueue(queue.Queue[t.Any]):
    """`strategy._rpc_queue`, filled by the RPC server's threads; a request ends the hub's sleep."""

    def __init__(self, kick: t.Callable[[], None]) -> None:
        super().__init__()
        self._kick = kick

    def put(self, item: t.Any, block: bool = True, timeout: float | None = None) -> None:
        super().put(item, block, timeout)
        self._kick()


class CoreAdapter(Line219):
    """See the module's text; follows executor/process/worker.py of these lines."""

    needs = (
        (StrategyBase, "_convert_wire_task_result_to_host_task_result"),
        (StrategyBase, "_process_rpc_queue"),
        (_task.TaskContext, "create"),
        (_task.WireTaskResult, "create"),
        (_task.UnifiedTaskResult, "create_from_action_exception"),
    )
    executor_arguments = "host play_context loader shared_loader_obj final_q variable_manager"
    records = (_task.WireTaskResult, _task.UnifiedTaskResult)

    def run_task(self, strategy: t.Any, hub: FiberHub, host: t.Any, task: t.Any, task_vars: dict[str, t.Any], play_context: t.Any) -> t.Any:
        def wire(the_host: t.Any, the_task: t.Any, utr: t.Any) -> t.Any:
            return self.through_pickle(_task.WireTaskResult.create(host=the_host, task=the_task, utr=utr))

        def convert(the_host: t.Any, the_task: t.Any, utr: t.Any) -> t.Any:
            return strategy._convert_wire_task_result_to_host_task_result(wire(the_host, the_task, utr))

        def callback(method_name: str, *result: t.Any) -> None:
            sent = wire(*result)
            hub.outside.run(
                lambda: strategy._tqm.send_callback(method_name, strategy._convert_wire_task_result_to_host_task_result(sent))
            )

        task = self.fiber_task(task)
        with (
            _task.TaskContext.create(task=task, task_vars=task_vars, host_name=host.name) as context,
            self.fiber_loader(strategy._loader) as loader,
        ):
            context.__dict__["inventory_rpc_client"] = DirectInventory
            task.squash()
            utr = TaskExecutor(
                host, self.fiber_play_context(play_context), loader, self.namespace(), t.cast(t.Any, FiberQueue(hub, callback)), strategy._variable_manager
            ).run()
            utr.finalize_registered_values()
            task.ignore_errors = utr.ignore_errors
            task.ignore_unreachable = utr.ignore_unreachable
            try:
                return convert(host, task, utr)
            except Exception as ex:
                # The same surrogate as stock's worker sends when its result cannot be pickled.
                try:
                    raise AnsibleError("Task result omitted due to queue send failure.") from ex
                except Exception as wrapper:
                    bare = Task()
                    bare._uuid = task._uuid
                    return convert(Host(name=host.name), bare, self._failed(wrapper))

    @staticmethod
    def _failed(ex: Exception) -> t.Any:
        utr = _task.UnifiedTaskResult.create_from_action_exception(ex)
        utr.finalize_registered_values()
        return utr

    def status(self, result: t.Any) -> str:
        if result is None:
            return "unknown"
        for name in ("unreachable", "failed", "skipped", "changed"):
            if getattr(result.utr, name):
                return name
        return "ok"

    def lost_result(self, strategy: t.Any, host: t.Any, task: t.Any, message: str) -> t.Any:
        task = self.fiber_task(task)
        with _task.TaskContext.create(task=task, task_vars={}, host_name=host.name):
            return HostTaskResult(host=host, task=task, utr=self._failed(AnsibleError(message)))


    def process_rpc(self, strategy: t.Any) -> None:
        strategy._process_rpc_queue()

    def wake_on_rpc(self, strategy: t.Any, kick: t.Callable[[], None]) -> None:
        strategy._rpc_queue = WakingQueue(kick)
