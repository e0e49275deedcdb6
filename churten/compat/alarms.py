"""The task keyword `timeout` inside fibers."""

from __future__ import annotations

import contextlib
import typing as t

from churten.executor.hub import FiberHub


@contextlib.contextmanager
def fiber_alarms(error_class: t.Any, hub: FiberHub) -> t.Iterator[None]:
    """While active, error_class.alarm_timeout() uses the hub's timers when it is entered inside a fiber."""
    stock = error_class.alarm_timeout

    @contextlib.contextmanager
    def alarm_timeout(timeout: int | None) -> t.Iterator[None]:
        fiber = hub.current()
        # No timeout, and the errors for values that are none, are left to stock.
        if fiber is None or not isinstance(timeout, int) or not 0 < timeout <= error_class._MAX_TIMEOUT:
            with stock(timeout):
                yield
            return
        alarm = hub.alarm(fiber, timeout, error_class(timeout))
        try:
            yield
        finally:
            hub.alarm_cancel(alarm)

    error_class.alarm_timeout = alarm_timeout
    try:
        yield
    finally:
        del error_class.alarm_timeout  # the inherited classmethod shows again
