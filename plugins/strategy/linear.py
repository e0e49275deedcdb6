"""The strategy churten.core.linear: the built-in linear, with fibers in place of forks."""

from __future__ import annotations

DOCUMENTATION = """
name: linear
short_description: Runs each task on all hosts before the next, without forking
description:
    - The built-in C(linear) strategy with another engine. Tasks run as fibers of the controller process over pooled SSH connections and warm
      remote interpreters; what cannot run so runs as stock runs it.
    - Results, callbacks and exit codes are those of C(linear).
author: churten developers
version_added: "0.1.0"
extends_documentation_fragment: churten.core.executor
"""

from ansible.plugins.strategy.linear import StrategyModule as LinearStrategyModule

try:
    from churten.executor.strategy import FiberStrategy
except ImportError as ex:  # the extension, or a library that it needs
    from churten.fallback import without

    FiberStrategy = without(ex)


class StrategyModule(FiberStrategy, LinearStrategyModule):
    churten_name = "churten.core.linear"
    builtin_name = "linear"
