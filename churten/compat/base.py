"""What every adapter offers to the executor, and the parts that did not change between the supported core lines."""

from __future__ import annotations

import abc
import contextlib
import functools
import inspect
import os
import pickle
import signal
import sys
import time
import types
import typing as t
from multiprocessing.reduction import ForkingPickler

import ansible.plugins.action
import ansible.plugins.strategy.free
import ansible.plugins.strategy.linear
from ansible import constants as C
from ansible import context
from ansible.errors import AnsibleError
from ansible.executor.task_executor import TaskExecutor
from ansible.plugins import loader as plugin_loader
from ansible.plugins.loader import action_loader, fragment_loader, module_loader
from ansible.plugins.strategy import StrategyBase

from churten import _core

from .chains import chained_actions
from .facts_memo import remembered_facts
from .keywords import quick_copies
from .memo import (
    ClassMemo,
    remembered_folders,
    remembered_lookups,
    remembered_options,
    remembered_plugins,
    remembered_settings,
)
from .overrides import quick_overrides
from .readers import quick_reads
from .results import quick_results
from .squash import quick_squashes
from .vars_memo import remembered_absence

if t.TYPE_CHECKING:
    from churten.executor.hub import FiberHub

# Connections that a fiber (or a forked worker of ours) replaces by our own.
OWN_CONNECTIONS = {
    "smart": "churten.core.ssh",
    "ssh": "churten.core.ssh",
    "ansible.builtin.ssh": "churten.core.ssh",
    "ansible.legacy.ssh": "churten.core.ssh",
    "local": "churten.core.local",
    "ansible.builtin.local": "churten.core.local",
    "ansible.legacy.local": "churten.core.local",
    "churten.core.ssh": "churten.core.ssh",
    "churten.core.local": "churten.core.local",
}


_OWN_NAMES = frozenset(OWN_CONNECTIONS.values())


class ConnectionLoader:
    """Core's connection loader, except that ssh and local mean ours."""

    def __init__(self, loader: t.Any) -> None:
        self._loader = loader
        self._memo = ClassMemo(loader)

    def get_with_context(self, name: str, *args: t.Any, **kwargs: t.Any) -> t.Any:
        own = self._own(name)
        loader = self._memo if own in _OWN_NAMES else self._loader
        found = loader.get_with_context(own, *args, **kwargs)
        if own != name and found.object is not None:
            # It answers to the name it stands for: the executor keeps it from item to item, callbacks see that name.
            stands_for = "ansible.builtin." + own.rpartition(".")[2]
            found.object.ansible_name = stands_for
            found.object.ansible_aliases = [stands_for, *found.object.ansible_aliases]
        return found

    def get(self, name: str, *args: t.Any, **kwargs: t.Any) -> t.Any:
        return self._loader.get(self._own(name), *args, **kwargs)

    def _own(self, name: str) -> str:
        return OWN_CONNECTIONS.get(name, name) if _own_installed() else name

    def __getattr__(self, name: str) -> t.Any:
        return getattr(self._loader, name)


class Loaders:
    """Stands for the module ansible.plugins.loader, with our connections in place of ssh and local."""

    def __init__(self) -> None:
        self.connection_loader = connections(plugin_loader.connection_loader)

    def __getattr__(self, name: str) -> t.Any:
        return getattr(plugin_loader, name)


OWN_FRAMES = 20


@contextlib.contextmanager
def deeper_stack() -> t.Iterator[None]:
    """While active, frames of ours between core's take no room from data that is nested so deeply that core itself only just copes with it."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(limit + OWN_FRAMES)
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


class StrategyTime:
    """Stands for the module `time` inside core's strategy modules, where sleeping means: wait for results."""

    def __init__(self, idle: t.Callable[[], None]) -> None:
        self._idle = idle

    def sleep(self, _seconds: float) -> None:
        self._idle()

    def __getattr__(self, name: str) -> t.Any:
        return getattr(time, name)


class FiberQueue:
    """What a TaskExecutor inside a fiber has in place of the final queue: its messages are handled at once.

    The order of events is the same as through the queue: items and retries first, the result last.
    """

    def __init__(self, hub: FiberHub, callback: t.Callable[..., None]) -> None:
        self._hub = hub
        self._callback = callback

    def send_callback(self, method_name: str, *args: t.Any, **kwargs: t.Any) -> None:
        if (fiber := self._hub.current()) is not None:
            fiber.acted = True
        # Callback plugins run under a lock of the TaskQueueManager: nobody may park while holding it.
        self._hub.no_park += 1
        try:
            with self._hub.process.outside():
                self._callback(method_name, *args, **kwargs)
        finally:
            self._hub.no_park -= 1

    def send_display(self, method: str, *args: t.Any, **kwargs: t.Any) -> None:
        from ansible.utils.display import Display

        getattr(Display(), method)(*args, **kwargs)


class Adapter(abc.ABC):
    """One ansible-core line."""

    strategy_modules: tuple[types.ModuleType, ...] = (
        ansible.plugins.strategy,
        ansible.plugins.strategy.free,
        ansible.plugins.strategy.linear,
    )
    # What running tasks takes for granted beside the imports of an adapter: (object, name), and the arguments of TaskExecutor.
    needs: tuple[tuple[t.Any, str], ...] = ()
    executor_arguments = ""
    # Core's own actions that need a process of their own: they ask the user or talk to the controller over its RPC.
    fork_actions: frozenset[str] = frozenset({"pause"})

    def check(self) -> None:
        """AttributeError or TypeError if the running core lacks what this adapter needs, before a play relies on it."""
        strategy = [(StrategyBase, name) for name in ("_queue_task", "_process_pending_results", "_execute_meta", "get_hosts_left", "add_tqm_variables")]
        for thing, name in (*self.needs, *strategy, (ansible.plugins.strategy, "plugin_loader")):
            getattr(thing, name)
        takes = list(inspect.signature(TaskExecutor).parameters)
        if takes != self.executor_arguments.split():
            raise TypeError(f"TaskExecutor takes {', '.join(takes)}")
        with self.installed(t.cast("FiberHub", types.SimpleNamespace(sleep=time.sleep)), lambda: None):
            pass

    # --- what runs a task ---

    @abc.abstractmethod
    def run_task(self, strategy: t.Any, hub: FiberHub, host: t.Any, task: t.Any, task_vars: dict[str, t.Any], play_context: t.Any) -> t.Any:
        """Run TaskExecutor as WorkerProcess does, in the current fiber; returns what `strategy._results` holds for a result."""

    @abc.abstractmethod
    def lost_result(self, strategy: t.Any, host: t.Any, task: t.Any, message: str) -> t.Any:
        """A failed result for a task whose worker died."""

    @abc.abstractmethod
    @contextlib.contextmanager
    def fiber_timeouts(self, hub: FiberHub) -> t.Iterator[None]:
        """While active, the task keyword `timeout` inside fibers uses the hub's timers instead of SIGALRM."""

    @abc.abstractmethod
    @contextlib.contextmanager
    def light_modules(self) -> t.Iterator[None]:
        """While active, modules for our connections are built without their wrapper program; see compat/modules.py."""

    @abc.abstractmethod
    @contextlib.contextmanager
    def remembered_keywords(self) -> t.Iterator[None]:
        """While active, plain keywords of tasks are validated once; see compat/memo.py."""

    def process_rpc(self, strategy: t.Any) -> None:
        """Serve requests of forked workers, where the core has such."""

    def wake_on_rpc(self, strategy: t.Any, kick: t.Callable[[], None]) -> None:
        """Call `kick` (from any thread) when a forked worker has a request."""

    @abc.abstractmethod
    def status(self, result: t.Any) -> str:
        """`ok`, `changed`, `skipped`, `failed` or `unreachable`; `unknown` for None."""

    @abc.abstractmethod
    def result_host(self, result: t.Any) -> t.Any:
        """The host object of a result in `strategy._results`."""

    @abc.abstractmethod
    def engine(self, strategy: t.Any, task_vars: dict[str, t.Any]) -> t.Any:
        """A template engine over `task_vars`."""

    def throttle_error(self, task: t.Any, cause: Exception) -> AnsibleError:
        """What core raises from `cause` for a throttle that is no number."""
        return AnsibleError("Failed to convert the throttle value to an integer.", obj=task.throttle)

    # --- shared by all lines ---

    def templater(self, strategy: t.Any, task_vars: dict[str, t.Any]) -> t.Callable[[t.Any], t.Any]:
        """A function that templates one value with `task_vars`; plain values cost nothing."""
        engine: t.Any = None

        def template(value: t.Any) -> t.Any:
            nonlocal engine
            if value is None or isinstance(value, (bool, int, float)):
                return value
            if engine is None:
                engine = self.engine(strategy, task_vars)
            return engine.template(value)

        return template

    def spare_cores(self) -> bool:
        """Whether forks could use cores that fibers leave idle."""
        return len(os.sched_getaffinity(0)) > 2

    @contextlib.contextmanager
    def installed(self, hub: FiberHub, idle: t.Callable[[], None]) -> t.Iterator[None]:
        """Everything that core must see differently while one of our strategies runs; undone on exit, and in forked workers as far as it matters."""
        real_sleep = time.sleep
        shim = StrategyTime(idle)
        try:
            for module in self.strategy_modules:
                if hasattr(module, "time"):
                    module.time = shim  # type: ignore[attr-defined]
            time.sleep = hub.sleep  # type: ignore[assignment]
            os_hook = functools.partial(setattr, time, "sleep", real_sleep)
            _restore_in_child.append(os_hook)
            with (
                deeper_stack(),
                self.fiber_timeouts(hub),
                self.own_connections(),
                self.light_modules(),
                chained_actions(),
                remembered_options(),
                remembered_settings(),
                self.remembered_keywords(),
                quick_copies(),
                quick_reads(),
                quick_squashes(),
                quick_overrides(),
                remembered_lookups(),
                remembered_plugins(),
                remembered_folders(),
                remembered_absence(),
                remembered_facts(),
                quick_results(),
            ):
                yield
        finally:
            _restore_in_child.clear()
            time.sleep = real_sleep
            for module in self.strategy_modules:
                if hasattr(module, "time"):
                    module.time = time  # type: ignore[attr-defined]

    @functools.cached_property
    def loaders(self) -> Loaders:
        """Core's plugin loaders, with our connections in place of ssh and local."""
        return Loaders()

    @contextlib.contextmanager
    def own_connections(self) -> t.Iterator[None]:
        """While active, core's strategies (for forked workers and `meta: reset_connection`) get our connections in place of ssh and local."""
        ansible.plugins.strategy.plugin_loader = self.loaders  # type: ignore[attr-defined]
        try:
            yield
        finally:
            ansible.plugins.strategy.plugin_loader = plugin_loader  # type: ignore[attr-defined]

    def fiber_task(self, task: t.Any) -> t.Any:
        """A copy that TaskExecutor may change, as it changes its own in a fork: with blocks and includes around it, which validating changes too."""
        mine = task.copy(exclude_parent=True, exclude_tasks=True)
        child, parent = mine, task._parent
        while parent is not None:
            child._parent = _shallow(parent)
            child, parent = child._parent, child._parent._parent
        return mine

    def fiber_play_context(self, play_context: t.Any) -> t.Any:
        """The same for the play context: if a keyword of it cannot be templated, core goes on with the one it was given."""
        return _shallow(play_context)

    @contextlib.contextmanager
    def fiber_loader(self, loader: t.Any) -> t.Iterator[t.Any]:
        """A view of the DataLoader whose temporary files and file cache are this task's own, as in a fork; the files go at the end."""
        mine = _shallow(loader)
        mine._tempfiles = set()
        mine._FILE_CACHE = loader._FILE_CACHE.copy()
        try:
            yield mine
        finally:
            mine.cleanup_all_tmp_files()

    def through_pickle(self, message: t.Any) -> t.Any:
        """What arrives in the controller when a worker sends `message`: results share nothing with the task that made them."""
        return pickle.loads(ForkingPickler.dumps(message))

    def action_class(self, task: t.Any) -> type | None:
        """The action plugin class that will run the task, found the way TaskExecutor finds it."""
        name = task.action
        module_context = module_loader.find_plugin_with_context(name, collection_list=task.collections)
        if module_context.resolved and module_context.action_plugin:
            name = module_context.action_plugin
        elif not action_loader.has_plugin(name, collection_list=task.collections):
            prefix = name.rsplit(".", 1)[-1].split("_")[0]
            if prefix in C.NETWORK_GROUP_MODULES:
                return None
            name = "ansible.legacy.normal"
        found = action_loader.get(name, class_only=True, collection_list=task.collections)
        return t.cast("type | None", found)

    def is_core_action(self, action: type) -> bool:
        """Whether the class is shipped with the running ansible-core."""
        module = sys.modules.get(action.__module__)
        path = getattr(module, "__file__", None) or ""
        home = os.path.dirname(ansible.plugins.action.__file__)
        return os.path.dirname(path) == home

    def queue_fork(
        self, strategy: t.Any, slot: int, host: t.Any, task: t.Any, task_vars: dict[str, t.Any], play_context: t.Any, announced: bool
    ) -> t.Any:
        """Start a stock worker in `slot` (which must be free); returns the WorkerProcess, or None if the run is being aborted.

        `announced`: callbacks have been told that the task starts on this host.
        """
        global _worker_of
        strategy._cur_worker = slot
        _worker_of = os.getpid()
        try:
            with _without_start(strategy._tqm) if announced else contextlib.nullcontext():
                StrategyBase._queue_task(strategy, host, task, task_vars, play_context)
        finally:
            _worker_of = 0
        return strategy._workers[slot]

    def option(self, plugin_name: str, option: str) -> t.Any:
        """The value of an option of one of our strategy plugins; core reads options of other plugin types only."""
        import yaml

        config = C.config
        if not config.has_configuration_definition("strategy", plugin_name):
            fragment = fragment_loader.get("churten.core.executor")
            document = yaml.load(fragment.DOCUMENTATION, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
            config.initialize_plugin_configuration_definitions("strategy", plugin_name, document["options"])
        return config.get_config_value(option, plugin_type="strategy", plugin_name=plugin_name)

    @property
    def cliargs(self) -> t.Any:
        """The command line of this run."""
        return context.CLIARGS


_worker_of = 0  # the process that is forking a worker


def _in_worker() -> None:
    """A worker ends with the run, however that ends; under stock it goes on alone when the run was killed."""
    if _worker_of:
        _core.end_with_parent(signal.SIGTERM)
        if os.getppid() != _worker_of:
            os._exit(1)


os.register_at_fork(after_in_child=_in_worker)


@contextlib.contextmanager
def _without_start(tqm: t.Any) -> t.Iterator[None]:
    """While active, callbacks do not hear that a task starts."""
    stock = tqm.send_callback

    def send_callback(method_name: str, *args: t.Any, **kwargs: t.Any) -> None:
        if method_name != "v2_runner_on_start":
            stock(method_name, *args, **kwargs)

    tqm.send_callback = send_callback
    try:
        yield
    finally:
        tqm.send_callback = stock


@functools.cache
def _own_installed() -> bool:
    """Whether the collection with our connections can be found; if not, core's own serve."""
    return all(plugin_loader.connection_loader.has_plugin(name) for name in set(OWN_CONNECTIONS.values()))


_restore_in_child: list[t.Callable[[], None]] = []


def _after_fork_in_child() -> None:
    for restore in _restore_in_child:
        restore()


os.register_at_fork(after_in_child=_after_fork_in_child)


def _shallow(thing: t.Any) -> t.Any:
    """Another object of the same class with the same attributes."""
    copied = object.__new__(type(thing))
    copied.__dict__.update(thing.__dict__)
    return copied


@functools.cache
def connections(loader: t.Any) -> ConnectionLoader:
    """`loader` (core's connection loader) with ours in place of ssh and local."""
    return ConnectionLoader(loader)
