"""How fast AudioSet's labels and audio are read, compared with the authors' loader on the same clips.

    python benchmarks/data.py [--clips 300] [--rows 100000] [--weak-rows 2000000] [--json FILE]

Times are CPU seconds of one thread, so a busy machine changes them little. The authors' loader decodes mp3 bytes to
floats and resamples them from 32 to 16 kHz each time a clip is read; here libsndfile and torchaudio's Kaiser resampler
do that. Labels and audio are synthetic, in the published formats and sizes.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import multiprocessing
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import soundfile
import torch
import torchaudio

from framekd import events
from framekd.acquire import plan_clips
from framekd.audio import decode, ffmpeg_path
from framekd.config import LABEL_FILES, Augment, TrainRecipe
from framekd.data import Cutter, Loader, strong_set
from framekd.labels import ClassList, known_strong, known_weak, read_strong
from framekd.soft_labels import SoftLabels
from framekd.store import StoredClip, write_shard
from framekd.units import CLIP_FRAMES, CLIP_SECONDS, SAMPLE_RATE

CLIP_SAMPLES = int(CLIP_SECONDS * SAMPLE_RATE)
HEADER = "segment_id\tstart_time_seconds\tend_time_seconds\tlabel\n"


def cpu(function: Callable[[], object], *, repeats: int = 3) -> float:
    """Smallest CPU time of `repeats` calls, in seconds."""
    times = []
    for _ in range(repeats):
        gc.collect()
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def children(function: Callable[[], object]) -> float:
    """CPU time of the processes that a call starts and waits for, in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    function()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def video(i: int) -> str:
    return f"-bench_{i:04d}" if i < 10_000 else f"{i:011d}"


def recordings(folder: Path, n: int) -> list[bytes]:
    """`n` mp3 files of 10 s at 32 kHz, as bytes."""
    wave = folder / "all.wav"
    noise = f"anoisesrc=d={n * CLIP_SECONDS}:r=32000:c=pink:a=0.3:seed=1"
    run = [ffmpeg_path(), "-loglevel", "error", "-y"]
    subprocess.run([*run, "-f", "lavfi", "-i", noise, wave], check=True)
    split = ["-f", "segment", "-segment_time", str(CLIP_SECONDS), "-c:a", "libmp3lame", "-b:a", "96k"]
    subprocess.run([*run, "-i", wave, *split, folder / "%05d.mp3"], check=True)
    return [(folder / f"{i:05d}.mp3").read_bytes() for i in range(n)]


def strong_file(path: Path, rows: int, clips: int, classes: ClassList) -> Path:
    """A strong TSV of `rows` events in `clips` clips, class frequencies as uneven as the real ones."""
    rng = np.random.default_rng(0)
    share = 1 / np.arange(1, len(classes) + 1)
    label = rng.choice(len(classes), rows, p=share / share.sum())
    onset = rng.uniform(0, 9.5, rows)
    offset = np.minimum(onset + rng.exponential(1.5, rows) + 0.01, 10)
    clip = np.sort(rng.integers(0, clips, rows))
    clip[:clips] = np.arange(clips)
    with path.open("w") as file:
        file.write(HEADER)
        for c, a, b, k in zip(np.sort(clip).tolist(), onset.tolist(), offset.tolist(), label.tolist()):
            file.write(f"{video(c)}_30000\t{a:.3f}\t{b:.3f}\t{classes.mids[k]}\n")
    return path


def theirs(mp3: list[bytes]) -> torch.Tensor:
    """What the authors' loader does: decode, take the first channel and resample each clip."""
    resample = torchaudio.transforms.Resample(32_000, SAMPLE_RATE, resampling_method="sinc_interp_kaiser")
    out = torch.zeros(len(mp3), CLIP_SAMPLES)
    for row, data in zip(out, mp3):
        wave = resample(torch.from_numpy(soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)[0][:, 0]))
        row[: min(len(wave), len(row))] = wave[: len(row)]
    return out


def audio(folder: Path, n: int) -> list[tuple]:
    """Random access to stored clips, compared with decoding them each time."""
    mp3 = recordings(folder, n)
    samples = [decode(data)[:CLIP_SAMPLES] for data in mp3]
    classes = known_strong()[0]
    labels = strong_file(folder / "strong.tsv", 9 * n, n, classes)
    names = sorted(f"{video(i)}_30000" for i in range(n))
    order = np.random.default_rng(0).permutation(n)
    rows, made = [], {}
    for encoding in ("pcm", "flac"):
        path = folder / f"{encoding}.h5"
        clips = (StoredClip(name, 30_000, wave) for name, wave in zip(names, samples))
        writing = cpu(partial(write_shard, path, clips, encoding=encoding), repeats=1)
        made[encoding] = strong_set([path], labels, classes)
        gatherer, zeros = Cutter(made[encoding]).gatherer, np.zeros(n, np.int64)

        def read(gatherer=gatherer, zeros=zeros) -> None:
            for k in range(0, n, 32):
                gatherer.audio(order[k : k + 32], zeros[k : k + 32])

        read()
        rows.append((f"random access, {encoding}, clips/s", n / cpu(read), 2000 if encoding == "pcm" else None))
        rows.append((f"store size, {encoding}, kB a clip", path.stat().st_size / n / 1000, None))
        rows.append((f"writing, {encoding}, clips/s", n / writing, None))
    authors = n / cpu(lambda: theirs(mp3))
    rows.append(("authors' way (mp3 bytes → float → 16 kHz), clips/s", authors, None))
    rows.append(("random access, pcm, times the authors' way", rows[0][1] / authors, 10))
    rows += loading(made["pcm"], n)
    rows += student(folder, made["pcm"], n)
    return rows


def loading(clips, n: int) -> list[tuple]:
    """Whole training batches: waveforms and labels of 447 classes x 250 frames, with and without mixing."""
    rows = []
    for name, wavmix in (("", 0.0), (", half of them mixed", 0.5)):
        recipe = TrainRecipe(batch_size=32, epoch_clips=n - n % 32, sampler="balanced", augment=Augment(wavmix=wavmix))
        loader = Loader(clips, recipe, seed=0)

        def epoch(loader=loader) -> None:
            for step in range(loader.steps_per_epoch):
                loader.batch(step)

        epoch()
        rows.append((f"training batches, 447 classes{name}, clips/s", recipe.epoch_clips / cpu(epoch), None))
    return rows


class Buffers:
    """Tensors that are used again, as torch's allocator of pinned memory does beside a GPU."""

    def __init__(self) -> None:
        self.free: dict[tuple, list[torch.Tensor]] = {}
        self.used: list[tuple[tuple, torch.Tensor]] = []

    def __call__(self, shape, *, dtype: torch.dtype) -> torch.Tensor:
        key = (1 << (int(np.prod(shape)) - 1).bit_length() if np.prod(shape) else 0, dtype)
        spare = self.free.get(key, [])
        flat = spare.pop() if spare else torch.empty(key[0], dtype=dtype)
        self.used.append((key, flat))
        return flat[: int(np.prod(shape))].view(*shape)

    def release(self) -> None:
        """The copies to the GPU are done."""
        for key, flat in self.used:
            self.free.setdefault(key, []).append(flat)
        self.used = []


def copying(audio: Path, soft: Path, loader: Loader, buffers: Buffers) -> Callable[[], None]:
    """Reads what the batches of `loader` read from two files, at places of the same number and size, by plain calls."""
    draws = [loader.draw(step) for step in range(loader.steps)]
    handles = [os.open(path, os.O_RDONLY) for path in (audio, soft)]
    sizes = [2 * CLIP_SAMPLES, 2 * len(loader.cutter.clips.classes) * CLIP_FRAMES]

    def work() -> None:
        for draw in draws:
            for clips in (draw.clips, *(() if draw.mix is None else (draw.mix.partners,))):
                for handle, size in zip(handles, sizes):
                    out = buffers((len(clips), size), dtype=torch.uint8).numpy()
                    for row, clip in zip(out, clips.tolist()):
                        os.preadv(handle, [row], 2048 + clip * size)
            buffers.release()

    return work


def student(folder: Path, clips, n: int, batch_size: int = 256) -> list[tuple]:
    """The host's part of a student's batches, beside whole batches made on a CPU."""
    path = folder / "ensemble.h5"
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file["filenames"] = np.array([name.encode() for name in clips.ids])
        shape = (len(clips), len(clips.classes), CLIP_FRAMES)
        file["strong_logits"] = rng.standard_normal(shape, np.float32).astype(np.float16)
    recipe = TrainRecipe(batch_size=batch_size, epoch_clips=4 * batch_size, epochs=1, augment=Augment(wavmix=0.5))
    loader = Loader(clips, recipe, seed=0, soft=SoftLabels(path, clips.classes))
    loaders = [(loader, Buffers()) for _ in range(2)]

    def gather(which: int = 0) -> None:
        one, buffers = loaders[which]
        for step in range(loader.steps):
            one.cutter.gatherer(one.draw(step), empty=buffers)
            buffers.release()

    def whole() -> None:
        for step in range(loader.steps):
            loader.batch(step)

    def both(work: Callable[[int], None]) -> float:
        start = time.perf_counter()
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(work, (0, 1)))
        return time.perf_counter() - start

    gather()
    gather(1)
    bare = [copying(clips.audio.shards[0].path, path, loader, buffers) for _, buffers in loaders]
    host, plain, made = [], [], []
    for _ in range(3):  # in turn, so that other work on the machine slows both
        host.append(cpu(gather, repeats=1))
        plain.append(cpu(bare[0], repeats=1))
        made.append(cpu(whole, repeats=1))
    two = [(both(gather), both(lambda which: bare[which]())) for _ in range(3)]
    count = recipe.epoch_clips
    ratio = float(np.median([b / a for a, b in zip(host, made)]))
    return [
        ("student batch of 256, the host's part (audio, events, soft labels), clips/s a core", count / min(host), 8000),
        ("as many bytes of the same files, read into the same buffers and nothing else", count / min(plain), None),
        ("the host's part, two threads, clips/s of the clock", 2 * count / min(wall for wall, _ in two), 16000),
        ("as many bytes, two threads", 2 * count / min(wall for _, wall in two), None),
        ("the same batch made whole on the CPU, clips/s a core", count / min(made), None),
        ("host part, times the whole batch's rate", ratio, 5),
    ]  # fmt: skip


def targets(folder: Path, n: int) -> list[tuple]:
    """From a label file of `n` rows to the targets and sampling weights of all clips."""
    classes = known_strong()[0]
    clips = n // 9
    path = strong_file(folder / "rows.tsv", n, clips, classes)
    store = folder / "empty.h5"
    write_shard(store, (StoredClip(name, 0, np.zeros(0, np.int16)) for name in sorted(read_strong(path).clips)))

    def everything() -> None:
        made = strong_set([store], path, classes)
        clip, label, amount = made.activity()
        events.balanced_weights(clip, label, amount, len(made), len(classes))
        cutter, share = Cutter(made), np.ones(256, np.float32)
        for k in range(0, len(made), 256):
            rows = np.arange(k, min(k + 256, len(made)))
            marks = cutter.gatherer.marks(rows, np.zeros(len(rows), np.int64), share[: len(rows)], None)
            cutter.paint(marks, len(rows))

    return [(f"{n:,} label rows to all targets and weights, s", cpu(everything, repeats=1), 20)]


def planning(folder: Path, n_weak: int) -> list[tuple]:
    """Listing the clips of the whole of AudioSet."""
    train, evaluated, _ = known_strong()
    weak = known_weak()
    paths = {name: folder / file for name, file in LABEL_FILES.items()}
    strong_file(paths["train_strong"], 934_821, 103_463, train)
    strong_file(paths["eval_strong"], 139_538, 16_996, evaluated)
    names = {mid: name for c in (train, evaluated) for mid, name in zip(c.mids, c.names)}
    paths["mid_to_display_name"].write_text("".join(f"{mid}\t{name}\n" for mid, name in names.items()))
    rng = np.random.default_rng(0)
    for name, n in (("balanced_train", n_weak // 100), ("unbalanced_train", n_weak), ("eval", n_weak // 100)):
        with paths[name].open("w") as file:
            offset = {"balanced_train": 0, "unbalanced_train": 10**7, "eval": 2 * 10**7}[name]
            for i, (a, b) in enumerate(rng.integers(0, 527, (n, 2)).tolist()):
                file.write(f'{offset + i:011d}, 30.000, 40.000, "{weak.mids[a]},{weak.mids[b]}"\n')
    options: dict[str, Any] = dict(
        weak_splits=("balanced_train", "unbalanced_train"), expected_classes=(447, 416, 407), shards=200
    )
    out = folder / "clips.tsv"
    more = f"{n_weak:,} clips of AudioSet Weak"
    return [
        (
            f"plan of AudioSet Strong (1.07 million rows) beside {more}, s",
            cpu(lambda: plan_clips(paths, out, group="strong", **options), repeats=1),
            None,
        ),
        (
            f"plan of {more}, s",
            cpu(lambda: plan_clips(paths, out, group="weak", **options), repeats=1),
            None,
        ),
    ]


def _decode(path: Path) -> None:
    for _ in range(20):
        decode(path, 5, 10)


def decoding(folder: Path) -> list[tuple]:
    """Decoding, resampling and cutting of a downloaded clip."""
    rows = []
    for suffix, codec in (("webm", "libopus"), ("m4a", "aac"), ("mp3", "libmp3lame")):
        path = folder / f"d.{suffix}"
        noise = ["-f", "lavfi", "-i", "anoisesrc=d=20:r=48000:c=pink:a=0.3", "-ac", "2"]
        subprocess.run([ffmpeg_path(), "-loglevel", "error", "-y", *noise, "-c:a", codec, path], check=True)
        cost = children(partial(_decode, path)) / 20
        rows.append((f"20 s of stereo {suffix} to a 10-s clip, ms", 1000 * cost, None))
    return rows


def _worker(path: str, labels: str, beside_gpu: bool, queue) -> None:
    """Report the peak memory of making batches of 256, or only the part of them that is made beside a GPU."""
    torch.set_num_threads(1)
    clips = strong_set([path], labels, known_strong()[0])
    recipe = TrainRecipe(batch_size=256, epoch_clips=1024, sampler="balanced", augment=Augment(wavmix=0.5))
    loader = Loader(clips, recipe, seed=0)
    peak = 0.0
    for step in range(4):
        made = loader.gather(step) if beside_gpu else loader.batch(step)
        peak = max(peak, _anonymous())
        del made
    queue.put(peak)


def _anonymous() -> float:
    """Private memory of this process in MB, without the pages of mapped files, which the system can drop."""
    text = Path("/proc/self/status").read_text().split()
    return int(text[text.index("RssAnon:") + 1]) / 1024


def memory(folder: Path, n: int) -> list[tuple]:
    """Private memory of a process that makes batches of 256."""
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    rows = []
    for beside_gpu, where in ((True, "beside a GPU"), (False, "on the CPU")):
        arguments = (str(folder / "pcm.h5"), str(folder / "strong.tsv"), beside_gpu, queue)
        process = context.Process(target=_worker, args=arguments)
        process.start()
        goal = 500 if beside_gpu else None
        rows.append((f"private memory of a loader, batch 256 {where}, MB", queue.get(), goal))
        process.join()
    return rows


def everything(folder: Path, given: argparse.Namespace) -> list[tuple]:
    """All measurements."""
    rows = audio(folder, given.clips)
    rows += memory(folder, given.clips)
    rows += decoding(folder)
    rows += targets(folder, given.rows)
    return rows + planning(folder, given.weak_rows)


def noise(folder: Path, n: int):
    """A set of `n` clips of noise with 9 events each."""
    rng, classes = np.random.default_rng(0), known_strong()[0]
    names = sorted(f"{video(i)}_30000" for i in range(n))
    samples = (rng.integers(-9000, 9000, CLIP_SAMPLES).astype(np.int16) for _ in names)
    write_shard(folder / "noise.h5", (StoredClip(name, 30_000, wave) for name, wave in zip(names, samples)))
    return strong_set([folder / "noise.h5"], strong_file(folder / "strong.tsv", 9 * n, n, classes), classes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=300)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--weak-rows", type=int, default=2_000_000)
    parser.add_argument("--only", choices=["student"], help="the input of a student's training, in a minute")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[tuple] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.only:
            rows += student(folder, noise(folder, given.clips), given.clips)
        else:
            rows += everything(folder, given)
    print("| measured | value | goal |\n|---|---|---|")
    for what, value, goal in rows:
        bound = "" if goal is None else f"{'≥' if 'clips/s' in what or 'times' in what else '≤'} {goal:,}"
        print(f"| {what} | {value:,.1f} | {bound} |")
    if given.json:
        given.json.write_text(json.dumps([dict(zip(("measured", "value", "goal"), row)) for row in rows], indent=1))


if __name__ == "__main__":
    main()
