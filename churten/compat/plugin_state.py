"""Variables of third-party plugin modules: which modules core has loaded."""

from __future__ import annotations

import contextlib
import functools
import os
import types
import typing as t

import ansible
from ansible.plugins.loader import action_loader, filter_loader, lookup_loader, test_loader

_CORE = os.path.dirname(ansible.__file__) + os.sep


@contextlib.contextmanager
def watched_plugins(register: t.Callable[[types.ModuleType], None]) -> t.Iterator[None]:
    """While active, `register` gets each module of a third-party plugin that runs inside fibers, as soon as it is loaded."""
    loaders = (filter_loader, test_loader, lookup_loader, action_loader)
    for loader in loaders:
        for path, module in loader._module_cache.items():
            if not path.startswith(_CORE):
                register(module)

        def load(stock: t.Callable[..., types.ModuleType], *args: t.Any, **kwargs: t.Any) -> types.ModuleType:
            module = stock(*args, **kwargs)
            if not (getattr(module, "__file__", None) or "").startswith(_CORE):
                register(module)
            return module

        loader._load_module_source = functools.partial(load, loader._load_module_source)
    try:
        yield
    finally:
        for loader in loaders:
            del loader._load_module_source  # the class's own shows again
