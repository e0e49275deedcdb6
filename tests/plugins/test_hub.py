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
    ended = []

    def late():
        alarm = hub.alarm(hub.current(), 0.01, Over())
        try:
            hub.park(time.monotonic() + 20)
        except Over:
            ended.append("late")
            hub.park(time.monotonic() + 0.05)  # cleans up, and waits for something meanwhile
        hub.alarm_cancel(alarm)
        handles.append(alarm.handle)

    def other():
        while not ended:
            hub.park(time.monotonic() + 0.005)
        alarm = hub.alarm(hub.current(), 0.2, Over())
        handles.append(alarm.handle)
        try:
            hub.park(time.monotonic() + 20)
        except Over:
            ended.append("other")

    handles = []
    hub.spawn(late)
    hub.spawn(other)
    until = time.monotonic() + 30
    while hub.fibers and time.monotonic() < until:
        hub.turn(wait=True)
    hub.close()
    assert ended == ["late", "other"]
    assert len(set(handles)) == 1  # as it is meant to happen here
