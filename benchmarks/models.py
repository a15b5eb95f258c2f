"""Time the models: front end, forward, forward + backward; with --peer also the authors' code.

    python benchmarks/models.py --threads 2 --batch 4
    python benchmarks/models.py --peer PATH_OF_A_CHECKOUT        (fschmid56/PretrainedSED; its packages importable)
    python benchmarks/models.py --device cuda --dtype bfloat16 --compile --batch 256 --sequence-model bigru

Steps of both are timed in turn in one process, so that other load slows both. A time is the median over the repeats; a
ratio is the median of the ratios of neighbouring steps. The peer's fPaSST would download ImageNet weights when it is
built; that function is replaced by one that does nothing.
"""

import argparse
import contextlib
import gc
import importlib
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from framekd.config import MODELS
from framekd.memory import keep_freed_memory
from framekd.models import FrameModel, build_model

SECONDS = 10
STEPS = ["front end", "forward", "forward + backward"]
PEER = {  # name: (module, class, width of its sequence)
    "ATST-F": ("models.atstframe.ATSTF_wrapper", "ATSTWrapper", 768),
    "BEATs": ("models.beats.BEATs_wrapper", "BEATsWrapper", 768),
    "fPaSST": ("models.frame_passt.fpasst_wrapper", "FPaSSTWrapper", 768),
    "M2D": ("models.m2d.M2D_wrapper", "M2DWrapper", 3840),
    "ASiT": ("models.asit.ASIT_wrapper", "ASiTWrapper", 768),
}


class Peer:
    """The authors' model, with the two methods that are timed."""

    def __init__(self, name: str, sequence_model: str | None) -> None:
        module, kind, width = PEER[name]
        if name == "fPaSST":
            helpers: Any = importlib.import_module("models.frame_passt.vit_helpers")
            stem: Any = importlib.import_module("models.frame_passt.fpasst")
            helpers.load_pretrained = lambda *a, **k: None
            stem.first_RUN = False
            if hasattr(stem, "load_pretrained"):
                stem.load_pretrained = lambda *a, **k: None
        base = getattr(importlib.import_module(module), kind)()
        wrapper = importlib.import_module("models.prediction_wrapper").PredictionsWrapper
        extra = {"seq_model_type": "rnn", "rnn_dim": 1024 if name == "fPaSST" else 2048} if sequence_model else {}
        self.model = wrapper(base, embed_dim=width, **extra)

    def frontend(self, waveform: torch.Tensor) -> torch.Tensor:
        return self.model.mel_forward(waveform)

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        return self.model(mel)[0]


class Ours:
    """This package's model, with the two methods that are timed."""

    def __init__(self, name: str, sequence_model: str | None, sizes: dict[str, Any] | None, compiled: bool) -> None:
        self.model: FrameModel = build_model(name, sequence_model=sequence_model, sizes=sizes)
        self.model.init_weights(torch.Generator().manual_seed(0))
        self.model.generator = torch.Generator().manual_seed(0)
        if compiled:
            self.model.compile_blocks()

    def frontend(self, waveform: torch.Tensor) -> torch.Tensor:
        return self.model.frontend(waveform)

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        return self.model(mel)[0]


def steps(side: Ours | Peer, waveform: torch.Tensor, autocast: Callable[[], Any]) -> dict[str, Callable[[], None]]:
    """Make the three steps; training includes dropout."""
    side.model.eval()
    with torch.no_grad():
        mel = side.frontend(waveform).detach()

    def frontend() -> None:
        side.model.eval()
        with torch.no_grad():
            side.frontend(waveform)

    def forward() -> None:
        side.model.eval()
        with torch.no_grad(), autocast():
            side.forward(mel)

    def training() -> None:
        side.model.train()
        with autocast():
            loss = side.forward(mel).float().square().mean()
        loss.backward()
        side.model.zero_grad(set_to_none=True)

    return {"front end": frontend, "forward": forward, "forward + backward": training}


def seconds_of(step: Callable[[], object], device: torch.device, clock: Callable[[], float]) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = clock()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def measure(args: argparse.Namespace, name: str) -> list[dict[str, Any]]:
    """Time one model: a row per step with the time per clip and, with a peer, the ratio."""
    device = torch.device(args.device)
    dtype = getattr(torch, args.dtype)
    autocast = contextlib.nullcontext if dtype == torch.float32 else lambda: torch.autocast(args.device, dtype=dtype)
    sides: dict[str, Ours | Peer] = {"ours": Ours(name, args.sequence_model, args.sizes, args.compile)}
    if args.peer:
        sides["peer"] = Peer(name, args.sequence_model)
    waveform = 0.1 * torch.randn(args.batch, SECONDS * 16_000, generator=torch.Generator().manual_seed(1))
    timed = {}
    for key, side in sides.items():
        side.model.to(device)
        timed[key] = steps(side, waveform.to(device), autocast)
    rows = []
    for step in args.steps:
        for key in timed:  # warm up, compile
            timed[key][step]()
        memory = peak_memory(timed["ours"][step], device)
        times: dict[str, list[float]] = {key: [] for key in timed}
        repeats = args.repeats * (5 if step == "front end" else 1)
        for turn in range(repeats):
            order = list(timed) if turn % 2 == 0 else list(timed)[::-1]
            for key in order:
                times[key].append(seconds_of(timed[key][step], device, args.clock) / args.batch)
        row = {"model": name, "step": step, "ms a clip": 1e3 * statistics.median(times["ours"])}
        row["clips a second"] = 1e3 / row["ms a clip"]
        row["peak MiB"] = memory
        if args.peer:
            row["peer, ms a clip"] = 1e3 * statistics.median(times["peer"])
            row["ratio"] = statistics.median(p / o for o, p in zip(times["ours"], times["peer"]))
        if step != "front end" and args.matmul_peak:
            work = flops(sides["ours"], waveform.to(device), training=step != "forward") / args.batch
            row["share of matmul peak"] = work / (row["ms a clip"] * 1e-3) / args.matmul_peak
        rows.append(row)
        print(line(row), flush=True)
    del sides, timed
    gc.collect()
    return rows


def peak_memory(step: Callable[[], None], device: torch.device) -> float:
    """Peak memory in MiB: of the step on a GPU, of the whole process so far on a CPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() / 2**20
    step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def flops(side: Ours | Peer, waveform: torch.Tensor, *, training: bool) -> float:
    """Count the floating point operations of a batch with torch's counter: products, convolutions, attention."""
    from torch.utils.flop_counter import FlopCounterMode

    side.model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        side.forward(side.frontend(waveform))
    return counter.get_total_flops() * (3.0 if training else 1.0)


def matmul_peak(device: torch.device, dtype: torch.dtype, clock: Callable[[], float]) -> float:
    """Measure the floating point operations per second of a large square matrix product."""
    side = 8192 if device.type == "cuda" else 2048
    a = torch.randn(side, side, device=device, dtype=dtype)
    times = []
    for _ in range(6):
        times.append(seconds_of(lambda: torch.mm(a, a), device, clock))
    return 2.0 * side**3 / min(times[1:])


def line(row: dict[str, Any]) -> str:
    cells = [f"{row['model']:7s} {row['step']:19s}"]
    cells += [f"{key} {value:9.2f}" for key, value in row.items() if isinstance(value, float)]
    return "  ".join(cells)


def markdown(rows: list[dict[str, Any]]) -> str:
    keys = list(dict.fromkeys(key for row in rows for key in row))
    out = ["| " + " | ".join(keys) + " |", "|" + " --- |" * len(keys)]
    for row in rows:
        cells = [f"{row[k]:.2f}" if isinstance(row.get(k), float) else str(row.get(k, "")) for k in keys]
        out.append("| " + " | ".join(cells) + " |")
    return "\n".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--steps", nargs="+", default=STEPS, choices=STEPS)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--sequence-model", choices=["bigru"], help="time the teacher, not the student")
    parser.add_argument("--sizes", type=json.loads, help='such as \'{"width": 96, "depth": 2, "heads": 2}\'')
    parser.add_argument(
        "--cpu-seconds",
        dest="clock",
        action="store_const",
        const=time.process_time,
        default=time.perf_counter,
        help="time in CPU seconds of this process (for --threads 1 on a shared machine)",
    )
    parser.add_argument("--compile", action="store_true", help="apply torch.compile to the blocks")
    parser.add_argument("--peer", help="checkout of the authors' repository, which is timed too")
    parser.add_argument("--markdown", type=Path, help="file to which the table is written")
    args = parser.parse_args()
    if args.peer and args.sizes:
        parser.error("--sizes does not work with --peer, which has the paper's sizes only")
    if args.peer:
        here = str(Path(__file__).resolve().parent)  # models.py here would hide the peer's package
        sys.path[:] = [str(Path(args.peer).resolve()), *(p for p in sys.path if p != here)]
    keep_freed_memory()  # as in every job; it applies to the peer too
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    args.matmul_peak = matmul_peak(torch.device(args.device), getattr(torch, args.dtype), args.clock)
    print(f"matmul peak {args.matmul_peak / 1e12:.2f} TFLOP/s ({args.device}, {args.dtype}, {args.threads} threads)")
    rows = [row for name in args.models for row in measure(args, name)]
    if args.markdown:
        args.markdown.write_text(markdown(rows) + "\n")


if __name__ == "__main__":
    main()
