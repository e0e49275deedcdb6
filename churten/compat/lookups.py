"""Lookup plugins inside fibers: one that blocks would keep all other hosts waiting, where in stock's forks it only delays its own.

Core's lookups that run a command do so in a thread, while their fiber is parked. `url` does not: while it asks for an address the C library holds locks,
and a worker forked at that moment would inherit them. Its task is given to a forked worker, and so is that of a third-party lookup, of which nobody knows
what it does, unless the option `fiber_lookups` names it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import typing as t

import ansible.plugins.lookup
from ansible.plugins.loader import lookup_loader

from churten import waiting
from churten.executor.hub import FiberHub
from churten.transport import chain

# Core's lookups that run a command.
WAITING = frozenset({"lines", "pipe"})
_CORE = os.path.dirname(ansible.plugins.lookup.__file__)


@contextlib.contextmanager
def careful_lookups(hub: FiberHub, opted_in: frozenset[str]) -> t.Iterator[None]:
    """While active, lookups do not block fibers."""
    stock = lookup_loader.get
    changed: list[dict[str, t.Any]] = []  # globals of lookups whose `subprocess` is ours meanwhile

    def get(name: str, *args: t.Any, **kwargs: t.Any) -> t.Any:
        plugin = stock(name, *args, **kwargs)
        if plugin is None or hub.current() is None or kwargs.get("class_only"):
            return plugin
        chain.settle()
        folder, file = os.path.split(getattr(plugin, "_original_path", None) or "")
        if folder != _CORE:
            if name not in opted_in:
                hub.ask_for_fork(f"third-party lookup {name}")
        elif file == "url.py":
            hub.ask_for_fork("the lookup url asks a server")
        elif os.path.splitext(file)[0] in WAITING:
            names = plugin.run.__func__.__globals__
            if names.get("subprocess") is subprocess:
                names["subprocess"] = _Subprocess()
                changed.append(names)
            plugin.run = functools.partial(_aside, plugin.run)
        return plugin

    lookup_loader.get = get  # type: ignore[method-assign]
    try:
        yield
    finally:
        del lookup_loader.get  # the class's own shows again
        for names in changed:
            names["subprocess"] = subprocess


class _Subprocess:
    """Stands for the module `subprocess` in a lookup. Core keeps its standard streams from the children of the main process and gives workers the null
    device; a child with none at all would take the first file it opens for its standard error."""

    def __getattr__(self, name: str) -> t.Any:
        return getattr(subprocess, name)

    def Popen(self, *args: t.Any, **kwargs: t.Any) -> t.Any:
        for fd, name in enumerate(("stdin", "stdout", "stderr")):
            if kwargs.get(name) is None and not _is_inherited(fd):
                kwargs[name] = subprocess.DEVNULL
        return subprocess.Popen(*args, **kwargs)


def _is_inherited(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False


def _aside(run: t.Callable[..., t.Any], *args: t.Any, **kwargs: t.Any) -> t.Any:
    return waiting.blocking(functools.partial(run, *args, **kwargs))
