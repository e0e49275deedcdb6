"""Fiber or fork: which of the two runs a task, and why. The answer is part of the log at -vvv."""

from __future__ import annotations

import typing as t

from churten.compat.base import OWN_CONNECTIONS, Adapter
from churten.compat.callback import uuid

FIBER = "fiber"
FORK = "fork"

# A fiber that used more local CPU than this between two waits keeps everybody else waiting; the second time its task goes to forks.
SLICE_LIMIT_S = 0.05
SLICE_STRIKES = 2


class Engines:
    """Decides once per task (and per host where the connection decides)."""

    def __init__(self, adapter: Adapter, play: t.Any, variable_manager: t.Any, inventory: t.Any, opted_in: frozenset[str]) -> None:
        self._adapter = adapter
        self._play = play
        self._variable_manager = variable_manager
        self._inventory = inventory
        self._opted_in = opted_in
        self._by_task: dict[str, tuple[str, str]] = {}
        self._strikes: dict[str, int] = {}

    def choose(self, task: t.Any, task_vars: dict[str, t.Any], template: t.Callable[[t.Any], t.Any]) -> tuple[str, str]:
        """(engine, reason) for this task on this host."""
        choice = self._by_task.get(uuid(task))
        if choice is None:
            choice = self._by_task[uuid(task)] = self._choose_by_action(task)
        if choice[0] == FORK:
            return choice
        return self._choose_by_connection(task, task_vars, template) or choice

    def fork_from_now_on(self, task: t.Any, reason: str) -> None:
        """A fiber of this task found that it needs a fork."""
        self._by_task[uuid(task)] = (FORK, reason)

    def must_fork(self, task: t.Any) -> str:
        """Why the task, chosen for a fiber before, has been given to forks meanwhile; empty if it has not."""
        engine, reason = self._by_task.get(uuid(task), (FIBER, ""))
        return reason if engine == FORK else ""

    def strike(self, task: t.Any, cpu_s: float) -> None:
        """A fiber of this task ended; `cpu_s` was its longest slice without a wait."""
        if cpu_s > SLICE_LIMIT_S:
            count = self._strikes[uuid(task)] = self._strikes.get(uuid(task), 0) + 1
            if count >= SLICE_STRIKES and self._adapter.spare_cores():
                self.fork_from_now_on(task, f"its fibers used more than {SLICE_LIMIT_S * 1000:.0f} ms of local CPU at a stretch")

    def _choose_by_action(self, task: t.Any) -> tuple[str, str]:
        try:
            action = self._adapter.action_class(task)
        except Exception as ex:
            return FORK, f"its action plugin could not be looked up: {ex}"
        if action is None:
            return FORK, "no action plugin was found for it"
        name = task.action.rsplit(".", 1)[-1]
        if self._adapter.is_core_action(action):
            if name in self._adapter.fork_actions:
                return FORK, f"the action {name} needs a process of its own"
            return FIBER, "core action"
        if task.action in self._opted_in or name in self._opted_in:
            return FIBER, "third-party action listed in fiber_actions"
        return FORK, f"third-party action plugin {action.__module__}"

    def _choose_by_connection(self, task: t.Any, task_vars: dict[str, t.Any], template: t.Callable[[t.Any], t.Any]) -> tuple[str, str] | None:
        try:
            variables = task_vars
            if task.delegate_to is not None and (delegate := template(task.delegate_to)) is not None:
                host = self._inventory.get_host(delegate) if isinstance(delegate, str) else None
                if host is None:
                    return FORK, f"it is delegated to {delegate}, which is not in the inventory"
                variables = self._variable_manager.get_vars(play=self._play, host=host, include_hostvars=False)
            name = variables.get("ansible_connection")
            name = task.connection if name is None else template(name)
        except Exception as ex:
            return FORK, f"its connection is not known before it runs: {ex}"
        if name not in OWN_CONNECTIONS:
            return FORK, f"connection {name} is not one of ours"
        return None
