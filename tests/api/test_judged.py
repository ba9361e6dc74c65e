"""A live module is served as it is itself: what a trace bakes in or leaves out is never served, and eager says why."""

from __future__ import annotations

import collections
import dataclasses
import logging

import pytest
import torch
from torch import nn

import app
from app.errors import ConfigError, VerifyError

SCALE = {"by": 2.0}
FOUND = []
Pair = collections.namedtuple("Pair", ["a", "b"])


@dataclasses.dataclass
class Answer:
    scores: torch.Tensor
    pair: Pair
    label: str = "none"
    rows: int = 0
    missing: torch.Tensor | None = None


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.calls, self.last = nn.Linear(4, 4), 0, None

    def forward(self, x):
        return self.layer(x)


class Compiling(Base):
    def forward(self, x):
        return self.layer(x) * 2 if torch.compiler.is_compiling() else self.layer(x)


class Counting(Base):
    def forward(self, x):
        self.calls += 1
        return self.layer(x)


class Remembering(Base):
    def forward(self, x):
        self.last = self.layer(x).detach()
        return self.last * 2


class Drawing(Base):
    def forward(self, x):
        return self.layer(x) + torch.rand(4)


class Scaled(Base):
    def forward(self, x):
        return self.layer(x) * SCALE["by"]


class Branching(Base):
    def forward(self, x):
        y = self.layer(x)
        return y * 2 if y.sum() > 0 else y - 1


class Structured(Base):
    def forward(self, x):
        y = self.layer(x)
        return Answer(y, Pair(y + 1, {"deep": [y * 2]}), "named", x.shape[0])


def collecting():
    module = Base()
    module.layer.register_forward_hook(lambda _, __, out: FOUND.append(out))
    return module


@pytest.fixture(autouse=True)
def session(compiled, store_dir):
    compiled("linear")
    with app.session(cache={"dir": str(store_dir)}):
        yield


X = torch.randn(3, 4)


@pytest.mark.smoke
@pytest.mark.filterwarnings("ignore:The tensor attribute")
@pytest.mark.parametrize(
    ("build", "why"),
    [
        (Compiling, "relative L2 error"),
        (Counting, "attribute calls, which compiled code would not do; verify.side_effects=allow"),
        (Remembering, "attribute last"),
        (collecting, "of layer returns nothing"),
    ],
)
def test_a_module_that_is_more_than_its_program_is_served_by_eager_with_the_reason(build, why):
    module = build().eval()
    model = app.compile_model(module, X)
    (step,) = model.info["fallbacks"]
    assert (model.info["rung"], step["stage"]) == ("eager", "verify")
    assert why in step["reason"]
    assert torch.equal(model(X), module(X))


def test_a_random_module_is_served_by_eager():
    model = app.compile_model(Drawing().eval(), X)
    assert model.info["rung"] == "eager"
    torch.manual_seed(1)
    first = model(X)
    torch.manual_seed(1)
    assert torch.equal(model(X), first)


def test_side_effects_are_allowed_where_it_is_said_and_refused_under_strict():
    model = app.compile_model(Counting().eval(), X, "verify.side_effects=allow")
    assert (model.info["rung"], model.info["fallbacks"]) == ("compiled", [])
    with pytest.raises(VerifyError, match="attribute calls"):
        app.compile_model(Counting().eval(), X, "fallback=strict")


@pytest.mark.smoke
def test_outputs_come_back_in_the_callers_own_classes(assert_same):
    module = Structured().eval()
    for _ in range(2):
        model = app.compile_model(module, X)
        assert (model.info["rung"], model.info["fallbacks"]) == ("compiled", [])
        with torch.no_grad():
            found, expected = model(X), module(X)
        assert (type(found), type(found.pair), found.label, found.missing) == (Answer, Pair, "named", None)
        assert (type(found.rows), found.rows) == (int, 3)
        assert_same(found.scores, expected.scores)
        assert_same(found.pair, expected.pair)
    assert model.info["cache"]["outcome"] == "direct-hit"


@pytest.mark.smoke
@pytest.mark.filterwarnings("ignore")
def test_a_hugging_face_model_is_compiled_and_starts_warm(assert_same, monkeypatch):
    transformers = pytest.importorskip("transformers")

    def bert():
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
        return transformers.BertModel(transformers.BertConfig(**sizes, vocab_size=100)).eval()

    def inputs(rows, width):
        mask = torch.ones(rows, width, dtype=torch.int64)
        mask[0, (width + 1) // 2 :] = 0  # as tokenizers pad
        return {"input_ids": torch.randint(0, 100, (rows, width)), "attention_mask": mask}

    dynamic = {
        name: {0: "batch", 1: torch.export.Dim("seq", min=1, max=64)} for name in ("input_ids", "attention_mask")
    }
    first = app.compile_model(bert(), inputs(2, 7), dynamic=dynamic)
    monkeypatch.setattr(torch.export, "export", None)
    model, module = app.compile_model(bert(), inputs(2, 7), dynamic=dynamic), bert()
    assert (first.info["rung"], model.info["cache"]["outcome"]) == ("compiled", "direct-hit")
    for rows, width in ((1, 1), (2, 7), (5, 64)):
        call = inputs(rows, width)
        with torch.no_grad():
            found, expected = model(**call), module(**call)
        assert type(found) is type(expected)
        assert_same(found.last_hidden_state, expected.last_hidden_state)
    assert model.stats()["calls"] == {"compiled": 3}


def test_a_hit_is_tried_on_the_examples_before_it_serves(monkeypatch, caplog):
    module = Scaled().eval()
    app.compile_model(module, X)
    assert app.compile_model(module, X).info["cache"]["outcome"] == "direct-hit"
    monkeypatch.setitem(SCALE, "by", 3.0)  # of a global's content the digest says nothing
    with caplog.at_level(logging.WARNING):
        model = app.compile_model(module, X)
    assert "answers the examples differently" in caplog.text
    assert "answers the examples differently" in model.info["cache"]["miss_reasons"][0]
    assert model.info["rung"] == "compiled"
    with torch.no_grad():
        torch.testing.assert_close(model(X), module(X))


def test_a_caller_vouches_by_a_key_and_may_have_every_module_exported():
    module = Base().eval()
    app.compile_model(module, X, key="judged-1")
    module.note = object()  # which no digest tells
    assert app.compile_model(module, X, key="judged-1").info["cache"]["outcome"] == "direct-hit"
    exported = app.compile_model(module, X, "cache.live=export").info["cache"]
    assert (exported["outcome"], exported["miss_reasons"]) == ("graph-hit", ["cache.live=export"])


def test_eager_is_the_module_as_it_was_compiled():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).eval()
    model, many = app.compile_model(module, X), torch.randn(2000, 4)
    with torch.no_grad():
        expected = module(many)
    module.train()
    mean = module[1].running_mean.clone()
    assert torch.allclose(model(many), expected, atol=1e-5)  # beyond what was compiled, so eager answers
    assert model.stats()["calls"] == {"eager": 1}
    assert torch.equal(module[1].running_mean, mean)
    assert not model.info["warnings"]
    with torch.no_grad():
        module[0].weight.zero_()
    for _ in range(2):
        model(many)
    (warning,) = model.info["warnings"]
    assert "weights were changed in place after it was compiled" in warning


def test_an_example_that_the_module_rejects_is_a_mistake_of_the_caller():
    with pytest.raises(
        ConfigError, match=r"rejects its example inputs \(input: float32 \[batch, 7\]\): RuntimeError: .*7"
    ):
        app.compile_model(nn.Sequential(nn.Linear(4, 4)).eval(), torch.randn(3, 7))


def test_what_does_not_export_is_compiled_by_torch_compile_and_warm_from_the_store():
    module = Branching().eval()
    for outcome in ("miss", "direct-hit"):
        model = app.compile_model(module, X)
        assert (model.info["rung"], model.info["cache"]["outcome"]) == ("jit", outcome)
        (step,) = model.info["fallbacks"]
        assert (step["from"], step["to"], step["stage"]) == ("compiled", "jit", "export")
        assert "torch.where" in step["reason"]
        with torch.no_grad():
            for x in (X, -X.abs(), X[:1]):
                assert torch.allclose(model(x), module(x), atol=1e-5)


def test_an_input_that_requires_grad_gets_its_gradient_from_eager():
    module = Base().eval()
    model = app.compile_model(module, X)
    ours, theirs = X.clone().requires_grad_(), X.clone().requires_grad_()
    model(ours).sum().backward()
    module(theirs).sum().backward()
    assert torch.allclose(ours.grad, theirs.grad)
    assert model(X).requires_grad is False
    assert module.layer.weight.grad is not None  # its own call's
    module.zero_grad()
    model(ours).sum().backward()
    assert module.layer.weight.grad is None
