"""The fixtures of tests/plugins (lab hosts, playbooks over them) for tests of faults; tests/native/talking.py speaks to a pool of its own."""

import sys
import tempfile
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parents[1] / "plugins"), str(Path(__file__).parents[1] / "native")]

import runs  # noqa: E402
import talking  # noqa: E402
from lab_plays import collections, lab, play, pool_dir, same  # noqa: E402, F401


@pytest.fixture
def own_pool():
    """A churten-pool of this test alone (talking.PoolProcess), for what Ansible need not be there."""
    # Not tmp_path: a socket's path is limited to 107 bytes.
    with tempfile.TemporaryDirectory(prefix="ch") as directory:
        made = talking.PoolProcess(directory)
        try:
            assert made.ready, made.errors()
            yield made
        finally:
            made.stop()


@pytest.fixture
def bench(request, tmp_path):
    """Runs that are watched (runs.Bench)."""
    made = runs.Bench(request.getfixturevalue("lab"), request.getfixturevalue("collections"), tmp_path)
    try:
        yield made
    finally:
        made.close()
