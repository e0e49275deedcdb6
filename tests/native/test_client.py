"""churten._core.Client, pack and unpack, against a server made of a plain socket that says what the test wants."""

import gc
import os
import select
import signal
import socket
import struct
import sys
import threading
import time
import zlib

import pytest
from talking import DATA, DEADLINE_S, EXEC, EXIT, FAILED, HELLO, PING, PONG, RUN, SOURCE

from churten import _core

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")


def frame(kind, body=b"", flags=0, session=0, agent=0, request=0):
    return struct.pack(">HBBBBHIII", 0x4348, 1, kind, flags, 0, agent, session, request, len(body)) + body


HELLO_BACK = frame(HELLO, _core.pack(["version", "1", "pid", "1"]))


class Server:
    """Listens at `path`; `connect()` makes a Client and keeps the other end in `peer`."""

    def __init__(self, path):
        self.path = str(path)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen(5)
        self.peer = None

    def connect(self, answer=HELLO_BACK, **more):
        def serve():
            self.peer, _ = self.listener.accept()
            self.peer.settimeout(DEADLINE_S)
            self.peer.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            return _core.Client(self.path, "1", **more)
        finally:
            thread.join()

    def hear(self, size):
        out = bytearray()
        while len(out) < size:
            more = self.peer.recv(min(size - len(out), 1 << 20))
            assert more, f"closed after {len(out)} bytes"
            out += more
        return bytes(out)


@pytest.fixture
def server(pool_dir):
    made = Server(pool_dir / "s")
    yield made
    made.listener.close()
    if made.peer is not None:
        made.peer.close()


@pytest.fixture
def client(server):
    made = server.connect()
    yield made
    made.close()


# --- connecting ---


def test_hello(server, client):
    magic, version, kind, _, _, _, _, _, length = struct.unpack(">HBBBBHIII", server.hear(20))
    assert (magic, version, kind) == (0x4348, 1, HELLO)
    assert _core.unpack(server.hear(length)) == [b"version", b"1", b"pid", b"%d" % os.getpid()]
    assert client.pid == os.getpid() and not client.closed
    assert not os.get_inheritable(client.fileno())


def test_nothing_there(pool_dir):
    with pytest.raises(FileNotFoundError, match=r"cannot reach the churten pool at .*: No such file"):
        _core.Client(str(pool_dir / "none"), "1")
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(pool_dir / "stale"))
    stale.close()
    with pytest.raises(ConnectionRefusedError):
        _core.Client(str(pool_dir / "stale"), "1")
    with pytest.raises(OSError, match="too long"):
        _core.Client("/" + "x" * 200, "1")
    with pytest.raises(TypeError):
        _core.Client("x", "1", 5000)
    with pytest.raises(ValueError):
        _core.Client("a\0b", "1")


@pytest.mark.parametrize(
    "answer, words",
    [
        (frame(FAILED, _core.pack(["version", "pool", "other", "0"])), "another version"),
        (frame(PONG), "protocol violation"),
        (b"SSH-2.0-OpenSSH\r\n", "protocol violation"),
    ],
)
def test_a_wrong_answer(server, answer, words):
    with pytest.raises(_core.Error, match=words):
        server.connect(answer)


def test_no_answer(server):
    with pytest.raises(_core.Error, match="did not answer in time"):
        server.connect(HELLO_BACK[:10], timeout_ms=50)


def test_closed_before_hello(server):
    def serve():
        server.listener.accept()[0].close()

    thread = threading.Thread(target=serve)
    thread.start()
    with pytest.raises((_core.Error, OSError)):
        _core.Client(server.path, "1")
    thread.join()


def test_a_full_backlog_is_waited_for(pool_dir):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(pool_dir / "s"))
    listener.listen(0)
    waiting = []
    for _ in range(3):
        s = socket.socket(socket.AF_UNIX)
        s.setblocking(False)
        s.connect_ex(str(pool_dir / "s"))
        waiting.append(s)
    with pytest.raises(_core.Error, match="in time"):
        _core.Client(str(pool_dir / "s"), "1", timeout_ms=60)
    listener.close()


@root
@pytest.mark.row("F2")
def test_the_process_of_another_user_is_not_trusted(pool_dir):
    pool_dir.chmod(0o777)
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setresuid(65534, 65534, 65534)
            server = Server(pool_dir / "s")
            os.write(write_end, b"x")
            peer, _ = server.listener.accept()
            peer.recv(1000)
        finally:
            os._exit(0)
    os.close(write_end)
    os.read(read_end, 1)
    os.close(read_end)
    try:
        with pytest.raises(_core.Error, match="belongs to another user"):
            _core.Client(str(pool_dir / "s"), "1")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        pool_dir.chmod(0o700)


# --- frames ---


def test_frames_both_ways(server, client):
    head = server.hear(20)
    server.hear(struct.unpack(">I", head[16:])[0])
    request = client.request()
    assert (request, client.request()) == (1, 2)
    client.send(EXEC, 7, 0xFFFF, request, b"body", flags=2)
    assert server.hear(24) == frame(EXEC, b"body", 2, 7, 0xFFFF, 1)
    server.peer.sendall(frame(DATA, b"abc", 4, 7, 3, 1) + frame(EXIT, bytearray(b""), 0, 0xFFFFFFFF, 0xFFFE, 0xFFFFFFFF))
    assert client.poll(1000) == [(DATA, 4, 7, 3, 1, b"abc"), (EXIT, 0, 0xFFFFFFFF, 0xFFFE, 0xFFFFFFFF, b"")]
    assert client.poll(0) == []


def test_send_takes_any_bytes_and_checks_numbers(client):
    client.send(PING, 0, 0, 0, bytearray(b"x"))
    client.send(PING, 0, 0, 0, memoryview(b"xyz")[1:])
    for bad in [(0, 1, 0, 1), (27, 1, 0, 1), (300, 1, 0, 1), (PING, 1 << 32, 0, 1), (PING, 1, 1 << 16, 1), (PING, 1, 0, 1 << 32)]:
        with pytest.raises(ValueError, match="range"):
            client.send(*bad, b"")
    with pytest.raises(ValueError):
        client.send(PING, 0, 0, 0, b"", 32)
    with pytest.raises(TypeError):
        client.send(PING, 0, 0, 0, "text")
    with pytest.raises(_core.Error, match="size limit"):
        client.send(PING, 0, 0, 0, bytes((256 << 10) + 1))


def test_partial_frames(server, client):
    data = frame(DATA, b"x" * 500, request=1) + frame(EXIT, request=1)
    got = []
    for at in range(0, len(data), 7):
        server.peer.sendall(data[at : at + 7])
        got += client.poll(0)
    while len(got) < 2:
        got += client.poll(1000)
    assert [f[0] for f in got] == [DATA, EXIT]


def test_send_never_blocks_and_poll_sends_the_rest(server, client):
    head = server.hear(20)
    server.hear(struct.unpack(">I", head[16:])[0])
    body = os.urandom(16 << 20)
    client.send(RUN, 1, 0, 1, body)
    client.send(PING, 0, 0, 0, b"after")
    got = []
    thread = threading.Thread(target=lambda: got.append(server.hear(len(body) + 45)))
    thread.start()
    while thread.is_alive():
        client.poll(5)
    assert got[0] == frame(RUN, body, session=1, request=1) + frame(PING, b"after")


def test_descriptors_go_with_the_frames_they_belong_to(server, client, tmp_path):
    head = server.hear(20)
    server.hear(struct.unpack(">I", head[16:])[0])
    body = os.urandom(1 << 20)
    frames = b""
    for number in range(1, 6):
        path = tmp_path / str(number)
        path.write_text(f"file {number}")
        fd = os.open(path, os.O_RDONLY)
        client.send(RUN, 1, 0, number, body)
        client.send(SOURCE, 1, 0, number, b"s" * 8, 0, fd)
        os.close(fd)
        frames += frame(RUN, body, session=1, request=number) + frame(SOURCE, b"s" * 8, session=1, request=number)
    got, came = bytearray(), []
    while len(got) < len(frames):
        client.poll(0)
        data, fds, _, _ = socket.recv_fds(server.peer, 1 << 16, 10)
        came += [(len(got), len(got) + len(data), fd) for fd in fds]
        got += data
    assert bytes(got) == frames
    size = 20 + len(body) + 28
    for number, (begin, end, fd) in enumerate(came, 1):
        assert begin <= number * size - 28 < end
        assert os.read(fd, 100) == b"file %d" % number
        os.close(fd)
    assert len(came) == 5
    with pytest.raises(OSError, match="Bad file descriptor"):
        client.send(SOURCE, 1, 0, 9, b"s" * 8, 0, 12345)


def test_a_send_from_another_thread_wakes_the_waiter(server, client):
    head = server.hear(20)
    server.hear(struct.unpack(">I", head[16:])[0])
    frames = []
    waiter = threading.Thread(target=lambda: frames.extend(client.poll(DEADLINE_S * 1000)))
    waiter.start()
    body = bytes(8 << 20)
    client.send(RUN, 1, 0, 1, body)
    assert len(server.hear(len(body) + 20)) == len(body) + 20
    server.peer.sendall(frame(PONG))
    waiter.join()
    assert [f[0] for f in frames] == [PONG]


def test_many_frames_come_in_batches(server, client):
    bodies = [bytes([n % 256]) * 100_000 for n in range(200)]
    thread = threading.Thread(target=lambda: [server.peer.sendall(frame(DATA, b, request=1)) for b in bodies])
    thread.start()
    got = []
    largest = 0
    while len(got) < 200:
        batch = client.poll(DEADLINE_S * 1000)
        assert batch
        largest = max(largest, sum(len(f[5]) for f in batch))
        got += batch
    thread.join()
    assert [f[5] for f in got] == bodies
    assert largest < 8 << 20


# --- compression ---


def zipped(raw, claim=None):
    return struct.pack(">I", len(raw) if claim is None else claim) + zlib.compress(raw)


def test_compressed_bodies_are_inflated(server, client):
    raw = b"abc" * 10000
    server.peer.sendall(frame(DATA, zipped(raw), 1 | 4, request=1))
    assert client.poll(1000) == [(DATA, 4, 0, 0, 1, raw)]


@pytest.mark.parametrize("body", [zipped(b"x" * 100, 99), zipped(b"x" * 100, 101), zipped(b"", 65 << 20), b"\0\0\0\5hello", b"", b"\0\0\0\1"])
@pytest.mark.row("F7")
def test_a_bad_compressed_body_ends_the_connection(server, client, body):
    server.peer.sendall(frame(PONG) + frame(DATA, body, 1, request=1) + frame(PONG))
    assert [f[0] for f in client.poll(1000)] == [PONG]
    assert client.closed
    with pytest.raises(_core.Error):
        client.poll(0)


def test_send_compresses_when_it_pays(server, client):
    head = server.hear(20)
    server.hear(struct.unpack(">I", head[16:])[0])
    raw = b"abc" * 10000
    client.send(RUN, 0, 0, 1, raw, 1)
    head = server.hear(20)
    body = server.hear(struct.unpack(">I", head[16:])[0])
    assert head[4] == 1 and len(body) < 1000 and body[:4] == struct.pack(">I", len(raw)) and zlib.decompress(body[4:]) == raw
    noise = os.urandom(5000)
    client.send(RUN, 0, 0, 2, noise, 1)
    assert server.hear(5020) == frame(RUN, noise, 0, request=2)


# --- waiting ---


def test_timeout(client):
    before = time.monotonic()
    assert client.poll(30) == []
    assert time.monotonic() - before >= 0.03
    assert client.poll(0) == []


def test_wake_fd(server, client):
    read_end, write_end = os.pipe()
    thread = threading.Timer(0.02, os.write, (write_end, b"x"))
    thread.start()
    assert client.poll(-1, read_end) == []
    assert select.select([read_end], [], [], 0)[0], "it must not be read"
    server.peer.sendall(frame(PONG))
    select.select([client.fileno()], [], [], DEADLINE_S)
    assert [f[0] for f in client.poll(-1, wake_fd=read_end)] == [PONG]
    thread.join()
    os.close(read_end)
    os.close(write_end)


def test_signals_are_handled_while_waiting(client):
    seen = []
    old = signal.signal(signal.SIGALRM, lambda *_: seen.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.03)
        assert client.poll(-1) == []
        assert seen == [1]
        signal.signal(signal.SIGALRM, lambda *_: 1 / 0)
        signal.setitimer(signal.ITIMER_REAL, 0.03)
        with pytest.raises(ZeroDivisionError):
            client.poll(-1)
    finally:
        signal.signal(signal.SIGALRM, old)
    assert not client.closed


def test_the_gil_is_free_while_waiting(client):
    counted = []
    thread = threading.Thread(target=lambda: [counted.append(n) for n in range(1000)])
    thread.start()
    client.poll(50)
    thread.join()
    assert len(counted) == 1000


# --- the end ---


def test_the_pool_goes_away(server, client):
    server.peer.sendall(frame(PONG))
    server.peer.close()
    got = []
    while not client.closed:
        got += client.poll(1000)
    assert [f[0] for f in got] == [PONG]
    with pytest.raises(_core.Error, match="closed the connection"):
        client.poll(0)
    with pytest.raises(_core.Error):
        client.send(PING, 0, 0, 0, b"")
    with pytest.raises(_core.Error):
        client.fileno()


def test_what_the_pool_said_before_it_went_is_still_read(server, client):
    server.peer.sendall(frame(FAILED, request=5))
    server.peer.close()
    client.send(PING, 0, 0, 0, b"")
    client.send(PING, 0, 0, 0, b"")
    assert [f[0] for f in client.poll(1000)] == [FAILED]


def test_garbage_ends_the_connection(server, client):
    server.peer.sendall(frame(PONG) + b"garbage")
    got = []
    while not client.closed:
        got += client.poll(1000)
    assert [f[0] for f in got] == [PONG]


def test_close(client):
    fd = client.fileno()
    client.close()
    client.close()
    assert client.closed
    with pytest.raises(OSError):
        os.fstat(fd)
    for call in (client.fileno, client.request, lambda: client.poll(0), lambda: client.send(PING, 0, 0, 0, b"")):
        with pytest.raises(_core.Error, match="closed"):
            call()


def test_close_while_another_thread_waits(client):
    raised = []

    def wait():
        try:
            client.poll(-1)
        except _core.Error as ex:
            raised.append(str(ex))

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.05)
    client.close()
    thread.join(DEADLINE_S)
    assert not thread.is_alive() and raised == ["this Client was closed"] and client.closed


def test_after_fork(server, client):
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        out = []
        try:
            for call in (client.fileno, client.request, lambda: client.poll(0), lambda: client.send(PING, 0, 0, 0, b"")):
                try:
                    call()
                    out.append("worked")
                except _core.Error as ex:
                    out.append("another process" if "another process" in str(ex) else str(ex))
            client.close()
            out.append(str(client.closed))
        finally:
            os.write(write_end, repr(out).encode())
            os._exit(0)
    os.close(write_end)
    os.waitpid(pid, 0)
    assert os.read(read_end, 1000).decode() == repr(["another process"] * 4 + ["True"])
    os.close(read_end)
    # The parent's connection is not disturbed by the child's close().
    server.peer.sendall(frame(PONG))
    assert [f[0] for f in client.poll(1000)] == [PONG]


def test_dealloc_closes_and_nothing_leaks(server):
    for _ in range(3):
        one = server.connect()
        fd = one.fileno()
        del one
        gc.collect()
        with pytest.raises(OSError):
            os.fstat(fd)
    kind = _core.Client
    before = sys.getrefcount(kind)
    one = server.connect()
    assert sys.getrefcount(kind) > before
    for _ in range(200):
        server.peer.sendall(frame(DATA, b"x" * 50))
        one.poll(1000)
    del one
    gc.collect()
    assert sys.getrefcount(kind) == before


def test_the_type_is_closed():
    with pytest.raises(TypeError):
        _core.Client.x = 1
    with pytest.raises(TypeError):
        type("Sub", (_core.Client,), {})


# --- vecs ---


def test_pack():
    assert _core.pack([]) == b"\0\0"
    items = ["a", b"\0\xff", "gr\u00fc\u00df", "\udcff", ""]
    packed = _core.pack(items)
    assert _core.unpack(packed) == [b"a", b"\0\xff", "gr\u00fc\u00df".encode(), b"\xff", b""]
    assert _core.pack(tuple(items)) == packed
    assert _core.unpack(memoryview(packed)) == _core.unpack(packed)
    assert len(_core.unpack(_core.pack([b""] * 65535))) == 65535
    with pytest.raises(ValueError):
        _core.pack([b""] * 65536)
    for bad in ([1], [None], None, 5):
        with pytest.raises(TypeError):
            _core.pack(bad)
    with pytest.raises(UnicodeEncodeError):
        _core.pack(["\ud800"])


@pytest.mark.parametrize("bad", [b"", b"\0", b"\0\1", b"\0\1\0\0\0\1", b"\0\0x", b"\xff\xff" + bytes(100), b"\0\1\xff\xff\xff\xff"])
def test_unpack_refuses(bad):
    with pytest.raises(_core.Error):
        _core.unpack(bad)


def test_pack_and_unpack_do_not_leak():
    item = b"some bytes object"
    before = sys.getrefcount(item)
    for _ in range(100):
        _core.unpack(_core.pack([item, item]))
        with pytest.raises(TypeError):
            _core.pack([item, 1])
    assert sys.getrefcount(item) == before
