"""Heads of several runs as one batched problem, each with its own weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from framekd.models import attention_pool, init_linear
from framekd.tasks.problem import Problem
from framekd.train import torch_generator


class Heads(nn.Module):
    """Frame and clip heads of several runs, with the same equations as the heads of a `FrameModel`.

    Args:
        width: features per frame.
        attention: attention pooling for clip predictions, otherwise a linear head on the mean over time.
        init: `head_init` of the recipe.
    """

    def __init__(self, problem: Problem, width: int, *, attention: bool, init: str) -> None:
        super().__init__()
        runs, n_classes, std = problem.runs, len(problem.classes), 0.01 if init == "normal" else None
        self.runs, self.n_classes, self.attention = len(runs), n_classes, attention
        pairs = []
        for run in runs:
            generator = torch_generator(run.seed, "heads")
            pair = [nn.Linear(width, n_classes), nn.Linear(width, n_classes)]
            for layer in pair:
                init_linear(layer, generator, std=std)
            if init == "prior":
                pair[0].bias.data.copy_(torch.from_numpy(problem.log_odds(run)))
            pairs.append(pair)
        # Biases have one dimension, so that AdamW does not decay them, as in a model.
        self.frame_weight, self.frame_bias = _stacked([frame for frame, _ in pairs])
        self.clip_weight, self.clip_bias = _stacked([clip for _, clip in pairs])

    def of_run(
        self, i: int, features: Float[Tensor, "batch frames width"]
    ) -> tuple[Float[Tensor, "batch frames classes"], Float[Tensor, "batch classes"]]:
        """Frame and clip logits of run `i`."""
        frame_bias, clip_bias = (bias.view(self.runs, -1)[i] for bias in (self.frame_bias, self.clip_bias))
        frame = features @ self.frame_weight[i] + frame_bias
        if not self.attention:
            return frame, features.mean(1) @ self.clip_weight[i] + clip_bias
        second = features @ self.clip_weight[i] + clip_bias
        return frame, torch.logit(attention_pool(frame, second), eps=1e-7)

    def clip_gradients(self, max_norm: float) -> None:
        """Scale the gradients of each run to a norm of at most `max_norm`."""
        grads = [p.grad.view(self.runs, -1) for p in self.parameters() if p.grad is not None]
        scale = (max_norm / (torch.cat(grads, 1).norm(dim=1) + 1e-6)).clamp(max=1.0)
        for grad in grads:
            grad.mul_(scale[:, None])


def _stacked(layers: Sequence[nn.Linear]) -> tuple[nn.Parameter, nn.Parameter]:
    weight = torch.stack([layer.weight.detach().T for layer in layers])
    return nn.Parameter(weight), nn.Parameter(torch.cat([layer.bias.detach() for layer in layers]))


def losses(
    heads: Sequence[Heads],
    features: Sequence[Float[Tensor, "runs batch frames width"]],
    frame_labels: Float[Tensor, "runs batch classes frames"],
    clip_labels: Float[Tensor, "runs batch classes"] | None,
) -> Float[Tensor, " heads"]:
    """The loss of several sets of heads on the same features, which are read once for all: sums over the runs.

    Args:
        heads: sets of the same runs, such as one per learning rate.
        features: of the clips with frame labels, and of those with clip labels.
        frame_labels: of the former.
        clip_labels: of the latter, None without any. Then the clip heads are not computed.
    """
    loss = _bce(_linear(heads, features[0], "frame"), frame_labels.transpose(2, 3), len(heads))
    if clip_labels is None:
        return loss
    if heads[0].attention:
        # [runs, batch, sets, frames, classes]
        frame, second = (
            _linear(heads, features[1], name).unflatten(-1, (len(heads), -1)).transpose(2, 3)
            for name in ("frame", "clip")
        )
        clip = torch.logit(attention_pool(frame, second), eps=1e-7).flatten(2)
    else:
        clip = _linear(heads, features[1].mean(2), "clip")
    return loss + _bce(clip, clip_labels, len(heads))


def _linear(heads: Sequence[Heads], x: Float[Tensor, "runs *shape width"], name: str) -> Tensor:
    """One matrix product for all sets of heads: [runs, …, sets * classes]."""
    weight = torch.cat([getattr(one, f"{name}_weight") for one in heads], 2)
    bias = torch.cat([getattr(one, f"{name}_bias").view(one.runs, 1, -1) for one in heads], 2)
    return torch.baddbmm(bias, x.flatten(1, -2), weight).view(*x.shape[:-1], -1)


def _bce(
    logits: Float[Tensor, "runs *shape outputs"], labels: Float[Tensor, "runs *shape classes"], sets: int
) -> Float[Tensor, " sets"]:
    """Binary cross-entropy of each set of heads: the sum over the runs of their means."""
    labels = labels.repeat(*[1] * (labels.ndim - 1), sets)
    each = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    return len(labels) * each.flatten(0, -2).mean(0).view(sets, -1).mean(1)


class LowestLoss:
    """The weights of each run at its lowest validation loss so far."""

    def __init__(self, heads: Heads) -> None:
        self.heads, self.loss = heads, torch.full((heads.runs,), torch.inf)
        self.weights = [self._by_run(p).clone() for p in heads.parameters()]

    def _by_run(self, parameter: nn.Parameter) -> Tensor:
        return parameter.detach().view(self.heads.runs, -1)

    def update(self, losses: Float[Tensor, " runs"]) -> None:
        """Keep the weights of the runs whose loss is lower than before."""
        lower = losses < self.loss
        self.loss = torch.where(lower, losses, self.loss)
        for kept, parameter in zip(self.weights, self.heads.parameters()):
            kept[lower] = self._by_run(parameter)[lower]

    def restore(self) -> None:
        """Put the kept weights into the heads."""
        for kept, parameter in zip(self.weights, self.heads.parameters()):
            self._by_run(parameter).copy_(kept)
