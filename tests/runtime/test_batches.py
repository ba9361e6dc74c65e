"""Batch plans as they run: no row is lost, moved or changed, whatever the padding holds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from app.compiler.export import export
from app.config import BATCH, DimConfig
from app.runtime.plans import Plan, Step
from app.runtime.tensors import TENSORS
from app.verify import Judge
from app.workloads import Workload
from app.workloads.inputs import TensorInput


@st.composite
def plans(draw):
    steps = []
    for _ in range(draw(st.integers(1, 4))):
        rows = draw(st.integers(1, 5))
        steps.append(Step(rows, draw(st.none() | st.integers(rows, 8))))
    return Plan(tuple(steps), 0.0)


@settings(deadline=None)
@given(plans())
def test_rows_come_back_whole_and_in_order(plan):
    rows = sum(step.rows for step in plan.steps)
    left, right = torch.randn(rows, 3), torch.randn(2, rows)
    table = torch.randn(3)
    ran = []

    def run(tensors, bucket):
        a, b, shared = tensors
        assert a.is_contiguous()
        assert b.is_contiguous()
        assert a.shape[0] == b.shape[1] == (bucket or a.shape[0])
        assert torch.equal(shared, table)
        ran.append((a.shape[0], bucket))
        return [a * shared, b.t() @ torch.ones(2, 4), b + 1]

    ours = TENSORS.run(plan, [left, right, table], [0, 1, None], [0, 0, 1], run)
    expected = [left * table, right.t() @ torch.ones(2, 4), right + 1]
    for got, wanted in zip(ours, expected, strict=True):
        assert torch.equal(got, wanted)
        assert got.stride() == wanted.stride()
    assert [bucket for _, bucket in ran] == [step.bucket for step in plan.steps]


def test_padding_holds_valid_values_only():
    """Zeros may lie outside of an input's range; the last row never does."""
    seen = []

    def run(tensors, _):
        seen.append(tensors[0])
        return [tensors[0]]

    TENSORS.run(Plan((Step(2, 5),), 0.0), [torch.tensor([[7], [9]])], [0], [0], run)
    assert seen[0].tolist() == [[7], [9], [9], [9], [9]]


class Rows(nn.Module):
    """Calls a function; in eval mode."""

    def __init__(self, function, layer=None):
        super().__init__()
        self.function, self.layer = function, layer
        self.eval()

    def forward(self, x, mask=None):
        found = self.function(x) if mask is None else self.function(x, mask)
        return self.layer(found) if self.layer is not None else found


def mixing(module, *, mask=False):
    inputs = [TensorInput("x", ("batch", 6), "float32")]
    if mask:
        inputs.append(TensorInput("mask", ("batch", 6), "bool"))
    workload = Workload(module, tuple(inputs), {"batch": DimConfig()}, "cpu")
    spec = export(workload, module).spec
    return {**spec.unpaddable, **Judge(workload, module).mixing(spec)}.get(BATCH)


def attend(x, mask):
    scores = (x[:, :, None] * x[:, None, :]).masked_fill(~mask[:, None, :], -1e9)
    return scores.softmax(-1) @ x[:, :, None]


def test_rows_of_a_batch_norm_and_of_masked_attention_are_independent():
    norm = nn.BatchNorm1d(6)
    norm(torch.randn(20, 6))
    assert mixing(Rows(torch.relu, norm)) is None
    assert mixing(Rows(attend), mask=True) is None


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x: x - x.mean(0), "the other rows' values"),
        (lambda x: x.cumsum(0), "the other rows' values"),
        (lambda x: x.flip(0), "the other rows' values"),
        (lambda x: x / x.shape[0], "the number of rows"),
        (lambda x: x @ x.t() @ x, "the other rows' values"),
        (lambda x: x.mean(0), "no single dimension of the batch's size"),
        (lambda x: x.repeat(2, 1), "no single dimension of the batch's size"),
        (lambda x: x @ x.t(), "no single dimension of the batch's size"),
        (lambda x: (x, x.sum()), "output 1 of shape []"),
    ],
)
def test_a_model_whose_rows_depend_on_each_other_is_found_out(function, said):
    assert said in mixing(Rows(function))
