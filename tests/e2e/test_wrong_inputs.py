"""Wrong inputs thrown at every compiled model: an InputError that names the input, or the right answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.errors import InputError

MODELS = ["cnn", pytest.param("linear", marks=pytest.mark.smoke), "transformer", "minilm"]
DTYPES = [torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.int64, torch.bool, torch.complex64]


def transposed(value, _):
    return value.transpose(0, value.dim() - 1).contiguous().transpose(0, value.dim() - 1)


def sliced(value, _):
    """Every other element of a larger tensor."""
    wide = torch.zeros(*value.shape[:-1], 2 * value.shape[-1], dtype=value.dtype)
    wide[..., ::2] = value
    return wide[..., ::2]


def shifted(value, _):
    """Contiguous, but not where a vector register would like it."""
    room = torch.zeros(value.numel() + 1, dtype=value.dtype)
    room[1:] = value.flatten()
    return room[1:].view(value.shape)


def resized(value, draw):
    axis = draw(st.integers(0, value.dim() - 1))
    size = draw(st.sampled_from([0, 1, value.shape[axis] - 1, value.shape[axis] + 1, 2 * value.shape[axis], 1025]))
    indices = torch.arange(size) % max(1, value.shape[axis])
    return value.index_select(axis, indices)


def as_subclass(value, _):
    return value.as_subclass(type("Sub", (torch.Tensor,), {}))


# Each takes a right input and gives another: wrong, or right in an unusual form.
MUTATIONS = {
    "dtype": lambda value, draw: value.to(draw(st.sampled_from(DTYPES))),
    "size": resized,
    "one more dimension": lambda value, draw: value.unsqueeze(draw(st.integers(0, value.dim()))),
    "one dimension less": lambda value, draw: value.select(draw(st.integers(0, value.dim() - 1)), 0),
    "flat": lambda value, _: value.flatten(),
    "transposed in memory": transposed,
    "axes swapped": lambda value, _: value.transpose(0, value.dim() - 1),
    "sliced": sliced,
    "shifted": shifted,
    "expanded": lambda value, _: value[:1].expand(value.shape),
    "reversed": lambda value, _: value.flip(0),
    "meta": lambda value, _: value.to("meta"),
    "sparse": lambda value, _: value.to_sparse(),
    "subclass": as_subclass,
    "parameter": lambda value, _: torch.nn.Parameter(value, requires_grad=False),
    "requires grad": lambda value, _: value.float().requires_grad_() if value.is_floating_point() else value,
    "too large": lambda value, draw: value + draw(st.sampled_from([1, 1000, 2**40])),
    "below zero": lambda value, draw: value - draw(st.sampled_from([1, 1000, 2**40])),
    "none": lambda *_: None,
    "number": lambda *_: 1.0,
    "list": lambda value, _: value.tolist(),
    "array": lambda value, _: np.asarray(value),
    "nan": lambda value, _: torch.full_like(value, torch.nan) if value.is_floating_point() else value,
    "inf": lambda value, _: torch.full_like(value, torch.inf) if value.is_floating_point() else value,
    "nothing": lambda value, _: value,
}


def check(job, assert_same, args, kwargs, names):
    """Call both: the compiled model answers as eager does, or raises an InputError with one of `names` in it."""
    try:
        ours = job.model(*args, **kwargs)
    except InputError as error:
        told = str(error)
    else:
        with torch.no_grad():
            assert_same(ours, job.eager(*args, **kwargs))
        return
    assert any(name in told for name in names), told


FEW = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.mark.timeout(900)  # MiniLM's calls take a second each where other tests run beside it
@pytest.mark.parametrize("model", MODELS)
def test_mutated_input_is_refused_by_name_or_answered_as_eager_does(loaded, assert_same, model):
    job = loaded(model)

    @FEW
    @given(st.data())
    def mutate_one(data):
        args, kwargs = job.context.workload.call(data.draw(st.sampled_from([1, 2, 5])), data.draw(st.integers(0, 3)))
        values = dict(zip([spec.name for spec in job.model.spec.inputs], [*args, *kwargs.values()], strict=True))
        name = data.draw(st.sampled_from(sorted(values)))
        values[name] = MUTATIONS[data.draw(st.sampled_from(sorted(MUTATIONS)))](values[name], data.draw)
        # a dimension shared with another input may be told at that one
        check(job, assert_same, (), values, list(values)) if kwargs else check(
            job, assert_same, tuple(values.values()), {}, [name]
        )

    mutate_one()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("mutation", ["dtype", "none", "meta", "one more dimension", "flat", "list", "sparse"])
def test_what_compiled_code_would_misread_is_refused(loaded, model, mutation):
    job = loaded(model)
    args, kwargs = job.context.workload.call(2)
    names = [spec.name for spec in job.model.spec.inputs]
    values = dict(zip(names, [*args, *kwargs.values()], strict=True))
    for name in names:
        for dtype in DTYPES if mutation == "dtype" else [None]:
            if dtype == values[name].dtype:
                continue
            wrong = MUTATIONS[mutation](values[name], lambda _, dtype=dtype: dtype or 0)
            with pytest.raises(InputError, match=rf"input '{name}'"):
                job.model(**{**values, name: wrong})


@pytest.mark.parametrize("model", MODELS)
def test_too_many_too_few_and_unknown_inputs_are_refused_by_name(loaded, assert_same, model):
    job = loaded(model)
    args, kwargs = job.context.workload.call(2)
    names = [spec.name for spec in job.model.spec.inputs]
    values = dict(zip(names, [*args, *kwargs.values()], strict=True))
    first = values[names[0]]
    with pytest.raises(InputError, match=f"missing input '{names[0]}'"):
        job.model(**{name: value for name, value in values.items() if name != names[0]})
    with pytest.raises(InputError, match="unknown input 'bogus'"):
        job.model(**values, bogus=first)
    with pytest.raises(InputError, match=names[0]):
        job.model(*[first] * (len(names) + 1))
    with torch.no_grad():
        assert_same(job.model(**values), job.eager(*args, **kwargs))


def test_sizes_beyond_the_compiled_range_are_refused_with_the_setting_that_widens_it(loaded):
    model = loaded("linear").model
    with pytest.raises(InputError, match=r"batch=1025, outside of 1 to 1024.*model\.dims\.batch\.max"):
        model(torch.zeros(1025, 768))
    with pytest.raises(InputError, match=r"batch=0, outside of 1 to 1024"):
        model(torch.zeros(0, 768))


@pytest.mark.parametrize(("wrong", "told"), [(1000, "1000"), (-1, "-1"), (2**62, str(2**62))])
def test_an_index_outside_of_its_table_is_refused_and_does_not_end_the_process(loaded, wrong, told):
    job = loaded("transformer")
    tokens = torch.zeros(2, 32, dtype=torch.int64)
    tokens[1, 7] = wrong
    with pytest.raises(
        InputError, match=rf"input 'tokens' holds {told}, outside of 0 to 999.*model\.inputs\[tokens\]"
    ):
        job.model(tokens)


def test_inputs_that_disagree_on_a_shared_dimension_are_refused(loaded):
    job = loaded("minilm")
    _, kwargs = job.context.workload.call(2)
    with pytest.raises(InputError, match="'attention_mask' has batch=1, but an input before it has batch=2"):
        job.model(input_ids=kwargs["input_ids"], attention_mask=kwargs["attention_mask"][:1])


def test_an_input_that_requires_grad_is_refused_only_where_grad_is_on(loaded, assert_same):
    job = loaded("linear")
    value = torch.randn(2, 768, requires_grad=True)
    with pytest.raises(InputError, match="input 'input' requires grad"):
        job.model(value)
    with torch.no_grad():
        assert_same(job.model(value), job.eager(value))


def test_refused_calls_leave_the_model_answering_right(loaded, assert_same):
    job = loaded("cnn")
    (value,), _ = job.context.workload.call(3)
    with torch.inference_mode():
        before = job.model(value).clone()
        with pytest.raises(InputError):
            job.model(value.double())
        assert torch.equal(job.model(value), before)
        assert_same(before, job.eager(value))
