"""`churten pool status|stop` against a real pool."""

import json

import pytest
from talking import NO_AGENT

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
    status = json.loads(capsys.readouterr().out)
    assert status["pid"] == pool.process.pid and status["failed"] == 0
    assert status["sessions"][0]["bytes_in"] > 50


def test_the_last_failures_are_kept(here, pool, capsys):
    talk = pool.talk()
    for number in range(1, 20):
        talk.failed(talk.open(number, f"k{number}", "libssh", host="127.0.0.1", port=1, user='"x"'))
    assert main(["pool", "status", "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert status["failed"] == 19 and len(status["last_failures"]) == 16 and status["sessions"] == []
    assert status["last_failures"][0]["layer"] == "tcp" and "refused" in status["last_failures"][0]["message"]
    assert main(["pool", "status"]) == 0
    assert "host1 failed (unreachable, tcp): " in capsys.readouterr().out


def test_levels_of_the_log(here, make_pool, pool_dir):
    texts = []
    for level in ("error", "info", "debug"):
        pool = make_pool("--log-level", level)
        talk = pool.talk()
        talk.begin()
        assert talk.result(talk.exec("exit 3", agent=NO_AGENT))[0] == 3
        talk.failed(talk.open(9, "k9", "libssh", host="127.0.0.1", port=1, user="nobody"))
        pool.stop()
        texts.append(pool.log.read_text())
        pool.log.unlink()
    assert all("refused" in text for text in texts)
    assert ["agent ready" in text for text in texts] == [False, True, True]
    assert ["ended after" in text for text in texts] == [False, False, True]
    assert "error, info or debug, not loud" in make_pool("--log-level", "loud").errors()


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
