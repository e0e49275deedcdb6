# SPDX-License-Identifier: GPL-3.0-or-later
"""The harness itself: two equal runs are equal, and every kind of planted difference is found and named."""

import copy
import dataclasses
import shutil

import harness
import pytest

pytestmark = pytest.mark.quick
SELF = harness.HERE / "selftest"
MODE = harness.MODES["again-linear"]


@pytest.fixture(scope="module")
def play():
    return harness.Play.load(SELF)


@pytest.fixture(scope="module")
def oracle(runner, play):
    return runner.oracle(play, MODE)


def planted(play, tmp_path, *changes):
    """A copy of the play with texts of its playbook replaced."""
    folder = tmp_path / play.name
    shutil.copytree(play.path, folder)
    text = (folder / "playbook.yml").read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / "playbook.yml").write_text(text)
    return harness.Play.load(folder)


def found(play, oracle, other):
    return [f"{item.where}: {item.path}" for item in harness.compare(play, oracle, other)]


def test_more_forks_make_no_difference(runner, play, oracle):
    other = dataclasses.replace(play, meta={**play.meta, "forks": 5})
    assert found(play, oracle, runner.run(other, MODE)) == []


def test_planted_differences_are_found(runner, play, oracle, tmp_path):
    changes = (("echo one", "echo two"), ("0640", "0600"))
    where = found(play, oracle, runner.run(planted(play, tmp_path, *changes), MODE))
    assert "host lab001, task 'says' (ok): result.stdout" in where
    assert "host lab002, task 'says' (ok): result.stdout" in where
    assert "variables at the end: lab001._nonpersistent_fact_cache.value.said.stdout" in where
    assert "files: hosts.lab002.file.mode" in where
    assert not any("task 'fails'" in item for item in where)


def test_a_failure_more_is_found(runner, play, oracle, tmp_path):
    where = found(play, oracle, runner.run(planted(play, tmp_path, ("ignore_errors: true", "ignore_errors: false")), MODE))
    assert "exit code: " in where
    assert "recap: lab001.failures" in where


def test_an_oracle_that_is_not_as_meant_is_refused(runner, play):
    wrong = dataclasses.replace(play, meta={**play.meta, "exit": 2})
    with pytest.raises(harness.OracleError, match="exit code"):
        runner.oracle(wrong, MODE)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda o: setattr(o, "rc", 99), "exit code: "),
        (lambda o: o.hosts["lab001"].pop(), "host lab001: order of events"),
        (lambda o: o.hosts["lab001"].insert(0, o.hosts["lab001"].pop(1)), "host lab001: order of events"),
        (lambda o: o.hosts["lab002"][1]["result"].update(rc=False), "host lab002, task 'says' (ok): result.rc"),
        (lambda o: o.hosts["lab002"][1]["raw"].update(args={}), "host lab002, task 'says' (ok): raw.args._raw_params"),
        (lambda o: o.course.pop(1), "course: order of events"),
        (lambda o: setattr(o, "stderr", "[WARNING]: new"), "stderr: "),
        (lambda o: setattr(o, "stdout", o.stdout.replace("ok: [", "changed: [", 1).replace("changed: [", "ok: [", 1)), "stdout: lab001[0]"),
        (lambda o: o.files["left in temp folders of the hosts"].append("/tmp/x"), "files: left in temp folders of the hosts"),
        (lambda o: o.files["homes"]["home"].update(new={}), "files: homes.home.new"),
    ],
)
def test_every_part_is_compared(play, oracle, change, where):
    other = copy.deepcopy(oracle)
    other.mode = MODE.name
    assert found(play, oracle, other) == []
    change(other)
    assert where in found(play, oracle, other)


def test_what_moves_is_replaced_and_nothing_else():
    text = '{"start": "2026-01-02 03:04:05.678901", "rc": 0, "path": "/h/.ansible/tmp/ansible-tmp-17.5-1-2/x"}'
    assert harness.normal_text(text) == '{"start": "<time>", "rc": 0, "path": "/h/.ansible/tmp/ansible-tmp-<n>/x"}'
    assert harness.normal({"start": None, "mtime": 1.5, "rc": 1}) == {"start": None, "mtime": "<time>", "rc": 1}
    plain = "an ordinary sentence, 10.0.0.1 port 22, tmp and tmpfs, a.b.c-d"
    assert harness.normal_text(plain) == plain


@pytest.mark.parametrize("name", ["churten-free", "conn-linear"])
def test_churten_does_the_work(runner, play, name):
    """Equal results would prove nothing if every task had quietly taken the stock way."""
    loud = dataclasses.replace(play, meta={**play.meta, "args": ["-vvvv"]})
    shown = runner.run(loud, harness.MODES[name]).stdout
    assert shown.count("churten: RUN ansible.modules.command on agent") >= 4
    if name == "churten-free":
        assert "engine: fiber" in shown
