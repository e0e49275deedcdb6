"""The chaos proxy does what the fault tests rely on."""

import contextlib
import socket
import threading
import time

import pytest

from churten.lab.chaos import Chaos, Script, Way

PATIENCE_S = 20


@pytest.fixture
def echo():
    """A server that sends everything back, its ends as it got them."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(client):
        with client, contextlib.suppress(OSError):
            while data := client.recv(65536):
                client.sendall(data)

    def accept():
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield listener.getsockname()
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


@pytest.fixture
def proxy(echo):
    with Chaos(echo) as made:
        yield made


def connect(proxy, up=None, down=None, **more):
    proxy.script = lambda number: Script(up or Way(), down or Way(), **more)
    return socket.create_connection((proxy.host, proxy.port), PATIENCE_S)


def read(client, count):
    data = b""
    while len(data) < count and (more := client.recv(count - len(data))):
        data += more
    return data


def test_everything_passes(proxy):
    data = bytes(range(256)) * 20_000
    with connect(proxy) as client:
        threading.Thread(target=client.sendall, args=(data,), daemon=True).start()
        assert read(client, len(data)) == data
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    proxy.wait(lambda: not proxy.open())
    assert (proxy.links[0].up.sent, proxy.links[0].down.sent) == (len(data), len(data))


def test_latency_bandwidth_segments_and_hiccups(proxy):
    began = time.monotonic()
    with connect(proxy, Way(latency_s=0.2), Way(bytes_per_s=5000, segment=1, hiccup=(1, 0.1))) as client:
        client.sendall(b"x" * 1000)
        assert len(client.recv(1000)) < 1000  # in pieces
        assert time.monotonic() - began > 0.3
        assert len(read(client, 900)) == 900
        assert time.monotonic() - began > 0.45


def test_flipped_bits(proxy):
    with connect(proxy, Way(flips={3: 0x80, 70_000: 1})) as client:
        client.sendall(bytes(100_000))
        got = read(client, 100_000)
    assert {at: byte for at, byte in enumerate(got) if byte} == {3: 0x80, 70_000: 1}


@pytest.mark.parametrize("later", [False, True])
def test_reset(proxy, later):
    with connect(proxy, down=Way(reset_at=None if later else 500)) as client:
        client.sendall(bytes(500 if later else 1000))
        assert len(read(client, 500)) == 500
        if later:
            proxy.links[0].reset()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert proxy.links[0].closed


def test_half_close(proxy):
    with connect(proxy) as client:
        client.sendall(b"one")
        assert read(client, 3) == b"one"
        proxy.links[0].end("down")
        assert client.recv(1) == b""
        client.sendall(b"two")
        proxy.wait(lambda: proxy.links[0].up.sent == 6)
        assert not proxy.links[0].closed


def test_stall_and_resume(proxy):
    with connect(proxy, Way(stall_at=4)) as client:
        client.sendall(b"before")
        assert read(client, 4) == b"befo"
        client.settimeout(0.2)
        client.shutdown(socket.SHUT_WR)
        with pytest.raises(TimeoutError):
            client.recv(1)
        proxy.links[0].resume()
        client.settimeout(PATIENCE_S)
        assert client.recv(1) == b"r" and read(client, 1) == b"e" and client.recv(1) == b""


def test_hang_and_refuse(proxy):
    with connect(proxy, hang=True) as client:
        client.settimeout(0.2)
        client.sendall(b"x")
        with pytest.raises(TimeoutError):
            client.recv(1)
    with pytest.raises(OSError), connect(proxy, refuse=True) as client:
        client.recv(1)


def test_each_connection_has_its_script(proxy):
    proxy.script = lambda number: Script(up=Way(flips={0: number}))
    for number in range(3):
        with socket.create_connection((proxy.host, proxy.port), PATIENCE_S) as client:
            client.sendall(b"\0")
            assert client.recv(1) == bytes([number])
