"""The page of `framekd predict --html` in a real browser, offline: it plays, seeks by click, asks for nothing."""

import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from loudness import bursts, loudness_checkpoint

from framekd.cli import main

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH; install it to run this test"),
]
PROBE = """
<script>
const out = {requests: []}, wait = (t, name) => new Promise(done => { t.addEventListener(name, done, {once: true});
  setTimeout(done, 8000); });
new PerformanceObserver(list => list.getEntries().forEach(e => out.requests.push(e.name)))
  .observe({type: "resource", buffered: true});
addEventListener("securitypolicyviolation", e => out.requests.push("refused " + e.blockedURI));
(async () => {
  if (audio.readyState < 3) await wait(audio, "canplay");
  out.duration = audio.duration;
  audio.muted = true;
  const box = axis.getBoundingClientRect();
  const at = x => ({bubbles: true, clientX: box.left + x * box.width, clientY: box.top + 5});
  axis.dispatchEvent(new MouseEvent("click", at(0.55)));
  out.plays = !audio.paused;
  await wait(audio, "seeking");
  out.sought = audio.currentTime;
  audio.pause();
  follow();
  out.lit = [...document.querySelectorAll("tr.now")].map(row => row.innerText.split("\t")[2]);
  out.head = head.getBoundingClientRect().left - box.left;
  out.width = box.width;
  await audio.play();
  for (let i = 0; i < 80 && audio.currentTime < out.sought + 0.1; i++) await new Promise(done => setTimeout(done, 100));
  out.played = audio.currentTime - out.sought;
  document.querySelector("#table tr").click();
  await wait(audio, "seeking");
  out.row = audio.currentTime;
  const bar = document.querySelector(".event").getBoundingClientRect();
  out.bars = document.querySelectorAll(".event").length;
  out.bar = [(bar.left - box.left) / box.width, (bar.right - box.left) / box.width];
  console.log("PROBE " + JSON.stringify(out) + " END");
})();
</script></body>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("player")
    model = loudness_checkpoint(root / "model")
    recording = bursts(root / "a <b> & c.wav", [(2, 4), (10, 12)], 20)
    assert main(["predict", str(recording), "--model", str(model), "--html", "--classes", "burst"]) == 0
    return root / "a <b> & c.wav.html"


def console(page: Path) -> Iterator[str]:
    """What Chromium prints on its console, with every host but the file itself unreachable, for up to two minutes."""
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--window-size=1000,700",
        f"--user-data-dir={page.parent / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND",
        "--autoplay-policy=no-user-gesture-required", "--enable-logging=stderr", "--log-level=0",
        "--remote-debugging-port=0", page.as_uri(),
    ]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        timer = threading.Timer(120, process.kill)
        timer.start()
        try:
            yield from (line for line in process.stderr if "CONSOLE" in line)
        finally:
            timer.cancel()
            process.kill()


def test_it_plays_seeks_by_click_and_asks_for_nothing(page):
    probe = page.with_name("probe.html")
    probe.write_text(page.read_text().replace("</body>", PROBE))
    lines = console(probe)
    line = next(lines, "nothing: the page's scripts did not run")
    lines.close()
    assert "PROBE" in line
    found = json.loads(re.search(r"PROBE (.*) END", line)[1])
    assert found["duration"] == pytest.approx(20, abs=0.1)
    assert found["sought"] == pytest.approx(11, abs=0.05)
    assert found["head"] == pytest.approx(0.55 * found["width"], abs=5)
    assert found["lit"] == ["burst"]
    assert found["plays"] and found["played"] >= 0.1
    assert found["row"] == pytest.approx(2, abs=0.05)
    assert found["bars"] == 2 and found["bar"] == [pytest.approx(0.1, abs=0.01), pytest.approx(0.204, abs=0.01)]
    assert [name for name in found["requests"] if not name.startswith(("data:", "blob:"))] == []


def test_it_is_one_file_without_addresses(page):
    text = re.sub(r'(base64,|id="mp3">)[\w+/=]+', "", page.read_text())
    assert "http:" not in text and "https:" not in text and 'src="/' not in text
    assert "<title>a &lt;b&gt; &amp; c.wav</title>" in text
    assert page.stat().st_size < 400_000
