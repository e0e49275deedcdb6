"""The hub: fibers (greenlets) of the controller process and the one place where it waits.

The hub runs in the process's main greenlet. A fiber is switched to only from `turn()`, and switches back only in `park()`; everything between two
parks is as atomic as in a forked worker. What a fiber waits for is either an answer of the pool (the pump wakes it), a timer of the C scheduler, or a
thread that runs something that blocks. `turn()` sleeps in one poll() over the pool's socket and an epoll with everything else, so an idle controller
uses no CPU.

Life of a fiber: spawn -> ready -> running <-> parked -> dead. `wake`, `throw` and timers make it ready; the scheduler's ready queue is first in,
first out.
"""

from __future__ import annotations

import collections
import contextvars
import itertools
import os
import select
import threading
import time
import typing as t

import greenlet

from churten import _core, waiting

from .process_state import ProcessState

T = t.TypeVar("T")

# A pass of the hub never sleeps longer than this, so that Python runs its signal handlers even when a signal hit another thread.
MAX_WAIT_S = 1.0
_NOBODY = 0  # instead of a fiber's number (twice it, and 1 for an alarm), for a timer that calls back
_real_sleep = time.sleep


class NeedsFork(BaseException):
    """The task of the running fiber belongs into a forked worker; says why. Not an Exception: nobody on the way up may handle it."""


class Fiber(greenlet.greenlet):
    """One task on one host, running inside the controller."""

    def __init__(self, hub: FiberHub, number: int, run: t.Callable[[], None]) -> None:
        super().__init__(run, hub.main)
        self.number = number
        self.parked = True  # spawned fibers wait for their first turn
        self.queued = False
        self.woken = False
        self.error: BaseException | None = None  # to be raised at its next switch
        self.timer: int | None = None  # scheduler handle of the deadline it is parked with
        self.cpu_s = 0.0  # longest slice of local work without a wait
        self.acted = False  # it has parked or told something: it cannot begin anew in a fork
        self.fork_reason = ""  # why it had better been a fork
        # As a forked worker would: changes of context variables stay inside.
        self.gr_context = contextvars.copy_context()


class Alarm(t.NamedTuple):
    """An exception that will be raised in a fiber."""

    handle: int
    fiber: Fiber
    error: BaseException


class Lender(t.Protocol):
    """See `waiting.Hub.lend` and `retake`."""

    def lend_slot(self, fiber: Fiber) -> bool: ...

    def retake_slot(self, fiber: Fiber) -> None: ...


class FiberHub:
    """See the module's text. All methods belong to the main thread, except `kick`."""

    def __init__(self, scheduler: _core.Scheduler) -> None:
        self.main = greenlet.getcurrent()
        self.scheduler = scheduler
        self.fibers: dict[int, Fiber] = {}
        self.outside = contextvars.copy_context()  # what no fiber changes: callbacks run in it, as in stock's main process
        self.process = ProcessState()
        self.lender: Lender | None = None  # who gives out the slots in which fibers run
        self.no_park = 0  # > 0: the running fiber holds a lock of the controller and must not park
        self._numbers = itertools.count(1)
        self._closing = False
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll = select.epoll()
        self._epoll.register(self._event, select.EPOLLIN)
        self._watched: dict[int, t.Callable[[], None]] = {}
        self._from_threads: collections.deque[Fiber] = collections.deque()
        self._alarms: dict[int, Alarm] = {}  # by handle
        self._later: dict[int, t.Callable[[], None]] = {}

    def close(self) -> None:
        """Kill what still runs and release the descriptors."""
        self._closing = True
        for fiber in list(self.fibers.values()):
            self.fibers.pop(fiber.number, None)
            if fiber:
                fiber.throw(greenlet.GreenletExit)
        self._epoll.close()
        os.close(self._event)

    # --- called from inside fibers ---

    def current(self) -> Fiber | None:
        """The running fiber, unless it may not park now."""
        fiber = greenlet.getcurrent()
        return fiber if type(fiber) is Fiber and not self.no_park else None

    def park(self, deadline: float | None) -> bool:
        """See `waiting.Hub.park`."""
        fiber = greenlet.getcurrent()
        assert type(fiber) is Fiber and not self.no_park
        if self._closing:
            raise greenlet.GreenletExit
        if deadline is not None:
            fiber.timer = self.scheduler.timer_add(int(deadline * 1e6), fiber.number * 2)
        fiber.woken = False
        fiber.parked = True
        fiber.acted = True
        try:
            self.main.switch()
        finally:
            if fiber.timer is not None:
                self.scheduler.timer_cancel(fiber.timer)
                fiber.timer = None
        return fiber.woken

    def acted(self) -> None:
        """See `waiting.Hub.acted`."""
        fiber = greenlet.getcurrent()
        if type(fiber) is Fiber:
            fiber.acted = True

    def sleep(self, seconds: float) -> None:
        """time.sleep for the whole process while the hub is installed: parks a fiber, blocks anybody else."""
        if self.current() is None or seconds < 0:
            _real_sleep(seconds)
            return
        deadline = time.monotonic() + seconds
        while self.park(deadline):
            pass

    def lend(self) -> bool:
        """See `waiting.Hub.lend`."""
        fiber = self.current()
        return self.lender is not None and fiber is not None and self.lender.lend_slot(fiber)

    def retake(self) -> None:
        """See `waiting.Hub.retake`."""
        fiber = self.current()
        if self.lender is not None and fiber is not None and not self._closing:
            self.lender.retake_slot(fiber)

    def blocking(self, function: t.Callable[[], T]) -> T:
        """See `waiting.Hub.blocking`."""
        fiber = self.current()
        assert fiber is not None
        outcome: list[tuple[bool, t.Any]] = []
        context = contextvars.copy_context()

        def body() -> None:
            try:
                outcome.append((True, context.run(function)))
            except BaseException as ex:
                outcome.append((False, ex))
            self._from_threads.append(fiber)
            self.kick()

        threading.Thread(target=body, daemon=True, name="churten-blocking").start()
        while not outcome:
            self.park(None)
        is_value, value = outcome[0]
        if is_value:
            return t.cast(T, value)
        raise value

    def ask_for_fork(self, reason: str) -> None:
        """Raise NeedsFork in the running fiber; if it has done something already that a fork would do again, only note that the next should be one."""
        fiber = self.current()
        if fiber is not None:
            fiber.fork_reason = reason
            if not fiber.acted:
                raise NeedsFork(reason)

    def alarm(self, fiber: Fiber, seconds: float, error: BaseException) -> Alarm:
        """Raise `error` in `fiber` after `seconds`, at its park. Returns what `alarm_cancel` takes."""
        handle = self.scheduler.timer_add(int((time.monotonic() + seconds) * 1e6), fiber.number * 2 + 1)
        alarm = self._alarms[handle] = Alarm(handle, fiber, error)
        return alarm

    def alarm_cancel(self, alarm: Alarm) -> None:
        """Harmless when the alarm was raised already; its handle may be another one's by now."""
        if self._alarms.get(alarm.handle) is alarm:
            del self._alarms[alarm.handle]
            self.scheduler.timer_cancel(alarm.handle)

    # --- called from the main greenlet ---

    def spawn(self, run: t.Callable[[], None]) -> Fiber:
        """A new fiber that runs at the next turn. An exception that leaves `run` is raised from `turn()`."""
        fiber = Fiber(self, next(self._numbers), run)
        self.fibers[fiber.number] = fiber
        self.wake(fiber)
        return fiber

    def wake(self, fiber: object) -> None:
        """See `waiting.Hub.wake`."""
        assert type(fiber) is Fiber
        if fiber.parked and not fiber.queued and fiber.number in self.fibers:
            fiber.woken = True
            fiber.queued = True
            self.scheduler.ready_put(fiber.number)

    def throw(self, fiber: Fiber, error: BaseException) -> None:
        """Raise `error` in a parked fiber."""
        fiber.error = error
        self.wake(fiber)

    def watch(self, fd: int, callback: t.Callable[[], None]) -> None:
        """Call `callback` once when fd becomes readable."""
        self._watched[fd] = callback
        self._epoll.register(fd, select.EPOLLIN)

    def unwatch(self, fd: int) -> None:
        """Forget fd; must be called before it is closed."""
        if self._watched.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def kick(self) -> None:
        """End the current or next wait. The only method that any thread may call."""
        os.eventfd_write(self._event, 1)

    def later(self, seconds: float, callback: t.Callable[[], None]) -> None:
        """Call `callback` once, from `turn()`, when that time is over."""
        handle = self.scheduler.timer_add(int((time.monotonic() + seconds) * 1e6), _NOBODY)
        self._later[handle] = callback

    def run_ready(self) -> None:
        """One slice for every fiber that is ready now."""
        for number in self.scheduler.ready_take():
            fiber = self.fibers.get(number)
            if fiber is None:
                continue
            fiber.queued = False
            fiber.parked = False
            begin = time.thread_time()
            self.process.enter(fiber)
            try:
                error, fiber.error = fiber.error, None
                if error is not None:
                    fiber.throw(error)
                else:
                    fiber.switch()
            finally:
                self.process.leave(fiber)
                used = time.thread_time() - begin
                if used > fiber.cpu_s:
                    fiber.cpu_s = used
                if fiber.dead:
                    self.fibers.pop(number, None)

    def turn(self, wait: bool) -> None:
        """Run what is ready; with `wait`, sleep before until something is."""
        self._expire()
        self.run_ready()
        timeout_s = 0.0
        if wait and not self.scheduler.ready:
            timeout_s = MAX_WAIT_S
            next_us = self.scheduler.timer_next()
            if next_us >= 0:
                timeout_s = min(timeout_s, max(0.0, next_us / 1e6 - time.monotonic()))
        self._poll(timeout_s)
        self._expire()
        self.run_ready()

    def _poll(self, timeout_s: float) -> None:
        timeout_ms = int(timeout_s * 1000 + 0.999)
        pump = waiting.pump()
        if pump is not None:
            pump.pump(timeout_ms, self._epoll.fileno())
            timeout_ms = 0
        for fd, _events in self._epoll.poll(timeout_ms / 1000):
            if fd == self._event:
                os.eventfd_read(fd)
                while self._from_threads:
                    self.wake(self._from_threads.popleft())
            elif (callback := self._watched.get(fd)) is not None:
                self.unwatch(fd)
                callback()

    def _expire(self) -> None:
        now_us = int(time.monotonic() * 1e6)
        for number, handle in self.scheduler.timer_take(now_us):
            if number == _NOBODY:
                self._later.pop(handle)()
                continue
            fiber = self.fibers.get(number // 2)
            if number % 2:
                alarm = self._alarms.pop(handle, None)
                if alarm is not None and fiber is not None:
                    self.throw(alarm.fiber, alarm.error)
            elif fiber is not None:
                fiber.timer = None
                if fiber.parked and not fiber.queued:
                    fiber.queued = True  # but not woken: park() returns False
                    self.scheduler.ready_put(fiber.number)
