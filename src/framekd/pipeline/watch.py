"""Scoring a model while it trains, on a fixed sample of clips that are held out of training."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from framekd.config import Watch
from framekd.data import ClipSet, chunks
from framekd.inference import batch_logits, default_device
from framekd.losses import bce
from framekd.metrics import MAP, PSDS, evaluation_classes, mean_average_precision, median_filter
from framekd.models import FrameModel
from framekd.train import WatchedClips, is_main, numpy_generator
from framekd.units import CLIP_SECONDS

LARGEST_SHARE = 0.05
"""No larger share of the training clips is held out for the watch."""
FEWEST = 64
"""Fewer clips say too little, so they are not watched."""
BATCH = 64


def hold_out(clips: ClipSet, validation: ClipSet | None, watch: Watch) -> tuple[ClipSet, ClipSet | None]:
    """Split training clips into those that are trained on and the sample that is watched.

    Clips that are held out for validation are watched, where there are any. Otherwise ``watch.clips`` of the training
    clips are held out, the same ones for every model, setting and seed. From a small set none are held out.

    Args:
        clips: training clips.
        validation: clips that are already held out.
        watch: the configuration's block of that name.
    Returns:
        The clips to train on, and the clips to watch; None if nothing is watched.
    """
    if not watch.every_epochs:
        return clips, None
    given = validation is not None and len(validation) > 0
    source = validation if given and validation is not None else clips
    size = min(watch.clips, len(source)) if given else watch.clips
    if size < FEWEST or (not given and size > LARGEST_SHARE * len(clips)):
        if is_main():
            why = f"{len(source)} validation clips" if given else f"{LARGEST_SHARE:.0%} of {len(clips)} clips"
            print(
                f"This training is not watched: {why} are fewer than the {max(size, FEWEST)} that it needs.", flush=True
            )
        return clips, None
    order = numpy_generator(0, "watched clips").permutation(len(source))
    rest = clips if given else clips.select(np.sort(order[size:]))
    return rest, source.select(np.sort(order[:size]))


def watched_clips(
    kept: ClipSet, sample: ClipSet | None, watch: Watch, function: Callable[[nn.Module, ClipSet], dict[str, float]]
) -> WatchedClips | None:
    """What :func:`framekd.train.fit` needs to watch a training; None without a sample.

    Args:
        kept: clips that are trained on: their class log odds are the constant prediction.
        sample: clips that are watched.
        watch: the configuration's block of that name.
        function: metrics of a model on clips: :func:`strong_metrics` or :func:`weak_metrics`.
    """
    if sample is None:
        return None
    return WatchedClips(
        lambda model: function(model, sample),
        every_epochs=watch.every_epochs,
        constant_loss=constant_loss(kept, sample),
        learnt_by=watch.learnt_by,
        clips=len(sample),
    )


def constant_loss(kept: ClipSet, sample: ClipSet) -> float:
    """Mean binary cross-entropy on the labels of `sample` of a model that always predicts the log odds of `kept`."""
    guess, share = (1 / (1 + np.exp(-clips.log_odds())) for clips in (kept, sample))
    return float(-(share * np.log(guess) + (1 - share) * np.log1p(-guess)).mean())


def strong_metrics(model: nn.Module, clips: ClipSet, *, median_seconds: float) -> dict[str, float]:
    """``watch/psds1`` (0..1) and ``watch/loss``, the mean loss on frame labels."""
    truth = clips.ground_truth()
    scorer = PSDS(
        evaluation_classes(clips.classes.names, truth),
        truth,
        dict(zip(clips.ids, np.minimum(clips.durations, CLIP_SECONDS).tolist(), strict=True)),
        score_classes=clips.classes.names,
        drop_clips_without_events=True,
        other_classes="drop",
    )
    loss, device = 0.0, default_device()
    for batch, [(frames, _)] in batch_logits([model], chunks(clips, BATCH), device=device):  # type: ignore[list-item]
        assert batch.frame_labels is not None
        if not bool(frames.isfinite().all()):
            return {"watch/psds1": 0.0}
        loss += float(bce(frames, batch.frame_labels.to(device))) * len(batch)
        values = frames.transpose(1, 2).cpu().numpy()
        scorer.add(batch.ids, median_filter(values, seconds=median_seconds))
    return {"watch/psds1": scorer.result().at(0.0), "watch/loss": loss / len(clips)}


def weak_metrics(model: nn.Module, clips: ClipSet) -> dict[str, float]:
    """``watch/map`` (0..1) and ``watch/loss``, the mean loss on clip labels."""
    scores, labels = clip_scores(model, clips)  # type: ignore[arg-type]
    if not bool(scores.isfinite().all()):
        return {"watch/map": 0.0}
    found = mean_average_precision(scores.numpy(), labels.numpy())
    return {"watch/map": found.value, "watch/loss": float(bce(scores, labels))}


def weak_map(
    model: FrameModel, clips: ClipSet, *, columns: Sequence[int] | None = None, batch_size: int = BATCH
) -> MAP:
    """Mean average precision of clip logits on `clips`.

    Args:
        model: gives clip logits.
        clips: clips with clip labels.
        columns: the output of the model for each class of `clips`; None is their order.
        batch_size: clips per forward pass.
    """
    scores, labels = clip_scores(model, clips, batch_size=batch_size)
    chosen = scores if columns is None else scores[:, list(columns)]
    return mean_average_precision(chosen.numpy(), labels.numpy(), clips.classes.names)


def clip_scores(model: FrameModel, clips: ClipSet, *, batch_size: int = BATCH) -> tuple[torch.Tensor, torch.Tensor]:
    """Clip logits of `model` and clip labels, [clips, classes] each, on the CPU."""
    scores, labels = [], []
    for batch, [(_, clip_logits)] in batch_logits([model], chunks(clips, batch_size), device=default_device()):
        assert batch.clip_labels is not None
        scores.append(clip_logits.cpu())
        labels.append(batch.clip_labels)
    return torch.cat(scores), torch.cat(labels)
