"""Answers of core that are the same for every task of a run, remembered while one of our strategies runs.

- Plugin options: core resolves some 70 options of connection, shell and become plugins per task from variables, keywords, environment, command line
  and ini file. Equal inputs give equal options; the answer is handed out as a copy.
- Settings: core looks through variables, command line, environment and ini file for some fifteen per task. Those that none of them can change in
  between are handed out again.
- Plugin look-ups that ended well: core searches directories and collections anew for each, about eight times per task.
- Our own connection classes: core searches the collection anew for each instance.
"""

from __future__ import annotations

import contextlib
import os
import typing as t

from ansible import constants as C
from ansible import context
from ansible.plugins.loader import PluginLoader
from ansible.utils.collection_loader import AnsibleCollectionConfig

from churten import _core

_LIMIT = 10_000


class OptionMemo:
    """Stands for `C.config.get_plugin_options_and_origins`, or `get_plugin_options`."""

    def __init__(self, stock: t.Callable[..., t.Any]) -> None:
        self._stock = stock
        self._known: dict[t.Any, t.Any] = {}  # a dict, or a tuple of two
        self._keywords: dict[tuple[str, str], tuple[str, ...]] = {}
        self._environ: dict[t.Any, t.Any] = {}

    def __call__(self, plugin_type: str, name: str, keys: t.Any = None, variables: t.Any = None, direct: t.Any = None) -> t.Any:
        try:
            if direct:
                raise TypeError
            environ = os.environ._data  # type: ignore[attr-defined]
            if not _core.same_items(environ, self._environ) and environ != self._environ:
                self._environ = dict(environ)
                self._known.clear()
            key = (plugin_type, name, self._chosen(plugin_type, name, keys), _frozen(variables or {}))
            known = self._known.get(key)
        except TypeError:  # something that cannot be a key
            return self._stock(plugin_type, name, keys=keys, variables=variables, direct=direct)
        if known is None:
            known = _core.isolate(self._stock(plugin_type, name, keys=keys, variables=variables, direct=direct))
            if len(self._known) >= _LIMIT:
                self._known.clear()
            self._known[key] = known
        return _core.isolate(known)

    def _chosen(self, plugin_type: str, name: str, keys: t.Any) -> tuple[t.Any, ...]:
        """What of the task's keywords can reach an option of this plugin: its options' names, aliases and keywords."""
        if not keys:
            return ()
        names = self._keywords.get((plugin_type, name))
        if names is None:
            found: list[str] = []
            for option, definition in C.config.get_configuration_definitions(plugin_type=plugin_type, name=name).items():
                found += [option, *definition.get("aliases", ()), *(entry["name"] for entry in definition.get("keyword") or ())]
            names = self._keywords[plugin_type, name] = tuple(dict.fromkeys(found))
        return tuple([(one, _frozen(keys[one])) for one in names if one in keys])


def _frozen(value: t.Any) -> tuple[type, t.Any]:
    """Something hashable that is equal only for equal values of equal types."""
    if isinstance(value, dict):
        return type(value), tuple([(name, _frozen(one)) for name, one in value.items()])
    if isinstance(value, (list, tuple)):
        return type(value), tuple(map(_frozen, value))
    return type(value), value


@contextlib.contextmanager
def remembered_options() -> t.Iterator[None]:
    """While active, plugin options are resolved once per set of inputs."""
    config = C.config
    # 2.17 and earlier know no origins of options.
    name = "get_plugin_options_and_origins" if hasattr(config, "get_plugin_options_and_origins") else "get_plugin_options"
    setattr(config, name, OptionMemo(getattr(config, name)))
    try:
        yield
    finally:
        delattr(config, name)  # the class's own shows again


class SettingMemo:
    """Stands for `C.config.get_config_value` where it is asked for a setting of ansible itself, with or without variables."""

    _TYPES = ("bool", "boolean", "int", "integer", "float", "str", "string", "list", None)
    _SCALARS = (str, int, float, type(None))

    def __init__(self, config: t.Any) -> None:
        self._config = config
        self._stock = config.get_config_value
        self._known: dict[str, tuple[t.Any, frozenset[str]] | None] = {}  # value, names of variables that would give another
        self._environ: dict[t.Any, t.Any] = {}
        self._sources: tuple[t.Any, ...] = (None, None)  # command line, ini file

    def __call__(self, config: str, *args: t.Any, **kwargs: t.Any) -> t.Any:
        if args or not kwargs.keys() <= _ONLY_VARIABLES:
            return self._stock(config, *args, **kwargs)
        environ, known_environ = os.environ._data, self._environ  # type: ignore[attr-defined]
        sources = (context.CLIARGS, self._config._config_file)
        if sources != self._sources or not (_core.same_items(environ, known_environ) or environ == known_environ):
            self._environ, self._sources = dict(environ), sources
            self._known.clear()
        if config in self._known:
            known = self._known[config]
        else:
            known = self._known[config] = self._learn(config)
        if known is None:
            return self._stock(config, **kwargs)
        value, names = known
        variables = kwargs.get("variables")
        if names and variables and any(name in variables for name in names):
            return self._stock(config, **kwargs)
        return _core.isolate(value) if isinstance(value, list) else value

    def _learn(self, config: str) -> tuple[t.Any, frozenset[str]] | None:
        """The value without variables; None if there may be more to it."""
        definition = self._config.get_configuration_definitions().get(config)
        if definition is None or definition.get("type") not in self._TYPES or "deprecated" in definition:
            return None
        entries = [entry for source in ("vars", "cli", "env", "ini") for entry in definition.get(source) or ()]
        if any("deprecated" in entry for entry in entries) or "{{" in str(definition.get("default")):
            return None
        value = self._stock(config)
        if not (isinstance(value, self._SCALARS) or (isinstance(value, list) and all(isinstance(one, self._SCALARS) for one in value))):
            return None
        return value, frozenset(entry["name"] for entry in definition.get("vars") or ())


_ONLY_VARIABLES = frozenset({"variables"})


@contextlib.contextmanager
def remembered_settings() -> t.Iterator[None]:
    """While active, settings are looked for once."""
    config: t.Any = C.config
    config.get_config_value = SettingMemo(config)
    try:
        yield
    finally:
        del config.get_config_value  # the class's own shows again


@contextlib.contextmanager
def remembered_lookups() -> t.Iterator[None]:
    """While active, a plugin that was found without any remark is not searched again, unless directories were added."""
    stock = PluginLoader.find_plugin_with_context
    known: dict[t.Any, t.Any] = {}

    def find_plugin_with_context(
        self: t.Any, name: str, mod_type: str = "", ignore_deprecated: bool = False, check_aliases: bool = False, collection_list: t.Any = None
    ) -> t.Any:
        key = (
            id(self),
            name,
            mod_type,
            ignore_deprecated,
            check_aliases,
            tuple(collection_list or ()),
            len(self._extra_dirs),
            AnsibleCollectionConfig.default_collection,
        )
        found = known.get(key)
        if found is None:
            found = stock(self, name, mod_type, ignore_deprecated, check_aliases, collection_list)
            errors = found.raw_error_list if hasattr(found, "raw_error_list") else found.error_list  # 2.18 and earlier: texts
            remarks = found.deprecated or found.deprecation_warnings or errors or found.removal_date or found.removal_version
            if found.resolved and not remarks:
                known[key] = found
        return found

    PluginLoader.find_plugin_with_context = find_plugin_with_context  # type: ignore[method-assign]
    try:
        yield
    finally:
        PluginLoader.find_plugin_with_context = stock  # type: ignore[method-assign]


class ClassMemo:
    """Makes instances of a connection plugin that core has found once."""

    def __init__(self, loader: t.Any) -> None:
        self._loader = loader
        self._known: dict[str, tuple[type, t.Any]] = {}

    def get_with_context(self, name: str, *args: t.Any, **kwargs: t.Any) -> t.Any:
        known = self._known.get(name)
        if known is None or kwargs.get("class_only") or kwargs.get("collection_list"):
            result = self._loader.get_with_context(name, *args, **kwargs)
            if result.object is not None and not kwargs.get("class_only"):
                self._known[name] = (type(result.object), result)
            return result
        cls: t.Any = known[0]
        result = known[1]
        context = result.plugin_load_context
        instance: t.Any = object.__new__(cls)
        self._loader._update_object(
            obj=instance,
            name=context.plugin_resolved_name,
            path=context.plugin_resolved_path,
            redirected_names=context.redirect_list or [],
            resolved=context.resolved_fqcn,
        )
        t.cast(t.Any, cls).__init__(instance, *args, **kwargs)
        return type(result)(instance, context)
