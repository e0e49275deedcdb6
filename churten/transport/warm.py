"""What churten.core.ssh and churten.core.local have in common: a connection plugin that works through the pool and its agents.

`WarmConnection` is mixed in before the built-in plugin's class. Each operation asks `_route()` for the session to use. Without one, and for everything
that would not come out exactly as stock, it calls `super()`: the built-in plugin, unchanged. The reason is logged at -vvv.

A request is sent again only if it provably never started (`PoolFailure.started` is False); whatever may have started and was lost makes the host unreachable.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import secrets
import shutil
import signal
import stat
import time
import typing as t

from ansible.errors import AnsibleConnectionFailure, AnsibleError, AnsibleFileNotFound
from ansible.module_utils.common.text.converters import to_bytes, to_native, to_text
from ansible.utils.display import Display

from churten import late, waiting
from churten.compat import connection as core
from churten.timings import stamps
from churten.transport import bootstrap, digests, payload, pool, runtime
from churten.transport.chain import Chain

display = Display()

Result = tuple[int, bytes, bytes]
T = t.TypeVar("T")

TRIES = 4  # of a request that never started
_BUSY_PAUSES_S = (0.1, 0.2, 0.5, 1.0)  # while too much is queued for the host already; the last one again and again
_BUSY_FOR_S = 600.0
_ARG_MAX = 131072  # bytes of one argument and its end, for Linux: a command that has more fails before it is sent, in words of the controller
_RUN = secrets.token_hex(8)  # of this ansible-playbook and its forks: agents of other accounts are not shared between runs
_warned: set[str] = set()
_no_python: set[tuple[str, str]] = set()  # (session key, interpreter or "auto") that started no agent
_refused: dict[tuple[str, str], str] = {}  # (session key, agent key) -> why its become command did not start an agent


class Route:
    """A way to a host: the session to use, and how its agents start."""

    def __init__(self, spec: dict[str, t.Any], transport: str, timeout_s: int, prefix: str = ""):
        self.spec = spec
        self.transport = transport
        self.timeout_ms = timeout_s * 1000
        self.prefix = prefix  # shell text before the bootstrap command of the login agent

    @property
    def key(self) -> str:
        return str(self.spec["key"])


class Stock(Exception):
    """This operation goes the stock way; the text says why."""


class WarmConnection:
    """Mixin for a class derived from a built-in Connection. See the module's text."""

    has_pipelining = True
    takes_module_calls = True  # exec_command() accepts payload.ModuleCall; see compat/modules.py

    # --- what the subclasses say ---

    def _route(self) -> Route:
        """The way to the host now; raises Stock."""
        raise NotImplementedError

    def _refuse(self, failure: pool.PoolFailure) -> bool:
        """The transport of the current route cannot do it. True if `_route()` now gives another one."""
        return False

    def _corrupt(self, failure: pool.PoolFailure) -> None:
        """What came from the target was no frame: from now on this host goes the stock way."""

    def _unreachable(self, failure: pool.PoolFailure, in_data: bytes | None) -> Exception:
        """What the built-in plugin would raise for a host that cannot be reached."""
        raise NotImplementedError

    def _retries(self) -> int:
        """How often to try again to reach a host, as configured."""
        return 0

    def _may_ask(self, failure: pool.PoolFailure) -> bool:
        """Whether the built-in plugin could ask a person about this failure."""
        return False

    def _host(self) -> str:
        return core.inventory_address(self)

    # --- ConnectionBase ---

    chain: Chain | None = None  # while an action's requests may go out ahead
    _removed: str | None = None  # the command whose work the last module's chain has done
    _session: pool.Pending | None = None  # the OPEN of the session in use
    _interpreter: str | None = None  # what modules of this host will probably run with; only a hint

    def _resolve_option_variables(self, variables: dict[str, t.Any], templar: t.Any) -> t.Any:
        """Called by ansible-core with all variables: the moment to learn the interpreter before the first module asks for it."""
        self.look_at_variables(variables)
        return super()._resolve_option_variables(variables, templar)  # type: ignore[misc]

    def look_at_variables(self, variables: t.Mapping[str, t.Any]) -> None:
        self._interpreter = core.interpreter_hint(variables)

    def exec_command(self, cmd: str, in_data: bytes | None = None, sudoable: bool = True) -> Result:
        """Run `cmd` on the target; a module it starts from `in_data` runs in an agent."""
        stock = super().exec_command  # type: ignore[misc]
        if self._is_done(cmd):
            return 0, b"", b""
        self._establish()
        try:
            work = self._job_work(cmd, in_data, sudoable) or self._work(cmd, in_data, sudoable)
            result = self._attempt(work, in_data)
            self._connected = True
            return result
        except Stock as ex:
            self._log_stock(ex)
        self._settle()
        self._hand_over()
        # Outside of the handler: errors must not have our reason in their chain of causes, Ansible shows it.
        self._free_accounts(cmd)
        plain = payload.program(in_data)
        with stamps.foreign():
            return t.cast(Result, waiting.blocking(lambda: stock(cmd, in_data=plain, sudoable=sudoable)))

    def _is_done(self, cmd: str) -> bool:
        """Whether `cmd` is the removal of a folder that has been removed already, or never was."""
        done, self._removed = self._removed, None
        if cmd == done or (self.chain is not None and self.chain.removes_nothing(cmd)):
            self._log(3, f"churten: done already: {cmd}")
            return True
        return False

    def _settle(self) -> None:
        """Before anything that does not go through a chain."""
        if self.chain is not None:
            self.chain.settle()

    def _hand_over(self) -> None:
        """Before anything but the start of a job that an agent makes; see jobs.py."""

    def _job_work(self, cmd: str, in_data: bytes | None, sudoable: bool) -> t.Callable[[Route], Result] | None:
        """How `cmd` runs if it starts such a job."""
        return None

    def is_without_python(self, route: Route, command: payload.Command) -> bool:
        """Whether the interpreter has started no agent there."""
        return (route.key, command.interpreter) in _no_python

    def _establish(self) -> None:
        """What the built-in plugin does before its first operation."""
        if not self._connected:
            self._connect()  # type: ignore[attr-defined]

    def _work(self, cmd: str, in_data: bytes | None, sudoable: bool) -> t.Callable[[Route], Result]:
        """Decide how `cmd` runs; raises Stock."""
        if not isinstance(cmd, str) or core.is_windows_shell(self):
            raise Stock("not a POSIX shell")
        if len(cmd) >= _ARG_MAX // 4 and len(to_bytes(cmd, errors="surrogate_or_strict")) >= _ARG_MAX:
            raise Stock("longer than an argument of the ssh client may be")
        module = payload.recognise(in_data)
        become_id = core.become_id(self)
        is_become = bool(become_id) and become_id in cmd
        if module is not None and core.is_posix_shell(self):
            command = payload.unwrap_command(cmd, become_id if is_become else "")
            if command is not None and (command.become is not None) == is_become:
                self._check_become(command)
                return lambda route: self._run_module(route, module, command, cmd, t.cast(bytes, in_data))
        if is_become:
            return self._become_work(cmd, in_data)
        if not in_data and sudoable and self._wants_terminal():
            return lambda route: self._run_on_terminal(route, cmd)
        return lambda route: self._run_command(route, cmd, in_data)

    def _check_become(self, command: payload.Command) -> None:
        if command.become is None:
            return
        if not core.is_sudo(self):
            raise Stock(f"become method {getattr(self.become, 'name', '?')} starts no agent")  # type: ignore[attr-defined]
        if self.get_option("churten_become") == "stock":  # type: ignore[attr-defined]
            raise Stock("churten_become is stock")

    def _become_work(self, cmd: str, in_data: bytes | None) -> t.Callable[[Route], Result]:
        """A become command that is not a module call: as it is, if nobody has to type a password."""
        become = self.become  # type: ignore[attr-defined]
        if not core.is_sudo(self) or become.expect_prompt():
            raise Stock("a become command that may ask for a password")
        if not in_data and self._wants_terminal():
            return lambda route: self._run_on_terminal(route, cmd)
        return lambda route: self._become_result(self._run_command(route, cmd, in_data))

    def _become_result(self, result: Result) -> Result:
        """What the built-in plugin makes of the output of a become command: the marker is taken out, a refusal is an error."""
        rc, out, err = result
        marker = core.success_marker(self)
        lines = out.splitlines(True)
        for i, line in enumerate(lines):
            if marker in line.rstrip():
                return rc, b"".join(lines[:i] + lines[i + 1 :]), err
        name = self.become.name  # type: ignore[attr-defined]
        for text in (out, err):
            if core.is_incorrect_password(self, text):
                raise AnsibleError(f"Incorrect {name} password")
            if core.is_missing_password(self, text):
                raise AnsibleError(f"Missing {name} password")
        return result

    def _wants_terminal(self) -> bool:
        """Whether the built-in plugin would give a command without input a terminal."""
        return False

    def _run_on_terminal(self, route: Route, cmd: str) -> Result:
        """Run `cmd` on a terminal, as the built-in plugin does; raises Stock."""
        raise Stock("the built-in plugin gives it a terminal")

    # --- requests ---

    def _attempt(self, work: t.Callable[[Route], T], in_data: bytes | None) -> T:
        """Do `work`, again while it never started and there is another way; raises Stock or what Ansible expects."""
        unreached = 0
        reopened = False
        for attempt in range(TRIES + self._retries()):
            route = self._route()
            try:
                return self._when_not_busy(work, route)
            except pool.PoolFailure as failure:
                self._log(3, f"churten: {failure.cls} ({failure.layer}): {failure.message}")
                if failure.cls in ("pool", "version"):
                    self._warn_pool(failure)
                    raise Stock(f"no pool: {failure.message}") from failure
                if failure.cls == "file":
                    # No room, no right, another size than announced: written again from its beginning, and refused in stock's words.
                    raise Stock(f"file: {failure.message}") from failure
                if failure.cls == "protocol":
                    self._corrupt(failure)
                if failure.started:
                    ended = self._unreachable(failure, in_data)
                    break
                last = attempt == TRIES + self._retries() - 1
                if failure.cls == "unsupported" and self._refuse(failure) and not last:
                    continue
                if failure.cls == "reset" and not last:
                    continue
                if failure.cls == "agent" and attempt == 0:
                    continue  # it had died since it was last used, or could not start: see whether another one can
                if failure.cls == "unreachable":
                    if not reopened and self._session is not None and self._session.final is not None:
                        reopened = True  # it had been open, and was found dead before the request began
                        continue
                    if unreached < self._retries() and not last:
                        pause(min(2**unreached - 1, 30))
                        unreached += 1
                        continue
                if failure.cls == "hostkey":
                    # Nothing was sent yet: ssh may refuse it in its own words, or ask somebody.
                    raise Stock(f"hostkey: {failure.message}") from failure
                if failure.cls == "auth" and self._may_ask(failure):
                    raise Stock("auth: somebody may answer") from failure
                if failure.cls in ("unreachable", "auth"):
                    ended = self._unreachable(failure, in_data)
                    break
                raise Stock(f"{failure.cls}: {failure.message}") from failure
        else:
            raise AssertionError("not reached")
        # Raised here and not above: what core was handling (interpreter discovery) belongs to the error it shows.
        raise ended

    def _when_not_busy(self, work: t.Callable[[Route], T], route: Route) -> T:
        """Do `work` as soon as the pool takes it: its queue for a host that reads slowly is bounded, and who comes too late waits here."""
        until = time.monotonic() + _BUSY_FOR_S
        for number in itertools.count():
            try:
                return work(route)
            except pool.PoolFailure as failure:
                if (failure.cls, failure.layer) != ("busy", "pool") or failure.started or time.monotonic() > until:
                    raise
            pause(_BUSY_PAUSES_S[min(number, len(_BUSY_PAUSES_S) - 1)])
        raise AssertionError("not reached")

    def begin(self) -> None:
        """Let the session and its login agent start now, because they will be needed soon; what goes wrong shows when they are."""
        try:
            route = self._route()
            client, session = self._open(route)
            self._login_agent(route, client, session)
        except (Stock, AnsibleError, pool.PoolFailure) as ex:
            self._log(4, f"churten: nothing started early: {ex}")

    def _open(self, route: Route) -> tuple[pool.Pool, int]:
        client = pool.Pool.get()
        spec = route.spec
        if "key" not in spec:
            try:
                spec["transport"] = route.transport
                spec["key"] = pool.spec_key(session_identity(spec))
            except runtime.RuntimeProblem as ex:
                raise pool.PoolFailure("pool", "pool", str(ex), False) from ex
        number = client.session(spec, core.inventory_address(self))
        self._session = client.opening(number)
        return client, number

    def _login_agent(self, route: Route, client: pool.Pool, session: int, interpreter: str | None = None) -> int:
        """The login agent of the session; started with `interpreter`, the likely one, or the first there is, if it is not there yet."""
        found = client.login_agent(session)
        if found is not None:
            return found.number
        for choice in (interpreter, self._interpreter):
            if choice is not None and (route.key, choice) not in _no_python:
                return client.agent(session, self._start(route, choice))
        return client.agent(session, self._start(route, None))

    def _start(self, route: Route, interpreter: str | None) -> dict[str, t.Any]:
        nonce = secrets.token_hex(16)
        return {
            "key": self._start_key(route, interpreter),
            "command": route.prefix + bootstrap.login_command(interpreter or core.interpreter_candidates(), nonce),
            "input": bootstrap.start_input(nonce),
            "nonce": nonce,
            "timeout_ms": route.timeout_ms,
        }

    def _agent_for(self, route: Route, client: pool.Pool, session: int, command: payload.Command) -> int:
        """The agent that runs modules as `command` would: its interpreter, its become account."""
        login = self._login_agent(route, client, session, command.interpreter)
        if command.become is not None:
            return self._become_agent(route, client, session, command)
        mine = client.login_agent(session)
        if mine is not None and mine.key == self._start_key(route, command.interpreter):
            return login
        if client.started(session, login).get("python") == command.interpreter:
            return login
        return client.agent(session, self._start(route, command.interpreter), login=False)

    def _start_key(self, route: Route, interpreter: str | None) -> str:
        return agent_key(interpreter or "auto", route.prefix)

    def _become_agent(self, route: Route, client: pool.Pool, session: int, command: payload.Command) -> int:
        key = pool.spec_key(
            {
                "interpreter": command.interpreter,
                "become": command.become,
                "shell": command.shell,
                "become_password": core.become_password(self),
                "prefix": route.prefix,
                "links": 1,
                "run": _RUN,
            }
        )
        if (route.key, key) in _refused:
            raise Stock(_refused[route.key, key])
        nonce = secrets.token_hex(16)
        built = core.build_become(self, bootstrap.sub_command(command.interpreter))
        number = client.agent(
            session,
            {
                "key": key,
                "command": built.command,
                "input": bootstrap.start_input(nonce),
                "nonce": nonce,
                "timeout_ms": route.timeout_ms,
                "alive_ms": int(route.spec.get("alive_interval_ms") or pool.ALIVE_MS) * int(route.spec.get("alive_count") or pool.ALIVE_COUNT),
                "become_prompt": built.prompt,
                "become_password": built.password,
                "become_success": built.success,
                "become_wrong": built.wrong,
                "become_missing": built.missing,
            },
            login=False,
        )
        try:
            client.started(session, number)
        except pool.PoolFailure as failure:
            self._become_failed(route, key, failure)
        return number

    def _become_failed(self, route: Route, key: str, failure: pool.PoolFailure) -> t.NoReturn:
        """Turn the failure to start an agent with become into what the built-in plugin says, or into the stock way."""
        name = self.become.name  # type: ignore[attr-defined]
        if failure.cls == "become_password_wrong":
            raise AnsibleError(f"Incorrect {name} password") from None
        # "A password is required" may also mean that sudoers allow the built-in plugin's command and not this one: let that one ask, too.
        if failure.cls in ("become", "become_password_missing", "no_python", "agent", "protocol"):
            _refused[route.key, key] = f"become started no agent: {failure.message}"
            raise Stock(_refused[route.key, key]) from failure
        raise failure

    def _run_module(
        self, route: Route, module: payload.Module, command: payload.Command, cmd: str, in_data: bytes
    ) -> Result:
        client, session = self._open(route)
        if self.is_without_python(route, command):
            return self._exec(route, client, session, pool.NO_AGENT, cmd, in_data)
        try:
            agent = self._agent_for(route, client, session, command)
            if changes_accounts(module.fqn, module.params):
                self._settle()
                client.started(session, agent)
                client.end_agents(session, agent)
            # The first module goes out with the agent that is to run it: nobody waits for its HELLO.
            items = module.payload(client.magic(session, agent, command.interpreter) or payload.MAGIC)
            body: list[str | bytes] = [items[0], module.fqn, module.params, module.profile, "\0".join(command.env)]
            stays = "1" if module.stays() and self.get_option("churten_standing") else ""  # type: ignore[attr-defined]
            known = digests.known(module.fqn, module.params) if stays else b""
            body += [str(module.rlimit_nofile), "0", module.form, module.secrets, "", stays, known]
            self._log(3, f"churten: RUN {module.fqn} on agent {agent} ({route.transport})")
            reply = self._call_module(route, client, (session, agent), module, body, items)
            return _as_shell(self._result(reply), reply)
        except pool.PoolFailure as failure:
            if failure.cls != "no_python" or failure.started:
                raise
            if command.become is not None:
                raise Stock("no Python for an agent on the target") from failure
            # An old Python, or none: the target's own shell has the right words for it.
            _no_python.add((route.key, command.interpreter))
            return self._exec(route, client, session, pool.NO_AGENT, cmd, in_data)

    def _call_module(
        self, route: Route, client: pool.Pool, where: tuple[int, int], module: payload.Module, body: list[str | bytes], items: t.Any
    ) -> pool.Reply:
        chain = self.chain
        if chain is None:
            return client.call(pool.RUN, *where, body, payload=items, early=True)
        client.started(*where)
        removal = chain.removal(module.fqn, module.params)
        chain.ran(module.fqn, module.params)
        reply, removed = chain.ask(client, route.key, where, pool.RUN, body, payload=items, removal=removal)
        if removed:
            self._removed = removal
        return reply

    def _run_command(self, route: Route, cmd: str, in_data: bytes | None) -> Result:
        client, session = self._open(route)
        agent = self._command_agent(route, client, session)
        if changes_accounts("", to_bytes(cmd, errors="surrogate_or_strict")):
            self._settle()
            client.end_agents(session, agent)
        said = "(hidden by no_log)" if core.no_log(self) else cmd
        self._log(3, f"churten: EXEC on agent {agent} ({route.transport}): {said}")
        return self._exec(route, client, session, agent, cmd, in_data)

    def _command_agent(self, route: Route, client: pool.Pool, session: int) -> int:
        """The login agent, or none where it cannot start: a command needs no Python."""
        tried = None
        while (route.key, "auto") not in _no_python or client.login_agent(session) is not None:
            agent = self._login_agent(route, client, session)
            try:
                client.started(session, agent)
                return agent
            except pool.PoolFailure as failure:
                if failure.cls not in ("no_python", "agent") or failure.started:
                    raise
                hint = self._interpreter
                tried = hint if hint is not None and (route.key, hint) not in _no_python else "auto"
                self._log(3, f"churten: no agent with {tried} for commands: {failure.message}")
                _no_python.add((route.key, tried))
        return pool.NO_AGENT

    def _free_accounts(self, cmd: str) -> None:
        """Before a command that goes the stock way: no agent is left of an account that it may remove."""
        if not changes_accounts("", to_bytes(cmd, errors="surrogate_or_strict")):
            return
        try:
            client, session = self._open(self._route())
            if client.end_agents(session, 0):
                client.call(pool.EXEC, session, 0, [":", "", "0", "null", "sh"], deadline_s=10.0)
        except (Stock, AnsibleError, pool.PoolFailure) as ex:
            self._log(4, f"churten: agents are not ended: {ex}")

    def _exec(self, route: Route, client: pool.Pool, session: int, agent: int, cmd: str, in_data: bytes | None) -> Result:
        body = [cmd, "", "0", "data" if in_data else "null", "login"]
        chain = self.chain
        if chain is not None and agent != pool.NO_AGENT and not in_data:
            where = session, agent
            foretold = chain.foretell(route.key, cmd)
            if foretold is not None:
                answer, home, folder = foretold
                chain.put(client, route.key, where, pool.EXEC, body, answer, home=home, folder=folder)
                return answer
            result = self._result(chain.ask(client, route.key, where, pool.EXEC, body)[0])
            chain.learn(route.key, cmd, result)
            return result
        self._settle()
        return self._result(client.call(pool.EXEC, session, agent, body, stdin=payload.program(in_data) or None))

    def _result(self, reply: pool.Reply) -> Result:
        # A command that a signal ended has no exit status; ssh reports 255 and the message of the signal.
        rc = reply.rc if reply.rc >= 0 else 128 + reply.signal
        self._log(
            3,
            f"churten: rc={rc} stdout={len(reply.stdout)} stderr={len(reply.stderr)} bytes, {reply.run_us} us on the target",
        )
        return rc, reply.stdout, reply.stderr

    # --- words ---

    def _log(self, level: int, text: str) -> None:
        if display.verbosity >= level:
            (display.vvv if level == 3 else display.vvvv)(text, host=self._host())

    def _log_stock(self, why: Stock) -> None:
        self._log(3, f"churten: the stock way: {why}")

    def _warn_pool(self, failure: pool.PoolFailure) -> None:
        if "pool" not in _warned:
            _warned.add("pool")
            display.warning(f"churten: connections are not accelerated: {failure.message}")


class RemoteFiles:
    """put_file and fetch_file through the login agent; mixed in beside WarmConnection."""

    takes_chains = True  # see compat/chains.py

    def put_file(self: t.Any, in_path: str, out_path: str) -> t.Any:
        """Copy a file to the target."""
        stock = super().put_file  # type: ignore[misc]
        self._establish()
        self._hand_over()
        try:
            if core.is_windows_shell(self):
                raise Stock("not a POSIX shell")
            display.vvv(f"PUT {in_path} TO {out_path}", host=self._host())
            local = to_bytes(in_path, errors="surrogate_or_strict")
            if not os.path.exists(local):
                raise AnsibleFileNotFound(f"file or module does not exist: {to_native(in_path)}")
            return self._attempt(lambda route: self._put(route, local, out_path), None)
        except Stock as ex:
            self._log_stock(ex)
        self._settle()
        with stamps.foreign():
            return waiting.blocking(lambda: stock(in_path, out_path))

    def _put(self: t.Any, route: Route, local: bytes, out_path: str) -> Result:
        try:
            with open(local, "rb") as file:
                return self._put_open(route, file, out_path)
        except OSError as ex:
            raise Stock(f"cannot read the file: {ex.strerror}") from ex

    def _put_open(self: t.Any, route: Route, file: t.BinaryIO, out_path: str) -> Result:
        found = os.fstat(file.fileno())
        client, session = self._open(route)
        agent = self._file_agent(route, client, session)
        # sftp gives a new file the permissions of the local one, less the umask.
        body = [out_path, f"~{found.st_mode & 0o777:o}", str(found.st_size)]
        if self.chain is not None:
            if self.chain.may_put(route.key, out_path, found.st_size):
                data = file.read(found.st_size)
                if len(data) == found.st_size:
                    self.chain.put(client, route.key, (session, agent), pool.PUT, body, (0, b"", b""), stdin=data)
                    self._connected = True
                    return 0, b"", b""
                file.seek(0)
            self._settle()
        stdin = source(file, found)
        if isinstance(stdin, pool.Whole) and waiting.current() is not None:
            digests.sending(file, found)
        reply = client.call(pool.PUT, session, agent, body, stdin=stdin)
        if reply.rc != 0:
            raise Stock(f"put: {to_text(reply.stderr)}")
        self._connected = True
        return 0, reply.stdout, reply.stderr

    def fetch_file(self: t.Any, in_path: str, out_path: str) -> t.Any:
        """Copy a file from the target."""
        stock = super().fetch_file  # type: ignore[misc]
        self._establish()
        self._hand_over()
        try:
            if core.is_windows_shell(self):
                raise Stock("not a POSIX shell")
            display.vvv(f"FETCH {in_path} TO {out_path}", host=self._host())
            self._settle()
            return self._attempt(lambda route: self._fetch(route, in_path, out_path), None)
        except Stock as ex:
            self._log_stock(ex)
        with stamps.foreign():
            return waiting.blocking(lambda: stock(in_path, out_path))

    def _fetch(self: t.Any, route: Route, in_path: str, out_path: str) -> Result:
        client, session = self._open(route)
        agent = self._file_agent(route, client, session)
        with LateFile(to_bytes(out_path, errors="surrogate_or_strict")) as file:
            reply = client.call(pool.FETCH, session, agent, [in_path], sink=file.write)
            if reply.rc != 0:
                raise Stock(f"fetch: {to_text(reply.stderr)}")
            try:
                mode = int(reply.stdout or b"666", 8)
            except ValueError:
                raise pool.PoolFailure("protocol", "agent", "the target sent a mode that is none", True) from None
            file.complete(mode)
        self._connected = True
        return 0, b"", b""

    def _file_agent(self: t.Any, route: Route, client: pool.Pool, session: int) -> int:
        agent = int(self._command_agent(route, client, session))
        if agent == pool.NO_AGENT:
            raise Stock("no Python for an agent on the target")
        return agent


def source(file: t.BinaryIO, found: os.stat_result) -> pool.Source:
    """A file of that size from its beginning. A large one the pool reads itself, if it can do so without waiting for a disk or a server."""
    if found.st_size > pool.WINDOW_BYTES and stat.S_ISREG(found.st_mode):
        with contextlib.suppress(OSError, AttributeError):
            with contextlib.suppress(BlockingIOError):  # it could, and will wait
                os.preadv(file.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT)
            return pool.Whole(file.fileno(), found.st_size)
    return Beginning(file, found.st_size)


class Beginning:
    """The first `size` bytes of a file that may be growing."""

    def __init__(self, file: t.BinaryIO, size: int):
        self.file = file
        self.left = size

    def read(self, most: int) -> bytes:
        chunk = self.file.read(min(most, self.left))
        self.left -= len(chunk)
        return chunk


class LateFile:
    """A local file that changes only when everything for it has come: until then the bytes are in a new file beside it.

    What is no plain file, or lies where no other file can be made, is written as it comes.
    """

    def __init__(self, path: bytes):
        self.path = path
        self.file: t.BinaryIO | None = None
        self.beside: bytes | None = None
        self.is_new = False

    def __enter__(self) -> LateFile:
        return self

    def __exit__(self, *details: object) -> None:
        if self.file is not None:
            self.file.close()
        if self.beside is not None:
            with contextlib.suppress(OSError):
                os.unlink(self.beside)

    def write(self, chunk: bytes) -> None:
        self._opened().write(chunk)

    def _opened(self) -> t.BinaryIO:
        if self.file is None:
            self.is_new = not os.path.lexists(self.path)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            # Until its permissions are known a new file is for its owner alone.
            if self.is_new or (os.path.isfile(self.path) and os.access(self.path, os.W_OK)):
                name = os.path.join(os.path.dirname(self.path), b".churten-" + secrets.token_hex(8).encode())
                with contextlib.suppress(OSError):
                    self.file = open(os.open(name, flags | os.O_EXCL, 0o600), "w+b")  # noqa: SIM115
                    self.beside = name
            if self.file is None:
                flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
                self.file = open(os.open(self.path, flags, 0o600), "wb")  # noqa: SIM115
        return self.file

    def complete(self, mode: int) -> None:
        """The file is there even if it is empty. Like sftp, a new one gets the permissions of the original, less the umask."""
        file = self._opened()
        if self.is_new:
            os.fchmod(file.fileno(), mode & 0o777 & ~core.umask())
        if self.beside is None:
            return
        if self.is_new:
            file.flush()
            os.rename(self.beside, self.path)
            self.beside = None
            return
        # An old one stays the file it is: its links, owner and permissions are somebody's choice.
        file.seek(0)
        with open(os.open(self.path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC), "wb") as old:
            shutil.copyfileobj(file, old, 1 << 20)


_ACCOUNT_TOOLS = late.pattern(rb"\b(?:userdel|usermod|deluser)\b")


def changes_accounts(fqn: str, text: bytes) -> bool:
    """Whether a module or command may remove or rename an account: the tools refuse that while a process of the account lives, as an agent would."""
    return fqn == "ansible.modules.user" or _ACCOUNT_TOOLS.search(text) is not None


@functools.lru_cache(maxsize=256)
def agent_key(interpreter: str, prefix: str) -> str:
    """The key of a login agent."""
    return pool.spec_key({"interpreter": interpreter, "prefix": prefix, "links": 1, "stays": 1, "jobs": 1})


def session_identity(spec: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """The part of a session spec that makes it another session: not how long to wait or to keep it."""
    out = {k: v for k, v in spec.items() if k not in ("timeout_ms", "idle_ms", "alive_interval_ms", "alive_count")}
    if isinstance(out.get("argv"), list):
        words: list[str] = []
        for word in out["argv"]:
            if words and words[-1] == "-o" and word.startswith(("ConnectTimeout=", "ControlPath=")):
                words.pop()
            else:
                words.append(word)
        out["argv"] = words
    return out


def pause(seconds: float) -> None:
    """Sleep, as a fiber if this is one."""
    if seconds <= 0:
        return
    if waiting.current() is None:
        time.sleep(seconds)
        return
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        waiting.park(until)


def _as_shell(result: Result, reply: pool.Reply) -> Result:
    """A module that a signal ended: the shell that would have run it says so on stderr (as dash does)."""
    if reply.rc >= 0 or reply.signal in (signal.SIGINT, signal.SIGPIPE):
        return result
    rc, stdout, stderr = result
    return rc, stdout, stderr + (signal.strsignal(reply.signal) or "").encode() + b"\n"


def unreachable(message: str) -> AnsibleConnectionFailure:
    return AnsibleConnectionFailure(message)
