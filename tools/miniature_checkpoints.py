"""Train the demo's Step 1 checkpoints: what `make miniature-checkpoints` calls. Writes miniature/checkpoints/.

As the paper's models come pre-trained, the demo's small models do. They learn frame labels of scenes with the classes
that the demo does not evaluate (``step 1`` in miniature/labels/classes.csv) and with synthetic sounds. No recording of
an evaluated class, and no source of any evaluation clip, is used. The same machine gives the same bytes.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from scipy.signal import butter, sosfilt

from framekd.augment import draw_shifts, frame_shift
from framekd.config import load_files
from framekd.config.stages import MODELS
from framekd.events import frame_span
from framekd.files import sha256_of, write_json
from framekd.miniature.scenes import (
    ANNOTATED_PAUSE,
    Pool,
    Recording,
    clip_sizes,
    deal_classes,
    ground,
    lay,
    load_library,
    mix,
)
from framekd.models import build_model
from framekd.train import numpy_generator, torch_generator
from framekd.units import CLIP_FRAMES, CLIP_SECONDS, SAMPLE_RATE

ROOT = Path(__file__).resolve().parent.parent
SCENES, STEPS, BATCH, WARMUP = 1500, 4000, 4, 50
RATES = {"fPaSST": 2e-3}
RATE = 3e-3
VARIANTS = 12
"""Examples of each synthetic sound."""
SOUNDS = (
    *("tone", "rise", "fall", "warble", "buzz", "voice", "low noise", "mid noise"),
    *("high noise", "throb", "ping", "clang", "crackle", "rattle", "swish"),
)


def synthetic(kind: str, rng: np.random.Generator) -> np.ndarray:
    """A synthetic sound of 0.8 to 4 s with random pitch, rate and timbre, at a peak of 0.7."""
    time = np.arange(round(rng.uniform(0.8, 4.0) * SAMPLE_RATE)) / SAMPLE_RATE
    pitch, period = math.exp(rng.uniform(math.log(150), math.log(4000))), rng.uniform(0.2, 0.6)
    ramp = (time % period) / period

    def band(low: float, high: float, x: np.ndarray | None = None) -> np.ndarray:
        x = rng.standard_normal(len(time)) if x is None else x
        return sosfilt(butter(2, [low, high], "bandpass", fs=SAMPLE_RATE, output="sos"), x)

    def partials(frequency: np.ndarray | float, count: int, slope: float) -> np.ndarray:
        phase = 2 * np.pi * np.cumsum(np.minimum(frequency + 0 * time, 7500)) / SAMPLE_RATE
        return sum(np.sin(k * phase) / k**slope for k in range(1, count + 1))

    def wave(low: float, high: float) -> np.ndarray:
        return np.sin(np.pi * rng.uniform(low, high) * time)

    if kind == "tone":
        x = partials(pitch, int(rng.integers(1, 4)), 1.5)
    elif kind in ("rise", "fall"):
        x = partials(pitch * (1 + rng.uniform(0.5, 2) * (ramp if kind == "rise" else 1 - ramp)), 2, 1.5)
    elif kind == "warble":
        x = partials(pitch * (1 + rng.uniform(0.05, 0.3) * wave(8, 24)), 2, 1.5)
    elif kind == "buzz":
        x = partials(rng.uniform(60, 200), 25, 0.7)
    elif kind == "voice":
        source = partials(rng.uniform(90, 300) * (1 + 0.15 * wave(2, 8)), 30, 0.6)
        first, second = rng.uniform(300, 900), rng.uniform(900, 2500)
        x = band(0.8 * first, 1.2 * first, source) + 0.6 * band(0.9 * second, 1.1 * second, source)
        x *= 0.3 + np.abs(wave(2, 5))
    elif kind == "low noise":
        x = band(60, rng.uniform(200, 500))
    elif kind == "mid noise":
        x = band(rng.uniform(500, 900), rng.uniform(1200, 2500))
    elif kind == "high noise":
        x = band(rng.uniform(2500, 4000), rng.uniform(5000, 7800))
    elif kind == "throb":
        x = band(200, 6000) * (0.05 + wave(3, 15) ** 2)
    elif kind == "ping":
        x = partials(pitch, 1, 1) * np.exp(-ramp * period / rng.uniform(0.03, 0.15))
    elif kind == "clang":
        modes = ((1, 1), (1.48, 0.5), (2.76, 0.6), (5.4, 0.3))
        x = sum((a * partials(pitch * ratio, 1, 1) for ratio, a in modes if pitch * ratio < 7500), np.zeros(len(time)))
        x = x * np.exp(-time / rng.uniform(0.3, 1.2))
    elif kind == "crackle":
        x = np.zeros(len(time))
        places = rng.integers(len(time), size=1 + int(rng.uniform(10, 60) * time[-1]))
        x[places] = rng.standard_normal(len(places))
        x = band(800, 7000, x)
    elif kind == "rattle":
        x = band(1000, 6000) * np.exp(-(time % (1 / rng.uniform(5, 14))) / 0.015)
    else:
        x = band(300, 6000) * np.sin(np.pi * ramp) ** 2
    x[:160] *= np.linspace(0, 1, 160)
    x[-320:] *= np.linspace(1, 0, 320)
    return (0.7 * x / np.abs(x).max()).astype(np.float32)


def pool(seed: int) -> Pool:
    """Training sources of the classes that are not evaluated, synthetic sounds, and training backgrounds."""
    library = load_library(ROOT / "miniature")
    real = library.split(seed)["weak"]
    events = {label: real.events[label] for label in library.classes if label not in library.evaluated}
    for i, kind in enumerate(SOUNDS):
        made = [synthetic(kind, np.random.default_rng([seed, 40, i, k])) for k in range(VARIANTS)]
        events[f"~{kind}"] = [Recording("", f"~{kind}", "", str(k), samples) for k, samples in enumerate(made)]
    return Pool(events, real.backgrounds, real.speed, real.tilt)


def scenes(sounds: Pool, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Waveforms [clip, samples] and labels [clip, class, frame] of `count` scenes; classes are equally frequent."""
    classes, rng = sorted(sounds.events), np.random.default_rng([seed, 41])
    dealt = deal_classes(classes, [1.0] * len(classes), [n + 1 for n in clip_sizes(count, rng)], rng)
    waves = torch.zeros(count, round(CLIP_SECONDS * SAMPLE_RATE))
    labels = torch.zeros(count, len(classes), CLIP_FRAMES)
    for i, chosen in enumerate(dealt):
        own = np.random.default_rng([seed, 42, i])
        bed = ground(sounds.backgrounds, waves.shape[1], own)
        scene = mix(lay(chosen, sounds, own, window=(0.1, 9.9)), bed, own, pause=ANNOTATED_PAUSE)
        waves[i] = torch.from_numpy(scene.samples)
        for label, onset, offset in scene.events:
            begin, end = frame_span(np.array([onset]), np.array([offset]))
            labels[i, classes.index(label), int(begin[0]) : int(end[0])] = 1
    return waves, labels


def pretrain(name: str, waves: torch.Tensor, labels: torch.Tensor, *, seed: int, steps: int) -> dict[str, torch.Tensor]:
    """Train a model on `labels`; the tensors of its encoder under the names of published files."""
    model = build_model(name, n_classes=labels.shape[1], sizes=load_files(ROOT / "config/demo.yaml").model_sizes(name))
    model.init_weights(torch_generator(seed, "step1", name))
    with torch.inference_mode():
        mel = torch.cat([model.frontend(part) for part in waves.split(50)]).clone()
    active = labels.mean((0, 2)).clamp(1e-3, 0.5)
    model.frame_head.bias.data.copy_(torch.logit(active))
    model.generator = torch_generator(seed, "step1 noise", name)
    model.train()
    rate, rng = RATES.get(name, RATE), numpy_generator(seed, "step1", 0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0, fused=True)
    order: list[int] = []
    for step in range(steps):
        share = step / WARMUP if step < WARMUP else 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (steps - WARMUP)))
        for group in optimiser.param_groups:
            group["lr"] = rate * share
        if len(order) < BATCH:
            order = rng.permutation(len(mel)).tolist()
        rows, order = order[:BATCH], order[BATCH:]
        x, moved = frame_shift(mel[rows], {"y": labels[rows]}, draw_shifts(rng, len(rows), mel.shape[-1], 0.125))
        F.binary_cross_entropy_with_logits(model(x)[0], moved["y"]).backward()
        optimiser.step()
        optimiser.zero_grad()
    layout = model.encoder.REFERENCE
    assert layout is not None
    trained = {key: value.detach() for key, value in model.encoder.named_parameters() if value.requires_grad}
    return {layout.prefixes[0] + key: value.contiguous() for key, value in trained.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a file of weights for each model, and their sums for config/demo.yaml."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--out", type=Path, default=ROOT / "miniature" / "checkpoints")
    parser.add_argument("--scenes", type=int, default=SCENES)
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    miniature = load_files(ROOT / "config/demo.yaml").miniature
    assert miniature is not None
    seed = miniature.seed
    waves, labels = scenes(pool(seed), options.scenes, seed)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.models:
        began, path = time.monotonic(), options.out / f"{name}_step1.safetensors"
        safetensors.torch.save_file(pretrain(name, waves, labels, seed=seed, steps=options.steps), path)
        seconds = time.monotonic() - began
        print(f"{name}: {sha256_of(path)}, {path.stat().st_size / 1000:.0f} kB, {seconds:.0f} s", flush=True)
    write_json(options.out / "index.json", {name: f"{name}_step1.safetensors" for name in MODELS})


if __name__ == "__main__":
    main()
