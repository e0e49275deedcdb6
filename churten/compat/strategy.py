"""The private names of core's strategies, iterators and queue manager that the executor needs; the same from 2.16 to 2.22."""

from __future__ import annotations

import inspect
import types
import typing as t

try:
    from ansible.module_utils._internal import _stack
except ImportError:  # before 2.19
    _stack = None  # type: ignore[assignment]

_NO_TASK = types.SimpleNamespace(_uuid=None)


class CoreStrategy:
    """What of core's StrategyBase our mixins use: `self` is an instance of it too."""

    _tqm: t.Any
    _workers: list[t.Any]
    _results: t.Any
    _results_lock: t.Any
    _inventory: t.Any
    _variable_manager: t.Any
    _loader: t.Any
    _blocked_hosts: dict[str, bool]
    _queued_task_cache: dict[tuple[str, str], dict[str, t.Any]]
    _pending_results: int
    _hosts_cache: list[str]
    _hosts_cache_all: list[str]

    def __init__(self, tqm: t.Any) -> None:
        super().__init__(tqm)  # type: ignore[call-arg]
        look_at_files_only()

    @property
    def _is_terminated(self) -> bool:
        """Whether the run is being given up."""
        return bool(self._tqm._terminated)

    @property
    def _failed(self) -> dict[str, bool]:
        """Hosts that failed, by name; core's own dict."""
        return t.cast("dict[str, bool]", self._tqm._failed_hosts)

    @property
    def _unreachable(self) -> dict[str, bool]:
        """Hosts that were lost, by name; core's own dict."""
        return t.cast("dict[str, bool]", self._tqm._unreachable_hosts)

    @property
    def _callbacks(self) -> list[t.Any]:
        return t.cast("list[t.Any]", self._tqm._callback_plugins)


class _Inspect:
    """Stands for the module `inspect` where core looks for who is calling; once."""

    def __getattr__(self, name: str) -> t.Any:
        return getattr(inspect, name)

    def stack(self, context: int = 1) -> list[inspect.FrameInfo]:
        """The frames, without the lines of source around each."""
        _stack._inspect = inspect
        return inspect.stack(0)[1:]


def look_at_files_only() -> None:
    """Core warns of each strategy that it does not ship, and looks at the frames of its callers to say on whose behalf: at their files only, but it
    has the source of all of them read, and every module that is loaded looked at, some 25 ms. That warning comes right after a strategy was made."""
    if _stack is not None and getattr(_stack, "_inspect", None) is inspect:
        _stack._inspect = _Inspect()


class FiberWorker:
    """What core finds in its list of workers for a slot that a fiber uses."""

    exitcode = None
    _task = _NO_TASK

    def is_alive(self) -> bool:
        """False: there is no process to signal or to terminate; fibers end with the hub."""
        return False


def uncounted(worker: t.Any) -> None:
    """Core counts running copies of a task by its workers, to throttle it. Throttles are the C scheduler's work."""
    worker._task = _NO_TASK


def play_of(iterator: t.Any) -> t.Any:
    """The play an iterator walks through."""
    return iterator._play
