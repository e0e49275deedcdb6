"""Where the browser is, and waiting for what a page does."""

import shutil
import time


def chromium():
    """The browser's program, or None."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def until(page, expression, argument=None):
    """Waits for JavaScript to say true. (Playwright's own wait_for_function evaluates in the page, which its policy forbids.)"""
    deadline = time.monotonic() + 120
    while not page.evaluate(expression, argument):
        assert time.monotonic() < deadline, expression
        time.sleep(0.02)
