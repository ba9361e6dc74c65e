"""The judge, with eager modules in the place of compiled ones: right ones pass, wrong ones never do."""

from __future__ import annotations

import copy
import json
from collections import namedtuple

import pytest
import torch
from torch import nn

from app.config import DimConfig
from app.record import Record
from app.verdict import Draw, refusal, summarise
from app.verify import Judge
from app.workloads import AtPrecision, Workload
from app.workloads.inputs import TensorInput

MULTIPLE, FLOOR = 3.0, 1e-5
X = (TensorInput("x", ("batch", 6), "float32"),)


class Module(nn.Module):
    """A module of one function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args, **kwargs):
        return self.function(*args, **kwargs)


def workload(module, inputs=X):
    return Workload(module.eval(), inputs, {"batch": DimConfig()}, "cpu")


def judged(module, compiled, inputs=X, eager=None):
    found = Judge(workload(module, inputs), eager or module).case(compiled, Draw({"batch": 3}, 0))
    return found, found.refusal(MULTIPLE, FLOOR)


def judged_functions(eager, compiled, inputs=X):
    return judged(Module(eager), compiled, inputs)


@pytest.fixture
def mlp():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)).requires_grad_(requires_grad=False)


def test_a_right_module_passes_with_its_own_figures(mlp):
    found, why = judged(mlp, copy.deepcopy(mlp))
    assert why is None
    assert (found.draw.sizes, found.draw.seed, found.reference, found.problem) == ({"batch": 3}, 0, "float64", None)
    assert found.rel_l2 == found.eager_rel_l2
    assert 0 < found.rel_l2 < 1e-6
    assert 0 < found.max_abs < 1e-5


def test_another_order_of_rounding_passes():
    def eager(x):
        return (x * 1.1 + 2.2) * 3.3

    found, why = judged_functions(eager, lambda x: x * (1.1 * 3.3) + 2.2 * 3.3)
    assert why is None
    assert found.rel_l2 != found.eager_rel_l2


def test_two_swapped_weights_are_refused(mlp):
    swapped = copy.deepcopy(mlp)
    first, second = swapped[0].weight, swapped[2].weight
    first.data, second.data = second.data.clone(), first.data.clone()
    found, why = judged(mlp, swapped)
    assert why.startswith("batch 3, seed 0: relative L2 error")
    assert found.problem is None


def test_one_wrong_number_among_many_is_refused(mlp):
    def wrong(x):
        out = mlp(x).clone()
        out[-1, -1] += 1e-3
        return out

    assert "relative L2 error" in judged(mlp, wrong)[1]


def test_the_worst_output_decides():
    def eager(x):
        return x * 1e6, x

    found, why = judged_functions(eager, lambda x: (x * 1e6, x * 1.01))
    assert found.rel_l2 == pytest.approx(0.01, rel=1e-3)
    assert why is not None


def test_the_answer_of_another_batch_size_is_refused(mlp):
    assert "float32 [2, 6], eager's is torch.float32 [3, 6]" in judged(mlp, lambda x: mlp(x)[:2])[1]


@pytest.mark.parametrize(
    ("compiled", "said"),
    [
        (lambda x: x.double(), "is torch.float64 [3, 6], eager's is torch.float32"),
        (lambda x: x.t(), "is torch.float32 [6, 3]"),
        (lambda x: (x,), "structured as"),
        (lambda x: {"x": x}, "structured as"),
        (lambda x: [x, x], "structured as"),
        (lambda x: 3, "output 0 is 3, eager's is a tensor"),
        (lambda x: None, "output 0 is None, eager's is a tensor"),
    ],
)
def test_another_type_shape_or_structure_is_refused_whatever_the_tolerance(compiled, said):
    found, _ = judged_functions(lambda x: x, compiled)
    assert said in found.refusal(1e9, 1e9)


Pair = namedtuple("Pair", "left right")


@pytest.mark.parametrize(
    ("eager", "wrong"),
    [
        (lambda x: {"a": x, "b": x + 1}, lambda x: {"a": x + 1, "b": x}),
        (lambda x: {"a": x, "b": x + 1}, lambda x: {"a": x, "c": x + 1}),
        (lambda x: Pair(x, x + 1), lambda x: (x, x + 1)),
        (lambda x: Pair(x, x + 1), lambda x: Pair(x + 1, x)),
        (lambda x: (x, None, 3), lambda x: (x, None, 4)),
        (lambda x: (x, [x, x * 2]), lambda x: (x, [x, x])),
    ],
)
def test_structured_outputs_pass_when_right_and_are_refused_when_wrong(eager, wrong):
    assert judged_functions(eager, eager)[1] is None
    assert judged_functions(eager, wrong)[1] is not None


# NaN and Inf


def poisoned(value, where):
    def run(x):
        out = x.clone()
        out[where] = value
        return out

    return run


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_inf_must_stand_in_the_same_places(value):
    same, here, there = poisoned(value, (0, 0)), poisoned(value, (0, 0)), poisoned(value, (0, 1))
    kind = "NaN" if value != value else "Inf"  # noqa: PLR0124
    assert judged_functions(here, same)[1] is None
    for wrong in (there, lambda x: x):
        found, _ = judged_functions(here, wrong)
        assert f"has {kind} in other places" in found.refusal(1e9, 1e9)
        assert f"has {kind} in other places" in judged_functions(lambda x: x, here)[1]


def test_the_sign_of_inf_matters():
    found, _ = judged_functions(poisoned(float("inf"), 0), poisoned(-float("inf"), 0))
    assert "Inf" in found.refusal(1e9, 1e9)


def test_wrong_numbers_beside_nan_are_refused():
    assert judged_functions(poisoned(float("nan"), (0, 0)), lambda x: poisoned(float("nan"), (0, 0))(x * 2))[1]


def test_an_output_of_nothing_but_nan_matches_itself_alone():
    def nothing(x):
        return x * float("nan")

    found, why = judged_functions(nothing, nothing)
    assert (why, found.rel_l2, found.max_abs) == (None, 0.0, 0.0)
    assert judged_functions(nothing, lambda x: x)[1] is not None


# Zero


def test_where_the_truth_is_zero_the_figures_stay_finite_and_eagers_own_error_is_the_measure():
    # exact in float64, where float32 leaves rounding noise
    def noise(x):
        return ((x + 1) - 1) - x

    found, why = judged_functions(noise, noise)
    assert why is None
    assert 0 < found.max_abs < 1e-6
    info = summarise([found], MULTIPLE, FLOOR)
    assert json.loads(Record(status="ok", task="benchmark", verify=info).to_json())["verify"]["passed"] is True
    assert judged_functions(noise, lambda x: x)[1] is not None


def test_an_output_that_is_zero_must_be_zero():
    assert judged_functions(lambda x: x * 0, lambda x: x * 0)[1] is None
    assert judged_functions(lambda x: x * 0, lambda x: x)[1] is not None


def test_an_empty_output_passes():
    found, why = judged_functions(lambda x: x[:, :0], lambda x: x[:, :0])
    assert (why, found.rel_l2) == (None, 0.0)


# Integers and complex numbers


def test_integers_are_exact():
    tokens = (TensorInput("x", ("batch", 6), "int64", low=0, high=100),)
    found, why = judged_functions(lambda x: x + 1, lambda x: x + 1, tokens)
    assert (why, found.rel_l2) == (None, 0.0)
    found, _ = judged_functions(lambda x: x + 1, lambda x: x + (x == x.max()) + 1, tokens)
    assert "integers" in found.refusal(1e9, 1e9)


def test_an_index_that_float64_gives_too_is_right_where_eager_rounds_to_a_tie():
    def eager(x):  # in float32 the two columns tie, and the first wins; in float64 the second is larger
        wide = torch.stack([x[:, 0] * 0 + 1.0, x[:, 0] * 0 + 1.0 + 1e-12], 1)
        return wide.argmax(1)

    found, why = judged_functions(eager, lambda x: torch.ones(len(x), dtype=torch.int64))
    assert found.reference == "float64"
    assert why is None
    assert judged_functions(eager, lambda x: torch.full((len(x),), 5))[1] is not None


def test_booleans_are_exact():
    assert judged_functions(lambda x: x > 0, lambda x: x > 0)[1] is None
    assert "integers" in judged_functions(lambda x: x > 0, lambda x: x <= 0)[1]


def test_complex_numbers_are_compared_in_both_parts():
    def eager(x):
        return torch.fft.fft(x, dim=1)

    assert judged_functions(eager, eager)[1] is None
    assert "relative L2" in judged_functions(eager, lambda x: eager(x).conj())[1]
    assert "complex64" in judged_functions(eager, lambda x: eager(x).real)[1]


# References


class Stubborn(nn.Module):
    """Holds a plain float32 tensor, which `double()` doesn't reach."""

    def __init__(self):
        super().__init__()
        self.table = torch.eye(6)

    def forward(self, x):
        return x @ self.table


def test_a_module_that_cannot_run_in_float64_is_judged_by_eager_and_says_so():
    module = Stubborn()
    found, why = judged(module, lambda x: x @ torch.eye(6))
    assert (why, found.reference, found.eager_rel_l2) == (None, "eager", 0.0)
    assert summarise([found], MULTIPLE, FLOOR).reference == "eager"
    assert "against eager" in judged(module, lambda x: x * 1.001)[1]


def test_the_module_itself_is_left_in_its_own_precision(mlp):
    Judge(workload(mlp), mlp).case(mlp, Draw({"batch": 2}, 0))
    assert {value.dtype for value in mlp.parameters()} == {torch.float32}


def test_bf16_is_allowed_its_own_rounding_and_no_more(mlp):
    half = AtPrecision(mlp, torch.bfloat16)
    found = Judge(workload(mlp), half).case(copy.deepcopy(half), Draw({"batch": 3}, 0))
    assert 1e-4 < found.rel_l2 == found.eager_rel_l2 < 2e-2
    assert found.refusal(MULTIPLE, 1e-2) is None
    assert refusal([found], MULTIPLE, FLOOR) is None  # eager's own error is the measure
    assert judged(mlp, half)[1] is not None  # as fp32 it would be wrong


class NotInFloat64(nn.Module):
    """Like an exported program, which holds the dtypes that it was traced at."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        assert x.dtype != torch.float64
        return self.module(x)


def test_bf16_without_float64_is_judged_by_the_module_before_the_cast(mlp):
    module = NotInFloat64(mlp)
    half = AtPrecision(module, torch.bfloat16)
    judge = Judge(workload(module), half)
    found = judge.case(copy.deepcopy(half), Draw({"batch": 3}, 0))
    assert found.reference == "original"
    assert 1e-4 < found.rel_l2 == found.eager_rel_l2 < 2e-2
    assert summarise([found], MULTIPLE, 1e-2).passed
    assert judge.case(mlp, Draw({"batch": 3}, 0)).rel_l2 < 1e-6, "fp32 is no further from itself"
    assert not summarise([judge.case(lambda x: 1.2 * half(x), Draw({"batch": 3}, 0))], MULTIPLE, 1e-2).passed


def test_equal_batch_and_seed_judge_equal_inputs(mlp):
    seen = []
    judge = Judge(workload(mlp), mlp)
    for batch, seed in ((2, 0), (2, 0), (2, 1), (3, 0)):
        judge.case(lambda x: seen.append(x) or mlp(x), Draw({"batch": batch}, seed))
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])
    assert [len(x) for x in seen] == [2, 2, 2, 3]


@pytest.mark.parametrize("scale", [1.0, 1e-7], ids=["large", "too-small-to-see"])
def test_a_random_model_is_refused_whatever_its_distance_from_float64(scale):
    def noisy(x):
        return x + torch.rand_like(x) * scale

    _, why = judged_functions(noisy, noisy)
    assert "random" in why


def test_a_model_that_answers_differently_each_time_is_refused():
    class Counting(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return x * self.calls

    _, why = judged(Counting(), lambda x: x)
    assert "answers the same inputs differently" in why
