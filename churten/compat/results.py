"""Results on their way to callbacks: core copies each one for every callback plugin, and takes internal keys out of the copy, in Python. Here C does."""

from __future__ import annotations

import contextlib
import typing as t
from collections.abc import MutableMapping, MutableSequence

from churten import _core

try:
    from ansible.executor import task_result
except ImportError:  # core 2.21 and later copy otherwise
    task_result = None  # type: ignore[assignment]

_NAMES = ("module_response_deepcopy", "strip_internal_keys")
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
