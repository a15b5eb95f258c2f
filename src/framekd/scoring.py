"""Scores of a model on one's own labels: events, or labels of clips. Recordings may have any length.

Files are scored one after the other, so that memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from framekd.audio import decode
from framekd.config import UserError
from framekd.inference import logits
from framekd.labels.tsv import Annotations, unknown_classes
from framekd.metrics import (
    PSDS,
    EventF1,
    decode_events,
    event_f1,
    mean_average_precision,
    median_filter,
    segment_f1,
)
from framekd.models import FrameModel
from framekd.predict import windowed
from framekd.recordings import fit_times, note, read_durations
from framekd.units import CLIP_FRAMES, FRAME_SAMPLES, FRAME_SECONDS, SAMPLE_RATE

COLLAR, OFFSET_SHARE, SEGMENT = 0.2, 0.2, 1.0  # DCASE Task 4: seconds, share of an event's length, seconds
Scored = Iterable[tuple[str, Float[np.ndarray, "frames classes"]]]


@dataclass(frozen=True)
class Scores:
    """Scores on labelled recordings.

    Attributes:
        overall: the scores over all classes, 0 … 1, by name.
        per_class: a row per class, the first column its name, counts and then scores.
        shown: the columns of `per_class` that are scores.
        facts: what was scored and how, by name.
    """

    overall: dict[str, float]
    per_class: pd.DataFrame
    shown: tuple[str, ...]
    facts: dict[str, str]


def known_labels(labels: Annotations, classes: Sequence[str], *, ignore_unknown: bool = False) -> Annotations:
    """The labels whose class the model has.

    Raises:
        UserError: there are others (and `ignore_unknown` is not set), or no others; the message counts them.
    """
    counts = labels.counts()
    strange = unknown_classes(counts, classes)
    if strange is None:
        return labels
    lost = sum(n for name, n in counts.items() if name not in set(classes))
    what = "events" if labels.timed else "clip labels"
    of = f"{labels.path}: {lost} of {counts.total()} {what} have a class that the model lacks: {strange}"
    if lost == counts.total():
        raise UserError(of)
    if not ignore_unknown:
        raise UserError(f"{of}; mend the names, or leave these labels out with --ignore-unknown")
    note(f"{of}; they are left out")
    return labels.select(labels.files, classes)


def clip_seconds(files: Mapping[str, Path], *, progress: bool = False) -> dict[str, float]:
    """Length of each file in seconds. UserError if one cannot be decoded or is empty."""
    out = {}
    for name, path in tqdm(files.items(), desc="reading", unit=" files", disable=not progress):
        out[name] = len(decode(path)) / SAMPLE_RATE
        if not out[name]:
            raise UserError(f"{path}: it has no audio")
    return out


def score_files(
    model: FrameModel,
    spec: Mapping[str, object],
    labels: Annotations,
    files: Mapping[str, Path],
    *,
    durations: str | Path | None = None,
    threshold: float = 0.5,
    median_seconds: float = 0.48,
    progress: bool = False,
) -> Scores:
    """Score a model on labelled files.

    Args:
        spec: the model's specification; `classes`, and `clip_classes` for clip labels, are used.
        labels: of classes that the model has (see :func:`known_labels`).
        files: {file name in the table: path}; other files of the table are left out.
        durations: table of the clips' durations; None: the audio's lengths.
        threshold: probability above which a class is active, for the F-measures.
        median_seconds: length of the median filter.
        progress: show how far it is.
    """
    labels = labels.select(files)
    facts = {"labels": str(labels.path), "files": str(len(files))}
    if not labels.timed:
        return _clip_scores(model, spec, labels, files, median_seconds, facts, progress)
    classes = list(spec["classes"])  # type: ignore[call-overload]
    seconds = clip_seconds(files, progress=progress)
    labels = fit_times(labels, seconds)
    if durations is not None:
        given = read_durations(durations, files)
        if long := [name for name in files if given[name] > seconds[name] + 1]:
            note(f"{durations}: {len(long)} of {len(files)} durations are over 1 s longer than the audio ({long[0]})")
        seconds = {name: max(given[name], labels.events[name][-1][1] if labels.events[name] else 0) for name in files}
    facts |= {"hours": f"{sum(seconds.values()) / 3600:.2f}", "threshold": f"{threshold:g}"}
    facts |= {"median filter": f"{median_seconds:g} s"}

    def scored() -> Scored:
        for name, path in tqdm(files.items(), desc="scoring", unit=" files", disable=not progress):
            found = windowed(model, _waveform(path)).sigmoid().T.contiguous().numpy()
            yield name, median_filter(found, median_seconds)

    return event_scores(scored(), labels, seconds, classes, threshold=threshold, facts=facts)


def _waveform(path: Path) -> Float[Tensor, " samples"]:
    return torch.from_numpy(decode(path)).float() / 32768


def event_scores(
    scored: Scored,
    labels: Annotations,
    seconds: Mapping[str, float],
    classes: Sequence[str],
    *,
    threshold: float,
    facts: Mapping[str, str],
) -> Scores:
    """PSDS1 and F-measures of filtered probabilities that arrive file by file; columns are `classes`."""
    counts = labels.counts()
    evaluated = [name for name in classes if counts[name]]
    columns = [list(classes).index(name) for name in evaluated]
    n_frames = max(CLIP_FRAMES, max(int(np.ceil(s / FRAME_SECONDS - 1e-6)) for s in seconds.values()))
    stamps = np.arange(n_frames + 1) * FRAME_SECONDS
    psds = PSDS(evaluated, labels.events, seconds, timestamps=stamps)
    found = {}
    for name, values in scored:
        values = values[:n_frames, columns]
        # Frames after the end of a clip are below every threshold.
        whole = np.full((n_frames, len(columns)), -1, np.float32)
        whole[: len(values)] = values
        psds.add([name], whole[None])
        edges = stamps[: len(values) + 1]
        found[name] = decode_events(values, evaluated, threshold, timestamps=edges, duration=seconds[name])
    result = psds.result()
    collars = event_f1(labels.events, found, collar=COLLAR, offset_share=OFFSET_SHARE, classes=evaluated)
    segments = segment_f1(labels.events, found, segment_seconds=SEGMENT, classes=evaluated)
    overall = {
        "psds1": result.at(0.0),
        "psds1_with_penalty": result.at(1.0),
        "event_f1": collars.macro_f1,
        "event_f1_all_events": collars.f1,
        "segment_f1": segments.macro_f1,
        "segment_f1_all_segments": segments.f1,
    }
    rows = []
    for name in evaluated:
        truth, detected, hits = collars.counts[name]
        rows.append(
            {
                "class": name,
                "clips": sum(name in clip for clip in labels.clip_labels.values()),
                "events": truth,
                "detected": detected,
                "psds1": result.per_class[name],
                "event_f1": _of(collars, name),
                "event_precision": hits / detected if detected else 0.0,
                "event_recall": hits / truth,
                "segment_f1": _of(segments, name),
            }
        )
    about = {**facts, "events": str(sum(counts.values())), "classes": f"{len(evaluated)} of the model's {len(classes)}"}
    return Scores(overall, pd.DataFrame(rows), ("psds1", "event_f1", "segment_f1"), about)


def _of(result: EventF1, name: str) -> float:
    return result.per_class.get(name, 0.0)


# -- labels of clips ------------------------------------------------------------------------------------------------


def uses_clip_head(model: FrameModel, spec: Mapping[str, object]) -> bool:
    """Whether clips are scored by the clip head: it was trained if its classes differ from the frame head's (Step 2),
    or if it pools the frames by attention. Otherwise a clip's score is the highest of its frames."""
    return model.head == "attention" or spec.get("clip_classes") not in (None, spec["classes"])


def clip_classes(model: FrameModel, spec: Mapping[str, object]) -> list[str]:
    """The classes of a model's clip scores."""
    return list(spec["clip_classes" if uses_clip_head(model, spec) else "classes"])  # type: ignore[call-overload]


@torch.inference_mode()
def clip_probabilities(model: FrameModel, waveform: Float[Tensor, " samples"]) -> Float[np.ndarray, " classes"]:
    """Probabilities of a recording by the clip head: the highest of its windows of 10 s, the last padded with zeros."""
    length = CLIP_FRAMES * FRAME_SAMPLES
    count = max(1, -(-len(waveform) // length))
    padded = torch.nn.functional.pad(waveform, (0, count * length - len(waveform))).view(count, length)
    device = next(model.parameters()).device
    parts = [logits(model, model.frontend(part.to(device)))[1] for part in padded.split(16)]
    return torch.cat(parts).amax(0).sigmoid().cpu().numpy()


def _clip_scores(
    model: FrameModel,
    spec: Mapping[str, object],
    labels: Annotations,
    files: Mapping[str, Path],
    median_seconds: float,
    facts: dict[str, str],
    progress: bool,
) -> Scores:
    by_head, classes = uses_clip_head(model, spec), clip_classes(model, spec)
    values = np.empty((len(files), len(classes)), np.float32)
    for i, (name, path) in enumerate(tqdm(files.items(), desc="scoring", unit=" files", disable=not progress)):
        waveform = _waveform(path)
        if not len(waveform):
            raise UserError(f"{name}: it has no audio")
        if by_head:
            values[i] = clip_probabilities(model, waveform)
        else:
            frames = windowed(model, waveform).sigmoid().T.contiguous().numpy()
            values[i] = median_filter(frames, median_seconds).max(0)
    return clip_scores(values, [labels.clip_labels[name] for name in files], classes, facts=facts)


def clip_scores(
    values: Float[np.ndarray, "clips classes"],
    wanted: Sequence[Sequence[str]],
    classes: Sequence[str],
    *,
    facts: Mapping[str, str],
) -> Scores:
    """Mean average precision of clip scores, and the accuracy where every clip has exactly one label.

    Args:
        values: any monotone scores.
        wanted: labels of each clip.
        classes: names of the columns.
    """
    targets = np.array([[name in set(labels) for name in classes] for labels in wanted])
    result = mean_average_precision(values, targets, classes)
    overall = {"map": result.value}
    present = [k for k in range(len(classes)) if targets[:, k].any()]
    if all(len(set(labels)) == 1 for labels in wanted):
        best = np.array(present)[values[:, present].argmax(1)]
        overall["accuracy"] = float(np.mean([classes[k] in labels for k, labels in zip(best, wanted)]))
        overall["accuracy_of_chance"] = 1 / len(present)
    overall["map_of_chance"] = float(targets[:, present].mean())
    rows = [
        {"class": classes[k], "clips": int(targets[:, k].sum()), "average_precision": result.per_class[classes[k]]}
        for k in present
    ]
    about = {**facts, "classes": f"{len(present)} of the model's {len(classes)}"}
    return Scores(overall, pd.DataFrame(rows), ("average_precision",), about)
