"""`churten doctor HOST`: how churten reaches a host and runs its tasks, and which setting decided it.

Nothing is guessed: it runs one real task (core's `setup`, the facts about Python and the account) with `ansible` under churten.core.free, and reports what
that run logged.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import typing as t
from pathlib import Path

from churten.cli import libssh

DEADLINE_S = 180.0
_FACTS = "gather_subset=!all,!min,python,user"
_LOGGED = re.compile(r"^<[^>]*> (engine|churten): (.*)$", re.MULTILINE)
_RESULT = re.compile(r"^(\S+) \| (SUCCESS|CHANGED|FAILED|UNREACHABLE)!? =>\s*(\{.*)", re.MULTILINE | re.DOTALL)
_ANSWERED = re.compile(r"^(\S+) \| (SUCCESS|CHANGED|FAILED|UNREACHABLE)!? =>\s*(\{)", re.MULTILINE)
_COMPLAINED = re.compile(r"^(?:\[(?:ERROR|WARNING)\]: |ERROR! |ansible: error: ).*$", re.MULTILINE)
_EXIT_CODES = {"SUCCESS": 0, "CHANGED": 0, "FAILED": 2, "UNREACHABLE": 4}


def add_parser(subparsers: t.Any) -> None:
    """Add `doctor` to the parser of the `churten` command."""
    usage = "churten doctor HOST [options of `ansible`: -i INVENTORY, -b, -e ...]"
    # All words are `ansible`'s, in any order as there: nothing begins an option of ours.
    parser = subparsers.add_parser(
        "doctor", help="how churten reaches a host, and which setting decided it", usage=usage, prefix_chars="\0", add_help=False
    )
    parser.add_argument("words", metavar="HOST ...", nargs="+", help="one host of the inventory, and options for `ansible`: -i INVENTORY, -b, -e, ...")
    parser.set_defaults(run=run, help=parser.format_help())


def run(arguments: argparse.Namespace) -> int:
    """Run the task and print the report; 0, 4 for an unreachable host, 2 for a failed task, 1 if `ansible` itself does not work."""
    if {"-h", "--help"} & {*arguments.words}:
        print(arguments.help, end="")
        return 0
    asked = shlex.join(arguments.words)
    try:
        text = ask(arguments.words)
    except (OSError, subprocess.TimeoutExpired) as ex:
        print(f"churten doctor: {ex}", file=sys.stderr)
        return 1
    found = _RESULT.search(text)
    if found is None:
        print(f"churten doctor: `ansible` gave no result for {asked}. {why_not(text)}", file=sys.stderr)
        return 1
    names = sorted({name for name, _status, _json in _ANSWERED.findall(text)})
    if len(names) > 1:
        some = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        print(f"churten doctor: {asked} means {len(names)} hosts ({some}): name one of them.", file=sys.stderr)
        return 1
    for name, value in report(found[2], result_of(found[3]), _LOGGED.findall(text[: found.start()])):
        print(f"{name:<12} {value}")
    print(f"{'libssh':<12} {libssh.describe()}")
    return _EXIT_CODES[found[2]]


def ask(arguments: list[str]) -> str:
    """What `ansible` prints for the task."""
    beside = Path(sys.executable).with_name("ansible")
    executable = str(beside) if beside.exists() else shutil.which("ansible")
    if executable is None:
        raise FileNotFoundError("ansible was not found beside this Python nor in PATH: install ansible-core there")
    environment = {
        **os.environ,
        "ANSIBLE_STRATEGY": "churten.core.free",
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_LOAD_CALLBACK_PLUGINS": "0",
        "ANSIBLE_DEPRECATION_WARNINGS": "0",
    }
    words = [executable, *arguments, "-m", "ansible.builtin.setup", "-a", _FACTS, "-vvvv"]
    done = subprocess.run(
        words, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=DEADLINE_S, text=True, errors="replace"
    )
    return done.stdout


def why_not(text: str) -> str:
    """What `ansible` says about why it did nothing, without the rest that -vvvv makes it say."""
    said = [" ".join(match.split()) for match in _COMPLAINED.findall(text)]
    if not said:
        return f"It said:\n{text.strip()[-2000:]}"
    if "Could not match supplied host pattern" in text:
        said.append("Name a host of the inventory, and the inventory after it: churten doctor HOST -i INVENTORY.")
    return "It said:\n" + "\n".join(dict.fromkeys(said))


def result_of(text: str) -> dict[str, t.Any]:
    """The JSON object at the beginning of `text`."""
    try:
        value, _end = json.JSONDecoder().raw_decode(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def report(status: str, result: dict[str, t.Any], logged: list[tuple[str, str]]) -> t.Iterator[tuple[str, str]]:
    """(name, value) of each line. `logged`: what the run said with `engine:` and `churten:`."""
    said = [text for kind, text in logged if kind == "churten"]
    yield "result", status.lower() + (f": {result.get('msg', '')}" if status in ("FAILED", "UNREACHABLE") else "")
    engine = next((text for kind, text in logged if kind == "engine"), "fork (a built-in strategy ran)")
    yield "tasks", engine.partition(" for ")[0]
    runs = [match for text in said if (match := re.fullmatch(r"RUN \S+ on agent (\d+) \((\w+)\)", text))]
    reasons = [text.partition(": ")[2] for text in said if text.startswith("transport ")]
    stock = [text.partition(": ")[2] for text in said if text.startswith("the stock way: ")]
    if runs:
        way = {"libssh": "libssh", "ssh": "an OpenSSH client process", "local": "a local process"}.get(runs[-1][2], runs[-1][2])
        yield "transport", way + (f", because: {reasons[-1]}" if reasons else "")
        yield "modules", "in a warm agent" + (" of the become account" if runs[-1][1] != "0" else "")
    elif status in ("FAILED", "UNREACHABLE") and engine.startswith("fiber") and not stock:
        yield "transport", "none: nothing ran on the host"
    else:
        yield "transport", "the built-in connection plugin" + (f", because: {stock[-1]}" if stock else "")
        yield "modules", "the stock way"
    for text in said:
        if re.match(r"[a-z_]+ \([a-z]+\): ", text):
            yield "problem", text
    facts = result.get("ansible_facts", {})
    python = facts.get("ansible_python", {})
    if python:
        version = ".".join(str(python.get("version", {}).get(part, "?")) for part in ("major", "minor", "micro"))
        yield "interpreter", f"{python.get('executable', '?')} ({version})"
    if "ansible_user_id" in facts:
        yield "account", str(facts["ansible_user_id"])
