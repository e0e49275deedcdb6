#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""churten on every line of ansible-core: one environment per line, the build, the imports, the executor's tests, plays under stock and under churten.

    tests/matrix/run.py                       every line, the quick plays, strategies and connection, conformance-smoke
    tests/matrix/run.py --all --lines 2.18    every play on one line
    tests/matrix/run.py --few                 the handful of `make test`

What was made is kept below build/matrix and used again; remove it to start afresh. A line needs a Python of its own range: the first fitting one of
$PYTHON, PATH and pyenv is taken. Where there is none, root gets a Debian tree with one (debootstrap, below build/matrix/tree), and the line runs
inside it: in namespaces for mounts and processes, so that nothing of it stays when it ends. Ends with 1 if anything failed or could not run.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "matrix"
TREE = WORK / "tree"
SUITE = "trixie"
TREE_PACKAGES = (
    "python3 python3-venv python3-dev build-essential pkg-config libssh-dev libjansson-dev zlib1g-dev "
    "openssh-server openssh-client sudo acl ca-certificates procps"
)
# line, what pip is asked for, first and last minor version of Python 3 it runs on
LINES = [
    ("2.16", "ansible-core==2.16.*", 10, 12),
    ("2.17", "ansible-core==2.17.*", 10, 12),
    ("2.18", "ansible-core==2.18.*", 11, 13),
    ("2.19", "ansible-core==2.19.*", 11, 13),
    ("2.20", "ansible-core==2.20.*", 12, 14),
    ("2.21", "ansible-core==2.21.*", 12, 14),
    ("2.22", "ansible-core>=2.22.0b1,<2.23", 13, 14),
]
MODES = "churten-free,conn-linear"
# For every submission: registered variables, loops and items, includes, failures and rescue, what a fiber could change of the controller.
FEW = ("01-register-when", "06-includes", "35-failures", "37-mutation")
FEW_LINES = ("2.18", "2.21")
PROBE = "import sys, sysconfig, venv, os; print(*sys.version_info[:2], os.path.exists(sysconfig.get_path('include') + '/Python.h'), sys.base_prefix)"


class CannotRunError(Exception):
    """Why a line could not be tried here."""


@dataclasses.dataclass
class Row:
    """One line of the table."""

    line: str
    python: str = "-"
    build: str = "-"
    imports: str = "-"
    executor: str = "-"
    plays: str = "-"
    targets: str = "-"
    seconds: float = 0.0
    why: str = ""

    @property
    def good(self) -> bool:
        return not self.why


def run(words: list[str], log: Path, **kwargs: object) -> bool:
    """Run with output to `log`; whether it ended well."""
    with open(log, "ab") as out:
        out.write(f"\n$ {shlex.join(words)}\n".encode())
        out.flush()
        return subprocess.run(words, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, **kwargs).returncode == 0  # type: ignore[call-overload]


def tail(log: Path, lines: int = 12) -> str:
    return "\n".join(f"    {line[:200]}" for line in log.read_text(errors="replace").splitlines()[-lines:])


@functools.cache
def pythons() -> list[tuple[int, Path]]:
    """Minor version and path of every Python 3 that can make an environment and build an extension."""
    names = ["python3", *(f"python3.{minor}" for minor in range(10, 15))]
    candidates: list[str | None] = [os.environ.get("PYTHON"), sys.executable, *map(shutil.which, names)]
    if shutil.which("pyenv"):
        top = subprocess.run(["pyenv", "root"], capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout.strip()
        candidates += sorted(map(str, Path(top, "versions").glob("3.*/bin/python3")))
    found: dict[Path, int] = {}
    for name in filter(None, candidates):
        try:
            done = subprocess.run([name, "-c", PROBE], capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)
            major, minor, headers, prefix = done.stdout.split(maxsplit=3)
        except (OSError, subprocess.TimeoutExpired, ValueError):
            continue
        path = Path(prefix.strip()) / "bin" / f"python3.{minor}"
        if major == "3" and headers == "True" and path.exists():
            found.setdefault(path, int(minor))
    return [(minor, path) for path, minor in found.items()]


def python_for(first: int, last: int) -> Path | None:
    """The Python of this run if it fits, else the first that does."""
    return next((path for minor, path in pythons() if first <= minor <= last), None)


def environment(line: str, wanted: str, python: Path, log: Path) -> Path:
    """The line's venv, made anew if it is not of this Python and these packages."""
    home = WORK / line
    stamp, text = home / "stamp", f"{python} {wanted}\n"
    if not stamp.exists() or stamp.read_text() != text:
        shutil.rmtree(home / "venv", ignore_errors=True)
        stamp.unlink(missing_ok=True)
        pip = [str(home / "venv/bin/python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        packages = [wanted, "greenlet>=3", "passlib", "pytest", "pyyaml", "setuptools>=77"]
        if not run([str(python), "-m", "venv", str(home / "venv")], log) or not run([*pip, *packages], log):
            raise CannotRunError(f"no environment for it could be made:\n{tail(log)}")
        stamp.write_text(text)
    return home / "venv" / "bin"


def quick_plays() -> list[str]:
    plays = sorted((ROOT / "tests/differential/plays").iterdir())
    return [play.name for play in plays if (play / "meta.yml").exists() and "\nquick:" in "\n" + (play / "meta.yml").read_text()]


def try_line(row: Row, wanted: str, python: Path, options: argparse.Namespace) -> None:
    """Fills `row`; CannotRunError if there is no environment."""
    home = WORK / row.line
    home.mkdir(parents=True, exist_ok=True)
    log = home / "log"
    log.write_text("")
    row.python = python.name.removeprefix("python")
    bin_dir = environment(row.line, wanted, python, log)
    own = str(bin_dir / "python")
    row.build = "ok" if run([own, "setup.py", "-q", "build_ext", "--inplace", "--build-temp", str(home / "tmp")], log, cwd=ROOT) else "FAILED"
    if row.build == "ok":
        row.imports = "ok" if run([own, str(ROOT / "tests/matrix/check.py")], log, env={**os.environ, "PYTHONPATH": str(ROOT)}) else "FAILED"
    if row.imports != "ok":
        row.why = f"see {log}:\n{tail(log)}"
        return
    names = ("executor", "payload", "keywords", "wire", "memo", "memo_plugins", "squash", "templating", "chains", "standing", "garbage")
    # Of few: what no result shows: that actions are chained, children stand, imports are kept, and the end is short at all.
    few = ["tests/plugins/test_chains.py::test_round_trips", "tests/plugins/test_standing.py", "tests/plugins/test_garbage.py"]
    few += ["tests/plugins/test_memo_plugins.py::test_what_module_utils_import_is_looked_at_once"]
    tests = few if options.few else [f"tests/plugins/test_{name}.py" for name in names]
    good = run([own, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests], log, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    row.executor = summary(log)
    row.why = "" if good else failures(log)
    plays = options.plays or ("*" if options.all else ",".join(FEW if options.few else quick_plays()))
    env = {
        **os.environ,
        "CHURTEN_TEST_ANSIBLE": str(bin_dir),
        "CHURTEN_DIFF_MODES": options.modes,
        "CHURTEN_DIFF_PLAYS": plays,
        "PYTHONPATH": str(ROOT),
    }
    good = run([own, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/differential/test_plays.py"], log, cwd=ROOT, env=env)
    row.plays = summary(log)
    if not good:
        row.why = "\n".join(filter(None, [row.why, failures(log)]))
    if options.few or options.plays:
        return
    # The line's own integration targets, the five quick ones, from its own source archive.
    env = {**os.environ, "CHURTEN_CONFORMANCE_DIR": str(home / "conformance"), "PYTHONPATH": str(ROOT)}
    good = run([own, str(ROOT / "tests/conformance/run.py"), "smoke"], log, cwd=ROOT, env=env)
    row.targets = summary(log)
    if not good:
        row.why = "\n".join(filter(None, [row.why, f"conformance, see {log}:\n{tail(log)}"]))


def summary(log: Path) -> str:
    """The last line of pytest, without the time, or of the conformance run."""
    words = log.read_text(errors="replace").strip().splitlines()
    return words[-1].partition(" in ")[0].strip("= ")


def failures(log: Path) -> str:
    """Every failed test in `log`, and where the rest is."""
    failed = [f"    {line[:200]}" for line in log.read_text(errors="replace").splitlines() if line.startswith(("FAILED", "ERROR"))]
    return f"see {log}:\n" + ("\n".join(failed) or tail(log))


def make_tree() -> None:
    """A Debian system with a newer Python below build/matrix/tree."""
    if os.geteuid() != 0:
        raise CannotRunError("no Python for it here, and only root can make a Debian tree")
    if (TREE / "made").exists():
        return
    if not shutil.which("debootstrap"):
        install = "apt-get -q -y update && DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install debootstrap"
        if not shutil.which("apt-get") or not run(["sh", "-c", install], WORK / "tree.log"):
            raise CannotRunError("no Python for it here, and no debootstrap to make a Debian tree")
    shutil.rmtree(TREE, ignore_errors=True)
    asked = subprocess.run(["apt-get", "indextargets", "--format", "$(REPO_URI)"], capture_output=True, text=True)
    mirrors = [uri for uri in asked.stdout.split() if "security" not in uri]
    if not mirrors:
        raise CannotRunError("no Python for it here, and apt-get knows no mirror of Debian for a tree")
    words = ["debootstrap", "--variant=minbase", f"--include={TREE_PACKAGES.replace(' ', ',')}", SUITE, str(TREE), mirrors[0]]
    if not run(words, WORK / "tree.log"):
        raise CannotRunError(f"no Python for it here, and debootstrap failed:\n{tail(WORK / 'tree.log')}")
    (TREE / "made").touch()


def try_in_tree(row: Row, options: argparse.Namespace) -> None:
    """The line inside the tree, with a copy of the source; the row comes back as its last line of output."""
    make_tree()
    source = TREE / "src"
    kept = source / "build"
    for old in source.iterdir() if source.exists() else []:
        if old != kept:
            shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
    hidden = shutil.ignore_patterns(".git", ".venv", "build", "*.so", "churten-pool", "__pycache__", "results")
    shutil.copytree(ROOT, source, symlinks=True, ignore=hidden, dirs_exist_ok=True)
    inner = ["python3", "/src/tests/matrix/run.py", "--inside", "--lines", row.line, "--modes", options.modes]
    inner += ["--all"] if options.all else ["--few"] if options.few else []
    inner += ["--plays", options.plays] if options.plays else []
    # pip and the resolver work inside as they do here: their settings and certificates are mounted for the time of the run.
    shared = ["/etc/resolv.conf", "/etc/hosts", "/etc/ssl/certs", "/etc/pip.conf", *filter(None, [os.environ.get("PIP_CONFIG_FILE")])]
    mounts = [f"mount --bind {shlex.quote(path)} {shlex.quote(str(TREE) + path)}" for path in shared if prepared(path)]
    script = " && ".join(
        [
            *mounts,
            f"mount -t proc proc {TREE}/proc",
            f"mount --rbind /dev {TREE}/dev",
            f"mount -t tmpfs tmpfs {TREE}/tmp",
            f"chmod 1777 {TREE}/tmp",
            f"exec chroot {TREE} {shlex.join(inner)}",
        ]
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith(("CHURTEN_", "ANSIBLE_", "PYTHON", "VIRTUAL_ENV"))}
    env |= {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8", "TMPDIR": "/tmp"}
    words = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private", "sh", "-c", script]
    done = subprocess.run(words, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    answer = done.stdout.strip().splitlines()[-1:] or [""]
    if not answer[0].startswith('{"line"'):
        raise CannotRunError("inside the Debian tree: " + (done.stdout + done.stderr)[-1500:])
    row.__dict__.update(json.loads(answer[0]))
    row.python += f" ({SUITE} tree)"


def prepared(path: str) -> bool:
    """Makes the place in the tree where `path` will be mounted."""
    if not os.path.exists(path):
        return False
    place = Path(str(TREE) + path)
    place.parent.mkdir(parents=True, exist_ok=True)
    if os.path.isdir(path):
        place.mkdir(exist_ok=True)
    elif not place.exists():
        place.unlink(missing_ok=True)
        place.touch()
    return True


def try_all(options: argparse.Namespace) -> list[Row]:
    rows = []
    wanted = options.lines.split(",") if options.lines else FEW_LINES if options.few else [line[0] for line in LINES]
    for line, requirement, first, last in (entry for entry in LINES if entry[0] in wanted):
        row = Row(line)
        rows.append(row)
        begin = time.monotonic()
        if not options.inside:
            print(f"{line} ...", flush=True)
        try:
            python = None if options.tree and not options.inside else python_for(first, last)
            if python is not None:
                try_line(row, requirement, python, options)
            elif options.inside:
                raise CannotRunError("the tree has no Python for it either")
            elif options.few:
                raise CannotRunError(f"it needs Python 3.{first} or newer, and there is none here; `make test-matrix` makes one")
            else:
                try_in_tree(row, options)
        except CannotRunError as ex:
            row.why = f"could not run: {ex}"
        row.seconds = time.monotonic() - begin
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lines", help="comma list; default all")
    parser.add_argument("--all", action="store_true", help="every differential play, not only the quick ones")
    parser.add_argument("--few", action="store_true", help="a handful of plays on two lines; a line without a Python here is left out")
    parser.add_argument("--plays", help="comma list of plays")
    parser.add_argument("--modes", help="comma list of the harness's modes")
    parser.add_argument("--tree", action="store_true", help="use the Debian tree even if there is a Python")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.modes = options.modes or ("churten-free" if options.few else MODES)
    WORK.mkdir(parents=True, exist_ok=True)
    rows = try_all(options)
    if options.inside:
        print(*(json.dumps(dataclasses.asdict(row)) for row in rows), sep="\n")
        return 0
    form = "{:<6} {:<20} {:<7} {:<7} {:<20} {:<24} {:<36} {:>6}"
    print(form.format("core", "python", "build", "import", "executor", "plays", "conformance", "s"))
    for row in rows:
        print(form.format(row.line, row.python, row.build, row.imports, row.executor, row.plays, row.targets, f"{row.seconds:.0f}"))
    for row in rows:
        if row.why:
            print(f"{row.line}: {row.why}")
    left_out = [row for row in rows if options.few and row.why.startswith("could not run: it needs Python")]
    return int(any(not row.good and row not in left_out for row in rows))


if __name__ == "__main__":
    sys.exit(main())
