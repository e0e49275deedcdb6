"""How a run leaves: under stock a signal that ends the run reaches what a worker had started through the worker's process group. Fibers start their SSH clients
(those of the built-in plugins) as children of the controller itself, so the controller passes the signal on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import typing as t

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@contextlib.contextmanager
def children_leave_too() -> t.Iterator[None]:
    """While active, SIGTERM, SIGINT and SIGHUP end the children of this process, and then do what they did before."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    owner = os.getpid()

    def leave(number: int, frame: t.Any) -> None:
        stock = before[signal.Signals(number)]
        signal.signal(number, stock)
        if os.getpid() == owner:
            end_children()
        if callable(stock):
            stock(number, frame)
        else:
            os.kill(os.getpid(), number)

    ours = [number for number in _SIGNALS if before[number] not in (signal.SIG_IGN, None)]
    try:
        for number in ours:
            signal.signal(number, leave)
    except ValueError:  # not the main thread: nobody's signals are ours
        ours = []
    try:
        yield
    finally:
        for number in ours:
            if signal.getsignal(number) is leave:
                signal.signal(number, before[number])


def end_children() -> None:
    """SIGTERM to every child. Where the kernel does not list them, they stay."""
    with contextlib.suppress(OSError):
        for thread in os.listdir("/proc/self/task"):
            with contextlib.suppress(OSError), open(f"/proc/self/task/{thread}/children") as file:
                for pid in file.read().split():
                    with contextlib.suppress(OSError):
                        os.kill(int(pid), signal.SIGTERM)
