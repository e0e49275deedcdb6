"""churten._core.Scheduler from Python: use, misuse, reference counts."""

import sys

import pytest

from churten import _core


def test_slots():
    sched = _core.Scheduler(2)
    assert (sched.slot_acquire(), sched.slot_acquire(), sched.slot_acquire()) == (0, 1, -1)
    assert sched.free == 0
    sched.slot_release(0)
    assert sched.slot_acquire() == 0
    with pytest.raises(_core.Error):
        sched.slot_release(7)


@pytest.mark.parametrize("slots", [0, 1_000_001])
def test_slot_count_is_checked(slots):
    with pytest.raises(ValueError, match=str(slots)):
        _core.Scheduler(slots)


def test_ready_queue():
    sched = _core.Scheduler(1)
    for number in (3, 1, 2**64 - 1):
        sched.ready_put(number)
    assert sched.ready == 3
    assert sched.ready_take() == [3, 1, 2**64 - 1]
    assert sched.ready_take() == []
    with pytest.raises(OverflowError):
        sched.ready_put(-1)


def test_throttle():
    sched = _core.Scheduler(1)
    assert sched.throttle_enter(5, 1, 10) is True
    assert sched.throttle_enter(5, 1, 11) is False
    assert sched.throttle_leave(5) == 11
    assert sched.throttle_leave(5) is None
    with pytest.raises(_core.Error):
        sched.throttle_leave(5)


def test_timers():
    sched = _core.Scheduler(1)
    handles = {when: sched.timer_add(when, when * 10) for when in (50, 30, 40)}
    sched.timer_cancel(handles[30])
    assert sched.timer_next() == 40
    assert sched.timer_take(45) == [(400, handles[40])]
    assert sched.timer_take(45) == []
    with pytest.raises(_core.Error):
        sched.timer_cancel(handles[30])


def test_type_is_released():
    def use():
        for _ in range(1000):
            _core.Scheduler(4).ready_put(1)
        return sys.getrefcount(_core.Scheduler)

    use()  # the interpreter's own caches may take a reference
    assert use() == use()
