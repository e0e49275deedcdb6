# SPDX-License-Identifier: GPL-3.0-or-later
"""Every play under every churten mode against its stock oracle.

CHURTEN_DIFF_MODES (comma list; `self` for stock against itself) and CHURTEN_DIFF_PLAYS (comma list of glob patterns)
choose; marker `quick` is the subset of `make test`.
"""

import fnmatch
import os
import time

import harness
import pytest


def wanted():
    names = os.environ.get("CHURTEN_DIFF_MODES", ",".join(harness.DEFAULT_MODES)).replace("self", "again-free,again-linear").split(",")
    globs = os.environ.get("CHURTEN_DIFF_PLAYS", "*").split(",")
    for play in harness.all_plays():
        if not any(fnmatch.fnmatchcase(play.name, glob) or play.name.startswith(glob) for glob in globs):
            continue
        for name in names:
            mode = harness.MODES[name]
            if play.runs_in(mode):
                quick = play.meta.get("quick") or []
                quick = ["churten-free"] if quick is True else quick
                marks = [pytest.mark.quick] if name in quick else []
                yield pytest.param(play, mode, id=f"{play.name}-{mode.name}", marks=marks)


@pytest.mark.parametrize(("play", "mode"), list(wanted()))
def test_play(runner, play, mode):
    if runner.core < play.since:
        pytest.skip(f"needs ansible-core {play.meta['since']}")
    if why := play.skipped(mode.name, runner.core):
        pytest.skip(why)
    oracle = runner.oracle(play, mode)
    other = runner.run(play, mode)
    found = harness.compare(play, oracle, other)
    if found:
        pytest.fail(harness.report(play, oracle, other, found), pytrace=False)


@pytest.mark.quick
def test_nothing_is_left(runner):
    """When the pool has gone, no agent and nothing of its temp folders is left on the hosts (runs after the plays)."""
    runner.stop_pool()
    deadline = time.monotonic() + 20
    while harness.left_in_tmp(runner.uids, agents=True) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert harness.left_in_tmp(runner.uids, agents=True) == []
