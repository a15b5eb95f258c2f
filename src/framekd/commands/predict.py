"""`framekd predict`: events in audio files of any format and length."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framekd.errors import UserError

if TYPE_CHECKING:
    from framekd.commands.recordings import Recording
    from framekd.predict import Prediction


def add(commands: Any) -> None:
    """Add the command's arguments."""
    out = commands.add_parser("predict", help="detect events in audio files of any format and length")
    out.set_defaults(run=predict)
    out.add_argument(
        "files", nargs="+", metavar="FILE", help="files, folders, patterns such as 'a/**/*.mp3'; - is standard input"
    )
    model_arguments(out)
    out.add_argument("--precision", default="fp32", help="fp32, or bf16 on processors and GPUs that have it (fp32)")
    out.add_argument("--out", help="folder for the results (default: beside each file)")
    out.add_argument("--format", default="tsv", help="comma-separated: tsv, json, jsonl, audacity, rttm, csv (tsv)")
    out.add_argument("--top", type=int, default=0, metavar="N", help="also write the N most probable classes of a file")
    out.add_argument("--scores", action="store_true", help="also write the probabilities of all frames as .npz")
    out.add_argument("--plot", action="store_true", help="also write a picture: spectrogram, scores, events")
    out.add_argument("--html", action="store_true", help="also write a page that plays the audio along its events")


def model_arguments(out: argparse.ArgumentParser) -> None:
    """Add the arguments that `predict` and `listen` share."""
    out.add_argument("--model", "--checkpoint", required=True, help="a published model, a checkpoint folder or a run")
    out.add_argument("--device", default="auto", help="auto (the GPU if there is one), cpu, cuda, cuda:1 (auto)")
    out.add_argument(
        "--threshold",
        default="0.5",
        help="probability above which a class is active, or a table of them as framekd thresholds writes it (0.5)",
    )
    out.add_argument("--median", type=float, default=0.48, help="length of the median filter in seconds (0.48)")
    out.add_argument("--classes", action="append", metavar="NAMES", help="look for these classes only")
    out.add_argument("--ontology", help="AudioSet's ontology.json: names of --classes may then be its branches")


def open_for_frames(name: str, device: str) -> tuple[Any, list[str]]:
    """A model on a device, and its classes; UserError if its frame scores mean nothing."""
    from framekd.inference import chosen_device
    from framekd.labels import known_weak
    from framekd.published import open_detector

    model, spec = open_detector(name, device=chosen_device(device))
    classes = list(spec["classes"])
    if classes == list(known_weak().names):
        warn(f"{name}: it was trained on labels of whole clips (Step 2); its frame scores are a guess")
    return model, classes


def options_of(given: argparse.Namespace, classes: Sequence[str]) -> dict[str, Any]:
    """Checked options of :func:`framekd.predict.predict_stream`."""
    from framekd.commands.chosen import chosen_classes
    from framekd.predict import median_frames, threshold_array

    keep = chosen_classes(given.classes, classes, given.ontology) if given.classes else None
    threshold = read_threshold(given.threshold)
    try:
        threshold_array(threshold, classes, known=classes)
    except UserError as error:
        raise UserError(f"--threshold: {error}") from error
    median_frames(given.median)
    return {"threshold": threshold, "median": given.median, "keep": keep}


def read_threshold(text: str) -> float | dict[str, float]:
    """A number, or the table of a file."""
    from framekd.thresholds import read_thresholds

    try:
        return float(text)
    except ValueError:
        return read_thresholds(text)


def predict(given: argparse.Namespace) -> int:
    """Detect events in each file. A file that cannot be read is reported and skipped, and the exit code is 1."""
    from framekd.commands.formats import FORMATS
    from framekd.commands.recordings import collect, on_disk, sentence_about
    from framekd.inference import chosen_precision
    from framekd.windows import model_device

    formats = list(dict.fromkeys(given.format.split(",")))
    if unknown := [name for name in formats if name not in FORMATS]:
        raise UserError(f"--format {unknown[0]!r}: expected one of {', '.join(FORMATS)}")
    if given.top < 0:
        raise UserError(f"--top: expected a number of classes, not {given.top}")
    early_check(given)
    recordings, problems = collect(given.files, given.out)
    for sentence in problems:
        warn(sentence)
    if not recordings:
        return 1
    model, classes = open_for_frames(given.model, given.device)
    precision = chosen_precision(given.precision, model_device(model))
    options, failed = {**options_of(given, classes), "precision": precision}, len(problems)
    with Progress(recordings) as progress:
        for recording in recordings:
            path = recording.path
            try:
                with on_disk(recording) as path:
                    one(recording, path, model, classes, options, given, formats, progress)
            except (UserError, OSError) as error:
                failed += 1
                progress.say(sentence_about(recording, path, error))
            except KeyboardInterrupt:
                return 130
            progress.done(recording)
    return int(failed > 0)


def early_check(given: argparse.Namespace) -> None:
    """Refuse numbers that are out of range before the model is read."""
    try:
        value = float(given.threshold)
    except ValueError:
        value = 0.5
    if not 0 < value < 1:
        raise UserError(f"--threshold: expected a probability between 0 and 1, not {value:g}")
    if not 0 <= given.median <= 10:
        raise UserError(f"--median: expected 0 (no filter) to 10 seconds, not {given.median:g}")


def warn(sentence: str) -> None:
    """Print a sentence on standard error."""
    print(f"framekd: {sentence}", file=sys.stderr)


def one(
    recording: Recording,
    path: Path,
    model: Any,
    classes: Sequence[str],
    options: dict[str, Any],
    given: argparse.Namespace,
    formats: Sequence[str],
    progress: Progress,
) -> None:
    """Write all results of one recording and print a line about it."""
    from framekd.audio import declared_seconds
    from framekd.commands import formats as files
    from framekd.overview import Overview
    from framekd.predict import predict_file

    stem = recording.stem
    names = list(classes) if options["keep"] is None else [classes[k] for k in options["keep"]]
    overview = Overview() if given.plot or given.html else None
    declared = None
    with suppress(subprocess.TimeoutExpired):
        declared = declared_seconds(path) if path.is_file() else None
    with ExitStack() as stack:
        writers = [progress.following(recording, declared)]
        if given.scores:
            writers.append(stack.enter_context(files.score_arrays(files.beside(stem, ".scores.npz"), names)))
        if "csv" in formats:
            writers.append(stack.enter_context(files.score_table(files.beside(stem, ".scores.csv"), names)))

        def on_scores(block: Any) -> None:
            for writer in writers:
                writer(block)

        found = predict_file(
            model,
            path,
            classes,
            on_scores=on_scores,
            on_audio=overview.add_audio if overview else None,
            on_filtered=overview.add_scores if overview else None,
            **options,
        )
    for form in formats:
        if form != "csv":
            files.write_events(stem, form, found.events)
    if given.top:
        files.write_text(files.beside(stem, ".top.tsv"), _top(found, given.top))
    if overview:
        _pictures(stem, path, found, overview, names, options["threshold"], given)
    _report(recording, found, declared, options["threshold"], progress)


def _top(found: Prediction, count: int) -> str:
    table = found.peaks.head(count)
    table = table.assign(score=table.score.map("{:.4f}".format), onset=table.onset.map("{:.3f}".format))
    return table.to_csv(sep="\t", index=False, lineterminator="\n")


def _pictures(
    stem: Path, path: Path, found: Prediction, overview: Any, names: Sequence[str], threshold: Any, given: Any
) -> None:
    from framekd.commands.formats import beside, replacing, write_text
    from framekd.player import page
    from framekd.timeline import detection_timeline

    if given.plot:
        figure = detection_timeline(found, overview, names, threshold=threshold, title=stem.name)
        with replacing(beside(stem, ".png")) as aside:
            figure.savefig(aside, dpi=120)
    if given.html:
        write_text(beside(stem, ".html"), page(path, found, overview, title=stem.name))


def _report(
    recording: Recording, found: Prediction, declared: float | None, threshold: Any, progress: Progress
) -> None:
    """Print how many events there are; of none, the highest scores; and whether the file is shorter than it says."""
    if declared is not None and declared - found.seconds > max(0.5, 0.02 * declared):
        progress.say(
            f"warning: {recording.name} is cut off or damaged: its header says {declared:.1f} s, but "
            f"{found.seconds:.1f} s can be decoded"
        )
    line = f"{recording.name}: {len(found.events)} events in {found.seconds:.1f} s"
    if found.events.empty:
        best = ", ".join(f"{row.event_label} {row.score:.2g}" for row in found.peaks.head(3).itertuples())
        above = "the thresholds" if isinstance(threshold, dict) else f"{threshold:g}"
        line += f" (none above {above}; the highest scores: {best}; --threshold lowers the limit)"
    progress.say(line, prefix="")


class Progress:
    """A bar on a terminal with the time left; files count by their size. Elsewhere only sentences are printed."""

    def __init__(self, recordings: Sequence[Recording]) -> None:
        from tqdm import tqdm

        self.sizes = {one: one.path.stat().st_size if one.path.is_file() else 0 for one in recordings}
        self.base = 0.0
        # Standard error may be replaced while the module is loaded: ask for it now.
        self.bar = tqdm(
            total=max(1, sum(self.sizes.values())),
            disable=None,
            file=sys.stderr,
            leave=False,
            bar_format="{desc} {percentage:3.0f}% |{bar}| {elapsed}, {remaining} left",
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def say(self, sentence: str, *, prefix: str = "framekd: ") -> None:
        """Print a sentence above the bar."""
        self.bar.write(prefix + sentence, file=sys.stderr)

    def following(self, recording: Recording, seconds: float | None) -> Any:
        """A function that moves the bar with each block of frames of a recording of `seconds`."""
        from framekd.units import FRAME_RATE

        frames = 0
        self.bar.set_description(recording.name[-30:])

        def moved(block: Any) -> None:
            nonlocal frames
            frames += len(block)
            share = min(1.0, frames / FRAME_RATE / seconds) if seconds else 0.0
            self._to(self.base + share * self.sizes[recording])

        return moved

    def done(self, recording: Recording) -> None:
        """Count a recording as finished."""
        self.base += self.sizes[recording]
        self._to(self.base)

    def _to(self, place: float) -> None:
        self.bar.update(place - self.bar.n)
