"""The zoo: awkward modules through the whole ladder, each on the highest rung that is right, and equal to eager.

A few are visited in every run; APP_ZOO=full visits all of them, which takes minutes.
"""

from __future__ import annotations

import copy
import os

import animals
import pytest
import torch
from torch.utils import _pytree as pytree

from app import pipeline
from app.fallback import EAGER, served
from app.runtime.ladder import Ladder

pytestmark = pytest.mark.slow
FULL = os.environ.get("APP_ZOO") == "full"
MAIN = [
    pytest.param(
        animal,
        id=animal.kind.replace(" ", "-"),
        marks=[] if animal.often or FULL else pytest.mark.skip(reason="APP_ZOO=full visits all animals"),
    )
    for animal in animals.ANIMALS
]


@pytest.fixture(scope="module")
def serve(context_of, store_dir):
    """A module through the pipeline: its context, and a ladder of what serves it above the module itself."""

    def served_by(args):
        context = context_of([*args, "mode=default", "fallback=graceful", f"cache.dir={store_dir}"])
        model = None
        with pipeline.falling_back(context), pipeline.opened(context) as store:
            model = pipeline.obtain(context, store)
            context.record.rung = served(context.record.fallbacks)
        rungs = [(context.record.rung, model)] if context.record.rung != EAGER else []
        return context, Ladder([*rungs, (EAGER, context.workload.module)], context.settings.fallback, context.step)

    return served_by


def cloned(call):
    return pytree.tree_map_only(torch.Tensor, torch.clone, call)


@pytest.mark.parametrize("animal", MAIN)
def test_animal_ends_on_the_highest_rung_that_is_right(animal, serve, assert_same):
    context, ladder = serve(animal.args)
    reasons = [f"{step.from_} -> {step.to} at {step.stage}: {step.reason}" for step in context.record.fallbacks]
    print(f"ZOO {animal.kind} | {context.record.rung} | {animal.rung} | {reasons}")
    eager = copy.deepcopy(context.workload.module)  # what keeps state keeps it apart
    for batch in (1, 3, 8):
        call = context.workload.call(batch, seed=7)
        with torch.inference_mode():
            args, kwargs = cloned(call)
            torch.manual_seed(batch)
            rung, ours = ladder.serve(args, kwargs)
            theirs, named = cloned(call)
            torch.manual_seed(batch)
            expected = eager(*theirs, **named)
        assert_same(animals.plain(ours), animals.plain(expected))
        assert_same((args, kwargs), (theirs, named))  # what the module does to its inputs is done
        assert rung == context.record.rung
    assert context.record.rung == animal.rung, reasons


def backward(answer, x):
    """The gradient that a call leaves, where its input asks for one."""
    if not (answer.requires_grad and x.requires_grad):
        return None
    answer.float().square().sum().backward()
    gradient, x.grad = x.grad, None
    return gradient


@pytest.fixture(scope="module")
def plain_served(serve):
    context, ladder = serve(animals.Animal("plain", animals.Plain, "compiled", animals.IMAGES).args)
    assert context.record.rung == "compiled"
    return context, ladder


@pytest.mark.parametrize("call", animals.CALLS, ids=lambda call: call.kind.replace(" ", "-"))
def test_call_is_answered_by_the_highest_rung_that_is_right(call, plain_served, assert_same):
    context, ladder = plain_served
    x = call.change(torch.randn(4, 3, 6, 6))
    with call.mode():
        rung, ours = ladder.serve((x,), {})
        expected = context.workload.module(x)
    assert rung == call.rung, context.record.fallbacks
    assert_same(ours, expected)
    assert_same(backward(ours, x), backward(expected, x))
