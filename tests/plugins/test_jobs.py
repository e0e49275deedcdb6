# SPDX-License-Identifier: GPL-3.0-or-later
"""Asynchronous jobs that agents start (churten/transport/jobs.py), over lab hosts: which do, which do not, and what they outlive.

What jobs find and leave is in the differential play 89 and in tests/native/test_agent_jobs.py.
"""

import json
import re
import subprocess
import time

import pytest
from lab_plays import assert_same
from test_connection import JOB, needs_root, tasks

FIBERS = {"ANSIBLE_STRATEGY": "churten.core.linear"}
LEFT = "- {name: left, command: find .ansible/tmp -mindepth 1, args: {chdir: '~'}}"


@pytest.fixture
def alike(play):
    """Runs a playbook under stock and with jobs by agents; answers the second run."""

    def compare(text, env=None, **variables):
        stock = play(text, "ssh", env={"ANSIBLE_STRATEGY": "linear", **(env or {})}, **variables)
        ours = play(text, "ssh", "-vvv", env={**FIBERS, **(env or {})}, **variables)
        for run in (stock, ours):
            for line in run.results:
                for name in ("attempts", "child_pid"):
                    line["result"].pop(name, None)
                line["result"] = json.loads(re.sub(r"\bj[0-9]+\.[0-9]+", "JOB", json.dumps(line["result"])))
        assert_same(stock, ours)
        return ours

    return compare


def started(run):
    """How many jobs agents were asked for, and why others went another way."""
    return run.text.count("churten: JOB "), [line.rpartition("the stock way: ")[2] for line in run.text.splitlines() if "the stock way: " in line]


def test_an_agent_starts_jobs(alike):
    """And puts no program on the target."""
    ours = alike(JOB)
    assert started(ours) == (2, [])
    assert "churten: EXEC on a terminal" not in ours.text and "async_wrapper.py\n" not in ours.text and " PUT " not in ours.text


@needs_root
def test_as_root(alike):
    text = tasks("- {shell: 'id -un; umask; env | cut -d= -f1 | sort', become: true, async: 60, poll: 1}")
    assert started(alike(text)) == (1, [])


NOT_BY_AGENTS = {
    "another account": "- {command: id -un, become: true, become_user: nobody, async: 60, poll: 1, ignore_errors: true}",
    "an option of Python": "- {command: echo x, environment: {PYTHONUTF8: '1'}, async: 60, poll: 1}",
    "a module with a file of arguments": "- {want: {a: 1}, async: 60, poll: 1}",
    "no pipelining": "- {command: echo x, vars: {ansible_pipelining: false}, async: 60, poll: 1}",
    "stock transport": "- {command: echo x, vars: {ansible_churten_transport: stock}, async: 60, poll: 1}",
    "sudo by stock": "- {command: echo x, become: true, vars: {ansible_churten_become: stock}, async: 60, poll: 1}",
}


@needs_root
@pytest.mark.parametrize("name", NOT_BY_AGENTS)
def test_what_agents_do_not_start(alike, tmp_path, name):
    library = tmp_path / "library"
    library.mkdir()
    (library / "want.sh").write_text('#!/bin/sh\n# WANT_JSON\necho "{\\"seen\\": \\"$(grep -c \'"a"\' "$1")\\"}"\n')
    ours = alike(tasks(NOT_BY_AGENTS[name]), env={"ANSIBLE_LIBRARY": str(library)})
    assert started(ours)[0] == 0
    assert re.search(r"async_wrapper\.py j[0-9]+ 60 ", ours.text)


def test_files_that_are_to_stay(play, lab):
    """keep_remote_files: both programs are there afterwards, as under stock."""
    text = tasks("- {name: job, command: echo x, async: 60, poll: 1}\n- {name: kept, shell: 'cd ~/.ansible/tmp && ls */*wrapper* */*command*'}")
    kept = []
    for env in ({"ANSIBLE_STRATEGY": "linear"}, FIBERS):
        subprocess.run(["rm", "-rf", str(lab.dir / "home" / ".ansible" / "tmp")], check=True)
        run = play(text, "ssh", "-vvv", env={**env, "ANSIBLE_KEEP_REMOTE_FILES": "1"})
        kept.append(sorted(line.partition("/")[2] for line in run.one("kept")["result"]["stdout_lines"]))
        assert started(run)[0] == 0
    assert kept[0] == kept[1] and "async_wrapper.py" in kept[0], kept


FULL = tasks(
    "- {name: job, command: echo x, async: 60, poll: 1, vars: {ansible_remote_tmp: '{{ where }}/tmp'}, ignore_errors: true, ignore_unreachable: true}\n"
    "- {name: elsewhere, command: echo x, async: 60, poll: 1}\n"
)


@needs_root
def test_an_agent_that_cannot(play, lab):
    """There is no room for a file in the temporary folder: it says so, and what was held fails in the words of stock. It is not asked again."""
    where = lab.dir / "hosts" / "lab001" / "full"
    where.mkdir(exist_ok=True)
    runs = []
    for env in ({"ANSIBLE_STRATEGY": "linear"}, FIBERS):
        subprocess.run(["mount", "-t", "tmpfs", "-o", "nr_inodes=3,mode=777", "tmpfs", str(where)], check=True)
        try:
            runs.append(play(FULL, "ssh", "-vvv", env=env, where=str(where)))
        finally:
            subprocess.run(["umount", "-l", str(where)], check=True)
    for run in runs:
        for line in run.results:
            line["result"] = json.loads(re.sub(r"\bj[0-9]+\.[0-9]+|ansible-tmp-[0-9.-]+|ansible-local-\w+/\w+", "X", json.dumps(line["result"])))
            line["result"].pop("msg") if line["task"] == "elsewhere" else None
    assert runs[0].one("job")["status"] != "ok", runs[0].text
    assert_same(*runs)
    asked, why = started(runs[1])
    assert asked == 1 and len([text for text in why if "no job by an agent: " in text]) == 2


@pytest.mark.parametrize("end", ["session", "pool"])
def test_a_job_outlives_run_and_pool(play, lab, pool_dir, tmp_path, end):
    text = tasks(
        "- {name: job, shell: \"while [ ! -e {{ lab_dir }}/go ]; do sleep 0.1; done; echo went\", async: 60, poll: 0}\n"
        "- {name: agent, command: echo x}\n"
    )
    go = lab.dir / "hosts" / "lab001" / "go"
    go.unlink(missing_ok=True)
    run = play(text, "ssh", "-vvv", env=FIBERS)
    assert run.rc == 0 and started(run) == (1, []), run.text
    job = run.one("job")["result"]
    if end == "session":
        subprocess.run(["pkill", "-f", f"^sshd: {lab.account}"], check=True)
    else:
        subprocess.run(["pkill", "-9", "-f", f"churten-pool --dir {pool_dir}"], check=True)
    time.sleep(1)
    with open(job["results_file"]) as file:
        assert not json.load(file)["finished"]
    go.touch()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with open(job["results_file"]) as file:
            found = json.load(file)
        if "stdout" in found:
            break
        time.sleep(0.1)
    assert found["stdout"] == "went"
    go.unlink()


def test_no_terminal_of_the_server(alike, lab):
    """The key allows none: a job finds none then, so the programs are put there and ssh starts them."""
    keys = lab.dir / "keys" / "authorized_keys"
    text = keys.read_text()
    keys.write_text("".join(f"no-pty {line}\n" for line in text.splitlines() if line))
    again = tasks("- meta: reset_connection\n- ping:")
    try:
        alike(again)
        ours = alike(JOB, probe=1)
        assert started(ours)[0] == 0
        assert any("no job by an agent: " in why for why in started(ours)[1])
    finally:
        keys.write_text(text)
        alike(again)
