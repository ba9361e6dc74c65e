"""Export: what a program may not do, because an artifact would keep it out of sight."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from app.compiler.export import export
from app.config import DimConfig
from app.errors import ExportError
from app.workloads import Workload, at_precision
from app.workloads.inputs import TensorInput


class Stateful(nn.Module):
    """Calls a function of itself and its input."""

    def __init__(self, function):
        super().__init__()
        self.register_buffer("calls", torch.zeros(4, 6))
        self.function = function
        self.eval()

    def forward(self, x):
        return self.function(self, x)


def exported(function):
    module = Stateful(function)
    inputs = (TensorInput("x", ("batch", 6), "float32"),)
    return export(Workload(module, inputs, {"batch": DimConfig()}, "cpu"), module)


def assign(self, x):
    self.calls = self.calls + 1
    return x + self.calls[0]


def part(self, x):
    first, _ = torch.split(self.calls, 2)
    first[0].copy_(x[0])
    return x + first.sum()


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (lambda self, x: x * self.calls.add_(1)[0], "calls"),
        (lambda self, x: x * self.calls[0].add_(1), "calls"),
        (lambda self, x: x * self.calls.view(-1).mul_(2).sum(), "calls"),
        (lambda self, x: x * torch.add(self.calls, 1, out=self.calls)[0], "calls"),
        (part, "calls"),
        (assign, "calls"),
        (lambda _, x: x.mul_(2), "x"),
        (lambda _, x: x[:, 1:].zero_() + 1, "x"),
    ],
)
def test_a_model_that_changes_its_state_or_its_input_is_refused_by_name(function, what):
    with pytest.raises(ExportError, match=f"changes {what} while it runs"):
        exported(function)


def test_what_a_model_changes_of_its_own_making_is_its_own():
    def function(self, x):
        made = x.clone()
        made[:, 0] = self.calls[0, 0]
        return made.add_(1)

    assert exported(function).spec.unpaddable == {}


class Pair(nn.Module):
    def forward(self, x, *, scale=None):
        return x * scale


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_inputs_that_are_passed_by_keyword_are_dynamic_in_any_precision(precision):
    inputs = (TensorInput("x", ("batch", 6), "float32", True), TensorInput("scale", ("batch", 6), "float32", True))
    workload = Workload(Pair().eval(), inputs, {"batch": DimConfig()}, "cpu")
    found = export(workload, at_precision(workload.module, precision))
    assert [str(name) for name in found.program.graph_signature.user_inputs] == ["x", "scale"]
    assert found.spec.out_axes["batch"] == (0,)
