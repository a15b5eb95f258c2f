"""The table of the published models, run whole: labels, clips and weights come from local servers that break off."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import ROOT, copy_repository, snakemake

from framekd import releases
from framekd.audio import decode, ffmpeg_path
from framekd.checkpoints import save_checkpoint
from framekd.cli import main
from framekd.config import MODELS
from framekd.labels import known_strong, known_weak
from framekd.manifest import read_manifest
from framekd.metrics._compile import cache_folder

sys.path += [str(ROOT / "tests/unit"), str(ROOT / "tests/parity")]
import misbehaving_server as host
from parity_kit import drawn
from release_server import release_server
from released_files import drawn_model, save_as_theirs, their_file

PAPER = {"ATST-F": 45.8, "BEATs": 46.5, "fPaSST": 45.4, "M2D": 46.3, "ASiT": 46.2}
SMALL = {"width": 32, "depth": 1, "heads": 2}
TRAIN, EVALUATION, _ = known_strong()
CLIPS, GONE, START = 10, 9, 4
"""Evaluation clips, the one whose video is gone, and the second at which they begin."""


def video(number: int) -> str:
    return f"-vid_{number:06d}"


def events(number: int) -> list[tuple[float, float, str]]:
    """True events of a clip (s). A class is in two to nine clips; drawn models find some events that last long."""
    draw, found = np.random.default_rng(number), []
    for k, name in enumerate(EVALUATION.names):
        onset, seconds = (0.0, 10.0) if k % 2 else (round(draw.uniform(0, 6), 3), round(draw.uniform(0.2, 3), 3))
        if (number - k) % CLIPS < 2 + k // 2 % 8:
            found.append((onset, round(onset + seconds, 3), name))
    return found


def label_files() -> dict[str, str]:
    """The seven label files in their published forms: every class, few clips."""
    strong = "segment_id\tstart_time_seconds\tend_time_seconds\tlabel\n"
    mid = dict(zip(EVALUATION.names, EVALUATION.mids))
    names = dict(zip((*TRAIN.mids, *EVALUATION.mids), (*TRAIN.names, *EVALUATION.names)))
    weak = "# Segments csv\n# num_ytids={}\n# YTID, start_seconds, end_seconds, positive_labels\n"
    line = '{}, {:.3f}, {:.3f}, "' + known_weak().mids[0] + '"\n'
    rows = [(f"{video(i)}_{1000 * START}", *event) for i in range(CLIPS) for event in events(i)]
    return {
        "train_strong": strong + "".join(f"{video(99)}_30000\t0.000\t9.000\t{one}\n" for one in TRAIN.mids),
        "eval_strong": strong + "".join(f"{clip}\t{a:.3f}\t{b:.3f}\t{mid[name]}\n" for clip, a, b, name in rows),
        "mid_to_display_name": "".join(f"{one}\t{name}\n" for one, name in names.items()),
        "class_labels": "index,mid,display_name\n"
        + "".join(f'{i},{a},"{b}"\n' for i, (a, b) in enumerate(zip(known_weak().mids, known_weak().names))),
        "balanced_train": weak.format(1) + line.format(video(99), 30, 40),
        "unbalanced_train": weak.format(1) + line.format(video(98), 30, 40),
        "eval": weak.format(CLIPS) + "".join(line.format(video(i), START, START + 10) for i in range(CLIPS)),
    }


def videos(folder: Path) -> dict[str, Path]:
    """The audio tracks of the evaluation videos that are not gone: real recordings one after the other, 16 s."""
    sources, out = sorted((ROOT / "miniature" / "recordings").glob("*.ogg")), {}
    kinds = [("webm", "libopus"), ("m4a", "aac"), ("mp3", "libmp3lame")]
    for i in range(CLIPS):
        if i != GONE:
            parts = [soundfile.read(path)[0] for path in sources[i::CLIPS]]
            suffix, codec = kinds[i % 3]
            soundfile.write(folder / "wave.wav", np.resize(np.concatenate(parts), 16 * 16_000), 16_000)
            out[video(i)] = folder / f"{i}.{suffix}"
            command = [ffmpeg_path(), "-loglevel", "error", "-y", "-i", folder / "wave.wav", "-c:a", codec]
            subprocess.run([*command, out[video(i)]], check=True, stdin=subprocess.DEVNULL)
    return out


@contextmanager
def youtube(folder: Path) -> Iterator[tuple[host.MediaServer, dict[str, str]]]:
    """A host of videos and label files: a label file and a video break off at first, and a video is refused once."""
    folder.mkdir()
    media, texts = videos(folder), {name: text.encode() for name, text in label_files().items()}
    pages = {name: f"label-{i:05d}" for i, name in enumerate(texts)}
    faults = {pages[name]: host.body(text, "text/csv") for name, text in texts.items()}
    for page, whole, kind in (
        (pages["eval_strong"], texts["eval_strong"], "text/csv"),
        (video(0), media[video(0)].read_bytes(), "audio/webm"),
    ):
        broken, after = host.truncated(whole, kind), faults.get(page, lambda *_: False)
        first = int(page == video(0))  # yt-dlp asks for the page and then for the media
        faults[page] = lambda handler, n, broken=broken, after=after, first=first: (broken if n == first else after)(
            handler, n
        )
    faults[video(1)] = host.status(503, times=1)
    with host.MediaServer(media, faults) as server:
        yield server, {name: server.url.format(ytid=page) for name, page in pages.items()}


def publish(folder: Path, name: str, sizes: dict | None) -> None:
    """A checkpoint in the authors' layout: drawn as the parity tests draw them at the paper's sizes, or a small one."""
    path = folder / releases.named(name).file
    if sizes is None:
        state = their_file(name, "strong_1", depth=12)
        torch.save({key: drawn(key, tuple(value.shape)) for key, value in state.items()}, path)
    else:
        save_as_theirs(drawn_model(name, 447, sizes, seed=len(name)), path)


def evaluated(model: str, media: dict[str, Path], folder: Path, clips: range | list[int]) -> float:
    """PSDS1 by `framekd evaluate` on clips that are cut here."""
    folder.mkdir()
    table = ["filename\tonset\toffset\tevent_label\n"]
    for i in (i for i in clips if i != GONE):
        soundfile.write(folder / f"{i}.wav", decode(media[video(i)], START, 10), 16_000)
        table += [f"{i}.wav\t{a}\t{b}\t{name}\n" for a, b, name in events(i)]
    (folder / "events.tsv").write_text("".join(table))
    words = ["--labels", str(folder / "events.tsv"), "--audio", str(folder), "--out", str(folder)]
    assert main(["evaluate", "--model", model, *words, "--ignore-unknown"]) == 0
    with (folder / "scores.csv").open(newline="") as file:
        return float(next(csv.DictReader(file))["psds1"])


def rows(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="") as file:
        return {row["model"]: row for row in csv.DictReader(file)}


def site(models: tuple[str, ...], sizes: dict | None, address: str, labels: dict[str, str]) -> dict:
    """The configuration of a site that scores `models`."""
    download = {"url": address, "pause_seconds": 0, "shards": {"strong": 1, "eval": 1, "weak": 1}}
    return {
        "models": models,
        "sizes": {"all": sizes} if sizes else {},
        "models_per_job": len(models),
        "audioset": {"labels_url": labels, "download": download},
        "published": {"clips": "theirs.csv"},
        "step2": {"train": []},
    }


def show_costs(folder: Path) -> None:
    """Print what each job took."""
    for path in sorted(folder.rglob("*.tsv")):
        with path.open(newline="") as file:
            used = next(csv.DictReader(file, delimiter="\t"))
        print(f"\n{path.relative_to(folder)}: {used['s']} s, CPU {used['cpu_time']} s, {used['max_rss']} MB", end="")


SHARED = [0, 2, 3, 5, 8, GONE]
"""The clips that the authors have too."""
long = pytest.mark.skipif("FRAMEKD_LONG" not in os.environ, reason="five models at the paper's sizes")


@pytest.mark.parametrize(
    ("models", "sizes"), [(("ATST-F", "ASiT"), SMALL), pytest.param(MODELS, None, marks=long)], ids=["small", "paper"]
)
def test_the_table_of_the_published_models_is_made_from_nothing(models, sizes, tmp_path, monkeypatch, capsys):
    folder = copy_repository(tmp_path / "framekd")
    results, asked = folder / "results", ("results/published.csv", "--configfile", "site.yaml")
    theirs = [*(f"Yabcdefghi{i:02d},10.0\n" for i in range(4)), *(f"Y{video(i)},10.0\n" for i in SHARED)]
    (folder / "theirs.csv").write_text("".join(theirs))
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(cache_folder()))  # compiled kernels stay where they are
    monkeypatch.setenv("FRAMEKD_CACHE", str(tmp_path / "cache"))
    with youtube(tmp_path / "youtube") as (server, labels), release_server(tmp_path / "site") as release:
        for name in models:
            publish(release.folder / "v0.0.1", name, sizes)
        monkeypatch.setenv("FRAMEKD_PUBLISHED", release.url)
        release.faults += ["breaks off"]
        (folder / "site.yaml").write_text(json.dumps(site(models, sizes, server.url, labels)))
        run = snakemake(folder, "--cores", "2", *asked)
        assert run.returncode == 0, (run.stdout + run.stderr)[-4000:]

        files = [f"v0.0.1/{releases.named(name).file}" for name in models]
        assert [path for path, _ in release.asked] == [files[0], *files]  # the first file was continued
        assert release.asked[1][1].startswith("bytes=")
        assert server.requests[video(0)] > 2 and server.requests[video(1)] > 2  # the page, the media, and once more
        clips = {e.clip_id: e.state.value for e in read_manifest(folder / "data/store/eval/0000.manifest.tsv")}
        assert clips == {f"{video(i)}_{1000 * START}": "gone" if i == GONE else "ok" for i in range(CLIPS)}

        table = rows(results / "published.csv")
        assert list(table) == list(models)
        for name in models:
            row, exact, model = table[name], rows(results / f"evaluation/published/{name}.csv")[name], name
            if sizes is not None:  # the name would mean the paper's sizes
                own = drawn_model(name, 447, sizes, seed=len(name))
                model = str(save_checkpoint(tmp_path / name, own, classes=TRAIN.names, provenance={}))
            assert [row[key] for key in ("clips", "clips_shared", "note")] == ["9", "5", ""]
            assert float(row["published"]) == PAPER[name] and row["psds1"] != row["psds1_shared"]
            for end, some in (("", range(CLIPS)), ("_shared", SHARED)):
                expected = evaluated(model, server.media, tmp_path / f"{name}{end}.clips", some)
                assert expected > 0.01 and float(exact[f"psds1{end}"]) == pytest.approx(expected, abs=2e-6)
                assert float(row[f"psds1{end}"]) == pytest.approx(100 * expected, abs=1e-3)
                assert float(row[f"difference{end}"]) == pytest.approx(100 * expected - PAPER[name], abs=1e-3)
    assert len({row["psds1"] for row in table.values()}) == len(models)
    shown, tex = ((results / f"published.{form}").read_text() for form in ("md", "tex"))
    assert "Shared clips are those" in shown and all(f"{PAPER[name]}" in shown and name in tex for name in models)
    if sizes is None:
        with capsys.disabled():
            show_costs(results / "benchmarks")
