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
from framekd.metrics.truth import Events, Truth, check_same_clips, first_five, prepare_truth

FRAME_SECONDS = 0.04
CLIP_SECONDS = 10.0
_ROOM = 2048  # change points of a class kept before they are summed and pruned for the first time
_BLOCK = 32  # clips handed to the threads at a time: 13 MB of scores at 250 x 407


def frame_stamps(n_frames: int) -> np.ndarray:
    """[frames + 1] boundaries of 40-ms frames up to 10 s (seconds)."""
    if n_frames > round(CLIP_SECONDS / FRAME_SECONDS):
        raise UserError(f"{n_frames} frames of 40 ms are more than 10 s: give `timestamps` [frames + 1] in seconds.")
    return np.minimum(np.arange(n_frames + 1) * FRAME_SECONDS, CLIP_SECONDS)


def check_stamps(timestamps: Any) -> np.ndarray:
    """[frames + 1] strictly increasing, finite seconds, as float64."""
    stamps = np.ascontiguousarray(timestamps, dtype=np.float64)
    if stamps.ndim != 1 or len(stamps) < 2 or not np.isfinite(stamps).all() or (np.diff(stamps) <= 0).any():
        raise UserError("timestamps must be one row of [frames + 1] finite, strictly increasing seconds.")
    return stamps


def as_numpy(scores: Any) -> np.ndarray:
    """numpy array of a tensor (any device, bfloat16 too) or array, without copying where possible."""
    if hasattr(scores, "detach"):
        scores = scores.detach()
        if str(scores.dtype) == "torch.bfloat16":
            scores = scores.float()
        scores = scores.cpu().numpy()
    return np.asarray(scores)


def _exact_float(scores: np.ndarray) -> np.ndarray:
    """float32 where that loses nothing (float16, small integers), float64 otherwise; contiguous."""
    small = scores.dtype.kind in "fiub" and scores.dtype.itemsize <= (4 if scores.dtype.kind == "f" else 2)
    return np.ascontiguousarray(scores, dtype=np.float32 if small else np.float64)


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


def false_positive_limit(seconds: float, e_max: float) -> int:
    """Most false positives of a class that stay on the curve, by the same float arithmetic as the curve's cut."""
    limit = int(e_max * seconds / 3600) + 2
    while limit > 0 and limit / seconds * 3600 > e_max:
        limit -= 1
    return limit


class _Tile:
    """Change points of a few neighbouring classes; owned by one thread at a time."""

    def __init__(self, c0: int, c1: int, limit: int, n_frames: int) -> None:
        self.c0, self.c1, self.limit = c0, c1, limit
        width, room = c1 - c0, _ROOM + 2 * n_frames
        self.score = np.empty((width, room))
        self.fp = np.empty((width, room), dtype=np.int32)
        self.tp = np.empty((width, room), dtype=np.int32)
        self.count = np.zeros(width, dtype=np.int64)
        self.hi = np.full(width, -np.inf)
        self.lo = np.full(width, -np.inf)
        self.tail = np.zeros(width, dtype=np.bool_)

    def compact(self) -> None:
        """Sort, sum and prune every class's change points; double the room if they still fill half of it."""
        compact = kernels("psds").compact
        most = int(self.count.max())
        out = np.empty(most), np.empty(most, dtype=np.int32), np.empty(most, dtype=np.int32)
        for k, n in enumerate(self.count):
            order = np.argsort(self.score[k, :n])
            m, self.hi[k], self.lo[k], self.tail[k] = compact(
                order, self.score[k, :n], self.fp[k, :n], self.tp[k, :n], self.limit, *out
            )
            self.score[k, :m], self.fp[k, :m], self.tp[k, :m] = out[0][:m], out[1][:m], out[2][:m]
            self.count[k] = m
        if 2 * self.count.max() > self.score.shape[1]:
            self.score = np.concatenate((self.score, np.empty_like(self.score)), axis=1)
            self.fp = np.concatenate((self.fp, np.empty_like(self.fp)), axis=1)
            self.tp = np.concatenate((self.tp, np.empty_like(self.tp)), axis=1)

    def add(
        self, scores: np.ndarray, rows: np.ndarray, truth: Truth, stamps: np.ndarray, dtc: float, gtc: float
    ) -> int:
        """All clips of a block; returns -1, or the index of a clip with NaN."""
        done, block = 0, kernels("psds").block
        while done < len(rows):
            done = block(
                scores, rows, done, self.c0, self.c1,
                truth.starts, truth.class_index, truth.onsets, truth.offsets, stamps, dtc, gtc,
                self.score, self.fp, self.tp, self.count, self.hi, self.lo, self.tail,
            )  # fmt: skip
            if done < 0:
                return -1 - done
            if done < len(rows):
                self.compact()
        return -1


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
        self._tiles: list[_Tile] | None = None
        self._seen: set[str] = set()
        self._pending: list[tuple[str, np.ndarray]] = []
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
            self._pending += [(name, row.copy()) for name, row in zip(names, array)]
            if len(self._pending) >= _BLOCK:
                self._flush()

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
            width = min(64, max(8, -(-n // (4 * self._threads))))
            self._tiles = [_Tile(c, min(c + width, n), self._limit, n_frames) for c in range(0, n, width)]

    def _flush(self) -> None:
        pending, self._pending = self._pending, []
        if pending:
            self._count([name for name, _ in pending], np.stack([row for _, row in pending]))

    def _count(self, names: list[str], scores: np.ndarray) -> None:
        assert self._tiles is not None and self._stamps is not None
        keep = [i for i, name in enumerate(names) if name in self.truth.row]
        if len(keep) < len(names):
            names, scores = [names[i] for i in keep], scores[keep]
        if not names:
            return
        if self._columns[0] is not None:
            scores = scores[:, :, self._columns[0]]
        scores = _exact_float(scores)
        rows = np.array([self.truth.row[name] for name in names], dtype=np.int64)
        dtc, gtc = self._settings["dtc"], self._settings["gtc"]

        def work(tile: _Tile) -> int:
            return tile.add(scores, rows, self.truth, self._stamps, dtc, gtc)  # type: ignore[arg-type]

        bad = [clip for clip in self._each_tile(work) if clip >= 0]
        if bad:
            raise UserError(f"The scores of clip {names[min(bad)]} contain NaN.")

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

        def curve(tile: _Tile) -> np.ndarray:
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
