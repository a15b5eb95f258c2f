"""What a GPU does with the models and with whole training steps, in one table and one JSON file.

    make bench-gpu                                                  (at most 10 minutes on the GPU that is there)
    python benchmarks/gpu.py --peer PATH_OF_A_CHECKOUT              (the authors' step in the same process)
    python benchmarks/gpu.py --small                                (small models on a CPU: does the script run?)

Per model, as a student and as a teacher, in bf16: clips a second of the model alone (forward and backward pass), of the
whole step (augmentation, loss, optimiser) with audio and soft labels from the host and from the GPU's memory, share of
the measured peak of bf16 matrix products, share of the time in which the GPU computes, peak of the memory beside the
one that was counted before, and joules a clip. A step that exhausts the memory is tried again in more parts.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from framekd.config import MODELS, Config, Recipe
from framekd.data import ClipSet, Loader
from framekd.models import build_model
from framekd.soft_labels import SoftLabels
from framekd.train import Objective, torch_generator
from framekd.train.footprint import footprint
from framekd.train.log import _energy_counter
from framekd.train.parallel import World
from framekd.train.step import Step
from framekd.units import CLIP_FRAMES

SMALL = {"width": 32, "depth": 2, "heads": 2, "mlp": 64, "rnn_hidden": 16}
COLUMNS = {
    "accumulate": "parts", "alone": "model, clips/s", "host": "step from host, clips/s", "device": "from GPU memory",
    "of_alone": "step / model", "of_peak": "of matmul peak", "busy": "GPU busy", "memory": "peak, GB",
    "counted": "counted, GB", "joules": "J a clip", "theirs": "authors, clips/s",
}  # fmt: skip


def load(name: str) -> Any:
    """A benchmark beside this one."""
    spec = importlib.util.spec_from_file_location(f"{name}_benchmark", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def wait(device: torch.device) -> None:
    """Wait for all work on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rate(step: Callable[[], int], device: torch.device, seconds: float, *, least: int = 1) -> float:
    """Clips a second of `step`, which returns how many it did; the first call is not counted."""
    step()
    wait(device)
    begun, clips, calls = time.perf_counter(), 0, 0
    while calls < least or time.perf_counter() - begun < seconds:
        clips, calls = clips + step(), calls + 1
        if calls % 4 == 0:
            wait(device)  # the host runs ahead of the device
    wait(device)
    return clips / (time.perf_counter() - begun)


def matmul_peak(device: torch.device, size: int, seconds: float) -> float:
    """FLOP a second of a product of two square matrices: bf16 on a GPU, fp32 on a CPU."""
    kind = torch.bfloat16 if device.type == "cuda" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=kind) for _ in range(2))
    return 2 * size**3 * rate(lambda: (torch.matmul(a, b), 1)[1], device, seconds)


def soft_file(path: Path, clips: ClipSet) -> SoftLabels:
    """Soft labels of noise."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file["filenames"] = np.array([name.encode() for name in clips.ids])
        data = file.create_dataset("strong_logits", (len(clips), len(clips.classes), CLIP_FRAMES), np.float16)
        for i in range(len(clips)):
            data[i] = rng.standard_normal(data.shape[1:], np.float32) - 4
    return SoftLabels(path, clips.classes)


Place = Literal["host", "device"]
PLACES: tuple[Place, ...] = ("host", "device")


class Case:
    """One model in one stage.

    Args:
        kind: "student" or "teacher".
        given: the command line.
    """

    def __init__(self, name: str, kind: str, clips: ClipSet, soft: SoftLabels, given: Any, parts: int) -> None:
        block = Config().student if kind == "student" else Config().teacher
        values = {**block.recipe.of(name).model_dump(), "learning_rate": 1e-5, "warmup_steps": 0}
        steps = {"batch_size": given.batch, "epochs": 1, "epoch_clips": given.batch * 100_000}
        self.recipe = Recipe(**{**values, **steps, "accumulate": parts, "compile": given.compile})
        self.goal = Objective("strong", self.recipe.distillation_weight)
        self.clips, self.soft = clips, soft if kind == "student" else None
        sequence = "bigru" if kind == "teacher" else None
        self.model = build_model(name, n_classes=len(clips.classes), sequence_model=sequence, sizes=given.sizes)
        self.model.init_weights(torch_generator(0)).to(given.device)
        more: dict[str, Any] = {"lr": 1e-5, "seed": 0, "total": 100_000, "world": World(), "clock": lambda part: None}
        self.step, self.device = Step(self.model.train(), self.recipe, self.goal, None, **more), given.device

    def alone(self) -> Callable[[], int]:
        """Forward and backward pass of a batch that is on the device, in the recipe's parts."""
        loader = Loader(self.clips, self.recipe, seed=0, soft=self.soft)
        batch = loader.batch(0, device=self.device)
        mel = self.model.frontend(batch.waveform)

        def run() -> int:
            for part in mel.chunk(self.recipe.accumulate):
                with self.step._autocast():
                    frames, _ = self.model(part, generator=torch_generator(1), outputs="logits")
                frames.float().square().mean().backward()
            self.model.zero_grad(set_to_none=True)
            return len(mel)

        return run

    def whole(self, audio_on: Place) -> Generator[int]:
        """Whole steps, one after the other."""
        loader = Loader(self.clips, self.recipe, seed=0, soft=self.soft, audio_on=audio_on)
        for number, batch in enumerate(loader.batches(0, 100_000, device=self.device, rows=World().rows)):
            self.step(number, batch)
            yield len(batch)


def busy(step: Callable[[], int], device: torch.device, count: int = 3) -> float | None:
    """Share of the time of some steps in which kernels run."""
    if device.type != "cuda":
        return None
    wait(device)
    begun = time.perf_counter()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(count):
            step()
        wait(device)
        seconds = time.perf_counter() - begun
    return min(1.0, sum(event.self_device_time_total for event in seen.key_averages()) / 1e6 / seconds)


def measure(name: str, kind: str, clips: ClipSet, soft: SoftLabels, given: Any) -> dict[str, Any]:
    """All numbers of one model in one stage, in the fewest parts that fit."""
    divisors = [n for n in range(1, given.batch + 1) if given.batch % n == 0]
    for parts in divisors:
        try:
            return _measure(Case(name, kind, clips, soft, given, parts), given) | {"accumulate": parts}
        except torch.OutOfMemoryError:
            print(f"{name} {kind}: batches of {given.batch} in {parts} parts do not fit", file=sys.stderr, flush=True)
        gc.collect()
        torch.cuda.empty_cache()
    return {"accumulate": None}


def _measure(case: Case, given: Any) -> dict[str, Any]:
    device, seconds = given.device, given.seconds
    out: dict[str, Any] = {"alone": rate(case.alone(), device, seconds)}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for place in PLACES:
        steps = case.whole(place)
        energy = _energy_counter(device)
        before, since = energy() if energy else 0.0, time.perf_counter()
        out[place] = rate(steps.__next__, device, seconds)
        if place == "host":
            done = out[place] * (time.perf_counter() - since)
            out["joules"] = (energy() - before) / done if energy else None
            out["busy"] = busy(steps.__next__, device)
            out["memory"] = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None
        steps.close()
    out["of_alone"] = out["host"] / out["alone"]
    if device.type == "cuda":
        out["counted"] = footprint(case.model.cpu(), case.recipe, case.goal).peak / 1e9
    return out


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = ["| model | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, row in rows.items():
        cells = [row.get(key) for key in COLUMNS]
        shown = ["" if c is None else f"{c:,.2f}" if isinstance(c, float) and c < 100 else f"{c:,.0f}" for c in cells]
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def hours(rows: dict[str, dict[str, Any]], training: Any) -> float | None:
    """Hours of Tables I and II of all five models, from the measured steps and the number of clips of each stage."""
    total = 0.0
    for name in MODELS:
        student, teacher = (rows.get(f"{name} {kind}", {}).get("host") for kind in ("student", "teacher"))
        if not student or not teacher:
            return None
        for stage, flops in training.work_of(name, Config()).items():
            kind, speed = ("bigru", teacher) if stage == "teachers" else (None, student)
            total += flops / training.flops_per_clip(name, kind) / speed / 3600
    return total


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="a checkout of the authors' code; its packages must be importable")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--compile", action="store_true", help="torch.compile the blocks")
    parser.add_argument("--small", action="store_true", help="small models and batches on a CPU")
    parser.add_argument("--out", type=Path, default=Path("results/bench-gpu"), help="writes OUT.md and OUT.json")
    given = parser.parse_args(arguments)
    if not given.small and not torch.cuda.is_available():
        sys.exit("no GPU is visible; --small runs the script at small sizes on a CPU")
    given.device = torch.device("cpu" if given.small else "cuda")
    given.sizes = SMALL if given.small else None
    if given.small:
        given.batch, given.seconds = 2, 0.0
    training = load("training")
    peak = matmul_peak(given.device, 256 if given.small else 8192, min(given.seconds, 5.0))
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        clips = training.noise(4 if given.small else 1024, 10 if given.small else 447)
        soft = soft_file(Path(folder) / "soft.h5", clips)
        if given.peer:
            training.load_peer(given.peer)
        for name in given.models:
            for kind in ("student", "teacher"):
                row = rows[f"{name} {kind}"] = measure(name, kind, clips, soft, given)
                if "host" in row and not given.small:
                    flops = 3 * training.flops_per_clip(name, "bigru" if kind == "teacher" else None)
                    row["of_peak"] = flops * row["host"] / peak
                if given.peer:
                    row["theirs"] = theirs(training, name, kind, clips, given)
                print(table({f"{name} {kind}": row}).splitlines()[-1], file=sys.stderr, flush=True)
    where = torch.cuda.get_device_name() if given.device.type == "cuda" else "a CPU, small sizes: only a test"
    whole = hours(rows, training)
    about = {"device": where, "torch": torch.__version__, "batch": given.batch, "matmul_tflops": peak / 1e12}
    text = f"{where}, batch {given.batch}, matrix products {peak / 1e12:.1f} TFLOP/s\n\n{table(rows)}\n"
    if whole is not None and not given.small:
        text += f"\nTables I and II: {whole:.0f} hours by the steps from host memory\n"
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.with_suffix(".md").write_text(text)
    given.out.with_suffix(".json").write_text(json.dumps({**about, "hours": whole, "rows": rows}, indent=1))
    print(text)


def theirs(training: Any, name: str, kind: str, clips: ClipSet, given: Any) -> float | None:
    """Clips a second of the authors' step, None if it does not fit."""
    recipe = Recipe(epochs=1, epoch_clips=given.batch * 6, batch_size=given.batch, augment=training.TEACHER)
    options = argparse.Namespace(device=given.device.type)
    peer = importlib.import_module("models_benchmark").Peer(name, "bigru" if kind == "teacher" else None)
    try:
        return given.batch / training.their_step(peer, clips, recipe, options)
    except torch.OutOfMemoryError:
        return None
    finally:
        peer.model.cpu()
        gc.collect()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
