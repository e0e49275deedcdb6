"""The strategy churten.core.free: the built-in free, with fibers in place of forks."""

from __future__ import annotations

DOCUMENTATION = """
name: free
short_description: Runs tasks of each host as fast as possible, without forking
description:
    - The built-in C(free) strategy with another engine. Tasks run as fibers of the controller process over pooled SSH connections and warm
      remote interpreters; what cannot run so runs as stock runs it.
    - Results, callbacks and exit codes are those of C(free).
author: churten developers
version_added: "0.1.0"
extends_documentation_fragment: churten.core.executor
"""

from ansible.plugins.strategy.free import StrategyModule as FreeStrategyModule

try:
    from churten.executor.strategy import FreeFiberStrategy
except ImportError as ex:  # the extension, or a library that it needs
    from churten.fallback import without

    FreeFiberStrategy = without(ex)


class StrategyModule(FreeFiberStrategy, FreeStrategyModule):
    churten_name = "churten.core.free"
    builtin_name = "free"
