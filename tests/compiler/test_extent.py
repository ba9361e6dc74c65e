"""What an artifact is compared at: sizes over the whole range, and the values that callers send."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from app import extent, verdict
from app.config import DimConfig, VerifyConfig
from app.verify import Judge
from app.workloads import Workload
from app.workloads.inputs import TensorInput

BAR = (3.0, 1e-5)


class Module(nn.Module):
    """A module of one function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


def served(eager, compiled, inputs, dims, **verify):
    """The extent, and all that was compared, as text."""
    workload = Workload(Module(eager).eval(), inputs, dims, "cpu")
    ranges, example = {name: (dim.min, dim.max) for name, dim in dims.items()}, workload.sizes()
    wanted = verdict.plan([1, 8], [0], ranges, example)
    cases = extent.compare(
        Judge(workload, workload.module),
        compiled,
        wanted,
        dims=ranges,
        example=example,
        kinds=workload.kinds(example),
        verify=VerifyConfig(**{"budget_s": 0.5, **verify}),
        floor=BAR[1],
    )
    return verdict.extent(cases, ranges, example, *BAR), cases


IMAGE = (TensorInput("x", ("batch", "h"), "float32"),)
SIZES = {"batch": DimConfig(max=64), "h": DimConfig(max=100, example=16)}


def test_the_ends_an_odd_size_the_example_and_a_neighbour_of_each_dimension_are_compared():
    found, cases = served(torch.sin, torch.sin, IMAGE, SIZES)
    assert found.refusal is None
    assert found.compared == found.possible == {"batch": (1, 64), "h": (1, 100)}
    heights = {(case.draw.sizes["batch"], case.draw.sizes["h"]) for case in cases}
    assert {(4, 1), (4, 2), (4, 9), (4, 16), (4, 64), (4, 100), (1, 1), (1, 2), (1, 16)} <= heights


@pytest.mark.parametrize("border", [1, 2, 5, 13])
def test_the_border_below_is_found_to_the_size(border):
    found, _ = served(torch.sin, lambda x: x.sin() if x.shape[1] > border else x.cos(), IMAGE, SIZES)
    assert found.possible == {"batch": (1, 64), "h": (border + 1, 100)}
    assert found.compared["h"] == (border + 1, 100)


@pytest.mark.parametrize("border", [18, 63, 99])
def test_the_border_above_is_found_to_the_size(border):
    found, _ = served(torch.sin, lambda x: x.sin() if x.shape[1] < border else x.cos(), IMAGE, SIZES)
    assert found.possible["h"] == found.compared["h"] == (1, border - 1)


def test_what_is_wrong_only_where_two_sizes_meet_is_found():
    found, _ = served(torch.sin, lambda x: x.cos() if x.shape == (2, 2) else x.sin(), IMAGE, SIZES)
    assert found.possible["h"] == (3, 100)


def test_another_shape_or_dtype_is_wrong_too():
    found, _ = served(torch.sin, lambda x: x.sin() if x.shape[1] > 1 else x.sin().squeeze(1), IMAGE, SIZES)
    assert found.possible["h"] == (2, 100)
    found, _ = served(torch.sin, lambda x: x.sin() if len(x) > 1 else x.sin().double(), IMAGE, SIZES)
    assert found.possible["batch"] == (2, 64)


def test_sizes_that_the_module_itself_refuses_are_not_served():
    def positions(x):
        if x.shape[1] > 50:
            raise ValueError("no more than 50 positions")
        return x.sin()

    found, _ = served(positions, torch.sin, IMAGE, SIZES)
    assert found.possible["h"] == (1, 50)
    assert "no more than 50 positions" in found.narrowed[0]


@pytest.mark.parametrize("limit", [{"budget_s": 0.0}, {"memory": "1 B"}])
def test_without_a_budget_nothing_larger_than_the_examples_is_compared_and_it_may_still_be_right(limit):
    found, cases = served(torch.sin, torch.sin, IMAGE, SIZES, **limit)
    assert found.compared == {"batch": (1, 8), "h": (1, 16)}
    assert found.possible == {"batch": (1, 64), "h": (1, 100)}
    assert max(case.draw.sizes["h"] for case in cases) == 16


def test_what_is_wrong_at_the_example_is_not_compared_any_further():
    found, cases = served(torch.sin, torch.cos, IMAGE, {**SIZES, "batch": DimConfig(min=8, max=8, example=8)})
    assert found.refusal is not None
    assert len(cases) == 1


MASKED = (
    TensorInput("x", ("batch", 6, 4), "float32"),
    TensorInput("keep", ("batch", 6), "bool"),
)


def test_padding_at_the_start_is_tried():
    """As left padding is for a decoder: a compiled shortcut for right padding must not pass."""

    def eager(x, keep):
        return (x * keep.unsqueeze(-1)).sum(1)

    def shortcut(x, keep):
        ends = torch.arange(6) < keep.sum(1, keepdim=True)
        return (x * ends.unsqueeze(-1)).sum(1)

    random_like = served(eager, eager, MASKED, {"batch": DimConfig(max=8)})[1]
    kinds = {case.draw.kind for case in random_like}
    assert {"masks with padding at the end", "masks with padding at the start", "masks all false"} <= kinds
    found, _ = served(eager, shortcut, MASKED, {"batch": DimConfig(max=8)})
    assert found.refusal is not None


@pytest.mark.parametrize("kind", ["NaN in a row", "infinity in a row", "zeros", "negative zeros", "tiny values"])
def test_a_difference_at_special_values_alone_is_refused(kind):
    differs = {
        "NaN in a row": lambda x: x.nan_to_num(0.5),
        "infinity in a row": lambda x: x.clamp(-9, 9).sin() if x.isinf().any() else x.sin(),
        "zeros": lambda x: x.sin() + (x == 0).all(),
        "negative zeros": lambda x: x.sin() + (torch.signbit(x) & (x == 0)).all(),
        "tiny values": lambda x: x.sin() + ((x.abs() < 1e-25) & (x != 0)).all(),
    }
    eager = torch.sin if kind != "NaN in a row" else lambda x: x * 1.0
    found, _ = served(eager, differs[kind], IMAGE, SIZES)
    assert found.refusal is not None
    assert kind in found.refusal


def test_a_draw_that_the_module_refuses_is_dropped_and_compiled_code_never_sees_it():
    def finite_only(x):
        if not x.isfinite().all():
            raise ValueError("not finite")
        return x.sin()

    def compiled(x):
        assert x.isfinite().all()
        return x.sin()

    found, cases = served(finite_only, compiled, IMAGE, SIZES)
    assert found.refusal is None
    dropped = {case.draw.kind: case.dropped for case in cases if case.dropped}
    assert dropped.keys() == {"NaN in a row", "infinity in a row"}
    assert "ValueError: not finite" in dropped["NaN in a row"]


def test_where_float32_overflows_and_float64_does_not_rounding_decides_and_the_draw_says_nothing():
    def overflows(x):
        return (x * 1e36).square().sqrt()

    _, cases = served(overflows, overflows, IMAGE, SIZES)
    assert any("rounding decides" in (case.dropped or "") for case in cases)


INTEGERS = (
    TensorInput("ids", ("batch", 5), "int64", low=0, high=9),
    TensorInput("mask", ("batch", 5), "int64", low=0, high=2),
)


def test_integers_are_sorted_and_repeated_and_a_0_1_input_is_a_mask():
    workload = Workload(nn.Identity(), INTEGERS, {"batch": DimConfig()}, "cpu")
    kinds = workload.kinds({"batch": 3})
    assert {"integers sorted", "integers all alike", "masks true but for a row"} <= set(kinds)
    assert "NaN in a row" not in kinds
    (ids, mask), _ = workload.call_of(verdict.Draw({"batch": 3}, 0, "integers sorted"))
    assert torch.equal(ids, ids.sort(dim=-1).values)
    assert 0 <= int(ids.min()) <= int(ids.max()) < 9
    (ids, mask), _ = workload.call_of(verdict.Draw({"batch": 3}, 0, "masks true but for a row"))
    assert mask.tolist() == [[0] * 5, [1] * 5, [1] * 5]
    (_, mask), _ = workload.call_of(verdict.Draw({"batch": 3}, 0, "masks with padding at the end"))
    assert all(row == sorted(row, reverse=True) for row in mask.tolist())
    assert len({sum(row) for row in mask.tolist()}) == 3
    (_, mask), _ = workload.call_of(verdict.Draw({"batch": 3}, 0, "masks with padding at the start"))
    assert all(row == sorted(row) for row in mask.tolist())


def test_nan_is_in_the_first_row_of_every_float_input_alone():
    workload = Workload(nn.Identity(), IMAGE, SIZES, "cpu")
    (x,), _ = workload.call_of(verdict.Draw({"batch": 3, "h": 4}, 0, "NaN in a row"))
    assert x.isnan().sum(1).tolist() == [1, 0, 0]
