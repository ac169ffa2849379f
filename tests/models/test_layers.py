"""A wide layer gives what nn.Linear gives, and the gradient of its weight as factors."""

import pytest
import torch
from torch import nn

from hpsearch.models import layers
from hpsearch.models.layers import WideLinear


@pytest.mark.parametrize("by_onednn", [True, False])
@pytest.mark.parametrize("batch_size", [1, 8, 64])
def test_equals_a_plain_layer(by_onednn: bool, batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if not by_onednn:
        monkeypatch.setattr(layers, "ONEDNN", None)
    torch.manual_seed(0)
    wide, plain = WideLinear(50, 30), nn.Linear(50, 30)
    plain.load_state_dict(wide.state_dict())
    before = torch.randn(50, batch_size).T  # not contiguous, as another wide layer gives it
    results = []
    for layer in (wide, plain):
        inputs = before.clone().requires_grad_()
        wide.factors = []
        outputs = layer(inputs.relu() + layer(inputs)[:, :1])  # used twice
        (outputs.sin().sum()).backward()
        results.append((outputs, inputs.grad, layer.bias.grad))
        if layer is wide:
            gradients = [gradient.T @ given for gradient, given in wide.factors]
            assert wide.weight.grad is None
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert len(gradients) == 2
    torch.testing.assert_close(sum(gradients), plain.weight.grad)


def test_onednn_is_there_where_it_is_asked() -> None:
    """Without it a perceptron is slower and nobody notices."""
    if torch.backends.mkldnn.is_available():
        assert layers.ONEDNN is not None
