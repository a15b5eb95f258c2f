"""Logits of sets of clips, and events in audio of any length through overlapping windows."""

import numpy as np
import pytest
import soundfile
import torch
from torch import nn
from training_runs import CLASSES, SIZES, clips

from framekd.data import chunks
from framekd.inference import batch_logits, logits
from framekd.models import build_model
from framekd.predict import decode_events, predict_file, predict_waveform, windowed
from framekd.train import torch_generator


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


def test_events_are_runs_above_the_threshold():
    table = np.zeros((10, 2), np.float32)
    table[2:5, 0], table[9, 0], table[0:10, 1] = 0.9, 0.7, 0.6
    got = decode_events(table, ["dog", "cat"], threshold=0.5, seconds=0.39)
    assert got == [(0.0, 0.39, "cat", pytest.approx(0.6)), (0.08, 0.2, "dog", pytest.approx(0.9)),
                   (0.36, 0.39, "dog", pytest.approx(0.7))]  # fmt: skip
    assert decode_events(table, ["dog", "cat"], threshold=0.95, seconds=0.4) == []
    # A frame that begins after the end of the audio is padding.
    assert decode_events(table, ["dog", "cat"], threshold=0.65, seconds=0.36) == [
        (0.08, 0.2, "dog", pytest.approx(0.9))
    ]


def test_a_file_of_another_rate_and_two_channels(tmp_path):
    time = np.arange(12 * 44_100) / 44_100
    tone = np.where((time > 3) & (time < 4), 0.5 * np.sin(2 * np.pi * 440 * time), 0.0)
    soundfile.write(tmp_path / "tone.wav", np.stack([tone, tone], 1), 44_100)

    class Loud(Meter):
        def forward(self, mel, outputs=None):
            frames, _ = super().forward(mel, outputs)
            return (frames - 0.1) * 100, frames.mean(-1)

    got = predict_file(Loud(1), tmp_path / "tone.wav", ["tone"])
    assert got.seconds == pytest.approx(12.0, abs=0.001) and got.probabilities.shape == (300, 1)
    ((onset, offset, name, _),) = got.events
    assert (name, round(onset, 1), round(offset, 1)) == ("tone", 3.0, 4.0)


def test_a_filter_is_applied_before_the_threshold():
    wave = torch.zeros(32_000)
    got = predict_waveform(Meter(), wave, ["a", "b"], threshold=0.5, smooth=lambda scores: scores + 0.25)
    assert got.events == [(0.0, 2.0, "a", 0.75), (0.0, 2.0, "b", 0.75)]
    with pytest.raises(ValueError, match="has 2 classes, but 3 names"):
        predict_waveform(Meter(), wave, ["a", "b", "c"])
