"""The class behind churten.core.ssh: the built-in ssh plugin, with its work done by the pool's sessions and agents wherever that comes out the same."""

from __future__ import annotations

import os
import re
import typing as t

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.module_utils.common.text.converters import to_bytes, to_native
from ansible.plugins.connection.ssh import Connection as StockConnection
from ansible.utils.display import Display

from churten import late, waiting
from churten.compat import connection as core
from churten.compat import terminal
from churten.transport import options, pool
from churten.transport.jobs import JobConnection
from churten.transport.warm import RemoteFiles, Result, Route, Stock, WarmConnection, changes_accounts

display = Display()

REQUESTS_KEPT = 20_000
_requests: dict[tuple[object, ...], options.Request] = {}


class SshConnection(RemoteFiles, JobConnection, core.TerminalMemo, terminal.GivenResult, core.OwnVariables, StockConnection):  # type: ignore[has-type]
    """See `plugins/connection/ssh.py`."""

    transport = "ssh"  # action plugins ask for this name

    def _host(self) -> str:
        return core.remote_address(self)

    def _request(self) -> options.Request:
        """What decides how the host is reached; made once for connections with the same options."""
        key = core.option_values(self)
        found = _requests.get(key) if key is not None else None
        if found is None:
            found = self._make_request()
            if key is not None:
                if len(_requests) > REQUESTS_KEPT:
                    _requests.clear()
                _requests[key] = found
        return found

    def _make_request(self) -> options.Request:
        if core.option(self, "private_key", None):
            raise Stock("private_key is put into an ssh-agent by the built-in plugin")
        if core.option(self, "pkcs11_provider", ""):
            raise Stock("pkcs11_provider")
        password = core.ssh_password(self)
        if password and core.option(self, "password_mechanism", "sshpass") == "disable":
            raise Stock("password_mechanism is disable")
        host = core.remote_address(self)
        argv, own_control_path = core.ssh_arguments(self, host)
        return options.Request(argv, host, password, own_control_path, str(self.get_option("churten_transport")))

    def _route(self) -> Route:
        self.host = core.remote_address(self)
        request = self._request()
        plan = options.plan(request)
        if plan.transport == "stock":
            raise Stock("; ".join(plan.reasons))
        if plan.reasons:
            if request.wanted == "libssh":
                raise AnsibleError(
                    f"churten_transport is libssh, but this host needs an OpenSSH client: {'; '.join(plan.reasons)}"
                )
            self._log(4, f"churten: transport {plan.transport}: {'; '.join(plan.reasons)}")
        self._plan = plan
        return Route(plan.spec, plan.transport, int(self.get_option("timeout")) + 2)

    def _refuse(self, failure: pool.PoolFailure) -> bool:
        request = self._request()
        transport = "ssh" if options.plan(request).transport == "libssh" else "stock"
        self._log(3, f"churten: from now on by {transport}: {failure.message}")
        options.refuse(request, transport, failure.message)
        return True

    def _corrupt(self, failure: pool.PoolFailure) -> None:
        request = self._request()
        if options.plan(request).transport != "stock":
            options.refuse(request, "stock", failure.message)
            display.warning(
                f"churten: {self._host()}: something on the target writes into the agent's output ({failure.message}); "
                "this host is reached by the built-in plugin from now on."
            )

    def _retries(self) -> int:
        return int(self.get_option("reconnection_retries"))

    def _may_ask(self, failure: pool.PoolFailure) -> bool:
        return self._plan.asks_tty and has_terminal()

    def _wants_terminal(self) -> bool:
        return bool(core.option(self, "use_tty", True))

    def _farewell(self, route: Route) -> str:
        """What ssh says when it leaves a terminal; raises Stock where a terminal of the session is not as one that ssh would have made."""
        farewell = self._plan.farewell
        if route.transport != "libssh" or farewell is None or terminal.is_ssh_verbose(self):
            raise Stock("the built-in plugin gives it a terminal")
        if any(item.startswith("TERM=") for item in route.spec.get("env", ())):
            raise Stock("TERM is sent twice")
        return str(farewell)

    def _run_on_terminal(self, route: Route, cmd: str) -> Result:
        farewell = self._farewell(route)
        self._settle()
        client, session = self._open(route)
        agent = self._command_agent(route, client, session)
        if agent == pool.NO_AGENT or client.started(session, agent).get("platform") != "linux":
            # Modes travel with the request for a terminal; libssh 0.10 sends none. Linux makes the ones a controller would send.
            raise Stock("a terminal, and the target is not known to be Linux")
        if changes_accounts("", to_bytes(cmd, errors="surrogate_or_strict")):
            client.end_agents(session, agent)
        said = "(hidden by no_log)" if core.no_log(self) else cmd
        self._log(3, f"churten: EXEC on a terminal ({route.transport}): {said}")
        body = [cmd, f"TERM={os.environ.get('TERM', '')}", "0", "terminal", "login"]
        try:
            reply = client.call(pool.EXEC, session, pool.NO_AGENT, body)
        except pool.PoolFailure as failure:
            if failure.cls == "unsupported" and not failure.started:
                raise Stock(f"no terminal: {failure.message}") from failure
            raise
        # Whatever ends a command but its own exit is 255 for ssh.
        rc = reply.rc if reply.rc >= 0 else 255
        self._log(3, f"churten: rc={rc} stdout={len(reply.stdout)} bytes, {reply.run_us} us")
        return self._as_stock(cmd, (rc, reply.stdout, reply.stderr + farewell.encode()))

    def _as_stock(self, cmd: str, result: Result) -> Result:
        """The built-in plugin's judgement of what its client would have brought: retries, become, 255."""
        stock = super(WarmConnection, self).exec_command
        self.given = result

        def judge() -> Result:
            try:
                return t.cast(Result, stock(cmd, in_data=None, sudoable=True))
            finally:
                self.given = None  # it may have failed before it looked

        # 255 may make it try again, with a client of its own.
        return waiting.blocking(judge) if result[0] == 255 else judge()

    def _unreachable(self, failure: pool.PoolFailure, in_data: bytes | None) -> Exception:
        text = ssh_words(failure, self._plan.spec)
        if in_data:
            # ssh ends its lines so; core 2.19 and later strip it, here as there.
            text = text.rstrip() + "\r\n"
            return AnsibleConnectionFailure(
                f'Data could not be sent to remote host "{self.host}". Make sure this host can be reached over ssh: {text}'
            )
        if core.no_log(self):
            text = "<error censored due to no log>"
        return AnsibleConnectionFailure(f"Failed to connect to the host via ssh: {to_native(text).rstrip()}")

    def reset(self) -> None:
        """Drop the session, and the ControlMaster the built-in plugin may have."""
        try:
            request = self._request()
            route = self._route()
            options.forget(request)
            client, session = self._open(route)
            client.reset(session)
        except (Stock, AnsibleError) as ex:
            self._log(3, f"churten: no session to reset: {ex}")
        except pool.PoolFailure as failure:
            self._log(3, f"churten: no session to reset: {failure.message}")
        stock = super().reset
        waiting.blocking(stock)
        self._connected = False

    def close(self) -> None:
        """The session stays: the pool keeps it for the next task and the next run."""
        super().close()


def has_terminal() -> bool:
    """Whether an ssh client of ours could ask somebody."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


_SSH_WORDS = late.pattern(
    r"ssh: |.*Permission denied|.*Host key verification failed|Connection (to|closed by|reset by \d)|Received disconnect", re.DOTALL
)


def ssh_words(failure: pool.PoolFailure, spec: t.Mapping[str, t.Any]) -> str:
    """The failure as OpenSSH's client words it, so far as it has words for it."""
    text = failure.message
    if _SSH_WORDS.match(text):
        return text
    host, port, user = spec.get("host", ""), spec.get("port", ""), spec.get("user", "")
    if failure.layer == "dns":
        return f"ssh: Could not resolve hostname {host}: {text}"
    if failure.layer == "tcp":
        return f"ssh: connect to host {host} port {port}: {text}"
    if failure.cls == "auth":
        return f"{user}@{host}: Permission denied ({','.join(spec.get('auth', []))}). {text}"
    if failure.cls == "hostkey":
        return f"{text}\r\nHost key verification failed."
    return text
