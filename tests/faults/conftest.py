"""The fixtures of tests/plugins (lab hosts, playbooks over them) for tests of faults; tests/native/talking.py speaks to a pool of its own."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / "plugins"), str(Path(__file__).parents[1] / "native")]

from lab_plays import collections, lab, play, pool_dir, same  # noqa: E402, F401
