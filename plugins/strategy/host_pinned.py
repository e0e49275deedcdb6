"""The strategy churten.core.host_pinned: the built-in host_pinned, with fibers in place of forks."""

from __future__ import annotations

DOCUMENTATION = """
name: host_pinned
short_description: Runs all tasks of a host without pausing for others, without forking
description:
    - The built-in C(host_pinned) strategy with another engine. Tasks run as fibers of the controller process over pooled SSH connections and warm
      remote interpreters; what cannot run so runs as stock runs it.
    - Results, callbacks and exit codes are those of C(host_pinned).
author: churten developers
version_added: "0.1.0"
extends_documentation_fragment: churten.core.executor
"""

from ansible.plugins.strategy.free import StrategyModule as FreeStrategyModule

try:
    from churten.executor.strategy import PinnedFiberStrategy
except ImportError as ex:  # the extension, or a library that it needs
    from churten.fallback import without

    PinnedFiberStrategy = without(ex)


class StrategyModule(PinnedFiberStrategy, FreeStrategyModule):
    churten_name = "churten.core.host_pinned"
    builtin_name = "host_pinned"
