"""The verbs of `churten timings`: figures of runs that are known, formats that their own readers accept."""

import csv
import json
import random
import statistics

import pytest
from made_logs import big, end_line, result_line, run_line, text
from playing import play

from churten.cli import _output
from churten.cli.main import main
from churten.timings import analysis, chain, columns, compare, export
from churten.timings.reading import Log

ONE, TWO = "1" * 16, "2" * 16
# Names as an enemy would choose them.
NASTY = '</script><script>alert(1)</script> "quote\\ \n\x1b[31m é \udcff'


def timings(*words):
    """Exit code of `churten timings`, in this process."""
    return main(["timings", *map(str, words)])


def said(capsys, *words, code=0):
    """What a verb prints."""
    assert timings(*words) == code
    return capsys.readouterr().out


def answered(capsys, *words, code=0):
    """What a verb says with --json."""
    return json.loads(said(capsys, *words, "--json", code=code))


def written(path, *lines):
    path.write_text(text(lines))
    return path


def known(path, *lines, forks=1):
    with Log(str(written(path, run_line(ONE, forks=forks), *lines))) as log:
        return columns.read(log, log.choose(None)[0])


def results_in(lines):
    return [line for line in lines if line["ev"] == "result"]


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """A run under linear and one under free, 8 hosts with 4 slots and 12 tasks."""
    where = tmp_path_factory.mktemp("logs")
    lines = {name: list(big(run, 8, 12, name, slots=4)) for name, run in (("linear", ONE), ("free", TWO))}
    return {name: (written(where / name, *found), found) for name, found in lines.items()}


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Logs of real runs: three hosts that sleep, under linear and free."""
    where = tmp_path_factory.mktemp("real")
    book = """
- {name: first, hosts: all, gather_facts: false, tasks: [
    {name: A, command: "sleep {{ 1 if inventory_hostname == 'h2' else 0.1 }}"}, {name: B, command: sleep 0.2}, {name: C, debug: }]}
- {name: second, hosts: all, gather_facts: false, tasks: [{name: D, command: sleep 0.1}]}
"""
    found = {}
    for strategy in ("linear", "free"):
        more = {"ANSIBLE_STRATEGY": strategy, "CHURTEN_TIMINGS_LOG": where / strategy, "ANSIBLE_CALLBACKS_ENABLED": "churten.core.timings"}
        play(where, book, hosts=("h1", "h2", "h3"), **more)
        found[strategy] = where / strategy
    return found


# Figures.


def test_quantiles_are_times_that_occurred():
    chance = random.Random(1)
    values = sorted(chance.random() for _ in range(1001))
    assert analysis.quantile(values, 0.5) == statistics.median(values)
    assert analysis.quantile(values, 0.95) == values[950]
    assert analysis.quantile([3.0], 0.95) == 3.0 and analysis.quantile([1.0, 2.0], 0.5) == 1.0
    with pytest.raises(ValueError):
        analysis.quantile([], 0.5)


@pytest.mark.parametrize("strategy", ["linear", "free"])
def test_top(capsys, logs, strategy):
    path, lines = logs[strategy]
    results = results_in(lines)
    for by, key in (("tasks", "task"), ("hosts", "host"), ("roles", "role")):
        groups = answered(capsys, "top", by, path, "--limit", "all")[by]
        assert {group["name"] for group in groups} == {line[key] for line in results}
        assert [group["sum_s"] for group in groups] == sorted((group["sum_s"] for group in groups), reverse=True)
        for group in groups:
            own = [line for line in results if line[key] == group["name"]]
            times = sorted(line["seconds"] for line in own)
            assert group["count"] == len(own)
            assert group["sum_s"] == pytest.approx(sum(times), abs=1e-4)
            assert group["max_s"] == pytest.approx(times[-1], abs=1e-5)
            assert group["p50_s"] == pytest.approx(times[(len(times) + 1) // 2 - 1], abs=1e-5)
            span = max(line["at"] + line["seconds"] for line in own) - min(line["at"] for line in own)
            assert group["span_s"] == pytest.approx(span, abs=1e-4)
    shown = said(capsys, "top", "hosts", path, "--limit", "2", "--sort", "max")
    assert "(6 of 8 hosts not shown)" in shown and shown.splitlines()[1].startswith("web-005 ")


def test_the_profile_tasks_inversion_is_told_right(capsys, tmp_path):
    """A takes 1, 10 and 1 s, B 1 s each, under free: profile_tasks says A 1 s, B 10 s."""
    lines = []
    for host, seconds in (("h1", 1), ("h2", 10), ("h3", 1)):
        lines += [result_line(ONE, host, "A", 0, seconds), result_line(ONE, host, "B", seconds, 1)]
    lines.sort(key=lambda line: line["at"] + line["seconds"])
    path = written(tmp_path / "t.log", run_line(ONE), *lines, end_line(ONE, 11, 6))
    a, b = answered(capsys, "top", "tasks", path)["tasks"]
    assert (a["name"], a["sum_s"], a["max_at"]) == ("A", 12, "h2") and (b["name"], b["sum_s"]) == ("B", 3)
    found = answered(capsys, "critical-path", path)
    assert [(link["task"], link["host"], link["cause"]) for link in found["links"]] == [("A", "h2", "start"), ("B", "h2", "host")]
    hosts = {host["name"]: host for host in answered(capsys, "hosts", path)["hosts"]}
    assert hosts["h1"]["after_s"] == 9 and hosts["h2"]["after_s"] == 0 and hosts["h2"]["skew"] == 5.5


@pytest.mark.parametrize("strategy", ["linear", "free"])
def test_a_host_accounts_for_the_whole_run(capsys, logs, strategy):
    path, lines = logs[strategy]
    found = answered(capsys, "hosts", path, "--limit", "all")
    last = max(line["at"] + line["seconds"] for line in results_in(lines))
    for host in found["hosts"]:
        own = [line for line in lines if line.get("host") == host["name"]]
        first = min(line["at"] - line["queue"] for line in own)
        assert host["busy_s"] + host["queue_s"] + host["idle_s"] + host["after_s"] + first == pytest.approx(last, abs=1e-3)
    assert found["busy"] == pytest.approx(sum(line["seconds"] for line in results_in(lines)), abs=1e-3)
    assert found["efficiency"] == pytest.approx(found["busy"] / 4 / found["wall"], abs=1e-6)


@pytest.mark.parametrize("strategy", ["linear", "free"])
def test_throughput_adds_up(capsys, logs, strategy):
    path, lines = logs[strategy]
    for every in ("0.5", "1000"):
        found = answered(capsys, "throughput", path, "--every", every)
        assert sum(piece["ended"] for piece in found["intervals"]) == len(results_in(lines)) == found["ended"]
        busy = sum(piece["active"] * piece["seconds"] for piece in found["intervals"])
        assert busy == pytest.approx(sum(line["seconds"] for line in results_in(lines)), abs=1e-3)
        assert all(0 <= piece["active"] <= 4.001 for piece in found["intervals"])
    assert found["per_minute"] == pytest.approx(60 * found["ended"] / found["wall"])
    assert "active" in said(capsys, "throughput", path)


def test_how_many_ran(tmp_path):
    found = known(tmp_path / "t", *(result_line(ONE, f"h{n}", "a", n * 0.5, 1.0) for n in range(4)))
    changes = list(analysis.active(found))
    assert changes[0] == (0.0, 0) and changes[-1][1] == 0 and max(number for _, number in changes) == 2
    most, i = analysis.peak(found)
    assert most == 2 and found.hosts[found.host[i]] in ("h1", "h2", "h3")


def test_a_log_in_another_order_is_sorted(tmp_path):
    found = known(tmp_path / "t", result_line(ONE, "b", "t", 5, 1), result_line(ONE, "a", "t", 0, 1, worker=3), result_line(ONE, "c", "t", 2, 1))
    assert list(found.end) == [1, 3, 6] and [found.hosts[host] for host in found.host] == ["a", "c", "b"] and list(found.worker) == [3, -1, -1]


# The critical path.


def adds_up(found):
    ended = found["links"][-1]["at_s"] + found["links"][-1]["seconds"]
    assert found["tasks"] + found["gaps"] == pytest.approx(ended, abs=1e-3)
    assert ended + found["end"] == pytest.approx(found["wall"], abs=1e-3)
    until = 0.0
    for link in found["links"]:
        assert link["gap_s"] >= 0 and link["seconds"] >= 0
        assert link["at_s"] == pytest.approx(until + link["gap_s"], abs=1e-3)
        until = link["at_s"] + link["seconds"]


@pytest.mark.parametrize("strategy", ["linear", "free"])
def test_the_chain_covers_the_wall_time(capsys, logs, strategy):
    found = answered(capsys, "critical-path", logs[strategy][0])
    adds_up(found)
    # Slots were short all the time, so next to nothing of it was between tasks.
    assert found["tasks"] > 0.95 * found["wall"] - 0.2
    assert list(found["lockstep"].values()) == [strategy == "linear"]
    causes = {link["cause"] for link in found["links"]}
    assert causes >= {"start", "slot"} and ("barrier" in causes) == (strategy == "linear")


def test_the_chain_of_real_runs(capsys, real):
    found = answered(capsys, "critical-path", real["linear"])
    adds_up(found)
    links = [(link["task"], link["cause"]) for link in found["links"]]
    assert links[0] == ("A", "start") and found["links"][0]["host"] == "h2"
    assert [task for task, _ in links] == ["A", "B", "C", "D"]
    assert links[1][1] in ("host", "barrier") and links[3][1] in ("play", "host", "barrier")
    found = answered(capsys, "critical-path", real["free"])
    adds_up(found)
    # Under free the slow host waits for nobody: until the play ends it is the chain.
    assert [(link["task"], link["host"]) for link in found["links"]][:3] == [("A", "h2"), ("B", "h2"), ("C", "h2")]
    assert [link["cause"] for link in found["links"]][:3] == ["start", "host", "host"]
    assert (found["links"][3]["task"], found["links"][3]["cause"]) == ("D", "play")
    assert list(found["lockstep"].values()) == [False, False]


def test_causes(tmp_path):
    def causes(*lines, forks=2):
        found = known(tmp_path / "t", *lines, forks=forks)
        return [(link.cause, found.hosts[found.host[link.number]]) for link in chain.critical_path(found).links]

    # One slot, nobody measured the wait: linear, the second host came after the first.
    assert causes(result_line(ONE, "a", "t", 0, 1), result_line(ONE, "b", "t", 1, 1)) == [("start", "a"), ("slot", "b")]
    # Slots are known: of two that ended, the one that had the slot.
    lines = [result_line(ONE, "a", "t", 0, 0.9, worker=0), result_line(ONE, "b", "t", 0, 1, worker=1), result_line(ONE, "c", "t", 1, 1, worker=0, queue=1.0)]
    assert causes(*lines) == [("start", "a"), ("slot", "c")]
    # With a slot for everybody it was no slot that was waited for.
    assert causes(*lines, forks=3) == [("start", "c")]
    # A barrier: b does its second task when a has done its first.
    lines = [result_line(ONE, "b", "t", 0, 1), result_line(ONE, "a", "t", 0, 2), result_line(ONE, "a", "u", 2.1, 0.1), result_line(ONE, "b", "u", 2.1, 1)]
    assert causes(*lines) == [("start", "a"), ("barrier", "b")]
    # A slot that is free before its result is handled: the chain is not counted twice.
    lines = [result_line(ONE, "a", "t", 0, 1.2, worker=0), result_line(ONE, "b", "t", 1, 1, worker=0, queue=1.0)]
    found = chain.critical_path(known(tmp_path / "t", *lines))
    assert [round(link.seconds, 3) for link in found.links] == [1.0, 1.0] and found.gap_s == 0
    assert chain.critical_path(known(tmp_path / "t")).links == []


@pytest.mark.parametrize("number", range(20))
def test_a_chain_of_anything_ends(tmp_path, number):
    chance = random.Random(number)
    lines = [
        result_line(
            ONE, f"h{chance.randrange(5)}", f"t{chance.randrange(4)}", round(chance.random() * 3, 3), round(chance.random(), 3),
            play_uuid=f"p{chance.randrange(2)}", worker=chance.choice([None, 0, 1]), queue=chance.choice([None, 0.0, 0.3]),
        )
        for _ in range(60)
    ]  # fmt: skip
    found = chain.critical_path(known(tmp_path / "t", *lines))
    total = found.task_s + found.gap_s + found.end_s
    assert total == pytest.approx(found.wall_s, abs=1e-3)


# Runs against each other.


def test_compare(capsys, tmp_path):
    one = [result_line(ONE, "h", "same", 0, 1), result_line(ONE, "h", "slow", 1, 2), result_line(ONE, "h", "gone", 3, 1)]
    two = [result_line(TWO, "h", "same", 0, 1), result_line(TWO, "h", "slow", 1, 3), result_line(TWO, "h", "new", 4, 1)]
    a = written(tmp_path / "a", run_line(ONE), *one, end_line(ONE, 4, 3))
    b = written(tmp_path / "b", run_line(TWO), *two, end_line(TWO, 5, 3))
    found = answered(capsys, "compare", a, b)
    tasks = {task["task"]: task for task in found["tasks"]}
    assert (found["wall_a"], found["wall_b"]) == (4, 5)
    assert found["gain"] == -0.25 and found["slower"] == 1
    assert tasks["slow"]["slower"] and tasks["slow"]["gain"] == -0.5 and tasks["slow"]["delta_s"] == 1
    assert tasks["gone"]["b"] is None and tasks["new"]["a"] is None and tasks["same"]["gain"] == 0
    shown = said(capsys, "compare", a, b)
    assert "gain -25 %" in shown and "only in A" in shown and "only in B" in shown
    assert timings("compare", a, b, "--fail") == 3 and timings("compare", b, a, "--fail") == 0
    assert timings("compare", a, b, "--fail", "--share", "60%") == 0
    both = tmp_path / "both"
    both.write_text(a.read_text() + b.read_text())
    capsys.readouterr()
    assert answered(capsys, "compare", both)["gain"] == -0.25
    assert answered(capsys, "compare", both, "--run-a", "2", "--run-b", "1")["gain"] == 0.2
    assert timings("compare", a) == 1 and "last-1" in capsys.readouterr().err


def test_the_orchestrators_report(capsys, tmp_path):
    """As in the test guide of a worker pool: nine servers, none and three workers."""
    one, three = [], []
    for number in range(9):
        one.append(result_line(ONE, f"web-{number}", "deploy", 5 * number, 5, worker=0))
        three.append(result_line(TWO, f"web-{number}", "deploy", 5 * (number // 3), 5, worker=number % 3))
    a = written(tmp_path / "a", run_line(ONE, forks=1), *one, end_line(ONE, 45, 9))
    b = written(tmp_path / "b", run_line(TWO, forks=3), *three, end_line(TWO, 15, 9))
    shown = said(capsys, "compare", a, b, "--report", "orchestrator", "--environment", "docker", "--action", "deploy")
    for line in (
        "- Environment: docker", "- Servers: 9", "- Workers: 3", "- Action: deploy", "- Mode: Parallel ✅", "- Temps par serveur: 5.0 s",
        "- Workers actifs: 3/3", "- Gain vs séquentiel: 67%", "**Conclusion**: Exécution parallèle fonctionnelle ✅",
    ):  # fmt: skip
        assert line in shown.splitlines()
    assert "- Temps total: 15.0 s (avant: 45.0 s avec 1 workers)" in shown
    assert "(active: 3/3)" in shown and "PARALLEL mode with 3 workers" in shown
    assert "Sequential ❌" in said(capsys, "compare", b, a, "--report", "orchestrator")


def test_trend(capsys, tmp_path):
    path = tmp_path / "t.log"
    with open(path, "w") as file:
        for number in range(25):
            run = f"{number:016x}"
            slow = 4 if number == 24 else 1
            started = f"2026-11-{number + 1:02}T10:00:00.000Z"
            lines = [run_line(run, started=started), result_line(run, "h", "steady", 0, 1), result_line(run, "h", "slower", 1, slow)]
            lines += [result_line(run, "h", "skipped", 1, 0.01 * slow**4, status="skipped"), result_line(run, "h", "tiny", 5, 0.01 * slow)]
            if number > 22:
                lines.append(result_line(run, "h", "young", 6, slow))
            file.write(text([*lines, end_line(run, 6, 4)]))
        file.write(text([run_line("f" * 16, "other.yml", started="2026-10-01T00:00:00.000Z"), result_line("f" * 16, "h", "steady", 0, 9)]))
    found = answered(capsys, "trend", path, code=3)
    assert found["slow"] == 1 and len(found["runs"]) == 21
    tasks = {task["task"]: task for task in found["tasks"]}
    assert tasks["slower"]["slow"] and tasks["slower"]["factor"] == 4 and tasks["slower"]["median_s"] == 1
    assert not tasks["tiny"]["slow"] and not tasks["young"]["slow"] and "skipped" not in tasks
    shown = said(capsys, "trend", path, code=3)
    assert "slow: slower took 4.00s per host, 4.0 times its median of 1.00s" in shown
    assert timings("trend", path, "--factor", "5") == 0
    assert timings("trend", path, "--playbook", "other.yml") == 0
    assert "too few runs" in capsys.readouterr().out
    assert timings("trend", path, "--playbook", "none.yml") == 1
    assert "other.yml" in capsys.readouterr().err


# Formats.


@pytest.fixture
def nasty(tmp_path):
    """A run with names that no format must trip over; h1 has two tasks of one name."""
    phases = {"queue": 0.25, "connect": 0.5, "remote": 1.0, "controller": 0.5, "worker": 0, "engine": "fiber"}
    lines = [
        result_line(ONE, "h1", NASTY, 1, 2, role=NASTY, play=NASTY, **phases), result_line(ONE, NASTY, "b", 2, 2, status="failed"),
        result_line(ONE, "h1", NASTY, 2.999, 1.5, uuid="other", path="x", status="changed"),  # before the first was handled
    ]  # fmt: skip
    return written(tmp_path / "nasty.log", run_line(ONE, NASTY), *lines, end_line(ONE, 5, 3))


def exported(path, form):
    with Log(str(path)) as log:
        return "".join(export.FORMATS[form](log, log.choose(None)[0]))


def test_csv(nasty):
    rows = list(csv.DictReader(exported(nasty, "csv").splitlines(True)))
    assert [row["host"] for row in rows] == ["h1", NASTY, "h1"]
    assert rows[0]["task"] == NASTY and float(rows[0]["remote"]) == 1 and rows[1]["remote"] == ""


def test_json(nasty):
    found = json.loads(exported(nasty, "json"))
    assert found["run"] == ONE and found["seconds"] == 5 and [r["task"] for r in found["results"]] == [NASTY, "b", NASTY]


@pytest.mark.parametrize("name", ["nasty", "linear", "free", "real"])
def test_perfetto(nasty, logs, real, name):
    """The trace event format: known phases, integer times, names for all tracks, and slices that nest or do not touch."""
    path = {"nasty": nasty, "real": real["free"]}.get(name) or logs[name][0]
    trace = json.loads(exported(path, "perfetto"))
    assert trace["displayTimeUnit"] == "ms"
    tracks, named = {}, set()
    for event in trace["traceEvents"]:
        assert event["ph"] in "MXC" and isinstance(event["pid"], int) and isinstance(event["name"], str)
        if event["ph"] == "M":
            named.add((event["pid"], event.get("tid")))
        else:
            assert isinstance(event["ts"], int) and event["ts"] >= 0
        if event["ph"] == "X":
            assert isinstance(event["dur"], int) and event["dur"] >= 0
            tracks.setdefault((event["pid"], event["tid"]), []).append((event["ts"], event["ts"] + event["dur"], event["name"]))
    assert set(tracks) <= named
    for slices in tracks.values():
        open_until = []
        for begin, end, _ in sorted(slices, key=lambda one: (one[0], -one[1])):
            while open_until and open_until[-1] <= begin:
                open_until.pop()
            assert not open_until or end <= open_until[-1]
            open_until.append(end)
    with Log(str(path)) as log:
        results = list(log.results(log.choose(None)[0]))
    tasks = [event for event in trace["traceEvents"] if event["ph"] == "X" and event["pid"] == 1 and "args" in event]
    assert [task["name"] for task in tasks] == [result.task for result in results]
    assert all(abs(task["dur"] / 1e6 - result.seconds) < 0.002 for task, result in zip(tasks, results))
    running = [event["args"]["tasks"] for event in trace["traceEvents"] if event["ph"] == "C"]
    assert running[-1] == 0 and max(running) > 0


@pytest.mark.parametrize("name", ["nasty", "free", "real"])
def test_prometheus(nasty, logs, real, name):
    parser = pytest.importorskip("prometheus_client.parser", reason="prometheus_client is not installed")
    path = {"nasty": nasty, "real": real["free"]}.get(name) or logs[name][0]
    families = {family.name: family for family in parser.text_string_to_metric_families(exported(path, "prometheus"))}
    seen = [(sample.name, tuple(sorted(sample.labels.items()))) for family in families.values() for sample in family.samples]
    assert len(seen) == len(set(seen)), "a series occurs twice"
    assert all(family.documentation and family.type in ("gauge", "summary") for family in families.values())
    with Log(str(path)) as log:
        run = log.choose(None)[0]
        results = list(log.results(run))
    assert families["churten_run_duration_seconds"].samples[0].value == pytest.approx(run.seconds)
    assert sum(sample.value for sample in families["churten_run_results"].samples) == len(results)
    sums = {s.labels["task"]: s.value for s in families["churten_task_seconds"].samples if s.name.endswith("_sum")}
    clean = {result.task.encode("utf-8", "replace").decode() for result in results}
    assert set(sums) == clean and sum(sums.values()) == pytest.approx(sum(r.seconds for r in results), abs=1e-3)


@pytest.mark.parametrize("name", ["nasty", "free", "real"])
def test_otlp_json(nasty, logs, real, name):
    pytest.importorskip("opentelemetry.proto", reason="opentelemetry-proto is not installed")
    from google.protobuf import json_format
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    path = {"nasty": nasty, "real": real["free"]}.get(name) or logs[name][0]
    spans = []
    for line in exported(path, "otlp-json").splitlines():
        # Identities are hexadecimal in OTLP's JSON, but base64 for protobuf's own reader.
        body = json.loads(line)
        for span in body["resourceSpans"][0]["scopeSpans"][0]["spans"]:
            assert len(bytes.fromhex(span["traceId"])) == 16 and len(bytes.fromhex(span["spanId"])) == 8
        request = json_format.Parse(line, ExportTraceServiceRequest())
        (resource,) = request.resource_spans
        assert resource.resource.attributes[0].value.string_value == "ansible"
        spans += resource.scope_spans[0].spans
    with Log(str(path)) as log:
        results = list(log.results(log.choose(None)[0]))
    roots = [span for span in spans if not span.parent_span_id]
    known = {span.span_id for span in spans}
    assert len(roots) == 1 and len(known) == len(spans) and len({span.trace_id for span in spans}) == 1
    assert all(span.parent_span_id in known for span in spans if span not in roots)
    assert len(spans) == len(results) + len({result.play_uuid for result in results}) + 1
    by_id = {span.span_id: span for span in spans}
    for span in spans:
        assert span.start_time_unix_nano <= span.end_time_unix_nano
        if span.parent_span_id:
            parent = by_id[span.parent_span_id]
            assert parent.start_time_unix_nano <= span.start_time_unix_nano and span.end_time_unix_nano <= parent.end_time_unix_nano
    assert sum(span.status.code == 2 for span in spans if span not in roots) == sum(r.status in ("failed", "unreachable") for r in results)


def test_output_goes_to_a_private_file_or_nowhere(tmp_path, nasty, capsys):
    path = tmp_path / "out"
    path.write_text("old")
    assert timings("export", "csv", nasty, "-o", path) == 0
    assert path.stat().st_mode & 0o777 == 0o600 and path.read_bytes().startswith(b"run,")
    for where, reason in ((tmp_path / "no" / "out", "No such file"), (tmp_path, "directory")):
        assert timings("export", "csv", nasty, "-o", where) == 1
        assert reason in capsys.readouterr().err

    def full():
        yield "half"
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError):
        _output.write(str(path), full())
    assert path.read_bytes().startswith(b"run,")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["nasty.log", "out"]


def test_names_do_not_reach_the_terminal_raw(capsys, nasty):
    for words in (["report"], ["runs"], ["top", "tasks"], ["hosts"], ["critical-path"], ["trend"]):
        assert timings(*words, nasty) == 0
        shown = capsys.readouterr().out
        assert "\x1b" not in shown and "\udcff" not in shown


def test_help_has_an_example(capsys):
    for verb in ("report", "runs", "top", "hosts", "critical-path", "compare", "trend", "throughput", "export", "html"):
        with pytest.raises(SystemExit) as ended:
            timings(verb, "--help")
        assert ended.value.code == 0 and f"churten timings {verb}" in capsys.readouterr().out.split("example:")[1]
    for wrong in (["top", "cats", "x"], ["report", "x", "--limit", "-1"], ["trend", "x", "--factor", "0"], ["export", "yaml", "x"]):
        with pytest.raises(SystemExit) as ended:
            timings(*wrong)
        assert ended.value.code == 2


def test_gain():
    assert compare.gain(45, 15) == pytest.approx(2 / 3) and compare.gain(1, 2) == -1 and compare.gain(0, 1) is None
    assert [compare.duration(s) for s in (5, 59.97, 307, 7380)] == ["5.0 s", "1 min 00 s", "5 min 07 s", "2 h 03 min"]
