"""Inputs: equal for equal seeds in every process, within their range, of the shape and dtype asked for."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.config import DTYPES, DimConfig, InputConfig
from app.errors import ConfigError
from app.workloads import Workload
from app.workloads.inputs import TensorInput, draw

INTEGERS = ("int8", "int16", "int32", "int64", "uint8")
FLOATS = ("float32", "float64", "float16", "bfloat16")


@given(st.sampled_from(DTYPES), st.integers(1, 5), st.integers(0, 5), st.integers(0, 99))
def test_an_input_has_its_dtype_and_shape_and_is_equal_for_equal_seeds(dtype, batch, size, seed):
    spec = TensorInput("x", ("batch", size, "side"), dtype, low=0, high=9)
    sizes = {"batch": batch, "side": 3}
    value = draw(spec, sizes, seed)
    assert (tuple(value.shape), value.dtype) == ((batch, size, 3), getattr(torch, dtype))
    assert value.is_contiguous()
    assert torch.equal(value, draw(spec, sizes, seed))


@given(st.sampled_from(INTEGERS), st.integers(0, 50), st.integers(1, 50), st.integers(0, 99))
def test_integers_lie_in_the_range_that_was_given(dtype, low, width, seed):
    value = draw(TensorInput("x", ("batch",), dtype, low=low, high=low + width), {"batch": 200}, seed)
    assert int(value.min()) >= low
    assert int(value.max()) < low + width
    if width == 1:
        assert (value == low).all()


@given(st.sampled_from(FLOATS), st.floats(-100, 100), st.floats(0.5, 100), st.integers(0, 9))
def test_numbers_lie_in_the_range_that_was_given(dtype, low, width, seed):
    value = draw(TensorInput("x", ("batch",), dtype, low=low, high=low + width), {"batch": 200}, seed).double()
    slack = width * 0.02 + abs(low) * 0.02  # half precision rounds
    assert low - slack <= float(value.min())
    assert float(value.max()) <= low + width + slack
    assert float(value.max() - value.min()) > width / 2 - slack


@pytest.mark.parametrize(("low", "high", "bounds"), [(2.0, None, (2, 3)), (None, 0.5, (0, 0.5))])
def test_one_bound_alone_is_completed(low, high, bounds):
    value = draw(TensorInput("x", ("batch",), "float32", low=low, high=high), {"batch": 500}, 0)
    assert bounds[0] <= float(value.min()) < float(value.max()) <= bounds[1]


def test_numbers_without_a_range_are_normal():
    value = draw(TensorInput("x", ("batch",), "float32"), {"batch": 10_000}, 0)
    assert abs(float(value.mean())) < 0.05
    assert abs(float(value.std()) - 1) < 0.05


def test_booleans_are_both():
    assert draw(TensorInput("x", ("batch",), "bool"), {"batch": 100}, 0).float().mean().item() not in (0.0, 1.0)


def test_another_seed_draws_other_values_of_the_draw_and_of_the_input_alike():
    def drawn(seed, own):
        return draw(TensorInput("x", ("batch",), "float32", seed=own), {"batch": 8}, seed)

    assert len({tuple(drawn(seed, own).tolist()) for seed in (0, 1, 2) for own in (0, 1, 2)}) == 9


@pytest.mark.parametrize("bounds", [{}, {"low": 0}, {"high": 5}])
@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_without_a_range_are_refused_by_name(dtype, bounds):
    with pytest.raises(ConfigError, match=r"model\.inputs\[tokens\] holds integers: give low and high"):
        TensorInput.from_config(InputConfig(name="tokens", shape=[2], dtype=dtype, **bounds))


@pytest.mark.parametrize("dtype", ["float32", "bool"])
def test_other_dtypes_need_none(dtype):
    found = TensorInput.from_config(InputConfig(name="x", shape=["batch", 2], dtype=dtype, keyword=True, seed=3))
    assert found == TensorInput("x", ("batch", 2), dtype, keyword=True, seed=3)


CHILD = """
import hashlib, torch
from app.workloads.inputs import TensorInput, draw
torch.manual_seed(12345)
x = draw(TensorInput("x", ("batch", 3), "float32", seed=2), {"batch": 4}, 5)
print(hashlib.sha256(x.numpy().tobytes()).hexdigest())
"""


def test_a_fresh_process_draws_the_same_values():
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True, timeout=60)
    here = draw(TensorInput("x", ("batch", 3), "float32", seed=2), {"batch": 4}, 5)
    assert done.stdout.strip() == hashlib.sha256(here.numpy().tobytes()).hexdigest()


def test_keyword_inputs_are_passed_by_keyword_and_the_rest_in_order():
    inputs = (
        TensorInput("a", ("batch", 1), "float32"),
        TensorInput("k", ("batch", "seq"), "float32", keyword=True),
        TensorInput("b", (5,), "float32"),
    )
    dims = {"batch": DimConfig(), "seq": DimConfig(example=6)}
    workload = Workload(torch.nn.Identity(), inputs, dims, "cpu")
    args, kwargs = workload.call(3)
    assert [tuple(value.shape) for value in args] == [(3, 1), (5,)]
    assert {name: tuple(value.shape) for name, value in kwargs.items()} == {"k": (3, 6)}
    assert tuple(workload.call()[0][0].shape) == (4, 1)
    assert workload.batched
    assert not Workload(torch.nn.Identity(), inputs[2:], {}, "cpu").batched
