"""Handing the built-in ssh plugin what a command on a terminal brought, so that all it makes of it is its own; private names of 2.16 to 2.22."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleError
from ansible.utils.display import Display

from churten.compat.connection import close_password_pipe

display = Display()


def is_ssh_verbose(connection: t.Any) -> bool:
    """Whether the built-in plugin would make ssh write about what it does."""
    if "verbosity" in connection._options:
        return bool(connection.get_option("verbosity"))
    return display.verbosity > 3  # up to 2.18


class GivenResult:
    """Mixin before the built-in ssh plugin's class: what `given` holds is taken for the next result of its client, which is not started.

    Everything around that (retries, errors made of 255, the become marker) is the built-in plugin's. `given`: (rc, stdout, stderr) or None.
    """

    given: tuple[int, bytes, bytes] | None = None
    become: t.Any

    def _bare_run(self, cmd: list[bytes], in_data: bytes | None, sudoable: bool = True, checkrc: bool = True) -> tuple[int, bytes, bytes]:
        given, self.given = self.given, None
        if given is None:
            return t.cast("tuple[int, bytes, bytes]", super()._bare_run(cmd, in_data, sudoable=sudoable, checkrc=checkrc))  # type: ignore[misc]
        close_password_pipe(self)
        rc, stdout, stderr = given
        if sudoable and self.become and self.become.success:
            stdout = self._past_become(stdout)
        return rc, stdout, stderr

    def _past_become(self, stdout: bytes) -> bytes:
        """What the built-in plugin leaves of the output of a become command that asks nothing; raises its error if it was refused."""
        flags = self._flags = dict.fromkeys(("become_prompt", "become_success", "become_error", "become_nopasswd_error"), False)
        done, rest = self._examine_output("stdout", "awaiting_escalation", stdout, True)  # type: ignore[attr-defined]
        if not flags["become_success"]:
            if flags["become_error"]:
                raise AnsibleError(f"Incorrect {self.become.name} password")
            if flags["become_nopasswd_error"]:
                raise AnsibleError(f"Missing {self.become.name} password")
            if flags["become_prompt"]:
                raise AnsibleError(f"Incorrect {self.become.name} password")
        return t.cast(bytes, done + rest)
