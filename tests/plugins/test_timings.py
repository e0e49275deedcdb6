"""churten.core.timings in real plays: figures that are right under free and linear, and logs that are safe in a shared directory."""

import json
import os
import re
import stat
import subprocess
import sys
import time

import pytest
from playing import ROOT, command, environment, play

from churten.timings import log, recap, stamps, workers
from churten.timings.model import Model, Result

SCHEMA = ROOT / "churten" / "timings" / "schema" / "timing-log-1.json"
HOSTS = ("h1", "h2", "h3")
SLEEPS = """
- name: the play
  hosts: all
  gather_facts: false
  strategy: STRATEGY
  tasks:
    - {name: skipped, debug: , when: false}
    - {name: one second, command: sleep 1}
    - {name: "looped \\e[31m", debug: {msg: "{{ item }}"}, loop: [a, b], when: item == 'a' or inventory_hostname == 'h1'}
    - {name: fails, command: /bin/false, ignore_errors: true}
    - include_tasks: included.yml
    - {name: hidden, command: "echo canary-argument", no_log: true, notify: handler}
  handlers:
    - {name: handler, debug: {msg: canary-output}}
"""


def timed(where, text, *words, code=0, **more):
    return play(where, text, *words, hosts=HOSTS, code=code, ANSIBLE_CALLBACKS_ENABLED="churten.core.timings", **more)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module", params=["free", "linear"])
def run(request, tmp_path_factory):
    """One play under each strategy: where, its output, the lines of its log."""
    where = tmp_path_factory.mktemp(request.param)
    (where / "included.yml").write_text("- {name: inside, debug: {msg: x}}\n")
    done = timed(where, SLEEPS.replace("STRATEGY", request.param), CHURTEN_TIMINGS_LOG=where / "t.log")
    return where, done, lines(where / "t.log")


def results(run, task):
    return [line for line in run[2] if line["ev"] == "result" and line["task"] == task]


def test_every_line_fits_the_schema(run):
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    for line in run[2]:
        validator.validate(line)
        assert next(iter(line)) == "v"
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(run[2][1] | {"args": {}})


def test_the_log_tells_the_run(run):
    where, _, found = run
    assert [line["ev"] for line in found[:: len(found) - 1]] == ["run", "end"]
    assert found[0]["playbook"] == "site.yml"
    assert len({line["run"] for line in found}) == 1
    assert found[-1]["results"] == sum(line["ev"] == "result" for line in found) == 8 * len(HOSTS)
    assert found[1]["ev"] == "play" and found[1]["strategy"] in ("free", "linear") and found[1]["slots"] == 5
    assert sum(line["ev"] == "item" for line in found) == 2 * len(HOSTS)
    assert stat.S_IMODE((where / "t.log").stat().st_mode) == 0o600


def test_sleeping_hosts_overlap(run):
    slept = results(run, "one second")
    assert sorted(line["host"] for line in slept) == list(HOSTS)
    seconds = sum(line["seconds"] for line in slept)
    span = max(line["at"] + line["seconds"] for line in slept) - min(line["at"] for line in slept)
    assert all(line["seconds"] >= 1 for line in slept) and seconds >= 3 and 1 <= span < seconds
    assert all(line["at"] + line["seconds"] <= run[2][-1]["seconds"] for line in run[2] if line["ev"] in ("item", "result"))


def test_statuses_and_items(run):
    def by(task, field):
        return {line["host"]: line[field] for line in results(run, task)}

    assert set(by("one second", "status").values()) == {"changed"}
    assert set(by("skipped", "status").values()) == {"skipped"}
    assert set(by("fails", "status").values()) == {"ignored"}
    assert set(by("handler", "status").values()) == {"ok"}
    assert set(by("looped \x1b[31m", "items").values()) == {2}
    assert set(by("one second", "items").values()) == {None}
    assert {line["path"].rsplit("/")[-1] for line in results(run, "inside")} == {"included.yml:1"}
    assert len(results(run, "include_tasks")) == 3
    assert all((line["source"], line["engine"], line["remote"]) == ("callbacks", None, None) for line in results(run, "inside"))
    assert all(0 <= line["queue"] == pytest.approx(line["t"]["slot"] - line["t"]["eligible"], abs=1e-5) for line in results(run, "inside"))


def test_names_but_never_arguments_or_output(run):
    text = (run[0] / "t.log").read_text()
    assert '"task":"hidden"' in text
    assert "canary" not in text and "sleep 1" not in text


def test_recap(run):
    _, done, found = run
    text = done.stdout[done.stdout.index("TASKS RECAP **") :].splitlines()
    rows = {}
    for line in text:
        match = re.fullmatch(r"(.+?) -+ (\d+) +([\d.]+)s +([\d.]+)s +([\d.]+)s  (\S+)", line)
        if match:
            rows[match[1]] = (int(match[2]), *map(float, match.groups()[2:5]), match[6])
    assert {name: row[0] for name, row in rows.items()} == {
        "skipped": 3, "one second": 3, "looped  [31m": 3, "fails": 3, "include_tasks": 3, "inside": 3, "hidden": 3, "handler": 3,
        "play: the play": 24,
    }  # fmt: skip
    tasks = [row[1] for name, row in rows.items() if not name.startswith("play:")]
    assert tasks == sorted(tasks, reverse=True) and rows["one second"][1] > 3
    count, total, span, longest, host = rows["one second"]
    slept = {line["host"]: line["seconds"] for line in found if line.get("task") == "one second"}
    assert (count, host) == (3, max(slept, key=slept.get))
    assert total == pytest.approx(sum(slept.values()), abs=0.01)
    assert longest == pytest.approx(max(slept.values()), abs=0.01)
    assert 1 <= span < total
    assert re.fullmatch(r"total -+ +[\d.]+s", text[-1])


def test_report_prints_the_same_rows(run, tmp_path):
    where, done, found = run
    second = (where / "t.log").read_text().replace(found[0]["run"], "0123456789abcdef").splitlines(True)
    bad = [
        "not json\n", "[]\n", "\xff\n", second[2].replace('"v":1', '"v":2'), second[2].replace('"seconds":', '"seconds":"x","_":'),
        second[2].replace('"at":', '"at":1e400,"_":'), "[" * 100000 + "\n",
    ]  # fmt: skip
    mixed = tmp_path / "mixed.log"
    mixed.write_text("".join(second[:-1] + bad) + (where / "t.log").read_text(), encoding="latin-1")

    def report(*words):
        words = (sys.executable, "-m", "churten.cli.main", "timings", "report", *words)
        return subprocess.run(words, cwd=where, env=environment(tmp_path), capture_output=True, text=True, timeout=60)

    shown = report(mixed)
    assert shown.returncode == 0, shown.stderr
    start = done.stdout.index("=====", done.stdout.index("TASKS RECAP **"))
    assert shown.stdout[shown.stdout.index("=====") :] == done.stdout[start:]
    assert "5 lines of" in shown.stderr and f"skipped (line {len(second)}:" in shown.stderr
    both = report(mixed, "--run", "all", "--limit", "1")
    assert "7 lines of" in both.stderr
    assert both.stdout.count("TASKS RECAP") == 2 and both.stdout.count("(did not end)") == 1
    assert "(7 of 8 tasks not shown)" in both.stdout
    assert report(mixed, "--run", "0123").stdout.count("run 0123456789abcdef:") == 1
    assert report(mixed, "--run", "none").returncode == 1
    assert report(tmp_path / "missing").returncode == 1


def test_recaps_of_roles_and_hosts(tmp_path):
    role = tmp_path / "roles" / "web" / "tasks"
    role.mkdir(parents=True)
    (role / "main.yml").write_text("- {name: in role, command: 'true'}\n")
    text = "- {hosts: all, gather_facts: false, roles: [web], tasks: [{name: fails, command: 'false', ignore_errors: true}]}\n"
    options = {"CHURTEN_TIMINGS_ROLES": "1", "CHURTEN_TIMINGS_HOSTS": "1", "CHURTEN_TIMINGS_SORT_BY": "name"}
    done = timed(tmp_path, text, CHURTEN_WORKER_LOG=tmp_path / "w.log", **options)
    roles, hosts = done.stdout.partition("ROLES RECAP **")[2].split("HOSTS RECAP **")
    rows = re.findall(r"(?m)^(\S.*?) -+ (\d+) +(\d+) +[\d.]+s +(\d+) % +[\d.]+s +[\d.]+s$", roles)
    assert [row[:3] for row in rows] == [("web", "3", "3"), ("(no role)", "3", "3")]
    assert sum(int(row[3]) for row in rows) in (99, 100, 101)
    rows = re.findall(r"(?m)^(\S+) -+ (\d+) +([\d.]+)s +([\d.]+)s$", hosts)
    total = float(re.search(r"(?m)^total -+ +([\d.]+)s$", done.stdout)[1])
    assert [row[:2] for row in rows] == [("h3", "2"), ("h2", "2"), ("h1", "2")]
    assert all(float(busy) + float(idle) == pytest.approx(total, abs=0.03) for _, _, busy, idle in rows)
    assert re.search(r"(?m)^slots: on average \d\.\d of 5 busy \(\d+ %\)$", done.stdout)
    # A stock strategy has no numbers for its workers: the callback gives them some.
    work = (tmp_path / "w.log").read_text()
    assert "Max workers set to 5" in work and work.count("completed fails for h") == 3
    assert {line.rpartition("active: ")[2] for line in work.splitlines() if "processing" in line} <= {"1/5)", "2/5)", "3/5)"}


def test_colours_are_ansibles(tmp_path):
    shown = timed(tmp_path, SMALL, ANSIBLE_FORCE_COLOR="1", ANSIBLE_NOCOLOR="0", ANSIBLE_COLOR_OK="purple").stdout
    assert re.search(r"\x1b\[0;35ma -+ 3 ", shown) and "\x1b[0;35mtotal" not in shown


SMALL = "- {hosts: all, gather_facts: false, tasks: [{name: a, debug: }, {name: b, debug: }]}\n"


def refused(where, path, reason):
    done = timed(where, SMALL, CHURTEN_TIMINGS_LOG=path, CHURTEN_TIMINGS_RECAP="0")
    said = " ".join(done.stderr.split())
    assert "TASKS RECAP" not in done.stdout
    assert said.replace("- ", "-").count("is not written: ") == 1, said
    assert reason in said


def test_a_log_that_cannot_be_written_does_not_fail_the_play(tmp_path):
    refused(tmp_path, tmp_path / "no" / "dir" / "t.log", "No such file or directory")


@pytest.mark.row("F1")
def test_a_link_is_refused(tmp_path):
    target = tmp_path / "target"
    (tmp_path / "t.log").symlink_to(target)
    refused(tmp_path, tmp_path / "t.log", "symbolic link")
    assert not target.exists()


def test_options(tmp_path):
    shown = timed(tmp_path, SMALL, CHURTEN_TIMINGS_TASK_OUTPUT_LIMIT="1").stdout
    assert "(1 of 2 tasks not shown)" in shown
    shown = timed(tmp_path, SMALL, CHURTEN_TIMINGS_MIN_SECONDS="1000").stdout
    assert "(2 of 2 tasks not shown)" in shown
    wrong = timed(tmp_path, SMALL, CHURTEN_TIMINGS_LOG_MAX_SIZE="much")
    assert "log_max_size must be a size like 100M" in wrong.stderr and "TASKS RECAP" not in wrong.stdout
    wrong = timed(tmp_path, SMALL, CHURTEN_TIMINGS_TASK_OUTPUT_LIMIT="many")
    assert "task_output_limit" in wrong.stderr and "TASKS RECAP" not in wrong.stdout
    done = command("doc", tmp_path, "-t", "callback", "--json", "churten.core.timings")
    assert json.loads(done.stdout)["churten.core.timings"]["doc"]["options"]["log_path"]["env"] == [
        {"name": "CHURTEN_TIMINGS_LOG"}
    ]


# Without Ansible: files, figures, stamps, worker log.


class Said(list):
    verbosity = 0

    def __init__(self):
        super().__init__()
        self.shown = []

    def vv(self, text):
        self.shown.append(text)

    def warning(self, text):
        self.append(text)


def test_what_is_not_safe_to_append_to(tmp_path):
    target = tmp_path / "target"
    target.write_text("")
    (tmp_path / "link").symlink_to(target)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    os.link(target, tmp_path / "hard")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "foreign").write_text("")
    reasons = {"link": "link", "dangling": "link", "hard": "hard links", "fifo": "regular", "/dev/null": "regular"}
    if os.geteuid() == 0:
        os.chown(tmp_path / "foreign", 12345, -1)
        reasons["foreign"] = "somebody else"
    for name, reason in reasons.items():
        with pytest.raises(log.Refused, match=reason):
            log.open_append(str(tmp_path / name))
    assert target.read_text() == "" and not (tmp_path / "nowhere").exists()


@pytest.mark.row("E7")
def test_the_first_trouble_is_said_once_and_ends_the_log(tmp_path):
    said = []
    file = log.LineFile(str(tmp_path / "no" / "file"), said.append)
    assert [file.write("a"), file.write("b")] == [False, False]
    assert len(said) == 1
    full = log.LineFile("/dev/full", said.append)
    assert not full.write("a") and "not a regular file" in said[1]


def test_a_half_line_is_closed(tmp_path):
    path = tmp_path / "t.log"
    path.write_text('{"half":')
    file = log.LineFile(str(path), print)
    assert file.write("one") and file.write("t\udcff\u00e9")
    assert path.read_bytes() == b'{"half":\none\nt\xff\xc3\xa9\n'


def test_held_lines_are_whole_and_in_order(tmp_path):
    path, said = tmp_path / "t.log", []
    file = log.LineFile(str(path), said.append)
    lines = [f"{number} {'x' * (number % 700)}" for number in range(500)]
    for line in lines[:400]:
        assert file.hold(line)
        if path.exists():
            assert path.read_text()[-1:] in ("", "\n")  # never a part of a line
    assert path.stat().st_size > file.HELD_MAX // 2, "what is held has a limit"
    assert file.write(lines[400])
    assert path.read_text().splitlines() == lines[:401]
    assert all(map(file.hold, lines[401:]))
    file.close()
    assert path.read_text().splitlines() == lines and not said


def test_a_forked_child_does_not_write(tmp_path):
    file = log.LineFile(str(tmp_path / "t.log"), print)
    assert file.write("parent")
    child = os.fork()
    if child == 0:
        file.write("child")
        file.hold("child")
        file.close()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert file.write("parent")
    assert (tmp_path / "t.log").read_text() == "parent\nparent\n"


def test_rotation(tmp_path):
    path, said = tmp_path / "t.log", []
    how = log.Rotation(max_bytes=10, keep=2)
    for number in range(5):
        file = log.LineFile(str(path), said.append, rotation=how)
        assert file.write(f"run {number}, a line") and file.write("and another")  # a run is never cut
    names = {p.name: p.read_text().split(",")[0] for p in tmp_path.iterdir()}
    assert names == {"t.log": "run 4", "t.log.1": "run 3", "t.log.2": "run 2"} and said == []
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_rotation_replaces_only_what_is_a_log(tmp_path):
    path, said = tmp_path / "t.log", []
    path.write_text("a long line\n")
    target = tmp_path / "target"
    target.write_text("precious")
    (tmp_path / "t.log.2").symlink_to(target)
    file = log.LineFile(str(path), said.append, rotation=log.Rotation(5, 2))
    assert file.write("one") and len(said) == 1 and "t.log.2 would be replaced" in said[0] and "link" in said[0]
    assert path.read_text() == "a long line\none\n" and target.read_text() == "precious"


def test_runs_that_begin_at_once_rotate_once(tmp_path):
    path = tmp_path / "t.log"
    path.write_text("x" * 100 + "\n")

    def begin(number):
        file = log.LineFile(str(path), print, rotation=log.Rotation(100, 9))
        for _ in range(20):
            assert file.write(f"run {number}")

    children = []
    for number in range(8):
        if (child := os.fork()) == 0:
            code = 1
            try:
                begin(number)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 8
    kept = sorted(tmp_path.iterdir())
    lines = [line for file in kept for line in file.read_text().splitlines()]
    # 160 lines of 6 bytes are too many for one file of 100: who came late may have put the next one aside.
    assert len(lines) == 161 and all(lines.count(f"run {number}") == 20 for number in range(8))
    for number in range(8):
        assert sum(f"run {number}\n" in file.read_text() for file in kept) == 1


def result(host, uuid, at, seconds, name="t", path="f:1", **more):
    fixed = {"play": "p", "play_uuid": "p", "action": "a", "role": None, "status": "ok", "items": None, "started": ""}
    return Result(**fixed, task=name, uuid=uuid, host=host, at=at, seconds=seconds, path=path, **more)


def test_figures_under_free():
    # Task A takes 1, 10 and 1 s, B takes 1 s each: profile_tasks would say A 1 s, B 10 s.
    model = Model()
    for host, seconds in (("h1", 1.0), ("h2", 10.0), ("h3", 1.0)):
        model.add(result(host, "A", 0.0, seconds, "A", "f:1"))
        model.add(result(host, "B", seconds, 1.0, "B", "f:2"))
    a, b = model.rows
    assert (a.count, a.sum_s, a.span_s, a.max_s, a.max_host) == (3, 12.0, 10.0, 10.0, "h2")
    assert (b.count, b.sum_s, b.span_s) == (3, 3.0, 10.0)
    assert model.wall_s == 11.0
    assert (a.percentile(50), a.percentile(95), a.percentile(1)) == (1.0, 10.0, 1.0)
    assert model.busy == pytest.approx(15 / 11)
    wide = list(recap.lines(model, recap.Look(columns=120, sort_by="p50"), with_date=False))
    assert wide[1].split() == ["task", "count", "sum", "span", "p50", "p95", "max", "host"]
    assert wide[2].split()[2:] == ["3", "12.00s", "10.00s", "1.00s", "10.00s", "10.00s", "h2"] and len(wide[2]) <= 120
    host = list(recap.host_lines(model, recap.Look(columns=120)))
    assert host[1].text.split()[2:] == ["2", "11.00s", "0.00s", "-", "-", "-", "-"]
    text = list(recap.lines(model, recap.Look(sort_order="ascending"), with_date=False))
    assert [line.split()[0] for line in text[2:4]] == ["B", "A"]


def test_rows_of_includes():
    model = Model()
    # A loop of two includes on two hosts under free: every (host, item) has its own uuid.
    for number, host in enumerate(("h1", "h2", "h1", "h2")):
        model.add(result(host, f"u{number}", number, 1.0))
    model.add(result("h1", "u0", 9.0, 1.0))  # a handler that ran again: same uuid, same row
    assert [row.count for row in model.rows] == [3, 2]
    model.add(result("h1", "x", 0.0, 1.0, path=None))
    model.add(result("h2", "y", 0.0, 1.0, path=None))
    assert len(model.rows) == 4


def test_phases():
    model = Model()
    model.add(result("h1", "A", 1.0, 2.0, queue=0.5, connect=0.25, remote=1.5, controller=0.25))
    model.add(result("h2", "A", 1.0, 2.0))
    last = list(recap.lines(model, recap.Look(), with_date=False))[-2]
    assert last == "host time 2.00s: connect 0.25s, remote 1.50s, controller 0.25s; waited for a slot 0.50s"


def test_stamps():
    try:
        assert stamps.begin("h", "u") is None and stamps.take("h", "u") is None
        stamps.enable()
        stamps.enter(stamps.begin("h", "u"))
        stamps.connected()  # an end without a begin adds nothing
        stamps.request(1.0, 1.25, 3.25, 1.5)
        stamps.request(4.0, 4.0, 5.0, 9.0)  # the target's clock cannot have counted more than went by
        stamps.request(6.0, 7.0, 7.0)  # refused before it was sent
        record = stamps.take("h", "u")
        assert (record.connect_s, record.remote_s, record.ran_s, record.sent) == (1.25, 3.0, 2.5, 4.0)
        assert (record.connect_begin, record.connect_end) == (1.0, 7.0) and record.eligible <= record.start
        assert (record.remote_begin, record.remote_end, len(record.spans)) == (1.25, 5.0, 3)
        assert stamps.take("h", "u") is None
    finally:
        stamps.disable()


def in_worker(work):
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_worker_tells_what_its_connection_did():
    def grandchild():
        stamps.request(1.0, 1.0, 2.0)

    def worker():
        in_worker(grandchild)
        stamps.request(1.0, 1.5, 3.5, 1.0)
        stamps.connecting()
        stamps.connected()

    stamps.enable()
    try:
        before = time.monotonic()
        record = stamps.announce("h", "u")
        stamps.announce("h2", "u")
        in_worker(lambda: stamps.request(5.0, 5.0, 6.0))
        record = stamps.announce("h", "u2")
        in_worker(worker)
        assert stamps.look("h", "u2") is record
        assert (record.connect_begin, record.remote_s, record.ran_s, len(record.spans)) == (1.0, 2.0, 1.0, 2)
        assert before <= record.start <= time.monotonic() and record.seen and not record.lost
        assert stamps.take("h2", "u").remote_s == 1.0 and not stamps.take("h", "u").seen
    finally:
        stamps.disable()


def test_a_worker_is_not_held_up_by_a_full_pipe():
    def worker():
        for _ in range(40_000):
            stamps.request(1.0, 1.0, 2.0)

    stamps.enable()
    try:
        stamps.announce("h", "u")
        in_worker(worker)
        assert 1000 < len(stamps.look("h", "u").spans) < 40_000
    finally:
        stamps.disable()


def test_worker_log(tmp_path):
    path, said = tmp_path / "w.log", Said()
    written = workers.WorkerLog(str(path), said)
    written.started(3)
    written.begin(0, "deploy", "web-01", 1)
    written.begin(1, "deploy\nWorker 9 started", "web-02", 2)
    written.end(0, "deploy", "web-01", 1, 12.306, "ok")
    written.started(0)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and said == []
    text = path.read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \[churten\] ", line) for line in text)
    assert [line.split("] ")[1] for line in text] == [
        "Max workers set to 3 (0=sequential, >0=parallel)",
        "Running in PARALLEL mode with 3 workers",
        "Worker 0 started",
        "Worker 0 processing: deploy for server web-01 (active: 1/3)",
        "Worker 1 started",
        "Worker 1 processing: deploy Worker 9 started for server web-02 (active: 2/3)",
        "Worker 0 completed deploy for web-01 after 12.31s ok (active: 1/3)",
        "Max workers set to 0 (0=sequential, >0=parallel)",
        "Running in SEQUENTIAL mode",
    ]
    awk = subprocess.run(["awk", "/Worker.*completed/ {print $9, $11, $12}", path], capture_output=True, text=True)
    assert awk.stdout == "web-01 12.31s ok\n"


def test_worker_log_on_the_screen_only(monkeypatch):
    monkeypatch.setattr(workers, "_path", None)
    said = Said()
    quiet = workers.WorkerLog(None, said)
    quiet.started(2)
    assert said.shown == [] and not quiet.on
    said.verbosity = 2
    quiet.begin(1, "t", "h", 1)
    assert said.shown == ["Worker 1 started", "Worker 1 processing: t for server h (active: 1/2)"]
