"""What ansible-core 2.19 and all later lines have in common: the template engine, task timeouts, AnsiballZ modules, plugin loaders in one namespace."""

from __future__ import annotations

import contextlib
import types
import typing as t

from ansible._internal._errors import _task_timeout
from ansible._internal._templating._engine import TemplateEngine
from ansible.plugins import loader as plugin_loader

from churten.executor.hub import FiberHub

from .alarms import fiber_alarms
from .base import Adapter, connections
from .keywords import remembered_attributes
from .modules import light_modules
from .modules_219 import Builder


class Line219(Adapter):
    """See the module's text."""

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
        with light_modules(Builder):
            yield

    @contextlib.contextmanager
    def remembered_keywords(self) -> t.Iterator[None]:
        with remembered_attributes():
            yield


_core_namespace = plugin_loader.get_plugin_loader_namespace
