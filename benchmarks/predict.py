"""Speed and memory of `framekd predict` beside the authors' inference.py, or a plain loop over chunks of 10 s.

    python benchmarks/predict.py [--models BEATs,ATST-F] [--seconds 120] [--authors FOLDER] [--long 0] [--start BEATs]
        [--json FILE]

Each measurement has its own process: the model at the paper's size (447 classes, random weights) and one mp3 file of
noise. The plain loop decodes the whole file, then scores one chunk after another without overlap. --authors names a
checkout of github.com/fschmid56/PretrainedSED, whose `sound_event_detection` is then run on the same file, on random
weights too (it needs librosa, timm, nnAudio and torchvision; FOLDER/site is searched for them). "ours" is our chain of
generators without overlap (equal work), "overlap" the same with its default overlap (twice the windows), "bf16" that
without overlap in bfloat16, where the processor has it. The real-time factor is the time from the beginning of decoding
to the events over the length of the audio, without loading the model. --long measures the peak memory of a file of that
many seconds with the `tiny` model, so that the memory of everything but the model shows. --start names a model of which
`framekd predict` is timed as a whole on a file of 10 s, three times: from the command to the events.
"""

from __future__ import annotations

import argparse
import json
import math
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


def ours(model: Any, path: Path, names: list[str], hop_frames: int, precision: str = "fp32") -> int:
    """The chain of generators of the command."""
    from framekd.predict import predict_file

    return len(predict_file(model, path, names, hop_frames=hop_frames, precision=precision).events)


def authors(folder: Path, name: str, path: Path) -> tuple[float, float]:
    """Run the authors' program on a file; returns wall and CPU seconds from the beginning of decoding."""
    import argparse
    import contextlib
    import io

    sys.path[:1] = [str(folder), str(folder / "site")]  # in place of this folder, whose models.py would hide theirs
    import inference  # type: ignore[import-not-found]
    import torch

    def random_weights(model: Any, checkpoint: str) -> None:
        torch.nn.init.constant_(model.strong_head.bias, -4)

    begin, load = [0.0, 0.0], inference.librosa.core.load

    def timed(*given: Any, **options: Any) -> Any:
        begin[:] = time.perf_counter(), time.process_time()
        return load(*given, **options)

    from models.frame_passt import vit_helpers  # type: ignore[import-not-found]

    vit_helpers.load_pretrained = lambda *_, **__: None  # of ImageNet, which would be overwritten
    inference.PredictionsWrapper.load_checkpoint = random_weights
    inference.librosa.core.load = timed
    about = {"fPaSST": "fpasst", "ASiT": "ASIT"}
    options = argparse.Namespace(
        cuda=False,
        model_name=about.get(name, name),
        audio_file=str(path),
        detection_thresholds=[0.5],
        median_window=12,  # frames: 0.48 s
    )
    with contextlib.redirect_stdout(io.StringIO()):
        inference.sound_event_detection(options)
    return time.perf_counter() - begin[0], time.process_time() - begin[1]


def measure(what: str, name: str, path: Path, seconds: float, folder: Path) -> dict[str, float]:
    """One measurement, in a process of its own: real-time factor and peak memory."""
    import torch

    from framekd.models import build_model

    torch.set_num_threads(2)
    torch.manual_seed(0)
    if what == "authors":
        return found(*authors(folder, name, path), seconds)
    names = [f"class {k}" for k in range(CLASSES)]
    model = build_model(name, n_classes=CLASSES).init_weights(torch.Generator().manual_seed(0)).eval()
    model.frame_head.bias.data.fill_(-4)  # type: ignore[operator]
    run = {"plain": lambda f: plain(model, f, names), "ours": lambda f: ours(model, f, names, 250)}
    run["overlap"] = lambda f: ours(model, f, names, 125)
    run["bf16"] = lambda f: ours(model, f, names, 250, precision="bf16")
    begin, cpu = time.perf_counter(), time.process_time()
    run[what](path)
    return found(time.perf_counter() - begin, time.process_time() - cpu, seconds)


def found(wall: float, used: float, seconds: float) -> dict[str, float]:
    """The result of a measurement."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return {"rtf": wall / seconds, "cpu": used / seconds, "mb": peak}


def noise(path: Path, seconds: float) -> Path:
    """An mp3 file of pink noise."""
    from framekd.audio import ffmpeg_path

    source = ["-f", "lavfi", "-i", f"anoisesrc=color=pink:duration={seconds}:sample_rate=44100:seed=1"]
    subprocess.run([ffmpeg_path(), "-loglevel", "error", *source, "-b:a", "128k", path], check=True)
    return path


def child(what: str, name: str, path: Path, seconds: float, folder: str = "") -> dict[str, float]:
    """Run :func:`measure` in a process of its own."""
    command = [sys.executable, "-W", "ignore", __file__, "--child", what, name, str(path), str(seconds), folder]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        sys.exit(f"{what} {name}: {run.stderr}")
    return json.loads(run.stdout.splitlines()[-1])


def start(name: str, folder: Path) -> dict[str, float]:
    """Wall and CPU seconds of the command on a file of 10 s, with a checkpoint on the disk; the best of three."""
    import torch

    from framekd.checkpoints import save_checkpoint
    from framekd.models import build_model

    model = build_model(name, n_classes=CLASSES).init_weights(torch.Generator().manual_seed(0))
    model.frame_head.bias.data.fill_(-4)  # type: ignore[operator]
    save_checkpoint(folder / "model", model, classes=[f"class {k}" for k in range(CLASSES)], provenance={})
    path, best = noise(folder / "start.mp3", 10), {"wall": math.inf, "cpu": math.inf}
    command = [sys.executable, "-m", "framekd.cli", "predict", str(path), "--model", str(folder / "model")]
    for _ in range(3):
        begin, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        best = {"wall": min(best["wall"], time.perf_counter() - begin), "cpu": min(best["cpu"], used)}
    return best


def has_bf16() -> bool:
    """Whether the processor computes with bfloat16."""
    from framekd.inference import cpu_has_bf16

    return cpu_has_bf16()


def main() -> None:
    """Print a line per model."""
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--models", default=",".join(MODELS))
    given.add_argument("--seconds", type=float, default=120)
    given.add_argument("--long", type=float, default=0)
    given.add_argument("--start", default="", metavar="MODEL")
    given.add_argument("--json")
    given.add_argument("--authors", default="", help="a checkout of github.com/fschmid56/PretrainedSED")
    given.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    options = given.parse_args()
    if options.child:
        what, name, path, seconds, folder = options.child
        print(json.dumps(measure(what, name, Path(path), float(seconds), Path(folder))))
        return
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        short = noise(Path(folder) / "short.mp3", options.seconds)
        for name in filter(None, options.models.split(",")):
            base = "authors" if options.authors else "plain"
            kinds = (base, "ours", "overlap", *(["bf16"] if has_bf16() else []))
            one_by_one = {what: child(what, name, short, options.seconds, options.authors) for what in kinds}
            results[name] = one_by_one
            ratio = one_by_one[base]["cpu"] / one_by_one["ours"]["cpu"]
            cells = [f"{k} {one['rtf']:.3f} ({one['cpu']:.3f}), {one['mb']:.0f} MB" for k, one in one_by_one.items()]
            print(f"{name:7} real-time factor (CPU s per s), peak memory: {'; '.join(cells)}; ratio {ratio:.2f}")
        if options.long:
            path = Path(folder) / "long.mp3"  # frames of mp3 follow each other: no need to encode hours
            path.write_bytes(short.read_bytes() * round(options.long / options.seconds))
            for seconds, file in ((options.seconds, short), (options.long, path)):
                one = results[f"tiny {seconds:g} s"] = child("overlap", "tiny", file, seconds)
                print(f"tiny, {seconds:g} s of mp3: peak memory {one['mb']:.0f} MB, real-time factor {one['rtf']:.4f}")
        if options.start:
            results["start"] = one = start(options.start, Path(folder))
            print(
                f"{options.start}: {one['wall']:.1f} s ({one['cpu']:.1f} CPU s) from the command to the events of 10 s"
            )
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
