"""What stands for parts of core that would be made anew for each task."""

import argparse

from ansible.plugins.connection import ssh as ssh_plugin

from churten.compat.connection import LaterParser, TerminalMemo


def test_a_parser_made_later_parses_the_same():
    parsers = [argparse.ArgumentParser(), LaterParser()]
    for parser in parsers:
        parser.add_argument("-t", action="count")
        parser.add_argument("-o", action="append")
    for words in ([], ["-tt", "-o", "RequestTTY=yes", "-C"], ["-o", "a", "-o", "b", "x"], ["-t"]):
        stock, ours = (parser.parse_known_args(words) for parser in parsers)
        assert ours == stock


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
