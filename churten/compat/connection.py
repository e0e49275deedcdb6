"""The private names of ansible-core's connection, shell and become plugins that the transport needs; the same from 2.16 to 2.22."""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import re
import types
import typing as t

from ansible import constants as C
from ansible.module_utils.common.text.converters import to_bytes, to_text
from ansible.plugins.connection import ConnectionBase

_SUDO = ("ansible.builtin.sudo", "ansible.legacy.sudo", "sudo")


def ssh_arguments(connection: t.Any, host: str) -> tuple[tuple[str, ...], bool]:
    """What the built-in ssh plugin would run for `connection`, up to but without the host; and whether it put a ControlPath of its own into it.

    Raises what the built-in plugin raises for options it cannot use.
    """
    connection.control_path = None
    executable = connection.get_option("ssh_executable")
    argv = [to_text(word, errors="surrogate_or_strict") for word in connection._build_command(executable, "ssh")]
    if close_password_pipe(connection):
        argv = argv[argv.index(executable) :]
    # Up to 2.18 ansible's own -v options become ssh's; they are no part of how to reach the host.
    return tuple(w for w in argv if not re.fullmatch("-v+", w)), connection.control_path is not None


class LaterParser:
    """An argparse.ArgumentParser that is made when it is first used for more than `add_argument`."""

    def __init__(self, **settings: t.Any) -> None:
        self._settings = settings
        self._arguments: list[tuple[tuple[t.Any, ...], dict[str, t.Any]]] = []

    def add_argument(self, *args: t.Any, **kwargs: t.Any) -> None:
        self._arguments.append((args, kwargs))

    @functools.cached_property
    def _parser(self) -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser(**self._settings)
        for args, kwargs in self._arguments:
            parser.add_argument(*args, **kwargs)
        return parser

    def __getattr__(self, name: str) -> t.Any:
        return getattr(self._parser, name)


def close_password_pipe(connection: t.Any) -> bool:
    """Up to 2.21 building the command opens a pipe to sshpass; the password travels in another way here. True if there was one."""
    pipe = getattr(connection, "sshpass_pipe", None)
    for fd in pipe or ():
        os.close(fd)
    if pipe:
        connection.sshpass_pipe = None
    return bool(pipe)


class TerminalMemo:
    """Mixin before the built-in ssh plugin's class: whether its arguments ask for a terminal is parsed once per set of arguments.

    The built-in plugin makes a parser for each connection, that is for each task and host.
    """

    def __init__(self, *args: t.Any, **kwargs: t.Any) -> None:
        from ansible.plugins.connection import ssh as ssh_plugin

        stock = ssh_plugin.__dict__.get("argparse")
        if stock is not argparse:
            super().__init__(*args, **kwargs)
            return
        ssh_plugin.argparse = _LATER  # type: ignore[attr-defined]
        try:
            super().__init__(*args, **kwargs)
        finally:
            ssh_plugin.argparse = stock

    def _is_tty_requested(self) -> bool:
        options = [self.get_option(name) for name in ("ssh_args", "ssh_common_args", "ssh_extra_args")]  # type: ignore[attr-defined]
        key = tuple([None if one is None else str(one) for one in options])
        known = _asks_for_terminal.get(key)
        if known is None:
            known = _asks_for_terminal[key] = bool(super()._is_tty_requested())  # type: ignore[misc]
        return known


_LATER = types.SimpleNamespace(**{**argparse.__dict__, "ArgumentParser": LaterParser})
_asks_for_terminal: dict[tuple[str | None, ...], bool] = {}


# Variables of options that the built-in plugins do not have.
OWN_VARIABLES = ("ansible_churten_transport", "ansible_churten_become", "ansible_churten_standing")


class OwnVariables:
    """Mixin before a built-in plugin's class: its own variables work, but core does not list them.

    Core copies every variable it lists for a connection into the result of a delegated task, set or not.
    """

    def _resolve_option_variables(self, variables: t.Any, templar: t.Any) -> t.Any:
        found = super()._resolve_option_variables(variables, templar)  # type: ignore[misc]
        for name in OWN_VARIABLES:
            if name in variables:
                try:
                    found[name] = templar.template(variables[name])
                except Exception as ex:
                    if type(ex).__name__ != "AnsibleValueOmittedError":  # 2.19 and later: it is as if it were not set
                        raise
        return found


def _options_of_216(self: t.Any, variables: t.Any, templar: t.Any) -> t.Any:
    """`TaskExecutor._set_connection_options` of core 2.16, whose connections are not asked for their variables."""
    names = _core_set_options(self, variables, templar)
    connection = self._connection
    if not isinstance(connection, OwnVariables):
        return names
    connection.look_at_variables(variables)  # type: ignore[attr-defined]
    for name in OWN_VARIABLES:
        value = templar.template(variables[name]) if name in variables else None
        if value is not None and value != variables.get("omit"):
            option, place = name.removeprefix("ansible_"), {"plugin_type": "connection", "plugin_name": connection._load_name}  # type: ignore[attr-defined]
            checked, _ = C.config.get_config_value_and_origin(option, variables={name: value}, **place)
            connection.set_option(option, checked)  # type: ignore[attr-defined]
    return names


if not hasattr(ConnectionBase, "_resolve_option_variables"):
    from ansible.executor.task_executor import TaskExecutor

    _core_set_options: t.Any = TaskExecutor._set_connection_options  # type: ignore[attr-defined]
    TaskExecutor._set_connection_options = _options_of_216  # type: ignore[attr-defined]


_core_plugin_vars = C.config.get_plugin_vars
_core_options_from_var = C.config.get_plugin_options_from_var
_variables: dict[tuple[str, ...], tuple[t.Any, list[str]]] = {}  # by the options' definitions, as core holds them


def _remembered(key: tuple[str, ...], find: t.Callable[..., list[str]]) -> list[str]:
    """What `find` says of a plugin's options, once for all tasks. Core walks through all of them for each."""
    definitions = C.config._plugins.get(key[0], {}).get(key[1])
    known = _variables.get(key)
    if known is None or known[0] is not definitions:
        known = _variables[key] = (definitions, find(*key))
    return list(known[1])


def _plugin_vars(plugin_type: str, name: str) -> list[str]:
    """`C.config.get_plugin_vars` without our own variables."""
    return [var for var in _remembered((plugin_type, name), _core_plugin_vars) if var not in OWN_VARIABLES]


C.config.get_plugin_vars = _plugin_vars


def _options_from_var(plugin_type: str, name: str, variable: str) -> list[str]:
    """`C.config.get_plugin_options_from_var` that knows our connections by the name that users write.

    Core files a plugin's options under the last part of its name. 2.22 asks by the full name, so host, port and user were missing in a delegated result.
    """
    if plugin_type == "connection":
        name = name.removeprefix("churten.core.")
    return _remembered((plugin_type, name, variable), _core_options_from_var)


C.config.get_plugin_options_from_var = _options_from_var


def ssh_password(connection: t.Any) -> str | None:
    """The connection password, from wherever the built-in ssh plugin takes it."""
    return connection.get_option("password") or connection._play_context.password or None


def remote_address(connection: t.Any) -> str:
    """The `ansible_host` the built-in ssh plugin would connect to."""
    return str(connection.get_option("host") or connection._play_context.remote_addr)


def inventory_address(connection: t.Any) -> str:
    return str(connection._play_context.remote_addr)


def no_log(connection: t.Any) -> bool:
    return bool(connection._play_context.no_log)


def option(connection: t.Any, name: str, default: t.Any) -> t.Any:
    """An option that not every core has."""
    try:
        return connection.get_option(name)
    except KeyError:
        return default


def option_values(connection: t.Any) -> tuple[object, ...] | None:
    """Everything the command line of the built-in plugin is made of, to compare; None if it cannot be compared."""
    context = connection._play_context
    values = (*connection._options.values(), context.remote_addr, context.password, context.port, context.remote_user)
    try:
        hash(values)
    except TypeError:
        return None
    return values


def is_posix_shell(connection: t.Any) -> bool:
    shell = connection._shell
    return not getattr(shell, "_IS_WINDOWS", False) and getattr(shell, "SHELL_FAMILY", "") == "sh"


def is_windows_shell(connection: t.Any) -> bool:
    return bool(getattr(connection._shell, "_IS_WINDOWS", False))


def interpreter_candidates() -> list[str]:
    """Where core's interpreter discovery looks, in order."""
    return [str(i) for i in C.config.get_config_value("INTERPRETER_PYTHON_FALLBACK")]


def interpreter_hint(variables: t.Mapping[str, t.Any]) -> str | None:
    """The interpreter these variables name, if they do so in plain text."""
    value = variables.get("ansible_python_interpreter")
    if value is None or (isinstance(value, str) and value.startswith("auto")):
        facts = variables.get("ansible_facts")
        value = facts.get("discovered_interpreter_python") if isinstance(facts, t.Mapping) else None
    if not isinstance(value, str) or not value or "{{" in value or "{%" in value:
        return None
    return str(value)


def umask() -> int:
    """This process's umask, without changing it where the kernel tells."""
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def default_executable() -> str:
    return str(C.DEFAULT_EXECUTABLE or "/bin/sh")


def become_id(connection: t.Any) -> str:
    """The random id in the command of the become plugin, empty if it built none."""
    become = connection.become
    return str(getattr(become, "_id", "") or "") if become is not None else ""


def is_sudo(connection: t.Any) -> bool:
    """Whether become is core's own sudo plugin."""
    become = connection.become
    return become is not None and become.name == "sudo" and getattr(become, "ansible_name", "sudo") in _SUDO


class BecomeStart(t.NamedTuple):
    """A become command around a command of ours, and the texts to watch for while it starts."""

    command: str
    prompt: str
    password: str
    success: str
    wrong: list[str]
    missing: list[str]


def build_become(connection: t.Any, command: str) -> BecomeStart:
    """Let the become plugin of `connection` wrap `command`; the plugin's state is as before afterwards."""
    become = connection.become
    with _unchanged(become, "_id", "success", "prompt"):
        text = become.build_become_command(command, connection._shell)
        expects = become.expect_prompt()
        password = become.get_option("become_pass", playcontext=connection._play_context)
        return BecomeStart(
            text,
            to_text(become.prompt) if expects else "",
            to_text(password, errors="surrogate_or_strict") if expects and password else "",
            become.success,
            _texts(become, become.fail),
            _texts(become, become.missing),
        )


def become_password(connection: t.Any) -> str:
    become = connection.become
    return to_text(
        become.get_option("become_pass", playcontext=connection._play_context) or "", errors="surrogate_or_strict"
    )


@contextlib.contextmanager
def _unchanged(thing: t.Any, *names: str) -> t.Iterator[None]:
    saved = {n: thing.__dict__[n] for n in names if n in thing.__dict__}
    try:
        yield
    finally:
        for name in names:
            if name in saved:
                setattr(thing, name, saved[name])
            else:
                thing.__dict__.pop(name, None)


def _texts(become: t.Any, messages: t.Iterable[str]) -> list[str]:
    """`messages` as they are and as this controller's locale has them, which is what core looks for."""
    from gettext import dgettext

    out: list[str] = []
    for message in messages:
        for text in (message, dgettext(become.name, message)):
            if text and text not in out:
                out.append(text)
    return out


def is_incorrect_password(connection: t.Any, output: bytes) -> bool:
    return bool(connection.become.check_incorrect_password(output))


def is_missing_password(connection: t.Any, output: bytes) -> bool:
    return bool(connection.become.check_missing_password(output))


def success_marker(connection: t.Any) -> bytes:
    return to_bytes(connection.become.success)
