"""churten.transport.pool against a pool that a test plays itself, frame by frame, and against the real one for starting, dying and forking."""

import contextlib
import hashlib
import io
import os
import signal
import socket
import stat
import struct
import tempfile
import threading
import time

import pytest

from churten import __version__, waiting
from churten.transport import pool as module
from churten.transport import runtime
from churten.transport.pool import (
    ACCEPTED,
    CANCEL,
    CHUNK_BYTES,
    DATA,
    EXEC,
    EXIT,
    FAILED,
    FETCH,
    HELLO,
    NEED,
    OPEN,
    OPENED,
    PAYLOAD,
    PING,
    PUT,
    RUN,
    STAMP,
    START,
    STARTED,
    STATUS,
    STOP,
    WINDOW,
    WINDOW_BYTES,
    Pool,
    PoolFailure,
    spec_key,
)  # fmt: skip

_core = pytest.importorskip("churten._core")
HEADER = struct.Struct(">HBBBBHIII")


class FakePool:
    """The pool's end of one connection; `script` runs in a thread with it."""

    def __init__(self, path, script):
        self.server = socket.socket(socket.AF_UNIX)
        self.server.bind(path)
        self.server.listen()
        self.seen = []
        self.error = None
        self.thread = threading.Thread(target=self._run, args=(script,))
        self.thread.start()

    def _run(self, script):
        try:
            self.server.settimeout(20)
            self.socket = self.server.accept()[0]
            self.socket.settimeout(20)
            self.file = self.socket.makefile("rb")
            assert self.get(HELLO).map["version"] == __version__
            self.send(HELLO, {"version": __version__, "pid": os.getpid()})
            script(self)
        except Exception as ex:
            self.error = ex
        finally:
            with contextlib.suppress(AttributeError):
                self.socket.close()
                self.file.close()
            self.server.close()

    def join(self):
        self.thread.join(20)
        assert not self.thread.is_alive()
        if self.error is not None:
            raise self.error

    def get(self, *wanted):
        head = self.file.read(HEADER.size)
        assert len(head) == HEADER.size, "the client closed"
        frame = Frame(*HEADER.unpack(head))
        frame.body = self.file.read(frame.length)
        self.seen.append(frame.kind)
        assert not wanted or frame.kind in wanted, frame.kind
        return frame

    def send(self, kind, body=b"", to=None, flags=0, request=0):
        if isinstance(body, dict):
            body = _core.pack([str(word) for item in body.items() for word in item])
        elif isinstance(body, list):
            body = _core.pack(body)
        session, agent, request = (to.session, to.agent, to.request) if to else (0, 0, request)
        self.socket.sendall(HEADER.pack(0x4348, 1, kind, flags, 0, agent, session, request, len(body)) + body)

    def start(self):
        """Answers OPEN and START."""
        self.send(OPENED, {"transport": "libssh"}, self.get(OPEN))
        self.send(STARTED, {"python": "/p"}, self.get(START))

    def exit(self, to, rc=0, out=b"", err=b""):
        self.send(EXIT, [str(rc), "0", "17", out, err, "0"], to)

    def fail(self, to, cls, started="0", layer="agent", message="m"):
        self.send(FAILED, [cls, layer, message, started], to)


class Frame:
    def __init__(self, magic, version, kind, flags, reserved, agent, session, request, length):
        assert (magic, version, reserved) == (0x4348, 1, 0)
        self.kind, self.flags, self.agent, self.session, self.request, self.length = (
            kind,
            flags,
            agent,
            session,
            request,
            length,
        )
        self.body = b""

    @property
    def items(self):
        return _core.unpack(self.body)

    @property
    def map(self):
        words = [i.decode() for i in self.items]
        return dict(zip(words[::2], words[1::2], strict=True))


@pytest.fixture
def directory(tmp_path, monkeypatch):
    path = tmp_path / "p"
    path.mkdir(mode=0o700)
    monkeypatch.setenv("CHURTEN_POOL_DIR", str(path))
    monkeypatch.setattr(Pool, "_starts", [])
    Pool._instance = None
    yield str(path)
    if Pool._instance is not None:
        Pool._instance.close()
    Pool._instance = None
    waiting.set_pump(None)


@pytest.fixture
def fake(directory):
    """Starts a fake pool with a script."""
    made = []

    def make(script):
        made.append(FakePool(runtime.socket_path(directory), script))
        return made[-1]

    yield make
    for one in made:
        if Pool._instance is not None:
            Pool._instance.close()
        one.thread.join(20)


SPEC = {"transport": "libssh", "host": "h", "port": "22", "user": "u"}
AGENT = {"key": "k", "command": "c"}


def ready():
    client = Pool.get()
    session = client.session(SPEC)
    return client, session, client.agent(session, AGENT)


def test_open_and_start_are_sent_once_and_nobody_waits_for_them(fake):
    def script(pool):
        opened, started = pool.get(OPEN), pool.get(START)
        assert (opened.session, started.session, started.agent) == (1, 1, 0)
        assert opened.map["host"] == "h" and len(opened.map["key"]) == 64
        first, second = pool.get(EXEC), pool.get(EXEC)
        pool.send(OPENED, {"transport": "libssh"}, opened)
        pool.send(STARTED, {"python": "/usr/bin/python3", "magic": "m"}, started)
        for frame in (first, second):
            pool.send(ACCEPTED, b"", frame)
            pool.send(DATA, b"out1", frame, flags=1 << 2)
            pool.send(DATA, b"err", frame, flags=2 << 2)
            pool.send(STAMP, struct.pack(">QQQ", 1, 2, 3), frame)
            pool.exit(frame, 7, b"rest", b"x")

    served = fake(script)
    client, session, agent = ready()
    assert ready() == (client, session, agent)
    body = ["true", "", "0", "null", "login"]
    two = client._send(module.Pending(EXEC, session, agent, _core.pack(body)))
    reply = client.call(EXEC, session, agent, body)
    assert reply == (7, 0, b"out1rest", b"errx", (1, 2, 3), 17, False)
    assert client._reply(two, 5).stdout == b"out1rest"
    assert client.started(session, agent)["python"] == "/usr/bin/python3"
    served.join()


def test_sub_agents_have_their_own_numbers(fake):
    def script(pool):
        pool.start()
        assert [pool.get(START).agent for _ in range(2)] == [1, 2]

    served = fake(script)
    client, session, _ = ready()
    assert client.agent(session, {"key": "x", "command": "c"}, login=False) == 1
    assert client.agent(session, {"key": "y", "command": "c"}, login=False) == 2
    assert client.agent(session, {"key": "x", "command": "c"}, login=False) == 1
    assert client.login_agent(session).key == "k"
    served.join()


def test_need_sends_the_module_and_the_request_again(fake):
    def script(pool):
        pool.start()
        first = pool.get(RUN)
        pool.send(NEED, ["key"], first)
        payload, again = pool.get(PAYLOAD), pool.get(RUN)
        assert payload.items == [b"key", b"zip", b"code"] and payload.request == 0
        assert again.body == first.body and again.request != first.request
        pool.exit(again, 0, b"done")

    served = fake(script)
    client, session, agent = ready()
    asked = []
    reply = client.call(
        RUN, session, agent, ["key", "m", "{}"], payload=("key", lambda: asked.append(1) or ["key", b"zip", b"code"])
    )
    assert reply.stdout == b"done" and asked == [1]
    served.join()


def test_a_large_source_waits_for_the_window(fake):
    size = WINDOW_BYTES + 3 * CHUNK_BYTES + 5
    data = os.urandom(size)

    def script(pool):
        pool.start()
        put = pool.get(PUT)
        got = b""
        while len(got) < WINDOW_BYTES:
            got += pool.get(DATA).body
        assert len(got) == WINDOW_BYTES
        pool.socket.settimeout(0.2)
        with pytest.raises(TimeoutError):
            pool.socket.recv(1)
        pool.socket.settimeout(20)
        end = 0
        while not end:
            pool.send(WINDOW, struct.pack(">I", CHUNK_BYTES), put)
            frame = pool.get(DATA)
            got, end = got + frame.body, frame.flags & 2
        pool.exit(put, 0, hashlib.sha256(got).hexdigest().encode())

    for source in (data, io.BytesIO(data)):
        served = fake(script)
        client, session, agent = ready()
        assert (
            client.call(PUT, session, agent, ["p", "", str(size)], stdin=source).stdout.decode()
            == hashlib.sha256(data).hexdigest()
        )
        served.join()
        client.close()
        os.unlink(runtime.socket_path(os.environ["CHURTEN_POOL_DIR"]))


@pytest.mark.parametrize("source", [b"", io.BytesIO(b""), b"x" * CHUNK_BYTES, io.BytesIO(b"x" * CHUNK_BYTES)])
def test_the_end_of_a_source_is_always_sent(fake, source):
    def script(pool):
        pool.start()
        frame = pool.get(EXEC)
        while not pool.get(DATA).flags & 2:
            pass
        pool.exit(frame)

    served = fake(script)
    client, session, agent = ready()
    assert client.call(EXEC, session, agent, ["cat"], stdin=source).rc == 0
    served.join()


def test_received_data_is_acknowledged(fake):
    count = 3 * WINDOW_BYTES // CHUNK_BYTES

    def script(pool):
        pool.start()
        frame = pool.get(FETCH)
        window = WINDOW_BYTES
        for _ in range(count):
            while window <= 0:
                window += struct.unpack(">I", pool.get(WINDOW).body)[0]
            pool.send(DATA, bytes(CHUNK_BYTES), frame)
            window -= CHUNK_BYTES
        pool.send(DATA, b"", frame, flags=2)
        pool.exit(frame)

    served = fake(script)
    client, session, agent = ready()
    got = []
    client.call(FETCH, session, agent, ["p"], sink=lambda chunk: got.append(len(chunk)))
    assert sum(got) == count * CHUNK_BYTES
    served.join()


def test_a_full_disk_cancels_the_transfer_and_nothing_else(fake):
    def script(pool):
        pool.start()
        frame = pool.get(FETCH)
        pool.send(DATA, b"x", frame)
        assert pool.get(CANCEL).request == frame.request
        pool.send(DATA, b"late", frame)
        pool.exit(frame, -1)
        pool.exit(pool.get(EXEC), 0, b"fine")

    served = fake(script)
    client, session, agent = ready()

    def sink(chunk):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        client.call(FETCH, session, agent, ["p"], sink=sink)
    assert client.call(EXEC, session, agent, ["true"]).stdout == b"fine"
    assert client._pending == {}
    served.join()


def test_failures_tell_class_layer_and_whether_it_started(fake):
    def script(pool):
        pool.start()
        pool.fail(pool.get(EXEC), "agent", "0")
        pool.fail(pool.get(EXEC), "unreachable", "1", "kex", "gone")

    served = fake(script)
    client, session, agent = ready()
    for expected in (("agent", "agent", "m", False), ("unreachable", "kex", "gone", True)):
        with pytest.raises(PoolFailure) as caught:
            client.call(EXEC, session, agent, ["true"])
        failure = caught.value
        assert (failure.cls, failure.layer, failure.message, failure.started) == expected
    served.join()


def test_a_request_that_the_pool_has_lost_ends(fake, monkeypatch):
    monkeypatch.setattr(module, "ASK_AFTER_S", 0.2)
    monkeypatch.setattr(module, "PING_AFTER_S", 0.1)

    def script(pool):
        pool.start()
        asked = pool.get(EXEC)
        while (frame := pool.get(PING)).request == 0:
            pass
        assert (frame.session, frame.agent, frame.request) == (asked.session, asked.agent, asked.request)
        pool.fail(frame, "unreachable", "1", "pool", "not known")

    served = fake(script)
    client, session, agent = ready()
    with pytest.raises(PoolFailure, match="not known"):
        client.call(EXEC, session, agent, ["true"])
    served.join()


def test_an_open_that_failed_is_not_used_again(fake):
    def script(pool):
        opened, frame = pool.get(OPEN), pool.get(START)
        request = pool.get(EXEC)
        for one in (opened, frame, request):
            pool.fail(one, "unreachable", "0", "tcp", "refused")
        assert pool.get(OPEN).session == 2

    served = fake(script)
    client, session, agent = ready()
    with pytest.raises(PoolFailure, match="refused"):
        client.call(EXEC, session, agent, ["true"])
    assert client.session(SPEC) == session + 1
    with pytest.raises(PoolFailure) as caught:
        client.call(EXEC, session, agent, ["true"])
    assert (caught.value.cls, caught.value.started) == ("reset", False)
    served.join()


def test_an_agent_that_died_is_started_again(fake):
    def script(pool):
        pool.start()
        pool.send(FAILED, ["agent", "agent", "died", "0"], Frame(0x4348, 1, FAILED, 0, 0, 0, 1, 0, 0))
        pool.exit(pool.get(STATUS))
        assert pool.get(START).agent == 0

    served = fake(script)
    client, session, agent = ready()
    client.control(STATUS)
    assert client.agent(session, AGENT) == agent
    served.join()


def test_deadline_and_interruption_cancel_the_request(fake):
    def script(pool):
        pool.start()
        for _ in range(2):
            frame = pool.get(EXEC)
            pool.send(ACCEPTED, b"", frame)
            assert pool.get(CANCEL).request == frame.request
            pool.exit(frame, -1)
        pool.exit(pool.get(EXEC))

    served = fake(script)
    client, session, agent = ready()
    with pytest.raises(PoolFailure) as caught:
        client.call(EXEC, session, agent, ["sleep"], deadline_s=0.1)
    assert caught.value.cls == "cancelled"

    def interrupt(*_):
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            client.call(EXEC, session, agent, ["sleep"])
    finally:
        signal.signal(signal.SIGALRM, old)
    assert client.call(EXEC, session, agent, ["true"]).rc == 0
    assert client._pending == {}
    served.join()


def test_the_pool_dies_under_a_request(fake):
    def script(pool):
        pool.start()
        pool.send(ACCEPTED, b"", pool.get(EXEC))

    served = fake(script)
    client, session, agent = ready()
    with pytest.raises(PoolFailure) as caught:
        client.call(EXEC, session, agent, ["true"])
    assert (caught.value.cls, caught.value.started) == ("unreachable", True)
    assert client.closed and client.fileno() == -1 and client.pump(0) == 0
    served.join()


class Hub:
    """Fibers without greenlets: each is a thread, and one runs at a time."""

    def __init__(self):
        self.client = None
        self.no_park = 0
        self.fiber = None
        self.turn = threading.Condition()
        self.parked = set()

    def current(self):
        return self.fiber

    def park(self, deadline):
        me = self.fiber
        with self.turn:
            self.parked.add(me)
            self.fiber = None
            self.turn.notify_all()
            self.turn.wait_for(lambda: self.fiber is me, 20)
        return True

    def wake(self, fiber):
        self.parked.discard(fiber)

    def lend(self):
        return False

    def retake(self):
        raise AssertionError

    def run(self, *jobs):
        results = {}

        def body(name, job):
            with self.turn:
                self.turn.wait_for(lambda: self.fiber == name, 20)
            results[name] = job()
            with self.turn:
                self.fiber = None
                self.done.add(name)
                self.turn.notify_all()

        self.done = set()
        threads = [threading.Thread(target=body, args=(i, job)) for i, job in enumerate(jobs)]
        for thread in threads:
            thread.start()
        while len(self.done) < len(jobs):
            for name in range(len(jobs)):
                if name not in self.parked and name not in self.done:
                    with self.turn:
                        self.fiber = name
                        self.turn.notify_all()
                        assert self.turn.wait_for(lambda: self.fiber is None, 20)
            if len(self.parked) + len(self.done) == len(jobs) and self.parked:
                self.client.pump(5000)
        for thread in threads:
            thread.join(20)
        return [results[i] for i in range(len(jobs))]


def test_fibers_wait_for_their_answers_in_any_order(fake):
    def script(pool):
        opened, started = pool.get(OPEN), pool.get(START)
        pool.send(OPENED, {"transport": "libssh"}, opened)
        pool.send(STARTED, {"python": "/p"}, started)
        frames = [pool.get(EXEC) for _ in range(3)]
        for frame in reversed(frames):
            pool.exit(frame, 0, frame.items[0])

    served = fake(script)
    hub = Hub()
    waiting.set_hub(hub)
    try:
        hub.client = Pool.get()

        def job(name):
            def run():
                client, session, agent = ready()
                client.started(session, agent)  # all wait for the same START
                return client.call(EXEC, session, agent, [name]).stdout

            return run

        assert hub.run(job("a"), job("b"), job("c")) == [b"a", b"b", b"c"]
        assert waiting.pump() is hub.client
    finally:
        waiting.set_hub(None)
    served.join()


def test_pump_without_a_connection_waits_for_the_other_descriptor(directory):
    client = Pool.get()
    read, write = os.pipe()
    try:
        os.write(write, b"x")
        assert client.pump(-1, read) == 0
    finally:
        os.close(read)
        os.close(write)


def test_keys(directory):
    one = spec_key({**SPEC, "name": "a", "password": "x"})
    assert one == spec_key({**SPEC, "name": "b", "password": "x"})
    assert one != spec_key({**SPEC, "password": "y"}) != spec_key(SPEC)
    assert one != hashlib.sha256(b"").hexdigest()
    os.unlink(os.path.join(directory, "secret"))
    assert one != spec_key({**SPEC, "password": "x"})  # a password is hidden behind a secret of this directory


@pytest.mark.row("F1")
def test_the_directory_must_be_private(tmp_path, monkeypatch):
    for make in (
        lambda p: p.mkdir(mode=0o755),
        lambda p: p.symlink_to(tmp_path),
        lambda p: p.write_text(""),
    ):
        path = tmp_path / "d"
        make(path)
        monkeypatch.setenv("CHURTEN_POOL_DIR", str(path))
        with pytest.raises(runtime.RuntimeProblem, match="not a directory that only"):
            runtime.pool_dir()
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    monkeypatch.setenv("CHURTEN_POOL_DIR", str(tmp_path / "new" / "d"))
    made = runtime.pool_dir()
    assert stat.S_IMODE(os.stat(made).st_mode) == 0o700
    monkeypatch.setenv("CHURTEN_POOL_DIR", str(tmp_path / ("x" * 120)))
    with pytest.raises(runtime.RuntimeProblem, match="too long"):
        runtime.pool_dir()


def test_the_default_directory_belongs_to_user_host_and_namespaces(monkeypatch):
    with tempfile.TemporaryDirectory() as home:
        monkeypatch.delenv("CHURTEN_POOL_DIR", raising=False)
        monkeypatch.setenv("HOME", home)
        monkeypatch.setenv("XDG_RUNTIME_DIR", home + "/run")
        os.mkdir(home + "/run", 0o700)
        first = runtime.pool_dir()
        assert first.startswith(home + "/run/churten/")
        os.chmod(home + "/run", 0o755)  # others may look in: not there
        second = runtime.pool_dir()
        assert second.startswith(home + "/.ansible/churten/")
        monkeypatch.setattr(socket, "gethostname", lambda: "another")
        assert runtime.pool_dir() != second


def test_the_cache_keeps_texts_and_stays_small(directory, monkeypatch):
    monkeypatch.setattr(runtime, "_CACHE_FILES", 3)
    for i in range(10):
        runtime.cache_put(f"{i:02}", b"text %d" % i)
        assert runtime.cache_get(f"{i:02}") == b"text %d" % i
        assert len([n for n in os.listdir(directory) if n.startswith("cache-")]) <= 3
    assert runtime.cache_get("nothing") is None
    os.symlink("/etc/passwd", os.path.join(directory, "cache-link"))
    assert runtime.cache_get("link") is None


# --- the real pool

real = pytest.mark.skipif(not os.access(runtime.pool_executable(), os.X_OK), reason="churten-pool is not built")


@real
@pytest.mark.row("E5")
def test_the_pool_is_started_when_it_is_needed_and_again_when_it_died(directory):
    import json

    client = Pool.get()
    pids = []
    for _ in range(2):
        pids.append(json.loads(client.control(STATUS).stdout)["pid"])
        os.kill(pids[-1], signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pids[-1], 0)
        while not client.closed:
            client.pump(1000)
    assert len(set(pids)) == 2 and client.generation == 2
    assert client.control(STOP).rc == 0


@real
def test_fibers_that_need_the_pool_at_once_share_one_connection(directory, monkeypatch):
    pytest.importorskip("greenlet")
    from churten.executor.hub import FiberHub

    hub = FiberHub(_core.Scheduler(3))
    monkeypatch.setattr(time, "sleep", hub.sleep)
    monkeypatch.setattr(runtime, "_reap", lambda _pid: time.sleep(0.01))  # whoever sleeps gives way to the next fiber
    waiting.set_hub(hub)
    answers = []
    try:
        for _ in range(3):
            hub.spawn(lambda: answers.append(Pool.get().control(STATUS).rc))
        until = time.monotonic() + 20
        while len(answers) < 3 and time.monotonic() < until:
            hub.turn(wait=True)
    finally:
        waiting.set_hub(None)
        hub.close()
    assert answers == [0, 0, 0] and Pool.get().generation == 1
    Pool.get().control(STOP)


@real
def test_a_pool_that_does_not_come_up_is_given_up(directory, monkeypatch):
    monkeypatch.setenv("CHURTEN_POOL_EXECUTABLE", "/bin/false")
    for _ in range(5):
        with pytest.raises(PoolFailure) as caught:
            Pool.get().connect()
        assert caught.value.cls == "pool"
    assert "3 times within a minute" in caught.value.message
    monkeypatch.setenv("CHURTEN_POOL_EXECUTABLE", "/nonexistent")
    monkeypatch.setattr(Pool, "_starts", [])
    with pytest.raises(PoolFailure, match="not installed completely"):
        Pool.get().connect()


@real
def test_a_forked_child_has_its_own_connection(directory):
    import json

    client = Pool.get()
    before = json.loads(client.control(STATUS).stdout)
    assert before["clients"] == 1
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read)
            mine = Pool.get()
            assert mine is not client and client._client.closed and waiting.pump() is None
            status = json.loads(mine.control(STATUS).stdout)
            os.write(write, json.dumps([status["pid"], status["clients"]]).encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read) as file:
        assert json.load(file) == [before["pid"], 2]
    os.waitpid(pid, 0)
    deadline = time.monotonic() + 10
    while json.loads(client.control(STATUS).stdout)["clients"] != 1:
        assert time.monotonic() < deadline
    client.control(STOP)


@real
def test_a_command_through_a_local_session(directory):
    client = Pool.get()
    spec = {"transport": "local", "argv": ["/bin/sh", "-c"], "env": ["A=b"], "cwd": "/"}
    session = client.session(spec)
    reply = client.call(
        EXEC,
        session,
        module.NO_AGENT,
        ["cat; echo $A; pwd; echo e >&2; exit 3", "", "0", "data", "login"],
        stdin=b"in\n",
    )
    assert (reply.rc, reply.stdout, reply.stderr) == (3, b"in\nb\n/\n", b"e\n")
    client.reset(session)
    assert client.session(spec) != session
    client.control(STOP)
