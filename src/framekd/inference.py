"""Running models in evaluation mode: the one inference loop of evaluation, ensembles, tasks and predict."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor

from framekd.config import UserError
from framekd.data import Batch
from framekd.models import FrameModel

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def default_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def chosen_device(name: str) -> torch.device:
    """The device of a command's --device: "auto" (the GPU if there is one), "cpu", "cuda:1"; UserError if none."""
    if name == "auto":
        return default_device()
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or ["unknown"])[0]
        raise UserError(
            f"--device {name}: expected auto, cpu, cuda or cuda:NUMBER, of a GPU that is there ({reason})"
        ) from None
    return device


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """The context of a forward pass: "bf16" and "fp16" apply on a GPU only, "fp32" never changes anything."""
    half = HALF.get(precision)
    return torch.autocast("cuda", half) if half is not None and device.type == "cuda" else nullcontext()


@torch.inference_mode()
def logits(
    model: FrameModel, mel: Float[Tensor, "batch 1 bins mel_frames"], *, precision: str = "fp32"
) -> tuple[Float[Tensor, "batch classes frames"], Float[Tensor, "batch clip_classes"]]:
    """Frame and clip logits in float32, whatever the model's head gives by itself."""
    with autocast(mel.device, precision):
        frames, clips = model(mel, outputs="logits")
    return frames.float(), clips.float()


@torch.inference_mode()
def batch_logits(
    models: Sequence[FrameModel], batches: Iterable[Batch], *, device: torch.device, precision: str = "fp32"
) -> Iterator[tuple[Batch, list[tuple[Tensor, Tensor]]]]:
    """Logits of every model on every batch.

    Models of one architecture and front end share the spectrogram of a batch. The models are moved to `device` and set
    to evaluation mode.

    Yields:
        The batch as given, and per model its (frame logits [batch, classes, frames], clip logits [batch, clip
        classes]), float32 on `device`.
    """
    for model in models:
        model.to(device).eval()
    for batch in batches:
        waveform, mels, out = batch.waveform.to(device), {}, []
        for model in models:
            kind = f"{model.name} {model.encoder.front_end.switched}"
            if kind not in mels:
                mels[kind] = model.frontend(waveform)
            out.append(logits(model, mels[kind], precision=precision))
        yield batch, out
