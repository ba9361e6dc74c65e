"""The boundary: whatever a call is given, the program gets what it was compiled for, or the caller an InputError."""

from __future__ import annotations

import json
from collections import OrderedDict, namedtuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

from app.errors import InputError, LoadError
from app.runtime.spec import CallSpec, InputSpec
from app.runtime.tensors import TensorBoundary

INPUTS = (
    InputSpec("image", ("batch", 3, "side"), "float32"),
    InputSpec("mask", ("batch", "side"), "bool"),
    InputSpec("scale", (), "float32", keyword=True),
)
DIMS = {"batch": (1, 8), "side": (2, 16)}
NAMES = [item.name for item in INPUTS]


def spec_for(output=None, inputs=INPUTS, **changed):
    """A spec whose program gives `output`, with tensors for what is None in it."""
    text = pytree.treespec_dumps(pytree.tree_structure(output))
    return CallSpec(inputs=inputs, dims=DIMS, device="cpu", out_spec=text, **changed)


def boundary():
    return TensorBoundary(spec_for(), "cpu")


def right(batch=2, side=4):
    return [torch.rand(batch, 3, side), torch.rand(batch, side) > 0.5, torch.tensor(2.0)]


def seasoned():
    """A boundary that knows calls like the right ones already, of each grad mode: it takes its fast path."""
    found = boundary()
    values = right()
    found.check(values)
    with torch.inference_mode():
        found.check(values)
        found.check(right())
    assert found._guards
    return found


def check(found, values):
    return found.check(found.bind(values[:2], {"scale": values[2]}))


def checked(values):
    """What a new boundary makes of them, and one that is in use does so too."""
    fresh, known = (check(make(), values) for make in (boundary, seasoned))
    assert all(torch.equal(a, b) and a.stride() == b.stride() for a, b in zip(fresh, known, strict=True))
    return known


def refused(values, *said):
    """That the call is refused, in one line that says all this."""
    messages = set()
    for make in (boundary, seasoned):
        with torch.autocast("cpu", enabled=False):
            found = make()
        with pytest.raises(InputError) as caught:
            check(found, values)
        messages.add(caught.value.message)
    (message,) = messages
    for text in said:
        assert text in message
    assert "\n" not in message


def replaced(index, value):
    return [*right()[:index], value, *right()[index + 1 :]]


def with_range(dtype, low, high):
    inputs = (InputSpec("ids", ("batch",), dtype, low=low, high=high),)
    return TensorBoundary(spec_for(inputs=inputs), "cpu")


@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 6), min_size=1, max_size=8))
def test_integers_outside_of_their_range_are_refused_by_name_and_value(values):
    found = with_range("int64", -2, 5)
    if all(-2 <= value < 5 for value in values):
        assert found.check([torch.tensor(values)])[0].tolist() == values
        return
    with pytest.raises(InputError, match=r"input 'ids' holds (-?\d+), outside of -2 to 4") as caught:
        found.check([torch.tensor(values)])
    assert int(caught.value.message.split("holds ")[1].partition(",")[0]) in values


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "uint8"])
def test_the_whole_range_of_a_dtype_can_be_allowed(dtype):
    limits = torch.iinfo(getattr(torch, dtype))
    found = with_range(dtype, limits.min, limits.max + 1)
    value = torch.tensor([limits.min, limits.max], dtype=getattr(torch, dtype))
    assert found.check([value])[0] is value


# Right calls


@given(st.integers(1, 8), st.integers(2, 16))
def test_every_size_within_the_ranges_goes_through_untouched(batch, side):
    values = right(batch, side)
    found = checked(values)
    assert all(a is b for a, b in zip(found, values, strict=True))


def test_arguments_may_be_given_by_name_in_any_order():
    image, mask, scale = right()
    found = boundary()
    expected = [image, mask, scale]
    for args, kwargs in (
        ([image, mask], {"scale": scale}),
        ([image], {"scale": scale, "mask": mask}),
        ([], {"scale": scale, "mask": mask, "image": image}),
    ):
        assert all(a is b for a, b in zip(found.bind(args, kwargs), expected, strict=True))


def test_a_call_like_one_before_takes_the_fast_path():
    found = seasoned()
    assert len(found._guards) == 3
    for size in (1, 2, 8):
        assert found._are_plain(right(size))
    assert not found._are_plain(replaced(0, torch.rand(4, 3, 2).transpose(0, 2)))
    assert found._are_plain(replaced(0, torch.rand(9, 3, 4)))  # sizes are looked at after it
    with torch.inference_mode():
        assert found._are_plain(right())


def test_a_parameter_is_a_tensor_too():
    value = torch.nn.Parameter(torch.rand(2, 3, 4), requires_grad=False)
    assert checked(replaced(0, value))[0] is value


# Wrong calls


@given(st.integers(0, 6).filter(lambda count: count != 2))
def test_another_number_of_positional_inputs_is_refused(count):
    values = [torch.rand(2, 3, 4)] * count
    with pytest.raises(InputError) as caught:
        boundary().bind(values, {"scale": torch.tensor(1.0)})
    text = "at most 2" if count > 2 else "missing input " + ", ".join(repr(name) for name in NAMES[count:2])
    assert text in caught.value.message
    assert "image: float32 [batch, 3, side], mask: bool [batch, side]" in caught.value.message


@pytest.mark.parametrize(
    ("args", "kwargs", "said"),
    [
        ("im", {}, "missing input 'scale'"),
        ("ims", {}, "3 positional inputs, expected at most 2"),
        ("im", {"scale": "s", "extra": "s"}, "unknown input 'extra'"),
        ("im", {"scale": "s", "mask": "m"}, "input 'mask' is given twice"),
        ("", {}, "missing input 'image', 'mask', 'scale'"),
    ],
)
def test_inputs_that_cannot_be_bound_are_refused_by_name(args, kwargs, said):
    known = dict(zip("ims", right(), strict=True))
    with pytest.raises(InputError, match=said):
        boundary().bind([known[a] for a in args], {name: known[v] for name, v in kwargs.items()})


DTYPES = [torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.int64, torch.uint8, torch.complex64]


@given(st.sampled_from([0, 1, 2]), st.sampled_from([*DTYPES, torch.bool, torch.float32]))
def test_another_dtype_is_refused_by_name(index, dtype):
    value = right()[index]
    if dtype == value.dtype:
        assert checked(right())[index].dtype == dtype
    else:
        refused(replaced(index, value.to(dtype)), f"input {NAMES[index]!r} is {str(dtype)[6:]}", str(INPUTS[index]))


@given(st.sampled_from([0, 1, 2]), st.lists(st.integers(1, 5), max_size=5))
def test_another_rank_is_refused_by_name(index, shape):
    rank = (3, 2, 0)[index]
    if len(shape) != rank:
        value = torch.zeros(shape, dtype=right()[index].dtype)
        refused(replaced(index, value), f"input {NAMES[index]!r} has the shape {shape}")


@given(st.integers(0, 20))
def test_another_static_size_is_refused_by_name(size):
    value = torch.zeros(2, size, 4)
    if size != 3:
        refused(replaced(0, value), "input 'image'", f"size {size} in dimension 1", "float32 [batch, 3, side]")


@given(st.integers(0, 40), st.integers(0, 40))
def test_a_size_outside_of_its_range_is_refused_by_input_and_dimension(batch, side):
    inside = {"batch": 1 <= batch <= 8, "side": 2 <= side <= 16}
    values = right(batch, side)
    if all(inside.values()):
        assert len(checked(values)) == 3
        return
    wrong = "batch" if not inside["batch"] else "side"
    size, (low, high) = {"batch": batch, "side": side}[wrong], DIMS[wrong]
    refused(values, "input 'image'", f"{wrong}={size}", f"{low} to {high}", f"model.dims.{wrong}")


@given(st.integers(1, 8), st.integers(1, 8), st.integers(2, 16), st.integers(2, 16))
def test_one_dimension_of_two_sizes_is_refused(batch, other, side, width):
    values = [*right(batch, side)[:1], torch.ones(other, width) > 0, torch.tensor(1.0)]
    if (batch, side) == (other, width):
        assert len(checked(values)) == 3
    else:
        name, second, first = ("batch", other, batch) if batch != other else ("side", width, side)
        refused(values, f"input 'mask' has {name}={second}", f"{name}={first}")


def test_another_device_is_refused_by_name():
    refused(replaced(0, torch.empty(2, 3, 4, device="meta")), "input 'image' is on meta, expected cpu")


@pytest.mark.filterwarnings("ignore:.*[Ss]parse.*:UserWarning")
def test_a_sparse_tensor_is_refused_by_name():
    refused(replaced(0, torch.ones(2, 3, 4).to_sparse()), "input 'image'", "sparse")


def test_a_call_under_autocast_is_refused():
    with torch.autocast("cpu", torch.bfloat16):
        refused(right(), "under torch.autocast", "precision=bf16")


def test_a_tensor_that_requires_grad_is_refused_unless_nothing_records_it():
    value = torch.rand(2, 3, 4, requires_grad=True)
    refused(replaced(0, value), "input 'image' requires grad", "inference_mode")
    with torch.no_grad():
        assert checked(replaced(0, value))[0] is value
    with torch.inference_mode():
        assert checked(replaced(0, value))[0] is value


class Tagged(torch.Tensor):
    """A subclass, whose own behaviour compiled code would pass by."""


@pytest.mark.parametrize(
    "value",
    [torch.ones(2, 3, 4).as_subclass(Tagged), [[1.0]], 1.0, None, "x", torch.ones(2, 3, 4).numpy(), torch.Size([2])],
)
def test_what_is_no_plain_tensor_is_refused_by_name_and_type(value):
    refused(replaced(0, value), f"input 'image' is a {type(value).__name__}", "float32 [batch, 3, side]")


# Strides


def permuted(value, order):
    return value.permute(order).contiguous().permute([order.index(axis) for axis in range(len(order))])


@given(st.permutations([0, 1, 2]), st.integers(1, 8), st.integers(2, 16))
def test_any_order_of_strides_is_copied_to_the_compiled_one(order, batch, side):
    value = permuted(torch.rand(batch, 3, side), list(order))
    found, _, _ = checked([value, torch.ones(batch, side) > 0, torch.tensor(1.0)])
    assert found.is_contiguous()
    assert torch.equal(found, value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.rand(4, 3, 2).transpose(0, 2),
        lambda: torch.rand(2, 6, 8)[:, ::2, ::2],
        lambda: torch.rand(2, 3, 9)[:, :, 5:],
        lambda: torch.rand(2, 1, 4).expand(2, 3, 4),
        lambda: torch.rand(1).expand(2, 3, 4),
        lambda: torch.rand(2, 4, 3).mT,
        lambda: torch.as_strided(torch.rand(30), (2, 3, 4), (1, 2, 3)),
        lambda: torch.rand(2, 3, 4, dtype=torch.complex64).conj().imag,  # the negative bit
        lambda: torch.rand(2, 3, 4, dtype=torch.complex64).real,
    ],
)
def test_a_view_is_copied_with_its_values(make):
    value = make()
    before = value.clone()
    found = checked([value, torch.ones(2, 4) > 0, torch.tensor(1.0)])[0]
    assert found.is_contiguous()
    assert not found.is_neg()
    assert found.stride() == (12, 4, 1)
    assert torch.equal(found, before)
    assert torch.equal(value, before)


def test_the_conjugate_bit_is_resolved():
    inputs = (InputSpec("z", ("batch", 3), "complex64"),)
    value = torch.rand(2, 3, dtype=torch.complex64).conj()
    assert value.is_conj()
    (found,) = TensorBoundary(spec_for(inputs=inputs), "cpu").check([value])
    assert not found.is_conj()
    assert torch.equal(torch.view_as_real(found), torch.view_as_real(value.resolve_conj()))


# Outputs

Pair = namedtuple("Pair", "left right")
pytree._register_namedtuple(Pair, serialized_type_name=f"{__name__}.Pair")

structures = st.recursive(
    st.just("tensor") | st.none() | st.integers(-9, 9) | st.booleans(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


def restored(structure):
    """What the boundary makes of the tensors of such an output, and what it should be."""
    leaves, spec = pytree.tree_flatten(structure)
    constants = {str(index): leaf for index, leaf in enumerate(leaves) if leaf != "tensor"}
    # as AOTInductor gives them: numbers as tensors, None as None
    tensors = [leaf if leaf is None else torch.full((), float(index)) for index, leaf in enumerate(leaves)]
    pairs = zip(leaves, tensors, strict=True)
    expected = pytree.tree_unflatten([tensor if leaf == "tensor" else leaf for leaf, tensor in pairs], spec)
    call = spec_for(structure, out_constants=constants)
    stored = CallSpec.from_json(json.loads(json.dumps(call.to_json())))
    assert stored == call
    return TensorBoundary(stored, "cpu").restore(tensors), expected


@given(structures)
def test_any_nesting_of_tensors_and_constants_comes_back_as_it_was(structure):
    found, expected = restored(structure)
    (ours, our_spec), (theirs, their_spec) = pytree.tree_flatten(found), pytree.tree_flatten(expected)
    assert our_spec == their_spec
    assert all(a is b or a == b for a, b in zip(ours, theirs, strict=True))
    assert [type(leaf) for leaf in ours] == [type(leaf) for leaf in theirs]


def test_a_dict_keeps_its_order_and_a_named_tuple_its_class():
    found, expected = restored(OrderedDict(b=Pair("tensor", None), a="tensor"))
    assert list(found) == ["b", "a"]
    assert type(found) is OrderedDict
    assert type(found["b"]) is Pair
    assert found["b"].left is expected["b"].left
    assert found["b"].right is None


def test_a_class_that_cannot_be_imported_here_is_a_load_error():
    with pytest.raises(LoadError, match="no_such_module_of_outputs"):
        TensorBoundary(spec_for(out_modules=("no_such_module_of_outputs",)), "cpu")
    broken = json.dumps([99, {}])
    with pytest.raises(LoadError, match="output"):
        TensorBoundary(CallSpec(INPUTS, DIMS, "cpu", broken), "cpu")
