"""The client of the pool: one connection per process, many requests at once.

A request is a `Pending` from the moment it is sent until its final frame. `call()` sends one and waits: inside a fiber by parking, so that the executor's
hub can run other fibers and wait for all of them in `pump()`; outside by calling `pump()` itself. `pump()` is the only place where frames are received.

What always holds: a Pending is in `_pending` exactly until its final frame came or the connection ended; a caller that goes away early (KeyboardInterrupt,
a task's timeout) leaves it there as abandoned, cancelled and drained; after a fork the child has no Pool and makes its own when it needs one.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import select
import struct
import time
import typing as t

from churten import __version__, waiting
from churten.timings import stamps
from churten.transport import runtime

HELLO, OPEN, OPENED, START, STARTED, PAYLOAD, NEED, RUN, EXEC, PUT, FETCH, DATA, WINDOW, CANCEL = range(1, 15)
ACCEPTED, STAMP, EXIT, FAILED, PING, PONG, CLOSE, RESET, STATUS, STOP, LOG, SOURCE = range(15, 27)

NO_AGENT = 0xFFFF
WINDOW_BYTES = 1 << 20
CHUNK_BYTES = 256 << 10
FLAG_ZLIB, FLAG_END, FLAG_LINK = 1, 2, 16

STARTS_PER_MINUTE = 3
PING_AFTER_S = 5.0
ASK_AFTER_S = 30.0
DEAD_AFTER_S = 30.0
CONNECT_FOR_S = 6.0  # no new try after that
GIVEN_UP_FOR_S = 60.0  # where trying takes long, not every task shall pay for it
ALIVE_MS, ALIVE_COUNT = 15_000, 3  # of a session whose settings say nothing, as in csrc/pool_session.c
LEND_AFTER_S = 0.05  # of waiting for a connection
_ZLIB_FROM = 8192


class Chunks(t.Protocol):
    """What is read piece by piece."""

    def read(self, most: int, /) -> bytes: ...


class Whole(t.NamedTuple):
    """The first `size` bytes of a file, which the pool reads itself."""

    fd: int
    size: int


Source = bytes | Chunks | Whole


class PoolFailure(Exception):
    """A request failed before or beside its command: `cls` and `layer` as FAILED in docs/protocol.md, or cls `pool`: there is no pool to be had."""

    def __init__(self, cls: str, layer: str, message: str, started: bool):
        super().__init__(message)
        self.cls = cls
        self.layer = layer
        self.message = message
        self.started = started  # it may have begun on the target


class Reply(t.NamedTuple):
    rc: int  # -1: ended by `signal`
    signal: int
    stdout: bytes
    stderr: bytes
    stamp: tuple[int, int, int] | None  # received by the pool, sent on, final frame; microseconds of CLOCK_MONOTONIC
    run_us: int  # on the target
    truncated: bool


class Pending:
    """One request under way."""

    __slots__ = (
        "type", "session", "agent", "request", "body", "owner", "done", "accepted", "stamp", "out", "err", "unacked", "sink", "source", "offset",
        "window", "ended", "payload", "failure", "error", "final", "abandoned", "asked", "flags", "next", "cut",
    )  # fmt: skip

    def __init__(self, kind: int, session: int, agent: int, body: bytes):
        self.type = kind
        self.session = session
        self.agent = agent
        self.request = 0
        self.body = body
        self.owner: object | None = None
        self.done = False
        self.accepted = False
        self.stamp: tuple[int, int, int] | None = None
        self.out: list[bytes] = []
        self.err: list[bytes] = []
        self.unacked = 0
        self.sink: t.Callable[[bytes], object] | None = None  # takes stream 0 instead of `out`
        self.source: Source | None = None
        self.offset = 0
        self.window = WINDOW_BYTES
        self.ended = True  # nothing (more) to send
        self.payload: tuple[str, t.Callable[[], list[str | bytes]]] | None = None
        self.failure: PoolFailure | None = None
        self.error: BaseException | None = None
        self.final: tuple[int, bytes] | None = None
        self.abandoned = False
        self.asked = time.monotonic()  # when it was last known to be under way
        self.flags = 0
        self.next: Pending | None = None  # the one that begins when this one has ended, if it is a link of a chain
        self.cut = False  # the one before it failed: it will not begin


class Agent:
    """An agent as this client numbers it. `info` is what it said in its HELLO, once it has."""

    def __init__(self, number: int, key: str, pending: Pending):
        self.number = number
        self.key = key
        self.pending = pending
        self.info: dict[str, str] | None = None


class Session:
    """A session as this client numbers it."""

    def __init__(self, number: int, key: str, pending: Pending):
        self.number = number
        self.key = key
        self.pending = pending
        self.agents: dict[str, Agent] = {}
        self.next_agent = 1


def pack_map(items: t.Mapping[str, t.Any]) -> list[str | bytes]:
    """A map of docs/protocol.md as a flat list; lists become repeated keys, None is left out."""
    out: list[str | bytes] = []
    for key, value in items.items():
        for one in value if isinstance(value, (list, tuple)) else [value]:
            if one is not None and not key.startswith("_"):
                out += [key, one if isinstance(one, (str, bytes)) else str(one)]
    return out


def spec_key(spec: t.Mapping[str, t.Any], *also: str) -> str:
    """The digest that makes two sessions (or agents) the same. Passwords enter it only through the pool directory's own secret."""
    plain = {k: v for k, v in spec.items() if k not in ("name", "key", "nonce", "input") and not k.endswith("password")}
    hidden = {k: v for k, v in spec.items() if k.endswith("password") and v}
    digest = hashlib.sha256(json.dumps([plain, also], sort_keys=True, default=str).encode("utf-8", "surrogateescape"))
    if hidden:
        digest.update(hmac.new(runtime.secret(), json.dumps(hidden, sort_keys=True).encode(), "sha256").digest())
    return digest.hexdigest()


class Pool:
    """This process's connection to the pool; `Pool.get()`."""

    _instance: t.ClassVar[Pool | None] = None
    _starts: t.ClassVar[list[float]] = []
    _given_up: t.ClassVar[tuple[float, str, str]] = (0.0, "", "")  # until when, which directory, why

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._client: t.Any = None  # churten._core.Client
        self._core: t.Any = None
        self._pending: dict[int, Pending] = {}
        self._sessions: dict[str, Session] = {}
        self._numbers: dict[int, Session] = {}
        self._next_session = 1
        self._last_heard = 0.0
        self._pinged = False
        self._next_ask = 0.0
        self._magics: dict[str, str] = {}
        self.generation = 0  # counts connections: session and agent numbers of another generation mean nothing

    @classmethod
    def get(cls) -> Pool:
        """The Pool of this process; connects when it is first used."""
        if cls._instance is None or cls._instance.pid != os.getpid():
            cls._instance = cls()
        return cls._instance

    # --- the connection ---

    @property
    def closed(self) -> bool:
        """True while there is no connection; the next request makes one."""
        return self._client is None or bool(self._client.closed)

    def fileno(self) -> int:
        """The socket, readable when `pump()` has something to do; -1 while there is none."""
        return -1 if self.closed else int(self._client.fileno())

    def connect(self) -> None:
        """Make sure there is a connection. PoolFailure of class `pool` if there can be none."""
        if self.closed:
            # Starting a pool sleeps: a second fiber must not connect meanwhile, its connection would be replaced with all that waits on it.
            with waiting.uninterrupted():
                self._connect()

    def _connect(self) -> None:
        self._lost("the churten pool has ended")
        try:
            from churten import _core
        except ImportError as ex:
            raise PoolFailure("pool", "pool", f"churten's extension module does not load: {ex}", False) from ex
        self._core = _core
        try:
            directory = runtime.pool_dir()
            self._client = self._connect_or_start(directory)
        except runtime.RuntimeProblem as ex:
            raise PoolFailure("pool", "pool", str(ex), False) from ex
        self.generation += 1
        waiting.set_pump(self)
        self._last_heard = time.monotonic()
        self._pinged = False

    def _connect_or_start(self, directory: str) -> t.Any:
        path = runtime.socket_path(directory)
        problem: Exception | None = None
        began = time.monotonic()
        until, where, why = Pool._given_up
        if began < until and where == directory:
            raise runtime.RuntimeProblem(why)
        for attempt in range(3):
            try:
                return self._core.Client(path, __version__)
            except (OSError, self._core.Error) as ex:
                problem = ex
            if attempt < 2 and time.monotonic() - began < CONNECT_FOR_S:
                now = time.monotonic()
                Pool._starts[:] = [s for s in Pool._starts if now - s < 60]
                if len(Pool._starts) >= STARTS_PER_MINUTE:
                    raise runtime.RuntimeProblem(
                        f"churten-pool was started {STARTS_PER_MINUTE} times within a minute and is gone again"
                    )
                Pool._starts.append(now)
                runtime.start_pool(directory)
        text = f"cannot reach the churten pool at {path}: {problem}"
        if time.monotonic() - began > 1:
            Pool._given_up = (time.monotonic() + GIVEN_UP_FOR_S, directory, text)
        raise runtime.RuntimeProblem(text)

    def close(self) -> None:
        """End the connection; requests under way fail."""
        if self._client is not None:
            self._client.close()
        self._lost("the connection to the churten pool was closed")

    def _lost(self, why: str) -> int:
        """The connection is gone: fail everything under way, forget all numbers. Returns how many requests ended."""
        pending, self._pending = self._pending, {}
        self._sessions.clear()
        self._numbers.clear()
        if self._client is not None:
            self._client.close()
            self._client = None
        for one in pending.values():
            started = one.accepted or one.type not in (OPEN, START, STATUS)
            self._finish(one, PoolFailure("unreachable", "pool", why, started))
        return len(pending)

    # --- sessions and agents ---

    def session(self, spec: t.Mapping[str, t.Any], name: str = "") -> int:
        """The number of the session `spec` (OPEN map) describes; opens it if this client has not yet. Does not wait.

        `name`: what messages call the host.
        """
        self._refresh()
        key = spec.get("key") or spec_key(spec)
        found = self._sessions.get(key)
        if found is None:
            number = self._next_session
            self._next_session = number % 0xFFFFFFFF + 1
            body = self._core.pack(pack_map({**spec, "key": key, "name": name or spec.get("name", "")}))
            pending = self._send(Pending(OPEN, number, 0, body))
            found = self._sessions[key] = self._numbers[number] = Session(number, key, pending)
        return found.number

    def agent(self, session: int, start: t.Mapping[str, t.Any], login: bool = True) -> int:
        """The number of the agent `start` (START map, with its `key`) describes on `session`; starts it if needed. Does not wait.

        `login`: the session's own agent, number 0, of which there is one; otherwise a sub-agent of it.
        """
        owner = self._owner(session)
        key = str(start["key"])
        found = owner.agents.get(key)
        if found is None:
            number = 0 if login else owner.next_agent
            if not login:
                owner.next_agent += 1
            pending = self._send(Pending(START, session, number, self._core.pack(pack_map(start))))
            found = owner.agents[key] = Agent(number, key, pending)
        return found.number

    def login_agent(self, session: int) -> Agent | None:
        """The login agent of `session`, if this client has started one."""
        owner = self._owner(session)
        return next((a for a in owner.agents.values() if a.number == 0), None)

    def opening(self, session: int) -> Pending:
        """The OPEN of a session; its `final` is there once it has been open."""
        return self._owner(session).pending

    def opened(self, session: int) -> dict[str, str]:
        """Wait for OPENED and return its map; PoolFailure if the session could not be opened."""
        pending = self._owner(session).pending
        self._wait(pending, None)
        return self._map(pending)

    def started(self, session: int, agent: int) -> dict[str, str]:
        """Wait for STARTED and return its map; PoolFailure if the agent could not be started."""
        found = next((a for a in self._owner(session).agents.values() if a.number == agent), None)
        if found is None:
            raise PoolFailure("agent", "agent", "the agent has ended", False)
        if found.info is None:
            self._wait(found.pending, None)
            found.info = self._map(found.pending)
        return found.info

    def magic(self, session: int, agent: int, like: str) -> str | None:
        """The `magic` an agent said; while it is starting, what the last one said that was like it. None: nobody knows."""
        found = next((a for a in self._owner(session).agents.values() if a.number == agent), None)
        if found is not None and found.pending.done:
            self._magics[like] = self.started(session, agent).get("magic", "")
        return self._magics.get(like)

    def end_agents(self, session: int, keep: int) -> bool:
        """End the sub-agents of `session` but `keep`, unless they have work. Requests sent later wait until they have gone. False if there was none."""
        owner = self._owner(session)
        busy = {p.agent for p in self._pending.values() if p.session == session}
        ended = [a for a in owner.agents.values() if a.number not in (0, keep) and a.number not in busy]
        for agent in ended:
            del owner.agents[agent.key]
            with contextlib.suppress(self._core.Error):  # the request that follows notices a broken connection
                self._client.send(CLOSE, session, agent.number, 0, b"")
        return bool(ended)

    def forget(self, session: int) -> None:
        """Do not use this session number any more: the next `session()` for its spec opens a new one."""
        found = self._numbers.pop(session, None)
        if found is not None and self._sessions.get(found.key) is found:
            del self._sessions[found.key]

    def _owner(self, session: int) -> Session:
        found = self._numbers.get(session)
        if found is None or self.closed:
            raise PoolFailure("reset", "pool", "the session has ended", False)
        return found

    def _map(self, pending: Pending) -> dict[str, str]:
        if pending.failure is not None:
            raise pending.failure
        assert pending.final is not None
        items = [i.decode("utf-8", "surrogateescape") for i in self._core.unpack(pending.final[1])]
        return dict(zip(items[::2], items[1::2], strict=False))

    # --- requests ---

    def pack(self, items: t.Sequence[str | bytes]) -> bytes:
        """A vec, for an item that is one itself."""
        packed: bytes = self._core.pack(items)
        return packed

    def call(
        self,
        kind: int,
        session: int,
        agent: int,
        body: bytes | t.Sequence[str | bytes],
        *,
        stdin: Source | None = None,
        sink: t.Callable[[bytes], object] | None = None,
        deadline_s: float | None = None,
        payload: tuple[str, t.Callable[[], list[str | bytes]]] | None = None,
        early: bool = False,
    ) -> Reply:
        """Send one request and wait for its end.

        `stdin`: what to stream after it. `sink`: called with each chunk of FETCH. `deadline_s`: seconds
        until it is cancelled and PoolFailure of class `cancelled` is raised. `payload`: for RUN, the module's key and what
        makes the items of its PAYLOAD. `early`: do not wait until the agent has started, only until the session is open: the
        slot may be lent until then, and what runs on a host needs one. Raises PoolFailure; an exception thrown into the wait
        cancels the request.
        """
        self._refresh()
        if early:
            self.opened(session)
        self._owner(session)
        pending = Pending(kind, session, agent, body if isinstance(body, bytes) else self._core.pack(body))
        pending.payload = payload
        pending.sink = sink
        if stdin is not None:
            pending.source = stdin
            pending.ended = False
        self._send(pending)
        if early:
            self._await_start(pending)
        return self._reply(pending, deadline_s)

    def _await_start(self, pending: Pending) -> None:
        """The time until the agent has started is not the request's; if it fails to, the request says so as well, and whether it may have begun."""
        try:
            self.started(pending.session, pending.agent)
        except PoolFailure:
            pass
        except BaseException:
            if not pending.done:
                self._abandon(pending)
            raise

    def link(
        self,
        kind: int,
        session: int,
        agent: int,
        body: t.Sequence[str | bytes],
        chain: t.Sequence[str | bytes],
        before: Pending | None,
        *,
        stdin: bytes | None = None,
        payload: tuple[str, t.Callable[[], list[str | bytes]]] | None = None,
    ) -> Pending:
        """Send one request of a chain and do not wait for it. `chain`: token, number, and what it is foretold to answer (docs/protocol.md, Chains);
        `before`: the one of the number before, if any. Raises PoolFailure if it cannot be sent.
        """
        self.connect()
        self._owner(session)
        pending = Pending(kind, session, agent, self._core.pack([*body, self._core.pack(chain)]))
        pending.flags = FLAG_LINK
        pending.payload = payload
        if stdin is not None:
            pending.source = stdin
            pending.ended = False
        if before is not None:
            before.next = pending
            pending.cut = before.done and before.failure is not None
        return self._send(pending)

    def wait(self, pending: Pending) -> None:
        """Until a link has ended, in whatever way. Who is interrupted should `abandon` the whole chain."""
        self._wait(pending, None)

    def abandon(self, pending: Pending) -> None:
        """Nobody is interested in this request any more."""
        if not pending.done:
            self._abandon(pending)

    def reset(self, session: int, deadline_s: float = 10.0) -> None:
        """Drop the session now, for every client; its number is void afterwards."""
        self._owner(session)
        pending = self._send(Pending(RESET, session, 0, b"\0\0"))
        self._reply(pending, deadline_s)
        self.forget(session)

    def control(self, kind: int, deadline_s: float = 5.0) -> Reply:
        """STATUS or STOP."""
        self.connect()
        return self._reply(self._send(Pending(kind, 0, 0, b"\0\0")), deadline_s)

    def _refresh(self) -> None:
        """Notice a pool that died while nobody was looking, so that no request is sent into the void."""
        if not self.closed and not self._pending:
            self.pump(0)
        self.connect()

    def _send(self, pending: Pending) -> Pending:
        try:
            pending.request = self._client.request()
            self._pending[pending.request] = pending
            zlib = FLAG_ZLIB if len(pending.body) >= _ZLIB_FROM and pending.type == RUN else 0
            self._client.send(pending.type, pending.session, pending.agent, pending.request, pending.body, zlib | pending.flags)
            if isinstance(pending.source, Whole):
                fd, size = pending.source
                pending.ended = True
                self._client.send(SOURCE, pending.session, pending.agent, pending.request, struct.pack(">Q", size), 0, fd)
            elif not pending.ended:
                self._feed(pending)
        except self._core.Error as ex:
            self._pending.pop(pending.request, None)
            raise PoolFailure("unreachable", "pool", str(ex), False) from ex
        except BaseException:
            self._abandon(pending)
            raise
        return pending

    def _feed(self, pending: Pending) -> None:
        """Send as much of the source as the window allows."""
        while pending.window > 0 and not pending.ended:
            if isinstance(pending.source, bytes):
                chunk = pending.source[pending.offset : pending.offset + CHUNK_BYTES]
                pending.offset += len(chunk)
                pending.ended = pending.offset >= len(pending.source)
            else:
                assert pending.source is not None and not isinstance(pending.source, Whole)
                chunk = pending.source.read(CHUNK_BYTES)
                pending.ended = len(chunk) < CHUNK_BYTES
            pending.window -= len(chunk)
            flags = FLAG_END if pending.ended else 0
            self._client.send(DATA, pending.session, pending.agent, pending.request, chunk, flags)

    def _reply(self, pending: Pending, deadline_s: float | None) -> Reply:
        self._wait(pending, None if deadline_s is None else time.monotonic() + deadline_s)
        return self.outcome(pending)

    def outcome(self, pending: Pending) -> Reply:
        """What became of a request that is done; raises its PoolFailure."""
        items = self._core.unpack(pending.final[1]) if pending.final is not None else []
        run_us = int(items[2] or b"0") if len(items) > 2 else 0
        if pending.stamp is not None and not pending.flags:
            received, sent, ended = (us / 1e6 for us in pending.stamp)
            stamps.request(received, sent or ended, ended, run_us / 1e6)
        if pending.error is not None:
            raise pending.error
        if pending.failure is not None:
            raise pending.failure
        assert pending.final is not None
        out = b"".join(pending.out) + (items[3] if len(items) > 3 else b"")
        err = b"".join(pending.err) + (items[4] if len(items) > 4 else b"")
        signal = int(items[1] or b"0") if len(items) > 1 else 0
        truncated = len(items) > 5 and items[5] not in (b"", b"0")
        return Reply(int(items[0]) if items else 0, signal, out, err, pending.stamp, run_us, truncated)

    def _wait(self, pending: Pending, deadline: float | None) -> None:
        """Until `pending` is done. PoolFailure (cancelled) when `deadline` passes first."""
        if pending.done:
            return
        fiber = waiting.current()
        connecting = pending.type in (OPEN, START)
        if connecting:
            stamps.connecting()
        try:
            if fiber is None:
                self._wait_blocking(pending, deadline)
            else:
                self._wait_open(pending, deadline, fiber)
                self._wait_parked(pending, deadline, fiber)
        except BaseException:
            if not pending.done and not connecting:
                self._abandon(pending)
            raise
        finally:
            if connecting:
                stamps.connected()

    def _wait_blocking(self, pending: Pending, deadline: float | None) -> None:
        while not pending.done:
            left = PING_AFTER_S if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise PoolFailure("cancelled", "pool", "the time given for it is over", True)
            self.pump(int(min(left, PING_AFTER_S) * 1000) + 1)

    def _wait_open(self, pending: Pending, deadline: float | None, fiber: object) -> None:
        """Until the session is open, or has failed to. Who waits long for that lends its slot to a task that has something to do."""
        owner = self._numbers.get(pending.session)
        if owner is None or owner.pending.done:
            return
        soon = time.monotonic() + LEND_AFTER_S
        if self._parked(owner.pending, soon if deadline is None else min(soon, deadline), fiber) or not waiting.lend():
            return
        try:
            self._parked(owner.pending, deadline, fiber)
        finally:
            waiting.retake()

    def _wait_parked(self, pending: Pending, deadline: float | None, fiber: object) -> None:
        if not self._parked(pending, deadline, fiber):
            raise PoolFailure("cancelled", "pool", "the time given for it is over", True)

    def _parked(self, pending: Pending, deadline: float | None, fiber: object) -> bool:
        """False: `deadline` came first."""
        # Several fibers may wait for one OPEN or START.
        owners = pending.owner if isinstance(pending.owner, list) else []
        pending.owner = owners
        owners.append(fiber)
        try:
            while not pending.done:
                if (
                    not waiting.park(deadline)
                    and not pending.done
                    and deadline is not None
                    and time.monotonic() >= deadline
                ):
                    return False
        finally:
            owners.remove(fiber)
        return True

    def _abandon(self, pending: Pending) -> None:
        """Nobody waits for it any more: kill it on the target, and drain what still comes."""
        pending.abandoned = pending.ended = True
        pending.out = pending.err = []
        pending.sink = None
        pending.source = None
        if pending.request in self._pending and not self.closed:
            try:
                self._client.send(CANCEL, pending.session, pending.agent, pending.request, b"")
            except self._core.Error:
                pass

    # --- receiving ---

    def pump(self, timeout_ms: int, wake_fd: int = -1) -> int:
        """Wait at most `timeout_ms` (-1: no limit) for frames or for `wake_fd`, and handle what came. Returns how many requests ended.

        May return early with 0. Works without a connection too: then it only waits for `wake_fd`.
        """
        client = self._client
        if client is None or client.closed:
            lost = self._lost("the churten pool has ended") if client is not None else 0
            if not lost and timeout_ms:
                waiter = select.poll()
                if wake_fd >= 0:
                    waiter.register(wake_fd, select.POLLIN)
                waiter.poll(timeout_ms if wake_fd >= 0 or timeout_ms >= 0 else 1000)
            return lost
        if self._pending and (timeout_ms < 0 or timeout_ms > PING_AFTER_S * 1000):
            timeout_ms = int(PING_AFTER_S * 1000)
        if self._pending and (now := time.monotonic()) >= self._next_ask:
            self._ask(now)
        frames = client.poll(timeout_ms, wake_fd)
        if client is not self._client:
            return 0
        if frames:
            self._last_heard = time.monotonic()
            self._pinged = False
            done = 0
            for frame in frames:
                done += self._on_frame(*frame)
            if client.closed:
                done += self._lost("the churten pool has ended")
            return done
        if client.closed:
            return self._lost("the churten pool has ended")
        return self._check_alive() if self._pending and timeout_ms else 0

    def _ask(self, now: float) -> None:
        """Ask after every request that has been under way for long: pool and agent answer FAILED for one they have lost, so that nobody waits for ever."""
        self._next_ask = now + ASK_AFTER_S / 4
        for one in self._pending.values():
            if now - one.asked >= ASK_AFTER_S:
                one.asked = now
                self._ping(one.session, one.agent, one.request)

    def _check_alive(self) -> int:
        silent = time.monotonic() - self._last_heard
        if silent > DEAD_AFTER_S:
            return self._lost(f"the churten pool has not answered for {int(silent)} s")
        if silent > PING_AFTER_S and not self._pinged:
            self._pinged = True
            self._ping(0, 0, 0)
        return 0

    def _ping(self, session: int, agent: int, request: int) -> None:
        # A connection that broke meanwhile is noticed where frames are received.
        with contextlib.suppress(self._core.Error):
            self._client.send(PING, session, agent, request, b"churten")

    def _on_frame(self, kind: int, flags: int, session: int, agent: int, request: int, body: bytes) -> int:
        """One frame; 1 if it ended a request somebody waits for."""
        if request == 0:
            if kind == FAILED:
                self._on_ended(session, agent, body)
            return 0
        pending = self._pending.get(request)
        if pending is None:
            return 0
        if kind == DATA:
            self._on_data(pending, flags, body)
            return 0
        if kind == WINDOW:
            pending.window += struct.unpack(">I", body)[0]
            if not pending.ended:
                self._guard(pending, self._feed, pending)
            return 0
        if kind == ACCEPTED:
            pending.accepted = True
            return 0
        if kind == STAMP:
            pending.stamp = struct.unpack(">QQQ", body)
            return 0
        if kind == NEED and pending.payload is not None and not pending.abandoned:
            del self._pending[request]
            self._guard(pending, self._supply, pending)
            return 0
        if kind in (EXIT, OPENED, STARTED, NEED):
            del self._pending[request]
            pending.final = (kind, body)
            return self._finish(pending, None)
        if kind == FAILED:
            del self._pending[request]
            failure = self._failure(body)
            self._on_failed(pending, failure)
            return self._finish(pending, failure)
        return 0

    def _guard(self, pending: Pending, what: t.Callable[..., object], *args: t.Any) -> None:
        """Run a step for one request; its exception is that request's, not the receiver's."""
        try:
            what(*args)
        except Exception as ex:
            self._abandon(pending)
            pending.error = ex
            pending.done = True
            self._wake(pending)

    def _supply(self, pending: Pending) -> None:
        """The pool does not have the module yet: send it, and the request again."""
        assert pending.payload is not None
        _, items = pending.payload
        if pending.cut:
            self._finish(pending, PoolFailure("chain", "pool", "the request before it failed", False))
            return
        self._client.send(PAYLOAD, pending.session, pending.agent, 0, self._core.pack(items()))
        self._send(pending)

    def _on_data(self, pending: Pending, flags: int, body: bytes) -> None:
        if not pending.abandoned:
            stream = flags >> 2 & 3
            if stream == 2:
                pending.err.append(body)
            elif stream == 0 and pending.sink is not None:
                self._guard(pending, pending.sink, body)
            else:
                pending.out.append(body)
        pending.unacked += len(body)
        if pending.unacked >= CHUNK_BYTES and not flags & FLAG_END:
            self._client.send(
                WINDOW, pending.session, pending.agent, pending.request, struct.pack(">I", pending.unacked)
            )
            pending.unacked = 0

    def _failure(self, body: bytes) -> PoolFailure:
        items = [i.decode("utf-8", "replace") for i in self._core.unpack(body)] + [""] * 4
        return PoolFailure(items[0] or "protocol", items[1], items[2], items[3] == "1")

    def _on_failed(self, pending: Pending, failure: PoolFailure) -> None:
        """An OPEN or START that failed must not be used again."""
        if pending.type == OPEN:
            self.forget(pending.session)
        elif pending.type == START:
            owner = self._numbers.get(pending.session)
            if owner is not None:
                owner.agents = {k: a for k, a in owner.agents.items() if a.pending is not pending}
        elif failure.cls == "reset":
            self.forget(pending.session)

    def _on_ended(self, session: int, agent: int, body: bytes) -> None:
        """A session or an agent ended by itself; requests on it get their own FAILED."""
        owner = self._numbers.get(session)
        if owner is None:
            return
        if agent:
            owner.agents = {k: a for k, a in owner.agents.items() if a.number != agent}
        elif self._failure(body).cls == "agent":
            owner.agents = {}
        else:
            self.forget(session)

    def _finish(self, pending: Pending, failure: PoolFailure | None) -> int:
        pending.failure = failure
        pending.done = True
        if failure is not None and pending.next is not None:
            self._cut(pending.next)
        if pending.abandoned:
            return 0
        self._wake(pending)
        return 1

    def _cut(self, pending: Pending) -> None:
        """The link before it failed, perhaps without its agent knowing, which would keep this one waiting."""
        pending.cut = True
        if not pending.done and not self.closed:
            with contextlib.suppress(self._core.Error):
                self._client.send(CANCEL, pending.session, pending.agent, pending.request, b"")

    @staticmethod
    def _wake(pending: Pending) -> None:
        if isinstance(pending.owner, list):
            for fiber in pending.owner:
                waiting.wake(fiber)


def _after_fork() -> None:
    """A forked child must not keep its parent's connection open; `close()` only closes the descriptor there."""
    old, Pool._instance = Pool._instance, None
    if old is not None and old._client is not None:
        old._client.close()


os.register_at_fork(after_in_child=_after_fork)
