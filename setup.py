"""Builds csrc/ into churten._core and churten-pool; installs plugins/ as the collection churten.core.

Switches (environment): CH_DEBUG=1 (-O0 -g3, asserts on), CH_SANITIZE=1 (ASan + UBSan).
"""

import os
import shutil
import subprocess
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
NEEDS = {"libssh": "libssh-dev", "jansson": "libjansson-dev", "zlib": "zlib1g-dev"}
WARN = "-std=gnu11 -D_GNU_SOURCE -Wall -Wextra -Wshadow -Wformat=2 -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith -Wvla -fvisibility=hidden".split()
# The pool's own sources and the base parts it shares with the extension, which has everything but POOL_ONLY.
POOL_ONLY = {"pool_main.c", "ssh.c", "knownhosts.c", "sshproc.c", "link.c", "agentlink.c", "loop.c", "log.c", "map.c"}
POOL_ONLY |= {p.name for p in (ROOT / "csrc").glob("pool*.c")}
SHARED = {"err.c", "buf.c", "wire.c", "zip.c"}


def pkg_config(what):
    if shutil.which("pkg-config") is None:
        raise SystemExit("churten: pkg-config is not installed; apt-get install pkg-config")
    words = []
    for name, package in NEEDS.items():
        done = subprocess.run(["pkg-config", what, name], capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"churten: the C library {name} was not found by pkg-config; apt-get install {package}")
        words += done.stdout.split()
    return words


def flags():
    out = list(WARN)
    if os.environ.get("CH_DEBUG"):
        out += ["-O0", "-g3", "-UNDEBUG"]
    if os.environ.get("CH_SANITIZE"):
        out += ["-fsanitize=address,undefined", "-fno-omit-frame-pointer", "-g"]
    return out


class BuildExt(build_ext):
    """Also links churten-pool, the broker executable, beside the extension."""

    def run(self):
        super().run()
        sources = sorted(str(p) for p in Path("csrc").glob("*.c") if p.name in POOL_ONLY | SHARED)
        if not Path("csrc/pool_main.c").exists():
            return
        where = Path("churten") if self.inplace else Path(self.build_lib) / "churten"
        where.mkdir(parents=True, exist_ok=True)
        objects = self.compiler.compile(
            sources, output_dir=str(Path(self.build_temp) / "pool"), extra_postargs=flags() + pkg_config("--cflags")
        )
        extra = ["-fsanitize=address,undefined"] if os.environ.get("CH_SANITIZE") else []
        self.compiler.link_executable(objects, str(where / "churten-pool"), extra_postargs=extra + pkg_config("--libs"))


sources = [str(p) for p in sorted(Path("csrc").glob("*.c")) if p.name not in POOL_ONLY]
san = ["-fsanitize=address,undefined"] if os.environ.get("CH_SANITIZE") else []
collection = {
    "ansible_collections.churten.core.plugins" + ("." + d.name if d else ""): "plugins" + ("/" + d.name if d else "")
    for d in [None] + sorted(p for p in Path("plugins").glob("*") if p.is_dir())
}
setup(
    packages=["churten"] + ["churten." + p.parent.name for p in sorted(Path("churten").glob("*/__init__.py"))] + list(collection),
    package_dir=collection,
    package_data={"churten": ["churten-pool", "*.pyi", "py.typed"]},
    ext_modules=[
        Extension(
            "churten._core",
            sources,
            extra_compile_args=flags() + pkg_config("--cflags"),
            extra_link_args=san + pkg_config("--libs"),
        )
    ],
    cmdclass={"build_ext": BuildExt},
)
