"""`host_vars` and `group_vars` that are not there, while one of our strategies runs: core asks for them six times for each task and host.

Core's vars plugin remembers folders that are missing (`NAK`), for good. Where it is the only vars plugin and all that could hold something for the given hosts
or groups is remembered as missing, the answer is nothing, and known before the plugin is asked.
"""

from __future__ import annotations

import contextlib
import os
import sys
import types
import typing as t

import ansible.plugins
from ansible.inventory.group import Group
from ansible.inventory.host import Host
from ansible.plugins.loader import vars_loader
from ansible.vars import manager
from ansible.vars import plugins as vars_plugins

_FILE = os.path.join(os.path.dirname(ansible.plugins.__file__), "vars", "host_group_vars.py")
_SUBDIRS: dict[type, str] = {Host: "host_vars", Group: "group_vars"}

_FROM_PATH = set(
    "_paths _plugin_instance_cache _plugin_should_run _prime_vars_loader ansible_name combine_vars display get hasattr startswith vars_loader warning".split()
)
_KNOWN = (_FROM_PATH | {"get_plugin_vars"}, _FROM_PATH | {"get_vars"})  # to 2.19; from 2.20
# What the plugin's function uses, as far as what is stood for depends on it.
_GET_VARS = set("CANONICAL_PATHS FOUND NAK HOST GROUP base_type basedir find_vars_files isdir join load_found_files name realpath".split())


class MissingVars:
    """Stands for `get_vars_from_path` of core's vars plugins."""

    def __init__(self, stock: t.Callable[..., t.Any]) -> None:
        self._stock = stock
        self._plugin: t.Any = None  # core's, looked at already
        self._module: t.Any = None
        self._folders: dict[tuple[str, type], str] = {}

    def __call__(self, loader: t.Any, path: str, entities: t.Any, stage: str) -> t.Any:
        return {} if self._has_nothing(path, entities) else self._stock(loader, path, entities, stage)

    def _has_nothing(self, path: str, entities: t.Any) -> bool:
        plugins = vars_loader._plugin_instance_cache
        if type(entities) is not list or vars_loader._paths is None or not plugins or len(plugins) != 1:
            return False
        plugin = next(iter(plugins.values()))[0]
        if plugin is not self._plugin and not self._learn(plugin):
            return False
        for kind in set(map(type, entities)):
            folder = self._folders.get((path, kind))
            if folder is None:
                if kind not in _SUBDIRS or path not in self._module.CANONICAL_PATHS:
                    return False
                folder = self._folders[path, kind] = os.path.join(self._module.CANONICAL_PATHS[path], _SUBDIRS[kind])
            if folder not in self._module.NAK:
                return False
        return all(isinstance(entity.name, str) and entity.name for entity in entities)

    def _learn(self, plugin: t.Any) -> bool:
        """Whether it is core's plugin, as it is known."""
        module = sys.modules.get(type(plugin).__module__)
        function = getattr(type(plugin), "get_vars", None)
        known = isinstance(function, types.FunctionType) and set(function.__code__.co_names) >= _GET_VARS
        if not known or getattr(module, "__file__", None) != _FILE or "get_vars" in plugin.__dict__:
            return False
        self._plugin, self._module = plugin, module
        self._folders.clear()
        return True


@contextlib.contextmanager
def remembered_absence() -> t.Iterator[None]:
    """While active, nobody is asked for variables that cannot be there."""
    stock: t.Any = vars_plugins.get_vars_from_path
    if manager.get_vars_from_path is not stock or set(stock.__code__.co_names) not in _KNOWN:  # type: ignore[attr-defined]
        yield
        return
    ours = MissingVars(stock)
    vars_plugins.get_vars_from_path = manager.get_vars_from_path = ours  # type: ignore[assignment,attr-defined]
    try:
        yield
    finally:
        vars_plugins.get_vars_from_path = manager.get_vars_from_path = stock  # type: ignore[attr-defined]
