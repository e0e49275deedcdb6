"""`pip install .` and `pip install -e .`: Ansible finds every plugin by its full name, with no paths configured."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILT = shutil.ignore_patterns(
    ".git", ".venv", "build", "*.egg-info", "*.so", "churten-pool", "agent.start", "__pycache__", ".*_cache", "results", "bin"
)
NEW_PLUGIN = """
DOCUMENTATION = "name: late\\ntype: aggregate\\nshort_description: added later\\ndescription: [x]\\n"
from ansible.plugins.callback import CallbackBase
class CallbackModule(CallbackBase):
    CALLBACK_NAME = "churten.core.late"
"""


class Install:
    """A copy of the project, installed into an environment of its own that borrows ansible-core from ours."""

    def __init__(self, where, editable):
        self.editable = editable
        self.copy = where / "copy"
        shutil.copytree(ROOT, self.copy, ignore=BUILT)
        self.bin = where / "env" / "bin"
        self.python = self.bin / "python"
        self.elsewhere = where / "elsewhere"
        self.elsewhere.mkdir()
        self.run(sys.executable, "-m", "venv", "--without-pip", where / "env")
        self.site = Path(self.run(self.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
        # A .pth inside a directory that a .pth names is not read: churten of our own environment stays out of sight.
        (self.site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
        words = [sys.executable, "-m", "pip", "--python", self.python, "install", "-q", "--no-deps", "--no-index"]
        self.run(*words, "--no-build-isolation", *(["-e"] if editable else []), self.copy)

    def run(self, *words, **environment):
        keep = {k: v for k, v in os.environ.items() if not k.startswith(("ANSIBLE_", "CHURTEN_", "PYTHON"))}
        done = subprocess.run(
            [str(word) for word in words],
            cwd=self.elsewhere,
            env={**keep, "HOME": str(self.elsewhere), "ANSIBLE_FORCE_COLOR": "0", **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def ansible(self, command, *words, **environment):
        code = f"import sys; from ansible.cli.{command} import main; sys.argv[0] = 'ansible-{command}'; sys.exit(main())"
        return self.run(self.python, "-c", code, *words, **environment)


@pytest.fixture(scope="module", params=["copied", "editable"])
def install(request, tmp_path_factory):
    return Install(tmp_path_factory.mktemp(request.param), request.param == "editable")


def plugins(kind):
    return sorted(f"churten.core.{p.stem}" for p in (ROOT / "plugins" / kind).glob("*.py") if not p.stem.startswith("_"))


@pytest.mark.row("E17")
def test_a_missing_library_is_one_clear_sentence(tmp_path):
    words = [sys.executable, "setup.py", "-q", "build", "--build-base", str(tmp_path)]
    environment = {**os.environ, "PKG_CONFIG_LIBDIR": str(tmp_path), "PKG_CONFIG_PATH": ""}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    sentence = "churten: the C library libssh (asked pkg-config) was not found; apt-get install libssh-dev"
    assert done.stderr.strip().splitlines()[-1] == sentence


def test_it_is_the_installed_one(install):
    where = install.run(install.python, "-c", "import churten._core as core; print(core.__file__)").strip()
    assert Path(where).is_relative_to(install.site) or Path(where).is_relative_to(install.copy)
    assert install.run(install.bin / "churten", "--version").startswith("churten ")


def test_the_pool_is_installed_executable(install):
    pool = Path(install.run(install.python, "-c", "import churten; print(churten.__path__[0])").strip()) / "churten-pool"
    assert pool.stat().st_mode & 0o777 == 0o755


def test_the_agent_is_installed_compiled(install):
    code = "from churten.transport import bootstrap as b; print(len(b._checked(b._digest(), b.BUILT.read_bytes())) > 20_000)"
    assert install.run(install.python, "-c", code).strip() == "True"


@pytest.mark.parametrize("kind", ["cache", "callback", "connection", "strategy"])
def test_every_plugin_is_found_by_its_full_name(install, kind):
    assert plugins(kind)
    shown = json.loads(install.ansible("doc", "-j", "-t", kind, *plugins(kind)))
    assert sorted(shown) == plugins(kind)
    for name, entry in shown.items():
        file = Path(entry["doc"]["filename"]).resolve()
        assert file.is_relative_to(install.site) or file.is_relative_to(install.copy), (name, file)


def test_nothing_of_the_package_is_left_out(install):
    package = Path(install.run(install.python, "-c", "import churten; print(churten.__path__[0])").strip())
    wanted = {p.relative_to(install.copy / "churten") for p in (install.copy / "churten").rglob("*.*") if p.is_file()}
    wanted = {path for path in wanted if "__pycache__" not in path.parts}
    assert len(wanted) > 20
    assert {path for path in wanted if not (package / path).exists()} == set()


def test_a_play_uses_them(install):
    play = install.elsewhere / "play.yml"
    play.write_text(
        "- hosts: localhost\n  gather_facts: false\n  strategy: churten.core.free\n"
        "  tasks:\n  - set_fact: {seen: 42, cacheable: true}\n  - debug: {var: seen}\n"
    )
    cache = install.elsewhere / "cache"
    settings = {"ANSIBLE_CACHE_PLUGIN": "churten.core.jsonfile", "ANSIBLE_CACHE_PLUGIN_CONNECTION": str(cache)}
    shown = install.ansible("playbook", str(play), **settings)
    assert '"seen": 42' in shown and "failed=0" in shown
    assert [path.name for path in cache.iterdir() if path.name.endswith("localhost")]


def test_only_editable_sees_new_files_at_once(install):
    (install.copy / "plugins" / "callback").mkdir(exist_ok=True)
    (install.copy / "plugins" / "callback" / "late.py").write_text(NEW_PLUGIN)
    found = "churten.core.late" in install.ansible("doc", "-t", "callback", "-l", "churten.core")
    assert found == install.editable


def test_uninstall_takes_it_away(install):
    install.run(sys.executable, "-m", "pip", "--python", install.python, "uninstall", "-q", "-y", "churten")
    left = [p for p in install.site.rglob("*") if "churten" in p.name and p.is_file()]
    assert left == []
