"""How code that waits for the pool gives way: by parking its fiber, or by blocking when there is none.

The executor's hub installs itself with `set_hub`. Everything else calls `current()` and `park()`; no other module knows about greenlets.
"""

from __future__ import annotations

import typing as t


class Hub(t.Protocol):
    """What the executor's hub offers to code running inside a fiber."""

    def current(self) -> object | None:
        """The fiber that runs now, or None when the caller is not inside a fiber."""

    def park(self, deadline: float | None) -> bool:
        """Suspend the current fiber until `wake()` (True) or until time.monotonic() passes `deadline` (False)."""

    def wake(self, fiber: object) -> None:
        """Make a parked fiber runnable; harmless when it is not parked."""


_hub: Hub | None = None


def set_hub(hub: Hub | None) -> None:
    """Install (or with None remove) the hub of this process."""
    global _hub
    _hub = hub


def current() -> object | None:
    """The fiber that runs now, or None: then the caller must block itself."""
    return _hub.current() if _hub is not None else None


def park(deadline: float | None) -> bool:
    """Suspend the current fiber; see `Hub.park`. Only valid when `current()` is not None."""
    assert _hub is not None
    return _hub.park(deadline)


def wake(fiber: object) -> None:
    """Make `fiber` runnable; see `Hub.wake`."""
    if _hub is not None:
        _hub.wake(fiber)
