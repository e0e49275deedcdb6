# SPDX-License-Identifier: GPL-3.0-or-later
"""A TCP proxy that misbehaves: between ssh (or churten's pool) and a real sshd it is the bad network of the fault tests, and the
long line of the benchmarks.

    with Chaos((host.address, host.port)) as proxy:
        proxy.script = lambda number: Script(down=Way(latency_s=0.2))     # asked for every new connection, counted from 0
        ... connect to proxy.host, proxy.port ...
        proxy.links[0].stall()

One thread serves all connections of one proxy. A link has two flows: `up` (to the target) and `down` (from it); each obeys its Way, which may change
while it runs. Offsets count the bytes of that flow from the start of the connection. Bytes that were read are never lost but by a reset or `end_at`.
"""

from __future__ import annotations

import collections
import contextlib
import random
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

BUFFER = 1 << 20  # what one flow holds before it stops reading: a long fat line needs that much
READ = 64 << 10
ONE_TURN = 256  # segments that one flow may send before the others have their turn


@dataclass
class Way:
    """What happens to the bytes of one direction."""

    latency_s: float = 0.0
    bytes_per_s: float = 0  # 0: no limit
    segment: int = 0  # bytes per send() at most, each its own packet; 0: no limit
    hiccup: tuple[float, float] = (0, 0)  # (probability, seconds): what a lost packet costs, and everything behind it
    flips: dict[int, int] = field(default_factory=dict)  # offset -> bits to flip
    stall_at: int | None = None  # from that offset on nothing moves, nothing ends
    reset_at: int | None = None  # at that offset both ends get a RST
    end_at: int | None = None  # at that offset the receiver gets a FIN; later bytes vanish


@dataclass
class Script:
    """How one connection behaves from its start."""

    up: Way = field(default_factory=Way)
    down: Way = field(default_factory=Way)
    hang: bool = False  # accepted, and then nothing at all
    refuse: bool = False  # accepted and reset at once


class Flow:
    """One direction of a link. Belongs to the proxy's thread; the counters may be read from anywhere."""

    def __init__(self, link: Link, source: socket.socket, sink: socket.socket, way: Way):
        self.link, self.source, self.sink, self.way = link, source, sink, way
        self.received = self.sent = 0
        self.stalled = self.ended = False  # ended: the receiver has its FIN
        self._eof = self._blocked = False
        self._queue: collections.deque[tuple[float, bytes]] = collections.deque()
        self._queued = 0
        self._not_before = 0.0

    def wants_read(self) -> bool:
        # A thin line holds little: what it has not passed on must look unsent.
        way = self.way
        most = max(4096, int(way.bytes_per_s * (way.latency_s + 0.2))) if way.bytes_per_s else BUFFER
        return not (self.stalled or self._eof or self._queued >= most)

    def wants_write(self) -> bool:
        return self._blocked and not self.stalled

    def read(self, now: float, rng: random.Random) -> None:
        try:
            data = self.source.recv(4096 if self.way.bytes_per_s else READ)
        except BlockingIOError:
            return
        if not data:
            self._eof = True
            return
        for offset in [o for o in self.way.flips if 0 <= o - self.received < len(data)]:
            changed = bytearray(data)
            changed[offset - self.received] ^= self.way.flips[offset]
            data = bytes(changed)
        self.received += len(data)
        due = now + self.way.latency_s
        if rng.random() < self.way.hiccup[0]:
            due += self.way.hiccup[1]
        if self._queue:
            due = max(due, self._queue[-1][0])  # order is kept
        self._queue.append((due, data))
        self._queued += len(data)

    def write(self, now: float) -> float | None:
        """Sends what is due; returns when there is more to do, None: not before something arrives."""
        self._blocked = False
        way = self.way
        for _ in range(ONE_TURN):
            if self.stalled:
                return None
            if way.stall_at is not None and self.sent >= way.stall_at:
                self.stalled = True
                return None
            if way.reset_at is not None and self.sent >= way.reset_at:
                raise ConnectionResetError
            if way.end_at is not None and self.sent >= way.end_at:
                self.end()
            if not self._queue:
                if self._eof:
                    self.end()
                return None
            due, data = self._queue[0]
            if max(due, self._not_before) > now:
                return max(due, self._not_before)
            count = len(data)
            if not self.ended:
                count = self._some(count, now)
                try:
                    count = self.sink.send(data[:count])
                except BlockingIOError:
                    self._blocked = True
                    return None
            self.sent += count
            self._queued -= count
            if count == len(data):
                self._queue.popleft()
            else:
                self._queue[0] = (due, data[count:])
            if way.bytes_per_s:
                self._not_before = max(now, self._not_before) + count / way.bytes_per_s
        return now

    def _some(self, count: int, now: float) -> int:
        """How much of `count` bytes may go in one send."""
        way = self.way
        if way.segment:
            count = min(count, way.segment)
        if way.bytes_per_s:
            count = min(count, max(1, int(way.bytes_per_s * 0.02)))
        for stop in (way.stall_at, way.reset_at, way.end_at):
            if stop is not None:
                count = min(count, stop - self.sent)
        return count

    def end(self) -> None:
        """FIN to the receiver, once."""
        if not self.ended:
            self.ended = True
            with contextlib.suppress(OSError):
                self.sink.shutdown(socket.SHUT_WR)

    def over(self) -> bool:
        return self._eof and self.ended and not self._queue


class Link:
    """One connection through the proxy. Its methods may be called from the test's thread and take effect at once."""

    def __init__(self, proxy: Chaos, number: int, client: socket.socket, target: socket.socket, script: Script):
        self.proxy, self.number = proxy, number
        self.client, self.target = client, target
        self.up = Flow(self, client, target, script.up)
        self.down = Flow(self, target, client, script.down)
        self.closed = False
        if script.hang:
            self.up.stalled = self.down.stalled = True

    def _flows(self, which: str) -> list[Flow]:
        return {"up": [self.up], "down": [self.down], "both": [self.up, self.down]}[which]

    def stall(self, which: str = "both") -> None:
        """Nothing moves and nothing ends, whatever the ends do."""
        with self.proxy.change():
            for flow in self._flows(which):
                flow.stalled = True

    def resume(self, which: str = "both") -> None:
        with self.proxy.change():
            for flow in self._flows(which):
                flow.stalled, flow.way.stall_at = False, None

    def end(self, which: str) -> None:
        """Half-close: FIN to the receiver of that flow now; what comes later for it vanishes."""
        with self.proxy.change():
            for flow in self._flows(which):
                flow.way.end_at = flow.sent

    def reset(self) -> None:
        """RST to both ends."""
        with self.proxy.change():
            self.abort()

    def abort(self) -> None:
        if self.closed:
            return
        for one in (self.client, self.target):
            with contextlib.suppress(OSError):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        self.closed = True
        for one in (self.client, self.target):
            self.proxy.forget(one)
            one.close()


class Chaos:
    """Listens on `host` and passes every connection on to `target`, as `script` says."""

    def __init__(self, target: tuple[str, int], host: str = "127.0.0.1", port: int = 0, seed: int = 1, thin: bool = False):
        """`thin`: small buffers in the kernel too, so that the sender feels the line."""
        self.target = target
        self.script: Callable[[int], Script] = lambda number: Script()
        self.links: list[Link] = []
        self._rng = random.Random(seed)
        self._lock = threading.RLock()
        self._selector = selectors.DefaultSelector()
        self._interest: dict[socket.socket, int] = {}
        self._thin = thin
        self._listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if thin:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        self._listener.bind((host, port))
        self._listener.listen(512)
        self._listener.setblocking(False)
        self.host, self.port = self._listener.getsockname()[:2]
        self._wake, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._stop = False
        self._thread = threading.Thread(target=self._run, daemon=True, name="chaos")
        self._thread.start()

    def __enter__(self) -> Chaos:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def open(self) -> list[Link]:
        """The links that have not ended."""
        with self._lock:
            return [link for link in self.links if not link.closed]

    def wait(self, condition: Callable[[], object], seconds: float = 20) -> None:
        """Until condition() holds; the test fails if it never does."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, [
                (link.number, link.up.sent, link.down.sent, link.closed) for link in self.links
            ]
            time.sleep(0.01)

    def close(self) -> None:
        """Ends everything; links that are open get a RST."""
        if not self._thread.is_alive():
            return
        with self.change():
            self._stop = True
        self._thread.join(20)
        assert not self._thread.is_alive()

    @contextlib.contextmanager
    def change(self) -> Iterator[None]:
        with self._lock:
            yield
        with contextlib.suppress(OSError):
            self._wake.send(b"!")

    def forget(self, one: socket.socket) -> None:
        if self._interest.pop(one, 0):
            self._selector.unregister(one)

    def _run(self) -> None:
        wait: float | None = None
        try:
            while True:
                ready = self._selector.select(wait)
                with self._lock:
                    if self._stop:
                        return
                    wait = self._turn({key.fileobj: events for key, events in ready})
        finally:
            with self._lock:
                for link in self.links:
                    link.abort()
            for one in (self._listener, self._wake, self._woken):
                one.close()
            self._selector.close()

    def _turn(self, ready: dict[object, int]) -> float | None:
        if self._woken in ready:
            with contextlib.suppress(BlockingIOError):
                self._woken.recv(1000)
        if self._listener in ready:
            self._accept()
        now = time.monotonic()
        times = []
        for link in self.links:
            if link.closed:
                continue
            try:
                for flow in (link.up, link.down):
                    if ready.get(flow.source, 0) & selectors.EVENT_READ and flow.wants_read():
                        flow.read(now, self._rng)
                    times.append(flow.write(now))
            except OSError:
                link.abort()  # one end is gone: so is the other, as if the proxy were not there
                continue
            if link.up.over() and link.down.over():
                link.close()
            else:
                self._watch(link.client, link.up, link.down)
                self._watch(link.target, link.down, link.up)
        due = [one for one in times if one is not None]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _watch(self, one: socket.socket, reads: Flow, writes: Flow) -> None:
        wanted = (selectors.EVENT_READ if reads.wants_read() else 0) | (
            selectors.EVENT_WRITE if writes.wants_write() else 0
        )
        had = self._interest.get(one, 0)
        if wanted == had:
            return
        self._interest[one] = wanted
        if not had:
            self._selector.register(one, wanted)
        elif wanted:
            self._selector.modify(one, wanted)
        else:
            self._selector.unregister(one)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except BlockingIOError:
                return
            target = socket.socket(socket.AF_INET6 if ":" in self.target[0] else socket.AF_INET)
            if self._thin:
                target.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
            for one in (client, target):
                one.setblocking(False)
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            script = self.script(len(self.links))
            if not (script.hang or script.refuse):
                target.connect_ex(self.target)
            link = Link(self, len(self.links), client, target, script)
            self.links.append(link)
            if script.refuse:
                link.abort()
