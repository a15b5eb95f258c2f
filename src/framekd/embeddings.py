"""Frame embeddings of audio of any length: the transformer's aligned sequence, in overlapping windows of 10 s.

Windows and weights are those of :func:`framekd.predict.windowed`. Audio is decoded and encoded piece by piece, so that
memory does not grow with the length of a recording.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import h5py
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from framekd.audio import DecodeError, decode_command
from framekd.files import replacing
from framekd.inference import autocast
from framekd.models import FrameModel
from framekd.units import CLIP_FRAMES, FRAME_RATE, FRAME_SAMPLES, FRAME_SECONDS

HOP = CLIP_FRAMES // 2
WINDOW, STEP = CLIP_FRAMES * FRAME_SAMPLES, HOP * FRAME_SAMPLES


def decoded(path: str | Path) -> Iterator[Float[np.ndarray, " samples"]]:
    """The samples of a file at 16 kHz, -1 … 1, in pieces of 5 s, the last one shorter.

    Raises:
        DecodeError: nothing can be decoded, or samples are non-finite.
        FileNotFoundError: no such file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such audio file")
    command = decode_command(path)
    some = False
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        try:
            while data := process.stdout.read(4 * STEP):
                samples = np.frombuffer(data, "<f4", count=len(data) // 4)
                if not np.isfinite(samples).all():
                    raise DecodeError(f"{path}: it has non-finite samples (NaN or infinity)")
                some = True
                # 16-bit, as all audio of this project
                yield np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.float32) / 32768
            lines = process.stderr.read().decode(errors="replace").strip().splitlines()
        finally:
            process.kill()
    if not some:
        reason = lines[-1].strip() if lines else "it is empty"
        raise DecodeError(f"{path}: no audio that can be decoded ({reason})")


@torch.inference_mode()
def embed(
    model: FrameModel, pieces: Iterable[Float[np.ndarray, " samples"]], *, batch_size: int = 8, precision: str = "fp32"
) -> Iterator[Float[np.ndarray, "frames width"]]:
    """Frame embeddings of a recording, 25 per second, in the order of time.

    Args:
        model: set to evaluation mode here; it runs on the device that it is on.
        pieces: successive samples at 16 kHz, -1 … 1, of any lengths.
        batch_size: windows per forward pass.
        precision: see :func:`framekd.inference.autocast`.
    Yields:
        float32; the last frame of all may reach beyond the end of the audio.
    """
    model.eval()
    device = next(model.parameters()).device
    ramp = torch.minimum(torch.arange(1, CLIP_FRAMES + 1), torch.arange(CLIP_FRAMES, 0, -1)).float()[:, None]
    total: Tensor | None = None
    weight = torch.zeros(CLIP_FRAMES, 1)
    for windows, frames in _batches(pieces, batch_size):
        mel = model.frontend(windows.to(device))
        with autocast(device, precision):
            found = model.features(mel)
        for values, keep in zip(found.float().cpu(), frames):
            if total is None:
                total = torch.zeros_like(values)
            total += values * ramp
            weight += ramp
            yield (total[:keep] / weight[:keep]).numpy()
            total = torch.cat([total[HOP:], torch.zeros_like(total[:HOP])])
            weight = torch.cat([weight[HOP:], torch.zeros_like(weight[:HOP])])


def _batches(
    pieces: Iterable[Float[np.ndarray, " samples"]], batch_size: int
) -> Iterator[tuple[Float[Tensor, "windows samples"], list[int]]]:
    """Windows of 10 s every 5 s, and how many frames of each are finished: all of them only of the last one."""
    windows: list[np.ndarray] = []
    held = np.zeros(0, np.float32)
    for piece in pieces:
        held = np.concatenate([held, piece.astype(np.float32, copy=False)])
        # A window is not the last one if audio follows it.
        while len(held) > WINDOW:
            windows.append(held[:WINDOW])
            held = held[STEP:]
            if len(windows) == batch_size:
                yield torch.from_numpy(np.stack(windows)), [HOP] * batch_size
                windows = []
    left = -(-len(held) // FRAME_SAMPLES)
    if left:
        windows.append(np.pad(held, (0, WINDOW - len(held))))
        yield torch.from_numpy(np.stack(windows)), [HOP] * (len(windows) - 1) + [left]


def frame_times(n_frames: int) -> Float[np.ndarray, " frames"]:
    """The begin of each frame in seconds."""
    return np.arange(n_frames) / FRAME_RATE


def write_npy(path: Path, parts: Iterable[np.ndarray], width: int) -> int:
    """Write embeddings as `path` (.npy, float32 [frames, width]) and the frames' begins as .times.npy; returns frames.

    The header is written last, since the number of frames is known only then.
    """

    def header(frames: int) -> bytes:
        text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({frames}, {width}), }}"
        return b"\x93NUMPY\x01\x00\x76\x00" + text.ljust(117).encode() + b"\n"

    count = 0
    with replacing(path) as aside, aside.open("wb") as file:
        file.write(header(0))
        for part in parts:
            file.write(np.ascontiguousarray(part, "<f4").tobytes())
            count += len(part)
        file.seek(0)
        file.write(header(count))
    with replacing(path.with_suffix(".times.npy")) as aside:
        np.save(aside, frame_times(count))
    return count


def write_group(group: h5py.Group, parts: Iterable[np.ndarray], width: int) -> int:
    """Write embeddings into datasets `embeddings` (float32 [frames, width]) and `times` of a group; returns frames."""
    data = group.create_dataset("embeddings", (0, width), "<f4", maxshape=(None, width), chunks=(CLIP_FRAMES, width))
    count = 0
    for part in parts:
        data.resize(count + len(part), axis=0)
        data[count:] = part
        count += len(part)
    group.create_dataset("times", data=frame_times(count))
    group.attrs["frame_seconds"] = FRAME_SECONDS
    return count
