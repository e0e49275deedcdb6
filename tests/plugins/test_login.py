# SPDX-License-Identifier: GPL-3.0-or-later
"""How the pool logs in, as the kernel sees it."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from churten import __version__
from churten.transport import runtime

PLAY = "- hosts: lab001\n  gather_facts: false\n  tasks:\n    - ansible.builtin.ping:\n"


@pytest.mark.skipif(shutil.which("cc") is None or "CH_SANITIZE" in os.environ, reason="needs a C compiler, and nothing else preloaded")
def test_until_a_command_runs_nothing_waits_for_an_acknowledgement(play, tmp_path):
    """sshd has Nagle's algorithm on till then; afterwards the kernel may acknowledge as it likes."""
    library, told, directory = tmp_path / "acks.so", tmp_path / "told", tmp_path / "pool"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, Path(__file__).with_name("acks.c"), "-ldl"], check=True)
    told.touch()
    directory.mkdir(mode=0o700)
    env = {"CHURTEN_POOL_DIR": str(directory)}
    pool = subprocess.Popen(
        [runtime.pool_executable(), "--dir", directory, "--foreground"], env=os.environ | env | {"LD_PRELOAD": str(library), "CHURTEN_ACKS": str(told)}
    )
    try:
        counts = []
        for _ in range(3):
            run = play(PLAY, "churten.core.ssh", env=env)
            assert run.rc == 0 and run.results[0]["status"] == "ok", run.text
            counts.append(told.stat().st_size)
        assert (directory / f"pool-{__version__}.sock").exists()
        assert counts[0] > 3 and counts == counts[:1] * 3, counts
    finally:
        pool.terminate()
        pool.wait(timeout=20)
