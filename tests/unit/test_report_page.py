"""The report: what it shows is what the run left, what is absent is named, and nothing comes from outside."""

from __future__ import annotations

import base64
import dataclasses
import html
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from finished_run import CLASSES, example_clips, inputs_of, write_finished_run

from framekd import config
from framekd.audio import decode
from framekd.examples import Examples, read_examples, write_examples
from framekd.report import ReportInputs, figures, shown_threshold, write_report
from framekd.report.gather import costs, read_history

PUBLISHED = Path(__file__).parents[2] / "config" / "published"
VOID = {"meta", "link", "br", "img", "hr", "input"}


class Outline(HTMLParser):
    """Checks that elements close in order; keeps ids and addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: set[str] = set()
        self.addresses: list[str] = []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if values.get("id"):
            self.ids.add(values["id"])
        self.addresses += [values[name] or "" for name in ("href", "src", "xlink:href") if name in values]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"


def report(inputs, root, settings):
    """Write the page and its two tables into a folder; the sentences about missing parts, and the page."""
    paths = {name: root / f"{name}.csv" for name in ("compute", "orderings")}
    missing = write_report(inputs, html=root / "report.html", **paths, config=settings)
    return missing, (root / "report.html").read_text()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    sizes = {"all": {"width": 64, "heads": 2, "rnn_hidden": 32}, "fPaSST": {"stem": [2, 4, 8]}}
    settings = config.load({"miniature": {}, "sizes": sizes})
    inputs = write_finished_run(root / "results", root / "data", settings, published=PUBLISHED)
    missing, text = report(inputs, root, settings)
    return root, text, missing


def test_it_is_one_well_formed_page_that_needs_no_network(page):
    _, text, _ = page
    outline = Outline()
    outline.feed(text)
    assert outline.open == []
    for address in outline.addresses:
        assert address.startswith(("#", "data:")), address
    assert "@import" not in text and not re.search(r"url\((?!#)", text)
    assert {a[1:] for a in re.findall(r'<a href="(#[^"]+)"', text)} <= outline.ids | {"top"}


def test_every_number_of_the_tables_is_on_it(page):
    root, text, _ = page
    plain = html.unescape(text)
    for name in ("table1", "teachers", "table2"):
        for row in pd.read_csv(root / "results" / f"{name}.csv").to_dict("records"):
            assert f"<b>{row['mean']:.1f}</b>" in plain
            assert f'<span class="pub">{row["published"]:.1f}' in plain
    for row in pd.read_csv(root / "orderings.csv").to_dict("records"):
        assert f"<b>{row['gap']:+.1f}</b>".replace("-", "−") in plain


def test_curves_classes_clips_coverage_and_time_are_on_it(page):
    _, text, _ = page
    assert "training loss, teachers, 10 runs" in text and "training loss, students, 10 runs" in text
    assert all(f">{name}</text>" in text for name in CLASSES)
    assert text.count('class="timeline"') == 2 and text.count("data:image/png") == 2 and "students, proposed" in text
    assert "<td>strong_eval</td><td>100</td><td>97</td>" in text and "<td>Siren</td><td>50</td><td>48</td>" in text
    assert "14.0 minutes" in text


def test_hours_and_energy_are_summed(page):
    root, text, _ = page
    lines = pd.read_csv(root / "compute.csv").set_index("stage")
    # two stages of five models and two seeds, 1.5 h of two GPUs each; the driver counted for the first seeds
    assert lines.loc["students"].to_dict() == {"device": "H200", "runs": 10, "hours": 30.0, "watt_hours": 3500.0}
    assert (lines.loc["all", "runs"], lines.loc["all", "hours"], lines.loc["all", "watt_hours"]) == (20, 60.0, 7000.0)
    assert "<td>all</td><td>H200</td><td>20</td><td>60.0</td><td>7000.0</td>" in text


def test_costs_of_a_run_on_a_cpu_and_of_a_search():
    found = costs(
        [
            ("search", {"device": "cpu", "processes": 2, "hours": 0.5}),
            ("search", {"value": None, "diverged": "the loss is nan"}),
            ("Step 2", {"url": "a published checkpoint"}),
        ]
    )
    assert found[["stage", "runs", "hours"]].values.tolist() == [["search", 1, 0.5], ["all", 1, 0.5]]
    assert found["watt_hours"].isna().all()


def test_it_says_what_the_run_was(page):
    _, text, missing = page
    assert "Not AudioSet." in text and "not comparable" in text
    assert "all models: width 64, heads 2, rnn hidden 32; fPaSST: stem 2, 4, 8" in text
    assert "1,200 clips (3.33 h), 9,000 events of 8 classes" in text
    assert [sentence.split(":")[0] for sentence in missing] == ["training curve"] * 5  # Step 2 left no histories
    assert all("step2" in sentence and sentence.endswith("history.jsonl: missing") for sentence in missing)
    assert all(html.escape(sentence, quote=False) in text for sentence in missing)


def test_it_says_what_bold_means(page):
    text = re.sub(r"\s+", " ", page[1])
    assert text.count("Bold: mean of this run, ± standard deviation over seeds") == 3
    assert "Bold: significant (ε<sub>min</sub> below 0.2)" in text and "Bold: gap in percentage points" in text


def test_each_listed_file_that_is_missing_is_named(tmp_path):
    inputs = inputs_of(tmp_path / "none", tmp_path / "data")
    missing, text = report(inputs, tmp_path, config.load({}))
    listed = [
        *inputs.tables.values(),
        *(path for *_, table, per_class in inputs.evaluations for path in (table, per_class)),
        inputs.examples,
        *(path for *_, path in (*inputs.histories, *inputs.specs, *inputs.benchmarks)),
        *inputs.coverage,
    ]
    assert len(missing) == len(listed) == len(set(listed))
    for path in listed:
        assert any(f"{path}: missing" in sentence for sentence in missing), path
        assert f"{path}: missing" in text
    assert "Not in this report" in text and "Not AudioSet" not in text
    assert (tmp_path / "compute.csv").read_text() == "stage,device,runs,hours,watt_hours\n"
    assert not (tmp_path / "orderings.csv").exists()


def test_unreadable_files_are_named(tmp_path):
    settings = config.load({})
    inputs = write_finished_run(tmp_path / "results", tmp_path / "data", settings, published=PUBLISHED)
    torn = inputs.examples
    torn.write_bytes(torn.read_bytes()[:200])
    broken = [inputs.tables["table2"], inputs.specs[0][1], inputs.benchmarks[0][1]]
    for path in broken:
        path.write_bytes(b"")
    missing, _ = report(inputs, tmp_path, settings)
    for path in (torn, *broken):
        assert any(f"{path}: unreadable" in sentence for sentence in missing), path


def test_only_listed_files_are_read(tmp_path):
    """A folder full of results changes nothing, unless its files are listed."""
    settings = config.load({})
    write_finished_run(tmp_path / "results", tmp_path / "data", settings, published=PUBLISHED)
    missing, text = report(ReportInputs(tables={}), tmp_path, settings)
    assert "<svg" not in text and "<table" not in text
    assert {sentence.split(":")[0] for sentence in missing} == {
        "evaluations", "histories", "specs", "coverage", "benchmarks",
    }  # fmt: skip


def test_names_from_data_cannot_break_the_page(tmp_path):
    clips = [clip.__class__("<b>&x", clip.waveform, clip.events, clip.scores) for clip in example_clips(count=1)]
    names = ["</svg><script>", *CLASSES[1:]]
    clips[0].events.append((1.0, 2.0, names[0]))
    write_examples(tmp_path / "examples.npz", clips, classes=names, title="<i>")
    no_file = tmp_path / "none.csv"
    inputs = ReportInputs(
        tables={}, evaluations=[("students", "own", no_file, no_file)], examples=tmp_path / "examples.npz"
    )
    _, text = report(inputs, tmp_path, config.load({}))
    outline = Outline()
    outline.feed(text)
    assert outline.open == [] and text.count("<script>") == 1
    assert "&lt;b&gt;&amp;x" in text and "&lt;i&gt;" in text


def test_examples_come_back_as_written(tmp_path):
    clips = example_clips()
    write_examples(tmp_path / "e.npz", clips, classes=CLASSES, title="t")
    read = read_examples(tmp_path / "e.npz")
    assert read.classes == CLASSES and read.title == "t" and read.frame_seconds == 0.04
    for a, b in zip(clips, read.clips):
        assert a.id == b.id and a.events == b.events
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-3)
        np.testing.assert_allclose(a.waveform, b.waveform / 32767, atol=1e-4)
    with pytest.raises(ValueError, match="expected scores"):
        write_examples(tmp_path / "e.npz", clips, classes=CLASSES[:3], title="t")


def test_true_classes_are_shown_before_the_strongest_others():
    clip = example_clips(count=1)[0]
    wanted = {name for _, _, name in clip.events}
    assert set(figures.shown_classes(clip, CLASSES, threshold=0.5)) == wanted
    silent = clip.__class__("x", clip.waveform, [], np.zeros_like(clip.scores))
    assert len(figures.shown_classes(silent, CLASSES, threshold=0.5)) == 2


def test_a_clip_without_detections_is_drawn():
    clip = example_clips(count=1)[0]
    without, some = (figures.timeline(clip, Examples("t", CLASSES, 0.04, [clip]), threshold=t) for t in (0.99, 0.5))
    assert without.startswith("<svg") and figures.COLOURS[1] in some and figures.COLOURS[1] not in without


def test_long_class_names_are_cut():
    assert figures.short("Bird vocalization, bird call, bird song") == "Bird vocalization"
    assert figures.short("Fixed-wing aircraft flying very low, airplane") == "Fixed-wing aircraft f…"


def test_detections_are_shown_at_a_level_that_the_scores_reach():
    clips = example_clips(count=4)

    def level(peaks):
        scored = [dataclasses.replace(clip, scores=np.full_like(clip.scores, peak)) for clip, peak in zip(clips, peaks)]
        return shown_threshold(Examples("t", CLASSES, 0.04, scored))

    assert level([0.9, 0.9, 0.9, 0.9]) == 0.5 and level([0.9, 0.9, 0.1, 0.1]) == 0.5
    assert level([0.9, 0.25, 0.1, 0.1]) == 0.2 and level([0, 0, 0, 0]) == 0.1


def test_a_torn_history_is_read_up_to_the_tear(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_text('{"step": 1, "train/loss": 0.5}\n{"step": 2, "train/loss": 0.4}\n{"step": 3, "tr')
    assert read_history(path)["train/loss"].to_dict() == {1: 0.5, 2: 0.4}
    path.write_text('{"step": 1, "train/l\n{"step": 2, "train/loss": 0.4}\n')
    with pytest.raises(ValueError, match="line 1"):
        read_history(path)


def test_examples_can_be_heard(page):
    """Each example has a player, whose mp3 decodes to the clip's length."""
    players = re.findall(r'<audio controls="controls" preload="none" src="data:audio/mpeg;base64,([^"]+)"', page[1])
    shown = page[1].count('<figure class="timeline">')
    assert len(players) == shown > 0
    sound = base64.b64decode(players[0])
    assert len(sound) < 60_000 and len(decode(sound)) > 0


def test_the_number_of_comparisons_is_explained_below_the_table(page):
    text = " ".join(page[1].split())
    assert "corrected for 5 comparisons (Bonferroni; the paper's number, one per model)" in text
    caption = re.search(r"<caption>Bold: significant .*?</caption>", text)[0]
    rows, models = map(int, re.search(r"This table has (\d+) rows? of (\d+) models?", caption).groups())
    table = text[text.index(caption) :].split("</table>")[0]
    assert table.count('<th scope="row">') == rows and table.split("</thead>")[0].count("<th>") == models + 1
