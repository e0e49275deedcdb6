"""churten-pool from outside: a real process, the local transport, and a fake agent that can misbehave."""

import contextlib
import hashlib
import os
import resource
import shlex
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from talking import (
    ACCEPTED,
    CANCEL,
    CLOSE,
    DATA,
    DEADLINE_S,
    END,
    EXEC,
    EXECUTABLE,
    EXIT,
    FAILED,
    FAKE_AGENT,
    FETCH,
    HELLO,
    NEED,
    NO_AGENT,
    NONCE,
    OPENED,
    PAYLOAD,
    PING,
    PONG,
    PUT,
    RESET,
    RUN,
    SOURCE,
    STAMP,
    STARTED,
    STOP,
    WINDOW,
    Talk,
    as_map,
)  # fmt: skip

from churten import __version__, _core

LINK = 16
root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
NOBODY = 65534


def frame(kind, body=b"", length=None, magic=0x4348, version=1, flags=0, reserved=0):
    return struct.pack(">HBBBBHIII", magic, version, kind, flags, reserved, 0, 0, 0, len(body) if length is None else length) + body


def hello(version=__version__):
    return frame(HELLO, _core.pack(["version", version, "pid", "1"]))


def raw(pool):
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(DEADLINE_S)
    s.connect(str(pool.path))
    return s


def read_until_closed(s):
    out = b""
    try:
        while more := s.recv(65536):
            out += more
    except ConnectionResetError:
        pass
    return out


def wait_for(condition):
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def works(talk, session, agent=0):
    return talk.result(talk.exec("echo fine", session, agent))[1] == b"fine"


# --- starting agents and running requests ---


def test_open_start_exec(pool):
    talk = pool.talk()
    info = talk.begin()
    assert info["version"] == "3.fake" and info["reused"] == "0"
    assert talk.result(talk.exec("echo hello")) == (0, b"hello", b"agent 0")
    status = talk.status()
    assert status["version"] == __version__ and status["pid"] == pool.process.pid
    assert [(s["name"], s["transport"], s["state"], s["agents"], s["clients"]) for s in status["sessions"]] == [("host1", "local", "open", 1, 1)]


def test_requests_may_follow_without_waiting(pool):
    talk = pool.talk()
    opened, started = talk.open(), talk.start()
    first, second = talk.exec("echo 1"), talk.exec("echo 2")
    assert talk.result(second)[1] == b"2"
    assert talk.result(first)[1] == b"1"
    assert talk.final(opened).type == OPENED and talk.final(started).type == STARTED


def test_stamps_come_before_the_final_frame_in_order(pool):
    talk = pool.talk()
    talk.begin()
    before = time.monotonic_ns() // 1000
    request = talk.exec("echo 1")
    talk.result(request)
    after = time.monotonic_ns() // 1000
    assert [f.type for f in talk.seen if f.request == request] == [ACCEPTED, STAMP]
    stamps = struct.unpack(">QQQ", next(f.body for f in talk.seen if f.request == request and f.type == STAMP))
    assert before <= stamps[0] <= stamps[1] <= stamps[2] <= after


def test_noise_before_the_marker_is_ignored(pool):
    talk = pool.talk()
    talk.open()
    assert talk.final(talk.start(mode="noise")).type == STARTED
    assert works(talk, 1)
    assert "Welcome!\\nCHURTEN" in pool.log.read_text()


@pytest.mark.parametrize(
    "mode, cls, words",
    [
        ("flood", "agent", "64 KiB"),
        ("nopython", "no_python", "no Python"),
        ("exit", "agent", "sh: python: not found"),
        ("nohello", "protocol", "protocol"),
        ("silent", "agent", "in time"),
    ],
)
def test_an_agent_that_does_not_start(pool, mode, cls, words):
    talk = pool.talk()
    talk.open()
    start = talk.start(mode=mode, timeout_ms=300 if mode == "silent" else 10000)
    request = talk.exec("echo 1")
    got = talk.failed(request)
    assert (got[0], got[3]) == (cls, "0") and words in got[2]
    # A protocol violation ends the session, which says so once for all.
    assert talk.failed(start)[0] == cls if mode != "nohello" else talk.until(lambda f: f.type == FAILED and f.request == 0)
    assert works(pool_other(pool), 1)


def pool_other(pool):
    """Another client with a session of its own: must never suffer."""
    talk = pool.talk()
    talk.begin(key="other")
    return talk


def test_a_failed_start_can_be_repeated_on_the_session(pool):
    talk = pool.talk()
    talk.open()
    assert talk.failed(talk.start(mode="exit"))[0] == "agent"
    assert talk.final(talk.start()).type == STARTED
    assert works(talk, 1)


def test_an_agent_that_dies(pool):
    talk = pool.talk()
    talk.begin()
    assert talk.failed(talk.exec("die"))[::3] == ["agent", "1"]
    gone = talk.until(lambda f: f.type == FAILED and f.request == 0)
    assert (gone.session, gone.agent) == (1, 0) and _core.unpack(gone.body)[0] == b"agent"
    assert talk.failed(talk.exec("echo 1"))[::3] == ["agent", "0"]
    assert talk.final(talk.start()).type == STARTED
    assert works(talk, 1)


@pytest.mark.parametrize("command", ["garbage", "double", "unknown", "badwindow", "flood"])
@pytest.mark.row("F6")
def test_a_target_that_breaks_the_protocol_loses_only_its_session(pool, command):
    other = pool_other(pool)
    talk = pool.talk()
    talk.begin()
    got = talk.failed(talk.exec(command))
    assert got[::3] == ["protocol", "1"]
    gone = talk.until(lambda f: f.type == FAILED and f.request == 0)
    assert (gone.session, gone.agent) == (1, 0)
    assert talk.failed(talk.exec("echo 1"))[::3] == ["protocol", "0"]
    assert works(other, 1)
    talk.begin()
    assert works(talk, 1)


def test_a_silent_agent_is_unreachable(pool):
    talk = pool.talk()
    talk.open(alive_interval_ms=60, alive_count=2)
    assert talk.final(talk.start(mode="mute")).type == STARTED
    got = talk.failed(talk.exec("echo 1"))
    assert got[0] == "unreachable" and got[1] == "agent" and "no answer" in got[2] and got[3] == "1"


def test_a_quiet_agent_that_answers_pings_is_not(pool):
    talk = pool.talk()
    talk.begin(alive_interval_ms=20, alive_count=1)
    request = talk.exec("hang")
    time.sleep(0.4)
    assert talk.client.poll(0) is not None and not [f for f in talk.seen if f.type == FAILED]
    talk.send(CANCEL, request=request, body=b"")
    assert talk.result(request)[0] == -1


def test_a_kept_agent_that_is_gone_costs_no_request(pool):
    talk = pool.talk()
    talk.open(alive_interval_ms=60, alive_count=2)
    pid = int(as_map(talk.final(talk.start()).body)["pid"])
    assert works(talk, 1)
    time.sleep(0.1)
    os.kill(pid, signal.SIGSTOP)
    try:
        assert talk.failed(talk.exec("echo 1"))[::3] == ["reset", "0"]
    finally:
        os.kill(pid, signal.SIGKILL)
    talk.begin()
    assert works(talk, 1)


def test_a_kept_agent_is_asked_before_it_is_used_again(pool):
    talk = pool.talk()
    talk.begin(alive_interval_ms=100, alive_count=100)
    for _ in range(2):
        time.sleep(0.15)
        requests = [talk.exec("echo fine"), talk.exec("big 3000000"), talk.exec("echo fine")]
        assert [len(talk.result(r)[1]) for r in requests] == [4, 3_000_000, 4]


def test_cancel(pool):
    talk = pool.talk()
    talk.begin()
    request = talk.exec("hang")
    talk.until(lambda f: f.request == request and f.type == ACCEPTED)
    talk.send(CANCEL, request=request, body=b"")
    assert talk.result(request)[0] == -1
    assert works(talk, 1)


def test_cancel_of_a_queued_request(pool):
    talk = pool.talk()
    talk.open()
    start = talk.start(command="read line; exit 1", timeout_ms=10000)
    first, second = talk.exec("echo 1"), talk.exec("echo 2")
    talk.send(CANCEL, request=first, body=b"")
    assert talk.failed(first)[::3] == ["cancelled", "0"]
    talk.send(CLOSE, request=0, body=b"")
    assert talk.failed(talk.exec("echo 3"))[::3] == ["reset", "0"]
    assert not [f for f in talk.seen if f.request in (start, second)]


def test_files(pool, tmp_path):
    talk = pool.talk()
    talk.begin()
    data = os.urandom(700_000)
    request = talk.send(PUT, items=[str(tmp_path / "x"), "", str(len(data))])
    for at in range(0, len(data), 200_000):
        chunk = data[at : at + 200_000]
        talk.send(DATA, request=request, body=chunk, flags=END if at + 200_000 >= len(data) else 0)
    assert talk.result(request)[0] == 0
    assert (tmp_path / "x").read_bytes() == data
    (tmp_path / "y").write_bytes(data[:200_000])
    assert talk.result(talk.send(FETCH, items=[str(tmp_path / "y")]))[1] == data[:200_000]
    assert talk.failed(talk.send(FETCH, items=[str(tmp_path / "none")]))[0] == "file"


def source(talk, path, size, to, flags=os.O_RDONLY, announced=None):
    """PUT of a file that the pool reads itself."""
    request = talk.send(PUT, items=[str(to), "", str(size if announced is None else announced)])
    fd = os.open(path, flags)
    talk.client.send(SOURCE, 1, 0, request, struct.pack(">Q", size), 0, fd)
    os.close(fd)
    return request


def files_open(pool):
    return [os.readlink(f"/proc/{pool.process.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pool.process.pid}/fd")]


@pytest.mark.parametrize("size", [0, 1, 262124, 262125, 262144, 3_000_000])
def test_a_file_that_the_pool_reads_itself(pool, tmp_path, size):
    talk = pool.talk()
    talk.begin()
    data = os.urandom(size)
    (tmp_path / "x").write_bytes(data)
    assert talk.result(source(talk, tmp_path / "x", size, tmp_path / "y"))[0] == 0
    assert (tmp_path / "y").read_bytes() == data
    assert not [f for f in talk.seen if f.type == WINDOW]
    wait_for(lambda: str(tmp_path / "x") not in files_open(pool))


def test_files_that_the_pool_reads_itself_at_the_same_time(pool, tmp_path):
    """Also one that goes out with the start, one for an agent far away, and one that is not in memory."""
    talk = pool.talk()
    talk.open()
    talk.start()
    data = {name: os.urandom(2_500_000) for name in ("a", "b", "c-far-away", "d")}
    for name, content in data.items():
        (tmp_path / name).write_bytes(content)
    fd = os.open(tmp_path / "d", os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    requests = [source(talk, tmp_path / name, len(content), tmp_path / f"to-{name}") for name, content in data.items()]
    assert [talk.result(request)[0] for request in requests] == [0] * 4
    assert all((tmp_path / f"to-{name}").read_bytes() == content for name, content in data.items())


def test_a_source_that_grows_or_shrinks(pool, tmp_path):
    talk = pool.talk()
    talk.begin()
    (tmp_path / "x").write_bytes(bytes(range(200)) * 5000)
    assert talk.result(source(talk, tmp_path / "x", 600_000, tmp_path / "y"))[0] == 0
    assert (tmp_path / "y").read_bytes() == (bytes(range(200)) * 5000)[:600_000]
    # The fake agent takes what comes; a real one says how much is missing (test_agent.py).
    assert talk.result(source(talk, tmp_path / "x", 2_000_000, tmp_path / "z"))[0] == 0
    assert (tmp_path / "z").read_bytes() == bytes(range(200)) * 5000


def test_a_source_that_cannot_be_read(pool, tmp_path):
    talk = pool.talk()
    talk.begin()
    (tmp_path / "x").write_bytes(bytes(1000))
    request = source(talk, tmp_path / "x", 1000, tmp_path / "y", os.O_WRONLY)
    assert talk.failed(request) == ["file", "file", "cannot read the file: Bad file descriptor", "1"]
    assert str(tmp_path / "x") not in files_open(pool)
    assert works(talk, 1)


def test_a_source_ends_with_its_request(pool, tmp_path):
    talk = pool.talk()
    talk.begin()
    (tmp_path / "x").touch()
    os.truncate(tmp_path / "x", 64 << 20)
    request = source(talk, tmp_path / "x", 64 << 20, tmp_path / "y-far-away")
    wait_for(lambda: str(tmp_path / "x") in files_open(pool))
    talk.send(CANCEL, request=request, body=b"")
    wait_for(lambda: str(tmp_path / "x") not in files_open(pool))
    assert (tmp_path / "y-far-away").stat().st_size < 32 << 20
    # Of a request that the pool does not know any more.
    talk.client.send(SOURCE, 1, 0, 4711, struct.pack(">Q", 64 << 20), 0, os.open(tmp_path / "x", os.O_RDONLY))
    assert works(talk, 1)
    assert str(tmp_path / "x") not in files_open(pool)
    source(talk, tmp_path / "x", 64 << 20, tmp_path / "y-far-away")
    wait_for(lambda: str(tmp_path / "x") in files_open(pool))
    talk.client.close()
    wait_for(lambda: str(tmp_path / "x") not in files_open(pool))


@pytest.mark.row("F3")
@pytest.mark.parametrize("wrong", ["no descriptor", "a pipe", "length", "flags", "exec", "twice", "data after it", "too long"])
def test_a_source_that_breaks_the_protocol_drops_the_client(pool, tmp_path, wrong):
    talk = pool.talk()
    talk.begin()
    (tmp_path / "x").write_bytes(bytes(4 << 20))
    ends = os.pipe()
    fd = os.open(tmp_path / "x", os.O_RDONLY)
    if wrong == "exec":
        request = talk.send(EXEC, items=["stopreading", "", "0", "data", "login"])
    else:
        request = talk.send(PUT, items=[str(tmp_path / "y-far-away"), "", str(4 << 20)])
    size = struct.pack(">Q", 1 << 63 if wrong == "too long" else 4 << 20)
    talk.client.send(
        SOURCE,
        1,
        0,
        request,
        size[:7] if wrong == "length" else size,
        END if wrong == "flags" else 0,
        {"no descriptor": -1, "a pipe": ends[0]}.get(wrong, fd),
    )
    if wrong == "twice":
        talk.client.send(SOURCE, 1, 0, request, size, 0, fd)
    elif wrong == "data after it":
        talk.send(DATA, request=request, body=b"x")
    for one in (*ends, fd):
        os.close(one)
    with pytest.raises(_core.Error):
        talk.until(lambda f: False)
    assert works(pool_other(pool), 1)
    wait_for(lambda: str(tmp_path / "x") not in files_open(pool))


@pytest.mark.row("F3")
def test_descriptors_that_nobody_asked_for_drop_the_client(pool, tmp_path):
    talk = pool.talk()
    talk.begin()
    (tmp_path / "x").write_bytes(b"x")
    fd = os.open(tmp_path / "x", os.O_RDONLY)
    with contextlib.suppress(_core.Error):
        for _ in range(40):
            talk.client.send(PING, 0, 0, 0, b"churten", 0, fd)
    os.close(fd)
    with pytest.raises(_core.Error):
        talk.until(lambda f: False)
    wait_for(lambda: str(tmp_path / "x") not in files_open(pool))


@pytest.mark.row("F3")
def test_stdin_beyond_the_window_drops_the_client(pool):
    talk = pool.talk()
    talk.begin()
    request = talk.send(EXEC, items=["stopreading", "", "0", "data", "login"])
    for _ in range(5):
        talk.send(DATA, request=request, body=bytes(256 << 10))
    with pytest.raises(_core.Error):
        talk.until(lambda f: False)
    assert works(pool_other(pool), 1)


# --- payloads ---


def test_need_payload_run(pool):
    talk = pool.talk()
    talk.begin()
    first = talk.run("k1")
    need = talk.final(first)
    assert need.type == NEED and _core.unpack(need.body) == [b"k1"]
    talk.send(PAYLOAD, request=0, items=["k1", b"zip" * 1000])
    assert talk.result(talk.run("k1"))[1] == b"k1 1"
    assert talk.result(talk.run("k1"))[1] == b"k1 1"
    # Another host gets it from the store.
    talk.begin(session=2, key="s2")
    assert talk.result(talk.run("k1", session=2))[1] == b"k1 1"
    assert talk.result(talk.run("", session=2))[1] == b" 1"
    assert talk.status()["payloads"] == 1


def test_a_compressed_run_is_understood(pool):
    talk = pool.talk()
    talk.begin()
    talk.send(PAYLOAD, request=0, items=["k2", b"zip"])
    request = talk.client.request()
    body = _core.pack(["k2", "x.y.z", b"a" * 300_000, "", "", "0", "0", "219", "", ""])
    talk.client.send(RUN, 1, 0, request, body, 1)
    # The fake agent does not inflate: it fails, but only after the pool found the key and sent the payload.
    assert talk.final(talk.run("k3")).type == NEED
    talk.send(CANCEL, request=request, body=b"")
    assert not [f for f in talk.seen if f.type == NEED and f.request == request]
    assert talk.result(talk.run("k2"))[1] == b"k2 1"


def test_the_store_forgets_the_least_recently_used(pool):
    talk = pool.talk()
    talk.begin()
    size = 15 << 20
    for n in range(5):
        talk.send(PAYLOAD, request=0, items=[f"k{n}", bytes(size)])
    status = talk.status()
    assert status["payloads"] == 4 and status["payload_bytes"] <= 64 << 20
    assert talk.final(talk.run("k0")).type == NEED
    assert talk.result(talk.run("k4"))[1] == b"k4 1"


# --- flow control ---


def test_ten_megabytes(pool):
    talk = pool.talk()
    talk.begin()
    rc, out, _ = talk.result(talk.exec("big 10000000"))
    assert rc == 0 and len(out) == 10_000_000


def test_output_stops_at_the_window(pool):
    talk = pool.talk()
    talk.begin()
    request = talk.exec("big 10000000")
    total = 0
    while total < 1 << 20:
        total += len(talk.until(lambda f: f.request == request and f.type == DATA).body)
    talk.send(CANCEL, request=request, body=b"")
    talk.until(lambda f: f.request == request and f.type == EXIT)
    total += sum(len(f.body) for f in talk.seen if f.request == request and f.type == DATA)
    assert total <= (1 << 20) + (256 << 10)


def test_a_client_that_does_not_read_hinders_only_itself(pool):
    talk = pool.talk()
    talk.begin()
    requests = [talk.exec("big 2000000") for _ in range(45)]
    other = pool_other(pool)
    for _ in range(20):
        assert works(other, 1)
    for request in requests:
        assert len(talk.result(request)[1]) == 2_000_000


STOPS = """
import os, signal, sys
sys.path[:0] = sys.argv[2].split(":")
from talking import Talk
talk = Talk(sys.argv[1])
talk.begin()
for _ in range(60):
    talk.exec("big 2000000")
os.kill(os.getpid(), signal.SIGSTOP)
"""


@pytest.mark.slow
def test_a_client_that_was_stopped_gives_shared_sessions_back(pool):
    """Ctrl-Z in the middle of much output: others of the same session wait for seconds, not for a minute."""
    other = pool.talk()
    other.begin()
    path = f"{Path(__file__).parent}:{Path(__file__).parents[2]}"
    child = subprocess.Popen([sys.executable, "-c", STOPS, str(pool.path), path])
    try:
        stopped = os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        assert stopped.si_code == os.CLD_STOPPED
        for _ in range(5):
            assert works(other, 1)
    finally:
        child.kill()
        child.wait()


def test_a_target_that_does_not_read_hinders_only_itself(pool):
    other = pool_other(pool)
    talk = pool.talk()
    hosts = range(1, 7)
    for host in hosts:
        talk.begin(session=host, key=f"s{host}", alive_interval_ms=0)
        talk.exec("stopreading", session=host)
    before = memory_kib(pool)
    body = _core.pack(["", "m", os.urandom(700 << 10), "", "", "0", "0", "219", "", ""])
    requests = {host: [talk.send(RUN, session=host, body=body) for _ in range(10)] for host in hosts}
    for host in hosts:
        got = talk.failed(requests[host][-1])
        assert got[::3] == ["busy", "0"]
    assert works(other, 1)
    # (several hosts: what the pool reads from a client into is the client's, whatever its hosts do)
    assert memory_kib(pool) - before <= len(hosts) * 4 << 10
    waits = [r for r in requests[1] if not any(f.type == FAILED and f.request == r for f in talk.seen)][-2]
    talk.send(CANCEL, request=waits, body=b"")
    assert talk.failed(waits)[::3] == ["cancelled", "0"]


def memory_kib(pool):
    text = Path(f"/proc/{pool.process.pid}/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0])


def test_links_of_chains_pass(pool):
    """What a chain is, is between client and agent: flag and items arrive, and the agent's word for a link that it did not begin."""
    talk = pool.talk()
    talk.begin()
    linked = talk.send(EXEC, items=["flags", "", "0", "null", "login", "the chain"], flags=LINK)
    assert talk.result(linked) == (0, b"16", b"the chain")
    assert talk.result(talk.exec("flags"))[1] == b"0"
    assert talk.failed(talk.exec("skip"))[::3] == ["chain", "0"]
    assert works(talk, 1)
    talk.send(EXEC, agent=NO_AGENT, items=["true", "", "0", "null", "login", "x"], flags=LINK)
    with pytest.raises((AssertionError, _core.Error, OSError)):
        works(talk, 1)


# --- sub-agents ---


def test_sub_agents_travel_through_the_login_agent(pool):
    talk = pool.talk()
    talk.open()
    talk.start()
    sub = talk.start(agent=7, key="root")
    assert talk.result(talk.exec("echo x", agent=7)) == (0, b"x", b"agent 1")
    started = as_map(talk.final(sub).body)
    assert started["pid"] == "1" and started["reused"] == "0"
    again = talk.final(talk.start(agent=8, key="root"))
    assert as_map(again.body)["reused"] == "1"
    assert talk.result(talk.exec("echo x", agent=8))[2] == b"agent 1"
    assert talk.final(talk.run("k", agent=7)).type == NEED
    talk.send(PAYLOAD, request=0, items=["k", "z"])
    assert talk.result(talk.run("k", agent=7))[1] == b"k 1"
    assert talk.result(talk.run("k"))[1] == b"k 1"


def test_closing_the_last_use_ends_a_sub_agent(pool):
    talk = pool.talk()
    talk.begin()
    talk.final(talk.start(agent=1, key="root"))
    talk.final(talk.start(agent=2, key="root"))
    talk.send(CLOSE, agent=1, request=0, body=b"")
    assert talk.result(talk.exec("echo x", agent=2))[2] == b"agent 1"
    talk.send(CLOSE, agent=2, request=0, body=b"")
    assert talk.failed(talk.exec("echo x", agent=2))[::3] == ["reset", "0"]
    # The fake agent dies if it is told to close what it does not have.
    assert works(talk, 1)
    talk.final(talk.start(agent=1, key="root"))
    assert talk.result(talk.exec("echo x", agent=1))[2] == b"agent 2"


def test_a_refused_sub_agent(pool):
    talk = pool.talk()
    talk.begin()
    for said, got in [("become_password_wrong", "become_password_wrong"), ("become", "become"), ("nonsense", "agent")]:
        start = talk.start(agent=3, key="refuse" + said, command=said)
        request = talk.exec("echo x", agent=3)
        assert talk.failed(start)[::2] == [got, "sorry"]
        assert talk.failed(request)[::3] == [got, "0"]
    assert works(talk, 1)


def test_the_login_agent_takes_its_subs_along(pool):
    talk = pool.talk()
    talk.begin()
    talk.final(talk.start(agent=1, key="root"))
    waiting = talk.exec("hang", agent=1)
    talk.until(lambda f: f.request == waiting and f.type == ACCEPTED)
    talk.exec("die")
    assert talk.failed(waiting)[::3] == ["agent", "1"]
    gone = {talk.until(lambda f: f.type == FAILED and f.request == 0).agent for _ in range(2)}
    assert gone == {0, 1}


def test_a_sub_agent_needs_a_login_agent(pool):
    talk = pool.talk()
    talk.final(talk.open())
    assert talk.failed(talk.start(agent=1, key="root"))[::3] == ["reset", "0"]
    assert talk.failed(talk.exec("echo 1", agent=1))[::3] == ["reset", "0"]
    assert talk.failed(talk.exec("echo 1", session=9))[::3] == ["reset", "0"]
    assert talk.failed(talk.start(session=9))[::3] == ["reset", "0"]


# --- exec channels ---


def test_exec_channel(pool):
    talk = pool.talk()
    talk.open(env=["PATH=" + os.environ["PATH"], "COLOUR=blue"], cwd="/usr")
    assert talk.result(talk.exec("echo $COLOUR; pwd; echo err >&2; exit 3", agent=NO_AGENT)) == (3, b"blue\n/usr\n", b"err\n")
    assert talk.result(talk.exec("kill -9 $$", agent=NO_AGENT))[0] == -1
    assert len(talk.result(talk.exec("head -c 5000000 /dev/zero", agent=NO_AGENT))[1]) == 5_000_000
    # Only the three standard descriptors, and ls's own.
    assert talk.result(talk.exec("ls /proc/self/fd | wc -l", agent=NO_AGENT))[1].strip() == b"4"
    assert talk.result(talk.exec("cat", agent=NO_AGENT))[1] == b""


def test_exec_channel_without_a_terminal_to_give(pool):
    talk = pool.talk()
    talk.open()
    got = talk.failed(talk.exec("echo ran", agent=NO_AGENT, terminal="dumb"))
    assert (got[0], got[3]) == ("unsupported", "0")
    assert talk.result(talk.exec("echo fine", agent=NO_AGENT))[1] == b"fine\n"


def test_exec_channel_stdin(pool):
    talk = pool.talk()
    talk.open()
    request = talk.exec("sha256sum", agent=NO_AGENT, stdin="data")
    data = os.urandom(3_000_000)
    window, at = 1 << 20, 0
    while at < len(data):
        if window <= 0:
            got = talk.until(lambda f: f.request == request and f.type == WINDOW)
            window += struct.unpack(">I", got.body)[0]
            continue
        chunk = data[at : at + 100_000]
        at += len(chunk)
        window -= len(chunk)
        talk.send(DATA, agent=NO_AGENT, request=request, body=chunk, flags=END if at == len(data) else 0)
    assert talk.result(request)[1].split()[0].decode() == hashlib.sha256(data).hexdigest()
    request = talk.exec("exec <&-; sleep 0.1; echo done", agent=NO_AGENT, stdin="data")
    talk.send(DATA, agent=NO_AGENT, request=request, body=bytes(200_000), flags=END)
    assert talk.result(request)[1] == b"done\n"


def test_the_window_of_a_put_grows_on_a_long_line_to_three_times_its_size(pool, tmp_path):
    talk = pool.talk()
    talk.begin()
    data = os.urandom(16 << 20)
    for name in ("file-far-away", "file"):
        request = talk.send(PUT, items=[str(tmp_path / name), "0644", str(len(data))])
        window, at = 1 << 20, 0
        while at < len(data):
            while window <= 0:
                window += struct.unpack(">I", talk.until(lambda f: f.type == WINDOW).body)[0]
            chunk = data[at : at + (256 << 10)]
            at += len(chunk)
            window -= len(chunk)
            talk.send(DATA, request=request, body=chunk, flags=END if at == len(data) else 0)
        assert talk.result(request)[0] == 0
        assert (tmp_path / name).read_bytes() == data
        window += sum(struct.unpack(">I", f.body)[0] for f in talk.seen if f.type == WINDOW)
        talk.seen.clear()
        assert window == 3 << 20 or (name == "file" and 1 << 20 <= window < 3 << 20)


def test_exec_channel_ends_though_a_child_keeps_its_output(pool):
    talk = pool.talk()
    talk.open()
    assert talk.result(talk.exec("sleep 30 & echo $!", agent=NO_AGENT))[0] == 0
    pid = talk.result(talk.exec("sleep 30 & echo $!", agent=NO_AGENT))[1]
    os.kill(int(pid), signal.SIGKILL)


def test_exec_channel_cancel_and_timeout(pool):
    talk = pool.talk()
    talk.open()
    request = talk.exec("echo $$; exec sleep 30", agent=NO_AGENT)
    pid = int(talk.until(lambda f: f.request == request and f.type == DATA).body)
    talk.send(CANCEL, agent=NO_AGENT, request=request, body=b"")
    assert talk.result(request)[0] == -1
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"))
    assert talk.result(talk.exec("sleep 30", agent=NO_AGENT, timeout_ms=50))[0] == -1


def test_exec_channel_limits(pool):
    talk = pool.talk()
    talk.open()
    assert talk.failed(talk.send(EXEC, 1, NO_AGENT, ["true", "A=b", "0", "null", "login"]))[::3] == ["unsupported", "0"]
    assert talk.failed(talk.send(EXEC, 1, NO_AGENT, ["true", "", "0", "null", "sh"]))[::3] == ["unsupported", "0"]
    assert talk.result(talk.exec("exit 0", agent=NO_AGENT))[0] == 0


# --- transports ---


@pytest.mark.parametrize(
    "text, cls",
    [
        ("ssh: connect to host x port 22: Connection refused", "unreachable"),
        ("ssh: Could not resolve hostname x: Name or service not known", "unreachable"),
        ("x@y: Permission denied (publickey,password).", "auth"),
        ("Host key verification failed.", "hostkey"),
        ("", "unreachable"),
    ],
)
def test_an_ssh_client_that_cannot_connect(pool, text, cls):
    talk = pool.talk()
    talk.open(transport="ssh", argv=["/bin/sh", "-c", f"printf '%s' '{text}' >&2; exit 255", "ssh"])
    talk.start()
    request = talk.exec("echo 1")
    got = talk.failed(request)
    assert got[::3] == [cls, "0"] and text in got[2]
    assert talk.failed(talk.exec("true", agent=NO_AGENT))[0] == cls


def test_an_ssh_client_that_is_not_there(pool):
    talk = pool.talk()
    talk.open(transport="ssh", argv=["/nonexistent/ssh"])
    got = talk.failed(talk.exec("true", agent=NO_AGENT))
    assert got[0] == "unreachable" and "No such file" in got[2]


def test_an_agent_over_an_ssh_client(pool):
    talk = pool.talk()
    talk.begin(transport="ssh", argv=["/bin/sh", "-c"])
    assert works(talk, 1)


def test_specs_the_pool_cannot_use(pool):
    talk = pool.talk()
    assert talk.failed(talk.open(transport="carrier-pigeon"))[0] == "unsupported"
    assert talk.failed(talk.open(argv=[]))[0] == "unsupported"
    assert talk.failed(talk.open(transport="libssh", argv=[]))[0] == "unsupported"
    assert talk.failed(talk.open(transport="libssh", argv=[], host="127.0.0.1"))[:3] == ["unsupported", "pool", "user is missing"]
    sent = [talk.open(transport="carrier-pigeon"), talk.start(), talk.exec("true")]  # without waiting for the first answer
    assert [talk.failed(number)[0] for number in sent] == ["unsupported"] * 3
    talk.begin()
    assert works(talk, 1)


def test_libssh_reports_a_refused_connection(pool):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    talk = pool.talk()
    request = talk.open(transport="libssh", argv=[], host="127.0.0.1", port=port, user="x", timeout_ms=5000, host_key_checking="no")
    got = talk.failed(request)
    assert got[:2] == ["unreachable", "tcp"]


# --- sharing ---


def test_two_clients_share_a_session(pool):
    one, two = pool.talk(), pool.talk()
    pid = one.begin()["pid"]
    opened = two.final(two.open(session=5))
    assert as_map(opened.body)["reused"] == "1"
    started = as_map(two.final(two.start(session=5)).body)
    assert started["reused"] == "1" and started["pid"] == pid
    # Equal request numbers of two clients do not meet.
    a, b = one.exec("echo one"), two.exec("echo two", session=5)
    assert two.result(b)[1] == b"two" and one.result(a)[1] == b"one"
    hang = one.exec("hang")
    one.until(lambda f: f.request == hang and f.type == ACCEPTED)
    one.client.close()
    assert works(two, 5)
    wait_for(lambda: two.status()["sessions"][0]["clients"] == 1)
    assert two.status()["sessions"][0]["requests"] == 0


def test_another_interpreter_is_another_agent_on_the_same_session(pool):
    talk = pool.talk()
    talk.begin()
    talk.open(session=2)
    talk.final(talk.start(session=2, key="other"))
    one, two = talk.result(talk.exec("pid"))[1], talk.result(talk.exec("pid", session=2))[1]
    assert one != two
    status = talk.status()
    assert len(status["sessions"]) == 1 and status["sessions"][0]["agents"] == 2


def test_reset(pool):
    one, two = pool.talk(), pool.talk()
    pid = one.begin()["pid"]
    two.open()
    two.final(two.start())
    running = two.exec("cat", stdin="data")
    two.until(lambda f: f.request == running and f.type == ACCEPTED)
    cancelled = one.exec("hang")
    reset = one.send(RESET, body=b"")
    assert one.final(reset).type == EXIT
    assert one.begin()["pid"] != pid
    assert works(one, 1)
    assert two.failed(two.exec("echo 1"))[::3] == ["reset", "0"]
    two.send(DATA, request=running, body=b"abc", flags=END)
    assert two.result(running) == (0, b"3", b"abc")
    assert two.until(lambda f: f.type == FAILED and f.request == 0).session == 1
    assert not [f for f in one.seen if f.request == cancelled and f.type in (EXIT, FAILED)]
    assert two.begin()["reused"] == "1"


def test_an_unused_session_ends_and_its_agent_with_it(pool):
    talk = pool.talk()
    talk.final(talk.open(idle_ms=30))
    pid = int(as_map(talk.final(talk.start()).body)["pid"])
    talk.send(CLOSE, request=0, body=b"")
    wait_for(lambda: not talk.status()["sessions"])
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"))


def test_a_session_is_kept_for_the_next_client(pool):
    one = pool.talk()
    pid = one.begin()["pid"]
    one.client.close()
    two = pool.talk()
    assert two.begin()["pid"] == pid


@pytest.mark.row("E11")
def test_no_session_beyond_the_limit_of_open_files(pool):
    talk = pool.talk()
    resource.prlimit(talk.status()["pid"], resource.RLIMIT_NOFILE, (44, 44))
    opened = [talk.final(talk.open(number, key=f"s{number}")).type for number in (1, 2)]
    assert opened == [OPENED, OPENED]
    cls, layer, words, started = talk.failed(talk.open(3, key="s3"))
    assert (cls, layer, started) == ("unsupported", "pool", "0") and "open files" in words
    assert talk.final(talk.open(4, key="s1")).type == OPENED  # joins the first


# --- the process ---


def test_idle_exit(make_pool):
    pool = make_pool("--idle-ms", "50")
    talk = pool.talk()
    talk.final(talk.open(idle_ms=30))
    talk.final(talk.start())
    talk.client.close()
    assert pool.wait() == 0
    assert not pool.path.exists()


def test_stop(pool):
    talk, other = pool.talk(), pool.talk()
    other.begin()
    waiting = other.exec("hang")
    other.until(lambda f: f.request == waiting and f.type == ACCEPTED)
    assert talk.final(talk.send(STOP, 0, body=b"")).type == EXIT
    assert other.failed(waiting)[::3] == ["reset", "1"]
    assert pool.wait() == 0
    assert not pool.path.exists()
    with pytest.raises(_core.Error):
        other.until(lambda f: False)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_stop(pool, number):
    talk = pool.talk()
    talk.begin()
    waiting = talk.exec("hang")
    talk.until(lambda f: f.request == waiting and f.type == ACCEPTED)
    os.kill(pool.process.pid, number)
    assert talk.failed(waiting)[::3] == ["reset", "1"]
    assert pool.wait() == 0
    assert not pool.path.exists()


def test_stop_ends_children_that_do_not_leave_by_themselves(pool, make_pool):
    talk = pool.talk()
    talk.open()
    pid = int(as_map(talk.final(talk.start(mode="mute")).body)["pid"])
    talk.send(STOP, 0, body=b"")
    wait_for(lambda: not pool.path.exists())
    second = make_pool()
    assert second.ready, second.errors()
    assert pool.wait() == 0
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"))


@pytest.mark.row("E5", "E6")
def test_a_killed_pool_leaves_nothing_that_hinders_the_next(pool, make_pool):
    talk = pool.talk()
    pid = int(talk.begin()["pid"])
    request = talk.exec("hang")
    os.kill(pool.process.pid, signal.SIGKILL)
    pool.wait()
    with pytest.raises(_core.Error):
        talk.final(request)
    assert talk.client.closed
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"))
    assert pool.path.exists()
    second = make_pool()
    assert second.ready, second.errors()
    second.talk().begin()


@pytest.mark.row("E6")
def test_a_second_pool_lets_the_first_one_serve(pool, make_pool):
    second = make_pool()
    assert second.ready and second.wait() == 0
    pool.talk().begin()


def test_daemon(pool_dir, make_pool):
    done = subprocess.run([EXECUTABLE, "--dir", pool_dir], capture_output=True, timeout=DEADLINE_S)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    talk = Talk(pool_dir / f"pool-{__version__}.sock")
    pid = talk.status()["pid"]
    try:
        assert stat.S_IMODE(os.stat(pool_dir / f"pool-{__version__}.sock").st_mode) == 0o600
        assert os.readlink(f"/proc/{pid}/cwd") == "/" and os.getsid(pid) == pid
        assert {os.readlink(f"/proc/{pid}/fd/{n}") for n in range(3)} == {"/dev/null"}
        with open(f"/proc/{pid}/limits") as f:
            core = next(line for line in f if line.startswith("Max core file size"))
        assert core.split()[4] == "0"
    finally:
        talk.final(talk.send(STOP, 0, body=b""))
    wait_for(lambda: not os.path.exists(f"/proc/{pid}") or open(f"/proc/{pid}/stat").read().split()[2] == "Z")


@pytest.mark.parametrize("mode", [0o755, 0o710, 0o701])
@pytest.mark.row("F1")
def test_a_directory_open_to_others_is_refused(pool_dir, make_pool, mode):
    pool_dir.chmod(mode)
    pool = make_pool()
    assert not pool.ready and pool.wait() == 1
    assert "open to other users" in pool.errors()
    pool_dir.chmod(0o700)


@pytest.mark.row("F1")
def test_a_link_is_refused(pool_dir, make_pool):
    (pool_dir / "real").mkdir(0o700)
    (pool_dir / "link").symlink_to("real")
    pool = make_pool(directory=pool_dir / "link")
    assert not pool.ready and pool.wait() == 1
    assert "not a directory" in pool.errors()


@root
@pytest.mark.row("F1")
def test_a_directory_of_another_user_is_refused(pool_dir, make_pool):
    theirs = pool_dir / "theirs"
    theirs.mkdir(0o700)
    os.chown(theirs, NOBODY, NOBODY)
    pool = make_pool(directory=theirs)
    assert not pool.ready and pool.wait() == 1
    assert "belongs to another user" in pool.errors()


@pytest.mark.row("F1")
def test_a_file_in_the_way_is_not_removed(pool_dir, make_pool):
    path = pool_dir / f"pool-{__version__}.sock"
    path.write_text("mine")
    pool = make_pool()
    assert not pool.ready and pool.wait() == 1
    assert path.read_text() == "mine"


@pytest.mark.row("F1")
def test_the_log_does_not_follow_links(pool_dir, make_pool):
    (pool_dir / "log").symlink_to(pool_dir / "elsewhere")
    pool = make_pool()
    assert not pool.ready and pool.wait() == 1
    assert not (pool_dir / "elsewhere").exists()


@root
@pytest.mark.row("F2")
def test_another_user_is_refused(pool):
    pool.dir.chmod(0o711)
    pool.path.chmod(0o666)
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setresuid(NOBODY, NOBODY, NOBODY)
            s = socket.socket(socket.AF_UNIX)
            s.settimeout(DEADLINE_S)
            s.connect(str(pool.path))
            try:
                s.send(hello())
                got = s.recv(100)
            except (BrokenPipeError, ConnectionResetError):
                got = b""
            os.write(write_end, b"refused" if got == b"" else b"served")
        finally:
            os._exit(0)
    os.close(write_end)
    os.waitpid(pid, 0)
    assert os.read(read_end, 100) == b"refused"
    os.close(read_end)
    assert works(pool_other(pool), 1)


@pytest.mark.row("E6")
def test_another_version_is_told_so(pool):
    with pytest.raises(_core.Error, match="another version"):
        _core.Client(str(pool.path), "0.0.0")
    s = raw(pool)
    s.sendall(hello("9.9"))
    answer = read_until_closed(s)
    assert answer[3] == FAILED and b"version" in answer
    assert works(pool_other(pool), 1)


OPEN_OK = _core.pack(["key", "k", "transport", "local", "argv", "sh"])


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.0\r\n\r\n",
        frame(PING, b"x"),
        frame(HELLO, b"\0"),
        frame(HELLO, _core.pack(["version"])),
        frame(HELLO, length=257 << 10),
        hello() + frame(PAYLOAD, length=(16 << 20) + 1),
        hello() + frame(EXEC, length=(256 << 10) + 1),
        hello() + frame(99),
        hello() + frame(0),
        hello() + frame(PING, b"x", magic=0x4349),
        hello() + frame(PING, b"x", version=2),
        hello() + frame(PING, b"x", flags=0x80),
        hello() + frame(PING, b"x", reserved=1),
        hello() + frame(PING, b"x" * 65),
        hello() + frame(OPENED),
        hello() + frame(2, OPEN_OK),
        hello() + frame(PAYLOAD, _core.pack(["k"])),
        hello() + frame(PAYLOAD, _core.pack(["", "zip"])),
        hello() + frame(RUN, b""),
        hello() + hello(),
    ],
)
@pytest.mark.row("F3")
def test_a_client_that_breaks_the_protocol_is_dropped(pool, data):
    s = raw(pool)
    s.sendall(data)
    answer = read_until_closed(s)
    assert len(answer) < 100 and (answer == b"" or answer[3] == HELLO)
    assert works(pool_other(pool), 1)


@pytest.mark.row("F3")
def test_half_a_frame_is_waited_for(pool):
    s = raw(pool)
    data = hello() + frame(PING, b"abc")
    for byte in data:
        s.sendall(bytes([byte]))
    answer = b""
    while not answer.endswith(b"abc"):
        answer += s.recv(1000)
    assert answer[-20] == PONG
    s.close()


def test_ping(pool):
    talk = pool.talk()
    talk.send(PING, 0, request=0, body=b"hello")
    assert talk.until(lambda f: f.type == PONG).body == b"hello"


def test_a_request_is_asked_after(pool):
    talk = pool.talk()
    number = talk.send(PING, 1, request=77)
    cls, layer, words, started = talk.failed(number)
    assert (cls, layer, started) == ("unreachable", "pool", "1") and "does not know" in words
    slowly = f"sleep 0.5; exec {shlex.quote(sys.executable)} {shlex.quote(str(FAKE_AGENT))} {NONCE}"
    assert talk.final(talk.open(key="asked")).type == OPENED
    starting = talk.start(command=slowly)
    talk.send(PING, 1, request=starting, body=b"still?")
    assert talk.until(lambda f: f.type == PONG).request == starting
    assert talk.final(starting).type == STARTED
    hanging, losing = talk.exec("hang"), talk.exec("lose")
    for number in (hanging, losing):
        talk.until(lambda f, number=number: f.type == ACCEPTED and f.request == number)
        talk.send(PING, 1, request=number, body=b"still?")
    assert talk.failed(losing) == ["agent", "agent", "lost", "1"]
    assert talk.until(lambda f: f.type == PONG and f.request == hanging).body == b"still?"
    assert not [f for f in talk.seen if f.type == FAILED]
    talk.send(CANCEL, 1, request=hanging, body=b"")
    assert talk.final(hanging).type == EXIT


@pytest.mark.row("F4")
def test_secrets_stay_out_of_the_log_and_the_arguments(pool):
    talk = pool.talk()
    secret = "hunter2-secret"
    talk.final(talk.open(password=secret))
    talk.final(talk.start(become_password=secret))
    talk.final(talk.start(agent=1, key="refuse1", command="become", become_password=secret))
    talk.result(talk.exec("echo " + secret))
    talk.final(talk.run(secret))
    assert secret not in pool.log.read_text()
    with open(f"/proc/{pool.process.pid}/cmdline") as f:
        assert secret not in f.read()
    assert secret not in str(talk.status())


@pytest.mark.row("E13")
def test_many_sessions(pool):
    talk = pool.talk()
    for n in range(1, 41):
        talk.open(session=n, key=f"s{n}")
    requests = [talk.exec(f"echo {n}", session=n, agent=NO_AGENT) for n in range(1, 41)]
    assert [talk.result(r)[1] for r in requests] == [b"%d\n" % n for n in range(1, 41)]
    assert len(talk.status()["sessions"]) == 40


@pytest.mark.skipif(shutil.which("sleep") is None, reason="no sleep")
def test_a_client_that_dies_takes_its_children_along(pool):
    talk = pool.talk()
    talk.open()
    request = talk.exec("echo $$; exec sleep 30", agent=NO_AGENT)
    pid = int(talk.until(lambda f: f.request == request and f.type == DATA).body)
    talk.client.close()
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"))
    assert sys.platform == "linux"
