"""Models for other programs: ONNX and TorchScript files that take samples, with the front end inside.

`torch.export` is not used: it unrolls a BiGRU (250 steps, two layers, two directions) and takes minutes for each model.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from framekd.config import UserError
from framekd.files import replacing
from framekd.models import FrameModel
from framekd.models.beats import Beats
from framekd.models.plain_mel import PlainFrontEnd
from framekd.units import CLIP_FRAMES, CLIP_SECONDS, SAMPLE_RATE

FORMATS = {"onnx": ".onnx", "torch": ".pt"}
SAMPLES = int(CLIP_SECONDS * SAMPLE_RATE)
INPUT, OUTPUTS = "waveform", ("frame_logits", "clip_logits")
METADATA = "about.json"
"""Name of the metadata among a TorchScript file's extra files; in ONNX they are `metadata_props`."""
TOLERANCE = 1e-4
"""Largest difference of a logit between a written file and the model."""
OPSET = 17
LARGEST = 2**31 - 2**20
"""Bytes of weights above which ONNX needs a second file."""


class Exported(nn.Module):
    """Samples in, logits out; see :func:`export`."""

    def __init__(self, model: FrameModel) -> None:
        super().__init__()
        self.front_end = PlainFrontEnd(model.encoder.front_end)
        self.model = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
        # What is fixed by the length is computed before tracing, and so a constant of the file: ONNX has no strided
        # view (BEATs' biases) and no adaptive pooling. Alignment is linear, so that of the identity is its matrix.
        matrix = functools.cache(lambda length, frames: FrameModel.align(self.model, torch.eye(length)[None], frames))

        def align(seq: Tensor, n_frames: int = CLIP_FRAMES) -> Tensor:
            return matrix(int(seq.shape[1]), int(n_frames)) @ seq

        self.model.align = align  # type: ignore[method-assign]
        if isinstance(beats := self.model.encoder, Beats):
            bias = functools.cache(beats.bias)
            beats.bias = lambda length: bias(int(length))  # type: ignore[method-assign]

    def forward(
        self, waveform: Float[Tensor, "batch 160000"]
    ) -> tuple[Float[Tensor, "batch classes 250"], Float[Tensor, "batch clip_classes"]]:
        return self.model(self.front_end(waveform), outputs="logits")


def require(package: str, extra: str) -> ModuleType:
    """Import a package of an extra.

    Raises:
        UserError: it is not installed; the message has the command that installs it.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise UserError(f"This needs the package {error.name}: pip install 'framekd[{extra}]'") from error


def metadata(spec: Mapping[str, Any], licence: str) -> dict[str, Any]:
    """What a program must know to use an exported file."""
    return {
        "model": spec["model"],
        "sequence_model": spec["sequence_model"],
        "classes": spec["classes"],
        "clip_classes": spec.get("clip_classes"),
        "sample_rate": SAMPLE_RATE,
        "samples": SAMPLES,
        "frame_seconds": spec["frame_seconds"],
        "outputs": "logits; their sigmoid is a probability",
        "licence": licence,
        "weights_sha256": spec.get("weights_sha256"),
    }


def export(model: FrameModel, path: str | Path, form: str, about: Mapping[str, Any]) -> float:
    """Write a model as one file that needs nothing of this package.

    Its input is `waveform` [batch, 160000] float32: 10 s at 16 kHz, -1..1, any batch. Its outputs are `frame_logits`
    [batch, classes, 250] and `clip_logits` [batch, clip classes]. The file is loaded again and compared with the model
    before it is put in place.

    Args:
        path: the file to write; folders are made as needed.
        form: a key of :data:`FORMATS`.
        about: JSON values that are stored in the file, see :func:`metadata`.
    Returns:
        The largest difference of a logit between the file and the model, on 10 s of noise.
    Raises:
        UserError: the path is a folder, a package is missing, the front end or the size cannot be exported, or the
            difference is above :data:`TOLERANCE`.
    """
    path = Path(path)
    if form not in FORMATS:
        raise UserError(f"--format {form!r}: expected one of {', '.join(FORMATS)}")
    if path.is_dir():
        raise UserError(f"{path} is a folder; name the file to write, such as {path / ('model' + FORMATS[form])}")
    if form == "onnx":
        for package in ("onnx", "onnxruntime"):
            require(package, "export")
        if (size := sum(p.numel() * p.element_size() for p in model.parameters())) > LARGEST:
            raise UserError(f"The weights ({size / 2**30:.1f} GiB) exceed ONNX's 2 GiB of one file; use --format torch")
    module, device = Exported(model.eval()), model.frame_head.weight.device
    noise = 0.1 * torch.randn(2, SAMPLES, generator=torch.Generator().manual_seed(0))
    with replacing(path) as aside, torch.inference_mode(), quiet():
        wanted = [logits.cpu() for logits in model(model.frontend(noise.to(device)), outputs="logits")]
        write, run = (write_onnx, run_onnx) if form == "onnx" else (write_torch, run_torch)
        write(module, noise, aside, about)
        difference = max(
            (found - want).abs().max().item() for found, want in zip(run(aside, noise), wanted, strict=True)
        )
        if not difference <= TOLERANCE:
            raise UserError(f"{path} is not written: its logits differ from the model's by {difference:.1e}.")
    return difference


def write_onnx(module: nn.Module, example: Tensor, path: Path, about: Mapping[str, Any]) -> None:
    """Write ONNX with a batch of any size."""
    onnx = require("onnx", "export")
    names = (INPUT, *OUTPUTS)
    torch.onnx.export(
        module,
        (example,),
        str(path),
        dynamo=False,
        opset_version=OPSET,
        input_names=[INPUT],
        output_names=list(OUTPUTS),
        dynamic_axes={name: {0: "batch"} for name in names},
    )
    graph = onnx.load(str(path))
    onnx.helper.set_model_props(
        graph, {k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for k, v in about.items()}
    )
    graph.producer_name, graph.doc_string = "framekd", f"{about['model']}: sound events, 25 frames a second"
    onnx.save(graph, str(path))


def run_onnx(path: Path, waveform: Tensor) -> list[Tensor]:
    """Logits of an ONNX file on a CPU."""
    session = require("onnxruntime", "export").InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [torch.from_numpy(values) for values in session.run(list(OUTPUTS), {INPUT: waveform.numpy()})]


def write_torch(module: nn.Module, example: Tensor, path: Path, about: Mapping[str, Any]) -> None:
    """Write TorchScript. Given a path, torch would end the process where the disk is full."""
    traced = torch.jit.trace(module, example, check_trace=False)
    with path.open("wb") as file:
        torch.jit.save(traced, file, _extra_files={METADATA: json.dumps(about, ensure_ascii=False)})


def run_torch(path: Path, waveform: Tensor) -> list[Tensor]:
    """Logits of a TorchScript file."""
    return list(torch.jit.load(str(path), map_location="cpu")(waveform))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the tracer's warnings: every length is fixed on purpose, and the file is compared with the model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
