"""Kept weights: under the name of an export there is nothing but what its sum says."""

import json

import pytest
import torch
from safetensors.torch import save

from hpsearch import weights
from hpsearch.settings import Settings
from hpsearch.storage.checkpoints import open_checkpoints


@pytest.mark.parametrize("speaks", [True, False])
def test_what_does_not_have_the_sum_is_passed_over(speaks: bool, settings: Settings) -> None:
    """Whether it says of itself what an export's weights say, or not."""
    place, classes = open_checkpoints(settings.weights), ["a", "b"]
    name = weights.pin(place, {"head.weight": torch.ones(2, 3)}, "head", classes)
    about = {weights.ABOUT: json.dumps({"head": "head", "classes": classes})} if speaks else None
    place.save(f"export-{name.removeprefix(weights.PINNED)}", 1, save({"head.weight": torch.zeros(2, 3)}, about))
    assert float(weights.of_export(place, name, classes).tensors["head.weight"].sum()) == 6.0
