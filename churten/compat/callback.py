"""What the timings callback needs of core's objects, under every supported core line."""

from __future__ import annotations

import sys
import typing as t

from ansible import constants as C
from ansible.playbook.handler import Handler
from ansible.plugins.strategy import Debugger


def define_options(name: str, definitions: t.Callable[[], dict[str, dict[str, object]]]) -> None:
    """Tell core the options of a callback plugin, before it reads its documentation for them."""
    if not C.config.has_configuration_definition("callback", name):
        C.config.initialize_plugin_configuration_definitions("callback", name, definitions())


def host_name(result: t.Any) -> str:
    """The inventory host a result belongs to (not the one it was delegated to)."""
    return str((result.host if hasattr(type(result), "host") else result._host).name)


def task(result: t.Any) -> t.Any:
    """The task of a result."""
    return result.task if hasattr(type(result), "task") else result._task


def host_and_task(result: t.Any) -> tuple[str, t.Any]:
    """`host_name` and `task`."""
    if hasattr(type(result), "host"):
        return str(result.host.name), result.task
    return str(result._host.name), result._task


def uuid(thing: t.Any) -> str:
    """The identity of a task or play: equal for all hosts, different for equal names."""
    return str(thing._uuid)


def role_name(of: t.Any) -> str | None:
    """The role a task came from."""
    role = of._role
    return str(role.get_name()) if role is not None else None


def playbook_name(playbook: t.Any) -> str:
    """The playbook's file as given on the command line."""
    return str(playbook._file_name)


def content(result: t.Any) -> t.Mapping[str, t.Any]:
    """What the result holds for callbacks: censored where `no_log` says so."""
    found = result.result if hasattr(type(result), "result") else result._result
    return found if isinstance(found, dict) else {}


def is_loop(of: t.Any) -> bool:
    """Whether the task has a loop."""
    return of.loop is not None or bool(of.loop_with)


def delegated_to(result: t.Any) -> str | None:
    """The host the task was delegated to, if it is known for the whole result."""
    to = task(result).delegate_to
    return to if isinstance(to, str) and to != host_name(result) else None


def item_label(result: t.Any) -> str | None:
    """What the screen shows of a loop's item; None if `no_log` hides it."""
    found = content(result)
    if task(result).no_log or found.get("_ansible_no_log") or "censored" in found or "_ansible_item_label" not in found:
        return None
    return str(found["_ansible_item_label"])


def strategy_is(callbacks: t.Iterable[t.Any], name: str) -> None:
    """The play's strategy counts as the built-in `name`, also for callbacks that compared its name before any strategy was loaded.

    These are json and jsonl of ansible.posix: from the name they conclude whether hosts go in step.
    """
    for plugin in callbacks:
        for cls in type(plugin).__mro__:
            in_step = getattr(sys.modules.get(cls.__module__), "LOCKSTEP_CALLBACKS", None)
            if in_step is not None and hasattr(plugin, "_is_lockstep"):
                plugin._is_lockstep = name in in_step


def play_hosts(play: t.Any) -> int:
    """How many hosts the play, or this batch of it, is for."""
    try:
        return len(play.get_variable_manager()._inventory.get_hosts(play.hosts))
    except Exception:
        return 1  # only for show


def planned_tasks(play: t.Any) -> dict[str, bool]:
    """Tasks that will run if all goes well, as far as the play's own lists tell, by their uuid; False: on one host only."""
    found: dict[str, bool] = {}

    def chosen(of: t.Any) -> bool:
        try:
            return bool(of.evaluate_tags(play.only_tags, play.skip_tags, {}))
        except Exception:
            return True  # tags that are templates of something not known here

    def walk(things: t.Iterable[t.Any]) -> None:
        for thing in things:
            if hasattr(thing, "block"):
                walk(thing.block)
                walk(thing.always)
            elif thing.action not in C._ACTION_META and chosen(thing):
                found[uuid(thing)] = not thing.run_once

    try:
        walk(play.pre_tasks)
        for role in play.roles:
            for block in role.get_task_blocks():
                walk([block])
        walk(play.tasks)
        walk(play.post_tasks)
    except Exception:
        return {}
    return found


def around_debugger(aside: t.Callable[[], t.ContextManager[t.Any]]) -> t.Callable[[], None]:
    """Run core's task debugger inside `aside()` from now on; answers what undoes it."""
    stock = Debugger.cmdloop

    def cmdloop(self: t.Any, *args: t.Any, **kwargs: t.Any) -> t.Any:
        with aside():
            return stock(self, *args, **kwargs)

    def restore() -> None:
        Debugger.cmdloop = stock

    Debugger.cmdloop = cmdloop
    return restore


def is_handler(of: t.Any) -> bool:
    """Whether the task is a handler."""
    return isinstance(of, Handler)
