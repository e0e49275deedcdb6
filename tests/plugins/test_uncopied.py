"""Callbacks that look at nothing inside a result get it without a copy, in the order and with the errors they would have had."""

import json
import types

import pytest
from ansible.executor import task_queue_manager
from playing import play

from churten.compat.results import uncopied_results

TQM = task_queue_manager.TaskQueueManager
CAN = hasattr(TQM, "_callback_dispatch_error_handler")  # 2.19 and later
PLAYS = "".join(
    f"""
- hosts: all
  gather_facts: false
  strategy: {strategy}
  tasks:
    - {{name: fine, debug: {{msg: x}}}}
    - {{name: changed, command: "true"}}
    - {{name: skipped, command: "true", when: false}}
    - {{name: ignored, command: "false", ignore_errors: true}}
    - {{name: loop, command: "true", loop: [1, 2]}}
    - {{name: hidden, command: "true", no_log: true}}
    - {{name: failed, command: "false", when: inventory_hostname == "h2"}}
"""
    for strategy in ("churten.core.free", "linear")
)
SPY = """
import sys
from ansible.plugins.callback import CallbackBase
from ansible.executor.task_queue_manager import TaskQueueManager
class CallbackModule(CallbackBase):
    CALLBACK_TYPE, CALLBACK_NAME = "aggregate", "spy"
    def v2_runner_on_ok(self, result):
        frame = sys._getframe()
        while not isinstance(manager := frame.f_locals.get("self"), TaskQueueManager):
            frame = frame.f_back
        timings = [one for one in manager._callback_plugins if hasattr(one, "UNCOPIED")]
        self._display.display("SPY %s" % any("v2_runner_on_ok" in one._implemented_callback_methods for one in timings))
"""


@pytest.mark.skipif(not CAN, reason="this core looks for methods at each event")
def test_no_copy_is_made_for_the_timings_and_only_under_our_strategies(tmp_path):
    (tmp_path / "callback_plugins").mkdir()
    (tmp_path / "callback_plugins" / "spy.py").write_text(SPY)
    log = tmp_path / "t.log"
    env = {"ANSIBLE_CALLBACKS_ENABLED": "churten.core.timings,spy", "CHURTEN_TIMINGS_LOG": log}
    done = play(tmp_path, PLAYS, hosts=("h1", "h2"), code=2, ANSIBLE_CALLBACK_PLUGINS=tmp_path / "callback_plugins", **env)
    told = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("SPY")]
    assert told == ["False"] * told.count("False") + ["True"] * told.count("True") and len(set(told)) == 2
    results = [line for line in map(json.loads, log.read_text().splitlines()) if line["ev"] == "result"]
    wanted = {"fine": "ok", "skipped": "skipped", "ignored": "ignored"}
    for host, uuids in (("h1", 14), ("h2", 7)):  # h2 failed in the first play
        mine = [line for line in results if line["host"] == host]
        assert len({line["uuid"] for line in mine}) == len(mine) == uuids
        for line in mine:
            status = wanted.get(line["task"], "changed")
            assert line["status"] == (status if line["task"] != "failed" else "failed" if host == "h2" else "skipped"), line


class Plugin:
    UNCOPIED = ("v2_runner_on_ok",)
    _load_name = "mine"
    disabled = False

    def __init__(self, told, error=None):
        self._implemented_callback_methods = frozenset(("v2_runner_on_ok", "v2_runner_on_start"))
        self.told, self.error = told, error

    def v2_runner_on_ok(self, result):
        if self.error is not None:
            raise self.error
        self.told.append(result)


def made(plugins, told):
    from ansible.utils.display import Display  # noqa: F401  # the handler warns with it

    return types.SimpleNamespace(
        _callback_plugins=plugins,
        _callback_lock=__import__("threading").Lock(),
        _callback_dispatch_error_handler=TQM._callback_dispatch_error_handler,
        send_callback=lambda *args: told.append("stock"),
    )


@pytest.mark.skipif(not CAN, reason="this core looks for methods at each event")
def test_order_errors_and_what_is_left_behind(capsys):
    told = []
    plugins = [Plugin(told), Plugin(told, ValueError("broken")), Plugin(told), Plugin(told)]
    plugins[2].disabled = True
    manager = made(plugins, told)
    stock = manager.send_callback = lambda *args: told.append([plugins.index(plugin) for plugin in manager._callback_plugins])
    with uncopied_results(manager):
        assert [plugin._implemented_callback_methods for plugin in plugins] == [frozenset(("v2_runner_on_start",))] * 4
        manager.send_callback("v2_runner_on_ok", "result")
        manager.send_callback("v2_runner_on_start", "host", "task")  # core's to send, to all
        manager.send_callback("v2_playbook_on_notify", "handler", "host")
    assert told == [[], "result", "result", [0, 1, 2, 3], []]
    assert "Callback dispatch 'v2_runner_on_ok' failed for plugin 'mine'" in " ".join(capsys.readouterr().err.split())
    assert manager.send_callback is stock and manager._callback_plugins is plugins
    assert all(len(plugin._implemented_callback_methods) == 2 for plugin in plugins)


@pytest.mark.skipif(not CAN, reason="this core looks for methods at each event")
def test_what_is_not_needed_is_not_called():
    told = []
    plugin, other = Plugin(told), types.SimpleNamespace(_implemented_callback_methods=frozenset())
    plugin.UNNEEDED = ("v2_runner_on_start",)
    manager = made([other, plugin], told)
    manager.send_callback = lambda *args: told.append(list(manager._callback_plugins))
    with uncopied_results(manager):
        manager.send_callback("v2_runner_on_start", "host", "task")
        assert plugin._implemented_callback_methods == frozenset()
    assert told == [[other]] and len(plugin._implemented_callback_methods) == 2


def test_nothing_is_different_without_such_a_callback():
    manager = made([types.SimpleNamespace(_implemented_callback_methods=frozenset(("v2_runner_on_ok",)))], []) if CAN else types.SimpleNamespace()
    stock = getattr(manager, "send_callback", None)
    with uncopied_results(manager):
        assert getattr(manager, "send_callback", None) is stock
