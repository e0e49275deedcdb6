"""churten.core.history in real plays: what is kept, what never is, and what a crash, a full disk and other runs leave of it."""

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
from playing import MAIN, ROOT, collections, command, environment

from churten.cli.main import main
from churten.history import ingest, place, store
from churten.history.place import Place, Unusable

PLAY = """
- name: the play
  hosts: all
  gather_facts: false
  vars_files: [vaulted.yml]
  vars: {api_token: canary-named, ansible_become_password: canary-become}
  tasks:
    - {name: speaks, command: echo hello, tags: [words], notify: handler}
    - {name: hidden, command: echo canary-nolog, no_log: true}
    - {name: hidden items, debug: {msg: "{{ item }}"}, loop: [canary-item], no_log: true}
    - name: shows everything
      debug:
        msg:
          texts: [x canary-named x, "{{ from_vault_file }} x", "x {{ inline }}", "{{ ansible_become_password }}", "x {{ ansible_ssh_pass }}"]
          password: canary-argument
    - {name: fails, command: /bin/false, ignore_errors: true}
    - {name: gathers, setup: {gather_subset: ['!all', env]}}
  handlers:
    - {name: handler, debug: {msg: handled}}
"""


def recorded(where, *words, wait=True, **more):
    """ansible-playbook with the callback, as a running process."""
    code = MAIN.format("playbook", "playbook")
    done = subprocess.Popen(
        [sys.executable, "-c", code, "-i", "h1,h2,", "-e", "ansible_connection=local", "-e", f"ansible_python_interpreter={sys.executable}"]
        + [str(word) for word in words],
        cwd=where,
        env=environment(where, **{"ANSIBLE_CALLBACKS_ENABLED": "churten.core.history", "CHURTEN_HISTORY_DIR": where / "h"} | more),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    if wait:
        done.text = done.communicate(timeout=300)[0]
    return done


def imported(where):
    """Waits until the importer of an ended run is done, or does its work."""
    for _ in range(100):
        done = ingest.runs(Place(where), wait_s=60.0)
        if not done.busy and not ingest.pending(Place(where)):
            return
        time.sleep(0.1)
    raise AssertionError(ingest.pending(Place(where)))


def ask(where, sql, *values):
    with store.opened(Place(where)) as db:
        return [tuple(row) for row in db.execute(sql, values)]


def sound(where):
    assert ask(where, "PRAGMA integrity_check") == [("ok",)]
    assert ask(where, "PRAGMA foreign_key_check") == []


def cli(capsys, where, *words):
    code = main(["history", words[0], "--dir", str(where), *words[1:]])
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs at once: one with everything that can be kept, one as it comes. Answers (folder, id of the first, id of the second)."""
    where = tmp_path_factory.mktemp("history")
    (where / "site.yml").write_text(PLAY)
    (where / "plain.yml").write_text("- {name: plain, hosts: all, gather_facts: false, tasks: [{name: one, command: echo canary-output}]}\n")
    (where / "vaulted.yml").write_text("from_vault_file: canary-file\n")
    (where / "key").write_text("word\n")
    collections(where / "collections")
    done = command("vault", where, "encrypt", "--vault-password-file", "key", "vaulted.yml")
    assert done.returncode == 0, done.stderr
    done = command("vault", where, "encrypt_string", "--vault-password-file", "key", "-n", "inline", "canary-inline")
    (where / "extra.yml").write_text(done.stdout)
    all_of_it = dict.fromkeys(("CHURTEN_HISTORY_CONTENT", "CHURTEN_HISTORY_FACTS", "CHURTEN_HISTORY_FILES"), "1")
    words = ("--vault-password-file", "key", "-e", "@extra.yml", "-e", "ansible_ssh_pass=canary-ssh", "-t", "all", "site.yml")
    first = recorded(where, *words, wait=False, CHURTEN_HISTORY_LABELS="nightly,blue", **all_of_it)
    second = recorded(where, "plain.yml", CHURTEN_TIMINGS_LOG=where / "t.log", ANSIBLE_CALLBACKS_ENABLED="churten.core.timings,churten.core.history")
    text = first.communicate(timeout=300)[0]
    assert first.returncode == 0 and "canary-inline" in text, text
    assert second.returncode == 0, second.text
    imported(where / "h")
    ids = dict(ask(where / "h", "SELECT playbook, run FROM runs"))
    return where, ids["site.yml"], ids["plain.yml"]


def test_two_runs_write_one_database(runs):
    where = runs[0] / "h"
    sound(where)
    assert ask(where, "SELECT playbook, state, results, source FROM runs ORDER BY playbook") == [
        ("plain.yml", "completed", 2, "callback"),
        ("site.yml", "completed", 14, "callback"),
    ]
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in where.iterdir()} == {
        "history.sqlite": "0o600", "import.lock": "0o600", "runs": "0o700",
    }  # fmt: skip
    assert where.stat().st_mode & 0o777 == 0o700


def test_what_is_kept(runs):
    where = runs[0] / "h"
    rows = ask(
        where,
        "SELECT t.name, h.name, r.status, t.tags, t.handler, t.action FROM results r JOIN tasks t ON t.id = task_id JOIN hosts h ON h.id = host_id "
        "JOIN runs u ON u.id = r.run_id WHERE u.run = ? ORDER BY h.name, r.at",
        runs[1],
    )
    assert [row[0] for row in rows if row[1] == "h1"] == [
        "speaks", "hidden", "hidden items", "shows everything", "fails", "gathers", "handler",
    ]  # fmt: skip
    by_name = {row[0]: row for row in rows}
    assert by_name["speaks"][2:5] == ("changed", '["words"]', 0)
    assert by_name["fails"][2] == "ignored"
    assert by_name["handler"][4] == 1
    content = json.loads(
        ask(where, "SELECT content FROM results JOIN tasks t ON t.id = task_id WHERE t.name = 'speaks' AND content IS NOT NULL")[0][0]
    )
    assert content["stdout"] == "hello"
    stats = ask(where, "SELECT stats FROM hosts WHERE stats IS NOT NULL AND run_id = (SELECT id FROM runs WHERE run = ?)", runs[1])
    assert json.loads(stats[0][0])["ignored"] >= 1
    facts = json.loads(ask(where, "SELECT facts FROM hosts WHERE facts IS NOT NULL")[0][0])
    assert facts and "ansible_env" not in facts
    assert sorted(name for (name,) in ask(where, "SELECT name FROM labels")) == ["blue", "nightly"]
    files = dict(ask(where, "SELECT path, content FROM files"))
    assert "echo hello" in files[str(runs[0] / "site.yml")]


def test_secrets_never_are(runs):
    """no_log, passwords of connections and become, values and files of vaults, and what is called a token; output only on request."""
    data = b"".join(path.read_bytes() for path in (runs[0] / "h").rglob("*") if path.is_file())
    assert b"hello" in data
    found = [word for word in "nolog item named file inline become ssh argument output".split() if f"canary-{word}".encode() in data]
    # The playbook's own text was asked for: what stands in it and is known as a secret is hidden there too.
    assert [word for word in found if word not in ("nolog", "item", "argument")] == []
    for (content,) in ask(runs[0] / "h", "SELECT content FROM results WHERE content IS NOT NULL"):
        assert "canary" not in content
    assert ask(runs[0] / "h", "SELECT count(*) FROM results WHERE content IS NOT NULL AND run_id = (SELECT id FROM runs WHERE run = ?)", runs[2]) == [(0,)]


def test_list_show_and_search(runs, capsys):
    where = runs[0] / "h"
    code, out, err = cli(capsys, where, "list")
    assert (code, err) == (0, "") and runs[1][:8] in out and "nightly" in out
    code, out, _ = cli(capsys, where, "list", "--label", "nigh", "--json")
    assert [run["run"] for run in json.loads(out)] == [runs[1]]
    for words, count in (("--playbook plain", 1), ("--since 1h", 2), ("--until 1h", 0), ("--task speaks", 1), ("--state failed", 0), ("--host h2", 2)):
        assert len(json.loads(cli(capsys, where, "list", "--json", *words.split())[1])) == count, words
    code, out, _ = cli(capsys, where, "show", runs[1][:6])
    assert code == 0 and "play: the play (strategy linear)" in out and "speaks" in out
    code, out, _ = cli(capsys, where, "show", runs[1], "--host", "h1", "--task", "speaks")
    assert code == 0 and '"stdout": "hello"' in out
    code, out, _ = cli(capsys, where, "search", "hello", "--status", "changed")
    assert code == 0 and out.count("speaks") == 2
    assert cli(capsys, where, "search", "no such%text")[0] == 1
    for words in (["show", "0000"], ["show", "last-7"], ["show", runs[1], "--host", "h9"], ["prune"]):
        code, out, err = cli(capsys, where, *words)
        assert code == 1 and out == "" and err.startswith("churten history: ") and err.count("\n") == 1, words


def test_times_are_those_of_the_timing_log(runs, capsys):
    """Both callbacks in one run, and the log imported beside it."""
    where = runs[0]
    log = [json.loads(line) for line in (where / "t.log").read_text().splitlines()]
    logged = {line["host"]: line for line in log if line["ev"] == "result"}
    sql = "SELECT h.name, r.seconds, status FROM results r JOIN hosts h ON h.id = host_id JOIN runs u ON u.id = r.run_id WHERE u.run = ?"
    for host, seconds, status in ask(where / "h", sql, runs[2]):
        assert seconds == pytest.approx(logged[host]["seconds"], abs=0.5) and status == logged[host]["status"]
    assert cli(capsys, where / "h2", "import", str(where / "t.log"), "--label", "old")[1] == "1 runs, 2 results imported\n"
    assert cli(capsys, where / "h2", "import", str(where / "t.log"))[1] == "0 runs, 0 results imported; 1 were there already\n"
    code, out, _ = cli(capsys, where / "h2", "list", "--json")
    assert [(run["run"], run["labels"], run["state"]) for run in json.loads(out)] == [(log[0]["run"], ["old"], "completed")]
    assert cli(capsys, where / "h2", "import", str(where / "absent.log"))[0] == 1


def test_diff_and_prune(runs, tmp_path, capsys):
    shutil.copytree(runs[0] / "h", tmp_path / "h")
    where = tmp_path / "h"
    code, out, _ = cli(capsys, where, "diff", runs[1], runs[2])
    assert code == 0 and "only in B" in out and "only in A" in out
    with store.opened(Place(where), write=True) as db:
        db.execute("UPDATE results SET status = 'failed', seconds = 9 WHERE run_id = (SELECT id FROM runs WHERE run = ?)", (runs[2],))
    original = str(runs[0] / "h" / "history.sqlite")
    with store.opened(Place(where), write=True) as db:
        db.execute("ATTACH ? AS o", (original,))
        db.execute("UPDATE runs SET run = 'changed', started = started + 60 WHERE run = ?", (runs[2],))
        assert db.execute("SELECT count(*) FROM o.runs").fetchone()[0] == 2
    assert "2 runs would" in cli(capsys, where, "prune", "--keep", "0", "--dry-run")[1]
    assert cli(capsys, where, "prune", "--older", "0h", "--keep", "1")[1] == "1 runs forgotten\n"
    sound(where)
    assert ask(where, "SELECT count(*) FROM runs") == [(1,)]
    assert ask(where, "SELECT count(*) FROM results WHERE run_id NOT IN (SELECT id FROM runs)") == [(0,)]


def test_a_killed_run_is_interrupted_and_nothing_is_lost(tmp_path, capsys):
    tasks = "".join(f"    - {{name: t{n}, debug: {{msg: x}}}}\n" for n in range(5))
    (tmp_path / "site.yml").write_text(f"- hosts: all\n  gather_facts: false\n  tasks:\n{tasks}    - {{name: long, command: sleep 60}}\n")
    run = recorded(tmp_path, "site.yml", wait=False)
    try:
        spool = wait_for(lambda: [p for p in (tmp_path / "h" / "runs").glob("*.jsonl") if p.read_text().count('"ev":"result"') >= 10], run)[0]
        assert json.loads(cli(capsys, tmp_path / "h", "list", "--json")[1])[0]["state"] == "running"
        assert spool.exists()
        os.kill(run.pid, signal.SIGKILL)
        run.wait(timeout=30)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
        run.communicate(timeout=30)
    found = json.loads(cli(capsys, tmp_path / "h", "list", "--json")[1])
    assert [(one["state"], one["results"]) for one in found] == [("interrupted", 10)]
    assert not spool.exists()
    sound(tmp_path / "h")


def wait_for(what, run, seconds=120):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := what():
            return found
        assert run.poll() is None, run.communicate()[0]
        time.sleep(0.05)
    raise AssertionError("it did not come")


DISK = """
set -e
mount -t tmpfs -o size=64k,mode=0700 none "$1"
mkdir -m 0700 "$1/runs"
head -c 45000 /dev/zero > "$1/ballast"
shift
set +e
"$@"
code=$?
rm "$H/ballast"
cat "$H"/runs/*.jsonl | head -c 20000
exit $code
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_full_disk_costs_a_warning(tmp_path):
    """The play goes on; what was written before stays readable."""
    (tmp_path / "h").mkdir(mode=0o700)
    items = ", ".join(f"i{n}" for n in range(4))
    (tmp_path / "site.yml").write_text(
        "- hosts: all\n  gather_facts: false\n  tasks:\n"
        + "".join(f'    - {{name: t{n}, debug: {{msg: "{{{{ \'x\' * 3000 }}}}"}}, loop: [{items}]}}\n' for n in range(3))
    )
    collections(tmp_path / "collections")
    code = MAIN.format("playbook", "playbook")
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", DISK, "sh", str(tmp_path / "h"), sys.executable, "-c", code, "-i", "h1,h2,", "-c", "local", "site.yml"],
        cwd=tmp_path,
        env=environment(
            tmp_path, ANSIBLE_CALLBACKS_ENABLED="churten.core.history", CHURTEN_HISTORY_DIR=tmp_path / "h", CHURTEN_HISTORY_CONTENT="1", H=tmp_path / "h"
        ),
        capture_output=True,
        text=True,
        timeout=300,
    )
    if "unshare" in done.stderr and done.returncode != 0:
        pytest.skip(f"no mount namespace here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    assert done.stderr.count("the history of this run is not complete") == 1 and "ok=3" in done.stdout
    assert '{"v":1,"ev":"run"' in done.stdout


def spooled(where, run="00000000000000aa", count=50, end=True):
    """A run's file with `count` results, as it would be left."""
    spot = Place(where)
    spot.make()
    source = [json.loads(line) for line in MADE.splitlines()]
    lines = [source[0] | {"run": run}, source[1] | {"run": run}]
    lines += [source[2] | {"run": run, "host": f"h{n}", "at": n / 10} for n in range(count)]
    lines += [source[3] | {"run": run}] if end else []
    path = os.path.join(spot.runs, f"20261121T000000Z-{run}.jsonl")
    with open(path, "w") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    return spot, path


MADE = """{"v":1,"ev":"run","run":"","started":"2026-11-21T10:11:12.345Z","playbook":"made.yml","ansible":"2.19","churten":"0","forks":5}
{"v":1,"ev":"play","run":"","play":"p","play_uuid":"pu","started":"2026-11-21T10:11:12.345Z","at":0.0,"strategy":"free","slots":5}
{"v":1,"ev":"result","run":"","play":"p","play_uuid":"pu","task":"t","uuid":"tu","action":"debug","role":null,"path":"/x.yml:3","host":"h","status":"ok","items":null,"started":"2026-11-21T10:11:13.000Z","at":0.5,"seconds":0.25,"queue":null,"connect":null,"remote":null,"controller":null,"engine":null,"worker":null}
{"v":1,"ev":"end","run":"","seconds":9.5,"results":1}
"""


@pytest.mark.parametrize("where", ["batch", "close", "unlink", "half"])
def test_an_import_that_is_cut_off_is_taken_up_again(tmp_path, monkeypatch, where):
    """No result is lost or there twice, wherever it was cut."""
    spot, path = spooled(tmp_path / "h", count=200)
    monkeypatch.setattr(ingest, "BATCH_BYTES", 4096)
    calls = []

    class Cut(Exception):
        pass

    def cut(*words, **more):
        calls.append(words)
        if where != "batch" or len(calls) == 5:
            raise Cut
        return real(*words, **more)

    holder, name = {"batch": (ingest._File, "lines"), "close": (ingest._File, "close"), "unlink": (ingest.os, "unlink"), "half": (ingest.Rows, "end")}[where]
    real = getattr(holder, name)
    monkeypatch.setattr(holder, name, cut)
    with pytest.raises(Cut):
        ingest.runs(spot)
    monkeypatch.setattr(holder, name, real)
    sound(spot.directory)
    done = ingest.runs(spot)
    assert done.bad == 0 and ingest.pending(spot) == []
    assert ask(spot.directory, "SELECT state, seconds, results FROM runs") == [("completed", 9.5, 200)]
    assert ask(spot.directory, "SELECT count(*), count(DISTINCT host_id) FROM results") == [(200, 200)]
    assert ask(spot.directory, "SELECT count(*) FROM imports") == [(0,)]


def test_an_importer_that_is_killed(tmp_path):
    """kill -9 in the middle of writing, several times."""
    spot, path = spooled(tmp_path / "h", count=20000)
    words = [sys.executable, "-c", "import sys; from churten.history import ingest; ingest.BATCH_BYTES = 65536; ingest.main(sys.argv[1])", spot.directory]
    for pause in (0.0, 0.05, 0.1):
        process = subprocess.Popen(words, env={**os.environ, "PYTHONPATH": str(ROOT)})
        deadline = time.monotonic() + 60
        while not os.path.exists(spot.database + "-journal") and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(pause)
        process.kill()
        process.wait()
    imported(spot.directory)
    sound(spot.directory)
    assert ask(spot.directory, "SELECT state, results FROM runs") == [("completed", 20000)]
    assert ask(spot.directory, "SELECT count(*), count(DISTINCT host_id) FROM results") == [(20000, 20000)]


def test_lines_that_are_none(tmp_path):
    spot, path = spooled(tmp_path / "h", count=3, end=False)
    with open(path, "ab") as file:
        file.write(b"\xff\xfe{\n[]\n" + b"[" * 100000 + b'\n{"v":1,"ev":"result","run":"x"}\n{"v":1,"ev":"result","run":"00000000000000aa","pl')
    done = ingest.runs(spot)
    assert (done.results, done.bad) == (3, 4)
    assert ask(spot.directory, "SELECT state, results FROM runs") == [("interrupted", 3)]


def test_databases_that_are_not_ours(tmp_path):
    for name, make, words in (
        ("newer", "PRAGMA user_version = 99", "written by a newer churten (tables of version 99, this one knows 1): update churten"),
        ("other", "CREATE TABLE x (y)", "is a database of another program"),
    ):
        spot = Place(tmp_path / name)
        spot.make()
        with sqlite3.connect(spot.database) as db:
            db.execute(make)
        os.chmod(spot.database, 0o600)
        before = open(spot.database, "rb").read()
        with pytest.raises(Unusable, match=r"^[^\n]+$") as info, store.opened(spot):
            pass
        assert words in str(info.value)
        assert open(spot.database, "rb").read() == before
    spot, path = spooled(tmp_path / "damaged")
    open(spot.database, "wb").write(b"SQLite format 3\0" + b"x" * 5000)
    with pytest.raises(Unusable, match=r"is damaged .*: move it away"):
        ingest.runs(spot)
    assert os.path.exists(path), "what was not imported stays"


def test_an_older_database_is_migrated(tmp_path, monkeypatch):
    spot, _ = spooled(tmp_path / "h", count=2)
    ingest.runs(spot)
    monkeypatch.setattr(store, "VERSION", 2)
    monkeypatch.setitem(store.MIGRATIONS, 1, "ALTER TABLE runs ADD COLUMN note TEXT;\nUPDATE runs SET note = 'moved';\n")
    assert ask(spot.directory, "SELECT note, (SELECT count(*) FROM results) FROM runs") == [("moved", 2)]
    assert ask(spot.directory, "PRAGMA user_version") == [(2,)]


def test_places_that_are_not_safe(tmp_path):
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "file").write_text("")
    for name, words in (("open", "chmod 700"), ("link", "not a directory"), ("file", "[Nn]ot a directory")):
        with pytest.raises(Unusable, match=words):
            Place(tmp_path / name).make()
    spot = Place(tmp_path / "good")
    spot.make()
    for make in (lambda p: os.symlink("/etc/passwd", p), os.mkfifo, os.mkdir, lambda p: (open(p, "w").close(), os.link(p, p + "2"))):
        make(spot.database)
        with pytest.raises(Unusable), store.opened(spot):
            pass
        (os.rmdir if os.path.isdir(spot.database) else os.unlink)(spot.database)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_belongs_to_somebody_else(tmp_path):
    (tmp_path / "theirs").mkdir(mode=0o700)
    os.chown(tmp_path / "theirs", 65534, 65534)
    with pytest.raises(Unusable, match="belongs to somebody else"):
        Place(tmp_path / "theirs").make()
    spot = Place(tmp_path / "good")
    spot.make()
    os.close(place.open_private(spot.database))
    os.chown(spot.database, 65534, 65534)
    with pytest.raises(Unusable, match="belongs to somebody else"), store.opened(spot):
        pass


def test_a_long_run_is_not_kept_in_memory(tmp_path, monkeypatch):
    lines = [{"v": 1, "ev": "run", "run": "a" * 16, "started": "2026-11-21T10:11:12.345Z", "playbook": "p", "ansible": "2", "churten": "0", "forks": 5}]
    known = {"play": "p", "play_uuid": "pu", "task": "t", "uuid": "tu", "action": "x", "role": None, "path": None, "items": None, "queue": None}
    known |= {"started": "2026-11-21T10:11:12.345Z", "connect": None, "remote": None, "controller": None, "engine": None, "worker": None, "status": "ok"}
    lines += [{"v": 1, "ev": "result", "run": "a" * 16, "host": f"h{n}", "at": 1.0, "seconds": 1.0} | known for n in range(25)]
    (tmp_path / "t.log").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(ingest, "_BATCH", 4)
    kept = []
    flush = ingest.Rows.flush
    monkeypatch.setattr(ingest.Rows, "flush", lambda rows: (kept.append(len(rows._batch)), flush(rows)))
    done = ingest.timing_log(Place(tmp_path / "h"), str(tmp_path / "t.log"))
    assert (done.runs, done.results) == (1, 25) and kept == [4, 4, 4, 4, 4, 4, 1]
    assert ask(tmp_path / "h", "SELECT results, (SELECT count(*) FROM results) FROM runs") == [(25, 25)]
