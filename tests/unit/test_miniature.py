"""The miniature AudioSet: recordings and their papers, scenes and their labels, the published forms, determinism."""

import csv
import hashlib
import json
import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import scipy.fft

from framekd import audio
from framekd.config import UserError
from framekd.labels import (
    known_strong,
    known_weak,
    read_display_names,
    read_strong,
    read_weak_classes,
    read_weak_segments,
)
from framekd.miniature import audioset, build_audioset
from framekd.miniature.audioset import DAMAGES, EXTENSIONS, damage, write_media
from framekd.miniature.scenes import (
    Placed,
    Pool,
    Recording,
    deal_classes,
    envelope,
    ground,
    load_library,
    mix,
    sounding_parts,
    take,
    vary,
)
from framekd.units import SAMPLE_RATE

RECORDINGS = Path(__file__).parents[2] / "miniature"
SIZES = dict(n_strong_train=22, n_weak_only_train=4, n_heard=20, n_unheard=20, missing=0.04, broken=0.04)

COUNTS = {"strong": 20, "weak": 0, "heard": 20, "unheard": 20}


@pytest.fixture(scope="module")
def library():
    return load_library(RECORDINGS)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    directory = tmp_path_factory.mktemp("miniature")
    return directory, build_audioset(directory, seed=5, recordings_dir=RECORDINGS, **SIZES)


def rows():
    with (RECORDINGS / "recordings.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# The recordings ---------------------------------------------------------------------------------------------------


def test_every_recording_is_listed_with_a_free_licence_and_its_proof():
    listed = rows()
    there = {path.name for path in (RECORDINGS / "recordings").iterdir()}
    assert {row["file"] for row in listed} == there and len(listed) == len(there)
    allowed = re.compile(r"CC0-1\.0|CC-BY-[34]\.0|CC-BY-SA-[34]\.0|MIT")
    for row in listed:
        assert allowed.fullmatch(row["licence"]), row["file"]
        for column in ("author", "package", "version", "path_inside", "evidence"):
            assert row[column].strip(), (row["file"], column)
    assert sum(path.stat().st_size for path in (RECORDINGS / "recordings").iterdir()) <= 5_000_000


def test_every_author_and_package_is_credited():
    text = (RECORDINGS / "LICENCES.md").read_text(encoding="utf-8")
    for row in rows():
        assert f"### {row['package']} {row['version']}" in text
        assert f"- {row['licence']}, {row['author']}: " in text


def test_classes_are_audiosets_checked_and_have_three_sources():
    common = known_strong()[2]
    names = dict(zip(common.mids, common.names))
    sources = defaultdict(set)
    for row in rows():
        sources[row["class"]].add(row["source_group"])
        if row["class"] != "Background":
            assert names[row["mid"]] == row["class"] and row["mid"] in known_weak()
            assert 1 <= int(row["yamnet_rank"]) <= 7
    assert len(sources) >= 21 and min(map(len, sources.values())) >= 3


def test_no_recording_is_in_two_source_groups(library):
    """Copies under other names would leak from training to evaluation: no two groups of a class share a waveform."""
    by_class = defaultdict(list)
    for recording in library.recordings:
        by_class[recording.label].append(recording)
    for recordings in by_class.values():
        spectra = []
        for recording in recordings:
            tone = recording.samples / np.linalg.norm(recording.samples)
            spectra.append(scipy.fft.rfft(tone, 1 << 17))
        for i, first in enumerate(recordings):
            for k in range(i):
                if first.source != recordings[k].source:
                    peak = scipy.fft.irfft(spectra[i] * np.conj(spectra[k])).max()
                    assert peak < 0.6, (first.name, recordings[k].name)


def test_splits_share_no_source_and_cover_every_class(library):
    for seed in range(4):
        pools = library.split(seed)
        assert not pools["eval"].sources() & pools["weak"].sources()
        assert pools["strong"].sources() < pools["weak"].sources()
        for pool in pools.values():
            assert set(pool.events) == set(library.classes) and all(pool.events.values()) and pool.backgrounds


def test_missing_recordings_are_named(tmp_path):
    with pytest.raises(UserError, match=r"recordings\.csv: not found"):
        load_library(tmp_path)


# Scenes -----------------------------------------------------------------------------------------------------------


def burst(seconds, *, rng):
    return rng.standard_normal(round(seconds * SAMPLE_RATE)).astype(np.float32)


def test_labels_say_where_an_event_sounds_to_20_ms():
    """Two bursts of noise with a long pause over a faint bed: onsets and offsets are where the energy is."""
    rng = np.random.default_rng(0)
    silence = np.zeros(SAMPLE_RATE // 2, np.float32)
    sound = np.concatenate([burst(0.3, rng=rng), silence, burst(0.2, rng=rng)])
    bed = burst(10, rng=rng)
    scene = mix([Placed("a", 2 * SAMPLE_RATE, sound)], bed, rng, snr_db=(10, 10))
    expected = [(2.0, 2.3), (2.8, 3.0)]
    assert [event[0] for event in scene.events] == ["a", "a"]
    np.testing.assert_allclose([event[1:] for event in scene.events], expected, atol=0.02)


@pytest.mark.parametrize("snr", [0.0, 8.0, 20.0])
def test_the_signal_to_noise_ratio_is_the_one_asked_for(snr):
    rng = np.random.default_rng(1)
    bed, sound = burst(10, rng=rng), burst(1.0, rng=rng)
    bed /= np.sqrt(np.mean(bed**2))
    scene = mix([Placed("a", 4 * SAMPLE_RATE, sound)], bed, rng, snr_db=(snr, snr))
    power = [np.mean(scene.samples[a * SAMPLE_RATE : b * SAMPLE_RATE].astype(float) ** 2) for a, b in ((4, 5), (6, 9))]
    assert 10 * np.log10(power[0] / power[1] - 1) == pytest.approx(snr, abs=0.7)


def test_touching_events_of_a_class_are_one_and_nothing_passes_the_end():
    rng = np.random.default_rng(2)
    sound = burst(1.0, rng=rng)
    places = [1.0, 1.9, 9.5]
    placed = [Placed("a", round(at * SAMPLE_RATE), sound) for at in places] + [Placed("b", 24_000, sound)]
    events = mix(placed, burst(10, rng=rng), rng, snr_db=(20, 20)).events
    np.testing.assert_allclose([e[1:] for e in events if e[0] == "a"], [(1.0, 2.9), (9.5, 10.0)], atol=0.02)
    assert [e[0] for e in events] == ["a", "b", "a"]


def test_repetitions_that_annotators_hear_as_one_are_one_event():
    rng = np.random.default_rng(4)
    sound = burst(0.3, rng=rng)
    placed = [Placed("a", round(at * SAMPLE_RATE), sound) for at in (1.0, 2.0, 4.0)]
    events = mix(placed, burst(10, rng=rng), rng, snr_db=(20, 20), pause=1.0).events
    np.testing.assert_allclose([event[1:] for event in events], [(1.0, 2.3), (4.0, 4.3)], atol=0.02)


def test_a_take_is_repeated_until_it_is_long_enough():
    recording = Recording("x", "a", "", "s", burst(0.5, rng=np.random.default_rng(0)))
    pool = Pool({"a": [recording]}, [])
    lengths = [len(take(pool, "a", np.random.default_rng(k), seconds=1.4)) / SAMPLE_RATE for k in range(5)]
    assert all(1.4 <= length <= 2.8 for length in lengths)
    assert len(take(pool, "a", np.random.default_rng(0))) < 0.6 * SAMPLE_RATE


def test_sounding_parts_close_pauses_and_drop_blips():
    level = np.zeros(400)
    level[10:60] = level[80:120] = level[300:301] = 1
    parts = sounding_parts(level, 0.5, gap=0.25, shortest=0.01)
    np.testing.assert_allclose(parts, [(0.05, 0.6)])


def test_envelope_is_the_level_around_each_step():
    x = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    level = envelope(x)
    for i in (0, 3, len(level) - 1):
        low, high = max(0, i * 80 + 40 - 80), min(len(x), i * 80 + 40 + 80)
        assert level[i] == pytest.approx(np.sqrt(np.mean(x[low:high].astype(float) ** 2)))


def test_dealt_classes_fill_every_clip_follow_the_weights_and_skip_nobody():
    rng = np.random.default_rng(0)
    counts = [3] * 200
    dealt = deal_classes("abcd", [100, 10, 1, 0.001], counts, rng, least=3)
    assert [len(labels) for labels in dealt] == counts
    seen = Counter(label for labels in dealt for label in labels)
    assert seen["d"] == 3 and seen["a"] > 8 * seen["b"] > 40 * seen["c"] / 2


def test_a_take_is_varied_but_the_same_sound():
    sound = np.sin(2 * np.pi * 440 * np.arange(16_000) / SAMPLE_RATE).astype(np.float32)
    takes = [vary(sound, np.random.default_rng(k)) for k in range(8)]
    pitch = [np.argmax(np.abs(np.fft.rfft(t))) * SAMPLE_RATE / len(t) for t in takes]
    assert all(abs(p / 440 - 1) < 0.085 for p in pitch) and len({round(p) for p in pitch}) > 4


def test_a_bed_has_unit_power_and_no_gaps():
    rng = np.random.default_rng(3)
    recording = Recording("x", "Background", "", "s", burst(3.3, rng=rng) * 0.1)
    bed = ground([recording], 12 * SAMPLE_RATE, rng)
    assert len(bed) == 12 * SAMPLE_RATE and np.mean(bed**2) == pytest.approx(1, rel=1e-3)
    assert envelope(bed).min() > 0.4


# The data set -----------------------------------------------------------------------------------------------------


def test_label_files_have_the_published_forms(built):
    meta = built[0] / "meta"
    strong, evaluated = read_strong(meta / "audioset_train_strong.tsv"), read_strong(meta / "audioset_eval_strong.tsv")
    assert len(strong.clips) == 22 and len(evaluated.clips) == 40
    assert read_weak_classes(meta / "class_labels_indices.csv") == known_weak()
    assert len(read_display_names(meta / "mid_to_display_name.tsv")) == 456
    names = ("balanced_train", "unbalanced_train", "eval")
    weak = {name: read_weak_segments(meta / f"{name}_segments.csv") for name in names}
    assert set(weak["eval"].clips) == set(evaluated.clips)
    train = set(weak["balanced_train"].clips) | set(weak["unbalanced_train"].clips)
    assert len(train) == 26 and set(strong.clips) < train
    assert (meta / "eval_segments.csv").read_text().count("#") == 3
    ids = {e["id"] for e in json.loads((meta / "ontology.json").read_text())}
    assert set(strong.labels) <= ids
    assert any("_" in clip[:11] for clip in train) and any(clip.startswith("-") for clip in train)


def test_weak_labels_are_the_classes_of_the_events(built):
    meta = built[0] / "meta"
    strong, weak = read_strong(meta / "audioset_eval_strong.tsv"), read_weak_segments(meta / "eval_segments.csv")
    events = defaultdict(set)
    for clip, label in zip(strong.clip, strong.label):
        events[strong.clips[clip]].add(strong.labels[label])
    for i, clip in enumerate(weak.clips):
        labels = {weak.labels[k] for k in weak.label[weak.start[i] : weak.start[i + 1]]}
        assert labels == events[clip]


def test_every_class_is_heard_in_training_and_evaluation(built):
    summary = built[1]
    for split in ("strong", "heard", "unheard"):
        assert len(summary["events"][split]) == 16 and min(summary["events"][split].values()) > 0
    assert summary == json.loads((built[0] / "summary.json").read_text())


def test_every_evaluation_clip_is_in_one_subset_and_heard_clips_share_the_training_sources(built, library):
    meta = built[0] / "meta"
    with (meta / "eval_subsets.tsv").open(newline="") as file:
        subsets = {row["clip_id"]: row["subset"] for row in csv.DictReader(file, delimiter="\t")}
    assert Counter(subsets.values()) == {"heard": 20, "unheard": 20}
    assert set(read_strong(meta / "audioset_eval_strong.tsv").clips) == set(subsets)
    pools = audioset.clip_pools(library, 5)
    assert pools["heard"].sources() == pools["strong"].sources()
    assert not pools["unheard"].sources() & pools["weak"].sources()


def test_missing_and_broken_media_are_as_said(built):
    directory, summary = built
    index = json.loads((directory / "media/index.json").read_text())
    assert len(summary["missing"]) == 3 and len(summary["broken"]) == 3
    assert all(clip[:11] not in index for clip in summary["missing"])
    assert {path.name for path in (directory / "media").iterdir()} == {*index.values(), "index.json"}
    for clip in summary["broken"]:
        with pytest.raises(audio.DecodeError):
            audio.decode(directory / "media" / index[clip[:11]], start=int(clip[12:]) / 1000, duration=10)


def test_a_clip_is_cut_out_of_its_video_where_the_labels_say(built, library):
    """Decoded media against the scene: the same sound at the same sample, in every codec; videos outlast clips."""
    directory, summary = built
    seen = set()
    for clip in audioset.plan_clips(library, {"strong": 22, "weak": 4, "heard": 20, "unheard": 20}, seed=5):
        if clip.extension in seen or clip.id in {*summary["missing"], *summary["broken"]}:
            continue
        seen.add(clip.extension)
        scene, _ = audioset.clip_scene(clip, audioset.clip_pools(library, 5)[clip.split], 5)
        path = directory / "media" / clip.file
        whole = audio.decode_float(path)
        assert 12 <= len(whole) / SAMPLE_RATE <= 25.1
        got = audio.decode_float(path, start=clip.start, duration=10.0)
        want = scene.samples[clip.start * SAMPLE_RATE : (clip.start + 10) * SAMPLE_RATE]
        assert len(got) == 160_000
        cross = np.fft.irfft(np.fft.rfft(got, 1 << 19) * np.conj(np.fft.rfft(want, 1 << 19)))
        assert np.argmax(cross) == 0
        assert cross[0] / np.linalg.norm(got) / np.linalg.norm(want) > 0.95
    assert seen == set(EXTENSIONS)


def test_what_sounds_before_a_clip_has_no_label(library):
    pools = audioset.clip_pools(library, 1)
    heard = 0
    for clip in audioset.plan_clips(library, COUNTS, seed=1)[:25]:
        scene, events = audioset.clip_scene(clip, pools[clip.split], 1)
        assert all(0 <= a < b <= 10 for _, a, b in events) and {label for label, _, _ in events} <= set(clip.classes)
        heard += sum(offset <= clip.start for _, _, offset in scene.events)
    assert heard > 5


def digest(directory):
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_seed_gives_the_same_bytes_whatever_the_workers(tmp_path):
    sizes = dict(
        n_strong_train=12,
        n_weak_only_train=0,
        n_heard=12,
        n_unheard=12,
        missing=0.1,
        broken=0.1,
        recordings_dir=RECORDINGS,
    )
    for workers in (1, 3):
        build_audioset(tmp_path / str(workers), seed=1, workers=workers, **sizes)
    assert digest(tmp_path / "1") == digest(tmp_path / "3")


def test_another_seed_gives_other_clips(library):
    plans = [audioset.plan_clips(library, COUNTS, seed=seed) for seed in (1, 1, 2)]
    assert plans[0] == plans[1] and not {clip.id for clip in plans[0]} & {clip.id for clip in plans[2]}
    sounds = [audioset.clip_scene(plans[0][0], library.split(seed)["eval"], seed)[0].samples for seed in (1, 2)]
    assert not np.array_equal(*sounds)


def test_a_split_too_small_for_the_classes_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"4 unheard clips hold \d+ events, too few for 16 classes"):
        build_audioset(
            tmp_path, seed=0, n_strong_train=40, n_weak_only_train=0, n_heard=12, n_unheard=4, recordings_dir=RECORDINGS
        )


def test_a_class_without_events_is_refused(library):
    pool = Pool({}, [])
    with pytest.raises(UserError, match="no strong clip has an event of Bell"):
        audioset.summarise([], library, {"strong": pool, "weak": pool, "unheard": pool}, seed=0)


def test_a_source_on_both_sides_is_refused(library):
    pool = library.split(0)["eval"]
    with pytest.raises(UserError, match="is in training and evaluation clips"):
        audioset.summarise([], library, {"strong": pool, "weak": pool, "unheard": pool}, seed=0)


def test_losing_clips_never_takes_the_last_event_of_a_class(library):
    clips = audioset.plan_clips(library, COUNTS, seed=3)
    left = audioset.lose_some(clips, seed=3, missing=0.4, broken=0.4)
    assert sum(clip.state != "ok" for clip in left) > 4
    for split in ("strong", "heard", "unheard"):
        heard = {label for clip in left if clip.split == split and clip.state == "ok" for label in clip.classes}
        assert heard == set(library.evaluated)
    assert all(clip.state == "ok" for clip in audioset.lose_some(clips, seed=3, missing=0, broken=0))


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_media_cannot_be_decoded_to_a_clip(tmp_path, extension, kind):
    rng = np.random.default_rng(0)
    path = tmp_path / f"x.{extension}"
    write_media(path, 0.1 * burst(14, rng=rng), balance=0.3)
    assert len(audio.decode(path, start=2, duration=10)) == 160_000
    damage(path, kind, rng)
    try:
        left = len(audio.decode(path, start=2, duration=10))
    except audio.DecodeError:
        left = 0
    assert left < 16_000
