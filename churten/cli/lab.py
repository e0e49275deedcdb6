"""`churten lab`: throw-away hosts on loopback."""

from __future__ import annotations

import argparse
import sys
import typing as t
from pathlib import Path

from churten.lab import Lab, LabError, Options, default_dir


def add_parser(subparsers: t.Any) -> None:
    """Adds `lab up|down|status`."""
    parser = subparsers.add_parser("lab", help="throw-away hosts on loopback (real sshd), with an inventory")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    up = verbs.add_parser("up", help="start the lab, or bring a running one to the wanted size")
    up.add_argument("--hosts", type=int, default=10, metavar="N", help="number of hosts (default: 10)")
    up.add_argument("--password", action="store_true", help="inventory logs in by password (needs root)")
    up.add_argument(
        "--sudo",
        choices=("nopasswd", "password", "none"),
        default="nopasswd",
        help="inventory's account: sudo without a password, sudo that asks, or no sudo (default: nopasswd; needs root)",
    )
    up.add_argument("--python", default="/usr/bin/python3", metavar="PATH", help="ansible_python_interpreter")
    up.add_argument("--discover", action="store_true", help="no ansible_python_interpreter: let Ansible discover it")
    up.add_argument(
        "--sshd-option",
        action="append",
        default=[],
        metavar="LINE",
        help="further sshd_config line, for example 'MaxSessions 1' (repeatable)",
    )
    up.add_argument("--one-sshd", action="store_true", help="one sshd for all hosts instead of one for each (for hundreds of hosts)")
    up.add_argument("--logs", action="store_true", help="every sshd writes a log below DIR/logs")
    up.set_defaults(run=_guard(_up))
    down = verbs.add_parser("down", help="end and remove everything the lab made")
    down.set_defaults(run=_guard(_down))
    status = verbs.add_parser("status", help="say what runs; exit code 3 if not all hosts do")
    status.set_defaults(run=_guard(_status))
    for verb in (up, down, status):
        verb.add_argument("--dir", type=Path, default=default_dir(), metavar="DIR", help="default: %(default)s")


def _guard(verb: t.Callable[[argparse.Namespace], int]) -> t.Callable[[argparse.Namespace], int]:
    def run(arguments: argparse.Namespace) -> int:
        try:
            return verb(arguments)
        except LabError as error:
            print(f"churten lab: {error}", file=sys.stderr)
            return 1

    return run


def _up(arguments: argparse.Namespace) -> int:
    lab = Lab(arguments.dir)
    options = Options(
        password=arguments.password,
        sudo=arguments.sudo,
        python=None if arguments.discover else arguments.python,
        sshd_options=arguments.sshd_option,
        one_sshd=arguments.one_sshd,
        logs=arguments.logs,
    )
    lab.up(arguments.hosts, options)
    print(f"{len(lab.hosts)} hosts, {lab.hosts[0].address} to {lab.hosts[-1].address}, port {lab.hosts[0].port}")
    print(f"inventory: {lab.inventory}")
    if not lab.root:
        print("not root: the hosts log in as you, without sudo")
    return 0


def _down(arguments: argparse.Namespace) -> int:
    Lab(arguments.dir).down(print)
    return 0


def _status(arguments: argparse.Namespace) -> int:
    lab = Lab(arguments.dir)
    if not lab.exists():
        print(f"no lab in {lab.dir}")
        return 3
    alive = [host for host in lab.hosts if host.alive()]
    for host in lab.hosts:
        state = f"pid {host.pid}, {len(lab.sessions(host.name))} sessions" if host in alive else "down"
        print(f"{host.name}  {host.address}:{host.port}  {state}")
    print(f"{len(alive)} of {len(lab.hosts)} hosts run; inventory: {lab.inventory}")
    return 0 if lab.hosts and len(alive) == len(lab.hosts) else 3
