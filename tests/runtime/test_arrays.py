"""Numpy's arrays at the boundary: what is refused, what is copied, and what becomes of handles and structures."""

from __future__ import annotations

import json
from collections import OrderedDict, namedtuple

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.utils import _pytree as pytree

from app.errors import InputError, LoadError
from app.runtime.arrays import ArrayBoundary, ArrayHandles, load_constants, num_threads
from app.runtime.spec import CallSpec, InputSpec

DIMS = {"batch": (1, 8)}
INPUTS = (
    InputSpec("x", ("batch", 3), "float32"),
    InputSpec("ids", ("batch",), "int64", low=0, high=10),
    InputSpec("half", ("batch",), "bfloat16", keyword=True),
)


def boundary(output=0, inputs=INPUTS):
    _, spec = pytree.tree_flatten(output)
    return ArrayBoundary(CallSpec(inputs, DIMS, "cpu", pytree.treespec_dumps(spec)))


def good():
    return [np.ones((2, 3), "f4"), np.array([0, 9]), np.zeros(2, "u2")]


def changed(position, value):
    values = good()
    values[position] = value
    return values


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (changed(0, np.ones((2, 3))), r"'x' is float64, expected float32 \[batch, 3\]"),
        (changed(0, np.ones((2, 3), ">f4")), "'x' is >f4"),
        (changed(0, np.ones((2, 4), "f4")), "the size 4 in dimension 1"),
        (changed(0, np.ones(3, "f4")), r"the shape \[3\]"),
        (changed(0, np.ones((9, 3), "f4")), "batch=9, outside of 1 to 8"),
        (changed(1, np.array([0])), "batch=1, but an input before it has batch=2"),
        (changed(1, np.array([0, 10])), "holds 10, outside of 0 to 9"),
        (changed(1, np.array([-1, 0])), "holds -1"),
        (changed(0, [[1.0] * 3] * 2), "is a list, expected a numpy array"),
        (changed(0, np.ma.ones((2, 3), dtype="f4")), "is a MaskedArray"),
        (changed(0, torch.ones(2, 3)), "is a Tensor"),
        (changed(2, np.zeros(2, "f4")), "'half' is float32.*passed as uint16"),
    ],
)
def test_what_was_not_compiled_is_refused_and_named(values, why):
    with pytest.raises(InputError, match=why):
        boundary().check(values)


def test_strides_and_alignment_are_copied_and_all_else_is_passed_as_it_is():
    plain = good()
    assert all(a is b for a, b in zip(boundary().check(plain), plain, strict=True))
    turned = np.asfortranarray(np.arange(6, dtype="f4").reshape(2, 3))
    odd = np.frombuffer(b"\0" + np.arange(6, dtype="f4").tobytes(), dtype="u1")[1:].view("f4").reshape(2, 3)
    for value in (turned, odd, np.arange(12, dtype="f4").reshape(2, 6)[:, ::2]):
        (found, *_) = boundary().check(changed(0, value))
        assert found.flags.c_contiguous
        assert found.flags.aligned
        np.testing.assert_array_equal(found, value)


def test_a_scalar_stays_a_scalar():
    (found,) = boundary(inputs=(InputSpec("x", (), "float32"),)).check([np.array(2.0, "f4")])
    assert found.shape == ()


Pair = namedtuple("Pair", ["left", "right"])
pytree._register_namedtuple(Pair, serialized_type_name=f"{__name__}.Pair")


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (7, 0),
        ((7, [8, 9]), (0, [1, 2])),
        ({"b": 7, "a": (8,)}, {"b": 0, "a": (1,)}),
        (OrderedDict(z=7, y=8), {"z": 0, "y": 1}),
        ([{"a": 7}, ()], [{"a": 0}, ()]),
        (Pair(7, 8), (0, 1)),
    ],
)
def test_an_output_has_the_structure_that_the_module_gives(output, expected):
    leaves = range(len(pytree.tree_leaves(output)))
    assert boundary(output).restore(leaves) == expected


# Handles


@pytest.mark.parametrize(
    "dtype", ["bool", "uint8", "int64", "float16", "float32", "float64", "complex64", "bfloat16"]
)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0, 4)])
def test_an_array_survives_the_way_there_and_back(dtype, shape):
    handles = ArrayHandles()
    value = (torch.rand(shape) * 9).to(getattr(torch, dtype))
    array = (value.view(torch.uint16) if dtype == "bfloat16" else value).numpy()
    (found,) = handles.take(handles.lend([(array, dtype)]))
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(found, array)
    assert array.size == 0 or np.shares_memory(found, array)


def test_strides_survive_too_and_a_null_is_none():
    handles = ArrayHandles()
    array = np.arange(12, dtype="f4").reshape(3, 4).T[::2]
    found, nothing = handles.take([*handles.lend([(array, "float32")]), None])
    np.testing.assert_array_equal(found, array)
    assert nothing is None


def test_threads_are_those_of_torch():
    assert num_threads() == torch.get_num_threads()


# Weights


def test_weights_are_mapped_with_the_strides_that_code_was_compiled_for(tmp_path):
    path = tmp_path / "weights" / "weights.safetensors"
    path.parent.mkdir()
    weights = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16), "c": torch.tensor(3)}
    save_file(weights, path)
    wanted = {
        "first": {"stored": "a", "stride": [1, 2]},
        "again": {"stored": "a", "stride": None},
        "second": {"stored": "b", "stride": None},
        "third": {"stored": "c", "stride": None},
    }
    found = load_constants(path, wanted)
    array, dtype = found["first"]
    assert (array.strides, dtype) == ((4, 8), "float32")
    np.testing.assert_array_equal(array, weights["a"].numpy())
    np.testing.assert_array_equal(found["again"][0], weights["a"].numpy())
    assert (found["second"][1], found["second"][0].dtype) == ("bfloat16", np.dtype("uint16"))
    assert found["third"][0] == 3
    with pytest.raises(LoadError, match="can't be loaded"):
        load_constants(path, {"x": {"stored": "nope", "stride": None}})
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(LoadError, match="can't be loaded"):
        load_constants(path, wanted)
    path.write_bytes(json.dumps({}).encode())
    with pytest.raises(LoadError, match="can't be loaded"):
        load_constants(path, wanted)
