"""Builds csrc/ into churten._core and churten-pool; installs plugins/ as the collection churten.core.

Switches (environment): CH_DEBUG=1 (-O0 -g3, asserts on), CH_SANITIZE=1 (ASan + UBSan).
"""

import base64
import csv
import hashlib
import io
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

try:
    from setuptools.command.editable_wheel import editable_wheel
except ImportError:  # too old for `pip install -e`, good enough for `setup.py build_ext`
    editable_wheel = None

ROOT = Path(__file__).resolve().parent
NEEDS = {"libssh": "libssh-dev", "jansson": "libjansson-dev", "zlib": "zlib1g-dev"}
WARN = [
    "-std=gnu11",
    "-D_GNU_SOURCE",
    "-Wall",
    "-Wextra",
    "-Wshadow",
    "-Wformat=2",
    "-Wstrict-prototypes",
    "-Wmissing-prototypes",
    "-Wpointer-arith",
    "-Wvla",
    "-fvisibility=hidden",
]
# The pool's own sources and the base parts it shares with the extension, which has everything but POOL_ONLY.
POOL_ONLY = {p.name for pattern in ("pool*.c", "ssh*.c") for p in (ROOT / "csrc").glob(pattern)}
POOL_ONLY |= {"knownhosts.c", "knownhosts_add.c", "hostkey.c", "connect.c", "resolve.c", "keyagent.c", "b64.c", "sha1.c"}
POOL_ONLY |= {"link.c", "agentlink.c", "outq.c", "proc.c", "table.c", "loop.c", "log.c"}
SHARED = {"err.c", "buf.c", "wire.c", "zip.c"}

SANITIZE = ["-fsanitize=address,undefined"] if os.environ.get("CH_SANITIZE") else []
PLAIN = not (SANITIZE or os.environ.get("CH_DEBUG"))
HARDEN_COMPILE = ["-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2", "-fstack-protector-strong"] if PLAIN else []
HARDEN_LINK = ["-Wl,-z,relro,-z,now"] if PLAIN else []


def need(condition, missing, package):
    """One clear sentence instead of a compiler's page of errors."""
    if not condition:
        raise SystemExit(f"churten: {missing} was not found; apt-get install {package}")


def check_machine(compiler):
    """What pip cannot install: a C compiler, Python's headers and the libraries."""
    command = (os.environ.get("CC") or compiler or "cc").split()[0]
    need(shutil.which(command), f"the C compiler {command}", "build-essential")
    header = Path(sysconfig.get_path("include")) / "Python.h"
    need(header.exists(), f"Python.h of this Python ({header})", "python3-dev")
    need(shutil.which("pkg-config"), "the program pkg-config", "pkg-config")
    for name, package in NEEDS.items():
        known = subprocess.run(["pkg-config", "--exists", name], check=False).returncode == 0
        need(known, f"the C library {name} (asked pkg-config)", package)


def pkg_config(what):
    return subprocess.run(["pkg-config", what, *NEEDS], check=True, capture_output=True, text=True).stdout.split()


def flags():
    out = list(WARN) + HARDEN_COMPILE + SANITIZE
    if os.environ.get("CH_DEBUG"):
        out += ["-O0", "-g3", "-UNDEBUG"]
    if SANITIZE:
        out += ["-fno-omit-frame-pointer", "-g"]
    return out


class BuildExt(build_ext):
    """Also links churten-pool, the broker executable, beside the extension, and packs the agent for this Python."""

    def run(self):
        check_machine(sysconfig.get_config_var("CC"))
        for extension in self.extensions:
            extension.extra_compile_args = flags() + pkg_config("--cflags")
            extension.extra_link_args = HARDEN_LINK + SANITIZE + pkg_config("--libs")
        super().run()
        if Path("csrc/pool_main.c").exists():
            where = Path("churten") if self.inplace else Path(self.build_lib) / "churten"
            self.build_pool(where)
            self.build_agent(where)

    def build_agent(self, where):
        sys.path.insert(0, str(ROOT))
        from churten.transport import bootstrap

        bootstrap.build(where / bootstrap.BUILT.name)

    def build_pool(self, where):
        sources = sorted(str(p) for p in Path("csrc").glob("*.c") if p.name in POOL_ONLY | SHARED)
        target = where / "churten-pool"
        newest = max(p.stat().st_mtime for p in [*Path("csrc").iterdir(), Path("setup.py")])
        if target.exists() and target.stat().st_mtime > newest and not self.force:
            return
        where.mkdir(parents=True, exist_ok=True)
        objects = self.compiler.compile(
            sources, output_dir=str(Path(self.build_temp) / "pool"), extra_postargs=flags() + pkg_config("--cflags")
        )
        self.compiler.link_executable(
            objects, str(target), extra_postargs=HARDEN_LINK + SANITIZE + pkg_config("--libs")
        )
        target.chmod(0o755)


def add_to_wheel(wheel, name, text):
    """Puts one more file into a wheel and into its RECORD."""
    with zipfile.ZipFile(wheel) as old:
        members = {info.filename: (info, old.read(info)) for info in old.infolist()}
    record = next(path for path in members if path.endswith(".dist-info/RECORD"))
    digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
    row = io.StringIO()
    csv.writer(row, lineterminator="\n").writerow([name, f"sha256={digest}", len(text.encode())])
    info, lines = members.pop(record)
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as new:
        for entry, data in members.values():
            new.writestr(entry, data)
        new.writestr(name, text)
        new.writestr(info, row.getvalue() + lines.decode())


commands = {"build_ext": BuildExt}
if editable_wheel is not None:

    class EditableWheel(editable_wheel):
        """`pip install -e .`: ansible-core looks for collections in the directories of sys.path, import hooks do not count.

        Therefore build/editable holds the collection (a link to plugins/), and a .pth file puts that directory on sys.path.
        """

        def run(self):
            distribution = self.distribution
            distribution.packages = [name for name in distribution.packages if name.split(".")[0] == "churten"]
            distribution.package_dir = {}
            collection = ROOT / "build" / "editable" / "ansible_collections" / "churten" / "core"
            collection.mkdir(parents=True, exist_ok=True)
            link = collection / "plugins"
            if not link.is_symlink():
                link.symlink_to(ROOT / "plugins")
            super().run()
            wheel = max(Path(self.dist_dir).glob("churten-*.whl"), key=lambda path: path.stat().st_mtime)
            add_to_wheel(wheel, "churten-collection.pth", f"{ROOT / 'build' / 'editable'}\n")

    commands["editable_wheel"] = EditableWheel

collection = {
    "ansible_collections.churten.core.plugins" + ("." + d.name if d else ""): "plugins" + ("/" + d.name if d else "")
    for d in [None, *sorted(p for p in Path("plugins").glob("*") if p.is_dir() and p.name != "__pycache__")]
}
setup(
    packages=[
        "churten",
        *(".".join(d.parts) for d in sorted(Path("churten").rglob("*")) if d.is_dir() and d.name != "__pycache__"),
        *collection,
    ],
    package_dir=collection,
    package_data={"": ["*.json", "*.pyi", "py.typed", "*.html", "*.css", "*.js"]},
    ext_modules=[
        Extension(
            "churten._core",
            [str(p) for p in sorted(Path("csrc").glob("*.c")) if p.name not in POOL_ONLY],
            depends=["setup.py", *(str(p) for p in sorted(Path("csrc").glob("*.h")))],
        )
    ],
    cmdclass=commands,
)
