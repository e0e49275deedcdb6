"""A real churten-pool in a directory of its own, and a client that speaks to it: fixtures and helpers of the native tests."""

import collections
import contextlib
import json
import os
import shlex
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

import churten
from churten import __version__, _core

HERE = Path(__file__).parent
EXECUTABLE = Path(churten.__file__).parent / "churten-pool"
FAKE_AGENT = HERE / "fake_agent.py"
NONCE = "0123456789abcdef0123456789abcdef"

HELLO, OPEN, OPENED, START, STARTED, PAYLOAD, NEED, RUN, EXEC, PUT, FETCH, DATA, WINDOW, CANCEL = range(1, 15)
ACCEPTED, STAMP, EXIT, FAILED, PING, PONG, CLOSE, RESET, STATUS, STOP, LOG, SOURCE = range(15, 27)
NO_AGENT = 0xFFFF
END = 2
DEADLINE_S = 20

Frame = collections.namedtuple("Frame", "type flags session agent request body")


def as_map(body):
    items = [i.decode() for i in _core.unpack(body)]
    return dict(zip(items[::2], items[1::2]))


class Talk:
    """A client with the few words the tests need. Frames that were not asked for are kept in `seen`."""

    def __init__(self, path):
        self.client = _core.Client(str(path), __version__)
        self.seen = []

    def send(self, kind, session=1, agent=0, items=(), request=None, body=None, flags=0):
        number = self.client.request() if request is None else request
        self.client.send(kind, session, agent, number, _core.pack(list(items)) if body is None else body, flags)
        return number

    def until(self, wanted, what=""):
        """The first frame `wanted` says yes to; the others stay in `seen`."""
        deadline = time.monotonic() + DEADLINE_S
        at = 0
        while True:
            while at < len(self.seen):
                if wanted(self.seen[at]):
                    return self.seen.pop(at)
                at += 1
            left = deadline - time.monotonic()
            assert left > 0, f"nothing came: {what}; seen {[f[:5] for f in self.seen]}"
            got = self.client.poll(int(left * 1000))
            self.seen += [Frame(*f) for f in got]

    def final(self, request):
        return self.until(lambda f: f.request == request and f.type in (OPENED, STARTED, NEED, EXIT, FAILED), f"the end of {request}")

    def failed(self, request):
        got = self.final(request)
        assert got.type == FAILED, got
        return [i.decode() for i in _core.unpack(got.body)]

    def open(self, session=1, key="s", transport="local", argv=("/bin/sh", "-c"), **more):
        items = ["key", key, "name", "host1", "transport", transport]
        for one in argv:
            items += ["argv", one]
        for name, value in more.items():
            for one in value if isinstance(value, (list, tuple)) else [value]:
                items += [name, str(one)]
        return self.send(OPEN, session, 0, items)

    def start(self, session=1, agent=0, key="a", mode="", timeout_ms=10000, **more):
        command = f"exec {shlex.quote(sys.executable)} {shlex.quote(str(FAKE_AGENT))} {NONCE} {mode}"
        items = ["key", key, "command", more.pop("command", command), "nonce", NONCE, "input", "", "timeout_ms", str(timeout_ms)]
        for name, value in more.items():
            items += [name, str(value)]
        return self.send(START, session, agent, items)

    def begin(self, session=1, agent=0, **more):
        """OPEN and START, both answered well."""
        opened = self.final(self.open(session, **more))
        assert opened.type == OPENED, opened
        started = self.final(self.start(session, agent))
        assert started.type == STARTED, started
        return as_map(started.body)

    def exec(self, command, session=1, agent=0, stdin="null", timeout_ms=0, terminal=None):
        env, stdin = ("", stdin) if terminal is None else (f"TERM={terminal}", "terminal")
        return self.send(EXEC, session, agent, [command, env, str(timeout_ms), stdin, "login"])

    def run(self, key, session=1, agent=0):
        return self.send(RUN, session, agent, [key, "ansible.builtin.ping", "{}", "", "", "0", "0", "219", "", ""])

    def result(self, request):
        """The EXIT of a request as (rc, stdout with DATA, stderr with DATA); acknowledges what it reads."""
        out, err = [], []
        while True:
            got = self.until(lambda f: f.request == request and f.type in (DATA, EXIT, FAILED), f"the result of {request}")
            if got.type == FAILED:
                raise AssertionError(f"FAILED {_core.unpack(got.body)}")
            if got.type == EXIT:
                items = _core.unpack(got.body)
                return int(items[0]), b"".join(out) + items[3], b"".join(err) + items[4]
            (err if got.flags >> 2 & 3 == 2 else out).append(got.body)
            if got.body:
                self.client.send(WINDOW, got.session, got.agent, request, struct.pack(">I", len(got.body)))

    def status(self):
        _, out, _ = self.result(self.send(STATUS, 0))
        return json.loads(out)


class PoolProcess:
    """churten-pool in `dir`, in the foreground so that its end can be waited for."""

    def __init__(self, directory, *args):
        self.dir = Path(directory)
        self.path = self.dir / f"pool-{__version__}.sock"
        self.log = self.dir / "log"
        self.talks = []
        self.stderr = tempfile.TemporaryFile()
        ready_r, ready_w = os.pipe()
        argv = [str(EXECUTABLE), "--dir", str(directory), "--foreground", "--log", str(self.log), "--ready-fd", str(ready_w), *args]
        # A pool built with ASan reports leaks at its end, whatever runs around it.
        env = {**{k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}, "ASAN_OPTIONS": "detect_leaks=1"}
        self.process = subprocess.Popen(argv, pass_fds=[ready_w], env=env, stderr=self.stderr, stdin=subprocess.DEVNULL)
        os.close(ready_w)
        self.ready = os.read(ready_r, 1) == b"R"
        os.close(ready_r)

    def talk(self):
        talk = Talk(self.path)
        self.talks.append(talk)
        return talk

    def wait(self):
        return self.process.wait(DEADLINE_S)

    def errors(self):
        self.stderr.seek(0)
        return self.stderr.read().decode()

    def stop(self):
        for talk in self.talks:
            talk.client.close()
        if self.process.poll() is None:
            with contextlib.suppress(Exception):
                talk = Talk(self.path)
                talk.final(talk.send(STOP, 0))
            try:
                self.process.wait(DEADLINE_S)
            except subprocess.TimeoutExpired:
                self.process.send_signal(signal.SIGKILL)
                self.process.wait()
                raise AssertionError("the pool did not stop:\n" + self.log.read_text()) from None
        problems = self.errors()
        assert "Sanitizer" not in problems and "runtime error" not in problems, problems


@pytest.fixture
def pool_dir():
    # Not tmp_path: a socket's path is limited to 107 bytes.
    with tempfile.TemporaryDirectory(prefix="ch") as name:
        yield Path(name)


@pytest.fixture
def make_pool(pool_dir):
    made = []

    def make(*args, directory=pool_dir):
        made.append(PoolProcess(directory, *args))
        return made[-1]

    yield make
    for one in made:
        one.stop()


@pytest.fixture
def pool(make_pool):
    made = make_pool()
    assert made.ready, made.errors()
    return made
