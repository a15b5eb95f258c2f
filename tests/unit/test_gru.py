"""The bidirectional GRU against torch's own: sequences, last states, every gradient, and who takes over where."""

import pytest
import torch

from framekd.models.gru import BiGRU


def pair(inputs: int, hidden: int, layers: int) -> tuple[torch.nn.GRU, BiGRU]:
    """torch's GRU with drawn weights, and ours with the same."""
    torch.manual_seed(0)
    theirs = torch.nn.GRU(inputs, hidden, num_layers=layers, batch_first=True, bidirectional=True)
    ours = BiGRU(inputs, hidden, layers=layers)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


@pytest.mark.parametrize(("inputs", "hidden", "layers"), [(24, 16, 1), (10, 32, 2), (7, 5, 3)])
@pytest.mark.parametrize(("batch", "time"), [(1, 1), (3, 40), (2, 250)])
def test_outputs_and_gradients_are_torchs(inputs, hidden, layers, batch, time):
    theirs, ours = pair(inputs, hidden, layers)
    clips, weights = torch.randn(batch, time, inputs), torch.randn(batch, time, 2 * hidden)
    results = []
    for gru in (theirs, ours):
        x = clips.clone().requires_grad_()
        sequence, last = gru(x)
        loss = (sequence * weights).mean() + last.square().mean()
        loss.backward()
        results.append({"sequence": sequence, "last": last, "input": x.grad})
        results[-1].update((name, parameter.grad) for name, parameter in gru.named_parameters())
    for key, expected in results[0].items():
        torch.testing.assert_close(results[1][key], expected, atol=1e-6, rtol=1e-6, msg=lambda m, k=key: f"{k}: {m}")


def test_without_gradients_the_result_is_the_same():
    theirs, ours = pair(12, 8, 2)
    x = torch.randn(4, 30, 12)
    trained = ours(x)[0]
    with torch.inference_mode():
        assert torch.equal(ours(x)[0], trained)
        torch.testing.assert_close(ours(x)[0], theirs(x)[0], atol=1e-6, rtol=0)


def test_torchs_own_takes_over_in_another_precision_and_with_a_start():
    theirs, ours = pair(12, 8, 1)
    x, start = torch.randn(2, 9, 12), torch.randn(2, 2, 8)
    assert torch.equal(ours(x, start)[0], theirs(x, start)[0])
    assert torch.equal(ours.double()(x.double())[0], theirs.double()(x.double())[0])
