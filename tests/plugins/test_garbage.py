"""The end of a run: last words of other people's plugins are said, and only where nobody can have any is the search for them left out."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from churten.compat import core_version

ROOT = Path(__file__).resolve().parents[2]
PLAY = "- hosts: localhost\n  gather_facts: false\n  tasks:\n    - ansible.builtin.debug:\n"
PROGRAM = """
import atexit, gc, sys
atexit.register(lambda: print("FROZEN", gc.get_freeze_count() > 1000))  # before core's and ours: it runs after them
sys.argv[1:] = ["play.yml"]
sys.argv[0] = "ansible-playbook"
from ansible.cli.playbook import main
main()
"""
# Holds itself in a circle, has a last word, and keeps a file open that only its end flushes.
CALLBACK = """
import os
from ansible.plugins.callback import CallbackBase

class CallbackModule(CallbackBase):
    CALLBACK_VERSION, CALLBACK_NAME = 2.0, "last_words"

    def v2_playbook_on_start(self, playbook):
        self.circle = self
        self.file = open("words", "w")
        self.file.write("flushed at the end")

    def __del__(self):
        os.write(1, b"LAST WORDS\\n")
"""


class Place:
    def __init__(self, top: Path) -> None:
        self.top = top
        core = top / "collections/ansible_collections/churten/core"
        core.mkdir(parents=True)
        (core / "plugins").symlink_to(ROOT / "plugins")
        (top / "play.yml").write_text(PLAY)

    def run(self, strategy: str, **env: str) -> str:
        base = {k: v for k, v in os.environ.items() if not k.startswith(("ANSIBLE_", "CHURTEN_", "PYTHON"))}
        paths = {"PYTHONPATH": str(ROOT), "ANSIBLE_COLLECTIONS_PATH": str(self.top / "collections"), "ANSIBLE_HOME": str(self.top / "home")}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={**base, **paths, "ANSIBLE_STRATEGY": strategy, "ANSIBLE_LOCALHOST_WARNING": "0", "PYTHONDONTWRITEBYTECODE": "1", **env},
            cwd=self.top,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def plugin(self, kind: str, name: str, text: str) -> dict[str, str]:
        folder = self.top / kind
        folder.mkdir()
        (folder / f"{name}.py").write_text(textwrap.dedent(text))
        return {f"ANSIBLE_{kind.upper()}_PLUGINS": str(folder)}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_where_everybody_is_known_nothing_is_looked_for(place: Place) -> None:
    assert "FROZEN False" in place.run("linear")
    for strategy in ("churten.core.free", "churten.core.linear"):
        assert "FROZEN True" in place.run(strategy)


@pytest.mark.parametrize("where", ["callback", "collection"])
def test_the_last_words_of_a_callback_are_said(place: Place, where: str) -> None:
    """If they are under stock: from 2.21 on callbacks live to the very end."""
    if where == "callback":
        env = place.plugin("callback", "last_words", CALLBACK) | {"ANSIBLE_CALLBACKS_ENABLED": "last_words"}
    else:
        plugins = place.top / "collections/ansible_collections/some/body/plugins/callback"
        plugins.mkdir(parents=True)
        (plugins / "last_words.py").write_text(CALLBACK)
        env = {"ANSIBLE_CALLBACKS_ENABLED": "some.body.last_words"}
    said = []
    for strategy in ("linear", "churten.core.free"):
        out = place.run(strategy, **env)
        assert "FROZEN False" in out
        said.append(("LAST WORDS" in out.partition("FROZEN False")[2], (place.top / "words").read_text()))
        (place.top / "words").unlink()
    assert said[0] == said[1], said
    if core_version() < (2, 21):
        assert said[0] == (True, "flushed at the end")


def test_a_filter_of_the_play_is_somebody_else(place: Place) -> None:
    env = place.plugin("filter", "mine", "class FilterModule:\n    def filters(self):\n        return {'mine': str}\n")
    (place.top / "play.yml").write_text(PLAY.replace("debug:", "debug:\n        msg: \"{{ 1 | mine }}\""))
    assert "FROZEN False" in place.run("churten.core.free", **env)
