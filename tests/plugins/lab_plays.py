"""Lab hosts, and playbooks run over them with the built-in connection plugins and with ours: fixtures and helpers."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from churten.lab import Lab

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
PLAYBOOK = Path(sys.executable).with_name("ansible-playbook")
# What differs from run to run, whatever the connection.
VARYING = {
    "start",
    "end",
    "delta",
    "atime",
    "mtime",
    "ctime",
    "inode",
    "dev",
    "block_size",
    "blocks",
    "ansible_job_id",
    "elapsed",
}
VARYING |= {"results_file", "ansible_job_id", "backup_file", "exception", "warnings", "deprecations", "version", "pid", "_original_basename", "frame"}
TEMPORARY = re.compile(r"ansible-(?:tmp|local|moduletmp)-[\w.-]+|ansible-local-\w+|tmp\w{8}|BECOME-SUCCESS-\w+|ansible_\w+?_payload_\w+")


class Run:
    """What one ansible-playbook printed and what its tasks returned."""

    def __init__(self, done, results):
        self.rc = done.returncode
        self.text = done.stdout + done.stderr
        self.results = results

    def comparable(self):
        """Status and normalised result of every task, per host in order."""
        found = sorted(self.results, key=lambda line: line["host"])
        return [(line["host"], line["task"], line["status"], normal(line["result"])) for line in found]

    def one(self, task):
        """The result of the only task of that name."""
        found = [line for line in self.results if line["task"] == task]
        assert len(found) == 1, self.text[-3000:]
        return found[0]


def normal(value):
    if isinstance(value, dict):
        return {k: normal(v) for k, v in value.items() if k not in VARYING}
    if isinstance(value, list):
        return [normal(v) for v in value]
    return TEMPORARY.sub("T", value) if isinstance(value, str) else value


def differences(one, two, where=""):
    """(path, value, value) of everything that differs."""
    if isinstance(one, dict) and isinstance(two, dict):
        for key in sorted({*one, *two}):
            yield from differences(one.get(key, "missing"), two.get(key, "missing"), f"{where}/{key}")
    elif isinstance(one, (list, tuple)) and isinstance(two, (list, tuple)) and len(one) == len(two):
        for i, (left, right) in enumerate(zip(one, two, strict=True)):
            yield from differences(left, right, f"{where}/{i}")
    elif one != two:
        yield where, one, two


def assert_same(stock, ours):
    """Every task of two runs came out the same."""
    assert stock.results, stock.text[-3000:]
    for theirs, mine in zip(stock.comparable(), ours.comparable(), strict=False):
        log = "\n".join(line for line in ours.text.splitlines() if "churten" in line)[-3000:]
        found = list(differences(theirs, mine))
        assert not found, f"{log}\n{theirs[:2]}: {found}"
    assert len(ours.results) == len(stock.results), ours.text[-3000:]
    assert ours.rc == stock.rc


@pytest.fixture(scope="session")
def collections():
    """A collections path with the plugins of this checkout, whether churten is installed or not."""
    with tempfile.TemporaryDirectory(prefix="churten-col-") as top:
        core = Path(top) / "ansible_collections" / "churten" / "core"
        core.mkdir(parents=True)
        (core / "plugins").symlink_to(ROOT / "plugins")
        yield top


@pytest.fixture(scope="session")
def pool_dir():
    """A pool of this test run alone."""
    if not (ROOT / "churten" / "churten-pool").exists():
        pytest.skip("churten-pool is not built")
    from churten.transport.pool import STOP, Pool, PoolFailure

    with tempfile.TemporaryDirectory(prefix="churten-pool-") as directory:
        os.chmod(directory, 0o700)
        os.environ["CHURTEN_POOL_DIR"] = directory
        try:
            yield directory
        finally:
            os.environ["CHURTEN_POOL_DIR"] = directory
            with contextlib.suppress(PoolFailure):
                Pool.get().control(STOP)
            Pool.get().close()
            os.environ.pop("CHURTEN_POOL_DIR", None)


@pytest.fixture(scope="session")
def lab():
    parent = Path(tempfile.mkdtemp(prefix="chplug-"))
    parent.chmod(0o755)
    made = Lab(parent / "lab")
    try:
        made.up(2)
        yield made
    finally:
        made.down()
        shutil.rmtree(parent)


@pytest.fixture
def play(lab, collections, pool_dir, tmp_path):
    """Runs a playbook text against the lab with a given connection plugin."""

    def run(text, connection, *words, env=None, inventory=None, timeout=120, **variables):
        results = tmp_path / "results"
        results.write_text("")
        book = tmp_path / "play.yml"
        book.write_text(text)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("ANSIBLE_")}
        environment |= {
            "ANSIBLE_CONFIG": str(lab.ansible_cfg),
            "ANSIBLE_COLLECTIONS_PATH": collections,
            "ANSIBLE_CALLBACK_PLUGINS": str(HERE / "callback"),
            "ANSIBLE_CALLBACKS_ENABLED": "churten_results",
            "ANSIBLE_HOME": str(tmp_path / "home"),
            "ANSIBLE_NOCOLOR": "1",
            "CHURTEN_RESULTS": str(results),
            "CHURTEN_POOL_DIR": pool_dir,
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
            **(env or {}),
        }
        extra = {"ansible_connection": connection, "out": str(tmp_path), **variables}
        done = subprocess.run(
            [PLAYBOOK, "-i", inventory or str(lab.inventory), "-e", json.dumps(extra), *words, str(book)],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        return Run(done, [json.loads(line) for line in results.read_text().splitlines()])

    return run


@pytest.fixture
def same(play):
    """Runs a playbook with the built-in ssh plugin and with ours; the results must not differ. Answers both runs."""

    def compare(text, *words, **variables):
        stock = play(text, "ssh", "-vvv", *words, **variables)
        ours = play(text, "churten.core.ssh", "-vvv", *words, **variables)
        assert_same(stock, ours)
        return stock, ours

    return compare
