"""`churten pool status` and `churten pool stop`: the broker process that keeps SSH sessions between runs."""

from __future__ import annotations

import argparse
import json
import sys
import time
import typing as t

STATUS, STOP, DATA, EXIT = 23, 24, 12, 17
DEADLINE_S = 5.0


class NoPool(Exception):
    """No pool is running; the text says where it was looked for."""


def add_parser(subparsers: t.Any) -> None:
    """Add `pool` to the parser of the `churten` command."""
    parser = subparsers.add_parser("pool", help="show or stop the process that keeps SSH sessions between runs")
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    status = verbs.add_parser("status", help="show the pool's sessions; exit code 3 if no pool is running")
    status.add_argument("--json", action="store_true", help="as JSON")
    status.set_defaults(run=run, verb="status")
    stop = verbs.add_parser("stop", help="end all sessions and the pool; running playbooks lose their hosts")
    stop.set_defaults(run=run, verb="stop")


def run(arguments: argparse.Namespace) -> int:
    """Run the verb; returns the exit code."""
    try:
        if arguments.verb == "stop":
            ask(STOP)
            print("the pool has stopped")
            return 0
        text = ask(STATUS)
    except NoPool as ex:
        print(ex, file=sys.stderr)
        return 0 if arguments.verb == "stop" else 3
    except Exception as ex:
        print(f"churten pool: {ex}", file=sys.stderr)
        return 1
    print(text if arguments.json else report(json.loads(text)))
    return 0


def ask(kind: int) -> str:
    """Send STATUS or STOP to the running pool and return the text it answers; never starts one."""
    from churten import __version__, _core
    from churten.transport import runtime

    path = runtime.socket_path(runtime.pool_dir(create=False))
    try:
        client = _core.Client(path, __version__)
    except (FileNotFoundError, ConnectionRefusedError):
        raise NoPool(f"no pool is running (nothing answers at {path})") from None
    try:
        request = client.request()
        client.send(kind, 0, 0, request, b"")
        text = b""
        deadline = time.monotonic() + DEADLINE_S
        while not client.closed and time.monotonic() < deadline:
            for got, _flags, _session, _agent, number, body in client.poll(200):
                if number == request and got == DATA:
                    text += body
                elif number == request and got == EXIT:
                    return text.decode("utf-8", "replace")
    finally:
        client.close()
    raise RuntimeError(f"the pool at {path} did not answer")


def report(status: dict[str, t.Any]) -> str:
    """The status as a table for people."""
    lines = [
        f"pool {status['version']}, process {status['pid']}: {len(status['sessions'])} sessions, {status['clients'] - 1} other clients, "
        f"{status['requests']} requests served"
    ]
    if status["sessions"]:
        width = max(len("host"), *(len(s["name"]) for s in status["sessions"]))
        lines.append(f"{'host':<{width}}  transport  state    clients  agents  become  running  received      sent  unused")
        for s in sorted(status["sessions"], key=lambda one: one["name"]):
            unused = f"{s['unused_s']} s" if not s["clients"] else "-"
            lines.append(
                f"{s['name']:<{width}}  {s['transport']:<9}  {s['state']:<7}  {s['clients']:>7}  {s['agents']:>6}  {s['become_agents']:>6}"
                f"  {s['requests']:>7}  {_size(s['bytes_in']):>8}  {_size(s['bytes_out']):>8}  {unused:>6}"
            )
    for f in status["last_failures"]:
        lines.append(f"{f['ago_s']} s ago {f['name']} failed ({f['class']}, {f['layer']}): {f['message']}")
    return "\n".join(lines)


def _size(number: float) -> str:
    """Bytes with a unit, at most eight characters."""
    unit = "B"
    for unit in ("B", "KiB", "MiB", "GiB"):  # noqa: B007
        if number < 1024:
            break
        number /= 1024
    return f"{number:.0f} {unit}" if number >= 10 or unit == "B" else f"{number:.1f} {unit}"
