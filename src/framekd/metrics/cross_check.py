"""A second opinion on PSDS: some classes scored again with the sed_scores_eval package."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from framekd.metrics.inputs import Events, as_numpy, exact_type, frame_stamps, merge_touching
from framekd.metrics.psds_result import PSDSResult

TOLERANCE = 1e-9


class CrossCheck:
    """Score a few classes of a PSDS evaluation with sed_scores_eval as well, and compare.

    Keeps the score curves of the chosen classes: 85 MB for 16,935 clips, 250 frames and 5 classes in float32. Ground
    truth is prepared apart from `PSDS`, so that a mistake there shows as well.

    Args:
        classes, ground_truth, durations, timestamps, score_classes: as given to `PSDS`.
        count: number of classes to check; all if there are fewer.
        seed: seed of the choice of classes.
    """

    def __init__(
        self,
        classes: Sequence[str],
        ground_truth: Events,
        durations: Mapping[str, float],
        *,
        count: int = 5,
        seed: int = 0,
        timestamps: Any = None,
        score_classes: Sequence[str] | None = None,
    ) -> None:
        if count < 1:
            raise ValueError(f"count must be at least 1, but is {count}.")
        rows = np.random.default_rng(seed).permutation(len(classes))[:count]
        self.chosen = [classes[k] for k in sorted(rows)]
        columns = list(score_classes or classes)
        self._columns = [columns.index(name) for name in self.chosen]
        self._classes, self._truth, self._durations = set(classes), ground_truth, durations
        self._timestamps = timestamps
        self._scores: dict[str, np.ndarray] = {}

    def add(self, clips: str | Sequence[str], scores: Any) -> None:
        """Add the scores that `PSDS.add` gets: [frames, classes] of one clip, or [clips, frames, classes]."""
        values = as_numpy(scores).take(self._columns, axis=-1)
        values = values.astype(exact_type(values.dtype), copy=False)
        if isinstance(clips, str):
            self._scores[clips] = values
        else:
            self._scores.update(zip(clips, values, strict=True))

    def reference(self, *, dtc: float, gtc: float, e_max: float, drop_clips_without_events: bool) -> dict[str, float]:
        """PSDS of the chosen classes by sed_scores_eval: {class: 0..1}."""
        with warnings.catch_warnings():  # a dependency warns about pkg_resources when it is imported
            warnings.simplefilter("ignore")
            from sed_scores_eval.base_modules.scores import create_score_dataframe
            from sed_scores_eval.intersection_based import psds
        clips = list(self._durations)
        if drop_clips_without_events:
            clips = [clip for clip in clips if any(name in self._classes for *_, name in self._truth[clip])]
        stamps = self._timestamps
        if stamps is None:
            stamps = frame_stamps(len(self._scores[clips[0]]))
        truth = {clip: self._events(clip) for clip in clips}
        frames = {
            clip: create_score_dataframe(self._scores[clip].astype(float), np.asarray(stamps, float), self.chosen)
            for clip in clips
        }
        _, per_class, *_ = psds(
            frames,
            truth,
            {clip: self._durations[clip] for clip in clips},
            dtc_threshold=dtc,
            gtc_threshold=gtc,
            max_efpr=e_max,
        )
        return {name: float(per_class[name]) for name in self.chosen}

    def _events(self, clip: str) -> list[tuple[float, float, str]]:
        """Events of the chosen classes; touching ones are merged, because sed_scores_eval refuses them."""
        out = []
        for chosen in self.chosen:
            spans = [(onset, offset) for onset, offset, name in self._truth[clip] if name == chosen]
            out += [(onset, offset, chosen) for onset, offset in merge_touching(spans, clip, chosen)]
        return out

    def verify(self, result: PSDSResult) -> dict[str, float]:
        """Compare with the result of `PSDS` on the same scores, under the result's own settings.

        Returns:
            {class: difference} of the chosen classes.
        Raises:
            RuntimeError: a difference is larger than 1e-9.
        """
        keys = ("dtc", "gtc", "e_max", "drop_clips_without_events")
        expected = self.reference(**{key: result.settings[key] for key in keys})
        differences = {name: result.per_class[name] - value for name, value in expected.items()}
        for name, value in differences.items():
            if not abs(value) <= TOLERANCE:  # NaN too
                raise RuntimeError(
                    f"PSDS of class {name} is {result.per_class[name]:.12f}, but sed_scores_eval computes "
                    f"{expected[name]:.12f}. They must agree within {TOLERANCE}: do not use this result."
                )
        return differences
