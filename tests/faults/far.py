# SPDX-License-Identifier: GPL-3.0-or-later
"""A real sshd, reached through the pool's libssh sessions (Far.open, Far.start) or by playbooks (Far.line): what the network rows have in common."""

from __future__ import annotations

import shlex
import sys
import tempfile
from pathlib import Path

from sshds import USER, Server, keygen
from talking import NO_AGENT, NONCE, OPEN, OPENED, START, STARTED

from churten.transport import bootstrap

AGENT = {"ANSIBLE_STRATEGY": "churten.core.free"}
ALIVE = {"alive_interval_ms": 15000, "alive_count": 3}


class Far:
    """One sshd with a key of ours in it. `at` is where it is reached: its own address, or a chaos proxy in front of it."""

    def __init__(self, top: Path, host: str = "127.0.0.81", extra: str = "", pam: str = "no"):
        self.dir = Path(tempfile.mkdtemp(dir=top, prefix=host))
        self.dir.chmod(0o755)
        self.server = Server(self.dir, host, extra, pam)
        self.key = keygen(self.dir / "id")
        (self.dir / "authorized").write_text(Path(f"{self.key}.pub").read_text())
        self.known = self.dir / "known_hosts"
        self.known.write_text(self.server.host_line("*") + "\n")

    @property
    def address(self) -> tuple[str, int]:
        return self.server.host, self.server.port

    def stop(self) -> None:
        self.server.stop()

    # --- playbooks ---

    def line(self, name: str, at=None, args: str = "", **more: object) -> str:
        """An inventory line."""
        host, port = (at.host, at.port) if at is not None else self.address
        words = {
            "ansible_host": host,
            "ansible_port": port,
            "ansible_user": USER,
            "ansible_ssh_private_key_file": self.key,
            "ansible_ssh_common_args": f"-o UserKnownHostsFile={self.known} -o GlobalKnownHostsFile=/dev/null {args}".strip(),
            "ansible_python_interpreter": sys.executable,
            **more,
        }
        return " ".join([name, *(f"{k}={shlex.quote(str(v))}" for k, v in words.items() if v is not None)])

    # --- the pool ---

    def open(self, talk, session: int = 1, at=None, key: str = "", **more: object) -> int:
        host, port = (at.host, at.port) if at is not None else self.address
        spec: dict[str, object] = {
            "key": key or f"{host}-{session}",
            "name": f"far{session}",
            "transport": "libssh",
            "host": host,
            "port": port,
            "user": USER,
            "timeout_ms": 10000,
            "identity_file": self.key,
            "auth": "publickey",
            "host_key_checking": "yes",
            "known_hosts": self.known,
            **more,
        }
        items = []
        for name, value in spec.items():
            for one in value if isinstance(value, (list, tuple)) else [value]:
                items += [name, str(one)]
        return talk.send(OPEN, session, 0, items)

    def start(self, talk, session: int = 1, timeout_ms: int = 30000, prefix: str = "") -> int:
        """The real agent."""
        command = prefix + bootstrap.login_command(sys.executable, NONCE)
        items: list = ["key", "a" + prefix, "command", command, "nonce", NONCE, "input", bootstrap.start_input(NONCE)]
        return talk.send(START, session, 0, [*items, "timeout_ms", str(timeout_ms)])

    def begin(self, talk, session: int = 1, **more: object) -> None:
        """OPEN and START, both answered well."""
        opened = talk.final(self.open(talk, session, **more))
        assert opened.type == OPENED, opened
        started = talk.final(self.start(talk, session))
        assert started.type == STARTED, started

    def raw(self, talk, command: str, session: int = 1) -> int:
        """A command on a channel of its own."""
        return talk.exec(command, session, NO_AGENT)


def inventory(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path
