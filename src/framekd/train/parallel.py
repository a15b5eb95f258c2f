"""Several processes that train one model: the GPUs of a node, or (in tests) cores.

Every process draws the same batch and the same decisions from (seed, step) and computes its own rows of it: front end,
forward and backward pass. Spectrograms are gathered before they are augmented, since mixup pairs clips of different
processes; gradients are averaged by DistributedDataParallel. So two processes take the steps that one would.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from framekd.config import UserError


class World:
    """This process among those that train together; alone when torch.distributed is not initialised."""

    def __init__(self) -> None:
        self.active = dist.is_available() and dist.is_initialized()
        self.size = dist.get_world_size() if self.active else 1
        self.rank = dist.get_rank() if self.active else 0
        # Votes go over gloo, beside NCCL: they must not wait for, nor hold up, work queued on a GPU.
        self._votes = dist.new_group(backend="gloo") if self.size > 1 else None

    @property
    def main(self) -> bool:
        return self.rank == 0

    def rows(self, size: int) -> slice:
        """The rows of a batch of `size` clips that this process computes."""
        each = -(-size // self.size)
        if each * (self.size - 1) >= size:
            raise UserError(f"a batch of {size} clips is too small for {self.size} processes; use fewer, or more clips")
        return slice(self.rank * each, min(size, (self.rank + 1) * each))

    def gather(self, part: Tensor, size: int) -> Tensor:
        """The rows of all processes, in order: `size` in all."""
        if self.size == 1:
            return part
        each = -(-size // self.size)
        padded = part.new_zeros(each, *part.shape[1:])
        padded[: len(part)] = part
        whole = part.new_empty(self.size * each, *part.shape[1:])
        dist.all_gather_into_tensor(whole, padded)
        return whole[:size]

    def most(self, value: int) -> int:
        """The largest of all processes' values: what one of them wants, all do."""
        if self.size == 1:
            return value
        vote = torch.tensor([value])
        dist.all_reduce(vote, op=dist.ReduceOp.MAX, group=self._votes)
        return int(vote)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over processes."""
        if self.size > 1:
            dist.all_reduce(values)
            values /= self.size
        return values

    def total(self, value: float) -> float:
        """The sum over processes."""
        if self.size == 1:
            return value
        out = torch.tensor([value], dtype=torch.float64)
        dist.all_reduce(out, group=self._votes)
        return float(out)

    def share(self, value: Any) -> Any:
        """What the first process holds, for all."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._votes)
        return box[0]

    def wrap(self, call: nn.Module, device: torch.device) -> nn.Module:
        """`call` with its gradients averaged over processes."""
        if self.size == 1:
            return call
        # A loss on frames never reaches the clip head, and layerdrop skips layers: unused parameters are normal.
        return nn.parallel.DistributedDataParallel(
            call,
            device_ids=[device.index] if device.type == "cuda" else None,
            find_unused_parameters=True,
            broadcast_buffers=False,
        )

    def last(self, wrapped: nn.Module, is_last: bool) -> Any:
        """A context in which gradients are exchanged only for the last part of an accumulated batch."""
        return nullcontext() if is_last or self.size == 1 else wrapped.no_sync()  # type: ignore[operator]


def is_main() -> bool:
    """Whether this process is the one that writes: the first of those that train together, or the only one."""
    return not dist.is_initialized() or dist.get_rank() == 0
