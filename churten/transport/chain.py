"""Requests of one action that go out without waiting for each other.

Before an action like `copy` runs its module it asks for things whose answers are known beforehand if all is well: the home directory, a new folder below
it, a file in it, its permissions. Each would cost a round trip. While a `Chain` is open they are sent at once and answered at once, with what they are
foretold to answer; the next request that really needs an answer waits for all of them. The agent begins each only when the one before has ended exactly
as foretold (docs/protocol.md, Chains), so nothing happens on the target that would not have happened one by one.

What always holds: a foretold answer was given only while nothing but reading (`READ_ONLY`) had been done besides the action's own temporary folder, by the
action or by that part of it which is under way (`Chain.part`: a file of a folder). So when a link ends otherwise, `Broken` leaves the action or the part, and
whoever opened it (compat/chains.py) does it again from its start, one by one: the words and results of a failure are those of that second try. A chain whose
requests may have begun and were lost makes the host unreachable: `Lost`.

The removal of the temporary folder goes out with the last module (`removal`), to be done when that has ended, whatever it answered; when core asks for it
afterwards, it has been done.
"""

from __future__ import annotations

import contextlib
import contextvars
import re
import secrets
import shlex
import typing as t

from churten import late, waiting
from churten.timings import stamps
from churten.transport import pool

Answer = tuple[int, bytes, bytes]
PUT_MOST = pool.WINDOW_BYTES  # bytes of a file that is sent ahead: what one window takes

READ_ONLY = frozenset({"ansible.modules.stat", "ansible.modules.slurp"})
_PEEK = b'"_diff_peek": true'  # of ansible.modules.file: looks at a file for a diff

# What is sent to a shell as it stands, in no need of quotes.
_PATH = r"/[\w./+:@%=,-]*"
_HOME = late.pattern(r"echo ~[\w.-]*", re.ASCII)
_FOLDER = late.pattern(
    rf'\( umask 77 && mkdir -p "` echo ({_PATH}) `"&& mkdir "` echo ({_PATH}) `" && echo ([\w.-]+)="` echo ({_PATH}) `" \)', re.ASCII
)
_CHMOD = late.pattern(rf"chmod u\+r?w?x(( {_PATH})+)", re.ASCII)
_READS = late.pattern(r"(?:test -e|echo ~)[^;&|<>$`()]*")
_PLAIN_START = "/bin/sh -c '"
_PAUSE = " && sleep 0"
_LINE = late.pattern(rb"/[^\n]*\n")

_homes: dict[tuple[str, str], bytes] = {}  # (session key, command) -> what it printed
_HOMES_KEPT = 20_000
_surprises: dict[str, int] = {}  # session key -> how often something was not as foretold
_SURPRISES_BORNE = 8  # then nothing is foretold there any more

_current: contextvars.ContextVar[Chain | None] = contextvars.ContextVar("churten_chain", default=None)


class Broken(BaseException):
    """Something did not end as foretold, and nothing after it was begun: do it again, one by one."""


class Lost(BaseException):
    """The host was lost after a request may have begun. No handler of the action shall see `error`: it belongs to the request that was answered ahead."""

    def __init__(self, error: Exception):
        super().__init__(str(error))
        self.error = error


class Step(t.NamedTuple):
    """A link that was answered before it was done."""

    pending: pool.Pending
    answer: Answer
    home: tuple[str, str] | None  # its place in _homes
    folder: bool  # it makes the temporary folder


class Owner(t.Protocol):
    """What a chain needs of the connection it belongs to."""

    def _unreachable(self, failure: pool.PoolFailure, in_data: bytes | None) -> Exception: ...

    def _corrupt(self, failure: pool.PoolFailure) -> None: ...

    def _log(self, level: int, text: str) -> None: ...


class Chain:
    """The links of one action. Use: `open_chain`, then the connection's methods; `settle` or `abandon`; `close_chain`."""

    def __init__(self, owner: Owner, made: bool, removal: t.Callable[[str, bytes], str | None]):
        """`made`: the temporary folder is there already. `removal(fqn, params)`: the command that core would remove it with, if this module is the last."""
        self.made = made
        self.broken = False
        self.nothing_made = not made  # no folder was made, for sure
        self.certain = True  # nothing was done yet that could not be done again
        self.in_parts = False  # the action does several things, each of which can be done again by itself
        self.removal = removal
        self._owner = owner
        self._steps: list[Step] = []
        self._folder = ""
        self._token = b""
        self._route = ""
        self._at: tuple[int, int] = (0, 0)  # connection of the client, session
        self._client: t.Any = None

    # --- what is foretold ---

    def foretell(self, route: str, cmd: str) -> tuple[Answer, tuple[str, str] | None, bool] | None:
        """The answer of `cmd` if all is well, its place in _homes, whether it makes the folder; None if nobody knows."""
        inner = _inner(cmd)
        if inner is None or not self._may(route):
            return None
        if _HOME.fullmatch(inner):
            printed = _homes.get((route, cmd))
            return None if printed is None else ((0, printed, b""), (route, cmd), False)
        if found := _FOLDER.fullmatch(inner):
            parent, path, name, same = found.groups()
            if path != same or path != f"{parent.rstrip('/')}/{name}" or self._folder:
                return None
            self._folder = path + "/"
            return (0, f"{name}={path}\n".encode(), b""), None, True
        if (found := _CHMOD.fullmatch(inner)) and all(self._is_inside(path) for path in found.group(1).split()):
            return (0, b"", b""), None, False
        return None

    def learn(self, route: str, cmd: str, answer: Answer) -> None:
        """What a command answered that was not foretold."""
        inner = _inner(cmd) or ""
        if _HOME.fullmatch(inner) and answer[0] == 0 and not answer[2] and _LINE.fullmatch(answer[1]):
            if len(_homes) > _HOMES_KEPT:
                _homes.clear()
            _homes[route, cmd] = answer[1]
        elif not _READS.fullmatch(inner):
            self.certain = False

    def ran(self, fqn: str, params: bytes) -> None:
        """A module was run."""
        if fqn not in READ_ONLY and not (fqn == "ansible.modules.file" and _PEEK in params):
            self.certain = False

    def may_put(self, route: str, path: str, size: int) -> bool:
        """Whether a file may be sent ahead: a small one into the temporary folder."""
        return self._may(route) and size <= PUT_MOST and self._is_inside(path)

    def _may(self, route: str) -> bool:
        return self.certain and not self.broken and _surprises.get(route, 0) < _SURPRISES_BORNE

    def _is_inside(self, path: str) -> bool:
        return bool(self._folder) and (path + "/").startswith(self._folder) and "/.." not in path

    def removes_nothing(self, cmd: str) -> bool:
        """Whether `cmd` removes the folder that could not be made."""
        return self.broken and self.nothing_made and (_inner(cmd) or "").startswith(f"rm -f -r {self._folder} ")

    @contextlib.contextmanager
    def part(self) -> t.Iterator[None]:
        """One of several things an action does, after something that cannot be done again; a break inside concerns this one alone."""
        self.settle()
        self.certain = True
        try:
            yield
        finally:
            self.certain = False

    # --- requests ---

    def put(
        self,
        client: pool.Pool,
        route: str,
        where: tuple[int, int],
        kind: int,
        body: t.Sequence[str | bytes],
        answer: Answer,
        *,
        home: tuple[str, str] | None = None,
        folder: bool = False,
        stdin: bytes | None = None,
    ) -> None:
        """Send a request that is foretold to answer `answer`; `where`: session and agent."""
        self._same(client, route, where[0])
        step = Step(self._link(kind, where, body, answer, stdin=stdin), answer, home, folder)
        self._steps.append(step)
        waiting.acted()

    def ask(
        self,
        client: pool.Pool,
        route: str,
        where: tuple[int, int],
        kind: int,
        body: t.Sequence[str | bytes],
        *,
        payload: tuple[str, t.Callable[[], list[str | bytes]]] | None = None,
        removal: str | None = None,
    ) -> tuple[pool.Reply, bool]:
        """Send a request and wait for it and all before it. Returns its reply, and whether `removal` was done after it.

        Raises Broken or Lost, or PoolFailure if everything before ended well.
        """
        self._same(client, route, where[0])
        if not self._steps and removal is None:
            return client.call(kind, where[0], where[1], body, payload=payload), False
        asked = self._link(kind, where, body, None, payload=payload)
        every = [step.pending for step in self._steps] + [asked]
        if removal is not None:
            every.append(self._link(pool.EXEC, (where[0], 0), [removal, "", "0", "null", "login"], None, before=asked))
        self._wait(every)
        self._judge()
        try:
            reply = client.outcome(asked)
        except pool.PoolFailure as failure:
            if failure.cls != "chain":
                raise
            return client.call(kind, where[0], where[1], body, payload=payload), False  # its agent had forgotten the chain
        return reply, removal is not None and self._went_well(every[-1])

    def _went_well(self, pending: pool.Pending) -> bool:
        try:
            return _answer(self._client, pending) == (0, b"", b"")
        except pool.PoolFailure:
            return False

    def settle(self) -> None:
        """Wait for everything that was answered ahead; raises as `ask`."""
        if self._steps:
            self._wait([step.pending for step in self._steps])
            self._judge()

    def abandon(self) -> None:
        """Nobody is interested any more."""
        steps, self._steps = self._steps, []
        for step in steps:
            self._client.abandon(step.pending)

    def _same(self, client: pool.Pool, route: str, session: int) -> None:
        """A chain is one agent's affair: on another session everything before is waited for."""
        client.connect()
        if self._steps and self._at != (client.generation, session):
            self.settle()
        self._client, self._route, self._at = client, route, (client.generation, session)

    def _link(
        self,
        kind: int,
        where: tuple[int, int],
        body: t.Sequence[str | bytes],
        answer: Answer | None,
        before: pool.Pending | None = None,
        **more: t.Any,
    ) -> pool.Pending:
        number = len(self._steps) + (before is not None)
        if before is None and self._steps:
            before = self._steps[-1].pending
        if number == 0:
            self._token = secrets.token_bytes(8)
        foretold = [str(answer[0]), answer[1], answer[2]] if answer is not None else ["", "", ""]
        link: pool.Pending = self._client.link(kind, *where, body, [self._token, str(number), *foretold], before, **more)
        return link

    def _wait(self, every: list[pool.Pending]) -> None:
        try:
            # None ends before the one before it has: one wait for all.
            for pending in reversed(every):
                self._client.wait(pending)
        except BaseException:
            self._steps = []
            for pending in every:
                self._client.abandon(pending)
            raise
        self._stamp(every)

    def _stamp(self, every: list[pool.Pending]) -> None:
        """They were one wait for their task."""
        known = [pending.stamp for pending in every if pending.stamp is not None]
        if known:
            received, sent, ended = known[0][0] / 1e6, known[0][1] / 1e6, max(stamp[2] for stamp in known) / 1e6
            stamps.request(received, sent or ended, ended, sum(self._ran_us(pending) for pending in every) / 1e6)

    def _ran_us(self, pending: pool.Pending) -> int:
        try:
            return int(self._client.outcome(pending).run_us)
        except pool.PoolFailure:
            return 0

    # --- the truth ---

    def _judge(self) -> None:
        """Everything has ended: did it end as foretold?"""
        steps, self._steps = self._steps, []
        for step in steps:
            try:
                answer = _answer(self._client, step.pending)
            except pool.PoolFailure as failure:
                self._owner._log(3, f"churten: {failure.cls} ({failure.layer}): {failure.message}")
                if failure.started and failure.cls not in ("file", "chain", "cancelled"):
                    if failure.cls == "protocol":
                        self._owner._corrupt(failure)
                    raise Lost(self._owner._unreachable(failure, None)) from None
                self._break(f"{failure.cls}: {failure.message}", for_good=failure.cls not in ("busy", "reset", "unreachable"))
            else:
                if answer == step.answer:
                    if step.folder:
                        self.made, self.nothing_made = True, False
                    continue
                if step.folder and answer[0] == 0:
                    self.nothing_made = False
                if step.home is not None:
                    _homes.pop(step.home, None)
                self._break(f"it answered {answer!r}, not {step.answer!r}", for_good=step.home is None)

    def _break(self, why: str, for_good: bool = True) -> t.NoReturn:
        self.broken = True
        if for_good:
            _surprises[self._route] = _surprises.get(self._route, 0) + 1
        self._owner._log(3, f"churten: once more, step by step: {why}")
        raise Broken


def current() -> Chain | None:
    """The chain of the running fiber."""
    return _current.get()


def settle() -> None:
    """Before something that happens once, whatever becomes of the action."""
    chain = _current.get()
    if chain is not None:
        chain.settle()


def open_chain(connection: t.Any, made: bool, removal: t.Callable[[str, bytes], str | None]) -> Chain:
    """From now on requests of `connection` may go out ahead."""
    chain = connection.chain = Chain(connection, made, removal)
    _current.set(chain)
    return chain


def close_chain(connection: t.Any) -> None:
    """What is still under way is nobody's business."""
    connection.chain.abandon()
    connection.chain = None
    _current.set(None)


def _inner(cmd: str) -> str | None:
    """What `cmd` gives to its shell, without the pause that core 2.20 and older put behind it; None for anything but `SHELL -c COMMAND`."""
    if cmd.startswith(_PLAIN_START) and cmd.count("'") == 2 and cmd[-1] == "'":
        return cmd[len(_PLAIN_START) : -1].removesuffix(_PAUSE)  # what the next lines would find, at less cost
    try:
        words = shlex.split(cmd)
    except ValueError:
        return None
    return words[2].removesuffix(_PAUSE) if len(words) == 3 and words[1] == "-c" else None


def _answer(client: pool.Pool, pending: pool.Pending) -> Answer:
    reply = client.outcome(pending)
    return (-1 if reply.signal or reply.truncated else reply.rc), reply.stdout, reply.stderr
