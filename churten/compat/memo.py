"""Answers of core that are the same for every task of a run, remembered while one of our strategies runs.

- Plugin options: core resolves some 70 options of connection, shell and become plugins per task from variables, keywords, environment, command line
  and ini file. Equal inputs give equal options; the answer is handed out as a copy.
- Our own connection classes: core searches the collection anew for each instance.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import typing as t

from ansible import constants as C

from churten import _core

_LIMIT = 10_000


class ResolvedOptions(dict[str, t.Any]):
    """A plugin's options as core resolved them; `token` stands for all of them until one is changed."""

    def __init__(self, options: dict[str, t.Any], token: int) -> None:
        super().__init__(options)
        self.token: int | None = token

    def __setitem__(self, name: str, value: t.Any) -> None:
        self.token = None
        super().__setitem__(name, value)

    def __delitem__(self, name: str) -> None:
        self.token = None
        super().__delitem__(name)

    def update(self, *args: t.Any, **kwargs: t.Any) -> None:
        self.token = None
        super().update(*args, **kwargs)

    def pop(self, *args: t.Any) -> t.Any:
        self.token = None
        return super().pop(*args)


def options_token(plugin: t.Any) -> int | None:
    """A number that is the same for two plugins only if all their options are equal; None if that is not known."""
    return getattr(plugin._options, "token", None)


class OptionMemo:
    """Stands for `C.config.get_plugin_options_and_origins`."""

    def __init__(self, stock: t.Callable[..., tuple[dict[str, t.Any], dict[str, t.Any]]]) -> None:
        self._stock = stock
        self._known: dict[t.Any, tuple[dict[str, t.Any], dict[str, t.Any], int]] = {}
        self._tokens = itertools.count(1)
        self._keywords: dict[tuple[str, str], tuple[str, ...]] = {}
        self._environ: dict[t.Any, t.Any] = {}

    def __call__(self, plugin_type: str, name: str, keys: t.Any = None, variables: t.Any = None, direct: t.Any = None) -> t.Any:
        try:
            if direct:
                raise TypeError
            environ = os.environ._data  # type: ignore[attr-defined]
            if environ != self._environ:
                self._environ = dict(environ)
                self._known.clear()
            key = (plugin_type, name, self._chosen(plugin_type, name, keys), _frozen(variables or {}))
            known = self._known.get(key)
        except TypeError:  # something that cannot be a key
            return self._stock(plugin_type, name, keys=keys, variables=variables, direct=direct)
        if known is None:
            options, origins = self._stock(plugin_type, name, keys=keys, variables=variables, direct=direct)
            known = _core.isolate(options), dict(origins), next(self._tokens)
            if len(self._known) >= _LIMIT:
                self._known.clear()
            self._known[key] = known
        return ResolvedOptions(_core.isolate(known[0]), known[2]), dict(known[1])

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
    config.get_plugin_options_and_origins = OptionMemo(config.get_plugin_options_and_origins)
    try:
        yield
    finally:
        del config.get_plugin_options_and_origins  # the class's own shows again


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
