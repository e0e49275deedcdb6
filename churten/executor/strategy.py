"""The executor: mixins that make a built-in strategy run its tasks as fibers.

Core's own run loop, iterator, result processing, includes, handlers and statistics stay as they are. Replaced are only

- `_queue_task`: starts a fiber (or, for what must not be a fiber, a stock worker) in a slot of the C scheduler;
- waiting: core's strategies wait by `time.sleep` in a loop; here that sleep is `_idle`, which runs fibers and sleeps in one poll();
- `free` only: `get_hosts_left` hands out the hosts that have something to do now, instead of all hosts on each pass.
"""

from __future__ import annotations

import collections
import time
import traceback
import typing as t

from ansible.errors import AnsibleError
from ansible.utils.display import Display

from churten import _core, waiting
from churten.compat import adapter
from churten.compat.callback import host_name, strategy_is, uuid
from churten.compat.callback import task as task_of
from churten.compat.contexts import separate
from churten.compat.lookups import careful_lookups
from churten.compat.plugin_state import watched_plugins
from churten.compat.results import uncopied_results
from churten.compat.strategy import CoreStrategy, FiberWorker, play_of, uncounted
from churten.timings import stamps
from churten.timings.workers import WorkerLog

from .departure import children_leave_too
from .engine import FIBER, FORK, Engines
from .garbage import fewer_collections
from .hub import Fiber, FiberHub, NeedsFork

display = Display()

FORK_PAUSES_S = (0.1, 0.4, 1.5)  # between attempts to start a worker
DEATHS_MAX, DEATHS_WITHIN_S = 3, 60.0  # more dead workers than that are no accident: the run ends, as it does under stock
LENT_MAX = 512  # hosts that are connected to beside those that have a slot: each keeps its variables in memory


class Results(collections.deque[t.Any]):
    """`strategy._results`: also filled by core's result thread, whose appends must end the hub's sleep."""

    def __init__(self, kick: t.Callable[[], None]) -> None:
        super().__init__()
        self._kick = kick

    def append(self, item: t.Any) -> None:
        stamps.arrived(host_name(item), uuid(task_of(item)))
        super().append(item)
        self._kick()

    def hand_over(self, item: t.Any, record: stamps.Stamps | None) -> None:
        """The same for a fiber's result, whose record is at hand."""
        if record is not None:
            record.received = time.monotonic()
        super().append(item)
        self._kick()


class Job:
    """One task on one host, from `_queue_task` to its result."""

    __slots__ = ("host", "task", "task_vars", "play_context", "throttle", "slot", "worker", "lent", "engine", "begun", "fiber", "waited", "refused", "record")

    def __init__(self, host: t.Any, task: t.Any, task_vars: dict[str, t.Any], play_context: t.Any, throttle: int) -> None:
        self.host = host
        self.task = task
        self.task_vars = task_vars
        self.play_context = play_context
        self.throttle = throttle
        self.slot = -1  # also while it is lent
        self.worker = -1  # its first slot, as logs call it
        self.lent = False
        self.engine = FIBER
        self.begun = 0.0
        self.fiber: Fiber | None = None
        self.waited = False
        self.refused = 0  # times that the system had no room for its worker
        self.record: stamps.Stamps | None = None


class FiberStrategy(CoreStrategy):
    """Mixin before a built-in StrategyModule; see the module's text."""

    # Set by the plugin file.
    churten_name: str
    builtin_name: str

    # Our scheduler throttles, whatever core's strategy would do.
    ALLOW_BASE_THROTTLING = False

    # None: nothing is replaced, the built-in strategy runs as it is.
    _hub: FiberHub = None  # type: ignore[assignment]  # None while no play runs

    def run(self, iterator: t.Any, play_context: t.Any) -> t.Any:
        """Run one play (or one serial batch) with the hub installed."""
        # Callbacks that treat the built-in strategy specially must see its name.
        play_of(iterator).strategy = self.builtin_name
        strategy_is(self._callbacks, self.builtin_name)
        try:
            self._adapter = adapter()
        except AnsibleError as ex:
            display.warning(f"{ex.message} The built-in strategy {self.builtin_name} runs this play.")
            return super().run(iterator, play_context)  # type: ignore[misc]
        self._iterator = iterator
        slots = self._slot_limit()
        self._scheduler = _core.Scheduler(slots)
        self._hub = FiberHub(self._scheduler)
        # One slot means one after the other: a host that is slow to connect must not be overtaken.
        self._hub.lender = self if slots > 1 else None
        self._fiber_jobs: dict[Fiber, Job] = {}
        self._n_lent = 0
        self._without_slot: collections.deque[Job] = collections.deque()  # lent theirs and want one again
        self._engines = Engines(self._adapter, play_of(iterator), self._variable_manager, self._inventory, self._opted_in())
        self._results = Results(self._hub.kick)
        self._jobs: dict[tuple[str, str], Job] = {}
        self._throttled: dict[int, Job] = {}
        self._changing: collections.deque[Job] = collections.deque()  # from their fiber to a fork, which is started outside any fiber
        self._deaths: list[float] = []  # when workers ended without a result
        self._remaining: tuple[t.Any, ...] | None = None
        self._log = WorkerLog()
        stamps.slots(slots)
        self._log.started(self._parallel_limit if self._parallel_limit is not None else slots)
        waiting.set_hub(self._hub)
        try:
            self._adapter.wake_on_rpc(self, self._hub.kick)
            lookups = frozenset(self._option("fiber_lookups") or ())
            with (
                children_leave_too(),
                self._adapter.installed(self._hub, self._idle),
                careful_lookups(self._hub, lookups),
                self._hub.process.watched(),
                watched_plugins(self._hub.process.register),
                fewer_collections(),
                uncopied_results(self._tqm),
            ):
                return super().run(iterator, play_context)  # type: ignore[misc]
        finally:
            hub, self._hub = self._hub, None  # type: ignore[assignment]
            try:
                hub.close()
            finally:
                waiting.set_hub(None)
                stamps.slots(None)

    # --- options ---

    def _option(self, name: str) -> t.Any:
        return self._adapter.option(self.churten_name, name)

    def _slot_limit(self) -> int:
        """Slots of this play: forks, or max_parallel_workers (0 = one after the other)."""
        limit = self._option("max_parallel_workers")
        self._parallel_limit = limit
        if limit is None:
            return max(1, len(self._workers))
        if limit < 0:
            raise AnsibleError(f"max_parallel_workers must be 0 (sequential) or a positive number, not {limit}.")
        slots = max(1, min(limit, self._iterator.batch_size))
        self._workers[:] = [None] * slots
        return slots

    def _opted_in(self) -> frozenset[str]:
        return frozenset(self._option("fiber_actions") or ())

    # --- starting tasks ---

    def _queue_task(self, host: t.Any, task: t.Any, task_vars: dict[str, t.Any], play_context: t.Any) -> None:
        """Core's hook: start `task` on `host`; returns when it has a slot or waits for its throttle."""
        if self._hub is None:
            super()._queue_task(host, task, task_vars, play_context)  # type: ignore[misc]
            return
        record = stamps.begin(host.name, uuid(task))
        self._blocked_hosts[host.name] = True
        template = self._adapter.templater(self, task_vars)
        try:
            throttle = int(template(task.throttle))
        except Exception as ex:
            raise self._adapter.throttle_error(task, ex) from ex
        if task.run_once and not isinstance(self, FreeFiberStrategy):
            throttle = 0
        job = Job(host, task, task_vars, play_context, throttle)
        job.record = record
        job.engine, reason = self._engines.choose(task, task_vars, template)
        display.vvvv(f"engine: {job.engine} ({reason}) for {task.action}", host=host.name)
        self._jobs[host.name, uuid(task)] = job
        self._pending_results += 1
        if throttle > 0:
            number = id(job)
            self._throttled[number] = job
            if not self._scheduler.throttle_enter(self._throttle_key(task), throttle, number):
                job.waited = True
                return
        self._start(job)

    @staticmethod
    def _throttle_key(task: t.Any) -> int:
        return hash(uuid(task)) & 0xFFFFFFFFFFFFFFFF

    def _start(self, job: Job) -> None:
        """Give the job a slot (waiting for one if need be) and run it."""
        while (slot := self._scheduler.slot_acquire()) < 0:
            self._hub.turn(wait=not self._changing)
            self._change_to_forks()
            self._adapter.process_rpc(self)
            if self._is_terminated:
                self._pending_results -= 1
                return
        job.slot = job.worker = slot
        job.begun = time.monotonic()
        host, task = job.host, job.task
        if job.waited:
            # As if it had been queued only now: it must see what has changed while it waited.
            job.task_vars = self._variable_manager.get_vars(
                play=play_of(self._iterator), host=host, task=task, _hosts=self._hosts_cache, _hosts_all=self._hosts_cache_all
            )
            self.add_tqm_variables(job.task_vars, play=play_of(self._iterator))
        if (record := job.record) is not None:
            record.slot, record.engine, record.worker = time.monotonic(), job.engine, slot
        self._log.begin(slot, task.get_name(), host.name, self._active())
        if job.engine == FIBER:
            self._start_fiber(job)
        else:
            self._start_fork(job)

    def _active(self) -> int:
        return len(self._workers) - self._scheduler.free

    def _start_fiber(self, job: Job) -> None:
        host, task = job.host, job.task
        self._queued_task_cache[host.name, uuid(task)] = {
            "host": host,
            "task": task,
            "task_vars": job.task_vars,
            "play_context": job.play_context,
        }
        self._workers[job.slot] = FiberWorker()
        self._tqm.send_callback("v2_runner_on_start", host, task)

        def body() -> None:
            separate()
            stamps.enter(job.record)
            try:
                if reason := self._engines.must_fork(task):
                    raise NeedsFork(reason)
                result = self._adapter.run_task(self, self._hub, host, task, _core.isolate(job.task_vars), job.play_context)
            except NeedsFork as ex:
                self._engines.fork_from_now_on(task, str(ex))
                display.vvvv(f"engine: fork ({ex}) for {task.action}", host=host.name)
                self._changing.append(job)
                return
            except Exception as ex:
                # Stock's worker would die here and end the run; one failed task is enough.
                display.vvv(traceback.format_exc(), host=host.name)
                result = self._adapter.lost_result(self, host, task, f"Unexpected failure of the task's fiber: {ex!r}")
            assert job.fiber is not None
            self._engines.strike(task, job.fiber.cpu_s)
            if job.fiber.fork_reason:
                self._engines.fork_from_now_on(task, job.fiber.fork_reason)
            with self._results_lock:
                self._results.hand_over(result, job.record)
            self._leave(job, result)

        job.fiber = self._hub.spawn(body)
        self._fiber_jobs[job.fiber] = job

    def _change_to_forks(self) -> None:
        """Fibers that ended without doing anything: forks take their slots over. And forks for which there was no room: once more."""
        while self._changing:
            job = self._changing.popleft()
            self._workers[job.slot] = None
            if job.engine == FIBER:
                job.engine = FORK
                self._fiber_jobs.pop(t.cast(Fiber, job.fiber), None)
                job.fiber = None
                if job.record is not None:
                    job.record.engine = FORK
            self._start_fork(job, announced=True)

    def _start_fork(self, job: Job, announced: bool = False) -> None:
        # _queue_task of core counts it again.
        self._pending_results -= 1
        stamps.announce(job.host.name, uuid(job.task))
        worker = self._adapter.queue_fork(self, job.slot, job.host, job.task, job.task_vars, job.play_context, announced)
        if worker is None:
            self._scheduler.slot_release(job.slot)
            return
        if worker.pid is None:
            self._no_room(job)
            return
        uncounted(worker)

        def ended() -> None:
            worker.join()
            exitcode = worker.exitcode
            self._workers[job.slot] = None
            worker.close()
            result = None
            if exitcode:
                result = self._adapter.lost_result(
                    self, job.host, job.task, f"The worker process of this task died with exit code {exitcode} and left no result."
                )
                with self._results_lock:
                    self._results.append(result)
                self._deaths.append(time.monotonic())
            self._leave(job, result)

        self._hub.watch(worker.sentinel, ended)

    def _check_deaths(self) -> None:
        """Ends the run in core's words if worker after worker dies."""
        if len(self._deaths) > DEATHS_MAX and self._deaths[-1] - self._deaths[-1 - DEATHS_MAX] < DEATHS_WITHIN_S:
            raise AnsibleError("A worker was found in a dead state")

    def _no_room(self, job: Job) -> None:
        """There was no process to be had for the task. Core forgets such a task without a word; here it is tried again, then it has failed."""
        self._workers[job.slot] = None
        self._pending_results += 1
        if job.refused < len(FORK_PAUSES_S):
            pause_s = FORK_PAUSES_S[job.refused]
            job.refused += 1
            self._workers[job.slot] = FiberWorker()
            self._hub.later(pause_s, lambda: self._changing.append(job))
            return
        result = self._adapter.lost_result(self, job.host, job.task, "No worker process could be started for this task: the system allows no more.")
        with self._results_lock:
            self._results.append(result)
        self._leave(job, result)

    def _leave(self, job: Job, result: t.Any) -> None:
        """The job is done with its slot and its throttle."""
        self._free_slot(job)
        self._not_lent(job)
        if job.fiber is not None:
            self._fiber_jobs.pop(job.fiber, None)
        self._jobs.pop((job.host.name, uuid(job.task)), None)
        seconds = time.monotonic() - job.begun
        self._log.end(job.worker, job.task.get_name(), job.host.name, self._active(), seconds, self._adapter.status(result))
        if job.throttle > 0:
            self._throttled.pop(id(job), None)
            number = self._scheduler.throttle_leave(self._throttle_key(job.task))
            if number is not None:
                self._released.append(self._throttled[number])

    # --- slots of tasks that only wait for a connection ---

    def _free_slot(self, job: Job) -> None:
        slot, job.slot = job.slot, -1
        if slot < 0:
            return
        if isinstance(self._workers[slot], FiberWorker):
            self._workers[slot] = None
        while self._without_slot:
            other = self._without_slot.popleft()
            if other.fiber is not None and self._fiber_jobs.get(other.fiber) is other:
                other.slot = slot
                self._workers[slot] = FiberWorker()
                self._hub.wake(other.fiber)
                return
        self._scheduler.slot_release(slot)

    def lend_slot(self, fiber: Fiber) -> bool:
        """See `waiting.Hub.lend`."""
        job = self._fiber_jobs.get(fiber)
        if job is None or job.slot < 0 or self._n_lent >= LENT_MAX:
            return False
        self._free_slot(job)
        job.lent = True
        self._n_lent += 1
        return True

    def _not_lent(self, job: Job) -> None:
        self._n_lent -= job.lent
        job.lent = False

    def retake_slot(self, fiber: Fiber) -> None:
        """See `waiting.Hub.retake`."""
        job = self._fiber_jobs[fiber]
        self._not_lent(job)
        job.slot = self._scheduler.slot_acquire()
        if job.slot >= 0:
            self._workers[job.slot] = FiberWorker()
            return
        self._without_slot.append(job)
        try:
            while job.slot < 0:
                self._hub.park(None)
        except BaseException:
            if job in self._without_slot:
                self._without_slot.remove(job)
            raise

    @property
    def _released(self) -> collections.deque[Job]:
        """Jobs whose throttle let them go; started by `_idle`, outside any fiber."""
        return self.__dict__.setdefault("_released_jobs", collections.deque())  # type: ignore[no-any-return]

    # --- waiting ---

    def _has_news(self) -> bool:
        """Whether core's loop has something to do before it sleeps again."""
        return bool(self._results)

    def _idle(self) -> None:
        """What core's strategies take for time.sleep: run fibers and wait until there is news."""
        wait = False
        self._check_deaths()
        while True:
            self._adapter.process_rpc(self)
            self._change_to_forks()
            while self._released and self._scheduler.free:
                self._start(self._released.popleft())
            self._hub.turn(wait=wait)
            if self._has_news() or self._is_terminated or not self._pending_results:
                return
            wait = True

    # --- what core computes per host and task, made cheap ---

    def add_tqm_variables(self, vars: dict[str, t.Any], play: t.Any) -> None:
        """Core's own, computed anew only when a host failed, was lost or was added."""
        if self._hub is None:
            super().add_tqm_variables(vars, play)  # type: ignore[misc]
            return
        failed, unreachable = self._failed, self._unreachable
        known = self._remaining
        if (
            known is None
            or known[0] is not self._hosts_cache
            or known[1] != len(self._hosts_cache)
            or known[2] != failed
            or known[3] != unreachable
        ):
            super().add_tqm_variables(vars, play)  # type: ignore[misc]
            self._remaining = (
                self._hosts_cache,
                len(self._hosts_cache),
                dict(failed),
                dict(unreachable),
                vars["ansible_current_hosts"],
                vars["ansible_failed_hosts"],
            )
        known = self._remaining
        assert known is not None
        vars["ansible_current_hosts"] = list(known[4])
        vars["ansible_failed_hosts"] = list(known[5])


class FreeFiberStrategy(FiberStrategy):
    """For the built-in `free`: passes only over hosts that have something to do.

    A host is in exactly one of these places: `_waiting` (may have a next task), handed out in the current pass, blocked (its task runs or its result
    waits), or done. Before the play ends, one pass over all hosts, as core makes it, confirms that nobody has anything left.
    """

    _unlimited = -1

    def run(self, iterator: t.Any, play_context: t.Any) -> t.Any:
        self._waiting: collections.deque[t.Any] | None = None
        self._handed: list[t.Any] = []
        self._acted: set[str] = set()
        self._turn_results = self._unlimited
        return super().run(iterator, play_context)

    def _queue_task(self, host: t.Any, task: t.Any, task_vars: dict[str, t.Any], play_context: t.Any) -> None:
        self._acted.add(host.name)
        super()._queue_task(host, task, task_vars, play_context)

    def _execute_meta(self, task: t.Any, play_context: t.Any, iterator: t.Any, target_host: t.Any) -> t.Any:
        self._acted.add(target_host.name)
        return super()._execute_meta(task, play_context, iterator, target_host)  # type: ignore[misc]

    def get_hosts_left(self, iterator: t.Any) -> list[t.Any]:
        """Core's hook at the start of each pass: hosts that may start a task now, and those whose results the pass will handle."""
        if self._hub is None:
            return super().get_hosts_left(iterator)  # type: ignore[misc,no-any-return]
        base = self._unreachable
        if self._waiting is None:
            self._waiting = collections.deque(super().get_hosts_left(iterator))  # type: ignore[misc]
        for host in self._handed:
            if host.name in self._acted and not self._blocked_hosts.get(host.name):
                self._enqueue(host)
        self._acted.clear()
        self._handed = []
        with self._results_lock:
            self._turn_results = len(self._results)
            arrived = {host.name: host for host in map(self._adapter.result_host, self._results)}
        self._hand_out(lambda host: host.name not in base and host.name not in arrived)
        left = [host for name, host in arrived.items() if name not in base]
        if not left:
            for job in self._jobs.values():
                if self._blocked_hosts.get(job.host.name):
                    left.append(job.host)
                    break
        # Core ends the play after a pass in which no host is blocked and none has a task; so a pass without a blocked host needs one with a task.
        while not left and self._handed and iterator.get_next_task_for_host(self._handed[0], peek=True)[1] is None:
            self._finished(self._handed.pop(0))
            if not self._handed:
                self._hand_out(lambda host: host.name not in base)
        if left or self._handed:
            return self._handed + left
        # Nothing is running and nothing is known to be left: one pass over all hosts, as core does.
        self._turn_results = self._unlimited
        left = super().get_hosts_left(iterator)  # type: ignore[misc]
        self._handed = list(left)
        return left

    def _enqueue(self, host: t.Any) -> None:
        """The host may have a next task."""
        assert self._waiting is not None
        self._waiting.append(host)

    def _has_waiting(self) -> bool:
        """Whether a host that could be handed out waits."""
        return bool(self._waiting)

    def _finished(self, host: t.Any) -> None:
        """The host has no task left, as far as is known now."""

    def _hand_out(self, fit: t.Callable[[t.Any], bool]) -> None:
        """Move hosts from `_waiting` to `_handed`, no more than can start a task now; hosts that are not fit are dropped."""
        assert self._waiting is not None
        while self._waiting and len(self._handed) < max(1, self._scheduler.free):
            host = self._waiting.popleft()
            if fit(host):
                self._handed.append(host)

    def _process_pending_results(self, iterator: t.Any, one_pass: bool = False, max_passes: int | None = None) -> list[t.Any]:
        """Core's own, for the results that were there when the pass began: it adds included tasks only to hosts of its pass."""
        if self._hub is None:
            return super()._process_pending_results(iterator, one_pass=one_pass, max_passes=max_passes)  # type: ignore[misc,no-any-return]
        later: list[t.Any] = []
        if self._turn_results != self._unlimited:
            with self._results_lock:
                while len(self._results) > self._turn_results:
                    later.append(self._results.pop())
        results = super()._process_pending_results(iterator, one_pass=one_pass, max_passes=max_passes)  # type: ignore[misc]
        if later:
            with self._results_lock:
                self._results.extend(reversed(later))
        handed = {host.name for host in self._handed}
        for host in map(self._adapter.result_host, results):
            if not self._blocked_hosts.get(host.name) and host.name not in handed and self._waiting is not None:
                self._enqueue(host)
        return t.cast("list[t.Any]", results)

    def _has_news(self) -> bool:
        if self._results:
            return True
        unblocked = self._has_waiting() or any(not self._blocked_hosts.get(name) for name in self._acted)
        return bool(unblocked) and self._scheduler.free > 0


class PinnedFiberStrategy(FreeFiberStrategy):
    """For the built-in `host_pinned`: at most as many hosts are under way as there are slots, each until it has no task left."""

    def run(self, iterator: t.Any, play_context: t.Any) -> t.Any:
        self._pinned: set[str] = set()
        self._resumed: collections.deque[t.Any] = collections.deque()  # pinned hosts that may have a next task
        return super().run(iterator, play_context)

    def get_hosts_left(self, iterator: t.Any) -> list[t.Any]:
        """Hosts of the last pass that found nothing to do give their place to new ones."""
        for host in self._handed:
            if host.name not in self._acted and not self._blocked_hosts.get(host.name):
                self._finished(host)
        self._pinned.difference_update(self._unreachable)
        return super().get_hosts_left(iterator)

    def _finished(self, host: t.Any) -> None:
        self._pinned.discard(host.name)

    def _enqueue(self, host: t.Any) -> None:
        if host.name in self._pinned:
            self._resumed.append(host)
        else:
            super()._enqueue(host)

    def _has_waiting(self) -> bool:
        return bool(self._resumed) or bool(self._waiting and len(self._pinned) < len(self._workers))

    def _hand_out(self, fit: t.Callable[[t.Any], bool]) -> None:
        assert self._waiting is not None
        self._handed += filter(fit, self._resumed)
        self._resumed.clear()
        while self._waiting and len(self._pinned) < len(self._workers):
            host = self._waiting.popleft()
            if fit(host):
                self._pinned.add(host.name)
                self._handed.append(host)
