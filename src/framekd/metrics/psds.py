"""Polyphonic Sound Detection Score, exact, for scores that come clip by clip.

Definition: Bilen et al., ICASSP 2020, computed for all thresholds at once (Ebbers et al., ICASSP 2022), as in
sed_scores_eval's intersection_based.psds without cross triggers. PSDS1 of the paper: dtc = gtc = 0.7, e_max = 100 false
positives per hour, and the mean over classes (alpha_st = 0) or the mean minus the standard deviation (alpha_st = 1).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from framekd.config import UserError
from framekd.metrics._compile import cores, kernels
from framekd.metrics._tiles import Tile, as_numpy, check_stamps, exact_type, false_positive_limit, frame_stamps
from framekd.metrics.truth import Events, check_same_clips, first_five, prepare_truth

_BLOCK = 32  # clips handed to the threads at a time: 13 MB of scores at 250 x 407


@dataclass(frozen=True)
class PSDSResult:
    """A PSDS with all that is needed to find out why another one differs.

    value: 0..1 under `settings`; per_class: {class: PSDS of that class}, without penalty; efpr [limit + 1]: false
    positives per hour; tpr [classes, limit + 1]: highest true-positive rate with at most that many false positives;
    common: the same on the intersection with the list of clips given.
    """

    value: float
    per_class: dict[str, float]
    settings: dict[str, Any]
    counts: dict[str, Any]
    coverage: dict[str, Any]
    merged_events: int
    ignored_events: int
    dropped_clips: tuple[str, ...]
    classes_without_truth: tuple[str, ...]
    events_per_class: dict[str, int]
    efpr: np.ndarray
    tpr: np.ndarray
    common: PSDSResult | None = None

    def at(self, alpha_st: float) -> float:
        """PSDS with another penalty of the spread between classes: 0 none, 1 DCASE's. No re-evaluation."""
        return _area(self.efpr, self.tpr, self.settings["e_max"], alpha_st)

    @property
    def mean_curve(self) -> np.ndarray:
        """[limit + 1] effective true-positive rate under the result's own alpha_st, over efpr."""
        alpha = self.settings["alpha_st"]
        return np.maximum(self.tpr.mean(0) - alpha * self.tpr.std(0), 0.0)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the curves, ready for JSON."""
        return {
            "value": self.value,
            "with_penalty": self.at(1.0),
            "without_penalty": self.at(0.0),
            "per_class": self.per_class,
            "events_per_class": self.events_per_class,
            "settings": self.settings,
            "counts": self.counts,
            "coverage": self.coverage,
            "merged_events": self.merged_events,
            "ignored_events": self.ignored_events,
            "dropped_clips": {"count": len(self.dropped_clips), "first": list(self.dropped_clips[:5])},
            "classes_without_truth": list(self.classes_without_truth),
            "common": None if self.common is None else self.common.to_dict(),
        }

    def __str__(self) -> str:
        c, s = self.counts, self.settings
        return (
            f"PSDS {self.value:.6f} (dtc {s['dtc']}, gtc {s['gtc']}, e_max {s['e_max']}/h, alpha_st {s['alpha_st']}; "
            f"{c['clips']} clips, {c['events']} events, {c['hours']:.3f} h, {c['classes']} classes; "
            f"{len(self.dropped_clips)} clips without events left out, {self.merged_events} touching events merged)"
        )


def _area(efpr: np.ndarray, tpr: np.ndarray, e_max: float, alpha_st: float) -> float:
    widths = np.diff(np.append(efpr, e_max)) / e_max
    if alpha_st == 0:
        return float((tpr @ widths).mean())
    return float(np.maximum(tpr.mean(0) - alpha_st * tpr.std(0), 0.0) @ widths)


class PSDS:
    """PSDS of scores that arrive in any order and any portions; memory does not grow with the number of clips.

    classes: evaluated classes; ground_truth {clip: [(onset, offset, class), …]}; durations {clip: seconds};
    timestamps [frames + 1] seconds (None: 40-ms frames up to 10 s); score_classes: names of the scores' columns where
    they are not `classes` themselves (a model with 447 outputs, 407 evaluated); common_clips: evaluate the clips that
    are also in this list too (result().common); notes: further settings to be carried by the result (e.g. the median
    filter); the other options as in `prepare_truth`. Raises UserError for inputs that do not fit together.
    """

    def __init__(
        self,
        classes: Sequence[str],
        ground_truth: Events,
        durations: Mapping[str, float],
        *,
        timestamps: Any = None,
        dtc: float = 0.7,
        gtc: float = 0.7,
        e_max: float = 100.0,
        alpha_st: float = 0.0,
        score_classes: Sequence[str] | None = None,
        drop_clips_without_events: bool = False,
        other_classes: str = "refuse",
        empty_classes: str = "refuse",
        only_clips: Iterable[str] | None = None,
        common_clips: Iterable[str] | None = None,
        notes: Mapping[str, Any] | None = None,
        threads: int | None = None,
    ) -> None:
        limits = {"dtc": (dtc, 1.0), "gtc": (gtc, 1.0), "e_max": (e_max, 1e9), "alpha_st": (alpha_st, 1e9)}
        for name, (value, top) in limits.items():
            if not 0 <= value <= top or (name == "e_max" and value == 0):
                raise ValueError(f"{name} must lie between 0 and {top:g}, but is {value}.")
        options = {
            "drop_clips_without_events": drop_clips_without_events,
            "other_classes": other_classes,
            "empty_classes": empty_classes,
        }
        only = None if only_clips is None else set(only_clips)
        self.truth = prepare_truth(ground_truth, durations, classes, only_clips=only, **options)  # type: ignore[arg-type]
        if not self.truth.clips:
            raise UserError("No clip is left to evaluate.")
        self._known = set(durations)
        self._columns = _columns(self.truth.classes, score_classes or list(classes))
        self._stamps = None if timestamps is None else check_stamps(timestamps)
        self._limit = false_positive_limit(self.truth.seconds, e_max)
        self._settings = {
            "metric": "PSDS", "dtc": dtc, "gtc": gtc, "cttc": None, "alpha_ct": 0.0, "alpha_st": alpha_st,
            "e_max": e_max, "e_max_unit": "per hour", "time_decimals": 6, **options,
            "frames": None if self._stamps is None else len(self._stamps) - 1,
            "timestamps": "40 ms up to 10 s" if timestamps is None else "given", **(notes or {}),
        }  # fmt: skip
        self._threads = cores(threads)
        self._tiles: list[Tile] | None = None
        self._seen: set[str] = set()
        self._held: list[str] = []
        self._buffer = np.empty((0, 0, 0), dtype=np.float32)
        self._list_size = None if only is None else len(only)
        self._common: PSDS | None = None
        if common_clips is not None:
            both = set(common_clips) if only is None else set(common_clips) & only
            self._common = PSDS(
                classes, ground_truth, durations, timestamps=timestamps, dtc=dtc, gtc=gtc, e_max=e_max,
                alpha_st=alpha_st, score_classes=score_classes, drop_clips_without_events=drop_clips_without_events,
                other_classes=other_classes, empty_classes="drop", only_clips=both, notes=notes, threads=threads,
            )  # fmt: skip

    def add(self, clips: str | Sequence[str], scores: Any) -> None:
        """Scores of one clip [frames, classes] or of several [clips, frames, classes]; numpy or torch, any device.

        Single clips are copied and gathered into blocks. Clips that the truth leaves out are ignored; a clip without
        ground truth, one that came before, and NaN raise UserError.
        """
        single = isinstance(clips, str)
        array = as_numpy(scores)
        names = [clips] if isinstance(clips, str) else list(clips)
        if single:
            array = array[None]
        if array.ndim != 3 or len(array) != len(names):
            raise UserError(
                f"Scores of {len(names)} clips must have the shape [clips, frames, classes], but have {array.shape}."
            )
        if array.shape[2] != self._width:
            raise UserError(f"Scores have {array.shape[2]} columns, but there are {self._width} classes.")
        self._check_new(names)
        if self._common is not None:
            self._common.add(names, array)
        self._set_frames(array.shape[1])
        if len(names) >= _BLOCK:
            for i in range(0, len(names), _BLOCK):
                self._count(names[i : i + _BLOCK], array[i : i + _BLOCK])
        else:
            for name, row in zip(names, array):
                self._hold(name, row)

    @property
    def _width(self) -> int:
        return self._columns[1]

    def _check_new(self, names: list[str]) -> None:
        strange = [name for name in names if name not in self._known]
        if strange:
            missing = set(self.truth.clips) - self._seen
            raise UserError(
                f"Scores came for {len(strange)} clips without ground truth: {first_five(strange)}; "
                f"scores are still missing for {len(missing)} clips: {first_five(missing)}."
            )
        twice = [name for name in names if name in self._seen] or [n for n in set(names) if names.count(n) > 1]
        if twice:
            raise UserError(f"Scores came twice for {len(twice)} clips: {first_five(twice)}.")
        self._seen.update(names)

    def _set_frames(self, n_frames: int) -> None:
        if self._stamps is None:
            self._stamps = frame_stamps(n_frames)
        if len(self._stamps) - 1 != n_frames:
            raise UserError(
                f"Scores have {n_frames} frames and need {n_frames + 1} timestamps, but there are {len(self._stamps)}."
            )
        if self._tiles is None:
            self._settings["frames"] = n_frames
            self._limit = min(self._limit, len(self.truth.clips) * ((n_frames + 1) // 2))
            n = len(self.truth.classes)
            width = min(64, 16 * -(-n // (64 * self._threads)))  # whole vectors, a few tiles for every thread
            self._tiles = [Tile(c, min(c + width, n), self._limit, n_frames) for c in range(0, n, width)]

    def _hold(self, name: str, row: np.ndarray) -> None:
        """Copy one clip into the block that is being filled; count the block when it is full."""
        kind = exact_type(row.dtype)
        if self._buffer.dtype != kind or self._buffer.shape[1:] != row.shape:
            self._flush()
            self._buffer = np.empty((_BLOCK, *row.shape), dtype=kind)
        self._buffer[len(self._held)] = row
        self._held.append(name)
        if len(self._held) == _BLOCK:
            self._flush()

    def _flush(self) -> None:
        held, self._held = self._held, []
        if held:
            self._count(held, self._buffer[: len(held)])

    def _count(self, names: list[str], scores: np.ndarray) -> None:
        assert self._tiles is not None and self._stamps is not None
        keep = [i for i, name in enumerate(names) if name in self.truth.row]
        if len(keep) < len(names):
            names, scores = [names[i] for i in keep], scores[keep]
        if not names:
            return
        if self._columns[0] is not None:
            scores = scores[:, :, self._columns[0]]
        scores = np.ascontiguousarray(scores, dtype=exact_type(scores.dtype))
        top = scores.max(axis=1)
        if np.isnan(top).any():
            raise UserError(f"The scores of clip {names[int(np.isnan(top).any(axis=1).argmax())]} contain NaN.")
        # once nothing under the dead intervals can come back, minima do not matter
        low = top if all(tile.tail.all() for tile in self._tiles) else scores.min(axis=1)
        rows = np.array([self.truth.row[name] for name in names], dtype=np.int64)
        tolerance = self._settings["dtc"], self._settings["gtc"]
        self._each_tile(lambda tile: tile.add((scores, top, low), rows, self.truth, self._stamps, tolerance))

    def _each_tile(self, work: Any) -> list[Any]:
        kernels("psds")  # compile, or load, before threads ask for it
        assert self._tiles is not None
        if self._threads == 1 or len(self._tiles) == 1:
            return [work(tile) for tile in self._tiles]
        with ThreadPoolExecutor(self._threads) as pool:
            return list(pool.map(work, self._tiles))

    def result(self) -> PSDSResult:
        """The score so far complete: refuses while clips with ground truth lack scores (first five named)."""
        self._flush()
        missing = set(self.truth.clips) - self._seen
        if missing or self._tiles is None:
            raise UserError(
                f"{len(missing)} of {len(self.truth.clips)} clips with ground truth have no scores: "
                f"{first_five(missing)}; scores without ground truth: none."
            )

        def curve(tile: Tile) -> np.ndarray:
            tile.compact()
            best = np.empty((tile.c1 - tile.c0, self._limit + 1), dtype=np.int64)
            for k in range(len(best)):
                kernels("psds").best_hits(tile.score[k], tile.fp[k], tile.tp[k], tile.count[k], best[k])
            return best

        best = np.concatenate(self._each_tile(curve))
        return self._report(best / np.maximum(self.truth.events_per_class, 1)[:, None])

    def _report(self, tpr: np.ndarray) -> PSDSResult:
        truth, settings = self.truth, dict(self._settings)
        efpr = np.arange(self._limit + 1) / truth.seconds * 3600
        per_class = tpr @ (np.diff(np.append(efpr, settings["e_max"])) / settings["e_max"])
        return PSDSResult(
            value=_area(efpr, tpr, settings["e_max"], settings["alpha_st"]),
            per_class=dict(zip(truth.classes, map(float, per_class))),
            settings=settings,
            counts=truth.counts(),
            coverage={
                "clips_scored": len(truth.clips),
                "clips_with_ground_truth": len(self._known),
                "clips_in_list": self._list_size,
                "in_list_without_ground_truth": truth.missing_from_scores,
                "outside_list": truth.outside_list,
            },
            merged_events=truth.merged,
            ignored_events=truth.ignored_events,
            dropped_clips=truth.dropped_clips,
            classes_without_truth=truth.classes_without_truth,
            events_per_class=dict(zip(truth.classes, map(int, truth.events_per_class))),
            efpr=efpr,
            tpr=tpr,
            common=None if self._common is None else self._common.result(),
        )


def _columns(evaluated: list[str], given: Sequence[str]) -> tuple[np.ndarray | None, int]:
    """Where the evaluated classes stand among the scores' columns (None: just so), and the number of columns."""
    place = {name: i for i, name in enumerate(given)}
    absent = [name for name in evaluated if name not in place]
    if absent:
        raise UserError(f"The scores have no column for {len(absent)} evaluated classes: {first_five(absent)}.")
    columns = np.array([place[name] for name in evaluated])
    same = len(columns) == len(given) and (columns == np.arange(len(given))).all()
    return (None if same else columns), len(given)


def psds1(
    scores: Any,
    ground_truth: Events,
    durations: Mapping[str, float],
    classes: Sequence[str],
    *,
    timestamps: Any = None,
    variance_penalty: bool = False,
    clips: Sequence[str] | None = None,
    **options: Any,
) -> PSDSResult:
    """PSDS1 of the paper (dtc = gtc = 0.7, 100 false positives an hour), exact, on all cores.

    scores: {clip: [frames, classes]} or one array [clips, frames, classes] with clips=[…], numpy or torch; only their
    order matters (logits will do), score >= threshold is a detection, and nothing is filtered in here.
    ground_truth: {clip: [(onset, offset, class name), …]}; durations: {clip: seconds}; timestamps [frames + 1] seconds,
    shared by all clips (None: 40-ms frames up to 10 s). variance_penalty: alpha_st = 1 instead of 0.
    options: everything else that `PSDS` takes (dtc, gtc, e_max, alpha_st, drop_clips_without_events, common_clips, …).
    Raises UserError with the clips or classes at fault.
    """
    options = {"alpha_st": 1.0 if variance_penalty else 0.0} | options
    if isinstance(scores, Mapping):
        if clips is not None:
            raise ValueError("clips=[…] belongs to scores given as one array.")
        names = list(scores)
        portions: Iterable[tuple[list[str], Any]] = (([name], as_numpy(scores[name])[None]) for name in names)
    else:
        if clips is None:
            raise ValueError("Scores given as one array [clips, frames, classes] need clips=[…].")
        names = list(clips)
        if len(names) != len(scores):
            raise UserError(f"There are scores of {len(scores)} clips, but {len(names)} clip names.")
        step = range(0, len(names), 4 * _BLOCK)
        portions = ((names[i : i + 4 * _BLOCK], scores[i : i + 4 * _BLOCK]) for i in step)
    check_same_clips(scores=names, ground_truth=ground_truth)
    evaluation = PSDS(classes, ground_truth, durations, timestamps=timestamps, **options)
    for portion, values in portions:
        evaluation.add(portion, values)
    return evaluation.result()
