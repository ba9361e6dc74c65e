"""Evaluation: every row once through what serves and eager, in batches, resumed where it ended; nothing compiled here."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from app import evaluate as module
from app import tasks
from app.chunks import FOLDER
from app.errors import ConfigError, DataError, EvaluationError
from app.evaluate import batches, evaluate, prepare, run

SPEC = "model.inputs=[{name: x, shape: [batch, 4]}]"


@pytest.fixture
def rows(tmp_path):
    """Ten rows whose class is the position of their largest value, in a file."""
    values = np.eye(4, dtype=np.float32)[np.arange(10) % 4] + 0.1
    np.savez(tmp_path / "rows.npz", x=values, y=np.arange(10) % 4, half=values[:5])
    return tmp_path / "rows.npz"


@pytest.fixture
def context(context_of, module_file, rows):
    """A run's context on a model that gives its input back; and what was asked beyond."""
    module_file("echo", "import torch\nbuild = torch.nn.Identity\n")

    def made(*args, label="y"):
        given = [f"data.path={rows}", *([] if label is None else [f"data.label={label}"])]
        base = ["task=evaluate", "mode=default", "model=custom", "model.target=echo:build", SPEC, "data=npz"]
        return context_of([*base, "evaluate.batch_size=4", *given, *args])

    return made


class Served:
    """A compiled model: what eager gives, but for the rows it is told to change; it counts what it is called with."""

    def __init__(self, change=None, fail_at=None):
        self.sizes, self._change, self._fail_at = [], change, fail_at

    def __call__(self, x):
        self.sizes.append(len(x))
        if len(self.sizes) == self._fail_at:
            raise KeyboardInterrupt
        return self._change(x.clone()) if self._change else x.clone()


def swapped(x):
    """The row whose largest value comes last, as if it came first."""
    wrong = x.argmax(dim=1) == 3
    x[wrong] = x[wrong].flip(1)
    return x


def test_every_row_runs_once_and_the_last_batch_is_smaller(context):
    asked, served = context(), Served()
    info = run(asked, prepare(asked), served)
    assert served.sizes == [4, 4, 4, 2]  # the first is called once more, untimed
    assert (info.rows, info.batch_size, info.num_disagreements, info.metric_values["compiled"]) == (10, 4, 0, 1.0)
    assert min(info.rows_per_s.values()) > 0


def test_rows_that_moved_are_counted_listed_and_cost_accuracy(context):
    asked = context("evaluate.listed=1")
    info = run(asked, prepare(asked), Served(swapped))
    assert (info.num_disagreements, info.disagreement, info.metric_drop) == (2, 0.2, pytest.approx(0.2))
    assert [(row.row, row.label, row.eager_class, row.compiled_class) for row in info.disagreements] == [(3, 3, 3, 0)]
    assert info.max_abs == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("limit", "said"),
    [("evaluate.max_metric_drop=0.1", "accuracy drops by 0.2"), ("evaluate.max_disagreement=0.19", "20.0000%")],
)
def test_a_limit_that_is_passed_ends_the_run_with_the_figures_written(context, limit, said):
    asked = context(limit)
    with pytest.raises(EvaluationError, match=said) as caught:
        evaluate(asked, prepare(asked), Served(swapped))
    assert (caught.value.exit_code, asked.record.evaluation.num_disagreements) == (3, 2)
    assert said in json.loads((asked.folder / "evaluation.json").read_text())["refusal"]
    lines = [json.loads(line) for line in (asked.folder / "disagreements.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines] == [3, 7]


def test_limits_that_are_kept_end_well(context):
    asked = context("evaluate.max_metric_drop=0.2", "evaluate.max_disagreement=0.2")
    evaluate(asked, prepare(asked), Served(swapped))
    assert asked.record.evaluation.refusal is None
    assert asked.record.monitor["calls"] == {"compiled": 4}
    assert asked.record.warnings == []


def test_eager_against_itself_proves_nothing_and_says_so(context):
    asked = context()
    evaluate(asked, prepare(asked), None)
    assert asked.record.evaluation.num_disagreements == 0
    assert "proves nothing" in asked.record.warnings[0]


def test_rows_that_eager_answered_for_the_compiled_model_prove_nothing_and_are_counted(context):
    def fails_on_the_last(x):
        if len(x) == 2:
            raise RuntimeError("no such luck")
        return x.clone()

    asked = context()
    evaluate(asked, prepare(asked), fails_on_the_last)
    assert asked.record.warnings == ["eager answered 1 of 4 calls: their rows prove nothing"]
    assert asked.record.fallbacks[0].reason == "RuntimeError: no such luck"


def test_eager_in_another_precision_is_what_is_compared_where_nothing_is_compiled(context):
    asked = context("precision=bf16")
    evaluate(asked, prepare(asked), None)
    assert asked.record.evaluation.max_relative > 0
    assert "eager is compared in bf16 with eager in fp32" in asked.record.warnings[0]


def test_complex_outputs_are_compared_in_both_parts(context):
    asked = context("data.label=null")
    info = run(asked, prepare(asked), Served(lambda x: x))
    assert info.num_disagreements == 0
    value = module._output(torch.tensor([[1 + 2j], [3 + 4j]]), 0, 2)
    assert value.tolist() == [[[1, 2]], [[3, 4]]]


def test_without_labels_only_agreement_is_judged(context):
    asked = context("evaluate.tolerance=0.01", label=None)
    info = run(asked, prepare(asked), Served(lambda x: x * 1.02))
    assert (info.judge, info.metric, info.metric_drop, info.num_disagreements) == ("deviation", None, None, 10)


def test_a_metric_of_the_users_own_judges(context, module_file):
    module_file("mine", "def metric(outputs, labels): return outputs[range(len(labels)), labels].mean()")
    asked = context("evaluate.metric=mine:metric", "evaluate.max_metric_drop=0.2")
    with pytest.raises(EvaluationError, match="mine:metric drops by"):
        evaluate(asked, prepare(asked), Served(lambda x: x * 0.5))
    assert asked.record.evaluation.metric_values == pytest.approx({"eager": 1.1, "compiled": 0.55})


def test_a_model_of_several_inputs_and_outputs_is_evaluated(context_of, module_file, tmp_path):
    module_file(
        "pair",
        """
        import torch
        class Pair(torch.nn.Module):
            def forward(self, a, b, *, scale):
                return {"first": a + b, "second": [a * scale.unsqueeze(1)]}
        """,
    )
    path = tmp_path / "pair.npz"
    np.savez(path, a=np.ones((3, 2)), b=np.ones((3, 2)), scale=np.arange(1, 4))
    inputs = "[{name: a, shape: [batch, 2]}, {name: b, shape: [batch, 2]}, "
    inputs += "{name: scale, shape: [batch], dtype: int64, low: 0, high: 9, keyword: true}]"
    base = [
        "task=evaluate",
        "mode=eager",
        "model=custom",
        "model.target=pair:Pair",
        f"model.inputs={inputs}",
        "data=npz",
    ]
    asked = context_of([*base, f"data.path={path}", "evaluate.output=1", "evaluate.batch_size=2"])

    def served(a, b, *, scale):
        return {"first": a + b, "second": [a * scale.unsqueeze(1) + (scale == 2).unsqueeze(1)]}

    info = run(asked, prepare(asked), served)
    assert (info.rows, [row.row for row in info.disagreements]) == (3, [1])
    assert info.disagreements[0].compiled == [3.0, 3.0]


def test_an_interrupted_evaluation_is_resumed_where_it_ended(context):
    first = context()
    with pytest.raises(KeyboardInterrupt):
        run(first, prepare(first), Served(swapped, fail_at=4))
    assert f"8 of 10 rows are done: go on with evaluate.resume={first.folder}" in first.record.warnings[0]
    again, served = context(f"evaluate.resume={first.folder}"), Served(swapped)
    info = run(again, prepare(again), served)
    assert served.sizes == [2, 2]  # the last batch, and once untimed
    whole = context()
    other = run(whole, prepare(whole), Served(swapped))
    assert (info.resumed_rows, other.resumed_rows) == (8, 0)
    same = ("rows", "num_disagreements", "metric_values", "max_abs", "max_relative", "min_cosine", "disagreements")
    assert [getattr(info, name) for name in same] == [getattr(other, name) for name in same]


def test_a_failure_keeps_what_was_finished_too(context):
    asked = context()

    def broken(x):
        if len(x) == 2:
            raise RuntimeError("no such luck")
        return x.clone()

    with pytest.raises(RuntimeError):
        run(asked, prepare(asked), broken)
    assert len(list((asked.folder / FOLDER).glob("rows-*.npz"))) == 1
    assert f"8 of 10 rows are done: go on with evaluate.resume={asked.folder}" in asked.record.warnings[0]


def test_other_rows_are_not_resumed(context, rows):
    first = context()
    run(first, prepare(first), Served())
    np.savez(rows, x=np.ones((10, 4)), y=np.zeros(10, int))
    again = context(f"evaluate.resume={first.folder}")
    with pytest.raises(ConfigError, match="another data than this run's"):
        run(again, prepare(again), Served())


def test_other_weights_are_not_resumed(context, module_file):
    module_file("weighted", "import torch\ndef build(): return torch.nn.Linear(4, 4)\n")
    first = context("model.target=weighted:build")
    run(first, prepare(first), first.workload.module)
    again = context("model.target=weighted:build", f"evaluate.resume={first.folder}")
    with torch.no_grad():
        again.workload.module.weight[0, 0] += 1
    with pytest.raises(ConfigError, match="another weights than"):
        run(again, prepare(again), again.workload.module)


@pytest.mark.parametrize(
    ("args", "label", "error", "said"),
    [
        (["evaluate.batch_size=2000"], "y", ConfigError, "evaluate.batch_size=2000 must be within model.dims.batch, 1 to"),
        (["evaluate.max_metric_drop=0.1"], None, ConfigError, "evaluate.max_metric_drop=0.1 needs labels"),
        (["evaluate.metric=echo:build"], None, ConfigError, "evaluate.metric='echo:build' needs labels"),
        (["evaluate.metric=echo:nothing"], "y", ConfigError, "does not import"),
        (["data.label=half"], None, DataError, "x has 10, label has 5"),
        (["model.dims.batch={min: 11, example: 11}", "graphs.batch_sizes=[11]", "evaluate.batch_size=11"], "y", ConfigError, "has 10 rows"),
    ],
)  # fmt: skip
def test_what_can_not_be_evaluated_is_refused_before_anything_runs(context, args, label, error, said):
    with pytest.raises(error, match=said):
        prepare(context(*args, label=label))


@pytest.mark.parametrize(
    ("args", "change", "said"),
    [
        (["evaluate.output=1"], None, "evaluate.output=1: the model gives 1 tensors"),
        ([], lambda x: x.sum(), "doesn't have one element for each row"),
    ],
)
def test_an_output_that_can_not_be_judged_is_refused(context, args, change, said):
    with pytest.raises(ConfigError, match=said):
        asked = context(*args)
        run(asked, prepare(asked), Served(change))


def test_a_label_beyond_the_models_classes_is_refused(context, rows):
    np.savez(rows, x=np.ones((3, 4)), y=[0, 1, 4])
    asked = context()
    with pytest.raises(ConfigError, match="row 2: label 4 is no class of the model, which gives 4 scores a row"):
        run(asked, prepare(asked), Served())


@pytest.mark.parametrize(
    ("rows_", "size", "low", "expected"),
    [
        (10, 4, 1, [(0, 4), (4, 8), (8, 10)]),
        (8, 4, 1, [(0, 4), (4, 8)]),
        (3, 4, 1, [(0, 3)]),
        (10, 4, 3, [(0, 4), (4, 8), (7, 10)]),
    ],
)
def test_batches_cover_the_rows_and_none_is_too_small(rows_, size, low, expected):
    assert list(batches(0, rows_, size, low)) == expected


def test_rows_that_a_last_batch_repeats_are_counted_once(context):
    asked = context("model.dims.batch={min: 3, example: 3}", "graphs.batch_sizes=[3]")
    served = Served(swapped)
    info = run(asked, prepare(asked), served)
    assert (served.sizes, info.rows, info.num_disagreements) == ([4, 4, 4, 3], 10, 2)
    assert [row.row for row in info.disagreements] == [3, 7]


def test_the_time_left_is_said(context, monkeypatch):
    asked, said = context(), []
    monkeypatch.setattr(asked.phases, "update", said.append)
    run(asked, prepare(asked), Served())
    assert [text.partition(", about")[0] for text in said] == [f"evaluate: {n} of 10 rows" for n in (4, 8, 10)]
    assert said[-1].endswith("about 0 s left")


def test_the_task_reads_the_data_before_it_builds_or_compiles(context_of, monkeypatch, tmp_path):
    asked = context_of(["task=evaluate", "model=linear", "data=csv", f"data.path={tmp_path}/none.csv"])
    monkeypatch.setattr(module.Context, "workload", property(lambda _: pytest.fail("it was built")))
    with pytest.raises(ConfigError, match=r"data\.path=.* does not exist"):
        tasks.run(asked)
