"""`churten pool status|stop` against a real pool."""

import json

import pytest

from churten.cli.main import main


@pytest.fixture
def here(pool_dir, monkeypatch):
    monkeypatch.setenv("CHURTEN_POOL_DIR", str(pool_dir))


def test_without_a_pool(here, capsys):
    assert main(["pool", "status"]) == 3
    assert "no pool is running" in capsys.readouterr().err
    assert main(["pool", "stop"]) == 0


def test_status(here, pool, capsys):
    pool.talk().begin()
    assert main(["pool", "status"]) == 0
    first, head, row = capsys.readouterr().out.splitlines()
    assert f"process {pool.process.pid}: 1 sessions, 1 other clients" in first
    assert head.split()[0] == "host" and row.split()[:4] == ["host1", "local", "open", "1"]
    assert main(["pool", "status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pid"] == pool.process.pid


def test_stop(here, pool, capsys):
    assert main(["pool", "stop"]) == 0
    assert pool.wait() == 0
    assert not pool.path.exists()
    assert "stopped" in capsys.readouterr().out


def test_a_bad_directory_is_one_sentence(here, pool_dir, capsys):
    pool_dir.chmod(0o755)
    assert main(["pool", "status"]) == 1
    assert "mode 0700" in capsys.readouterr().err
    pool_dir.chmod(0o700)
