"""Speed and memory of `framekd predict` beside a plain loop over chunks of 10 s, as the authors' inference does it.

    python benchmarks/predict.py [--models BEATs,ATST-F] [--seconds 120] [--long 0] [--json FILE]

Each measurement has its own process: the model at the paper's size (447 classes, random weights) and one mp3 file of
noise. The plain loop decodes the whole file, then scores one chunk after another without overlap. "ours" is the
command's chain of generators without overlap (equal work) and with its default overlap (twice the windows). The
real-time factor is computing time over the length of the audio, without loading the model. --long measures the peak
memory of a file of that many seconds with the `tiny` model, so that the memory of everything but the model shows.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MODELS = ("ATST-F", "BEATs", "fPaSST", "M2D", "ASiT")
CLASSES = 447


def plain(model: Any, path: Path, names: list[str]) -> int:
    """Decode all, score chunk by chunk, join, filter all, decode events."""
    import numpy as np
    import torch

    from framekd.audio import decode_float
    from framekd.metrics import decode_events, median_filter

    wave, size, out = decode_float(path), 160_000, []
    with torch.no_grad():
        for at in range(0, len(wave), size):
            chunk = torch.zeros(1, size)
            chunk[0, : len(wave[at : at + size])] = torch.from_numpy(wave[at : at + size].copy())
            frames, _ = model(model.frontend(chunk))
            out.append(frames[0].T.sigmoid().numpy())
    scores = median_filter(np.concatenate(out), seconds=0.48)
    return len(decode_events(scores, names, 0.5, timestamps=np.arange(len(scores) + 1) / 25))


def ours(model: Any, path: Path, names: list[str], hop_frames: int) -> int:
    """The chain of generators of the command."""
    from framekd.predict import predict_file

    return len(predict_file(model, path, names, hop_frames=hop_frames).events)


def measure(what: str, name: str, path: Path, seconds: float) -> dict[str, float]:
    """One measurement, in a process of its own: real-time factor and peak memory."""
    import torch

    from framekd.models import build_model

    torch.set_num_threads(2)
    names = [f"class {k}" for k in range(CLASSES)]
    model = build_model(name, n_classes=CLASSES).init_weights(torch.Generator().manual_seed(0)).eval()
    model.frame_head.bias.data.fill_(-4)  # type: ignore[operator]
    run = {"plain": lambda f: plain(model, f, names), "ours": lambda f: ours(model, f, names, 250)}
    run["overlap"] = lambda f: ours(model, f, names, 125)
    begin, cpu = time.perf_counter(), time.process_time()
    run[what](path)
    wall, used = time.perf_counter() - begin, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return {"rtf": wall / seconds, "cpu": used / seconds, "mb": peak}


def noise(path: Path, seconds: float) -> Path:
    """An mp3 file of pink noise."""
    from framekd.audio import ffmpeg_path

    source = ["-f", "lavfi", "-i", f"anoisesrc=color=pink:duration={seconds}:sample_rate=44100:seed=1"]
    subprocess.run([ffmpeg_path(), "-loglevel", "error", *source, "-b:a", "128k", path], check=True)
    return path


def child(what: str, name: str, path: Path, seconds: float) -> dict[str, float]:
    """Run :func:`measure` in a process of its own."""
    command = [sys.executable, __file__, "--child", what, name, str(path), str(seconds)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Print a line per model."""
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--models", default=",".join(MODELS))
    given.add_argument("--seconds", type=float, default=120)
    given.add_argument("--long", type=float, default=0)
    given.add_argument("--json")
    given.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = given.parse_args()
    if options.child:
        what, name, path, seconds = options.child
        print(json.dumps(measure(what, name, Path(path), float(seconds))))
        return
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        short = noise(Path(folder) / "short.mp3", options.seconds)
        for name in filter(None, options.models.split(",")):
            found = {what: child(what, name, short, options.seconds) for what in ("plain", "ours", "overlap")}
            results[name] = found
            ratio = found["plain"]["cpu"] / found["ours"]["cpu"]
            cells = [f"{what} {one['rtf']:.3f} ({one['cpu']:.3f}), {one['mb']:.0f} MB" for what, one in found.items()]
            print(f"{name:7} real-time factor (CPU s per s), peak memory: {'; '.join(cells)}; ratio {ratio:.2f}")
        if options.long:
            path = Path(folder) / "long.mp3"  # frames of mp3 follow each other: no need to encode hours
            path.write_bytes(short.read_bytes() * round(options.long / options.seconds))
            for seconds, file in ((options.seconds, short), (options.long, path)):
                one = results[f"tiny {seconds:g} s"] = child("overlap", "tiny", file, seconds)
                print(f"tiny, {seconds:g} s of mp3: peak memory {one['mb']:.0f} MB, real-time factor {one['rtf']:.4f}")
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
