"""Events in a stream of audio that goes on, such as a microphone's: each a moment after its end.

Every time that samples have come, the last 10 s are scored, and the frames are taken that have been followed by
`AHEAD` frames. A model that needs longer for a window than the samples need to come takes more of them at once, so that
it never falls behind further. The scores differ a little from those of a file, whose frames have context on both sides.
"""

from __future__ import annotations

import os
import queue
import subprocess
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float

from framekd import inference
from framekd.audio import live_command
from framekd.models import FrameModel
from framekd.predict import COLUMNS, Threshold, event_runs, median_frames, median_stream, threshold_array
from framekd.units import CLIP_FRAMES, FRAME_RATE, FRAME_SAMPLES, SAMPLE_RATE
from framekd.windows import model_device

AHEAD = 6
"""Frames (0.24 s) that the model hears after a frame before the frame's score counts."""
MOST_SECONDS = 5.0
"""Most new audio of a window: a frame has at least 5 s of context before it."""


def listen(
    model: FrameModel,
    parts: Iterable[Float[np.ndarray, " samples"]],
    classes: Sequence[str],
    *,
    threshold: Threshold = 0.5,
    median: float = 0.48,
    keep: Sequence[int] | None = None,
) -> Iterator[dict[str, float | str]]:
    """Detect events in samples at 16 kHz that come part by part.

    Args:
        model, classes, threshold, median, keep: see :func:`framekd.predict.predict_stream`.
        parts: consecutive samples, -1 … 1; see :func:`parts_of`.
    Yields:
        onset, offset (seconds from the first sample), event_label and score of each event, when it has ended.
    """
    names = list(classes) if keep is None else [classes[k] for k in keep]
    limits = threshold_array(threshold, names, known=classes)
    filtered = median_stream(live_scores(model, parts, keep), median_frames(median))
    for label, begin, end, peak in event_runs(filtered, limits):
        yield dict(zip(COLUMNS, (begin / FRAME_RATE, end / FRAME_RATE, names[label], round(peak, 4))))


def live_scores(
    model: FrameModel, parts: Iterable[Float[np.ndarray, " samples"]], keep: Sequence[int] | None = None
) -> Iterator[Float[np.ndarray, "frames classes"]]:
    """Probabilities of frames of 40 ms, once the `AHEAD` frames after them have come."""
    size, most = CLIP_FRAMES * FRAME_SAMPLES, int(MOST_SECONDS * SAMPLE_RATE)
    device, columns = model_device(model), slice(None) if keep is None else list(keep)
    recent, first, done = np.zeros(0, np.float32), 0, 0  # the last samples, their first frame, frames that were given

    def scores(until: int) -> np.ndarray:
        waves = torch.from_numpy(np.pad(recent, (0, size - len(recent))))[None].to(device)
        found, _ = inference.logits(model, model.frontend(waves))
        return found[0].T.sigmoid().cpu().numpy()[done - first : until - first, columns]

    for part in parts:
        for at in range(0, len(part), most):
            recent = np.concatenate([recent, part[at : at + most]])
            gone = max(0, -(-(len(recent) - size) // FRAME_SAMPLES))
            recent, first = recent[gone * FRAME_SAMPLES :], first + gone
            if (until := first + len(recent) // FRAME_SAMPLES - AHEAD) > done:
                yield scores(until)
                done = until
    if (until := first + -(-len(recent) // FRAME_SAMPLES)) > done:
        yield scores(until)


def parts_of(descriptor: int, *, least_seconds: float = 0.5) -> Iterator[Float[np.ndarray, " samples"]]:
    """Samples of signed 16-bit PCM at 16 kHz from an open file: all that has come, at least `least_seconds` at a time.

    A thread reads meanwhile, so that the program at the other end of a pipe never waits.
    """
    waiting: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def read() -> None:
        while data := os.read(descriptor, 1 << 16):
            waiting.put(data)
        waiting.put(b"")

    threading.Thread(target=read, daemon=True).start()
    data, ended, least = b"", False, 2 * round(least_seconds * SAMPLE_RATE)
    while not ended:
        pieces = [data, waiting.get()]
        while not waiting.empty():
            pieces.append(waiting.get())
        ended, data = not pieces[-1], b"".join(pieces)
        if len(data) >= least or ended:
            whole = len(data) // 2
            yield np.frombuffer(data, "<i2", count=whole) / np.float32(32768)
            data = data[2 * whole :]


@contextmanager
def at_16_khz(descriptor: int, rate: int, channels: int) -> Iterator[int]:
    """A descriptor of 16-kHz mono PCM, made by ffmpeg from PCM of another rate or of several channels."""
    if (rate, channels) == (SAMPLE_RATE, 1):
        yield descriptor
        return
    with subprocess.Popen(live_command(rate, channels), stdin=descriptor, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.fileno()
        finally:
            process.kill()
