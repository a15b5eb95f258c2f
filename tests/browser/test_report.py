"""The report in a real browser, offline: it draws, raises no error, asks for nothing, and both themes work."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from finished_run import write_finished_run

from framekd import config
from framekd.report import write_report

PUBLISHED = Path(__file__).parents[2] / "config" / "published"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH; install it to run this test"),
]
WIDTH, HEIGHT = 1200, 6000


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    root = tmp_path_factory.mktemp("browser")
    settings = config.load({"miniature": {}})
    inputs = write_finished_run(root / "results", root / "data", settings, published=PUBLISHED)
    paths = {name: root / f"{name}.csv" for name in ("compute", "orderings")}
    write_report(inputs, html=root / "report.html", **paths, config=settings)
    return root / "report.html"


def browse(page: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run Chromium once, with every host but the file itself unreachable."""
    return subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
            f"--user-data-dir={page.parent / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND",
            "--enable-logging=stderr", "--log-level=0", f"--window-size={WIDTH},{HEIGHT}", *arguments,
            page.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip


def screenshot(page: Path, name: str) -> np.ndarray:
    picture = page.parent / name
    done = browse(page, f"--screenshot={picture}")
    errors = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert errors == []
    return matplotlib.image.imread(picture)[:, :, :3]


def ink(picture: np.ndarray, top: int, bottom: int) -> float:
    """Share of the pixels between two heights that differ from the page's background."""
    part = picture[top:bottom]
    return float((np.abs(part - picture[HEIGHT // 2, 5]).max(axis=2) > 0.1).mean())


def boxes(page: Path, *arguments: str) -> dict[str, tuple[float, float]]:
    """Top and height of every section and figure, as the browser laid them out."""
    probe = page.with_name("probe.html")
    script = """<script>addEventListener("load", () => { const out = [];
      document.querySelectorAll("section, figure svg.figure").forEach((e, i) => { const r = e.getBoundingClientRect();
      out.push([e.id || "figure" + i, r.top + scrollY, r.height, r.width].join(","));});
      out.push(["page", 0, document.documentElement.scrollHeight, document.documentElement.scrollWidth].join(","));
      document.body.innerHTML = "<pre>" + out.join("\\n") + "</pre>"; });</script></body>"""
    probe.write_text(page.read_text().replace("</body>", script))
    text = re.search(r"<pre>(.*?)</pre>", browse(probe, "--dump-dom", *arguments).stdout, re.DOTALL)
    assert text, "the page's scripts did not run"
    rows = [line.split(",") for line in text.group(1).splitlines()]
    return {name: (float(top), float(height), float(width)) for name, top, height, width in rows}


def test_sections_and_figures_are_drawn(report):
    found = boxes(report)
    for name in ("table1", "teachers", "table2", "orderings", "significance", "classes", "curves", "examples"):
        assert found[name][1] > 80, f"section {name} is empty"
    figures = [box for name, box in found.items() if name.startswith("figure")]
    assert len(figures) >= 7 and all(height > 40 and width > 200 for _, height, width in figures)
    assert found["page"][2] <= WIDTH, "the page scrolls sideways"
    picture = screenshot(report, "light.png")
    assert picture[5, 5].min() > 0.9
    for name in ("table1", "table2", "curves", "examples"):
        top, height, _ = found[name]
        assert ink(picture, int(top), int(min(top + height, HEIGHT))) > 0.01, f"nothing drawn in {name}"


def test_dark_theme_is_dark_and_readable(report):
    dark = report.with_name("dark.html")
    dark.write_text(report.read_text().replace("<html ", '<html class="dark" ', 1))
    picture = screenshot(dark, "dark.png")
    assert picture[5, 5].max() < 0.2
    assert ink(picture, 0, HEIGHT) > 0.01 and picture.max() > 0.8


def test_on_a_telephone_figures_keep_their_size_and_the_page_its_width(report):
    found = boxes(report, "--window-size=420,3000")
    widths = [width for name, (_, _, width) in found.items() if name.startswith("figure")]
    assert found["page"][2] <= 520 and max(widths) > 600 and min(widths) > 250
