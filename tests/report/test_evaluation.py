"""An evaluation on the terminal: side by side, within the width, and what moved by name."""

from __future__ import annotations

import dataclasses

import pytest

from app.record import Disagreement, EvaluationInfo, Record, RunError
from tests.report.test_console import joined, rendered

ROW = Disagreement(31, 9, 1, 2, 0.02, [0.0, 2.0, 1.9], [0.0, 1.9, 2.0])
INFO = EvaluationInfo(
    data="digits", data_sha256="ab" * 32, rows=1449, resumed_rows=0, batch_size=64, judge="argmax", tolerance=None,
    metric="accuracy", metric_values={"eager": 0.9866, "compiled": 0.9844}, metric_drop=0.0022, num_disagreements=8,
    disagreement=8 / 1449, max_abs=0.091, max_relative=0.004, min_cosine=0.99999, rows_per_s={"eager": 7680.0, "compiled": 21100.0},
    max_metric_drop=0.001, max_disagreement=None, refusal="accuracy drops by 0.0022, evaluate.max_metric_drop allows 0.001",
    disagreements=[dataclasses.replace(ROW, row=row) for row in range(31, 38)],
)  # fmt: skip
RECORD = Record(
    status="failed", error=RunError("EvaluationError", "evaluate", INFO.refusal), task="evaluate", model="digits",
    mode="default", precision="bf16", device="cpu", rung="compiled", evaluation=INFO, run_dir="outputs/runs/1",
)  # fmt: skip
PLAIN = dataclasses.replace(
    INFO, metric=None, metric_values=None, metric_drop=None, judge="deviation", tolerance=0.01, max_metric_drop=None,
    refusal=None, disagreements=[dataclasses.replace(ROW, label=None, eager_class=None, compiled_class=None)],
    num_disagreements=1, max_abs=None, max_relative=None, resumed_rows=100,
)  # fmt: skip


def of(info):
    return dataclasses.replace(RECORD, evaluation=info)


@pytest.mark.parametrize("info", [INFO, PLAIN], ids=["labels", "agreement"])
@pytest.mark.parametrize("width", [60, 80, 120])
def test_it_fits_the_width(info, width):
    lines = rendered(of(info), width).splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in "".join(lines)


def test_eager_and_what_served_stand_side_by_side_even_where_a_limit_was_passed():
    text = joined(RECORD)
    assert "eager, fp32 0.9866 7,680" in text
    assert "served by compiled 0.9844 21,100" in text
    assert "metric drops 0.0022" in text
    assert "limits exceeded: accuracy drops by 0.0022, evaluate.max_metric_drop allows 0.001" in text


def test_disagreeing_rows_are_shown_with_both_outputs_and_the_rest_counted():
    text = joined(RECORD)
    assert "8 of 1,449 rows (0.552%): another class" in text
    assert "row 31, label 9: eager 1 (2 : 1.9), compiled 2 (1.9 : 2), scores of 1 : 2" in text
    assert "and 3 more" in text


def test_speeds_of_a_moment_are_said_to_be_rough():
    assert "only 23 calls in 0.0687 s: rows a second are rough" in joined(RECORD)
    few = joined(of(dataclasses.replace(INFO, rows=200, rows_per_s={"eager": 7680.0, "compiled": 21100.0})))
    assert "only 4 calls in 0.00948 s: too few to tell" in few
    assert "7,680" not in few
    slow = dataclasses.replace(INFO, rows_per_s={"eager": 100.0, "compiled": 200.0})
    assert "rough" not in joined(of(slow))


def test_a_score_that_is_not_finite_says_so():
    row = dataclasses.replace(ROW, compiled=[0.0, None, 2.0])
    text = joined(of(dataclasses.replace(INFO, disagreements=[row])))
    assert "compiled 2 (not finite : 2)" in text


def test_without_labels_there_is_no_metric_and_what_is_not_finite_says_so():
    text = joined(of(PLAIN))
    assert "accuracy" not in text
    assert "further than 0.01 from eager, relative L2" in text
    assert "row 31: eager [0, 2, 1.9], compiled [0, 1.9, 2], relative distance 2.0e-02" in text
    assert "deviation not finite" in text
    assert "100 of them by an earlier run" in text
