# SPDX-License-Identifier: GPL-3.0-or-later
"""ansible-core's own integration targets, first under stock Ansible, then under churten: what passes there must pass here.

The targets come from the source archive of the installed ansible-core, fetched into build/conformance/ when first needed; nothing of them is part of
churten. Each run gets a fresh copy of its target, changed in the few places that CHANGES lists: what chooses a strategy of core chooses the one of
churten, and what says `local` in a target's inventory becomes a host of the lab, over real SSH.

How a target is started follows ansible-test: a role gets a generated play for `testhost`, a `runme.sh` is run in its folder; both find the inventory at
../../inventory, a folder for their files in OUTPUT_DIR, and the environment of `environment()`. The exit code alone decides.

Modes: `stock` and `stock-free` are the oracles; `churten-linear` and `connection` must pass what `stock` passes, `churten-free` what `stock-free` passes.
`connection` keeps core's strategies and sets ansible_connection=churten.core.ssh; it is left out where a target's stock run opens no SSH connection.

Results: a table on the screen, build/conformance/results.json, the output of every run in build/conformance/logs/. Exit code 1 if anything that passes
under stock fails under churten. The hosts of the lab are this machine: targets make files, accounts (and remove them) on it, as root if run by root.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import fcntl
import fnmatch
import importlib.metadata
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from targets import NOT_RUN, RACES, SMOKE, TARGETS, Target  # noqa: E402

from churten.lab import Lab, Options  # noqa: E402

BUILD = Path(os.environ.get("CHURTEN_CONFORMANCE_DIR") or ROOT / "build" / "conformance")
BIN = Path(sys.executable).parent
CORE = importlib.metadata.version("ansible-core")
PORT = 2200
ROOT_HOME = "/root"
# Setup targets that would install Python packages into the controller's Python -> packages, which go into a folder of ours.
PACKAGES = {"setup_passlib_controller": ["passlib"]}


@dataclasses.dataclass(frozen=True)
class Mode:
    """One way to run all targets."""

    name: str
    strategy: str
    connection: str = "ssh"
    oracle: str | None = None

    @property
    def kind(self) -> str:
        """The kind of copy a target needs: stock, churten or connection."""
        return self.name.partition("-")[0]


MODES = {
    mode.name: mode
    for mode in (
        Mode("stock", "linear"),
        Mode("stock-free", "free"),
        Mode("churten-linear", "churten.core.linear", oracle="stock"),
        Mode("churten-free", "churten.core.free", oracle="stock-free"),
        Mode("connection", "linear", "churten.core.ssh", oracle="stock"),
    )
}
DEFAULT_MODES = ("churten-linear", "connection", "churten-free")

# ---- what is changed in the copies of the targets -----------------------------------------------------------------------
# (kinds of copy, file names, regular expression, replacement)
STRATEGY = r"(?:ansible\.builtin\.)?(free|linear|host_pinned)\b"
CHANGES: list[tuple[str, str, str, str]] = [
    ("churten", "*.yml *.yaml", rf"(?m)^(\s*(?:- )?strategy: *['\"]?){STRATEGY}", r"\1churten.core.\2"),
    ("churten", "*.sh", rf"\b(ANSIBLE_STRATEGY=['\"]?){STRATEGY}", r"\1churten.core.\2"),
    ("churten", "*.cfg", rf"(?m)^(strategy *= *){STRATEGY}", r"\1churten.core.\2"),
    ("churten", "*.sh", r"\bfor strategy in linear free\b", "for strategy in churten.core.linear churten.core.free"),
    ("churten", "*.yml", r"in \['free', 'host_pinned'\]", "in ['churten.core.free', 'churten.core.host_pinned']"),
    ("churten", "*.sh", r"\bunset ANSIBLE_STRATEGY\b", "export ANSIBLE_STRATEGY=churten.core.linear"),
    ("stock churten connection", "*.sh", r"\ben_US\.UTF-8\b", "C.UTF-8"),  # the one locale that every machine has
]
INVENTORIES = "*inventory* *.inventory *hosts* *inventory*/*"


def changed(text: str, name: str, kind: str, variables: dict[str, str], python: str) -> str:
    """The text of a target's file as the copy of that kind has it; `python` is the interpreter of modules."""
    for kinds, names, pattern, replacement in CHANGES:
        if kind in kinds.split() and _matches(name, names):
            text = re.sub(pattern, replacement, text)
    if variables and _matches(name, INVENTORIES) and not name.endswith((".py", ".sh")):
        text = text.replace("{{ ansible_playbook_python }}", python)  # accounts that a target makes need not reach the controller's Python
        text = re.sub(r"(?m)^ansible_connection *= *['\"]?local['\"]?$", "\n".join(f"{k}={v}" for k, v in variables.items()), text)
        text = re.sub(r"\bansible_connection=['\"]?local\b['\"]?", lambda _: ini_words(variables), text)
        text = re.sub(
            r"(?m)^( +)ansible_connection: ['\"]?local['\"]?$", lambda m: "\n".join(f"{m[1]}{k}: {json.dumps(v)}" for k, v in variables.items()), text
        )
    return text


def _matches(name: str, patterns: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns.split())


def ini_words(variables: dict[str, str]) -> str:
    """Variables for the line of a host in an ini inventory."""
    return " ".join(f'{k}="{v}"' for k, v in variables.items())


# ---- the source archive -------------------------------------------------------------------------------------------------


def source() -> Path:
    """The folder test/ of the installed ansible-core's source archive; fetched once."""
    place = BUILD / f"ansible_core-{CORE}"
    if not place.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=BUILD) as draft:
            words = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
            subprocess.run([*words, "-d", draft, f"ansible-core=={CORE}"], check=True, stdin=subprocess.DEVNULL, timeout=300)
            with tarfile.open(next(Path(draft).glob("*.tar.gz"))) as archive:
                archive.extractall(draft, filter="data")
            next(path for path in Path(draft).iterdir() if path.is_dir()).rename(place)
    return place / "test"


# ---- one run ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Result:
    """What came of a target in one mode."""

    target: str
    mode: str
    result: str  # pass, FAIL, skipped, stock fails
    reason: str = ""
    seconds: float = 0.0
    runs: int = 0
    ssh: bool | None = None  # stock only: whether it opened an SSH connection
    log: str = ""


class Runner:
    """Runs targets against the first host of a lab. base: a folder with a short path, for sockets."""

    def __init__(self, lab: Lab, base: Path) -> None:
        self.lab, self.base = lab, base
        self.test = source()
        host, keys = lab.hosts[0], lab.dir / "keys"
        self.variables = {
            "ansible_host": host.address,
            "ansible_port": str(host.port),
            "ansible_user": pwd.getpwuid(os.geteuid()).pw_name,
            "ansible_ssh_private_key_file": str(keys / "user_ed25519"),
            "ansible_ssh_common_args": f"-o UserKnownHostsFile={lab.dir / 'known_hosts'} -o GlobalKnownHostsFile=/dev/null",
        }
        self.collections = base / "collections"
        core = self.collections / "ansible_collections" / "churten" / "core"
        core.mkdir(parents=True)
        (core / "plugins").symlink_to(ROOT / "plugins")
        (base / "pool").mkdir(mode=0o700)
        # The name under which ansible-test's scripts find their Python.
        (base / "bin").mkdir()
        (base / "bin" / "python.py").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        (base / "bin" / "python.py").chmod(0o755)
        (base / "bin" / "virtualenv.sh").symlink_to(self.test / "lib/ansible_test/_util/target/injector/virtualenv.sh")
        # Modules run in a Python of their own: some targets install packages there.
        self.python = lab.dir.parent / "python"
        python = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable
        subprocess.run([python, "-m", "venv", "--system-site-packages", str(self.python)], check=True, stdin=subprocess.DEVNULL, timeout=120)
        self.trees: set[str] = set()

    def close(self) -> None:
        """Ends the pool of the churten runs."""
        subprocess.run(
            [sys.executable, "-m", "churten.cli.main", "pool", "stop"],
            env={**os.environ, "CHURTEN_POOL_DIR": str(self.base / "pool"), "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=30,
            check=False,
        )

    # ---- copies ----

    def _connection(self, mode: Mode) -> dict[str, str]:
        return {"ansible_connection": mode.connection, **self.variables}

    def tree(self, mode: Mode, name: str) -> Path:
        """The integration folder of a copy of test/ for this kind of mode, with a fresh copy of the target `name` in it."""
        top = BUILD / "trees" / mode.kind / "test"
        if mode.kind not in self.trees:
            shutil.rmtree(top.parent, ignore_errors=True)
            for part in ("integration/targets", "support"):
                self._copy(self.test / part, top / part, mode)
            words = {**self._connection(mode), "ansible_pipelining": "yes", "ansible_python_interpreter": f"{self.python}/bin/python"}
            (top / "integration" / "inventory").write_text(f"[testgroup]\ntesthost {ini_words(words)}\n")
            (top / "integration" / "integration_config.yml").write_text("{}\n")
            (top / "integration" / "integration.cfg").write_text("")
            self.trees.add(mode.kind)
        folder = top / "integration" / "targets" / name
        shutil.rmtree(folder, ignore_errors=True)
        if name == "connection_churten":
            self._connection_target(folder, self._connection(mode))
        else:
            self._copy(self.test / "integration" / "targets" / name, folder, mode)
        return top / "integration"

    def _copy(self, source: Path, place: Path, mode: Mode) -> None:
        def copy(one: str, other: str) -> str:
            try:
                text = Path(one).read_bytes().decode()
            except UnicodeDecodeError:
                return shutil.copy2(one, other)
            path = Path(one)
            name = f"{path.parent.name}/{path.name}" if path.parent.name in ("inventory", "inventories") else path.name
            variables = {} if TARGETS.get(source.name, Target()).local else self._connection(mode)
            new = changed(text, name, mode.kind, variables, f"{self.python}/bin/python")
            shutil.copy2(one, other)
            if new != text:
                Path(other).write_bytes(new.encode())
            return other

        shutil.copytree(source, place, symlinks=True, copy_function=copy)

    @staticmethod
    def _connection_target(folder: Path, variables: dict[str, str]) -> None:
        """Core's generic suite for connection plugins (targets/connection), used as targets/connection_ssh uses it."""
        folder.mkdir()
        lines = [f"churten-{word} ansible_ssh_pipelining={value}" for word, value in (("pipelining", "true"), ("no-pipelining", "false"))]
        more = {**variables, "ansible_python_interpreter": "{{ ansible_playbook_python }}"}
        (folder / "test_connection.inventory").write_text("\n".join(["[churten]", *lines, "[churten:vars]", *(f"{k}={v}" for k, v in more.items()), ""]))
        words = "-e target_hosts=churten -e action_prefix= -e local_tmp=/tmp/ansible-local -e remote_tmp=/tmp/ansible-remote"
        script = folder / "runme.sh"
        script.write_text(f'#!/bin/sh\nset -eux\ncd ../connection\nINVENTORY=../{folder.name}/test_connection.inventory ./test.sh {words} "$@"\n')
        script.chmod(0o755)

    # ---- running ----

    def environment(self, mode: Mode, integration: Path, cwd: Path, output: Path, control: Path) -> dict[str, str]:
        """What ansible-test gives a target, plus the strategy of the mode."""
        return {
            "PATH": f"{self.base / 'bin'}:{BIN}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.base / "home"),
            "USER": pwd.getpwuid(os.geteuid()).pw_name,
            "LANG": "C.UTF-8",
            "LC_ALL": "C.UTF-8",
            "TERM": "dumb",
            "PAGER": "/bin/cat",
            "PYTHONPATH": f"{ROOT}:{self.collections}:{BUILD / 'python'}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "ANSIBLE_CONFIG": str(integration / "integration.cfg"),
            "ANSIBLE_DEPRECATION_WARNINGS": "false",
            "ANSIBLE_DEVEL_WARNING": "false",
            "ANSIBLE_FORCE_COLOR": "false",
            "ANSIBLE_FORCE_HANDLERS": "true",
            "ANSIBLE_HOST_KEY_CHECKING": "false",
            "ANSIBLE_HOST_PATTERN_MISMATCH": "error",
            "ANSIBLE_INVENTORY": "/dev/null",
            "ANSIBLE_LIBRARY": "/dev/null",
            "ANSIBLE_PLAYBOOK_DIR": str(cwd),
            "ANSIBLE_RETRY_FILES_ENABLED": "false",
            # ansible-test gives it to targets that are roles; what a script sees of the default is in expected output.
            **({"ANSIBLE_ROLES_PATH": str(integration / "targets")} if cwd == integration else {}),
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(control),
            **({} if mode.strategy == "linear" else {"ANSIBLE_STRATEGY": mode.strategy}),
            "ANSIBLE_TEST_CI": "",
            "ANSIBLE_TEST_PYTHON_INTERPRETER": sys.executable,
            "ANSIBLE_TEST_PYTHON_VERSION": f"{sys.version_info[0]}.{sys.version_info[1]}",
            "ANSIBLE_TEST_ANSIBLE_LIB_ROOT": str(Path(_module_folder("ansible"))),
            "CHURTEN_POOL_DIR": str(self.base / "pool"),
            "INVENTORY_PATH": str(integration / "inventory"),
            "OUTPUT_DIR": str(output),
            "PYTHONFAULTHANDLER": "1",
        }

    def aliases(self, name: str) -> set[str]:
        """The target's aliases file, which says what it needs."""
        path = self.test / "integration" / "targets" / name / "aliases"
        lines = path.read_text().splitlines() if path.exists() else []
        return {line.partition("#")[0].strip().rstrip("/") for line in lines} - {""}

    def run(self, name: str, mode: Mode, settings: Target, number: int) -> Result:
        """One run of a target with what it wants to be set up before."""
        begin = time.monotonic()
        log = BUILD / "logs" / name / (mode.name if number == 0 else f"{mode.name}.{number}")
        log.parent.mkdir(parents=True, exist_ok=True)
        control = Path(tempfile.mkdtemp(prefix="cp", dir=self.base))
        output = BUILD / "output"
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir()
        shutil.rmtree(self.base / "home", ignore_errors=True)
        (self.base / "home").mkdir(mode=0o700)
        before_run = accounts()
        result = Result(name, mode.name, "pass", log=str(log.relative_to(BUILD)), runs=1)
        try:
            with open(log, "wb") as out:
                before = sorted(a.rpartition("/")[2] for a in self.aliases(name) if a.startswith(("setup/always/", "setup/once/")))
                packages = [package for one in before for package in PACKAGES.get(one, [])]
                for one in [*(b for b in before if b not in PACKAGES), name]:
                    self._install([*packages, *settings.pip])
                    code = self._start(one, mode, settings, control, output, out)
                    if code:
                        result.result = "FAIL"
                        result.reason = f"no end after {settings.seconds} s" if code == "timeout" else f"exit code {code}"
                        if one != name:
                            result.reason += f" of {one}"
                        break
            if mode.kind == "stock":
                result.ssh = self._end_masters(control)
        finally:
            self._end_masters(control)
            remove_accounts(before_run)
            shutil.rmtree(control, ignore_errors=True)
        result.seconds = round(time.monotonic() - begin, 1)
        return result

    def _start(self, name: str, mode: Mode, settings: Target, control: Path, output: Path, out: object) -> int | str:
        integration = self.tree(mode, name)
        folder = integration / "targets" / name
        if (folder / "runme.sh").exists():
            words, cwd = ["./runme.sh"], folder
        else:
            words, cwd = [str(BIN / "ansible-playbook"), "-i", "inventory", self._playbook(name, integration, output)], integration
        env = self.environment(mode, integration, cwd, output, control)
        env.update({k: v.format(**self.variables, home=pwd.getpwuid(os.geteuid()).pw_dir) for k, v in settings.env})
        return execute(words, cwd, env, out, settings.seconds)

    @staticmethod
    def _install(packages: list[str]) -> None:
        """Puts Python packages where the controller finds them."""
        for package in packages:
            if not (BUILD / "python" / package).exists():
                words = [sys.executable, "-m", "pip", "install", "-q", "--target", str(BUILD / "python"), package]
                subprocess.run(words, check=True, stdin=subprocess.DEVNULL, timeout=300)

    def _playbook(self, name: str, integration: Path, output: Path) -> str:
        play = {
            "hosts": "testhost",
            "gather_facts": "gather_facts/no" not in self.aliases(name),
            "vars_files": ["integration_config.yml"],
            "vars": {"output_dir": str(output)},
            "roles": [name],
        }
        path = integration / f"{name}.yml"
        path.write_text(json.dumps([play]))
        return path.name

    @staticmethod
    def _end_masters(control: Path) -> bool:
        """Ends what ControlPersist kept; answers whether there was a connection."""
        sockets = list(control.iterdir()) if control.exists() else []
        for path in sockets:
            words = ["ssh", "-F", "none", "-o", f"ControlPath={path}", "-O", "exit", "nobody"]
            subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=False)
        return bool(sockets)


def _module_folder(name: str) -> str:
    import importlib.util

    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.origin is not None
    return str(Path(spec.origin).parent)


def accounts() -> tuple[set[str], set[str], set[str]]:
    """Names of the accounts, of the home folders, and of what is in root's that there are."""
    in_root = os.listdir(ROOT_HOME) if os.geteuid() == 0 else ()
    return {p.pw_name for p in pwd.getpwall()}, {path.name for path in Path("/home").glob("*")}, set(in_root)


def remove_accounts(before: tuple[set[str], set[str], set[str]]) -> None:
    """Targets are made for containers: some leave accounts, the homes of accounts that they removed, or files in root's, which makes the next run fail."""
    if os.geteuid() != 0:
        return
    now = accounts()
    for name in now[0] - before[0]:
        if not pwd.getpwnam(name).pw_gecos.startswith("churten lab "):  # another lab's
            subprocess.run(["userdel", "-f", name], stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=False)
    left = [*(Path("/home", name) for name in now[1] - before[1]), *(Path(ROOT_HOME, name) for name in now[2] - before[2] if name[0] != ".")]
    for path in left:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def execute(words: list[str], cwd: Path, env: dict[str, str], out: object, seconds: int) -> int | str:
    """Exit code, or `timeout`; the run's process group is ended in any case."""
    process = subprocess.Popen(words, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)  # type: ignore[call-overload]
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGABRT)  # faulthandler writes where it hangs
            time.sleep(2)
        return "timeout"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


# ---- all runs -----------------------------------------------------------------------------------------------------------


class Book:
    """All results, written to results.json after each run; those of stock can be taken from there."""

    def __init__(self, reuse: bool) -> None:
        self.path = BUILD / "results.json"
        self.results: dict[tuple[str, str], Result] = {}
        self.known: dict[tuple[str, str], Result] = {}
        try:
            data = json.loads(self.path.read_text())
            if data["core"] == CORE:
                self.known = {(r["target"], r["mode"]): Result(**r) for r in data["results"]}
        except (OSError, ValueError, KeyError, TypeError):
            pass
        self.reuse = reuse

    def put(self, result: Result) -> Result:
        self.results[result.target, result.mode] = result
        merged = {**self.known, **self.results}
        draft = self.path.with_suffix(".new")
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        data = {"core": CORE, "date": now, "results": [dataclasses.asdict(r) for _, r in sorted(merged.items())]}
        draft.write_text(json.dumps(data, indent=1))
        draft.replace(self.path)
        return result


def once(runner: Runner, book: Book, name: str, mode: Mode, settings: Target, repeat: int, lazy: bool) -> Result:
    """The result of one target in one mode; `repeat` runs for churten, the first failure counts.

    lazy: stock runs only if churten fails.
    """
    if mode.oracle is None:
        known = book.known.get((name, mode.name))
        if book.reuse and known is not None:
            return book.put(known)
        return book.put(runner.run(name, mode, settings, 0))
    stock = book.results.get((name, mode.oracle)) or (book.known.get((name, mode.oracle)) if book.reuse else None)
    if stock is None and not lazy:
        stock = once(runner, book, name, MODES[mode.oracle], settings, 1, lazy)
    if stock is not None and stock.result != "pass":
        return book.put(Result(name, mode.name, "stock fails", stock.reason))
    if stock is not None and mode.kind == "connection" and not stock.ssh:
        return book.put(Result(name, mode.name, "skipped", "no SSH connection in it"))
    total, found = 0.0, None
    for number in range(repeat):
        found = runner.run(name, mode, settings, number)
        total += found.seconds
        found.runs = number + 1
        if found.result != "pass":
            break
    assert found is not None
    found.seconds = round(total / found.runs, 1)
    if found.result != "pass" and stock is None:
        stock = once(runner, book, name, MODES[mode.oracle], settings, 1, lazy)
        if stock.result != "pass":
            found = Result(name, mode.name, "stock fails", stock.reason)
    return book.put(found)


def table(results: list[Result], modes: list[str]) -> str:
    """Markdown, one line per target."""
    by = {(r.target, r.mode): r for r in results}
    lines = ["| target | " + " | ".join(modes) + " |", "|---" * (len(modes) + 1) + "|"]
    for name in sorted({r.target for r in results}):
        cells = []
        for mode in modes:
            r = by.get((name, mode))
            text = "" if r is None else r.result
            if r is not None and r.reason:
                text += f" ({r.reason})"
            if r is not None and r.runs > 1:
                text += f" x{r.runs}"
            cells.append(text)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


@contextlib.contextmanager
def authorized_keys() -> Iterator[None]:
    """Some targets copy root's authorized_keys: a file without a key, if there is none."""
    path = Path(pwd.getpwuid(os.geteuid()).pw_dir, ".ssh", "authorized_keys")
    text = "# made by churten's conformance tests, and removed by them\n"
    if path.exists():
        yield
        return
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.write_text(text)
    path.chmod(0o600)
    try:
        yield
    finally:
        if path.exists() and path.read_text() == text:
            path.unlink()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """One run on a machine at a time: targets use the same accounts, files and ports."""
    with open(Path(tempfile.gettempdir(), "churten-conformance.lock"), "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            sys.exit("another conformance run is under way on this machine")
        yield


@contextlib.contextmanager
def hosts() -> Iterator[tuple[Lab, Path]]:
    """A lab with one host that lets the account of this process in by key, and a folder for sockets."""
    top = Path(tempfile.mkdtemp(prefix="churten-conf-", dir="/var/tmp" if os.geteuid() == 0 else None))
    top.chmod(0o755)
    base = Path(tempfile.mkdtemp(prefix="cc-", dir="/tmp"))
    lab = Lab(top / "lab")
    options = Options()
    if os.geteuid() == 0:
        # Targets are made for root, as ansible-test runs them, and make accounts that log in; only the lab's key lets them, on loopback.
        options.sshd_options = ["PermitRootLogin prohibit-password", "AllowUsers *", "UsePAM yes"]
    # For targets that connect to these by their address (see targets.py).
    options.sshd_options += [f"ListenAddress 127.0.0.{n}:{PORT}" for n in (1, 3, 4, 254)]
    try:
        lab.up(1, options)
        with authorized_keys():
            yield lab, base
    finally:
        lab.down()
        shutil.rmtree(top, ignore_errors=True)
        shutil.rmtree(base, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="ansible-core's integration targets under stock and under churten")
    parser.add_argument("targets", nargs="*", help="names or patterns; `races` and `smoke` are sets; default: all")
    parser.add_argument("--modes", default=",".join(DEFAULT_MODES), help=f"comma list of {', '.join(MODES)}")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each target under churten")
    parser.add_argument("--reuse-stock", action="store_true", help="take what stock did from the last results.json")
    parser.add_argument("--lazy-stock", action="store_true", help="run stock only where churten fails")
    args = parser.parse_args()
    patterns = [p for word in args.targets or ["*"] for p in {"races": RACES, "smoke": SMOKE}.get(word, [word])]
    names = [n for p in patterns for n in (fnmatch.filter(TARGETS, p) or [p])]
    modes = [MODES[m] for m in args.modes.replace(" ", ",").split(",") if m]
    book = Book(args.reuse_stock)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the lab is taken down in any case
    with alone(), hosts() as (lab, base):
        runner = Runner(lab, base)
        try:
            for name in names:
                settings = TARGETS.get(name, Target())
                if not (runner.test / "integration" / "targets" / name).is_dir() and name != "connection_churten":
                    print(f"{name}: not part of ansible-core {CORE}", flush=True)
                    continue
                for mode in modes:
                    if mode.strategy.endswith("free") and not settings.free:
                        continue
                    result = once(runner, book, name, mode, settings, args.repeat, args.lazy_stock)
                    print(f"{name:32} {mode.name:16} {result.result:12} {result.seconds:6.1f} s  {result.reason}", flush=True)
        finally:
            runner.close()
    results = list(book.results.values())
    print(f"\nansible-core {CORE}\n\n" + table(results, [m for m in MODES if any(r.mode == m for r in results)]))
    for name, reason in sorted(NOT_RUN.items()):
        if not args.targets:
            print(f"not run: {name}: {reason}")
    failed = [r for r in results if r.result == "FAIL" and MODES[r.mode].oracle is not None]
    print(f"\n{sum(r.result == 'pass' for r in results)} pass, {len(failed)} fail under churten only")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
