"""Options that all strategies of churten share."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = """
options:
    max_parallel_workers:
        description:
            - How many tasks may run at once.
            - Unset means as many as C(forks); 0 means one after the other.
        type: int
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
    fiber_lookups:
        description:
            - Third-party lookup plugins (names as the plays write them) that may run inside the controller process. They should not wait for anything
              and must not change the process's state.
            - A task that uses any other third-party lookup runs in a forked worker, as under the built-in strategies.
        type: list
        elements: str
        default: []
        ini:
            - section: churten
              key: fiber_lookups
        env:
            - name: CHURTEN_FIBER_LOOKUPS
"""
