"""Results on their way to callbacks: core copies each one for every callback plugin, and takes internal keys out of the copy, in Python. Here C does.

A callback of ours that looks at nothing but whose result it is and what became of it gets the result itself, with no copy made for it at all.
"""

from __future__ import annotations

import contextlib
import typing as t
from collections.abc import MutableMapping, MutableSequence

from ansible.errors import AnsibleError

from churten import _core

try:
    from ansible.errors import AnsibleCallbackError
except ImportError:  # core before 2.19
    AnsibleCallbackError = AnsibleError

try:
    from ansible.executor import task_result
except ImportError:  # core 2.21 and later copy otherwise
    task_result = None  # type: ignore[assignment]

_NAMES = ("module_response_deepcopy", "strip_internal_keys")
_NEEDED = ("_callback_plugins", "_callback_lock", "_callback_dispatch_error_handler")
_CONTAINERS = (MutableMapping, MutableSequence)


@contextlib.contextmanager
def quick_results() -> t.Iterator[None]:
    """While active, results are copied for callbacks by C."""
    stock = [getattr(task_result, name, None) for name in _NAMES]
    if None in stock:
        yield
        return
    copy, strip = t.cast("list[t.Callable[..., t.Any]]", stock)

    def module_response_deepcopy(v: t.Any) -> t.Any:
        return _core.response_copy(v, copy)

    def strip_internal_keys(dirty: t.Any, exceptions: t.Any = None) -> t.Any:
        _core.response_strip(dirty, () if exceptions is None else exceptions, _CONTAINERS, strip)
        return dirty

    for name, mine in zip(_NAMES, (module_response_deepcopy, strip_internal_keys), strict=True):
        setattr(task_result, name, mine)
    try:
        yield
    finally:
        for name, function in zip(_NAMES, stock, strict=True):
            setattr(task_result, name, function)


@contextlib.contextmanager
def uncopied_results(tqm: t.Any) -> t.Iterator[None]:
    """While active, callback plugins get their methods in `UNCOPIED` called with the strategy's own result, after all other plugins had theirs.

    They must not change it. Only where core knows each plugin's methods beforehand (2.19 and later); elsewhere nothing is different.
    """
    takers: dict[str, list[t.Any]] = {}
    before: list[tuple[t.Any, t.Any]] = []
    for plugin in tqm._callback_plugins if all(hasattr(tqm, name) for name in _NEEDED) else ():
        methods = getattr(plugin, "_implemented_callback_methods", None)
        mine = frozenset(getattr(plugin, "UNCOPIED", ()))
        if not mine or not isinstance(methods, frozenset) or not mine <= methods:
            continue
        before.append((plugin, methods))
        plugin._implemented_callback_methods = methods - mine
        for name in mine:
            takers.setdefault(name, []).append(plugin)
    if not takers:
        yield
        return
    stock = tqm.send_callback

    def send_callback(method_name: str, *args: t.Any, **kwargs: t.Any) -> None:
        stock(method_name, *args, **kwargs)
        for plugin in takers.get(method_name, ()):
            if plugin.disabled:
                continue
            with tqm._callback_lock:
                try:
                    getattr(plugin, method_name)(*args, **kwargs)
                except Exception as ex:
                    with tqm._callback_dispatch_error_handler.handle(AnsibleCallbackError):  # as core would
                        raise AnsibleCallbackError(f"Callback dispatch {method_name!r} failed for plugin {plugin._load_name!r}.") from ex

    tqm.send_callback = send_callback
    try:
        yield
    finally:
        tqm.send_callback = stock
        for plugin, methods in before:
            plugin._implemented_callback_methods = methods
