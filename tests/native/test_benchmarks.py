"""The harness counts what it says it counts, and sees differences."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import figures  # noqa: E402
import harness  # noqa: E402
import plots  # noqa: E402
import report  # noqa: E402
import run  # noqa: E402
import scenario  # noqa: E402
import surroundings  # noqa: E402

# Runs in a process of its own: adopt_orphans() changes the process for good.
MEASURE = """
import dataclasses, json, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import harness
harness.adopt_orphans()
measure = harness.run([sys.executable, "-c", sys.argv[3]], dict(os.environ), Path(sys.argv[2]) / "log", float(sys.argv[4]))
left = harness.procs.descendants([os.getpid()])
print(json.dumps({**dataclasses.asdict(measure), "left": sorted(left)}))
"""
BURN = "import time\nwhile time.process_time() < {0}: pass\n"
DAEMON = """
import os, time
ready, tell = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while time.process_time() < 0.4: pass
        os.write(tell, b"x")
        time.sleep(600)
    os._exit(0)
os.wait()
os.read(ready, 1)
print("said")
raise SystemExit(3)
"""
RECAP = """PLAY [all] ***
lab001 : ok=9 this is no recap
PLAY RECAP *****
\x1b[0;33mlab001\x1b[0m                     : ok=43   changed=24   unreachable=0    failed=0    skipped=0
lab002                     : ok=1    changed=0    unreachable=1    failed=0    skipped=0

TASKS RECAP ****
x : y
"""


def measure(tmp_path, code, timeout=60):
    words = [sys.executable, "-c", MEASURE, str(ROOT / "benchmarks"), str(tmp_path), code, str(timeout)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_cpu_of_the_run_and_of_its_children(tmp_path):
    code = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {BURN.format(0.4)!r}])\n" + BURN.format(0.4)
    found = measure(tmp_path, code)
    assert found["code"] == 0 and found["controller_cpu"] >= 0.8 and found["background_cpu"] < 0.4


def test_what_a_run_leaves_behind_is_counted_and_ended(tmp_path):
    found = measure(tmp_path, DAEMON)
    assert found["code"] == 3 and found["output"] == "said\n"
    assert found["background_cpu"] >= 0.4 > found["controller_cpu"]
    assert found["left"] == []


def test_memory_of_all_processes(tmp_path):
    hold = "import time; data = bytearray(b'x') * (64 << 20); time.sleep(2)"
    code = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {hold!r}])"
    assert measure(tmp_path, code)["peak_mb"] > 64


def test_a_run_that_hangs_is_ended(tmp_path):
    found = measure(tmp_path, "import time; time.sleep(600)", timeout=1)
    assert found["code"] == 124


def test_recap():
    found = harness.recap(RECAP)
    assert found == {
        "lab001": "ok=43 changed=24 unreachable=0 failed=0 skipped=0",
        "lab002": "ok=1 changed=0 unreachable=1 failed=0 skipped=0",
    }
    assert harness.recap("nothing") == {}


@pytest.mark.parametrize("change", ["content", "mode", "missing", "link"])
def test_tree_sees_every_difference(tmp_path, change):
    for name in ("a", "b"):
        folder = tmp_path / name / "lab001" / "site" / "sub"
        folder.mkdir(parents=True)
        (folder / "file").write_text("same")
        (folder / "link").symlink_to("file")
    assert harness.tree(tmp_path / "a", "site") == harness.tree(tmp_path / "b", "site")
    assert len(harness.tree(tmp_path / "a", "site")) == 3
    changed = tmp_path / "b" / "lab001" / "site" / "sub"
    if change == "content":
        (changed / "file").write_text("else")
    elif change == "mode":
        (changed / "file").chmod(0o600)
    elif change == "missing":
        (changed / "file").unlink()
    else:
        (changed / "link").unlink()
        os.symlink("elsewhere", changed / "link")
    assert harness.tree(tmp_path / "a", "site") != harness.tree(tmp_path / "b", "site")


RESULT = "ok=2 changed=2 unreachable=0 failed=0 skipped=0 rescued=0 ignored=0"


def made(name="some", **more):
    return scenario.parse(name, {"title": "a title", "hosts": 2, "forks": 2, "tasks": 10, "playbook": "playbooks/cmd1.yml", **more})


def one(wall=1.0, **more):
    found = harness.Measure(code=0, wall=wall, controller_cpu=wall / 2, background_cpu=0.0, peak_mb=10, output="", **more)
    found.figures |= {"wall": wall, "controller_ms": wall * 25, "peak_mb": 10.0}
    return found


def test_pyinfra_recap():
    output = "--> Connecting\n    [lab001] Connected\n\x1b[32m    [lab001] Success\x1b[0m\n    [lab002] Error\n    [lab001] Success\n  Grand total   60\n"
    assert harness.pyinfra_recap(output) == {"lab001": RESULT}


def test_every_scenario_can_be_read_and_the_whole_fits():
    total, orders = 0.0, []
    for found in scenario.everything():
        if found.whole:
            names = found.whole.only or found.contenders
            assert set(names) <= set(found.contenders) & set(found.seconds), found.name
            total += found.estimate(names, run.whole_repeats(found))
            orders.append(found.whole.order)
    assert total <= run.BUDGET and orders == sorted(set(orders))


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"hostz": 3}, "hostz is unknown"),
        ({"playbook": "playbooks/none.yml"}, "no playbook playbooks/none.yml"),
        ({"contenders": ["stock fre"]}, "no contender 'stock fre'"),
        ({"second": "hot"}, "'hot'"),
        ({"figures": ["speed"]}, "no figure 'speed'"),
        ({"targets": [{"vs": "stock free"}]}, "either at_least or at_most"),
        ({"targets": [{"vs": "nobody", "at_most": 1}]}, "'nobody'"),
        ({"world": {"rtt": 3}}, "rtt is unknown"),
        ({"whole": {"repeat": 3}}, "order"),
    ],
)
def test_a_wrong_scenario_is_named(wrong, words):
    with pytest.raises(scenario.ScenarioError, match=f"some.*{words}"):
        made(**wrong)


@pytest.mark.parametrize(
    "target, wanted, verdict",
    [
        ({"vs": "stock free", "at_least": 20}, ">= 20x stock free", "met (20.0x)"),
        ({"vs": "stock free", "at_least": 25}, ">= 25x stock free", "missed (20.0x)"),
        ({"vs": "mitogen free", "at_least": 5}, ">= 5x mitogen free", "not measured"),
        ({"vs": "remote floor", "at_most": 1.4}, "<= 1.4x remote floor", "missed (2.00x)"),
        ({"figure": "controller_ms", "at_most": 30, "unit": "ms"}, "controller CPU per host-task <= 30 ms", "met (25 ms)"),
        ({"figure": "controller_ms", "vs": "stock free", "at_most": 0.04}, "controller CPU per host-task <= 0.04x stock free", "missed (0.05x)"),
        ({"of": "stock free", "minus": "remote floor", "at_most": 10, "unit": "s"}, "stock free: wall more than remote floor <= 10 s", "missed (19.5 s)"),
        ({"figure": "idle_percent", "at_most": 1}, "CPU while hosts work <= 1", "not measured"),
    ],
)
def test_targets(target, wanted, verdict):
    results = {"stock free": [one(19.0), one(20.0), one(30.0)], "churten free": [one(1.0)], "remote floor": [one(0.5)]}
    (row,) = report.verdicts(made(targets=[target]), results)
    assert (row["wanted"], row["verdict"]) == (wanted, verdict)
    if row["of"] in results:
        assert f"{wanted}: {verdict}" in report.table(made(targets=[target]), results)


def test_tables_and_what_is_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    found = made(targets=[{"vs": "stock free", "at_least": 2}], figures=["peak_mb"])
    results = {"stock free": [one(4.0)], "churten free": [one(1.0)]}
    head, _, stock, ours = report.table(found, results).splitlines()
    assert head.count("|") == stock.count("|") == ours.count("|") and "4.0x" in ours
    line = report.Line(found, results, ["pyinfra is out: it differs"])
    assert "| a title | 1.00 |  | 4.00 |  | 4.0x | >= 2x stock free: met (4.00x); **pyinfra is out: it differs** |" in report.summary([line])
    report.save(found, {"machine": "this", "date": "then"}, results, line.notes, "text")
    back = report.newest(found, "this")
    assert back.results == results and back.notes == line.notes and "a title (then)" in report.summary([back])
    assert report.newest(found, "another") is None
    path = report.save_summary([line], {"machine": "this", "date": "now"}, [], "shown")
    assert json.loads(path.read_text())["scenarios"]["some"]["targets"][0]["met"] is True


def test_readme_gets_the_table_between_its_marks(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- bench:x -->\nold\n<!-- /bench -->\nb\n<!-- bench:y -->\nstays\n<!-- /bench -->\n")
    report.write_readme("x", "how", "| t |", readme)
    assert readme.read_text() == "a\n<!-- bench:x -->\nhow\n\n| t |\n<!-- /bench -->\nb\n<!-- bench:y -->\nstays\n<!-- /bench -->\n"
    with pytest.raises(SystemExit, match="no place for z"):
        report.write_readme("z", "how", "| t |", readme)


def test_figures_of_a_long_line(tmp_path):
    clock = tmp_path / "clock"
    moments = [("play", "", 10.0), ("result", "Ping first", 10.9), ("result", "Command 1", 11.0), ("result", "Command 2", 11.3), ("result", "Copy 1", 11.5)]
    clock.write_text("".join(json.dumps({"ev": ev, "task": task, "at": at}) + "\n" for ev, task, at in moments))
    seen = figures.Seen(made(world={"rtt_ms": 100}), one(), clock=clock, login_at=10.55)
    found = figures.compute(seen)
    wanted = {"task_rtts": 2, "copy_rtts": 2, "first_rtts": 9, "after_login_rtts": 3}
    assert {name: round(found[name], 3) for name in wanted} == wanted
    assert not [name for name in figures.compute(figures.Seen(made(world={"rtt_ms": 100}), one())) if name.endswith("_rtts")]


def test_a_long_line_is_in_the_inventory_and_long(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        host = SimpleNamespace(name="lab001", address="127.0.0.1", port=port)
        lab = SimpleNamespace(dir=tmp_path, inventory=tmp_path / "inventory.ini", hosts=[host])
        lab.inventory.write_text(f"lab001 ansible_host=127.0.0.1 ansible_port={port} lab_dir={tmp_path}/hosts/lab001\n")
        (tmp_path / "known_hosts").write_text(f"[127.0.0.1]:{port} ssh-ed25519 key\n")
        hosts = surroundings.Hosts(lab, scenario.World(rtt_ms=200))
        try:
            far = hosts.at["lab001"][1]
            assert far != port and f"ansible_port={far} lab_dir" in lab.inventory.read_text()
            assert (tmp_path / "known_hosts").read_text() == f"[127.0.0.1]:{far} ssh-ed25519 key\n"
            with socket.create_connection(hosts.at["lab001"]) as client:
                begin = time.monotonic()
                client.sendall(b"x")
                there, _ = server.accept()
                with there:
                    there.sendall(there.recv(1))
                    assert client.recv(1) == b"x" and time.monotonic() - begin >= 0.2
        finally:
            hosts.close()


def test_other_figures():
    curve = [(at, 1.0 if at < 5 else 1.0 + (at - 5) * 0.02) for at in range(20)]
    found = figures.compute(figures.Seen(made(idle=[10, 16]), one(curve=curve)))
    assert round(found["idle_percent"], 3) == 2
    assert "idle_percent" not in figures.compute(figures.Seen(made(idle=[10, 40]), one(curve=curve)))
    many = made(hosts=100, tasks=5, parts={"few": {"limit": 20}, "empty": {}, "few_empty": {"limit": 20}})
    seen = figures.Seen(many, one(11.0), {"few": one(2.0), "empty": one(1.0), "few_empty": one(0.5)})
    assert round(figures.compute(seen)["cost_ratio"], 3) == round((10 / 500) / (1.5 / 100), 3)
    assert figures.compute(figures.Seen(made(), one(1.0), logins=[1, 3, 2]))["logins"] == 3


def test_problems_are_named():
    wanted = ({"lab001": RESULT}, {"lab001/x": ("-", 0)})
    assert run.problem_of(one(), wanted, None) == run.problem_of(one(), wanted, wanted) == ""
    assert run.problem_of(one(), ({}, {}), wanted) == "no recap"
    assert "lab001 ok=1, not ok=2" in run.problem_of(one(), ({"lab001": "ok=1"}, {}), wanted)
    assert run.problem_of(one(), ({"lab001": RESULT}, {}), wanted) == "1 files differ, first lab001/x"
    failed = one()
    failed.code, failed.output = 4, "a\nb"
    assert run.problem_of(failed, wanted, wanted) == "exit code 4: a / b"


def test_the_whole_goes_on_after_a_failure_and_keeps_its_time(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    whole = {"repeat": 2, "only": ["stock free", "churten free"], "once": ["stock free"]}
    seconds = {"stock free": 100, "churten free": 10}
    found = [made(f"s{n}", title=f"scenario {n}", whole={**whole, "order": n}, seconds=seconds) for n in (1, 2, 3, 4)]
    found[2].seconds = {"stock free": 2000.0}
    monkeypatch.setattr(scenario, "everything", lambda: [*found, made("s5", title="scenario 5")])
    ran = []

    def bench(one_of_them, only, repeats):
        ran.append((one_of_them.name, {name: repeats(name) for name in only}))
        if one_of_them.name == "s1":
            raise RuntimeError("no hosts")
        return report.Line(one_of_them, {"stock free": [one(4.0)], "churten free": [one(1.0)]}, [])

    monkeypatch.setattr(run, "bench", bench)
    assert run.bench_all(False, 1000) == 1
    assert ran == [(name, {"stock free": 1, "churten free": 2}) for name in ("s1", "s2", "s4")]
    said = capsys.readouterr().out
    assert "no time left for s3 (about 20" in said and "not measured: s5 (scenario 5): make bench SCENARIO=s5" in said
    rows = [line for line in said.splitlines() if line.startswith("| scenario ")][1:]
    assert rows == ["| scenario 1 |  |  |  |  |  | **failed: no hosts** |", "| scenario 2 | 1.00 |  | 4.00 |  | 4.0x |  |",
                    "| scenario 4 | 1.00 |  | 4.00 |  | 4.0x |  |"]


# Runs in a process of its own, too. The tables go to a directory of the test.
BENCH = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import report, run, scenario
report.RESULTS = Path(sys.argv[2])
line = run.bench(scenario.parse("some", json.loads(sys.argv[3])), [], lambda name: 1)
print(json.dumps([line.notes, {name: [one.figures for one in found] for name, found in line.results.items()}]))
"""


def measured(tmp_path, **given):
    given = {"title": "a title", "hosts": 2, "forks": 2, "tasks": 1, "playbook": "playbooks/cmd1.yml", **given}
    words = [sys.executable, "-c", BENCH, str(ROOT / "benchmarks"), str(tmp_path), json.dumps(given)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_second_run_finds_the_sessions_of_the_first(tmp_path):
    notes, results = measured(tmp_path, second="warm", world={"logs": True}, contenders=["churten free", "remote floor"])
    assert notes == [] and set(results) == {"churten free", "remote floor"}
    assert [one["logins"] for one in results["churten free"] + results["remote floor"]] == [0, 1]


def test_contenders_behind_a_long_line_and_one_that_cannot(tmp_path):
    given = {"hosts": 1, "playbook": "playbooks/rtt.yml", "state": "far", "world": {"rtt_ms": 10, "logs": True}}
    notes, results = measured(tmp_path, **given, contenders=["churten free", "remote floor"])
    assert len(notes) == 1 and notes[0].startswith("remote floor is out: floor: rtt.yml: ") and "fixed arguments" in notes[0]
    (ours,) = results["churten free"]
    assert ours["logins"] == 1 and ours["task_rtts"] >= 1 and ours["after_login_rtts"] > 0
    assert ours["first_rtts"] > ours["after_login_rtts"]


def test_plots(tmp_path):
    pytest.importorskip("matplotlib")
    points = {"hosts": {"stock free": [[10, 100.0]], "churten free": [[10, 9.0], [50, 7.5]]}, "tasks": {}}
    saved = {"facts": {"machine": "2 cores (x), Linux"}, "points": points}
    (path,) = plots.draw(saved, tmp_path / "plots")
    text = path.read_text()
    assert path.name == "hosts.svg" and all(word in text for word in ("<svg", "stock free", "churten free", "per host-task"))
    assert plots.draw(saved, tmp_path / "again")[0].read_text() == text
    assert plots.within([], 5000, 300) and plots.within([(50, 60.0)], 5000, 300) and not plots.within([(50, 301.0)], 5000, 300)
    assert plots.within([(50, 20.0), (150, 24.0)], 5000, 300) and not plots.within([(50, 20.0), (150, 28.0)], 5000, 300)
