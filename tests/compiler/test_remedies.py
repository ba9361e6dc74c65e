"""What torch.export refuses is told with the line of code, torch's suggestion whole, and what helps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim

from app.compiler.remedies import told


class Module(nn.Module):
    """A module of one function, and a part."""

    def __init__(self, function, part=None):
        super().__init__()
        self.function, self.part = function, part

    def forward(self, *args):
        return self.function(self.part, *args)


class Unknown:
    def __init__(self, y):
        self.y = y


def refused(function, *inputs, part=None, axes=(0,)):
    module = Module(function, part).eval()
    dims = {axis: Dim(name, min=1, max=64) for axis, name in zip(axes, ("batch", "seq"), strict=False)}
    with pytest.raises(Exception) as caught:  # noqa: PT011 - torch raises anything
        torch.export.export(module, inputs, dynamic_shapes=((dims, *[None] * (len(inputs) - 1)),), strict=False)
    return told(caught.value, module)


X = torch.randn(4, 8)


def branching(_, x):
    return x if x.sum() > 0 else -x


def test_a_branch_on_data_is_told_by_its_line():
    text = refused(branching, X)
    assert "test_remedies.py" in text
    assert "return x if x.sum() > 0 else -x" in text
    assert "torch.where" in text


@pytest.mark.parametrize(
    ("function", "suggested", "remedy"),
    [
        (lambda _, x: x.view(x.shape[0] // 2, 2, 8), "batch = 2*_batch", "multiple"),
        (lambda _, x: x.view(4, 2, 4), "batch = 4", "from x.shape"),
        (lambda _, x: torch.stack([row * 2 for row in x]), "batch = 4", "without a Python loop"),
        (lambda _, x: x * 2 if x.shape[0] > 3 else x, "min=4, max=64", "model.dims"),
    ],
    ids=["divisible", "fixed", "loop", "branch on a size"],
)
def test_torchs_suggestion_is_told_whole_and_what_to_do(function, suggested, remedy):
    text = refused(function, X)
    assert suggested in text
    assert remedy in text
    assert "\n" not in text


@pytest.mark.filterwarnings("ignore:The tensor attributes")
def test_a_recurrent_net_over_a_dynamic_length():
    text = refused(lambda net, x: net(x)[0], torch.randn(4, 6, 8), part=nn.LSTM(8, 8, batch_first=True), axes=(0, 1))
    assert "seq = 6" in text
    assert "a recurrent net is traced for one length" in text


@pytest.mark.filterwarnings("ignore:The tensor attributes")
def test_packed_sequences():
    def packed(net, x, lengths):
        sequence = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return net(sequence)[0].data

    text = refused(packed, torch.randn(4, 6, 8), torch.tensor([6, 3, 2, 1]), part=nn.GRU(8, 8, batch_first=True))
    assert "packed sequences" in text


def test_an_unknown_class_in_the_output():
    assert "dict, tuple, named tuple or dataclass" in refused(lambda _, x: Unknown(x), X)


def test_numpy():
    assert "torch's own functions" in refused(lambda _, x: torch.from_numpy(np.tanh(x.numpy())), X)


def test_what_is_not_known_is_told_by_its_first_line():
    assert told(ValueError("wrong\nand more")) == "ValueError: wrong"
    assert told(ValueError()) == "ValueError"
