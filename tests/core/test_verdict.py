"""Verdict: figures against tolerances, and which batch sizes a verification must cover."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.record import Record
from app.verdict import Case, Draw, extent, plan, refusal, summarise


def case(rel_l2=1e-7, eager=1e-7, batch=4, seed=1, sizes=None, kind="random", **changed):
    known = {"reference": "float64", "max_abs": 1e-6, "problem": None}
    draw = Draw(sizes or {"batch": batch}, seed, kind)
    return Case(draw, rel_l2=rel_l2, eager_rel_l2=eager, **{**known, **changed})


errors = st.floats(0, 1e3)


@given(errors, errors, st.floats(1, 100), st.floats(0, 1))
def test_a_case_passes_up_to_the_floor_or_the_multiple_of_eagers_own_error(rel_l2, eager, multiple, floor):
    why = case(rel_l2, eager).refusal(multiple, floor)
    assert (why is None) == (rel_l2 <= floor or rel_l2 <= multiple * eager)


@given(errors, errors, st.floats(1, 100), st.floats(0, 1))
def test_looser_tolerances_never_refuse_what_tighter_ones_pass(rel_l2, eager, multiple, floor):
    found = case(rel_l2, eager)
    if found.refusal(multiple, floor) is None:
        assert found.refusal(multiple * 2, floor) is None
        assert found.refusal(multiple, floor * 2) is None


def test_a_refusal_names_case_error_limit_and_eagers_own():
    why = case(2e-4, 3e-5).refusal(3.0, 1e-5)
    assert why == (
        "batch 4, seed 1: relative L2 error 2.00e-04 against float64, allowed 9.00e-05 (eager's own is 3.00e-05)"
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_error_that_is_no_number_is_refused(bad):
    assert "relative L2 error" in case(bad).refusal(1e9, 1e9)


def test_no_tolerance_excuses_a_problem():
    assert case(0.0, problem="has NaN").refusal(1e9, 1e9) == "batch 4, seed 1: has NaN"


def test_the_first_failing_case_is_the_refusal():
    assert refusal([case(), case()], 3.0, 1e-5) is None
    assert refusal([], 3.0, 1e-5) is None
    found = refusal([case(), case(1.0, seed=7), case(2.0, seed=8)], 3.0, 1e-5)
    assert found.startswith("batch 4, seed 7: relative L2 error 1.00e+00")


@given(st.builds(case, errors, errors, batch=st.integers(1, 99), problem=st.none() | st.text(max_size=5)))
def test_a_case_comes_back_from_a_manifest(found):
    assert Case.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_the_summary_is_sorted_and_has_a_verdict_for_each_case():
    info = summarise([case(1.0, batch=8), case(batch=1, seed=3), case(batch=1, seed=2)], 3.0, 1e-5)
    assert [(c.batch, c.seed, c.passed) for c in info.cases] == [(1, 2, True), (1, 3, True), (8, 1, False)]
    assert (info.passed, info.reference, info.multiple, info.floor) == (False, "float64", 3.0, 1e-5)
    assert summarise([case()], 3.0, 1e-5).passed is True


def test_what_is_not_finite_is_null_so_that_the_record_can_be_written():
    info = summarise([case(math.inf, 0.0, max_abs=math.inf, problem="other")], 3.0, 1e-5)
    (found,) = info.cases
    assert (found.rel_l2, found.max_abs, found.passed) == (None, None, False)
    text = Record(status="failed", task="benchmark", verify=info).to_json()
    assert json.loads(text)["verify"]["cases"][0]["rel_l2"] is None


def test_a_verdict_by_eager_says_so_and_gives_eager_no_figure():
    info = summarise([case(eager=0.0, reference="eager")], 3.0, 1e-5)
    assert (info.reference, info.cases[0].eager_rel_l2, info.cases[0].limit) == ("eager", None, 1e-5)
    assert summarise([case(), case(reference="eager")], 3.0, 1e-5).reference == "eager"


def test_a_verdict_is_by_the_weakest_reference_of_its_cases():
    cases = [case(), case(reference="original"), case(reference="eager")]
    assert [summarise(cases[:count], 3.0, 1e-5).reference for count in (1, 2, 3)] == ["float64", "original", "eager"]


# Extent

DIMS, EXAMPLE = {"batch": (1, 64), "h": (1, 32)}, {"batch": 4, "h": 8}


def at(batch=4, h=8, *, wrong=False, **changed):
    return case(sizes={"batch": batch, "h": h}, problem="is wrong" if wrong else None, **changed)


def judged(*cases):
    return extent(cases, DIMS, EXAMPLE, 3.0, 1e-5)


def test_what_was_compared_and_right_is_what_is_served():
    found = judged(at(), at(batch=1), at(batch=16), at(h=1), at(h=17))
    assert found.refusal is None
    assert found.compared == {"batch": (1, 16), "h": (1, 17)}
    assert found.possible == DIMS
    assert found.narrowed == []


def test_a_wrong_size_narrows_its_own_dimension_and_the_words_say_from_where_to_where_and_why():
    found = judged(at(), at(h=2, wrong=True), at(h=3), at(batch=1), at(h=1, wrong=True), at(h=31, wrong=True))
    assert found.refusal is None
    assert found.possible == {"batch": (1, 64), "h": (3, 30)}
    assert found.compared == {"batch": (1, 4), "h": (3, 8)}
    (words,) = found.narrowed
    assert words.startswith("h is served from 3 to 30 instead of 1 to 32: ")
    assert "batch 4, h 2, seed 1: is wrong" in words


def test_what_is_wrong_in_several_dimensions_at_once_is_left_out_by_one_that_is_no_batch():
    found = judged(at(), at(h=1), at(batch=1), at(batch=1, h=1, wrong=True))
    assert found.possible == {"batch": (1, 64), "h": (2, 32)}


def test_a_combination_that_is_left_out_by_a_dimension_of_its_own_narrows_no_other():
    found = judged(at(), at(batch=1, wrong=True), at(batch=2), at(batch=1, h=1, wrong=True), at(h=1))
    assert found.possible == {"batch": (2, 64), "h": (1, 32)}


def test_what_is_wrong_at_the_examples_sizes_serves_nowhere():
    assert judged(at(wrong=True), at(batch=1)).refusal == "batch 4, h 8, seed 1: is wrong"
    assert judged(at(), at(batch=3, kind="zeros", wrong=True)).refusal == "batch 3, h 8, zeros: is wrong"


def test_what_the_module_itself_refuses_is_no_fault_of_values_and_the_end_of_sizes():
    dropped = {"dropped": "the module itself raises ValueError"}
    found = judged(at(), at(kind="NaN in a row", **dropped), at(h=32, **dropped))
    assert found.refusal is None
    assert found.possible["h"] == (1, 31)
    info = summarise([at(), at(kind="zeros", **dropped)], 3.0, 1e-5, found)
    assert info.dropped == ["batch 4, h 8, zeros: the module itself raises ValueError"]
    assert len(info.cases) == 1
    assert info.served == {"batch": [4, 4], "h": [8, 8]}


sizes = st.fixed_dictionaries({"batch": st.integers(1, 64), "h": st.integers(1, 32)})


@given(st.lists(st.tuples(sizes, st.booleans()), max_size=12))
def test_no_wrong_size_is_ever_served_and_the_example_always_is(tried):
    cases = [at(), *(at(**each, wrong=wrong) for each, wrong in tried if each != EXAMPLE)]
    found = judged(*cases)
    assert found.refusal is None
    for dim, size in EXAMPLE.items():
        assert found.compared[dim][0] <= size <= found.compared[dim][1]
    for each, wrong in tried:
        inside = all(low <= each[dim] <= high for dim, (low, high) in found.possible.items())
        assert not (wrong and inside and each != EXAMPLE)


# Plan


@pytest.mark.parametrize(
    ("sizes", "batch", "planned"),
    [
        ([1, 2, 4, 8], (1, 1024), [1, 5, 8]),
        ([1], (1, 1024), [1, 3]),
        ([32], (1, 1024), [1, 17, 32]),
        ([6], (1, 1024), [1, 3, 6]),
        ([4], (4, 4), [4]),
        ([2], (2, 2), [2]),
        ([16], (8, 64), [8, 9, 16]),
        ([5], None, [1]),
    ],
)
def test_the_plan_is_the_smallest_an_odd_one_and_the_largest_asked_for(sizes, batch, planned):
    dims = {"batch": batch} if batch is not None else {}
    found = plan(sizes, [0], {**dims, "seq": (1, 64)}, {**dict.fromkeys(dims, 4), "seq": 16})
    assert [draw.sizes.get("batch", 1) for draw in found] == planned
    assert {(draw.sizes["seq"], draw.seed) for draw in found} == {(16, 0)}


@given(
    st.tuples(st.integers(1, 64), st.integers(1, 64))
    .map(sorted)
    .flatmap(
        lambda bounds: st.tuples(st.just(tuple(bounds)), st.lists(st.integers(*bounds), min_size=1, max_size=5))
    ),
    st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True),
)
def test_every_planned_size_is_allowed_and_every_seed_is_drawn_at_each(drawn, seeds):
    (low, high), sizes = drawn
    found = plan(sizes, seeds, {"batch": (low, high)}, {"batch": low})
    pairs = [(draw.sizes["batch"], draw.seed) for draw in found]
    planned = {size for size, _ in pairs}
    assert {low, max(sizes)} <= planned
    assert all(low <= size <= high for size in planned)
    assert sorted(pairs) == sorted((size, seed) for size in planned for seed in seeds)
