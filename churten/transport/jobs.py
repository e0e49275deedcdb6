# SPDX-License-Identifier: GPL-3.0-or-later
"""Starts of asynchronous jobs that an agent makes.

Core puts two programs into a temporary folder of the target, the module's and that of its own module `async_wrapper`, permits their execution, and starts the
second with the path of the first. While one of core's actions does that over one of our connections, nothing of it is sent (`Held`, filled by
compat/modules.py) until the command comes that starts the job: if that is exactly the one core writes for these two programs, an agent runs `async_wrapper`
and, for it, the module (churten/agent/jobs.py). For anything else, and when the agent cannot, what was held is done as core wanted it and in its words, and
the command goes its usual way.

Core's command runs on a terminal, so a job's environment is that of a command on a terminal: TERM, SSH_TTY, and whatever the account's shell makes of it. It
is asked for once per agent, by a command on a terminal (`SURROUNDINGS`), and travels with each job.
"""

from __future__ import annotations

import os
import secrets
import shlex
import typing as t

from churten.compat import connection as core
from churten.transport import payload, pool
from churten.transport.warm import Result, Route, Stock, WarmConnection, changes_accounts

SURROUNDINGS = "echo {0}; umask; cat /proc/self/limits; echo {0}; cat /proc/self/environ"
KEPT = 20_000


class Surroundings(t.NamedTuple):
    """What a process of the account finds on a terminal; see RUN's `job` in docs/protocol.md. Empty: what the agent found."""

    umask: bytes = b""
    limits: bytes = b""
    environ: bytes = b""


_surroundings: dict[tuple[str, str, str], Surroundings] = {}  # (session key, agent, TERM)


class Held(t.NamedTuple):
    """What core has done for the start of a job, by its account, and we have not."""

    interpreter: str  # of the module
    programs: dict[str, payload.Module]  # path on the target -> what it runs
    steps: list[t.Callable[[], object]]  # how to do it after all


class Start(t.NamedTuple):
    """A command that starts a job: how its interpreter is started, the module with async_wrapper in its archive, and the words for async_wrapper."""

    command: payload.Command
    job: payload.Module
    wrapper_profile: str
    words: list[str]


_unable: dict[tuple[str, str, str | None], str] = {}  # (session key, interpreter, become command) -> why its agent starts no jobs


class JobConnection(WarmConnection):
    """Mixin for a connection whose agents start jobs."""

    takes_jobs = True
    _held: Held | None = None

    def hold(self, path: str, module: payload.Module, interpreter: str, step: t.Callable[[], object]) -> None:
        """A program that is to be put at `path`; `interpreter`: the one of the module of which the job will be."""
        if self._held is None:
            self._held = Held(interpreter, {}, [])
        self._held.programs[path] = module
        self._held.steps.append(step)

    def hold_permission(self, paths: t.Collection[str], step: t.Callable[[], object]) -> bool:
        """Permission to execute what is held, and to enter its folder; False: it is about something else."""
        held = self._held
        known = {path.rstrip("/") for path in paths}
        if held is None or not held.programs.keys() <= known <= held.programs.keys() | {os.path.dirname(path) for path in held.programs}:
            return False
        held.steps.append(step)
        return True

    def drop_held(self) -> None:
        self._held = None

    def _hand_over(self) -> None:
        held, self._held = self._held, None
        for step in held.steps if held is not None else ():
            step()

    def _job_work(self, cmd: str, in_data: bytes | None, sudoable: bool) -> t.Callable[[Route], Result] | None:
        held = self._held
        if held is None:
            return None
        start = None if in_data or not sudoable else self._job_start(cmd, held)
        if start is None:
            self._hand_over()
            return None

        def work(route: Route) -> Result:
            try:
                result = self._start_job(route, start)
                self._held = None
                return result
            except Stock as ex:
                self._log_stock(ex)
            self._hand_over()
            return self._work(cmd, in_data, sudoable)(route)

        return work

    def _job_start(self, cmd: str, held: Held) -> Start | None:
        """What `cmd` starts of what is held; None if it is something else."""
        become_id = core.become_id(self)
        is_become = bool(become_id) and become_id in cmd
        found = payload.unwrap_job(cmd, become_id if is_become else "")
        if found is None or (found[0].become is not None) != is_become:
            return None
        command, words = found
        path = words[3] if len(words) == 5 else words[4]
        wrapper, module = held.programs.get(words[0]), held.programs.get(path)
        if wrapper is None or module is None or len(held.programs) != 2 or words[0] == path or held.interpreter != command.interpreter:
            return None
        job = payload.with_wrapper(module, wrapper)
        return None if job is None else Start(command, job, wrapper.profile, words)

    def _start_job(self, route: Route, start: Start) -> Result:
        """Raises Stock for what an agent cannot do, and remembers that."""
        command = start.command
        key = route.key, command.interpreter, command.become
        if key in _unable:
            raise Stock(_unable[key])
        try:
            return self._send_job(route, start)
        except pool.PoolFailure as failure:
            if failure.started or failure.cls not in ("unsupported", "no_python"):
                raise
            _unable[key] = f"no job by an agent: {failure.message}"
            raise Stock(_unable[key]) from failure

    def _send_job(self, route: Route, start: Start) -> Result:
        command, job = start.command, start.job
        on_terminal = self._wants_terminal()
        self._check_become(command)
        if command.become is not None and self.become.expect_prompt():  # type: ignore[attr-defined]
            raise Stock("a become command that may ask for a password")
        farewell = self._farewell(route) if on_terminal else ""
        self._settle()
        client, session = self._open(route)
        if self.is_without_python(route, command):
            raise Stock("no Python for an agent on the target")
        agent = self._agent_for(route, client, session, command)
        info = client.started(session, agent)
        if info.get("platform") != "linux":
            raise Stock("a job, and the target is not known to be Linux")
        if changes_accounts(job.fqn, job.params):
            client.end_agents(session, agent)
        around = self._look_around(route, client, session, command, info) if on_terminal else Surroundings()
        items = job.payload(client.magic(session, agent, command.interpreter) or payload.MAGIC)
        body: list[str | bytes] = [items[0], job.fqn, job.params, job.profile, "\0".join(command.env)]
        body += [str(job.rlimit_nofile), "0", job.form, job.secrets, "", "", ""]
        body.append(client.pack(["job", start.wrapper_profile, *around, *start.words]))
        said = "(hidden by no_log)" if core.no_log(self) else " ".join(start.words)
        self._log(3, f"churten: JOB {job.fqn} on agent {agent} ({route.transport}): {said}")
        reply = client.call(pool.RUN, session, agent, body, payload=items)
        self._log(3, f"churten: rc={reply.rc} stdout={len(reply.stdout)} stderr={len(reply.stderr)} bytes, {reply.run_us} us on the target")
        if not on_terminal:
            return reply.rc if reply.rc >= 0 else 128 + reply.signal, reply.stdout, reply.stderr
        # What a terminal and its ssh client would have made of it.
        return reply.rc if reply.rc >= 0 else 255, (reply.stdout + reply.stderr).replace(b"\n", b"\r\n"), farewell.encode()

    def _farewell(self, route: Route) -> str:
        """What ssh says when it leaves a terminal; raises Stock where commands get no terminal of the session."""
        raise Stock("the built-in plugin gives it a terminal")

    def _look_around(self, route: Route, client: pool.Pool, session: int, command: payload.Command, info: t.Mapping[str, str]) -> Surroundings:
        key = route.key, f"{info.get('pid')} {info.get('uid')}", os.environ.get("TERM", "")
        found = _surroundings.get(key)
        if found is None:
            if len(_surroundings) > KEPT:
                _surroundings.clear()
            found = _surroundings[key] = self._ask_around(client, session, command)
        return found

    def _ask_around(self, client: pool.Pool, session: int, command: payload.Command) -> Surroundings:
        mark = f"CHURTEN-{secrets.token_hex(16)}"
        inner = f"{command.shell} -c {shlex.quote(SURROUNDINGS.format(mark))}"
        if command.become is not None:
            inner = f"/bin/sh -c {shlex.quote(f'{command.become} {inner}')}"
        body = [inner, f"TERM={os.environ.get('TERM', '')}", "0", "terminal", "login"]
        try:
            reply = client.call(pool.EXEC, session, pool.NO_AGENT, body, deadline_s=30.0)
        except pool.PoolFailure as failure:
            if failure.cls != "cancelled":
                raise
            raise Stock("a terminal does not say its surroundings") from failure
        parts = reply.stdout.replace(b"\r\n", b"\n").split(mark.encode() + b"\n")
        if reply.rc != 0 or reply.stderr or len(parts) != 3 or not parts[2].endswith(b"\0"):
            raise Stock("a terminal says something else than its surroundings")
        umask, _, limits = parts[1].partition(b"\n")
        return Surroundings(umask.strip(), limits, parts[2])
