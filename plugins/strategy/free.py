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
options:
    max_parallel_workers:
        description:
            - How many tasks may run at once.
            - Unset means as many as C(forks); 0 means one after the other.
        type: int
        default: ~
        ini:
            - section: churten
              key: max_parallel_workers
        env:
            - name: CHURTEN_MAX_PARALLEL_WORKERS
    fiber_actions:
        description:
            - Third-party action plugins (names of actions) that may run inside the controller process. They must not change the process's state
              and should wait only through their connection or time.sleep.
        type: list
        elements: str
        default: []
        ini:
            - section: churten
              key: fiber_actions
        env:
            - name: CHURTEN_FIBER_ACTIONS
"""

from ansible.plugins.strategy.free import StrategyModule as FreeStrategyModule

from churten.executor.strategy import FreeFiberStrategy


class StrategyModule(FreeFiberStrategy, FreeStrategyModule):
    churten_name = "churten.core.free"
    churten_documentation = DOCUMENTATION
    builtin_name = "free"
