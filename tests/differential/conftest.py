# SPDX-License-Identifier: GPL-3.0-or-later
"""One lab and one runner per session.

CHURTEN_DIFF_CACHE=name uses a lab and a folder of that name, leaves both, and runs stock only where a play changed.
CHURTEN_DIFF_KEEP=folder keeps every run's output there; CHURTEN_TEST_ANSIBLE is the bin folder of the venv whose
ansible-playbook is used (default: the one pytest runs in).
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parent.parent))

import harness  # noqa: E402

from churten.lab.lab import Lab  # noqa: E402


def pytest_configure(config):
    config.addinivalue_line("markers", "quick: part of `make test`")


CACHE = os.environ.get("CHURTEN_DIFF_CACHE")


@pytest.fixture(scope="session")
def lab():
    # Not below pytest's tmp_path: the lab's account must be able to enter every folder above.
    top = "/var/tmp" if os.geteuid() == 0 else tempfile.gettempdir()
    place = Path(top, f"churten-diff-{CACHE}") if CACHE else Path(tempfile.mkdtemp(prefix="churten-diff-", dir=top))
    place.mkdir(exist_ok=True)
    place.chmod(0o755)
    made = Lab(place / "lab")
    try:
        made.up(3)
        yield made
    finally:
        if not CACHE:
            made.down()
            shutil.rmtree(place, ignore_errors=True)


@pytest.fixture(scope="session")
def runner(lab):
    base = Path(f"/tmp/cd-{CACHE}") if CACHE else Path(tempfile.mkdtemp(prefix="cd-", dir="/tmp"))
    base.mkdir(mode=0o700, exist_ok=True)
    made = harness.Runner(base, lab, keep=bool(CACHE))
    try:
        yield made
    finally:
        made.close()
        if os.environ.get("CHURTEN_DIFF_KEEP"):
            shutil.copytree(base / "runs", os.environ["CHURTEN_DIFF_KEEP"], dirs_exist_ok=True)
        if not CACHE:
            shutil.rmtree(base, ignore_errors=True)
