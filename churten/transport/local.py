"""The class behind churten.core.local: modules for the controller itself run in an agent that looks exactly like a child of this process.

The pool may have been started elsewhere, so the agent gets this process's environment and directory, sets its umask, and refuses to work if its
credentials or limits are others than ours; then, and for everything but modules and plain commands, the built-in plugin does the work.
"""

from __future__ import annotations

import os
import re
import shlex
import typing as t

from ansible.plugins.connection.local import Connection as StockConnection

from churten.compat import connection as core
from churten.transport import payload, pool
from churten.transport.warm import Result, Route, Stock, WarmConnection, unreachable

START_TIMEOUT_S = 10
# Lines of /proc/self/status and /proc/self/limits that make a process another one for what it runs.
_SAME = "^(Uid|Gid|Groups|CapEff|CapBnd|NoNewPrivs|Max (cpu|[abd-z]))"
_broken: dict[str, str] = {}  # route key -> why its agent does not start


class LocalConnection(WarmConnection, core.OwnVariables, StockConnection):
    """See `plugins/connection/local.py`."""

    transport = "local"  # action plugins ask for this name

    def _route(self) -> Route:
        if self.get_option("churten_transport") == "stock":
            raise Stock("churten_transport is stock")
        shell = core.default_executable().split()[0]
        if not os.access(shell, os.X_OK):
            raise Stock(f"no executable {shell}")
        cwd = os.fsdecode(self.cwd) if self.cwd else os.getcwd()
        umask, same = process_state()
        spec: dict[str, t.Any] = {
            "transport": "local",
            "argv": [shell, "-c"],
            "cwd": cwd,
            "env": [f"{k}={v}" for k, v in sorted(os.environ.items())],
        }
        prefix = f'umask {umask}; [ "$(grep -hE {shlex.quote(_SAME)} /proc/self/status /proc/self/limits)" = {shlex.quote(same)} ] || exit 97; '
        route = Route(spec, "local", START_TIMEOUT_S, prefix)
        spec["key"] = pool.spec_key(spec, prefix)
        if route.key in _broken:
            raise Stock(_broken[route.key])
        return route

    def _work(self, cmd: str, in_data: bytes | None, sudoable: bool) -> t.Callable[[Route], Result]:
        become = self.become
        if sudoable and become and become.expect_prompt() and not self.get_option("pipelining"):
            raise Stock("the built-in plugin gives it a terminal")
        return super()._work(cmd, in_data, sudoable)

    def _become_work(self, cmd: str, in_data: bytes | None) -> t.Callable[[Route], Result]:
        raise Stock("a become command that is not a module")

    def _become_failed(self, route: Route, key: str, failure: pool.PoolFailure) -> t.NoReturn:
        # The built-in plugin has long sentences about this, with the output; let it try and say them.
        if failure.cls == "become_password_wrong":
            failure = pool.PoolFailure("become", failure.layer, failure.message, failure.started)
        super()._become_failed(route, key, failure)

    def _agent_for(self, route: Route, client: pool.Pool, session: int, command: payload.Command) -> int:
        agent = super()._agent_for(route, client, session, command)
        try:
            client.started(session, agent)
        except pool.PoolFailure as failure:
            if failure.cls in ("agent", "no_python", "unsupported"):
                _broken[route.key] = f"no agent on the controller: {failure.message}"
            raise
        return agent

    def _unreachable(self, failure: pool.PoolFailure, in_data: bytes | None) -> Exception:
        return unreachable(f"The local agent is gone: {failure.message}")


def process_state() -> tuple[str, str]:
    """This process's umask (octal) and the lines that a child must share."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        status = file.read()
    with open("/proc/self/limits", encoding="ascii", errors="replace") as file:
        limits = file.read()
    umask = re.search(r"^Umask:\s*([0-7]+)$", status, re.MULTILINE)
    if umask is None:
        raise Stock("the kernel does not tell the umask")
    return umask.group(1), "\n".join(line for line in (status + limits).splitlines() if re.match(_SAME, line))
