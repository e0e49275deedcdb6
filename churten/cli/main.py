"""`churten`: finds the subcommands beside this file and runs one.

A subcommand is a module of this package with `add_parser(subparsers)`, whose parser sets `run` to a function that takes
the parsed arguments and returns the exit code. A module that is not there is not listed.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import sys
from collections.abc import Sequence

import churten
import churten.cli


def build_parser() -> argparse.ArgumentParser:
    """The parser with every subcommand that is installed."""
    parser = argparse.ArgumentParser(prog="churten", description="Unchanged Ansible playbooks, many times faster.")
    parser.add_argument("--version", action="version", version=f"churten {churten.__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for found in sorted(pkgutil.iter_modules(churten.cli.__path__), key=lambda module: module.name):
        if found.name == "main" or found.name.startswith("_"):
            continue
        module = importlib.import_module(f"churten.cli.{found.name}")
        if hasattr(module, "add_parser"):
            module.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    try:
        return int(arguments.run(arguments) or 0)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader (head, a pager) has seen enough; keep the interpreter from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


if __name__ == "__main__":
    sys.exit(main())
