"""A model served from graphs: captured at every bucket, padded in every dimension, and never wrong about either."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from app.compiler.export import export
from app.config import DimConfig
from app.errors import CaptureError, InputError
from app.runtime.model import CompiledModel
from app.runtime.plans import Latencies
from app.runtime.tensors import TensorBoundary
from app.verify import Judge
from app.workloads import Workload
from app.workloads.inputs import TensorInput
from tests.runtime.simulator import Simulator

ALL = dict.fromkeys((1, 2, 4, 8), 1.0)
PADDED = {(): Latencies(ALL, dict.fromkeys(ALL, 9.0))}


class Library:
    """What a loaded library is to CompiledModel: here the module itself, one opaque operation to the simulator."""

    uncapturable = None

    def __init__(self, module, spec, simulator):
        self.constants = {name: value.detach() for name, value in module.state_dict().items()}
        self.sizes = []
        self._module, self._spec, self._simulator = module, spec, simulator

    def __call__(self, tensors):
        self.sizes.append(tensors[0].shape[0])
        return self._simulator.artifact(self._run)(tensors)

    def _run(self, tensors):
        with torch.no_grad():
            found = torch.func.functional_call(self._module, self.constants, tuple(tensors))
        return list(found) if isinstance(found, tuple) else [found]

    def addresses(self):
        return tuple(value.data_ptr() for value in self.constants.values())

    def borrow(self, constants):
        self.constants = dict(constants)


class Tagger(nn.Module):
    """Attends within a mask: a vector for each token, and their masked mean."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.out = nn.Embedding(50, 8), nn.Linear(8, 3)
        self.eval()

    def forward(self, tokens, mask):
        x = self.table(tokens)
        scores = (x @ x.transpose(1, 2)).masked_fill(~mask[:, None, :], float("-inf"))
        x = scores.softmax(-1).nan_to_num() @ x
        weights = mask[..., None].float()
        return self.out(x), (x * weights).sum(1) / weights.sum(1).clamp(min=1)


class Mean(nn.Module):
    """A mean without a mask: padding would change it."""

    def forward(self, x):
        return x.mean(1)


SEQUENCES = {"batch": DimConfig(max=64), "seq": DimConfig(min=1, max=32, example=6)}
TAGGED = (
    TensorInput("tokens", ("batch", "seq"), "int64", low=3, high=50),
    TensorInput("mask", ("batch", "seq"), "bool"),
)


@pytest.fixture
def served():
    """A module as a compiled model over the simulator, with what its verification found of padding."""

    def make(module, inputs, dims, *, constants=None, **buckets):
        workload = Workload(module, inputs, dims, "cpu")
        spec, simulator = export(workload, module).spec, Simulator()
        library = Library(module, spec, simulator)
        mixing = Judge(workload, module).mixing(spec)
        model = CompiledModel(
            library, TensorBoundary(spec, "cpu"), mixing=mixing, buckets=buckets, constants=constants
        )
        return model, workload, simulator, library

    return make


@pytest.fixture
def linear(served):
    """A linear layer, its weights external, captured at 1, 2, 4 and 8."""
    torch.manual_seed(0)
    module = nn.Linear(6, 3).eval()
    names = {name: {"stored": name, "stride": None, "name": name} for name in module.state_dict()}
    inputs = (TensorInput("x", ("batch", 6), "float32"),)
    model, workload, simulator, library = served(module, inputs, {"batch": DimConfig(max=64)}, constants=names)
    model.capture(simulator, [1, 2, 4, 8])
    return model, workload, module, library


def same(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_calls_of_any_size_are_replayed_padded_and_split(linear):
    model, workload, module, library = linear
    model.use(PADDED)
    library.sizes.clear()
    for size in range(1, 20):
        (x,), _ = workload.call(size, seed=size)
        same(model(x), module(x))
        assert model.replays(size)
    assert library.sizes == [], "a graph that is replayed runs nothing of its own"
    stats = model.stats()
    assert sum(stats["graphs"]["replayed"].values()) >= 19
    assert (stats["graphs"]["hit_rate"], stats["batch_sizes"]["3"]) == (1.0, 1)
    computed = sum(size + model.plan(size).padding for size in range(1, 20))
    assert stats["graphs"]["padding_waste"] == pytest.approx(1 - sum(range(1, 20)) / computed)


def test_without_a_plan_captured_sizes_are_replayed_and_others_run_as_they_are(linear):
    model, workload, module, library = linear
    library.sizes.clear()
    for size in (4, 5):
        (x,), _ = workload.call(size)
        same(model(x), module(x))
    assert library.sizes == [5]
    assert [model.replays(size) for size in (4, 5)] == [True, False]
    assert model.stats()["graphs"]["hit_rate"] == 0.5


def test_rows_that_mix_are_replayed_at_captured_sizes_only_and_never_padded(served):
    class Centred(nn.Module):
        def forward(self, x):
            return x - x.mean(0)

    inputs = (TensorInput("x", ("batch", 6), "float32"),)
    model, workload, simulator, library = served(Centred(), inputs, {"batch": DimConfig(max=64)})
    model.capture(simulator, [2, 4])
    model.use(PADDED)
    library.sizes.clear()
    for size in (2, 3, 4):
        (x,), _ = workload.call(size)
        same(model(x), x - x.mean(0))
    assert library.sizes == [3]


def test_a_sequence_is_padded_to_its_bucket_and_every_output_is_cut_back(served):
    module = Tagger()
    model, workload, simulator, library = served(module, TAGGED, SEQUENCES, seq=[4, 8, 16])
    assert model.unpaddable == {}
    model.capture(simulator, [1, 4])
    assert len(model.captured) == 6
    model.use({others: Latencies({1: 1.0, 4: 1.5}, {1: 9.0, 4: 20.0}) for others in model.others})
    library.sizes.clear()
    for batch in (1, 3, 5):
        for seq in (1, 4, 5, 16):
            args, _ = workload.call(batch, seed=seq, others={"seq": seq})
            same(model(*args), module(*args))
    assert library.sizes == []
    args, _ = workload.call(3, others={"seq": 17})
    same(model(*args), module(*args))
    assert library.sizes == [3], "beyond the largest bucket it runs as it is"
    assert [model.replays(3, model.others_of({"seq": seq})) for seq in (16, 17)] == [True, False]


def test_a_dimension_that_padding_would_change_is_not_padded_and_says_why(served):
    inputs = (TensorInput("x", ("batch", "seq", 4), "float32"),)
    model, _, simulator, _ = served(Mean(), inputs, SEQUENCES, seq=[4, 8])
    assert model.unpaddable == {"seq": "an output depends on what the seq is padded with"}
    assert model.others == [()]
    with pytest.raises(CaptureError, match="seq varies: an output depends on what the seq is padded with"):
        model.capture(simulator, [1, 4])


def test_a_dimension_without_buckets_is_named(served):
    model, _, simulator, _ = served(Tagger(), TAGGED, SEQUENCES)
    with pytest.raises(CaptureError, match=r"seq varies: graphs\.buckets has no sizes of it: graphs\.buckets\.seq="):
        model.capture(simulator, [1, 4])


def test_a_library_that_is_not_single_threaded_is_refused_by_its_reason(linear):
    model, _, _, library = linear
    library.uncapturable = "torch has no such interface"
    with pytest.raises(CaptureError, match="no such interface"):
        model.capture(Simulator(), [1])


def test_weights_written_in_place_serve_from_the_same_graphs(linear):
    model, workload, module, library = linear
    (x,), _ = workload.call(4)
    new = {name: value * 2 for name, value in module.state_dict().items()}
    library.sizes.clear()
    model.load_state_dict(new)
    same(model(x), torch.func.functional_call(module, new, (x,)))
    assert library.sizes == []


def test_new_storage_drops_the_graphs_and_assigning_captures_them_again(linear):
    model, workload, module, library = linear
    (x,), _ = workload.call(4)
    library.borrow({name: value.clone() for name, value in library.constants.items()})
    for _ in range(2):
        with pytest.raises(CaptureError, match=r"addresses changed|no CUDA graphs"):
            model(x)
    same(model.as_it_is(x), module(x))
    new = {name: value * 3 for name, value in module.state_dict().items()}
    model.load_state_dict(new, assign=True)
    library.sizes.clear()
    same(model(x), torch.func.functional_call(module, new, (x,)))
    assert library.sizes == []


def test_what_does_not_fit_is_refused_before_anything_changes(linear):
    model, workload, module, _ = linear
    state = module.state_dict()
    for wrong, told in [({"weight": state["weight"]}, "lacks 'bias'"), ({**state, "bias": torch.ones(4)}, "shape")]:
        with pytest.raises(InputError, match=told):
            model.load_state_dict(wrong)
    (x,), _ = workload.call(4)
    same(model(x), module(x))


def test_what_a_frozen_model_can_not_do_raises(served):
    model, *_ = served(nn.Linear(6, 3).eval(), (TensorInput("x", ("batch", 6), "float32"),), {"batch": DimConfig()})
    assert model.eval() is model
    assert model.train(False) is model
    for call in (model.train, lambda: model.to("cuda"), lambda: model.load_state_dict({})):
        with pytest.raises(InputError):
            call()


def test_released_graphs_leave_a_model_that_runs_as_before(linear):
    model, workload, module, _ = linear
    model.release()
    (x,), _ = workload.call(4)
    same(model(x), module(x))
    assert (model.captured, "graphs" in model.stats()) == ([], False)


def test_views_of_a_split_call_are_not_overwritten_by_its_own_next_step(served):
    torch.manual_seed(0)
    module = nn.Linear(6, 3).eval()
    inputs = (TensorInput("x", ("batch", 6), "float32"),)
    model, workload, simulator, _ = served(module, inputs, {"batch": DimConfig(max=64)})
    model.capture(simulator, [1, 2, 4, 8], outputs="view")
    model.use(PADDED)
    for size in (16, 13, 8):
        (x,), _ = workload.call(size)
        same(model(x), module(x))


def test_a_gate_that_is_zero_today_hides_no_mixing_from_exchangeable_weights():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = nn.Parameter(torch.zeros(6))
            self.eval()

        def forward(self, x):
            return x + self.gate * x.mean(1, keepdim=True)

    module = Gated()
    workload = Workload(module, (TensorInput("x", ("batch", "seq", 6), "float32"),), SEQUENCES, "cpu")
    spec, judge = export(workload, module).spec, Judge(workload, module)
    assert judge.mixing(spec) == {}
    assert judge.mixing(spec, any_weights=True) == {"seq": "an output depends on what the seq is padded with"}
    assert judge.mixing(spec) == {}, "the weights are what they were"
    assert not module.gate.any()


def test_constants_of_the_code_stay_when_weights_are_exchanged(linear):
    model, _, module, library = linear
    library.constants["lifted"] = torch.ones(2)
    model._constants["lifted"] = {"stored": "lifted", "stride": None, "name": None}
    model.load_state_dict(module.state_dict())
    assert library.constants["lifted"].tolist() == [1, 1]
