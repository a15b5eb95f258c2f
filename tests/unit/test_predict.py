"""Logits of sets of clips, and events in audio of any length through overlapping windows."""

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from training_runs import CLASSES, SIZES, clips

from framekd.audio import DecodeError
from framekd.config import UserError
from framekd.data import chunks
from framekd.inference import batch_logits, chosen_device, logits
from framekd.metrics import median_filter
from framekd.models import build_model
from framekd.predict import event_runs, event_table, median_stream, predict_file, predict_waveform, threshold_array
from framekd.train import torch_generator
from framekd.windows import logits_stream, windowed


class Meter(nn.Module):
    """Frame logits that are the loudness of each 40 ms, so that the effect of windows is known exactly."""

    def __init__(self, classes=2):
        super().__init__()
        self.classes, self.windows = classes, 0

    def frontend(self, waveform):
        self.windows += len(waveform)
        return waveform.view(len(waveform), -1, 640).abs().mean(-1)

    def forward(self, mel, outputs=None):
        frames = mel[:, None, :].expand(-1, self.classes, -1)
        return frames, frames.mean(-1)


def test_logits_of_batches_come_in_order_and_are_the_models():
    data = clips(7)
    model = build_model("tiny", n_classes=CLASSES, sizes=SIZES).init_weights(torch_generator(7))
    ids, rows = [], []
    for batch, [(frames, _)] in batch_logits([model], chunks(data, 3), device=torch.device("cpu")):
        ids += batch.ids
        rows.append(frames)
    assert ids == data.ids and [len(r) for r in rows] == [3, 3, 1]
    wave = torch.zeros(1, 160_000)
    wave[0, :32_000] = torch.from_numpy(data.waveform(6).astype(np.float32)) / 32768
    # Batches of other sizes may use other kernels, so that the last bits may differ.
    assert torch.allclose(rows[2], logits(model.eval(), model.frontend(wave))[0], atol=1e-5)


def test_attention_heads_are_scored_by_logits():
    model = (
        build_model("tiny", n_classes=CLASSES, sizes=SIZES, head="attention").init_weights(torch_generator(7)).eval()
    )
    wave = torch.randn(2, 32_000, generator=torch_generator(1))
    mel = model.frontend(wave)
    with torch.no_grad():
        assert torch.allclose(logits(model, mel)[0].sigmoid(), model(mel)[0], atol=1e-6)


@pytest.mark.parametrize(
    ("seconds", "windows", "frames"),
    [(0.01, 1, 1), (4.0, 1, 100), (10.0, 1, 250), (10.01, 2, 251), (15.0, 2, 375), (15.04, 3, 376), (61.3, 12, 1533)],
)
@pytest.mark.parametrize("batch_size", [1, 16])
def test_windows_cover_any_length_and_agree_where_they_overlap(seconds, windows, frames, batch_size):
    wave = torch.rand(int(seconds * 16_000), generator=torch_generator(1))
    model = Meter()
    got = windowed(model, wave, batch_size=batch_size)
    whole = torch.zeros(frames * 640)
    whole[: len(wave)] = wave
    assert model.windows == windows
    assert got.shape == (2, frames)
    assert torch.allclose(got[0], whole.view(-1, 640).mean(-1), atol=1e-6)


def test_overlaps_favour_the_window_in_whose_middle_a_frame_lies():
    class First(Meter):
        def forward(self, mel, outputs=None):
            which = torch.arange(len(mel)).float()[:, None, None].expand(-1, 1, 250)
            return which, which.mean(-1)

    got = windowed(First(), torch.zeros(15 * 16_000))[0]
    assert got[0] == 0 and got[-1] == 1 and (got[1:] >= got[:-1]).all()
    assert abs(float(got[187]) - 0.5) < 0.02 and got[130] < 0.1 and got[245] > 0.9


@pytest.mark.parametrize("bad", [torch.zeros(0), torch.zeros(2, 5)])
def test_empty_or_two_channel_audio_is_refused(bad):
    with pytest.raises(ValueError, match="samples of one channel"):
        windowed(Meter(), bad)


def whole(model, wave, hop):
    """Merged logits as one would write them down: all windows, then their weighted mean."""
    frames = -(-len(wave) // 640)
    starts = [0]
    while starts[-1] + 250 < frames:
        starts.append(starts[-1] + hop)
    padded = torch.zeros((starts[-1] + 250) * 640)
    padded[: len(wave)] = wave
    ramp = torch.tensor([min(t + 1, 250 - t) for t in range(250)], dtype=torch.float64)
    total, weights = torch.zeros(model.n_classes, starts[-1] + 250, dtype=torch.float64), torch.zeros(starts[-1] + 250)
    for start in starts:
        found, _ = logits(model, model.frontend(padded[start * 640 : (start + 250) * 640][None]))
        total[:, start : start + 250] += found[0] * ramp
        weights[start : start + 250] += ramp
    return (total / weights)[:, :frames].float()


@pytest.mark.parametrize(
    ("seconds", "hop", "block"), [(33.33, 125, 7_001), (10.03, 125, 160_000), (21, 250, 1), (25, 90, 999_999)]
)
def test_a_stream_gives_what_all_windows_at_once_give(seconds, hop, block):
    model = build_model("tiny", n_classes=CLASSES, sizes=SIZES).init_weights(torch_generator(7)).eval()
    wave = torch.rand(int(seconds * 16_000), generator=torch_generator(1)) - 0.5
    block = max(block, len(wave) // 50)
    parts = [wave[at : at + block].numpy() for at in range(0, len(wave), block)]
    expected = whole(model, wave, hop)
    for batch_size in (1, 3):
        got = torch.cat(list(logits_stream(model, parts, hop_frames=hop, batch_size=batch_size))).T
        assert got.shape == expected.shape and torch.allclose(got, expected, atol=1e-5)
    assert torch.allclose(windowed(model, wave, hop_frames=hop), expected, atol=1e-5)


@given(lengths=st.lists(st.integers(0, 9), max_size=9), window=st.integers(1, 14), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=60)
def test_the_median_of_a_stream_is_that_of_the_whole(lengths, window, seed):
    rows = np.random.default_rng(seed).random((sum(lengths), 2), np.float32)
    blocks = np.split(rows, np.cumsum(lengths)[:-1]) if lengths else []
    got = list(median_stream((block for block in blocks if len(block)), window))
    expected = median_filter(rows, frames=window) if len(rows) else rows
    assert np.array_equal(np.concatenate([rows[:0], *got]), expected)


@given(cuts=st.lists(st.integers(0, 40), max_size=6), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=60)
def test_events_do_not_depend_on_the_blocks(cuts, seed):
    rows = np.random.default_rng(seed).random((40, 3), np.float32)
    limits = np.full(3, 0.3, np.float32)
    blocks = np.split(rows, sorted(cuts))
    found = list(event_runs(blocks, limits))
    assert sorted(found) == sorted(event_runs([rows], limits))
    assert [run[2] for run in found] == sorted(run[2] for run in found)  # in the order of their ends


def test_events_are_runs_above_the_threshold():
    table = np.zeros((10, 2), np.float32)
    table[2:5, 0], table[9, 0], table[0:10, 1] = 0.9, 0.7, 0.6

    def events(threshold, seconds):
        limits = threshold_array(threshold, ["dog", "cat"], known=["dog", "cat"])
        found = event_table(event_runs([table], limits), ["dog", "cat"], seconds)
        return list(found.itertuples(index=False, name=None))

    assert events(0.5, 0.39) == [(0.0, 0.39, "cat", pytest.approx(0.6)), (0.08, 0.2, "dog", pytest.approx(0.9)),
                                 (0.36, 0.39, "dog", pytest.approx(0.7))]  # fmt: skip
    assert events(0.95, 0.4) == []
    # A frame that begins after the end of the audio is padding.
    assert events(0.65, 0.36) == [(0.08, 0.2, "dog", pytest.approx(0.9))]
    assert events({"cat": 0.7, "dog": 0.8}, 0.4) == [(0.08, 0.2, "dog", pytest.approx(0.9))]


@pytest.mark.parametrize(("threshold", "words"), [(float("nan"), "not nan"), (1.0, "not 1"), ({"bird": 0.5}, "'bird'")])
def test_a_threshold_that_means_nothing_is_refused(threshold, words):
    with pytest.raises(UserError, match=words):
        threshold_array(threshold, ["dog"], known=["dog"])


@pytest.mark.parametrize("name", ["cuda:99", "gpu"])
def test_a_device_that_is_not_there_is_one_sentence(name):
    with pytest.raises(UserError, match=name):
        chosen_device(name)


def test_a_file_of_another_rate_and_two_channels(tmp_path):
    time = np.arange(12 * 44_100) / 44_100
    tone = np.where((time > 3) & (time < 4), 0.5 * np.sin(2 * np.pi * 440 * time), 0.0)
    soundfile.write(tmp_path / "tone.wav", np.stack([tone, tone], 1), 44_100)

    class Loud(Meter):
        def forward(self, mel, outputs=None):
            frames, _ = super().forward(mel, outputs)
            return (frames - 0.1) * 100, frames.mean(-1)

    scores = []
    got = predict_file(Loud(1), tmp_path / "tone.wav", ["tone"], median=0, on_scores=scores.append)
    assert got.seconds == pytest.approx(12.0, abs=0.001) and np.concatenate(scores).shape == (300, 1)
    assert list(got.events.columns) == ["onset", "offset", "event_label", "score"]
    ((onset, offset, name, _),) = got.events.itertuples(index=False, name=None)
    assert (name, round(onset, 1), round(offset, 1)) == ("tone", 3.0, 4.0)


def test_peaks_are_the_highest_scores_and_where_they_are():
    class Rising(Meter):
        def forward(self, mel, outputs=None):
            frames = torch.stack([torch.arange(250.0) / 250, -torch.arange(250.0)])[None].expand(len(mel), -1, -1)
            return frames, frames.mean(-1)

    got = predict_waveform(Rising(), torch.zeros(32_000), ["a", "b"], median=0, threshold=0.9)
    assert got.events.empty and got.events.onset.dtype == float
    first, second = got.peaks.itertuples(index=False, name=None)
    assert first == ("a", pytest.approx(1 / (1 + np.exp(-49 / 250))), 49 / 25) and second == ("b", 0.5, 0.0)


def test_classes_that_are_not_kept_are_not_looked_at():
    got = predict_waveform(Meter(3), torch.ones(32_000), ["a", "b", "c"], keep=[2])
    assert set(got.events.event_label) == {"c"} and list(got.peaks.event_label) == ["c"]


def test_wrong_names_and_empty_audio_are_refused(tmp_path):
    model = build_model("tiny", n_classes=2)
    with pytest.raises(ValueError, match="has 2 classes, but 3 names"):
        predict_waveform(model, torch.zeros(32_000), ["a", "b", "c"])
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16_000)
    with pytest.raises(DecodeError, match=r"empty\.wav: it holds no audio samples"):
        predict_file(model, tmp_path / "empty.wav", ["a", "b"])
