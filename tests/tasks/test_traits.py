"""What a model's arithmetic is like, counted on one call."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from app.traits import count


@pytest.mark.parametrize(
    ("model", "batch", "kind", "bound"),
    [
        ("linear", 1, "dense", "memory"),
        ("linear", 1024, "dense", "compute"),
        ("cnn", 8, "convolutional", "compute"),
        ("transformer", 8, "attention", "compute"),
    ],
)
def test_reference_models(context_of, model, batch, kind, bound):
    found = count(context_of([f"model={model}"]).workload, batch)
    assert (found.kind, found.bound) == (kind, bound)


def test_flops_and_bytes_are_those_of_the_operators(context_of):
    found = count(context_of(["model=linear"]).workload, 4)
    layers = [(768, 512), (512, 256), (256, 5)]
    weights = sum(ins * outs + outs for ins, outs in layers)
    made = 4 * (512 + 512 + 256 + 256 + 5)  # each layer's output, and what ReLU makes of two
    assert found.flops == 2 * 4 * sum(ins * outs for ins, outs in layers)
    assert found.bytes == 4 * (weights + made)


def test_without_products_it_is_elementwise(context_of, module_file):
    module_file("sums", "import torch\n\ndef build():\n    return torch.nn.ReLU()\n")
    args = ["model=custom", "model.target=sums:build", "model.inputs=[{name: x, shape: [batch, 16]}]"]
    found = count(context_of(args).workload, 4)
    assert (found.kind, found.bound, found.flops) == ("elementwise", "memory", 0)


def test_a_model_that_can_not_be_watched_has_none_and_torch_is_as_before(context_of, monkeypatch):
    workload = context_of(["model=linear"]).workload

    class Shy(nn.Module):
        def forward(self, x):
            assert torch.backends.mha.get_fastpath_enabled()
            return x

    object.__setattr__(workload, "module", Shy())
    assert count(workload, 4) is None
    assert torch.backends.mha.get_fastpath_enabled()
