"""A headless Chromium for the tests of this folder, and the made logs of tests/plugins."""

import sys
from pathlib import Path

import pytest
from browsing import chromium, until

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "plugins"))


@pytest.fixture(scope="session")
def browser():
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    if chromium() is None:
        pytest.skip("there is no Chromium on this machine: apt-get install chromium")
    with driver.sync_playwright() as found:
        # As root, in a container, Chromium has no sandbox; it opens files of these tests only.
        started = found.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def open_report(browser):
    """Opens a file; at the end of the test there must have been no error on the console, and no request but for the file."""
    pages, said, asked = [], [], []

    def open_it(path, **options):
        page = browser.new_page(viewport={"width": 1280, "height": 900}, **options)
        # The tests read canvases back, which Chromium advises on.
        page.on("console", lambda message: "willReadFrequently" in message.text or said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: (said.append("dialog"), dialog.dismiss()))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"file://{path}")
        until(page, "window.churtenReport && window.churtenReport.readyMs > 0")
        pages.append(page)
        return page

    yield open_it
    for page in pages:
        page.close()
    assert said == []
    assert all(url.startswith("file://") for url in asked) and len(asked) == len(pages)
