"""The hub of fibers by itself."""

import time

import pytest

from churten import _core

pytest.importorskip("greenlet")

from churten.executor.hub import FiberHub


class Over(BaseException):
    pass


def test_an_alarm_that_was_raised_is_not_cancelled_for_another_fiber():
    """Handles are used again: who cleans up late must not take the alarm of a fiber that has the handle by now."""
    hub = FiberHub(_core.Scheduler(2))
    ended, raised = [], []

    def late():
        alarm = hub.alarm(hub.current(), 0.01, Over())
        try:
            hub.park(time.monotonic() + 20)
        except Over:
            raised.append(alarm)
            hub.park(None)  # cleans up, and waits for something meanwhile
        hub.alarm_cancel(alarm)
        ended.append("late")

    def other():
        while not raised:
            hub.park(time.monotonic() + 0.005)
        # The handle given back last is the next: take all that were given back after that one.
        taken = [hub.alarm(hub.current(), 60, Over())]
        while taken[-1].handle != raised[0].handle:
            taken.append(hub.alarm(hub.current(), 60, Over()))
        hub.alarm_cancel(taken.pop())
        alarm = hub.alarm(hub.current(), 0.2, Over())
        assert alarm.handle == raised[0].handle
        hub.wake(raised[0].fiber)
        try:
            hub.park(time.monotonic() + 20)
        except Over:
            ended.append("other")
        for alarm in taken:
            hub.alarm_cancel(alarm)

    hub.spawn(late)
    hub.spawn(other)
    until = time.monotonic() + 30
    while hub.fibers and time.monotonic() < until:
        hub.turn(wait=True)
    hub.close()
    assert ended == ["late", "other"]
