"""The HTML report of `churten timings html` in a real browser: `make test-browser`."""

import socket
import time

import pytest
from browsing import until
from made_logs import big, end_line, result_line, run_line, text

from churten.cli.main import main

ONE = "1" * 16
NASTY = '</script><script>window.broken = 1</script><img src=x onerror="window.broken=1"> <b>bold</b> \u2028'


def report(where, *runs):
    (where / "t.log").write_text("".join(text(run) for run in runs))
    assert main(["timings", "html", str(where / "t.log"), "-o", str(where / "report.html")]) == 0
    return where / "report.html"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    runs = [big(f"{n:016x}", 12, 8, "free", slots=4, seed=3, slow={2: 5} if n == 4 else None, started=f"2026-11-2{n}T10:00:00.000Z") for n in range(5)]
    return report(tmp_path_factory.mktemp("small"), *runs)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    return report(tmp_path_factory.mktemp("large"), big(ONE, 500, 100, "free", slots=50))


def pixels(page, canvas, left=160):
    """How many different colours a canvas shows right of the names, and how many pixels are painted."""
    return page.evaluate(
        """([id, left]) => {
            const canvas = document.getElementById(id), image = canvas.getContext('2d').getImageData(left, 0, canvas.width - left, canvas.height).data;
            const seen = new Map();
            for (let i = 0; i < image.length; i += 4) if (image[i + 3]) { const key = image.slice(i, i + 3).join(); seen.set(key, (seen.get(key) || 0) + 1); }
            return Object.fromEntries(seen);
        }""",
        [canvas, left],
    )


def view(page):
    return page.evaluate("({from: churtenReport.view.from, to: churtenReport.view.to, rows: churtenReport.view.rows.length, draws: churtenReport.draws})")


def drawn(page, since):
    until(page, "since => churtenReport.draws > since", since)


def test_it_draws(open_report, small):
    page = open_report(small)
    seen = pixels(page, "gantt")
    palette = page.evaluate("['queue', 'connect', 'remote'].map(name => getComputedStyle(document.documentElement).getPropertyValue('--' + name).trim())")
    for colour in palette:
        channels = ",".join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))
        assert seen.get(channels, 0) > 50, f"{colour} is not in the timeline"
    limit = page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--limit').trim()")
    assert pixels(page, "active").get(",".join(str(int(limit[i : i + 2], 16)) for i in (1, 3, 5)), 0) > 50, "the limit of slots"
    assert page.locator("#tasks tbody tr").count() == 8 and page.locator("#hosts tbody tr").count() == 12
    assert page.locator("#tiles li").all_inner_texts()[1].split() == ["12", "hosts"]
    assert page.locator("#trend tr.slow td").first.inner_text() == "role0 : task 2"
    assert page.locator("#walls rect").count() == 5 and page.locator("#links tbody tr").count() > 3


def test_names_are_text(open_report, tmp_path):
    more = {"queue": 0.25, "connect": 0.5, "remote": 1.0, "controller": 0.5, "worker": 0, "play": NASTY, "role": NASTY, "path": NASTY}
    lines = [run_line(ONE, NASTY), result_line(ONE, NASTY, NASTY, 1, 2, **more), result_line(ONE, "h2", NASTY + "b", 2, 2.5), end_line(ONE, 5, 2)]
    page = open_report(report(tmp_path, lines))
    page.hover("#gantt", position={"x": 700, "y": 6})
    assert page.evaluate("window.broken") is None
    assert page.locator("img, b b, script[src]").count() == 0
    for place in ("h1", "#tasks tbody td", "#hosts tbody td", "#tip"):
        assert "</script><script>window.broken = 1</script>" in " ".join(page.locator(place).all_inner_texts())


def test_it_cannot_speak_to_anybody(browser, small):
    """Even code that got in could not: the policy forbids connections, images and further scripts."""
    page = browser.new_page()
    page.goto(f"file://{small}")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        tried = page.evaluate(
            """async port => {
                const tried = [], address = `http://127.0.0.1:${port}/`;
                try { await fetch(address, { mode: 'no-cors' }); tried.push('fetch'); } catch {}
                const image = new Image(), wait = new Promise(done => { image.onload = image.onerror = done; });
                image.src = address + 'x.png';
                await wait;
                const script = document.createElement('script');
                script.textContent = 'window.broken = 1';
                document.body.append(script);
                if (window.broken) tried.push('script');
                return tried;
            }""",
            server.getsockname()[1],
        )
        with pytest.raises(BlockingIOError):
            server.accept()
    page.close()
    assert tried == []


def test_zoom_and_search(open_report, small):
    page = open_report(small)
    whole = view(page)
    box = page.locator("#gantt").bounding_box()
    page.mouse.move(box["x"] + 400, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 600, box["y"] + 30, steps=4)
    page.mouse.up()
    drawn(page, whole["draws"])
    zoomed = view(page)
    part = (box["width"] - 150) / 200
    assert zoomed["to"] - zoomed["from"] == pytest.approx((whole["to"] - whole["from"]) / part, rel=0.02)
    page.keyboard.down("Control")
    page.mouse.wheel(0, 100)
    page.keyboard.up("Control")
    drawn(page, zoomed["draws"])
    assert view(page)["to"] - view(page)["from"] > zoomed["to"] - zoomed["from"]
    page.focus("#scroll")
    before = view(page)
    page.keyboard.press("ArrowRight")
    drawn(page, before["draws"])
    assert view(page)["from"] > before["from"]
    page.click("#in")
    page.dblclick("#active", position={"x": 500, "y": 40})
    until(page, "churtenReport.view.from === 0")
    assert view(page)["to"] == whole["to"]

    page.fill("#find-host", "WEB-00")
    assert view(page)["rows"] == 10
    page.fill("#find-host", "nobody")
    assert view(page)["rows"] == 0
    page.fill("#find-host", "")
    bright = pixels(page, "gantt")
    page.fill("#find-task", "task 2")
    time.sleep(0.3)
    assert pixels(page, "gantt") != bright
    page.click("#tasks tbody tr:first-child td:first-child button")
    assert page.input_value("#find-task") == page.locator("#tasks tbody td").first.inner_text()


def test_sorting_colours_and_the_path(open_report, small):
    page = open_report(small)
    page.click("#hosts thead th:first-child button")
    names = page.locator("#hosts tbody tr td:first-child").all_inner_texts()
    assert names == sorted(names) and page.locator("#hosts th[aria-sort]").count() == 1
    page.click("#hosts thead th:first-child button")
    assert page.locator("#hosts tbody tr td:first-child").all_inner_texts() == names[::-1]
    for change in (lambda: page.check("#chain"), lambda: page.select_option("#colours", "status")):
        before, shown = view(page)["draws"], pixels(page, "gantt")
        change()
        drawn(page, before)
        assert pixels(page, "gantt") != shown
    orders = set()
    for order in ("log", "name", "busy", "last"):
        page.select_option("#order", order)
        orders.add(str(page.evaluate("churtenReport.view.rows")))
    assert len(orders) == 4
    page.hover("#gantt", position={"x": 700, "y": 6})
    assert "from " in page.inner_text("#tip")


def test_light_and_dark(open_report, small):
    def ground(page):
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light, dark = open_report(small, color_scheme="light"), open_report(small, color_scheme="dark")
    assert ground(light) != ground(dark)
    first = pixels(light, "gantt")
    assert first != pixels(dark, "gantt")
    light.click("#theme")
    assert light.inner_text("#theme") == "Theme: light"
    draws = view(light)["draws"]
    light.click("#theme")
    drawn(light, draws)
    assert ground(light) == ground(dark) and pixels(light, "gantt") != first
    dark.click("#theme")
    assert ground(dark) != ground(light)


def test_a_window_of_any_width(open_report, small):
    page = open_report(small)
    for width in (420, 900, 1900):
        page.set_viewport_size({"width": width, "height": 800})
        until(page, "Math.abs(document.getElementById('gantt').width - document.getElementById('gantt').clientWidth * devicePixelRatio) <= 1")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_500_hosts_and_100_tasks(open_report, large):
    """Opens within seconds and draws within a frame or few, on a busy machine too; `-s` shows the figures."""
    began = time.monotonic()
    page = open_report(large)
    opened = time.monotonic() - began
    for rows in (14, 2):
        page.fill("#height", str(rows))
        times = page.evaluate("[...Array(9)].map(() => { churtenReport.redraw(); return churtenReport.drawMs; }).sort((a, b) => a - b)")
        print(f"\n500 x 100: {large.stat().st_size >> 10} KiB, opened in {opened:.2f} s, rows of {rows} px drawn in {times[4]:.0f} ms (median of 9)")
        assert times[4] < 1000
    assert opened < 30 and view(page)["rows"] == 500
    assert page.evaluate("document.getElementById('scroll').scrollHeight") > 500
    page.evaluate("document.getElementById('scroll').scrollTop = 1e6")
    page.fill("#height", "14")
    page.evaluate("document.getElementById('scroll').scrollTop = 1e6")
    time.sleep(0.3)
    page.hover("#gantt", position={"x": 640, "y": 300})
    assert page.evaluate("document.getElementById('scroll').scrollTop") > 5000
