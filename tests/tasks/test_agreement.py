"""Agreement: rows that moved are found and counted exactly, and limits are kept to the last row."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from app import agreement as module
from app.agreement import MOST_VALUES, compare, judge_of, listed, summarise
from app.config import EvaluateConfig
from app.errors import ConfigError, EvaluationError

SCORES = np.array([[3.0, 1.0, 0.0], [0.0, 2.0, 1.9], [0.1, 0.2, 5.0], [1.0, 0.5, 0.2]], np.float32)
LABELS = np.array([0, 1, 2, 1])
finite = st.floats(-1e6, 1e6, width=32)


def moved(row, values):
    other = SCORES.copy()
    other[row] = values
    return other


def info_of(eager, compiled, labels=LABELS, metric=None, **config):
    asked = EvaluateConfig(metric="m:metric" if metric else None, **config)
    judge = judge_of(asked, eager, labels)
    part = compare(eager, compiled, judge, asked.tolerance)
    part |= listed(eager, compiled, part["differs"], 0, asked.listed)
    part |= {"batch_rows": np.array([len(eager)]), "eager_s": np.array([0.5]), "compiled_s": np.array([0.25])}
    part |= {"eager_output": eager, "compiled_output": compiled}
    known = {"data": "rows", "data_sha256": "", "resumed_rows": 0, "batch_size": 4}
    return summarise(part, labels, asked, metric, **known)


def test_equal_outputs_differ_in_nothing():
    info = info_of(SCORES, SCORES.copy(), max_metric_drop=0.0, max_disagreement=0.0)
    assert (info.num_disagreements, info.max_abs, info.max_relative, info.min_cosine) == (0, 0.0, 0.0, 1.0)
    assert (info.metric, info.metric_values, info.metric_drop) == ("accuracy", {"eager": 0.75, "compiled": 0.75}, 0.0)
    assert (info.refusal, info.disagreements) == (None, [])
    assert info.rows_per_s == {"eager": 8.0, "compiled": 16.0}


def test_another_class_is_a_disagreement_and_another_score_is_none():
    info = info_of(SCORES, moved(1, [0.0, 1.9, 2.0]))
    assert (info.judge, info.num_disagreements, info.disagreement, info.metric_drop) == ("argmax", 1, 0.25, 0.25)
    (row,) = info.disagreements
    assert (row.row, row.label, row.eager_class, row.compiled_class) == (1, 1, 1, 2)
    assert row.eager == pytest.approx([0.0, 2.0, 1.9])
    assert row.compiled == pytest.approx([0.0, 1.9, 2.0])
    assert info_of(SCORES, moved(1, [0.0, 2.5, 1.9])).num_disagreements == 0


def test_a_wrong_answer_that_becomes_right_is_a_disagreement_and_no_drop():
    info = info_of(SCORES, moved(3, [0.5, 1.0, 0.2]), max_metric_drop=0.0)
    assert (info.num_disagreements, info.metric_drop, info.refusal) == (1, -0.25, None)


def test_without_labels_a_row_disagrees_beyond_the_tolerance():
    other = moved(2, SCORES[2] * np.float32(1.02))
    beyond, within = (info_of(SCORES, other, labels=None, tolerance=each) for each in (0.01, 0.03))
    assert (beyond.judge, beyond.num_disagreements, within.num_disagreements) == ("deviation", 1, 0)
    assert (beyond.metric, beyond.metric_values, beyond.disagreements[0].eager_class) == (None, None, None)
    judged = info_of(SCORES, other, judge="deviation")
    assert (judged.judge, judged.num_disagreements, judged.metric_drop) == ("deviation", 1, 0.0)
    assert beyond.max_relative == pytest.approx(0.02, rel=1e-4)
    assert beyond.min_cosine == pytest.approx(1.0)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_in_one_output_only_always_disagrees(odd):
    for labels in (LABELS, None):
        info = info_of(SCORES, moved(0, [3.0, odd, 0.0]), labels=labels, tolerance=1e9)
        assert (info.num_disagreements, info.max_abs, info.max_relative) == (1, None, None)
        same = moved(0, [3.0, odd, 0.0])
        assert info_of(same, same.copy(), labels=labels).num_disagreements == 0


def test_integers_must_be_equal():
    eager = np.array([1, 2, 3])
    assert compare(eager, np.array([1, 2, 4]), "deviation", 1e9)["differs"].tolist() == [False, False, True]


@pytest.mark.parametrize("other", [SCORES[:, :2], SCORES.astype(np.float64)])
def test_another_shape_or_dtype_is_refused(other):
    with pytest.raises(EvaluationError, match=r"the compiled output is float.*eager's is float32 \[4, 3\]"):
        compare(SCORES, other, "argmax", 0.0)


def test_the_count_is_exact_whatever_is_listed():
    eager, compiled = np.eye(8, dtype=np.float32), np.eye(8, dtype=np.float32)[::-1]
    info = info_of(eager, compiled, labels=np.arange(8), listed=3)
    assert (info.num_disagreements, [row.row for row in info.disagreements]) == (8, [0, 1, 2])


def test_long_outputs_are_listed_by_their_first_values():
    eager = np.zeros((1, 3, 100), np.float32)
    info = info_of(eager, eager + 1, labels=None)
    assert len(info.disagreements[0].eager) == MOST_VALUES


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"max_disagreement": 0.25}, None),
        ({"max_disagreement": 0.24}, ["25.0000% of the rows disagree", "evaluate.max_disagreement allows 24.0000%"]),
        ({"max_metric_drop": 0.25}, None),
        ({"max_metric_drop": 0.2}, ["accuracy drops by 0.25", "evaluate.max_metric_drop allows 0.2"]),
        ({}, None),
    ],
)
def test_a_limit_is_passed_by_more_than_it_and_not_by_as_much(limits, said):
    refusal = info_of(SCORES, moved(1, [0.0, 1.9, 2.0]), **limits).refusal
    assert (refusal is None) == (said is None)
    assert [text for text in said or () if text not in refusal] == []


def test_a_metric_of_the_users_own_gets_all_outputs_and_labels():
    seen = []

    def metric(outputs, labels):
        seen.append((outputs.shape, labels.shape))
        return float(outputs[:, 0].sum())

    info = info_of(SCORES, SCORES + 1, metric=metric)
    assert seen == [((4, 3), (4,))] * 2
    assert info.metric_drop == pytest.approx(-4.0)


@pytest.mark.parametrize("metric", [lambda *_: 1 / 0, lambda *_: float("nan"), lambda *_: "much", lambda: 1.0])
def test_a_metric_that_fails_is_named(metric):
    with pytest.raises(ConfigError, match=r"evaluate\.metric='m:metric'"):
        info_of(SCORES, SCORES, metric=metric)


@pytest.mark.parametrize("labels", [LABELS.astype(float), None])
def test_a_limit_of_a_metric_that_there_is_not_is_refused(labels):
    with pytest.raises(ConfigError, match=r"evaluate\.max_metric_drop needs a metric.*evaluate\.metric"):
        judge_of(EvaluateConfig(max_metric_drop=0.1), SCORES, labels)
    assert judge_of(EvaluateConfig(max_metric_drop=0.1, metric="m:f"), SCORES, labels) == "deviation"


def test_outputs_are_compared_in_parts_that_fit_the_memory(monkeypatch):
    whole = compare(SCORES, moved(1, [0.0, 1.9, 2.0]), "argmax", 0.0)
    monkeypatch.setattr(module, "MOST_ELEMENTS", 4)
    for name, values in compare(SCORES, moved(1, [0.0, 1.9, 2.0]), "argmax", 0.0).items():
        assert values.tolist() == whole[name].tolist()


def test_argmax_needs_classes():
    with pytest.raises(ConfigError, match=r"class scores \[rows, classes\]; output 0 is \[4, 2, 2\]"):
        judge_of(EvaluateConfig(judge="argmax"), np.zeros((4, 2, 2), np.float32), None)
    assert judge_of(EvaluateConfig(judge="argmax"), SCORES, None) == "argmax"
    assert judge_of(EvaluateConfig(), SCORES, LABELS.astype(float)) == "deviation"
    assert judge_of(EvaluateConfig(), SCORES[:, :1], LABELS) == "deviation"


@given(arrays.arrays(np.float32, (5, 4), elements=finite), arrays.arrays(np.float32, (5, 4), elements=finite))
def test_figures_are_those_of_each_row_alone(eager, compiled):
    whole = compare(eager, compiled, "deviation", 1e-3)
    for row in range(5):
        alone = compare(eager[row : row + 1], compiled[row : row + 1], "deviation", 1e-3)
        for name, values in alone.items():
            np.testing.assert_allclose(whole[name][row], values[0], rtol=1e-9)
    assert (whole["max_abs"] == np.abs(eager.astype(float) - compiled.astype(float)).max(axis=1)).all()
    assert (whole["differs"] == ~(whole["relative"] <= 1e-3)).all()
