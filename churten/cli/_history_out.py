"""`churten history export|serve|push`: the history for others."""

from __future__ import annotations

import argparse
import getpass
import netrc
import os
import stat
import sys
import typing as t
import urllib.parse

from churten.history import ara, export, query, serve, store
from churten.history.place import Place, Unusable

from . import _output

AddVerb = t.Callable[[str, t.Callable[[argparse.Namespace, Place], int], str], argparse.ArgumentParser]


def add_verbs(verb: AddVerb, catch_up: t.Callable[[Place], None]) -> None:
    """Adds the three verbs. `catch_up` brings in what runs have said since."""

    def caught_up(function: t.Callable[[argparse.Namespace, Place], int]) -> t.Callable[[argparse.Namespace, Place], int]:
        def run(arguments: argparse.Namespace, place: Place) -> int:
            catch_up(place)
            return function(arguments, place)

        return run

    found = verb("export", caught_up(_export), "runs for other programs")
    found.add_argument("form", metavar="FORM", choices=("json", "csv", "html"), help="json: all there is; csv: a line per result; html: one page of one run")
    found.add_argument("wanted", metavar="RUN", nargs="*", help="beginning of an id, last, last-1, ... or all (default: last)")
    found.add_argument("-o", "--output", metavar="FILE", help="default: the standard output")

    found = verb("serve", caught_up(_serve), "a local web page of the history, read-only")
    found.add_argument("--address", default="127.0.0.1", help="default: 127.0.0.1, which nobody else reaches")
    found.add_argument("--port", type=int, default=9191, help="default: 9191; 0 takes a free one")
    found.add_argument("--name", action="append", default=[], help="a name the server may be called by (repeatable)")
    found.add_argument("--public", action="store_true", help="needed for an address that others reach: they can read everything")

    found = verb("push", caught_up(_push), "send runs to an ARA server")
    found.add_argument("wanted", metavar="RUN", nargs="*", help="beginning of an id, last, last-1, ... (default: last)")
    found.add_argument("--ara", metavar="URL", required=True, help="http://127.0.0.1:8000, https://ara.example.org")
    found.add_argument("--user", metavar="NAME", help="log in; the password is asked for")
    found.add_argument("--password-file", metavar="FILE", help="its first line is the password; the file must be yours alone")
    found.add_argument("--netrc", metavar="FILE", nargs="?", const="~/.netrc", help="user and password from a netrc file (default: ~/.netrc)")


def _runs(db: t.Any, wanted: t.Sequence[str]) -> list[t.Any]:
    if list(wanted) == ["all"]:
        return query.runs(db)[::-1]
    return sorted((query.run(db, one) for one in wanted or ["last"]), key=lambda row: row["started"])


def _export(arguments: argparse.Namespace, place: Place) -> int:
    with store.opened(place) as db:
        rows = _runs(db, arguments.wanted)
        if arguments.form == "html":
            if len(rows) != 1:
                raise Unusable("html is one page of one run: name one")
            pieces = export.to_html(db, rows[0])
        else:
            pieces = (export.to_json if arguments.form == "json" else export.to_csv)(db, rows)
        try:
            _output.write(arguments.output, pieces)
        except BrokenPipeError:
            raise
        except OSError as ex:
            raise Unusable(f"{arguments.output or 'the standard output'}: {ex.strerror}") from ex
    return 0


def _serve(arguments: argparse.Namespace, place: Place) -> int:
    if not serve.is_loopback(arguments.address) and not arguments.public:
        raise Unusable(f"others reach {arguments.address} and could read the whole history: give --public if that is meant")
    with store.opened(place):
        pass
    try:
        server = serve.Server(place, arguments.address, arguments.port, arguments.name)
    except (OSError, OverflowError) as ex:
        raise Unusable(f"{arguments.address}, port {arguments.port}: {getattr(ex, 'strerror', None) or ex}") from ex
    with server:
        print(server.url, flush=True)
        server.serve_forever()
    return 0


def _push(arguments: argparse.Namespace, place: Place) -> int:
    server = ara.Server(arguments.ara, _login(arguments))
    try:
        with store.opened(place) as db:
            for row in _runs(db, arguments.wanted):
                done = ara.push(db, row, server)
                words = f"{done.new} sent" + (f", {done.known} were there already" if done.known else "")
                print(f"run {row['run'][:8]}: {server.url}/playbooks/{done.playbook}.html ({words})")
    finally:
        server.close()
    return 0


def _login(arguments: argparse.Namespace) -> tuple[str, str] | None:
    if arguments.netrc is not None:
        path = os.path.expanduser(arguments.netrc)
        try:
            _private(path)
            found = netrc.netrc(path).authenticators(urllib.parse.urlsplit(arguments.ara).hostname or "")
        except (OSError, netrc.NetrcParseError) as ex:
            raise Unusable(f"{path}: {getattr(ex, 'strerror', None) or ex}") from ex
        if found is None:
            raise Unusable(f"{path} has no entry for this server")
        return arguments.user or found[0], found[2] or ""
    if arguments.user is None:
        if arguments.password_file is not None:
            raise Unusable("a password without a user: give --user NAME")
        return None
    if arguments.password_file is not None:
        try:
            _private(arguments.password_file)
            with open(arguments.password_file, encoding="utf-8") as file:
                return arguments.user, file.readline().rstrip("\r\n")
        except (OSError, ValueError) as ex:
            raise Unusable(f"{arguments.password_file}: {getattr(ex, 'strerror', None) or ex}") from ex
    if not sys.stdin.isatty():
        raise Unusable("there is no terminal to ask for the password on: give --password-file FILE or --netrc")
    return arguments.user, getpass.getpass(f"Password of {arguments.user}: ")


def _private(path: str) -> None:
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise Unusable(f"{path} is not a regular file")
    if found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise Unusable(f"{path} is not yours alone: chmod 600 {path}")
