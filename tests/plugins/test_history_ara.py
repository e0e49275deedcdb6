"""`churten history push --ara`: against a stand-in what is sent, and again after every cut; against a real ARA server what it then shows.

The real one needs a Python environment with ara[server]: `make test-ara` makes it (build/ara), CHURTEN_ARA names another one.
"""

import base64
import json
import os
import re
import subprocess
import sys

import pytest
from ara_servers import Real, environment, stand_in
from made_history import EVIL, history

from churten.cli.main import main
from churten.history import ara

KINDS = {"playbooks": 1, "files": 3, "plays": 1, "tasks": 6, "hosts": 4, "results": 18, "records": 1}  # of made(): 34 posts
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return history(tmp_path_factory.mktemp("h") / "h", {"tasks": 6})


def push(place, server, *words):
    return main(["history", "push", "--dir", place.directory, "--ara", server.url, *words])


def counts(server):
    return {kind: len(rows) for kind, rows in server.kept.items()}


def test_what_is_sent(made, capsys):
    with stand_in() as server:
        assert push(made, server) == 0
        assert re.search(r"run 00000000: http://127\.0\.0\.1:\d+/playbooks/1\.html \(34 sent\)", capsys.readouterr().out)
        assert counts(server) == KINDS and server.authorization == {None}
        kept = server.kept
    book = kept["playbooks"][0]
    assert book["status"] == "failed" and book["path"] == "/srv/made.yml" and {"name": "nightly"} in book["labels"]
    assert book["arguments"] == {"check": True, "forks": 5}
    for kind in ("playbooks", "plays", "tasks", "results"):
        for one in kept[kind]:
            began, ended = (ara._moment(one[name]) for name in ("started", "ended"))
            assert ended > began and (ended - began).microseconds != 0, "ARA shows whole seconds wrong"
    assert all(UUID.fullmatch(one["uuid"]) for one in kept["plays"] + kept["tasks"])
    assert all(one["content"].strip() for one in kept["files"])
    assert [one["status"] for one in kept["tasks"]] == ["completed", "completed", "failed", "completed", "completed", "failed"]
    assert [(one["lineno"], one["handler"]) for one in kept["tasks"]][3] == (4, True)
    seen = {(one["status"], *(word for word in ("changed", "ignore_errors") if one[word])) for one in kept["results"]}
    assert seen == {("ok",), ("ok", "changed"), ("failed",), ("failed", "ignore_errors"), ("skipped",), ("unreachable",)}
    other = next(one["id"] for one in kept["hosts"] if one["name"] == "other")
    assert {tuple(one["delegated_to"]) for one in kept["results"]} == {(), (other,)}
    assert {name: kept["hosts"][0][name] for name in ("ok", "changed", "failed", "facts")} == {"ok": 2, "changed": 1, "failed": 1, "facts": {"os": EVIL}}
    text = json.dumps(kept, ensure_ascii=False)
    assert text.encode() and "\\u0000" not in text, "no lone surrogate, no NUL"
    assert kept["records"][0]["value"]["host_seconds"] == pytest.approx(15.0)


def test_every_cut_is_mended_and_nothing_is_there_twice(made, capsys):
    """The server took the request, but its answer never came: at each post."""
    for dies_after in range(sum(KINDS.values())):
        with stand_in() as server:
            server.dies_after = dies_after
            assert push(made, server) == 1
            assert "run the same command again" in capsys.readouterr().err
            server.dies_after = None
            assert push(made, server) == 0
            assert counts(server) == KINDS, dies_after
            posts = server.posts
            assert push(made, server) == 0 and server.posts == posts
            capsys.readouterr()


def test_logging_in(made, tmp_path, capsys, monkeypatch):
    words = tmp_path / "words"
    words.write_text("canary word\n")
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password netword\n")
    with stand_in() as server:
        assert push(made, server, "--user", "me", "--password-file", str(words)) == 1
        assert "not yours alone" in capsys.readouterr().err
        words.chmod(0o600)
        netrc.chmod(0o600)
        assert push(made, server, "--user", "me", "--password-file", str(words)) == 0
        assert server.authorization == {"Basic " + base64.b64encode(b"me:canary word").decode()}
        server.kept.clear()
        server.authorization.clear()
        assert push(made, server, "--netrc", str(netrc)) == 0
        assert server.authorization == {"Basic " + base64.b64encode(b"me:netword").decode()}
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
        monkeypatch.setattr("getpass.getpass", lambda prompt: "asked")
        server.kept.clear()
        server.authorization.clear()
        assert push(made, server, "--user", "me") == 0
        assert server.authorization == {"Basic " + base64.b64encode(b"me:asked").decode()}
        capsys.readouterr()


@pytest.mark.parametrize(
    "url, more, sentence",
    [
        ("ftp://x", (), "not the address of a server"),
        ("http://u:secret@127.0.0.1:1", (), "must not hold a user"),
        ("http://ara.example:80", ("--netrc",), "in the clear"),
        ("http://127.0.0.1:1", (), "does not answer"),
        ("http://127.0.0.1:1", ("--user", "me"), "no terminal"),
        ("http://127.0.0.1:1", ("--password-file", "x"), "without a user"),
        ("http://127.0.0.1:1", ("--user", "me", "--password-file", "/no/such"), "No such file"),
    ],
)
def test_what_is_wrong_is_one_sentence(made, capsys, monkeypatch, tmp_path, url, more, sentence):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".netrc").write_text("machine ara.example login me password x\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert main(["history", "push", "--dir", made.directory, "--ara", url, *more]) == 1
    err = capsys.readouterr().err
    assert sentence in err and err.count("\n") == 1 and "secret" not in err


def test_only_a_run_that_has_ended(tmp_path, capsys):
    place = history(tmp_path / "h")
    from churten.history import store

    with store.opened(place, write=True) as db:
        db.execute("UPDATE runs SET state = 'running'")
    with stand_in() as server:
        assert push(place, server) == 1 and server.posts == 0
    assert "has not ended" in capsys.readouterr().err


# --- a real server ---

WORDS = "no ARA server here: `make test-ara` installs one, CHURTEN_ARA=DIR names an environment with ara[server]"
needs_ara = pytest.mark.skipif(environment() is None, reason=WORDS)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    server = Real(tmp_path_factory.mktemp("ara"), login=("me", "canary-password"))
    yield server
    server.close()


@needs_ara
@pytest.mark.slow
def test_a_real_server_shows_it(made, real, tmp_path, capsys):
    words = tmp_path / "words"
    words.write_text("canary-password\n")
    words.chmod(0o600)
    login = ("--user", "me", "--password-file", str(words))
    assert push(made, real) == 1
    assert "another user or password" in capsys.readouterr().err
    assert push(made, real, *login) == 0
    number = int(re.search(r"/playbooks/(\d+)\.html", capsys.readouterr().out)[1])
    assert push(made, real, *login) == 0
    assert "(0 sent, 18 were there already)" in capsys.readouterr().out
    (book,) = real.all("playbooks")
    assert book["status"] == "failed" and book["items"] == {"plays": 1, "tasks": 6, "results": 18, "hosts": 4, "files": 3, "records": 1}
    assert (book["user"], book["controller"], book["ansible_version"]) == ("me", "here", "2.19.1")
    assert book["duration"] == "00:00:09.000001" and book["started"].startswith("2026-11-21T10:11:12.345")
    assert {label["name"] for label in book["labels"]} == {"nightly", "churten:00000000000000aa"}
    statuses = [one["status"] for one in real.all("results", playbook=number)]
    assert {status: statuses.count(status) for status in statuses} == dict.fromkeys(("ok", "changed", "failed", "ignored", "skipped", "unreachable"), 3)
    durations = {one["duration"] for one in real.all("results", playbook=number)}
    assert durations == {"00:00:00.250000", "00:00:02.000001"}
    tasks = {one["name"]: one for one in real.all("tasks", playbook=number)}
    assert tasks[f"task 3 {EVIL}"]["handler"] is True and tasks[f"task 3 {EVIL}"]["tags"] == ["a", "b"] and tasks[f"task 2 {EVIL}"]["status"] == "failed"
    first = real.all("results", playbook=number)[0]
    assert real.get(f"/api/v1/results/{first['id']}")["content"]["stdout"].startswith("=1+1")
    hosts = {one["name"]: one for one in real.all("hosts", playbook=number)}
    assert (hosts["h1"]["ok"], hosts["h1"]["failed"]) == (2, 1)
    for path in ("/", f"/playbooks/{number}.html", f"/results/{first['id']}.html", f"/hosts/{hosts['h0']['id']}.html", "/tasks", "/hosts"):
        page = real.get(path)
        assert EVIL not in page
    page = real.get(f"/playbooks/{number}.html")
    assert all(words in page for words in ("task 5", "h2", "nightly", ara.RECORD, "made.yml")) and "00:00:09" in page
    listed = json.loads(real.cli("playbook", "list", "-f", "json"))
    assert [(one["id"], one["status"], one["results"], one["hosts"]) for one in listed] == [(number, "failed", 18, 4)]
    assert len(json.loads(real.cli("task", "list", "--playbook", str(number), "-f", "json"))) == 6
    assert json.loads(real.cli("playbook", "metrics", "-f", "json")) and json.loads(real.cli("task", "metrics", "-f", "json"))
    shown = json.loads(real.cli("playbook", "show", str(number), "-f", "json"))
    assert "made.yml" in json.dumps(shown)


@needs_ara
@pytest.mark.slow
def test_a_push_that_is_killed(tmp_path, real):
    """kill -9 of the client, several times, against a real server."""
    place = history(tmp_path / "h", {"run": "00000000000000cc", "hosts": 10, "tasks": 12})
    words = tmp_path / "words"
    words.write_text("canary-password\n")
    words.chmod(0o600)
    command = [sys.executable, "-m", "churten.cli.main", "history", "push", "--dir", place.directory, "--ara", real.url]
    command += ["--user", "me", "--password-file", str(words)]
    for seconds in (1.5, 2.5, 3.5):
        process = subprocess.Popen(command, env=os.environ, stdout=subprocess.DEVNULL)
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    assert subprocess.run(command, timeout=300, stdout=subprocess.DEVNULL).returncode == 0
    (book,) = [one for one in real.all("playbooks") if {"churten:00000000000000cc"} <= {label["name"] for label in one["labels"]}]
    assert book["items"] == {"plays": 1, "tasks": 12, "results": 120, "hosts": 11, "files": 3, "records": 1}
