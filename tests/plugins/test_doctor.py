"""`churten doctor` on lab hosts: every line comes from a real run."""

import os

import pytest

from churten.cli.main import main


@pytest.fixture
def doctor(lab, collections, pool_dir, monkeypatch, capsys):
    monkeypatch.setenv("ANSIBLE_CONFIG", str(lab.ansible_cfg))
    monkeypatch.setenv("ANSIBLE_COLLECTIONS_PATH", collections)

    def run(*options):
        code = main(["doctor", "lab001", "-i", str(lab.inventory), *options])
        lines = [line.split(None, 1) for line in capsys.readouterr().out.splitlines()]
        return code, {line[0]: line[1] for line in lines}

    return run


def test_a_usual_host(doctor):
    code, lines = doctor()
    assert code == 0
    assert lines["result"] == "success" and lines["tasks"] == "fiber (core action)"
    assert lines["transport"] == "libssh" and lines["modules"] == "in a warm agent"
    assert lines["interpreter"].startswith("/usr/bin/python3 (3.")
    assert lines["account"].startswith("churten-lab") or os.getuid() != 0


def test_a_setting_that_libssh_cannot_serve_is_named(doctor):
    code, lines = doctor("--ssh-extra-args=-o KnownHostsCommand='/bin/cat /dev/null'")
    assert code == 0
    assert lines["transport"].startswith("an OpenSSH client process, because: ") and "knownhostscommand" in lines["transport"].lower()


def test_the_stock_way_says_why(doctor):
    code, lines = doctor("-e", "ansible_churten_transport=stock")
    assert code == 0
    assert lines["transport"] == "the built-in connection plugin, because: churten_transport is stock"
    assert lines["modules"] == "the stock way"


def test_become(doctor, lab):
    if os.getuid() != 0:
        pytest.skip("the lab has sudo only as root")
    code, lines = doctor("-b")
    assert code == 0 and lines["account"] == "root" and lines["modules"] == "in a warm agent of the become account"


def test_an_unreachable_host(doctor):
    code, lines = doctor("-e", "ansible_port=1")
    assert code == 4 and lines["result"].startswith("unreachable: ") and "refused" in lines["problem"]
    assert lines["transport"] in ("libssh", "none: nothing ran on the host")


def test_a_host_that_is_not_there(doctor, capsys):
    assert main(["doctor", "nosuchhost", "-i", "localhost,"]) == 1
    said = capsys.readouterr().err
    assert "no result for nosuchhost" in said and "ignoring: nosuchhost" in said and "HOST -i INVENTORY" in said
    assert len(said.splitlines()) < 10  # and not what -vvvv says


def test_more_than_one_host(lab, collections, pool_dir, monkeypatch, capsys):
    monkeypatch.setenv("ANSIBLE_CONFIG", str(lab.ansible_cfg))
    monkeypatch.setenv("ANSIBLE_COLLECTIONS_PATH", collections)
    assert main(["doctor", "lab001:lab002", "-i", str(lab.inventory)]) == 1
    said = capsys.readouterr().err
    assert said == f"churten doctor: lab001:lab002 -i {lab.inventory} means 2 hosts (lab001, lab002): name one of them.\n"


def test_options_may_come_first(lab, collections, pool_dir, monkeypatch, capsys):
    monkeypatch.setenv("ANSIBLE_CONFIG", str(lab.ansible_cfg))
    monkeypatch.setenv("ANSIBLE_COLLECTIONS_PATH", collections)
    assert main(["doctor", "-i", str(lab.inventory), "lab001"]) == 0
    assert capsys.readouterr().out.startswith("result       success\n")
    assert main(["doctor", "--help"]) == 0
    assert "usage: churten doctor HOST" in capsys.readouterr().out


@pytest.mark.parametrize(
    "version, package, fixed",
    [
        ("0.12.2", "", True),
        ("0.13.0", "", True),
        ("0.12.1", "", False),
        ("0.11.5", "0.11.5-1", True),
        ("0.11.4", "", False),
        ("0.11.10", "", True),
        ("0.10.6", "", False),
        ("0.10.6", "0.10.6-0+deb12u3", True),
        ("0.10.6", "0.10.6-0+deb12u10", True),
        ("0.10.6", "0.10.6-0+deb12u2", False),
        ("0.11.1", "0.10.6-0+deb12u3", False),
        ("1.0.0", "", True),
        ("", "", False),
    ],
)
def test_floors_of_libssh(version, package, fixed):
    from churten.cli import libssh

    assert libssh.is_fixed(version, package) == fixed


def test_the_library_in_use_is_named():
    from churten.cli import libssh

    assert libssh.describe().split(" ")[0].strip(",").count(".") == 2
