"""Polyphonic Sound Detection Score (PSDS), exact, for scores that arrive clip by clip.

Definition: Bilen et al., ICASSP 2020, computed for all thresholds at once (Ebbers et al., ICASSP 2022), as in
sed_scores_eval's intersection_based.psds without cross triggers. PSDS1 of the paper has dtc = gtc = 0.7 and at most
e_max = 100 false positives per hour; alpha_st = 0 takes the mean over classes, alpha_st = 1 the mean minus the standard
deviation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from framekd.config import UserError
from framekd.metrics._compile import cores, kernels
from framekd.metrics.inputs import (
    Events,
    Truth,
    as_numpy,
    check_same_clips,
    check_stamps,
    exact_type,
    first_five,
    frame_stamps,
    portions,
    prepare_truth,
)
from framekd.metrics.psds_result import PSDSResult, area, false_positive_limit

_BLOCK = 32  # clips that the threads count at a time: 13 MB of scores at 250 x 407
_ROOM = 2048  # change points of a class that are collected before they are first summed and pruned


class _Tile:
    """Change points of the classes c0 to c1 - 1. One thread at a time works on a tile."""

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
        """Sort, sum and prune the change points of every class. Double the room if they still fill half of it."""
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
        self, scores: tuple[np.ndarray, ...], rows: np.ndarray, truth: Truth, stamps: np.ndarray, tolerance: Any
    ) -> None:
        """Add a block of clips. scores: the curves, and the highest and lowest score of each."""
        done, block = 0, kernels("psds").block
        while done < len(rows):
            done = block(
                *scores, rows, done, self.c0, self.c1,
                truth.starts, truth.class_index, truth.onsets, truth.offsets, stamps, *tolerance,
                self.score, self.fp, self.tp, self.count, self.hi, self.lo, self.tail,
            )  # fmt: skip
            if done < len(rows):
                self.compact()


class PSDS:
    """PSDS of scores that arrive in any order and any portions. Memory does not grow with the number of clips.

    Args:
        classes: the evaluated classes.
        ground_truth: {clip: [(onset, offset, class), …]} in seconds.
        durations: {clip: seconds}.
        timestamps: [frames + 1] seconds; None: 40-ms frames up to 10 s.
        dtc, gtc: detection and ground-truth tolerance criterion, 0..1.
        e_max: largest number of false positives per hour.
        alpha_st: weight of the standard deviation over classes.
        score_classes: names of the scores' columns, if they are not `classes` (447 outputs, 407 evaluated).
        drop_clips_without_events, other_classes, empty_classes, only_clips: see `prepare_truth`.
        common_clips: also evaluate only the clips in this list, as `result().common`.
        notes: settings to copy into the result, such as the median filter's length.
        threads: number of threads; None: all cores.
    Raises:
        UserError: inputs do not fit together.
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
        self._columns, self._width = _columns(self.truth.classes, score_classes or list(classes))
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
        """Add scores of one clip [frames, classes] or of several [clips, frames, classes]; numpy or torch, any device.

        Clips that the ground truth leaves out are ignored.

        Raises:
            UserError: a clip has no ground truth or was added before, or a score is NaN.
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
            width = min(64, 16 * -(-n // (64 * self._threads)))  # whole vectors, a few tiles per thread
            self._tiles = [_Tile(c, min(c + width, n), self._limit, n_frames) for c in range(0, n, width)]

    def _hold(self, name: str, row: np.ndarray) -> None:
        """Copy one clip into the current block. Count the block when it is full."""
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
        if self._columns is not None:
            scores = scores[:, :, self._columns]
        scores = np.ascontiguousarray(scores, dtype=exact_type(scores.dtype))
        top = scores.max(axis=1)
        if np.isnan(top).any():
            raise UserError(f"The scores of clip {names[int(np.isnan(top).any(axis=1).argmax())]} contain NaN.")
        # minima matter only while some class's dead interval has a lower end
        low = top if all(tile.tail.all() for tile in self._tiles) else scores.min(axis=1)
        rows = np.array([self.truth.row[name] for name in names], dtype=np.int64)
        tolerance = self._settings["dtc"], self._settings["gtc"]
        self._each_tile(lambda tile: tile.add((scores, top, low), rows, self.truth, self._stamps, tolerance))

    def _each_tile(self, work: Any) -> list[Any]:
        kernels("psds")  # compile or load before the threads start
        assert self._tiles is not None
        if self._threads == 1 or len(self._tiles) == 1:
            return [work(tile) for tile in self._tiles]
        with ThreadPoolExecutor(self._threads) as pool:
            return list(pool.map(work, self._tiles))

    def result(self) -> PSDSResult:
        """Return the score.

        Raises:
            UserError: clips with ground truth have no scores yet; names five of them.
        """
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
            value=area(efpr, tpr, settings["e_max"], settings["alpha_st"]),
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
    """Columns of the evaluated classes (None: all, in this order), and the number of columns."""
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
    """PSDS1 of the paper (dtc = gtc = 0.7, at most 100 false positives per hour), exact, on all cores.

    Only the order of scores matters, so logits may be used. A detection is a score >= threshold. Scores are
    not filtered.

    Args:
        scores: {clip: [frames, classes]}, or one array [clips, frames, classes] with `clips`; numpy or torch.
        ground_truth: {clip: [(onset, offset, class), …]} in seconds.
        durations: {clip: seconds}.
        classes: the evaluated classes.
        timestamps: [frames + 1] seconds, the same for all clips; None: 40-ms frames up to 10 s.
        variance_penalty: alpha_st = 1 instead of 0.
        clips: ids of the array's clips.
        options: further arguments of `PSDS` (dtc, gtc, e_max, alpha_st, drop_clips_without_events, common_clips, …).
    Raises:
        UserError: inputs do not fit together; names the clips or classes.
    """
    options = {"alpha_st": 1.0 if variance_penalty else 0.0} | options
    names, parts = portions(scores, clips, 4 * _BLOCK)
    check_same_clips(scores=names, ground_truth=ground_truth)
    evaluation = PSDS(classes, ground_truth, durations, timestamps=timestamps, **options)
    for portion, values in parts:
        evaluation.add(portion, values)
    return evaluation.result()
