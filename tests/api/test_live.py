"""What a live module is called with, read off examples; and the draws that are made of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.export import Dim

from app.errors import ConfigError
from app.live import signature
from app.workloads import examples
from app.workloads.inputs import TensorInput


class Two(nn.Module):
    def forward(self, x, mask=None, *, scale=None):
        return x


class Any(nn.Module):
    def forward(self, *values):
        return values[0]


X, MASK = torch.randn(3, 5), torch.ones(3, dtype=torch.int64)


def shapes(found):
    return {item.name: (item.shape, item.keyword) for item in found.inputs}


def test_the_first_axis_of_all_inputs_is_the_batch():
    found = signature(Two(), (X, MASK))
    assert shapes(found) == {"x": (["batch", 5], False), "mask": (["batch"], False)}
    assert (found.dims["batch"].min, found.dims["batch"].example, found.dims["batch"].max) == (1, 3, 1024)


def test_a_dict_names_arguments_and_stays_positional_where_it_can():
    assert shapes(signature(Two(), {"mask": MASK, "x": X})) == {
        "x": (["batch", 5], False),
        "mask": (["batch"], False),
    }
    assert shapes(signature(Two(), {"x": X, "scale": MASK}))["scale"] == (["batch"], True)


def test_a_batch_of_one_is_traced_as_two():
    assert signature(Two(), X[:1]).dims["batch"].example == 2


def test_inputs_that_disagree_on_their_first_axis_are_static():
    found = signature(Two(), (X, MASK[:2]))
    assert (shapes(found)["x"][0], dict(found.dims)) == ([3, 5], {})


def test_named_axes_and_dims_with_ranges():
    found = signature(Two(), (X, MASK), dynamic={"x": {1: Dim("width", min=2, max=64)}})
    assert shapes(found) == {"x": ([3, "width"], False), "mask": ([3], False)}
    assert (found.dims["width"].min, found.dims["width"].max) == (2, 64)
    assert signature(Two(), (X, MASK), dynamic={}).dims == {}


def test_ranges_stand_beside_their_input():
    found = signature(Two(), (X, MASK), ranges={"mask": (0, 2)})
    assert [(item.low, item.high) for item in found.inputs] == [(None, None), (0, 2)]


def test_positional_values_beyond_the_names_are_numbered():
    assert list(shapes(signature(Any(), (X, MASK)))) == ["values_0", "values_1"]


@pytest.mark.parametrize(
    ("given", "options", "why"),
    [
        (3, {}, "example_inputs is a int"),
        ("x", {}, "example_inputs is a str"),
        ([], {}, "example_inputs is a list"),
        ((X, [MASK]), {}, "'mask' is a list"),
        ((X, MASK, MASK, MASK), {}, "don't fit Two.forward"),
        ({"y": X}, {}, "don't fit Two.forward"),
        (X, {"dynamic": {"y": {0: "batch"}}}, "dynamic names 'y'"),
        (X, {"dynamic": {"x": {2: "batch"}}}, "axis 2; the input has 2"),
        (X, {"dynamic": {"x": {0: "a b"}}}, "no name of a dimension"),
        (X, {"ranges": {"y": (0, 1)}}, "ranges names 'y'"),
    ],
)
def test_what_can_not_be_right_says_so(given, options, why):
    with pytest.raises(ConfigError, match=why):
        signature(Two(), given, **options)


# Draws


def inputs(**kwargs):
    return [TensorInput("x", ("batch", 5), "float32"), TensorInput("ids", ("batch",), "int64", **kwargs)]


def test_seed_zero_is_the_examples_repeated_or_cut():
    draws = examples.Examples({"x": X, "ids": MASK}, inputs())
    assert torch.equal(draws({"batch": 2}, 0)["x"], X[:2])
    assert torch.equal(draws({"batch": 4}, 0)["x"], torch.cat([X, X[:1]]))


def test_other_seeds_differ_and_are_always_the_same():
    draws = examples.Examples({"x": X[:1], "ids": torch.tensor([4])}, inputs(low=0, high=9))
    first, second = draws({"batch": 6}, 1), draws({"batch": 6}, 2)
    assert not torch.equal(first["x"], second["x"])
    assert len(set(map(tuple, first["x"].tolist()))) == 6  # no two rows alike, though there is one example
    assert torch.equal(first["x"], draws({"batch": 6}, 1)["x"])


def test_integers_are_those_that_occur_and_the_ends_of_their_range():
    draws = examples.Examples({"x": X, "ids": torch.tensor([4, 5, 5])}, inputs(low=0, high=9))
    found = {int(value) for seed in range(1, 40) for value in draws({"batch": 8}, seed)["ids"]}
    assert found == {4, 5, 0, 8}
    draws = examples.Examples({"x": X, "ids": torch.tensor([4, 5, 5])}, inputs())
    assert {int(value) for seed in range(1, 9) for value in draws({"batch": 8}, seed)["ids"]} == {4, 5, 6}


def test_examples_come_back_from_a_file(tmp_path):
    examples.save({"x": X.t(), "ids": MASK}, tmp_path / "examples.safetensors")
    found = examples.load(tmp_path / "examples.safetensors", [TensorInput("x", (5, "batch"), "float32")])
    assert torch.equal(found({"batch": 3}, 0)["x"], X.t())
