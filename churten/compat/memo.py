"""Answers of core that are the same for every task of a run, remembered while one of our strategies runs.

- Plugin options: core resolves some 70 options of connection, shell and become plugins per task from variables, keywords, environment, command line
  and ini file. Equal inputs give equal options; the answer is handed out as a copy.
- Settings: core looks through variables, command line, environment and ini file for some fifteen per task. Those that none of them can change in
  between are handed out again.
- Plugin look-ups that ended well: core searches directories and collections anew for each, about eight times per task.
- Our own connection classes: core searches the collection anew for each instance.
- Classes of plugins (2.19 and later): core imports the module that the class must descend from, and looks for the plugin's documented options, for each
  instance of an action or shell plugin.
- The temporary folders of a shell plugin: core has its configuration manager look at the same list for each task.
"""

from __future__ import annotations

import contextlib
import os
import typing as t

from ansible import constants as C
from ansible import context
from ansible.plugins import AnsiblePlugin
from ansible.plugins.loader import PluginLoader
from ansible.plugins.shell import ShellBase
from ansible.utils.collection_loader import AnsibleCollectionConfig

from churten import _core

from .keywords import names_of

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
        self._with_variables: dict[t.Any, tuple[list[str], t.Any]] = {}  # by numbers of objects: the objects, the value
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
            self._with_variables.clear()
        if config in self._known:
            known = self._known[config]
        else:
            known = self._known[config] = self._learn(config)
        if known is None:
            return self._stock(config, **kwargs)
        value, names = known
        variables = kwargs.get("variables")
        if names and variables and any(name in variables for name in names):
            return self._by_variables(config, names, variables)
        return _core.isolate(value) if isinstance(value, list) else value

    def _by_variables(self, config: str, names: frozenset[str], variables: t.Any) -> t.Any:
        """The value where variables have a say: remembered for these very objects, if all of them are texts."""
        given = [variables[name] for name in names if name in variables]
        if type(variables) is not dict or not all(isinstance(one, str) for one in given):
            return self._stock(config, variables=variables)
        key = (config, *[(name, id(variables[name])) for name in names if name in variables])
        found = self._with_variables.get(key)
        if found is not None:
            return found[1]
        value = self._stock(config, variables=variables)
        if isinstance(value, self._SCALARS) and len(self._with_variables) < _LIMIT:
            self._with_variables[key] = (given, value)
        return value

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
            if _without_remark(found):
                known[key] = found
        return found

    PluginLoader.find_plugin_with_context = find_plugin_with_context  # type: ignore[method-assign]
    try:
        yield
    finally:
        PluginLoader.find_plugin_with_context = stock  # type: ignore[method-assign]


# What core's function uses, to 2.20 and from 2.21.
_GET = set(
    "AttributeError PluginLoadContext TypeError ValueError __import__ __init__ __new__ _display_plugin_load _load_config_defs _load_module_source "
    "_module_cache _plugin_instance_cache _python_module_name _searched_paths _update_object args base_class class_name display find_plugin_with_context get "
    "get_with_context_result getattr issubclass object package plugin_resolved_name plugin_resolved_path pop redirect_list resolved resolved_fqcn to_native "
    "type v warning".split()
)
_KNOWN_GET = (_GET | {"aliases"}, _GET | {"_aliases"})


class _Found(t.NamedTuple):
    """A plugin that core has found."""

    module: t.Any
    cls: t.Any
    context: t.Any
    names: dict[str, t.Any]  # arguments of `_update_object`
    result: type


class PluginMemo:
    """Stands for `PluginLoader.get_with_context`."""

    def __init__(self, stock: t.Callable[..., t.Any]) -> None:
        self._stock = stock
        self._known: dict[t.Any, _Found] = {}

    def get(self, loader: t.Any, name: str, args: tuple[t.Any, ...], kwargs: dict[str, t.Any]) -> t.Any:
        """As core's."""
        collections = kwargs.get("collection_list")
        key = (id(loader), name, tuple(collections or ()), len(loader._extra_dirs), AnsibleCollectionConfig.default_collection)
        found = self._known.get(key)
        if found is None or loader._module_cache.get(found.names["path"]) is not found.module:
            result = self._stock(loader, name, *args, **kwargs)
            self._learn(loader, key, result, bool(kwargs.get("class_only")))
            return result
        cls = found.cls
        if kwargs.get("class_only"):
            loader._update_object(obj=cls, **found.names)
            return found.result(cls, found.context)
        instance = object.__new__(cls)
        loader._update_object(obj=instance, **found.names)
        named = {name: instance.__dict__[name] for name in _NAMED}
        kwargs.pop("class_only", None)
        kwargs.pop("collection_list", None)
        instance.__init__(*args, **kwargs)
        instance.__dict__.update(named)  # as core does, once more
        return found.result(instance, found.context)

    def _learn(self, loader: t.Any, key: t.Any, result: t.Any, class_only: bool) -> None:
        context = result.plugin_load_context
        if result.object is None or loader._plugin_instance_cache is not None or not _without_remark(context):
            return
        path = context.plugin_resolved_path
        module = loader._module_cache.get(path)
        cls = getattr(module, loader.class_name, None)
        plain = cls is not None and cls.__setattr__ is object.__setattr__ and cls.__new__ is object.__new__ and not getattr(cls, "__abstractmethods__", None)
        if not plain or cls is not (result.object if class_only else type(result.object)):
            return
        names = {"name": context.plugin_resolved_name, "path": path, "redirected_names": context.redirect_list or [], "resolved": context.resolved_fqcn}
        self._known[key] = _Found(module, cls, context, names, type(result))


# What `_update_object` sets.
_NAMED = ("_original_path", "_load_name", "_redirected_names", "ansible_aliases", "ansible_name")


@contextlib.contextmanager
def remembered_plugins() -> t.Iterator[None]:
    """While active, instances of plugins that core has found once are made without looking at them again."""
    stock: t.Any = PluginLoader.get_with_context
    if set(stock.__code__.co_names) not in _KNOWN_GET or C.DEFAULT_DEBUG:
        yield
        return
    memo = PluginMemo(stock)

    def get_with_context(self: t.Any, name: str, *args: t.Any, **kwargs: t.Any) -> t.Any:
        if self._plugin_instance_cache is not None or not name:
            return stock(self, name, *args, **kwargs)
        return memo.get(self, name, args, kwargs)

    PluginLoader.get_with_context = get_with_context  # type: ignore[method-assign]
    try:
        yield
    finally:
        PluginLoader.get_with_context = stock  # type: ignore[method-assign]


def _without_remark(context: t.Any) -> bool:
    """Whether core found a plugin and had nothing to say about it."""
    errors = context.raw_error_list if hasattr(context, "raw_error_list") else context.error_list  # 2.18 and earlier: texts
    remarks = context.deprecated or context.deprecation_warnings or errors or context.removal_date or context.removal_version
    return bool(context.resolved and not remarks)


# What core's functions use (2.19 and later).
_SET_OPTION = set("C _AnsiblePlugin__plugin_info _display _load_name _options _origins _report_config_warnings config get_config_value plugin_type".split())
_NORMALIZE = set("AnsibleError all format get_option isabs os path rstrip set_option to_native".split())


@contextlib.contextmanager
def remembered_folders() -> t.Iterator[None]:
    """While active, the same list of a shell plugin's temporary folders is looked at once."""
    stock: t.Any = ShellBase._normalize_system_tmpdirs
    setter: t.Any = AnsiblePlugin.set_option
    if names_of(stock.__code__) != _NORMALIZE or set(setter.__code__.co_names) != _SET_OPTION:
        yield
        return
    known: dict[t.Any, tuple[t.Any, list[str], list[str]]] = {}  # by the numbers of the texts: definition, the texts, what came out
    option = "system_tmpdirs"

    def normalize(self: t.Any) -> None:
        given, name = self._options.get(option), self._load_name
        definition = C.config._plugins.get("shell", {}).get(name, {}).get(option)
        key = (name, tuple(map(id, given))) if isinstance(given, list) and all(isinstance(one, str) for one in given) else None
        found = known.get(key) if key is not None else None
        if found is not None and found[0] is definition and type(self).set_option is setter:
            self._options[option] = _core.isolate(found[2])
            self._origins[option] = "Direct"
            return
        stock(self)
        now = self._options.get(option)
        plain = isinstance(now, list) and all(isinstance(one, str) for one in now) and self._origins.get(option) == "Direct"
        if key is not None and plain and definition is not None and "deprecated" not in definition and len(known) < _LIMIT:
            known[key] = (definition, list(given), _core.isolate(now))

    ShellBase._normalize_system_tmpdirs = normalize  # type: ignore[method-assign]
    try:
        yield
    finally:
        ShellBase._normalize_system_tmpdirs = stock  # type: ignore[method-assign]


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
