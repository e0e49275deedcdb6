"""Which libssh churten runs with, and whether it has the security fixes that concern a client.

A distribution patches an old version without changing what the library says of itself: where the package's version is known to have the fixes, that counts.
What a version says is not a proof; `make faults ROWS=F12,F13` tries the library itself.
"""

from __future__ import annotations

import re
import subprocess
import typing as t

from churten.transport import runtime

# The first release of each line with the fixes of July 2026 (the tags of AES-GCM, a largest packet of 0, data for a closed channel); docs/security.md.
FLOORS = {(0, 11): (0, 11, 5), (0, 12): (0, 12, 2)}
# Packages that brought the fixes to an older version: start of the version -> the first number behind it.
PACKAGES = {"0.10.6-0+deb12u": 3}
_QUERIES = (["dpkg-query", "-W", "-f", "${Version}\n", "libssh-4"], ["rpm", "-q", "--qf", "%{VERSION}-%{RELEASE}\n", "libssh"])
DEADLINE_S = 10.0


def describe() -> str:
    """One line for people: the library, its package, and the verdict."""
    version = _ask([runtime.pool_executable(), "--libssh"]).split("/", 1)[0]
    if not version:
        return "unknown: churten-pool does not run"
    package = next(filter(None, map(_ask, _QUERIES)), "")
    said = version + (f" (package {package})" if package else "")
    return said + (", with the fixes of July 2026" if is_fixed(version, package) else ", WITHOUT known fixes: see docs/security.md, or churten_transport=ssh")


def is_fixed(version: str, package: str = "") -> bool:
    """Whether this version, or the package it came in, is known to have the fixes."""
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
    line = numbers[:2]
    if len(numbers) == 3 and numbers >= FLOORS.get(t.cast("tuple[int, int]", line), max(FLOORS.values())):
        return True
    for start, least in PACKAGES.items():
        rest = re.match(r"\d+", package.removeprefix(start)) if package.startswith(start) else None
        if rest is not None and int(rest.group()) >= least and package.startswith(version):
            return True
    return False


def _ask(argv: list[str]) -> str:
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.split("\n", 1)[0].strip() if done.returncode == 0 else ""
