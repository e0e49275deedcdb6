"""What `churten timings` reads: our log, ansible.posix.jsonl, ansible-runner's job_events, and what is none of them."""

import io
import json
import os
import resource
import subprocess
import sys

import pytest
from made_logs import big, end_line, result_line, run_line, text
from playing import ROOT, environment, play

from churten.cli.main import main
from churten.timings.columns import Columns
from churten.timings.log import read_result
from churten.timings.reading import Log, Unreadable

ONE, TWO = "1" * 16, "2" * 16
PLAY = """
- name: the play
  hosts: all
  gather_facts: false
  tasks:
    - {name: slept, command: sleep 0.3}
    - {name: looped, debug: {msg: "{{ item }}"}, loop: [a, b]}
    - {name: fails, command: /bin/false, ignore_errors: true}
    - {name: skipped, debug: , when: false}
    - {include_role: {name: small}}
"""


def small(where):
    (where / "roles" / "small" / "tasks").mkdir(parents=True)
    (where / "roles" / "small" / "tasks" / "main.yml").write_text("- {name: inside, command: echo canary-output}\n")
    return PLAY


def written(path, *lines):
    path.write_text(text(lines))
    return str(path)


def results(log, wanted=None):
    return list(log.results(log.choose(wanted)[0]))


def timings(*words):
    """Exit code of `churten timings`, in this process."""
    return main(["timings", *map(str, words)])


def test_runs_that_are_mixed_are_told_apart(tmp_path):
    lines = [run_line(ONE), run_line(TWO, "other.yml"), result_line(TWO, "h", "b", 0, 1), result_line(ONE, "h", "a", 0, 1)]
    path = written(tmp_path / "t.log", *lines, end_line(ONE, 1.5, 1), result_line(TWO, "h", "c", 1, 1))
    with Log(path) as log:
        assert [(run.id, run.results, run.seconds) for run in log.runs.values()] == [(ONE, 1, 1.5), (TWO, 2, None)]
        assert [r.task for r in results(log)] == ["b", "c"]
        assert [r.task for r in results(log, "last-1")] == ["a"] == [r.task for r in results(log, "11")]
        assert log.choose("all") == list(log.runs.values())
        for wrong in ("3", "last-2", "last-x"):
            with pytest.raises(Unreadable, match=wrong):
                log.choose(wrong)


def test_bad_lines_are_counted_once_and_skipped(tmp_path):
    good = text([result_line(ONE, "h", "a", 0, 1)])
    spaced = json.dumps(result_line(ONE, "h", "b", 1, 1)) + "\n"  # as another writer would put it
    bad = [good.replace('"at":0', '"at":"x"'), spaced.replace('"at": 1', '"at": null'), good[:-20] + "\n", "{}\n", "\x00\n", "9" * 5000 + "\n"]
    bad.append(good.replace('"host":', '"host"'))
    path = tmp_path / "t.log"
    path.write_text(text([run_line(ONE)]) + good + "".join(bad) + "\n  \n" + spaced + good[:100])
    with Log(str(path)) as log:
        for _ in range(2):
            assert [r.task for r in results(log)] == ["a", "b"]
            assert log.bad == 8
        assert log.first_bad.startswith("line 5")


def test_a_line_without_an_end_does_not_fill_the_memory(tmp_path):
    path = tmp_path / "t.log"
    with open(path, "w") as file:
        file.write(text([run_line(ONE)]))
        for _ in range(40):
            file.write("x" * (1 << 20))
        file.write("\n" + text([result_line(ONE, "h", "a", 0, 1)]))
    with Log(str(path)) as log:
        assert len(results(log)) == 1 and log.bad == 1


def test_what_is_no_log_is_said_in_one_sentence(tmp_path, capsys):
    (tmp_path / "text").write_text("hello\n")
    (tmp_path / "empty").write_text("")
    (tmp_path / "folder").mkdir()
    for name, said in (("text", "no run in"), ("empty", "no run in"), ("folder", "job_events"), ("missing", "No such file")):
        for verb in ("report", "hosts", "critical-path", "trend"):
            assert timings(verb, tmp_path / name) == 1
            printed = capsys.readouterr()
            assert said in printed.err and printed.err.count("\n") == 1 and printed.out == ""


def test_standard_input_and_pipes(tmp_path, monkeypatch):
    data = text([run_line(ONE), result_line(ONE, "h", "a", 0, 1)]).encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    with Log("-") as log:
        assert [r.task for r in results(log)] == ["a"]
    read, write = os.pipe()
    os.write(write, data)
    os.close(write)
    with Log(f"/dev/fd/{read}") as log:
        assert [r.task for r in results(log)] == ["a"]
    os.close(read)


def same_as_ours(foreign, ours):
    """The same results, hosts and times within what handling them takes."""
    assert len(foreign) == len(ours)
    ours = {(r.host, r.uuid): r for r in ours}
    for one in foreign:
        other = ours[one.host, one.uuid]
        assert one.seconds == pytest.approx(other.seconds, abs=0.4)
        assert (one.items, one.path, one.role or None) == (other.items, other.path, other.role)
        assert one.play == other.play and one.queue is None and one.engine is None


@pytest.mark.parametrize("strategy", ["linear", "free"])
def test_jsonl(tmp_path, strategy):
    posix = ROOT / "build" / "posix"
    if not (posix / "ansible_collections").is_dir():
        pytest.skip("ansible.posix is not there: `make posix`")
    options = {"ANSIBLE_STDOUT_CALLBACK": "ansible.posix.jsonl", "ANSIBLE_COLLECTIONS_PATH": posix, "ANSIBLE_STRATEGY": strategy}
    ours = {"ANSIBLE_CALLBACKS_ENABLED": "churten.core.timings", "CHURTEN_TIMINGS_LOG": tmp_path / "ours", "CHURTEN_TIMINGS_RECAP": "0"}
    done = play(tmp_path, small(tmp_path), hosts=("h1", "h2"), **options, **ours)
    (tmp_path / "jsonl").write_text("a warning that got between\n" + done.stdout)
    with Log(str(tmp_path / "jsonl")) as log, Log(str(tmp_path / "ours")) as own:
        same_as_ours(results(log), results(own))
        run = log.choose(None)[0]
        assert run.format == "ansible.posix.jsonl" and run.fact("playbook") == "site.yml" and run.seconds > 0.3
        assert {r.status for r in results(log)} == {"ok", "changed", "failed", "skipped"}
        assert log.bad == 1


def test_job_events(tmp_path, capsys):
    runner = pytest.importorskip("ansible_runner", reason="ansible-runner is not installed")
    assert runner
    project, inventory = tmp_path / "project", tmp_path / "inventory"
    project.mkdir()
    inventory.mkdir()
    (project / "site.yml").write_text(small(project))
    variables = f"ansible_connection=local ansible_python_interpreter={sys.executable}"
    (inventory / "hosts").write_text("".join(f"{host} {variables}\n" for host in ("h1", "h2")))
    env = environment(tmp_path) | {"PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}
    ours = {"ANSIBLE_CALLBACKS_ENABLED": "churten.core.timings", "CHURTEN_TIMINGS_LOG": str(tmp_path / "ours")}
    words = [sys.executable, "-m", "ansible_runner", "run", str(tmp_path), "-p", "site.yml", "-j"]
    done = subprocess.run(words, env=env | ours, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "events").write_text(done.stdout)
    (artifacts,) = (tmp_path / "artifacts").iterdir()
    (artifacts / "job_events" / "999-broken.json").write_text("{")
    for path in (artifacts / "job_events", tmp_path, tmp_path / "events"):
        with Log(str(path)) as log, Log(str(tmp_path / "ours")) as own:
            same_as_ours(results(log), results(own))
            assert {r.uuid: r.status for r in results(log)} == {r.uuid: r.status for r in results(own)}
            assert log.choose(None)[0].seconds > 0.3
    assert timings("report", tmp_path) == 0
    printed = capsys.readouterr()
    assert "small : inside" in printed.out and "canary" not in printed.out and "1 line of" in printed.err


def test_rows_of_includes():
    def result(host, uuid, **more):
        return read_result(result_line(ONE, host, "t", 0, 1, uuid=uuid, **more))

    # A loop of two includes on two hosts under free: every (host, item) has its own uuid.
    found = Columns(result(host, f"u{number}") for number, host in enumerate(("h1", "h2", "h1", "h2")))
    assert list(found.row) == [0, 0, 1, 1]
    # A handler that ran again has its uuid, and its row; without a path nothing is put together.
    found = Columns([result("h1", "u0"), result("h1", "u0"), result("h1", "x", path=None), result("h2", "y", path=None)])
    assert list(found.row) == [0, 0, 1, 2]


def peak_of(code, *words):
    """Peak resident memory in MiB of a Python that runs this code."""
    ending = "\nimport resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
    done = subprocess.run([sys.executable, "-c", code + ending, *map(str, words)], capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


@pytest.mark.slow
def test_a_large_log_needs_little_memory(tmp_path):
    """100,000 results: by the 46 bytes of each, 1 GB (2 million results) stays below 200 MiB."""
    assert resource.RUSAGE_SELF == 0
    path = tmp_path / "t.log"
    with open(path, "w") as file:
        for line in big(ONE, 1000, 100, slots=100):
            file.write(text([line]))
    code = "import sys; from churten.cli.main import main; assert main(['timings', *sys.argv[1:]]) in (0, 3)"
    idle = peak_of("import churten.cli.main, churten.cli.timings")
    for verb in (["report"], ["top", "tasks"], ["hosts"], ["critical-path"], ["throughput"], ["trend"]):
        used = peak_of(code, *verb, path) - idle
        assert used < 30, f"{verb}: {used} MiB for {path.stat().st_size >> 20} MiB"


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("history export json --dir X last", {"form": "json", "dir": "X", "wanted": ["last"]}),
        ("history export --dir X json", {"form": "json", "dir": "X"}),
        ("history diff last-3 --dir X last-1", {"one": "last-3", "two": "last-1"}),
        ("history diff --dir X", {"one": "last-1", "two": "last"}),
        ("history show --dir X", {"wanted": None}),
        ("timings compare a.log --limit 3 b.log", {"limit": 3}),
        ("timings export csv a.log -o b", {"output": "b"}),
        ("timings top hosts --limit 2 a.log", {"by": "hosts", "limit": 2}),
    ],
)
def test_options_may_stand_between_arguments(words, wanted):
    from churten.cli.main import build_parser

    found = vars(build_parser().parse_args(words.split()))
    assert {name: found[name] for name in wanted} == wanted


@pytest.mark.parametrize(
    ("words", "said"), [("timings compare a --limt 3", "--limt"), ("timings report", "LOG"), ("history search", "TEXT"), ("history diff a b c", "c")]
)
def test_wrong_arguments_are_named(words, said, capsys):
    from churten.cli.main import build_parser

    with pytest.raises(SystemExit):
        build_parser().parse_args(words.split())
    assert said in capsys.readouterr().err
