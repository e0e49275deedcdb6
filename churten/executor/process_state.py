"""What a forked worker would have kept to itself: changes a task's plugins make to the whole process.

A fiber may change the environment, the working directory, the umask, signal handlers, the locale, Python's random numbers and the like: a filter or a
plugin does. In a fork that ends with the task. Here every slice of a fiber begins with what the fiber itself has changed and ends with what the
controller had. The environment and sys.path are compared after each slice; everything else is changed by few functions, and these note it when they are
called inside a fiber. So a task that changes nothing costs two comparisons.

Variables of third-party plugin modules are such state, too: a fork loads a plugin anew for each task. Names of the module and of its classes are put back,
and so are the contents of lists, dicts and sets that stand there.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import locale
import os
import random
import signal
import socket
import sys
import tempfile
import types
import typing as t

import greenlet

from churten import _core

Getter = t.Callable[[], t.Any]
Setter = t.Callable[[t.Any], t.Any]
# The functions as they are outside of fibers.
_chdir, _umask, _signal, _setlocale, _setstate, _timeout = os.chdir, os.umask, signal.signal, locale.setlocale, random.setstate, socket.setdefaulttimeout


def _folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return None


def _enter_folder(path: str | None) -> None:
    if path is not None:
        with contextlib.suppress(OSError):
            _chdir(path)


def _read_umask() -> int:
    mask = _umask(0o077)
    _umask(mask)
    return mask


def _handle(number: int, handler: t.Any) -> None:
    if handler is not None:  # not set from Python: cannot be set again
        _signal(number, handler)


# What the hooked functions change: a name of it -> how to read and write it. Signal handlers come by number.
_PARTS: dict[t.Hashable, tuple[Getter, Setter]] = {
    "folder": (_folder, _enter_folder),
    "umask": (_read_umask, _umask),
    "locale": (lambda: _setlocale(locale.LC_ALL), lambda name: _setlocale(locale.LC_ALL, name)),
    "random": (random.getstate, _setstate),
    "timeout": (socket.getdefaulttimeout, _timeout),
}
_HOOKED: tuple[tuple[t.Any, str, str], ...] = (
    (os, "chdir", "folder"),
    (os, "fchdir", "folder"),
    (os, "umask", "umask"),
    (signal, "signal", "signal"),
    (locale, "setlocale", "locale"),
    (random, "seed", "random"),
    (random, "setstate", "random"),
    (socket, "setdefaulttimeout", "timeout"),
)


def _part(key: t.Hashable) -> tuple[Getter, Setter]:
    if isinstance(key, int):
        return functools.partial(signal.getsignal, key), functools.partial(_handle, key)
    return _PARTS[key]


def _is_other(known: dict[bytes, bytes]) -> bool:
    """Whether the environment is another than `known`."""
    environ = _environ()
    return not _core.same_items(environ, known) and environ != known


def _environ() -> dict[t.Any, t.Any]:
    return os.environ._data  # type: ignore[attr-defined,no-any-return]  # compared without decoding


def _set_environ(data: dict[bytes, bytes]) -> None:
    now = os.environb
    for name in [name for name in now if name not in data]:
        del now[name]
    for name, value in data.items():
        if now.get(name) != value:
            now[name] = value


# A table in a plugin with more entries than this is compared by its length only.
_LARGE = 200


class ModuleVariables:
    """The names of a plugin module and of its classes, and the containers they stand for, at one moment."""

    def __init__(self, module: types.ModuleType) -> None:
        classes = [one for one in vars(module).values() if isinstance(one, type) and one.__module__ == module.__name__]
        self._owners = [(owner, dict(vars(owner))) for owner in (module, *classes)]
        self._containers: list[tuple[t.Any, t.Any]] = []
        for _, names in self._owners:
            for name, value in names.items():
                if type(value) in (dict, list, set) and not name.startswith("__"):
                    try:
                        kept = copy.deepcopy(value) if len(value) <= _LARGE else copy.copy(value)
                    except Exception:  # holds something that cannot be copied
                        kept = copy.copy(value)
                    self._containers.append((value, kept))

    def changed(self) -> bool:
        """Whether the module is different now."""
        try:
            for owner, names in self._owners:
                if vars(owner) != names:
                    return True
            return any(len(value) != len(kept) or (len(kept) <= _LARGE and value != kept) for value, kept in self._containers)
        except Exception:  # a comparison that fails says that these are not the same objects
            return True

    def put(self) -> None:
        """The module is again as it was."""
        for owner, names in self._owners:
            now = vars(owner)
            for name in [name for name in now if name not in names]:
                delattr(owner, name)
            for name, value in names.items():
                if now.get(name) is not value:
                    setattr(owner, name, value)
        for value, kept in self._containers:
            if value != kept:
                fresh = copy.deepcopy(kept) if len(kept) <= _LARGE else kept
                value.clear()
                value.extend(fresh) if isinstance(value, list) else value.update(fresh)


class Private:
    """What one fiber has changed; kept while another one runs."""

    def __init__(self) -> None:
        self.environ: dict[bytes, bytes] | None = None
        self.path: list[str] | None = None
        self.tempdir: str | None = None
        self.modules: dict[types.ModuleType, ModuleVariables] = {}
        self.parts: dict[t.Hashable, t.Any] = {}  # parts it has touched, with its own values while it does not run


class ProcessState:
    """Belongs to the hub. `enter` and `leave` go around each slice of a fiber and must be cheap."""

    def __init__(self) -> None:
        self._own: dict[greenlet.greenlet, Private] = {}
        self._running: greenlet.greenlet | None = None
        self._environ = dict(_environ())
        self._path = list(sys.path)
        self._tempdir = tempfile.tempdir
        self._modules: dict[types.ModuleType, ModuleVariables] = {}  # as the controller has them
        self._base: dict[t.Hashable, t.Any] = {}  # the controller's values of the parts that the running fiber has touched

    def enter(self, fiber: greenlet.greenlet) -> None:
        """`fiber` runs from now on."""
        if _is_other(self._environ):
            self._environ = dict(_environ())
        if sys.path != self._path:
            self._path = list(sys.path)
        self._tempdir = tempfile.tempdir
        self._running = fiber
        for module, known in self._modules.items():
            if known.changed():
                self._modules[module] = ModuleVariables(module)
        own = self._own.get(fiber)
        if own is not None:
            for variables in own.modules.values():
                variables.put()
            if own.environ is not None:
                _set_environ(own.environ)
            if own.path is not None:
                sys.path[:] = own.path
            if own.tempdir is not None:
                tempfile.tempdir = own.tempdir
            for key, value in own.parts.items():
                get, put = _part(key)
                self._base[key] = get()
                put(value)

    def leave(self, fiber: greenlet.greenlet) -> None:
        """`fiber` has stopped: the process is as it was before."""
        self._running = None
        if _is_other(self._environ):
            self._private(fiber).environ = dict(_environ())
            _set_environ(self._environ)
        if sys.path != self._path:
            self._private(fiber).path = list(sys.path)
            sys.path[:] = self._path
        if tempfile.tempdir is not self._tempdir and self._tempdir is not None:
            self._private(fiber).tempdir = tempfile.tempdir
            tempfile.tempdir = self._tempdir
        for module, known in self._modules.items():
            if known.changed():
                if not fiber.dead:
                    self._private(fiber).modules[module] = ModuleVariables(module)
                known.put()
        if self._base:
            parts = self._private(fiber).parts
            for key, value in self._base.items():
                get, put = _part(key)
                parts[key] = get()
                put(value)
            self._base = {}
        if fiber.dead:
            self._own.pop(fiber, None)

    def register(self, module: types.ModuleType) -> None:
        """A plugin module whose variables every task has for itself; just loaded."""
        if module not in self._modules:
            self._modules[module] = ModuleVariables(module)

    def _private(self, fiber: greenlet.greenlet) -> Private:
        return self._own.setdefault(fiber, Private())

    @contextlib.contextmanager
    def outside(self) -> t.Iterator[None]:
        """For what a fiber does on behalf of the controller: callbacks change the controller."""
        fiber = self._running
        if fiber is None:
            yield
            return
        self.leave(fiber)
        try:
            yield
        finally:
            self.enter(fiber)

    @contextlib.contextmanager
    def watched(self) -> t.Iterator[None]:
        """While active, the functions that change the process note it when a fiber calls them."""
        stock = [(module, name, getattr(module, name)) for module, name, _ in _HOOKED]
        for module, name, part in _HOOKED:
            setattr(module, name, self._noting(getattr(module, name), part))
        try:
            yield
        finally:
            for module, name, function in stock:
                setattr(module, name, function)

    def _noting(self, stock: t.Callable[..., t.Any], part: str) -> t.Callable[..., t.Any]:
        @functools.wraps(stock)
        def noting(*args: t.Any, **kwargs: t.Any) -> t.Any:
            # Threads have a greenlet of their own, and a forked worker has no fiber that runs.
            if self._running is not None and greenlet.getcurrent() is self._running:
                key: t.Hashable = int(args[0]) if part == "signal" and args else part
                if key not in self._base:
                    self._base[key] = _part(key)[0]()
            return stock(*args, **kwargs)

        return noting
