"""Stamps and splits in real plays over sshd: under churten's strategies, with our connection under a stock strategy, and with neither."""

import json

import pytest

from churten.timings import stamps

PLAY = """
- hosts: all
  gather_facts: false
  strategy: STRATEGY
  tasks:
    - {name: sleeps, command: {cmd: sleep 0.3}}
    - {name: loop, command: {cmd: "sleep 0.{{ item }}"}, loop: [1, 2]}
    - {name: tries, command: {cmd: "true"}, register: tried, until: tried.attempts == 3, retries: 5, delay: 0}
    - {name: local, debug: {msg: x}}
    - {name: there, command: {cmd: "true"}, delegate_to: "{{ groups['all'][0] }}", loop: [a], loop_control: {label: named}}
    - {name: hidden, command: {cmd: "true"}, loop: [canary], no_log: true}
"""
CASES = {
    # strategy, connection: source, engine, is the connection seen
    "fiber": ("churten.core.linear", "churten.core.ssh", "executor", "fiber", True),
    "fiber-free": ("churten.core.free", "churten.core.ssh", "executor", "fiber", True),
    "fork": ("churten.core.free", "churten.core.ssh", "executor", "fork", True),
    "connection": ("linear", "churten.core.ssh", "connection", None, True),
    "connection-free": ("free", "churten.core.ssh", "connection", None, True),
    "stock": ("linear", "ssh", "callbacks", None, False),
}

ACTION = """
from ansible.plugins.action import ActionBase
class ActionModule(ActionBase):
    def run(self, tmp=None, task_vars=None):
        return self._execute_module("command", self._task.args, task_vars=task_vars)
"""


@pytest.fixture(params=list(CASES))
def case(request, play, tmp_path):
    strategy, connection, source, engine, seen = CASES[request.param]
    text = PLAY.replace("STRATEGY", strategy)
    if engine == "fork":
        # A third-party action plugin runs in a forked worker.
        actions = tmp_path / "action_plugins"
        actions.mkdir()
        (actions / "my_command.py").write_text(ACTION)
        (tmp_path / "library").mkdir()
        (tmp_path / "library" / "my_command.py").write_text("#!/usr/bin/python\n")
        text = text.replace("command:", "my_command:")
    env = {
        "ANSIBLE_CALLBACKS_ENABLED": "churten.core.timings",
        "CHURTEN_TIMINGS_LOG": str(tmp_path / "t.log"),
        "CHURTEN_TIMINGS_LOG_ITEMS": "label",
    }
    done = play(text, connection, env=env)
    assert done.rc == 0, done.text
    lines = [json.loads(line) for line in (tmp_path / "t.log").read_text().splitlines()]
    return (strategy, source, engine, seen), lines, done


def of(lines, event, **fields):
    return [line for line in lines if line["ev"] == event and all(line[k] == v for k, v in fields.items())]


def test_stamps(case):
    (strategy, source, engine, seen), lines, done = case
    jsonschema = pytest.importorskip("jsonschema")
    from test_timings import SCHEMA

    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    for line in lines:
        validator.validate(line)
    assert of(lines, "play")[0]["strategy"] == strategy

    # The known sleep: the remote share is what the hosts slept, and not less.
    slept = of(lines, "result", task="sleeps")
    assert len(slept) == 2
    for line in slept:
        assert line["source"] == source and line["engine"] == engine, line
        assert 0.3 <= line["seconds"] < 60
        moments = [line["t"][name] for name in stamps.NAMES if name in line["t"]]
        assert moments == sorted(moments)
        assert {"eligible", "slot", "start", "processed"} <= set(line["t"])
        assert ("received" in line["t"]) == (source == "executor")
        assert line["t"]["slot"] == pytest.approx(line["at"], abs=1e-5)
        assert (line["remote"] is not None) == seen
        if seen:
            assert 0.3 <= line["ran"] <= line["remote"] <= line["seconds"]
            assert {"connect_begin", "connect_end", "sent", "remote_begin", "remote_end"} <= set(line["t"])
            parts = line["connect"] + line["remote"] + line["controller"]
            assert parts == pytest.approx(line["seconds"], abs=1e-4)

    for line in of(lines, "result", task="loop"):
        items = of(lines, "item", uuid=line["uuid"], host=line["host"])
        assert [item["item"] for item in items] == [0, 1] and line["items"] == line["attempts"] == 2
        assert [item["label"] for item in items] == ["1", "2"]
        assert items[0]["seconds"] >= 0.1 and items[1]["seconds"] >= 0.2
        assert items[0]["at"] == pytest.approx(line["at"], abs=1e-5)
        assert items[1]["at"] == pytest.approx(items[0]["at"] + items[0]["seconds"], abs=1e-5)
        if seen:
            assert items[0]["remote"] >= 0.1 and items[1]["remote"] >= 0.2
            assert sum(item["remote"] for item in items) == pytest.approx(line["remote"], abs=1e-4)

    for line in of(lines, "result", task="tries"):
        items = of(lines, "item", uuid=line["uuid"], host=line["host"])
        assert line["attempts"] == 3 and line["items"] is None
        assert [(item["item"], item["attempt"], item["status"]) for item in items] == [
            (None, 1, "retried"), (None, 2, "retried"), (None, 3, "changed"),
        ]  # fmt: skip

    first = min(line["host"] for line in slept)
    there = of(lines, "result", task="there")
    assert {line["host"]: line["delegated"] for line in there} in (
        {first: None, other: first} for other in {line["host"] for line in there} - {first}
    )
    assert {item["label"] for item in of(lines, "item", uuid=there[0]["uuid"])} == {"named"}
    hidden = of(lines, "result", task="hidden")[0]
    assert all("label" not in item for item in of(lines, "item", uuid=hidden["uuid"]))
    assert "canary" not in json.dumps(lines)
    local = of(lines, "result", task="local")[0]
    assert local["remote"] == (0 if local["engine"] == "fiber" else None)


def test_a_request_that_is_sent_while_it_is_waited_for():
    record = stamps.Stamps()
    record.request(10.2, 10.5, 10.5, 0.0)  # the wait for the session, as the controller saw it
    record.request(10.1, 10.3, 11.5, 0.9)  # the request went out when the session was there
    assert (record.connect_begin, record.connect_end, record.sent, record.remote_begin, record.remote_end) == (10.1, 10.5, 10.5, 10.5, 11.5)
    assert (record.connect_s, record.remote_s, record.ran_s) == pytest.approx((0.3, 1.0, 0.9))
    record.request(12.0, 12.25, 13.0, 0.5)
    assert (record.connect_s, record.remote_s, record.connect_end) == pytest.approx((0.55, 1.75, 12.25))


def test_a_wait_that_ended_before_the_controller_noticed():
    record = stamps.Stamps()
    record.request(10.0, 10.5, 10.5, 0.0)
    record.request(10.1, 10.2, 11.0, 0.7)  # 0.7 s of these were the target's: it began at 10.3 at the latest
    assert (record.connect_end, record.sent, record.remote_begin) == pytest.approx((10.3, 10.3, 10.3))
    assert (record.connect_s, record.remote_s, record.ran_s) == pytest.approx((0.3, 0.7, 0.7))
    record.request(12.0, 12.0, 13.0, 5.0)
    assert (record.connect_s, record.remote_s, record.ran_s) == pytest.approx((0.3, 1.7, 1.7))
