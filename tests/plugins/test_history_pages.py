"""`churten history serve` and `export`: what is shown, to whom, and that nothing of it is ever run."""

import csv
import html.parser
import http.client
import io
import json
import os
import re
import stat
import threading

import pytest
from made_history import EVIL, history

from churten.cli.main import main
from churten.history import serve


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return history(tmp_path_factory.mktemp("h") / "h", {}, {"run": "00000000000000bb", "started": "2026-11-22T10:11:12.345Z"})


@pytest.fixture(scope="module")
def server(place):
    with serve.Server(place, "127.0.0.1", 0, ["history.example"]) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def ask(server, path, method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name, value in ({"Host": f"127.0.0.1:{server.server_port}"} | {k.replace("_", "-"): v for k, v in headers.items()}).items():
        if value is not None:
            connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer, text


class Links(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.links, self.tags = [], set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [value for name, value in attrs if name in ("href", "action", "src")]


def test_every_page_and_no_markup_of_foreign_text(server):
    """All pages that a link leads to."""
    todo, seen, text = ["/"], {}, ""
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        answer, page = ask(server, path)
        assert answer.status == 200, path
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        found = Links()
        found.feed(page)
        assert "script" not in found.tags and EVIL not in page, path
        seen[path] = page
        text += page
        todo += [link for link in found.links if link.startswith("/")]
    assert {re.sub(r"\d+", "N", path) for path in seen} == {"/", "/search", "/run/N", "/run/N/host/N", "/run/N/task/N", "/run/N/result/N"}
    for words in ("made.yml", "task 2 &lt;script&gt;", "nightly", "=1+1", "What the task returned was not kept", "Facts", "# &lt;script", "h2"):
        assert words in text, words
    assert ask(server, "/?playbook=nothing")[1].count("no runs") == 1
    assert "task 2" in ask(server, "/search?text=task+2")[1]
    assert "no runs" not in ask(server, "/?label=night&host=h1&from=0")[1]


def test_headers(server):
    for path in ("/", "/nothing", "/run/1"):
        answer, _ = ask(server, path)
        for name, value in serve.HEADERS.items():
            assert answer.headers[name] == value, (path, name)
        assert "Python" not in answer.headers["Server"]
    assert "script-src" not in serve.HEADERS["Content-Security-Policy"] and "default-src 'none'" in serve.HEADERS["Content-Security-Policy"]


FOREIGN = ["evil.example", "evil.example:PORT", "127.0.0.1:1", "127.0.0.1", "", None, "localhost.evil.example:PORT", "127.0.0.1:PORT:PORT"]


@pytest.mark.parametrize("host", FOREIGN)
def test_foreign_names_get_nothing(server, host):
    """A name of somebody else that was made to point here (DNS rebinding)."""
    answer, text = ask(server, "/", Host=host and host.replace("PORT", str(server.server_port)))
    assert answer.status == 421 and "made.yml" not in text


@pytest.mark.parametrize("host", ["127.0.0.1:PORT", "localhost:PORT", "LOCALHOST:PORT", "[::1]:PORT", "history.example:PORT"])
def test_own_names(server, host):
    assert ask(server, "/", Host=host.replace("PORT", str(server.server_port)))[0].status == 200


def test_other_sites_and_other_methods(server):
    assert ask(server, "/", Sec_Fetch_Site="cross-site")[0].status == 403
    assert ask(server, "/", Sec_Fetch_Site="same-origin")[0].status == 200
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        assert ask(server, "/", method)[0].status == 501
    answer, text = ask(server, "/", "HEAD")
    assert answer.status == 200 and text == ""


def test_paths_that_are_none(server):
    for path in ("/run/99", "/run/x", "/run/1/host/999", "/run/1/task/-1", "/run/2/result/1", "/run/1/files/1", "/%00", "/run/1%27/host/1", "/" + "9" * 4000,
                 "/../../etc/passwd", "/run/1/host/" + "1" * 30, "/run/%D9%A1"):  # fmt: skip
        assert ask(server, path)[0].status == 404, path
    assert ask(server, "/?from=-1&from=x&task=%25%27--")[0].status == 200
    assert ask(server, "/?" + "&".join(f"a{n}=1" for n in range(100)))[0].status == 404


def test_others_are_let_in_only_by_word(place, capsys):
    assert main(["history", "serve", "--dir", place.directory, "--address", "0.0.0.0"]) == 1
    assert "others reach 0.0.0.0" in capsys.readouterr().err
    assert main(["history", "serve", "--dir", place.directory, "--port", "70000"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def exported(place, capsys, *words):
    assert main(["history", "export", *words, "--dir", place.directory]) == 0
    return capsys.readouterr().out


def test_export_json(place, capsys):
    first, second = json.loads(exported(place, capsys, "json", "all"))
    assert (first["run"], second["run"]) == ("00000000000000aa", "00000000000000bb")
    assert len(first["results"]) == 12 and first["labels"] == ["nightly"] and first["arguments"] == {"check": True}
    assert first["results"][0]["content"]["rc"] == 0 and first["tasks"][0]["tags"] == ["a", "b"]
    assert first["hosts"][0]["stats"]["failures"] == 1 and first["hosts"][0]["facts"]


def test_export_csv(place, capsys, tmp_path):
    rows = list(csv.DictReader(io.StringIO(exported(place, capsys, "csv", "0000000000000000"[:0] + "00000000000000aa"))))
    assert len(rows) == 12 and rows[0]["host"] == "h0" and rows[0]["status"] == "ok"
    target = tmp_path / "out.csv"
    exported(place, capsys, "csv", "all", "-o", str(target))
    assert len(target.read_text().splitlines()) == 25 and stat.S_IMODE(target.stat().st_mode) == 0o600
    evil = history(tmp_path / "e", {"run": "=cmd()|"})
    assert exported(evil, capsys, "csv").splitlines()[1].startswith("'=cmd()|")


def test_export_html(place, capsys):
    page = exported(place, capsys, "html")
    found = Links()
    found.feed(page)
    assert found.links == [] and "script" not in found.tags and page.count("h2</td>") >= 4
    assert main(["history", "export", "html", "all", "--dir", place.directory]) == 1
    assert "name one" in capsys.readouterr().err
    assert main(["history", "export", "json", "--dir", place.directory, "-o", os.path.join(place.directory, "no", "where")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
