"""What ansible-core 2.19 and all later lines have in common: the template engine, task timeouts, AnsiballZ modules, plugin loaders in one namespace."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import types
import typing as t

from ansible._internal._datatag import _tags
from ansible._internal._errors import _task_timeout
from ansible._internal._templating._engine import TemplateEngine
from ansible.module_utils._internal import _datatag
from ansible.plugins import loader as plugin_loader

from churten import _core
from churten.executor.hub import FiberHub

from .alarms import fiber_alarms
from .base import Adapter, connections
from .compiled import absent_plugins, kept_code
from .imports import remembered_imports
from .keywords import remembered_attributes
from .modules import light_modules
from .modules_219 import Builder
from .templating import plain_templates

# What plain results are made of beside the built-in types: their copy needs no pickle.
_LEAVES: frozenset[type] = frozenset({_datatag._AnsibleTaggedStr, _datatag._AnsibleTaggedInt, _datatag._AnsibleTaggedFloat})
_CONTAINERS = (_datatag._AnsibleTaggedDict, _datatag._AnsibleTaggedList)
_TAGS: frozenset[type] = frozenset({_tags.Origin, _tags.TrustedAsTemplate, _tags.SourceWasEncrypted, _tags.VaultedValue})


class Line219(Adapter):
    """See the module's text."""

    # The classes of what a worker sends.
    records: tuple[type, ...] = ()

    def through_pickle(self, message: t.Any) -> t.Any:
        """As the base's; what is plain is copied, which comes to the same."""
        copy = _core.plain_copy(message, _LEAVES, self.boxes, _TAGS)
        return super().through_pickle(message) if copy is NotImplemented else copy

    @functools.cached_property
    def boxes(self) -> dict[type, tuple[str, ...] | None]:
        """For `plain_copy`: containers, and the records whose pickle is nothing but their slots."""
        found: dict[type, tuple[str, ...] | None] = dict.fromkeys(_CONTAINERS)
        found |= {record: slots for record in self.records if (slots := _slots(record)) is not None}
        return found

    def engine(self, strategy: t.Any, task_vars: dict[str, t.Any]) -> t.Any:
        return TemplateEngine(loader=strategy._loader, variables=task_vars)

    def result_host(self, result: t.Any) -> t.Any:
        return result.host

    def namespace(self) -> types.SimpleNamespace:
        """The plugin loaders a TaskExecutor uses, with our connections in place of ssh and local."""
        # Core hands out one namespace for the whole process: ours must be a copy.
        namespace = types.SimpleNamespace(**vars(_core_namespace()))
        namespace.connection_loader = connections(namespace.connection_loader)
        return namespace

    @contextlib.contextmanager
    def own_connections(self) -> t.Iterator[None]:
        plugin_loader.get_plugin_loader_namespace = self.namespace
        try:
            with super().own_connections():
                yield
        finally:
            plugin_loader.get_plugin_loader_namespace = _core_namespace

    @contextlib.contextmanager
    def fiber_timeouts(self, hub: FiberHub) -> t.Iterator[None]:
        with fiber_alarms(_task_timeout.TaskTimeoutError, hub):
            yield

    @contextlib.contextmanager
    def light_modules(self) -> t.Iterator[None]:
        with light_modules(Builder), remembered_imports():
            yield

    @contextlib.contextmanager
    def remembered_keywords(self) -> t.Iterator[None]:
        with remembered_attributes(), plain_templates(), kept_code(), absent_plugins():
            yield


def _slots(record: type) -> tuple[str, ...] | None:
    """The slots of a dataclass that pickles them and nothing else; None for any other class."""
    if not dataclasses.is_dataclass(record) or record.__mro__ != (record, object) or record.__dictoffset__:
        return None
    names = tuple([field.name for field in dataclasses.fields(record)])
    state = [record.__dict__[name].__module__ for name in ("__getstate__", "__setstate__") if name in record.__dict__]
    special = any(name in record.__dict__ for name in ("__reduce__", "__reduce_ex__", "__getnewargs__", "__getnewargs_ex__", "__new__"))
    if special or set(state) - {"dataclasses"} or sorted(record.__dict__.get("__slots__", ())) != sorted(names):
        return None
    return names


_core_namespace = plugin_loader.get_plugin_loader_namespace
