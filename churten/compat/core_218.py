"""ansible-core 2.16 to 2.18: TaskExecutor gets a stdin and the module of plugin loaders, results are TaskResult, `timeout` is a bare SIGALRM."""

from __future__ import annotations

import contextlib
import functools
import signal
import traceback
import types
import typing as t

from ansible.errors import AnsibleError
from ansible.executor import task_executor
from ansible.executor.process.worker import WorkerProcess
from ansible.executor.task_executor import TaskExecutor
from ansible.executor.task_result import TaskResult
from ansible.plugins.strategy import StrategyBase
from ansible.template import Templar

from churten.executor.hub import Alarm, Fiber, FiberHub

from .base import Adapter, FiberQueue
from .modules import light_modules
from .modules_218 import Builder


class FiberTimeout(task_executor.TaskTimeoutError):  # type: ignore[misc]
    """What core raises from its signal handler; where it interrupted is known only when it is caught."""

    def __init__(self) -> None:
        super().__init__()

    @property
    def frame(self) -> str:
        """Core 2.18 reports it; the same words."""
        frames = list(traceback.walk_tb(self.__traceback__))
        inside = [(frame, line) for frame, line in frames if frame.f_globals.get("__package__") == "ansible.executor"]
        return f"Interrupted at {_frame_text(*frames[-1])} called from {_frame_text(*inside[-1])}"


def _frame_text(frame: types.FrameType, line: int) -> str:
    """repr(frame) as it was when it stood at `line`."""
    return f"<frame at {id(frame):#x}, file {frame.f_code.co_filename!r}, line {line}, code {frame.f_code.co_name}>"


class FiberSignals:
    """Stands for the module `signal` inside core's task executor: an alarm set in a fiber is a timer of the hub."""

    def __init__(self, hub: FiberHub) -> None:
        self._hub = hub
        self._alarms: dict[int, Alarm] = {}

    def __getattr__(self, name: str) -> t.Any:
        return getattr(signal, name)

    def signal(self, number: int, handler: t.Any) -> t.Any:
        if self._hub.current() is None:
            return signal.signal(number, handler)
        return signal.SIG_DFL

    def alarm(self, seconds: int) -> int:
        fiber = self._hub.current()
        if fiber is None or seconds >= 1 << 31:  # which is an OverflowError
            return signal.alarm(seconds)
        self._cancel(fiber)
        if seconds > 0:  # for the kernel a negative number is more than a century
            self._alarms[fiber.number] = self._hub.alarm(fiber, seconds, FiberTimeout())
        return 0

    def _cancel(self, fiber: Fiber) -> None:
        alarm = self._alarms.pop(fiber.number, None)
        if alarm is not None:
            self._hub.alarm_cancel(alarm)


class CoreAdapter(Adapter):
    """See the module's text; follows executor/process/worker.py and `results_thread_main` of these lines."""

    needs = ((StrategyBase, "normalize_task_result"), (WorkerProcess, "_save_stdin"), (task_executor, "signal"))
    executor_arguments = "host task job_vars play_context new_stdin loader shared_loader_obj final_q variable_manager"

    def run_task(self, strategy: t.Any, hub: FiberHub, host: t.Any, task: t.Any, task_vars: dict[str, t.Any], play_context: t.Any) -> t.Any:
        def callback(method_name: str, *args: t.Any) -> None:
            sent = self.through_pickle(args)
            for arg in sent:
                if isinstance(arg, TaskResult):
                    strategy.normalize_task_result(arg)
            hub.outside.run(strategy._tqm.send_callback, method_name, *sent)

        task = self.fiber_task(task)
        with self.fiber_loader(strategy._loader) as loader:
            result = TaskExecutor(
                host,
                task,
                task_vars,
                self.fiber_play_context(play_context),
                self._stdin,
                loader,
                self.loaders,
                t.cast(t.Any, FiberQueue(hub, callback)),
                strategy._variable_manager,
            ).run()
            try:
                sent = self.through_pickle(TaskResult(host.name, task._uuid, result, task_fields=task.dump_attrs()))
            except Exception as ex:
                # The same surrogate as stock's worker sends when its result cannot be pickled.
                sent = TaskResult(host.name, task._uuid, {"failed": True, "msg": f"{ex}", "exception": traceback.format_exc()}, {})
            return strategy.normalize_task_result(sent)

    def lost_result(self, strategy: t.Any, host: t.Any, task: t.Any, message: str) -> t.Any:
        result = {"failed": True, "changed": False, "msg": message}
        return strategy.normalize_task_result(TaskResult(host.name, task._uuid, result, task_fields=task.dump_attrs()))

    def status(self, result: t.Any) -> str:
        if result is None:
            return "unknown"
        for name in ("unreachable", "failed", "skipped", "changed"):
            if getattr(result, f"is_{name}")():
                return name
        return "ok"

    def result_host(self, result: t.Any) -> t.Any:
        return result._host

    def engine(self, strategy: t.Any, task_vars: dict[str, t.Any]) -> t.Any:
        return Templar(loader=strategy._loader, variables=task_vars)

    def throttle_error(self, task: t.Any, cause: Exception) -> AnsibleError:
        return AnsibleError("Failed to convert the throttle value to an integer.", obj=task._ds, orig_exc=cause)

    @functools.cached_property
    def _stdin(self) -> t.Any:
        """What stock's worker hands to connections: the terminal, if there is one."""
        holder = types.SimpleNamespace()
        WorkerProcess._save_stdin(t.cast(t.Any, holder))
        return holder._new_stdin

    @contextlib.contextmanager
    def fiber_timeouts(self, hub: FiberHub) -> t.Iterator[None]:
        task_executor.signal = FiberSignals(hub)  # type: ignore[assignment]
        try:
            yield
        finally:
            task_executor.signal = signal  # type: ignore[assignment]

    @contextlib.contextmanager
    def light_modules(self) -> t.Iterator[None]:
        with light_modules(Builder):
            yield

    @contextlib.contextmanager
    def remembered_keywords(self) -> t.Iterator[None]:
        """These lines validate all keywords of a task in one function: there is nothing to stand for."""
        yield
