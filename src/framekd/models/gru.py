"""A bidirectional GRU that on a CPU walks both directions at once, with a backward pass written by hand.

torch's own runs direction after direction and lets autograd follow every step: some thirty small operations and a
product for the recurrent weights' gradient at each.  Here a step is six operations forward and three backward, and the
weights' gradient is one product over all steps.  Parameters, their names, and the results up to rounding are nn.GRU's;
on a GPU, under autocast, in another precision or in a compiled graph it is nn.GRU, thus cuDNN's.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from framekd.models.linear import fits_fp32_cpu, linear


class BiGRU(nn.GRU):
    """nn.GRU with `batch_first` and `bidirectional` set, without dropout: [batch, time, inputs] → (sequence, last)."""

    def __init__(self, inputs: int, hidden: int, *, layers: int) -> None:
        super().__init__(inputs, hidden, num_layers=layers, batch_first=True, bidirectional=True)

    def forward(self, input: Float[Tensor, "batch time inputs"], hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(sequence [batch, time, 2 hidden], last states [2 layers, batch, hidden])."""
        if hx is not None or input.ndim != 3 or not fits_fp32_cpu(input, next(self.parameters())):
            return super().forward(input, hx)  # type: ignore[has-type]
        sequence, last = input.transpose(0, 1), []
        for layer in range(self.num_layers):
            sequence = self.layer(sequence, layer)
            last += [sequence[-1, :, : self.hidden_size], sequence[0, :, self.hidden_size :]]
        return sequence.transpose(0, 1), torch.stack(last)

    def layer(self, x: Float[Tensor, "time batch inputs"], index: int) -> Float[Tensor, "time batch outputs"]:
        """One layer in both directions; the backward direction runs over reversed time."""
        names = ("weight_ih", "bias_ih", "weight_hh", "bias_hh")
        pairs = ((getattr(self, f"{name}_l{index}"), getattr(self, f"{name}_l{index}_reverse")) for name in names)
        (to_gates, to_gates_back), (bias, bias_back), recurrent, recurrent_bias = pairs
        given = linear(x, torch.cat((to_gates, to_gates_back)), torch.cat((bias, bias_back)))
        ahead, back = given.chunk(2, dim=-1)
        gates = torch.stack((ahead, back.flip(0)), dim=1)
        states = Recurrence.apply(gates, torch.stack(recurrent), torch.stack(recurrent_bias))
        return torch.cat((states[:, 0], states[:, 1].flip(0)), dim=-1)


class Recurrence(torch.autograd.Function):
    """States of a GRU from the input's share of its gates, for several independent directions, from a zero state.

    r, z = σ(g_rz + W_rz h + b_rz);  n = tanh(g_n + r (W_n h + b_n));  h' = n + z (h - n)
    """

    @staticmethod
    def forward(
        ctx: Any,
        gates: Float[Tensor, "time ways batch three_hidden"],
        weight: Float[Tensor, "ways three_hidden hidden"],
        bias: Float[Tensor, "ways three_hidden"],
    ) -> Float[Tensor, "time ways batch hidden"]:
        time, ways, batch, width = gates.shape
        hidden = width // 3
        states = gates.new_zeros(time + 1, ways, batch, hidden)
        own = gates.new_empty(time, ways, batch, width)  # W h + b
        squashed = gates.new_empty(time, ways, batch, width)  # r, z, n
        turned, offset = weight.transpose(1, 2), bias.unsqueeze(1)
        states_at = states.unbind(0)
        steps = zip(
            own.unbind(0),
            *(part.unbind(0) for tensor in (gates, own, squashed) for part in tensor.split((2 * hidden, hidden), -1)),
            *(part.unbind(0) for part in squashed.split(hidden, -1)[:2]),
        )
        for t, (mine, given_rz, given_n, own_rz, own_n, rz, n, r, z) in enumerate(steps):
            h = states_at[t]
            torch.baddbmm(offset, h, turned, out=mine)
            torch.sigmoid(torch.add(given_rz, own_rz, out=rz), out=rz)
            torch.tanh(torch.addcmul(given_n, r, own_n, out=n), out=n)
            torch.lerp(n, h, z, out=states_at[t + 1])
        ctx.save_for_backward(states, own[..., 2 * hidden :], squashed, weight)
        return states[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """With e = dL/dh' every gate's derivative is e times what the forward pass fixed: one product a step."""
        states, own_n, squashed, weight = ctx.saved_tensors
        before = states[:-1]
        time, ways, batch, hidden = before.shape
        r, z, n = squashed.split(hidden, dim=-1)
        to_n = (1.0 - z) * (1.0 - n * n)
        slopes = torch.stack((to_n * own_n * r * (1.0 - r), (before - n) * z * (1.0 - z), to_n * r), dim=3)
        errors = torch.empty_like(before)
        to_own = torch.empty_like(slopes)
        rows = to_own.view(time, ways, batch, 3 * hidden)
        steps = list(
            zip(*(x.unbind(0) for x in (errors, errors.unsqueeze(3), z, slopes, to_own, rows, grad)), strict=True)
        )
        errors[-1] = grad[-1]
        for t in range(time - 1, -1, -1):
            error, spread, keep, slope, to_all, row, _ = steps[t]
            torch.mul(spread, slope, out=to_all)
            if t:
                earlier, given = steps[t - 1][0], steps[t - 1][-1]
                torch.addcmul(given, error, keep, out=earlier).baddbmm_(row, weight)
        flat = rows.transpose(0, 1).reshape(ways, time * batch, 3 * hidden)
        to_weight = flat.transpose(1, 2) @ before.transpose(0, 1).reshape(ways, time * batch, hidden)
        to_gates = torch.cat((rows[..., : 2 * hidden], errors * to_n), dim=-1)
        return to_gates, to_weight, flat.sum(1)
