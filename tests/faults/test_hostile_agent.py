# SPDX-License-Identifier: GPL-3.0-or-later
"""Agents that send what no agent may: a target can end its own session, and nothing else. The fake agent writes the bytes, a real pool judges them."""

import os
import struct
import time
import zlib

import pytest
from talking import (
    ACCEPTED,
    CLOSE,
    DATA,
    END,
    EXEC,
    EXIT,
    FAILED,
    FETCH,
    HELLO,
    LOG,
    NEED,
    OPEN,
    OPENED,
    PAYLOAD,
    PING,
    PONG,
    PUT,
    RESET,
    RUN,
    STAMP,
    START,
    STARTED,
    STATUS,
    STOP,
    WINDOW,
    _core,
)

ROOM_KIB = int(os.environ.get("CH_HOSTILE_ROOM_KIB", "4096"))
NEVER_FROM_AN_AGENT = [OPEN, OPENED, START, PAYLOAD, NEED, RUN, EXEC, PUT, FETCH, STAMP, CLOSE, RESET, STATUS, STOP]


def frame(kind, body=b"", flags=0, agent=0, session=0, request="REQ", length=None, magic=0x4348, version=1, reserved=0):
    """In hex; REQ stands for the number of the request that asked for it."""
    head = struct.pack(">HBBBBHI", magic, version, kind, flags, reserved, agent, session).hex()
    number = request if isinstance(request, str) else f"{request:08x}"
    return head + number + struct.pack(">I", len(body) if length is None else length).hex() + body.hex()


def vec(*items):
    return _core.pack([i if isinstance(i, (str, bytes)) else str(i) for i in items])


def zipped(data, claim=None):
    return struct.pack(">I", len(data) if claim is None else claim) + zlib.compress(data)


FINE = vec(0, 0, 1, "", "", 0)
ZLIB = 1
VIOLATIONS = {
    "length": frame(DATA, length=0xFFFFFFFF),
    "one more": frame(DATA, length=(256 << 10) + 1),
    "negative": frame(EXIT, length=0x80000000),
    "type 0": frame(0),
    "type 26": frame(26),
    "type 255": frame(255),
    **{f"type {kind}": frame(kind) for kind in NEVER_FROM_AN_AGENT},
    "large payload": frame(PAYLOAD, length=16 << 20),
    "magic": frame(EXIT, FINE, magic=0x4349),
    "version": frame(EXIT, FINE, version=2),
    "flags": frame(EXIT, FINE, flags=0x80),
    "reserved": frame(EXIT, FINE, reserved=1),
    "session": frame(EXIT, FINE, session=1),
    "other agent": frame(EXIT, FINE, agent=1),
    "no agent": frame(EXIT, FINE, agent=0xFFFF),
    "other request": frame(EXIT, FINE, request=0x7FFFFFFF),
    "request 2^32-1": frame(DATA, b"x", request=0xFFFFFFFF),
    "started": frame(STARTED, vec("python", "/p"), agent=1, request=0),
    "failed": frame(FAILED, vec("agent", "agent", "x", 1), request=0),
    "failed of an agent": frame(FAILED, vec("agent", "agent", "x", 1), agent=9, request=0),
    "hello": frame(HELLO, vec(), request=0),
    "accepted again": frame(ACCEPTED),
    "accepted, zipped": frame(ACCEPTED, flags=ZLIB),
    "window of nobody": frame(WINDOW, struct.pack(">I", 1 << 20)),
    "window of nothing": frame(WINDOW, struct.pack(">I", 0)),
    "window beyond": frame(WINDOW, struct.pack(">I", 0xFFFFFFFF)),
    "short window": frame(WINDOW, b"\0"),
    "empty": frame(DATA),
    "third stream": frame(DATA, b"x", flags=3 << 2),
    "after the end": frame(DATA, b"x", flags=4 | END) + frame(DATA, b"y", flags=4),
    "end twice": frame(DATA, b"", flags=4 | END) + frame(DATA, b"", flags=4 | END),
    "exit empty": frame(EXIT),
    "exit of five": frame(EXIT, vec(0, 0, 1, "", "")),
    "exit of seven": frame(EXIT, vec(0, 0, 1, "", "", 0, 0)),
    "exit words": frame(EXIT, vec("zero", 0, 1, "", "", 0)),
    "exit long number": frame(EXIT, vec("9" * 5000, 0, 1, "", "", 0)),
    "exit no number": frame(EXIT, vec("", 0, 1, "", "", 0)),
    "exit flags": frame(EXIT, FINE, flags=END),
    "exit not a vec": frame(EXIT, struct.pack(">HI", 6, 0xFFFFFFFF)),
    "failed of three": frame(FAILED, vec("agent", "agent", "x")),
    "ping": frame(PING, b"x" * 65, request=0),
}
BOMBS = {
    "zipped": frame(DATA, zipped(b"x" * 5000), flags=ZLIB | 4),
    "bomb": frame(DATA, zipped(bytes(10_000_000)), flags=ZLIB | 4),
    "bomb that lies": frame(DATA, zipped(bytes(10_000_000), 100), flags=ZLIB | 4),
    "bad stream": frame(DATA, struct.pack(">I", 100) + b"not zlib", flags=ZLIB | 4),
    "exit": frame(EXIT, zipped(FINE + bytes(100_000), 8), flags=ZLIB),
    "log": frame(LOG, zipped(b"x" * 5000), flags=ZLIB, request=0),
}


def memory(pool):
    with open(f"/proc/{pool.process.pid}/status") as file:
        return int(next(line for line in file if line.startswith("VmHWM")).split()[1])


@pytest.fixture
def sides(own_pool):
    """(client of the hostile target, which has a session to a decent one too; another client). Both sessions must outlive everything."""
    other, talk = own_pool.talk(), own_pool.talk()
    other.begin(key="decent")
    talk.begin(session=9, key="decent")
    talk.begin(key="hostile")
    assert talk.result(talk.exec("big 1000000"))[0] == 0
    before = memory(own_pool)
    yield talk, other
    assert talk.result(talk.exec("echo fine", 9))[1] == b"fine"
    assert other.result(other.exec("echo fine"))[1] == b"fine"
    assert memory(own_pool) - before < ROOM_KIB


def assert_lost(talk, request):
    got = talk.failed(request)
    assert got[::3] == ["protocol", "1"], got
    talk.begin(key="hostile")  # a new session, and nothing left of the old one
    assert talk.result(talk.exec("echo again"))[1] == b"again"


@pytest.mark.row("F6", "F18")
@pytest.mark.parametrize("data", VIOLATIONS.values(), ids=VIOLATIONS)
def test_a_frame_no_agent_may_send(sides, data):
    talk, _ = sides
    assert_lost(talk, talk.exec("raw " + data))


@pytest.mark.row("F7", "F6")
@pytest.mark.parametrize("data", BOMBS.values(), ids=BOMBS)
def test_nothing_that_an_agent_compressed_is_inflated(sides, data):
    """It would be the client that has to inflate it, and its connection that ends."""
    talk, _ = sides
    assert_lost(talk, talk.exec("raw " + data))


@pytest.mark.row("F6")
def test_a_result_before_accepted(sides):
    talk, _ = sides
    assert_lost(talk, talk.exec("early " + frame(EXIT, FINE)))


@pytest.mark.row("F6")
def test_a_result_for_another_request(sides):
    """Requests of one agent are told apart by number: the answer of one can be given to another of the same target, never to anybody else's."""
    talk, other = sides
    theirs = other.exec("hang")
    other.until(lambda f: f.request == theirs and f.type == ACCEPTED)
    mine = talk.exec("hang")
    talk.until(lambda f: f.request == mine and f.type == ACCEPTED)
    # Every number the hostile agent could mean, in its own numbering.
    for number in range(1, 40):
        data = frame(EXIT, vec(77, 0, 1, "stolen", "", 0), request=number) + frame(EXIT, FINE)
        request = talk.exec("raw " + data)
        got = talk.final(request)
        if got.type == FAILED:
            talk.begin(key="hostile")
    other.client.poll(50)
    assert not [f for f in other.seen if f.request == theirs and f.type in (DATA, EXIT, FAILED)]


@pytest.mark.row("F6")
def test_duplicate_and_late_results_change_nothing(sides):
    talk, _ = sides
    first = talk.exec(
        "raw "
        + frame(EXIT, FINE) * 3
        + frame(DATA, b"late", flags=4)
        + frame(ACCEPTED)
        + frame(FAILED, vec("agent", "agent", "late", 1))
    )
    assert talk.result(first)[:2] == (0, b"")
    assert talk.result(talk.exec("echo next")) == (0, b"next", b"agent 0")
    assert not [f for f in talk.seen if f.request == first and f.type in (DATA, EXIT, FAILED)]


@pytest.mark.row("F6")
@pytest.mark.parametrize(
    "cls", ["pool", "version", "reset", "unreachable", "auth", "hostkey", "protocol", "", "\x1b[2J", "x" * 100_000]
)
def test_a_target_does_not_choose_what_a_failure_means(sides, cls):
    talk, _ = sides
    body = vec(cls, "layer\n", "\x1b]0;title\x07 a\u202eb" + "m" * 10_000, "0")
    got = talk.failed(talk.exec("raw " + frame(FAILED, body)))
    assert (got[0], got[1], got[3]) == ("agent", "agent", "1")
    assert len(got[2]) < 2100 and not set(got[2]) & {"\x1b", "\x07"}
    assert talk.result(talk.exec("echo next"))[1] == b"next"


@pytest.mark.row("F6")
@pytest.mark.parametrize(
    "data",
    [
        frame(LOG, b"\x1b[2J" * 1000, request=0),
        frame(PING, b"x" * 64, request=0),
        frame(PONG, b"x", request=0),
        frame(DATA, b"x", request=1),
    ],
    ids=["log", "ping", "pong", "late"],
)
def test_frames_without_end(sides, own_pool, data):
    """They are read in turns with everybody else's, and nothing of them is kept."""
    talk, other = sides
    assert talk.result(talk.exec("echo first"))[0] == 0
    request = talk.exec("pour " + data)
    begin = time.monotonic()
    while time.monotonic() - begin < 1:
        assert other.result(other.exec("echo fine"))[1] == b"fine"
    assert not [f for f in talk.seen if f.request == request and f.type in (EXIT, FAILED)]
    assert own_pool.log.stat().st_size < 8 << 20
    talk.send(CLOSE, request=0, body=b"")


@pytest.mark.row("F6")
def test_half_a_frame_and_silence(sides):
    talk, _ = sides
    talk.open(session=2, key="half", alive_interval_ms=200, alive_count=2)
    talk.start(session=2)
    got = talk.failed(talk.exec("raw " + frame(DATA, b"x" * 10)[:-2], 2))
    # The answer to the PING goes into the half frame; either way it ends.
    assert got[0] in ("protocol", "unreachable") and got[3] == "1"
