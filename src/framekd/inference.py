"""Running models in evaluation mode: the one inference loop of evaluation, ensembles, tasks and predict."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor

from framekd.config import UserError
from framekd.data import Batch
from framekd.models import FrameModel

CPU_BF16 = "bf16-cpu"
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


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies matrices of bfloat16 by itself; elsewhere it is emulated, and slower."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() or _arm_has_bf16())


def _arm_has_bf16() -> bool:
    if platform.machine() not in ("aarch64", "arm64"):
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def chosen_precision(name: str, device: torch.device) -> str:
    """The precision of a command's --precision, as :func:`autocast` takes it; UserError if the device has none."""
    if name not in ("fp32", "bf16"):
        raise UserError(f"--precision {name!r}: expected fp32 or bf16")
    if name == "fp32":
        return name
    there = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else cpu_has_bf16()
    if not there:
        what = "GPU" if device.type == "cuda" else "processor"
        raise UserError(f"--precision bf16: this {what} does not compute in bfloat16; leave the option out")
    return name if device.type == "cuda" else CPU_BF16


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """The context of a forward pass: "bf16" and "fp16" act on a GPU only, "bf16-cpu" on a CPU; "fp32" does nothing."""
    if precision == CPU_BF16:
        return torch.autocast("cpu", torch.bfloat16)
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
