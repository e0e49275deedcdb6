"""What stands for parts of core that would be made anew for each task."""

import argparse

import pytest
from ansible import constants as C
from ansible.plugins.connection import ssh as ssh_plugin

from churten.compat.connection import LaterParser, TerminalMemo
from churten.compat.memo import SettingMemo, remembered_settings


def test_a_parser_made_later_parses_the_same():
    parsers = [argparse.ArgumentParser(exit_on_error=False), LaterParser(exit_on_error=False)]
    for parser in parsers:
        parser.add_argument("-t", action="count")
        parser.add_argument("-o", action="append")
    for words in ([], ["-tt", "-o", "RequestTTY=yes", "-C"], ["-o", "a", "-o", "b", "x"], ["-t"]):
        stock, ours = (parser.parse_known_args(words) for parser in parsers)
        assert ours == stock
    for parser in parsers:
        with pytest.raises(argparse.ArgumentError):
            parser.parse_known_args(["-o"])


@pytest.mark.skipif(not hasattr(ssh_plugin, "argparse"), reason="earlier lines need no parser")
def test_the_built_in_connection_of_this_core_can_be_made():
    """Each line gives its parser other arguments."""

    class Ours(TerminalMemo, ssh_plugin.Connection):
        pass

    from ansible.playbook.play_context import PlayContext

    ours = Ours(PlayContext(), None)
    assert type(ours._tty_parser) is LaterParser


@pytest.mark.skipif(not hasattr(ssh_plugin, "argparse"), reason="earlier lines need no parser")
def test_only_our_connections_get_it():
    made = []

    class Stock:
        def __init__(self):
            made.append(ssh_plugin.argparse.ArgumentParser())
            if len(made) == 2:
                raise ValueError

    class Ours(TerminalMemo, Stock):
        pass

    Ours()
    assert type(made[0]) is LaterParser
    assert ssh_plugin.argparse is argparse
    try:
        Ours()
    except ValueError:
        pass
    assert ssh_plugin.argparse is argparse


def settings(variables):
    """Every setting of core, as it is now."""
    found = {}
    for name in C.config.get_configuration_definitions():
        try:
            found[name] = C.config.get_config_value(name, variables=variables)
        except Exception as ex:
            found[name] = repr(ex)
    return {name: (type(value), value) for name, value in found.items() if "TMP" not in name}


def test_settings_are_those_of_core(monkeypatch):
    by_variables = {"ansible_python_interpreter": "/x", "ansible_no_target_syslog": True, "ansible_target_log_info": "y", "ansible_pipelining": True, "z": 1}
    for variables in (None, {}, by_variables, {"ansible_no_target_syslog": None}):
        stock = settings(variables)
        with remembered_settings():
            first, second = settings(variables), settings(variables)
        assert first == stock and second == stock
    with remembered_settings():
        before = C.config.get_config_value("DEFAULT_FORKS")
        first = C.config.get_config_value("VARIABLE_PRECEDENCE")
        first.append("changed")
        assert "changed" not in C.config.get_config_value("VARIABLE_PRECEDENCE")
        assert C.config.get_config_value("DEFAULT_NO_TARGET_SYSLOG", variables=by_variables) is True
        assert C.config.get_config_value("DEFAULT_NO_TARGET_SYSLOG", variables={"a": 1}) is False
        monkeypatch.setenv("ANSIBLE_FORKS", str(before + 3))
        assert C.config.get_config_value("DEFAULT_FORKS") == before + 3
        monkeypatch.delenv("ANSIBLE_FORKS")
        assert C.config.get_config_value("DEFAULT_FORKS") == before
    assert "get_config_value" not in vars(C.config)


def test_settings_that_are_looked_for_once():
    memo = SettingMemo(C.config)
    for name in {"DEFAULT_NO_TARGET_SYSLOG", "TARGET_LOG_INFO", "DEFAULT_FORKS"} & set(C.config.get_configuration_definitions()):
        memo(name)
        assert memo._known[name] is not None, name
    for name in ("DEFAULT_LOCAL_TMP", "INTERPRETER_PYTHON_FALLBACK_X"):  # one makes a directory, the other does not exist
        assert memo._learn(name) is None


def test_what_one_command_brought_is_never_taken_for_another(monkeypatch):
    from churten.transport.ssh import SshConnection, StockConnection

    def refuses(self, cmd, **_):
        raise ValueError(cmd)

    monkeypatch.setattr(StockConnection, "exec_command", refuses)
    ours = SshConnection.__new__(SshConnection)
    with pytest.raises(ValueError):
        ours._as_stock("x", (0, b"", b""))
    assert ours.given is None
