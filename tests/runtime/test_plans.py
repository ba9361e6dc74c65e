"""Batch plans: every size is covered, by nothing dearer than what anybody would try by hand."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.runtime.plans import Latencies, Plan, Planner, Step

COSTS = st.floats(0.001, 1000)
BUCKETS = st.dictionaries(st.integers(1, 64), COSTS, max_size=8)
OVERHEADS = st.floats(0, 5)


@st.composite
def latencies(draw):
    buckets, dynamic = draw(BUCKETS), draw(BUCKETS)
    if not buckets and not dynamic:
        dynamic = {1: 1.0}
    return Latencies(buckets, dynamic, draw(OVERHEADS), draw(OVERHEADS))


def planner(known, largest=1000):
    return Planner(known, largest)


def cost_of(known, steps):
    """What a plan costs, from its own words."""
    total = known.split_ms * (len(steps) - 1)
    for step in steps:
        if step.bucket is None:
            total += known.run_dynamic(step.rows)
        else:
            total += known.buckets[step.bucket] + (known.pad_ms if step.bucket > step.rows else 0.0)
    return total


def greedy(known, rows):
    """Largest bucket that fits, again and again; the remainder padded to the smallest bucket that holds it."""
    steps = []
    while rows:
        fitting = [bucket for bucket in known.buckets if bucket <= rows]
        if fitting:
            steps.append(Step(max(fitting), max(fitting)))
        else:
            steps.append(Step(rows, min(known.buckets)))
        rows -= steps[-1].rows
    return steps


@given(latencies(), st.integers(1, 150))
def test_every_size_is_covered_once_and_the_cost_is_that_of_the_steps(known, rows):
    plan = planner(known).plan(rows)
    assert sum(step.rows for step in plan.steps) == rows
    assert all(step.rows >= 1 for step in plan.steps)
    assert all(step.bucket is None or step.bucket in known.buckets for step in plan.steps)
    assert all(step.bucket is None or step.bucket >= step.rows for step in plan.steps)
    assert plan.cost_ms == pytest.approx(cost_of(known, plan.steps))


@given(latencies(), st.integers(1, 150))
def test_no_plan_is_dearer_than_a_single_bucket_the_dynamic_artifact_or_a_greedy_split(known, rows):
    cost = planner(known).plan(rows).cost_ms * (1 - 1e-9)
    for bucket in known.buckets:
        if bucket >= rows:
            assert cost <= cost_of(known, [Step(rows, bucket)])
    if known.dynamic:
        assert cost <= known.run_dynamic(rows)
    if known.buckets:
        assert cost <= cost_of(known, greedy(known, rows))


def all_splits(rows):
    if rows == 0:
        yield []
    for first in range(1, rows + 1):
        for rest in all_splits(rows - first):
            yield [first, *rest]


@given(latencies(), st.integers(1, 7))
def test_no_plan_is_dearer_than_any_split_at_all(known, rows):
    def cheapest(piece):
        options = [Step(piece, bucket) for bucket in known.buckets if bucket >= piece]
        options += [Step(piece)] if known.dynamic else []
        return min(options, key=lambda step: cost_of(known, [step]), default=None)

    ways = ([cheapest(piece) for piece in split] for split in all_splits(rows))
    best = min((cost_of(known, steps) for steps in ways if None not in steps), default=float("inf"))
    ours = planner(known).plan(rows).cost_ms
    assert ours <= best * (1 + 1e-9)


def test_of_equal_costs_the_fewest_steps_win():
    assert planner(Latencies({2: 1.0, 4: 2.0}, {})).plan(4).steps == (Step(4, 4),)


def test_a_size_between_buckets_is_padded_split_or_run_as_it_is_whichever_is_cheapest():
    flat = Latencies({4: 1.0, 8: 1.1}, {})
    assert str(planner(flat).plan(5)) == "5->8"
    steep = Latencies({1: 1.0, 4: 1.2, 8: 9.0}, {})
    assert str(planner(steep).plan(5)) in {"4 + 1", "1 + 4"}
    dynamic = Latencies({8: 9.0}, {4: 1.0, 8: 2.0})
    assert planner(dynamic).plan(5) == Plan((Step(5),), pytest.approx(1.25))


def test_beyond_the_largest_bucket_the_cost_grows_without_a_cliff():
    known = Latencies({size: 1.0 + 0.1 * size for size in (1, 2, 4, 8, 16, 32)}, {})
    costs = [planner(known).plan(rows).cost_ms for rows in range(1, 65)]
    steps = [after - before for before, after in itertools.pairwise(costs)]
    assert max(steps) <= 2.0
    assert str(planner(known).plan(33)).startswith("32")


def test_what_is_beyond_the_dynamic_artifacts_range_is_split():
    known = Latencies({}, {4: 1.0})
    assert [step.rows for step in planner(known, largest=4).plan(9).steps] == [4, 4, 1]


def test_without_bucket_and_artifact_there_is_no_plan():
    with pytest.raises(ValueError, match="for 3 rows"):
        planner(Latencies({}, {})).plan(3)


@given(latencies(), st.integers(1, 100))
def test_what_is_kept_gives_the_same_plans_again(known, rows):
    again = Latencies.from_json(json.loads(json.dumps(known.to_json())))
    assert planner(again).plan(rows) == planner(known).plan(rows)


def test_no_dynamic_step_is_smaller_than_the_program_was_exported_for():
    known = Latencies({4: 1.0, 64: 70.0}, {4: 1.0, 64: 70.0})
    made = Planner(known, largest=1000, smallest=4)
    for rows in range(4, 200):
        assert all(step.bucket is not None or step.rows >= 4 for step in made.plan(rows).steps)
    assert str(made.plan(9)).count("dynamic") <= 1
    with pytest.raises(ValueError, match="no bucket and no dynamic artifact for 3 rows"):
        Planner(Latencies({}, {4: 1.0}), largest=1000, smallest=4).plan(3)


def test_very_many_rows_are_planned_at_once_and_within_what_was_exported():
    known = Latencies({8: 1.0, 64: 4.0}, {8: 2.0, 64: 6.0})
    plan = Planner(known, largest=100_000).plan(50_003)
    assert sum(step.rows for step in plan.steps) == 50_003
    assert plan.cost_ms <= known.run_dynamic(50_003)
    assert str(Planner(Latencies({64: 9.0}, {64: 1.0}), largest=100_000).plan(64 * 999)) == "63936 dynamic"
