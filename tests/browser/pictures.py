"""Makes docs/pictures and the outputs shown in docs/observability.md: real runs of examples/demo over lab hosts, then their report in a browser.

`make pictures`. The outputs are left in build/pictures, to be put into the document by hand.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from browsing import chromium
from playwright.sync_api import sync_playwright

from churten.lab import Lab

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "build" / "pictures"
PICTURES = ROOT / "docs" / "pictures"
HOSTS, SLOTS = 8, 4
# The first run is stock's, the others churten's: `compare` and `trend` have something to say.
RUNS = [{"ANSIBLE_STRATEGY": "linear"}] + [{"ANSIBLE_STRATEGY": "churten.core.free"}] * 3
VERBS = (
    "runs", "report --limit 6", "top tasks --limit 6", "hosts --limit 5", "critical-path --limit 6", "throughput --every 10",
    "compare --run-a last-3 --limit 6", "compare --run-a last-3 --report orchestrator --environment lab --action site.yml", "trend --limit 5",
)  # fmt: skip


def run_plays(log: Path) -> None:
    """The demo's playbook, as often as RUNS says, each on hosts that have nothing of it yet."""
    base = Path(tempfile.mkdtemp(prefix="chpict-", dir="/var/tmp"))
    base.chmod(0o755)
    (base / "pool").mkdir(mode=0o700)
    lab = Lab(base / "lab")
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "CHURTEN_"))}
    ours = {"ANSIBLE_CONFIG": str(lab.ansible_cfg), "CHURTEN_POOL_DIR": str(base / "pool"), "ANSIBLE_FORKS": str(SLOTS)}
    timings = {"ANSIBLE_CALLBACKS_ENABLED": "churten.core.timings", "CHURTEN_TIMINGS_LOG": str(log)}
    try:
        lab.up(HOSTS)
        for settings in RUNS:
            command = [Path(sys.executable).with_name("ansible-playbook"), ROOT / "examples" / "demo" / "site.yml"]
            subprocess.run(command, env=plain | ours | timings | settings, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
            for host in lab.hosts:
                shutil.rmtree(lab.dir / "hosts" / host.name / "site")
    finally:
        stop = [sys.executable, "-m", "churten.cli.main", "pool", "stop"]
        subprocess.run(stop, env=plain | ours, stdin=subprocess.DEVNULL, capture_output=True, timeout=30)
        lab.down()
        shutil.rmtree(base)


def outputs(log: Path) -> None:
    """What each verb prints, one file each."""
    for words in VERBS:
        verb, *rest = words.split()
        before = [verb, rest.pop(0)] if verb == "top" else [verb]
        command = [sys.executable, "-m", "churten.cli.main", "timings", *before, log.name, *rest]
        done = subprocess.run(command, cwd=log.parent, capture_output=True, text=True)
        name = "orchestrator" if "orchestrator" in words else verb
        (OUT / f"{name}.txt").write_text(f"$ churten timings {' '.join([*before, log.name, *rest])}\n{done.stdout}{done.stderr}")


def take(log: Path) -> None:
    """The report, light and dark, whole and closer."""
    report = OUT / "report.html"
    subprocess.run([sys.executable, "-m", "churten.cli.main", "timings", "html", log, "-o", report], check=True)
    PICTURES.mkdir(exist_ok=True)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": 620}, color_scheme="light")
        page.goto(f"file://{report}")
        page.evaluate("document.getElementById('height').value = 22; document.getElementById('height').dispatchEvent(new Event('input'))")
        page.screenshot(path=PICTURES / "timings-report.png")
        page.emulate_media(color_scheme="dark")
        page.check("#chain")
        box = page.locator("#gantt").bounding_box()
        page.mouse.move(box["x"] + 160, box["y"] + 40)
        page.mouse.down()
        page.mouse.move(box["x"] + 460, box["y"] + 40, steps=3)
        page.mouse.up()
        page.mouse.move(box["x"] + 500, box["y"] + 100)
        page.wait_for_timeout(400)
        page.screenshot(path=PICTURES / "timings-report-zoom.png")
        page.emulate_media(color_scheme="light")
        page.set_viewport_size({"width": 1100, "height": 900})
        page.locator("section:has(#hosts)").screenshot(path=PICTURES / "timings-report-hosts.png")
        page.locator("#trend-section").screenshot(path=PICTURES / "timings-report-trend.png")
        browser.close()
    for picture in PICTURES.glob("timings-report*.png"):
        print(f"{picture.relative_to(ROOT)}: {picture.stat().st_size >> 10} KiB")


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the lab goes down in any case
    if chromium() is None:
        print("there is no Chromium on this machine: apt-get install chromium", file=sys.stderr)
        return 1
    OUT.mkdir(parents=True, exist_ok=True)
    log = OUT / "timings.log"
    if not log.exists():  # remove it for new runs
        run_plays(log)
    outputs(log)
    take(log)
    return 0


if __name__ == "__main__":
    sys.exit(main())
