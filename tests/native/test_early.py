"""Requests that go out with the agent that is to run them, over libssh: what counts as begun when the agent never says HELLO."""

import shlex
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from sshds import USER, Server, keygen
from talking import EXIT, FAKE_AGENT, NONCE, OPENED, STARTED

HELD = "head -c 20 >/dev/null"  # the head of the EXEC frame: it has provably arrived


@pytest.fixture(scope="module")
def server():
    top = Path(tempfile.mkdtemp(prefix="chearly-"))
    top.chmod(0o755)
    found = Server(top)
    try:
        user = keygen(top / "user")
        (top / "authorized").write_text(Path(f"{user}.pub").read_text())
        (top / "known").write_text(found.host_line() + "\n")
        found.login = {
            "host": found.host, "port": found.port, "user": USER, "identity_file": user, "known_hosts": top / "known",
            "host_key_checking": "yes", "identities_only": 1, "auth": "publickey", "timeout_ms": 20000,
        }  # fmt: skip
        yield found
    finally:
        found.stop()
        shutil.rmtree(top)


def begun(talk, server, command, timeout_ms=20000):
    """OPEN, START and one EXEC, sent at once."""
    opened = talk.open(transport="libssh", argv=(), **server.login)
    started = talk.start(command=command, timeout_ms=timeout_ms)
    request = talk.exec("echo ran")
    assert talk.final(opened).type == OPENED
    return started, request


def test_what_an_agent_took_that_ended_without_a_word_never_began(pool, server):
    talk = pool.talk()
    started, request = begun(talk, server, f"{HELD}; exit 3")
    assert talk.failed(request)[::3] == ["agent", "0"]
    assert talk.failed(started)[0] == "agent"
    assert talk.status()["sessions"], "the session lives on"


def test_no_python_means_that_nothing_began(pool, server):
    talk = pool.talk()
    _, request = begun(talk, server, f"{HELD}; echo; echo CHURTEN-{NONCE}-NOPYTHON; sleep 60")
    assert talk.failed(request)[::3] == ["no_python", "0"]


def test_after_its_first_word_it_may_have_begun(pool, server):
    talk = pool.talk()
    _, request = begun(talk, server, f"{HELD}; echo; echo CHURTEN-{NONCE}-READY")
    assert talk.failed(request)[::3] == ["agent", "1"]


def test_a_late_agent_is_waited_for_when_it_has_a_request(pool, server):
    talk = pool.talk()
    late = f"sleep 1.5; exec {shlex.quote(sys.executable)} {shlex.quote(str(FAKE_AGENT))} {NONCE}"
    started, request = begun(talk, server, late, timeout_ms=500)
    assert talk.final(started).type == STARTED
    assert talk.final(request).type == EXIT


def test_a_late_agent_without_a_request_is_not(pool, server):
    talk = pool.talk()
    assert talk.final(talk.open(transport="libssh", argv=(), **server.login)).type == OPENED
    assert talk.failed(talk.start(command="sleep 60", timeout_ms=300))[0] == "agent"


def test_noise_before_an_agent_that_has_a_request_is_thrown_away(pool, server):
    talk = pool.talk()
    noisy = f"head -c 300000 /dev/zero; exec {shlex.quote(sys.executable)} {shlex.quote(str(FAKE_AGENT))} {NONCE}"
    started, request = begun(talk, server, f"{HELD[:0]}{noisy}")
    assert talk.final(started).type == STARTED
    assert talk.final(request).type == EXIT
