# SPDX-License-Identifier: GPL-3.0-or-later
"""Chains of requests in the agent (docs/protocol.md, Chains): each begins only when the one before ended as foretold."""

import os
import time

import agent_client
import pytest
from agent_client import END, AgentClient, pack

LINK = 16
TOKEN = b"\1\2\3\4\5\6\7\x08"
ANY = ("", "", "")


@pytest.fixture
def agent():
    with AgentClient() as client:
        yield client


def link(client, kind, items, turn, foretold=ANY, token=TOKEN, agent=0):
    client.next += 1
    body = pack(*items, pack(token, turn, *foretold))
    client.write(agent_client.frame(kind, body, client.next, agent, LINK))
    return client.next


def command(client, text, turn, foretold=ANY, **more):
    return link(client, "EXEC", (text, "", 0, "null", "sh"), turn, foretold, **more)


def put(client, path, data, turn):
    request = link(client, "PUT", (str(path), "", len(data)), turn, ("0", "", ""))
    client.send("DATA", data, request, flags=END)
    return request


def failed(done):
    return done.failed and (done.fail_class, done.started) == ("chain", b"0")


def test_in_order(agent, tmp_path):
    """A slow first link, and all that depends on it sent at once."""
    made = command(agent, f"sleep 0.3; mkdir {tmp_path}/d && echo made", 0, ("0", "made\n", ""))
    filled = put(agent, tmp_path / "d" / "f", b"content", 1)
    read = command(agent, f"cat {tmp_path}/d/f; exit 3", 2)
    gone = command(agent, f"rm -r {tmp_path}/d", 3)
    assert agent.wait(made).stdout == b"made\n"
    assert agent.wait(filled).rc == 0
    done = agent.wait(read)
    assert (done.rc, done.stdout) == (3, b"content")
    assert agent.wait(gone).rc == 0  # after any answer
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "text, foretold",
    [
        ("echo other", ("0", "made\n", "")),
        ("echo made; exit 1", ("0", "made\n", "")),
        ("echo made; echo oh >&2", ("0", "made\n", "")),
        ("kill -9 $$", ("0", "", "")),
        ("head -c 100000 /dev/zero", ("0", "\0" * 34464, "")),
    ],
)
def test_nothing_after_a_surprise(agent, tmp_path, text, foretold):
    first = command(agent, text, 0, foretold)
    second = command(agent, f"touch {tmp_path}/second", 1, ("0", "", ""))
    third = put(agent, tmp_path / "third", b"x", 2)
    assert not agent.wait(first).failed
    assert failed(agent.wait(second))
    assert failed(agent.wait(third))
    late = command(agent, f"touch {tmp_path}/late", 3)
    assert failed(agent.wait(late))
    assert agent.exec("echo well").stdout == b"well\n"
    assert os.listdir(tmp_path) == []


def test_put_fails(agent, tmp_path):
    first = put(agent, tmp_path / "none" / "f", b"x", 0)
    second = command(agent, f"touch {tmp_path}/second", 1)
    assert agent.wait(first).fail_class == "file"
    assert failed(agent.wait(second))
    assert os.listdir(tmp_path) == []


def test_out_of_order(agent, tmp_path):
    """One may come late: the pool lacked its module."""
    first = command(agent, f"echo 1 >> {tmp_path}/f", 0, ("0", "", ""))
    assert agent.wait(first).rc == 0
    third = command(agent, f"echo 3 >> {tmp_path}/f", 2)
    assert agent.exec("echo meanwhile").rc == 0
    agent.send("PING", b"held", third)
    while (seen := agent.frame())[0] != "PONG":
        pass
    assert seen[1] == third
    second = command(agent, f"echo 2 >> {tmp_path}/f", 1)
    assert agent.wait(second).rc == 0
    assert agent.wait(third).rc == 0
    assert (tmp_path / "f").read_text() == "1\n2\n3\n"


def test_cancelled_while_held(agent, tmp_path):
    go = tmp_path / "go"
    first = command(agent, f"until [ -e {go} ]; do sleep 0.05; done", 0)
    second = command(agent, f"touch {tmp_path}/second", 1)
    third = command(agent, f"touch {tmp_path}/third", 2)
    agent.send("CANCEL", b"", second)
    done = agent.wait(second)
    assert (done.fail_class, done.started) == ("cancelled", b"0")
    assert failed(agent.wait(third))
    go.touch()
    assert agent.wait(first).rc == 0
    assert os.listdir(tmp_path) == ["go"]


def test_no_such_chain(agent, tmp_path):
    assert failed(agent.wait(command(agent, f"touch {tmp_path}/f", 1)))
    assert failed(agent.wait(command(agent, f"touch {tmp_path}/f", 7, token=b"x")))
    assert os.listdir(tmp_path) == []


def test_chains_do_not_meet(agent, tmp_path):
    slow = command(agent, "sleep 0.5", 0, token=b"slow")
    held = command(agent, "echo held", 1, token=b"slow")
    for number in range(300):  # more than are kept
        token = b"%d" % number
        assert agent.wait(command(agent, ":", 0, token=token)).rc == 0
    assert agent.wait(slow).rc == 0
    assert agent.wait(held).stdout == b"held\n"


def test_the_connection_ends(tmp_path):
    """What is under way goes on, nothing new begins."""
    client = AgentClient()
    go = tmp_path / "go"
    first = command(client, f"until [ -e {go} ]; do sleep 0.05; done; mv {go} {tmp_path}/first", 0, ("0", "", ""))
    command(client, f"touch {tmp_path}/second", 1)
    put(client, tmp_path / "third", b"x", 2)
    while client.frame()[:2] != ("ACCEPTED", first):
        pass
    client.process.stdin.close()
    time.sleep(0.1)
    go.touch()
    client.close()
    assert os.listdir(tmp_path) == ["first"]


def test_sub_agent(agent, tmp_path):
    """A link of a sub-agent waits like any other; when its agent goes, what depends on it does not begin."""
    bootstrap = agent_client.bootstrap()
    spec = dict(key="k", command=bootstrap.sub_command(agent.hello["python"]), nonce=agent_client.NONCE, timeout_ms=20000)
    spec["input"] = bootstrap.start_input(agent_client.NONCE)
    agent.next += 1
    agent.send("START", pack(*[item for pair in spec.items() for item in pair]), agent.next, 5)
    assert agent.wait(agent.next).kind == "STARTED"
    first = command(agent, f"sleep 0.3; echo 1 > {tmp_path}/f", 0, ("0", "", ""))
    second = command(agent, f"cat {tmp_path}/f; exit 4", 1, agent=5)
    third = command(agent, f"rm {tmp_path}/f", 2)
    agent.send("PING", b"held", second, 5)
    while (seen := agent.frame())[0] != "PONG":
        agent.waiting.append(seen)
    assert seen[1:3] == (second, 5)
    assert agent.wait(first).rc == 0
    done = agent.wait(second)
    assert (done.rc, done.stdout) == (4, b"1\n")
    assert agent.wait(third).rc == 0
    assert os.listdir(tmp_path) == []
    running = command(agent, "kill -9 $PPID; sleep 20", 0, token=b"again", agent=5)
    after = command(agent, f"touch {tmp_path}/after", 1, token=b"again")
    assert failed(agent.wait(after))
    assert running
    assert os.listdir(tmp_path) == []


def test_window_of_a_held_file(agent, tmp_path):
    """More than a window for a file that has not begun is no client of ours."""
    command(agent, "sleep 20", 0)
    request = link(agent, "PUT", (str(tmp_path / "f"), "", -1), 1, ("0", "", ""))
    with pytest.raises((EOFError, BrokenPipeError)):
        for _ in range(12):
            agent.send("DATA", bytes(200000), request)
        while True:
            agent.frame()
