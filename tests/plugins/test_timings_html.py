"""The HTML report as a file: one document that names no address, with data no name can break out of. tests/browser opens it."""

import base64
import hashlib
import html.parser
import json
import re
import struct

import pytest
from made_logs import big, end_line, result_line, run_line, text

from churten.cli.main import main
from churten.timings import columns
from churten.timings import html as page
from churten.timings.reading import Log

ONE = "1" * 16
NASTY = '</script><script>window.broken = 1</script><!-- @META@ <img src=x onerror="window.broken=1"> &amp; \udcff \u2028'


class Parts(html.parser.HTMLParser):
    """Elements with their attributes, and the text of each script and style."""

    def __init__(self, source):
        super().__init__()
        self.elements, self.texts = [], []
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag in ("script", "style"):
            self.texts.append((tag, dict(attributes), ""))

    def handle_data(self, data):
        if self.elements and self.elements[-1][0] in ("script", "style") and not self.texts[-1][2]:
            self.texts[-1] = (*self.texts[-1][:2], data)


def made(tmp_path, lines, limit=500_000):
    (tmp_path / "t.log").write_text(text(lines))
    with Log(str(tmp_path / "t.log")) as log:
        run = log.choose(None)[0]
        found = columns.read(log, run)
        return "".join(page.report(run, found, (), limit)), found


def parts(source):
    """The meta data and the columns of a report."""
    found = {attributes["id"]: body for _, attributes, body in Parts(source).texts if "id" in attributes}
    meta = json.loads(found["meta"])
    raw, at, read = base64.b64decode(found["columns"]), 0, {}
    for name, code in meta["columns"]:
        size = struct.calcsize(code) * meta["count"]
        read[name] = struct.unpack(f"<{meta['count']}{code}", raw[at : at + size])
        at += size
    assert at == len(raw)
    return meta, read


@pytest.fixture(scope="module")
def nasty(tmp_path_factory):
    more = {"queue": 0.25, "connect": 0.5, "remote": 1.0, "controller": 0.5, "worker": 0, "play": NASTY, "role": NASTY, "path": NASTY}
    lines = [run_line(ONE, NASTY), result_line(ONE, NASTY, NASTY, 1, 2, **more), result_line(ONE, "h2", "b", 2, 2.5), end_line(ONE, 5, 2)]
    return made(tmp_path_factory.mktemp("nasty"), lines)[0]


def test_names_stay_data(nasty):
    found = Parts(nasty)
    assert [tag for tag, _ in found.elements].count("script") == 3 and "img" not in [tag for tag, _ in found.elements]
    meta, _ = parts(nasty)
    assert meta["hosts"][0] == meta["task_names"][0] == NASTY
    assert "<script>window" not in nasty
    (body,) = [body for _, attributes, body in found.texts if attributes.get("id") == "meta"]
    assert not set("<>&") & set(body)


def test_it_names_no_address(nasty):
    for _, attributes in Parts(nasty).elements:
        assert not set(attributes) & {"src", "href", "action", "srcset", "data", "onclick", "onload", "style"}
    addresses = set(re.findall(r"\b(?:https?|wss?|ftp):/*[^\s\"'<>]+", nasty))
    assert addresses == {"http://www.w3.org/2000/svg"}, "the name of a namespace is the only one"
    assert not re.search(r"@import|url\(|\bfetch\(|XMLHttpRequest|WebSocket|importScripts|\beval\(|innerHTML|insertAdjacent|document\.write", nasty)


def test_the_policy_allows_its_own_script_and_style_only(nasty):
    found = Parts(nasty)
    (policy,) = [a["content"] for tag, a in found.elements if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'" and "unsafe" not in policy
    for kind, attributes, body in found.texts:
        if kind == "style" or not attributes:
            digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
            assert rules[f"{kind}-src"] == f"'sha256-{digest}'"


def test_the_columns_are_the_results(tmp_path):
    source, found = made(tmp_path, big(ONE, 20, 5, "free", slots=4))
    meta, read = parts(source)
    assert meta["count"] == len(found) == 100 and meta["slots"] == 4
    for name, column in (("start", found.at), ("queue", found.queue), ("remote", found.remote)):
        assert max(abs(ticks * 1e-4 - value) for ticks, value in zip(read[name], column)) < 1e-4
    assert [a + b for a, b in zip(read["start"], read["length"])] == [round(end * 1e4) for end in found.end]
    assert list(read["host"]) == list(found.host) and list(read["row"]) == list(found.row)
    assert [worker - 1 for worker in read["worker"]] == list(found.worker) and list(read["status"]) == list(found.status)


def test_of_a_large_run_the_busiest_hosts_are_drawn(tmp_path):
    source, _ = made(tmp_path, big(ONE, 20, 5, "free", slots=4), limit=31)
    meta, read = parts(source)
    assert meta["count"] == 30 and len(set(read["host"])) == 6 and "6 busiest of 20 hosts" in meta["note"]
    assert len(meta["host_figures"]) == 20
    assert {meta["hosts"][host] for host in read["host"]} == {host["name"] for host in meta["host_figures"][:6]}
    assert all(link["number"] < 30 for link in meta["chain"]["links"])


def test_the_verb(tmp_path, capsys):
    days = [f"2026-11-2{number}T10:00:00.000Z" for number in range(5)]
    runs = [big(f"{n:016x}", 3, 4, slots=2, started=day, slow={1: 9} if n == 4 else None) for n, day in enumerate(days)]
    (tmp_path / "t.log").write_text("".join(map(text, runs)) + "bad\n")
    assert main(["timings", "html", str(tmp_path / "t.log"), "-o", str(tmp_path / "r.html")]) == 0
    assert "1 line of" in capsys.readouterr().err
    assert (tmp_path / "r.html").stat().st_mode & 0o777 == 0o600
    meta, _ = parts((tmp_path / "r.html").read_text())
    assert len(meta["trend"]["runs"]) == 5 and [task["task"] for task in meta["trend"]["tasks"] if task["slow"]] == ["role0 : task 1"]
    assert main(["timings", "html", str(tmp_path / "t.log"), "--run", "0000000000000000"]) == 0
    meta, _ = parts(capsys.readouterr().out)
    assert meta["trend"] is None


def test_without_a_task_there_is_no_report(tmp_path, capsys):
    (tmp_path / "t.log").write_text(text([run_line(ONE), end_line(ONE, 1, 0)]))
    assert main(["timings", "html", str(tmp_path / "t.log")]) == 1
    assert "has no results" in capsys.readouterr().err
