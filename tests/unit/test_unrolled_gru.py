"""The unrolled BiGRU against nn.GRU."""

import pytest
import torch

from framekd.models import build_model
from framekd.models.unrolled_gru import bigru


@pytest.mark.parametrize("layers", [1, 2])
def test_outputs_and_gradients_are_those_of_nn_gru(layers):
    torch.manual_seed(layers)
    rnn = torch.nn.GRU(6, 5, num_layers=layers, batch_first=True, bidirectional=True).double()
    features, weights = torch.randn(3, 11, 6).double().requires_grad_(), torch.randn(3, 11, 10).double()

    def results(outputs: torch.Tensor) -> list[torch.Tensor]:
        return [outputs, *torch.autograd.grad((outputs * weights).sum(), [features, *rnn.parameters()])]

    for found, expected in zip(results(bigru(rnn, features)), results(rnn(features)[0]), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_a_model_uses_it_in_training_only_and_gives_the_same_logits():
    model = build_model("tiny", n_classes=3, sequence_model="bigru").init_weights(torch.Generator().manual_seed(0))
    mel = torch.randn(2, 1, 64, 401, generator=torch.Generator().manual_seed(1))
    expected = model.train()(mel)
    model.unrolled_gru = True
    found = model(mel)
    for one, other in zip(found, expected):
        assert not torch.equal(one, other)  # another order of sums: the unrolled one was used
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert torch.equal(model.eval()(mel)[0], model(mel)[0])
