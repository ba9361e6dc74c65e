"""The digits, compiled and eager: in fp32 nothing moves; in bf16 what moves is stated."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

DIGITS = ["task=evaluate", "model=digits", "data=digits"]
# examples/train_digits.py prints the accuracy of the weights that are shipped.
ACCURACY = 443 / 449


@pytest.fixture(scope="module")
def store(compiled, store_dir):
    compiled("linear")  # which has probed what the compiler can do
    return [f"cache.dir={store_dir}"]


def test_in_fp32_no_row_moves_and_in_bf16_the_difference_is_stated(run_app, store):
    pytest.importorskip("sklearn")
    exact = run_app([*DIGITS, *store, "evaluate.max_metric_drop=0", "evaluate.max_disagreement=0"])
    assert exact.code == 0, exact.stderr
    found = exact.record["evaluation"]
    assert found["metric_values"] == pytest.approx({"eager": ACCURACY, "compiled": ACCURACY})
    assert (exact.record["rung"], found["rows"], found["num_disagreements"]) == ("compiled", 449, 0)
    assert 0 < found["max_relative"] < 1e-5
    assert exact.record["monitor"]["calls"] == {"compiled": 9}

    half = run_app([*DIGITS, *store, "precision=bf16", "output=json"])
    assert half.code == 0, half.stderr
    assert json.loads(half.stdout) == half.record
    stated = half.record["evaluation"]
    assert stated["metric_values"]["eager"] == pytest.approx(ACCURACY)
    assert stated["metric_drop"] == stated["metric_values"]["eager"] - stated["metric_values"]["compiled"]
    assert 1e-4 < stated["max_relative"] < 2e-2
    assert abs(stated["metric_drop"]) <= stated["disagreement"] < 0.02

    tight = ["evaluate.judge=deviation", "evaluate.tolerance=1e-4", "evaluate.max_disagreement=0.5"]
    refused = run_app([*DIGITS, *store, "precision=bf16", *tight])
    assert (refused.code, refused.record["error"]["stage"]) == (3, "evaluate")
    assert "evaluate.max_disagreement allows 50" in refused.stderr
    assert "served by compiled" in refused.stdout
    assert refused.record["evaluation"]["num_disagreements"] > 224


def test_an_interrupted_run_keeps_its_rows_and_the_next_goes_on(start_app, finish_app, run_app, module_file):
    module_file(
        "slowly",
        """
        import time, torch
        class Model(torch.nn.Module):
            def forward(self, x):
                time.sleep(0.1)
                return x
        def rows():
            return {"x": torch.arange(400.0).reshape(200, 2), "y": [1] * 200}
        """,
    )
    args = [
        "task=evaluate",
        "mode=eager",
        "model=custom",
        "model.target=slowly:Model",
        "data=custom",
        "data.target=slowly:rows",
    ]
    args += ["model.inputs=[{name: x, shape: [batch, 2]}]", "data.label=y", "evaluate.batch_size=2", "cache=off"]
    process = start_app(args, env=module_file.env)
    folder = Path(process.run_dir)
    while not list((folder / "evaluation").glob("rows-*.npz")):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    run = finish_app(process)
    assert run.code == 130
    assert f"go on with evaluate.resume={folder}" in run.stderr
    again = run_app([*args, f"evaluate.resume={folder}"], env=module_file.env)
    assert again.code == 0, again.stderr
    found = again.record["evaluation"]
    assert (found["rows"], found["metric_values"]["eager"]) == (200, 1.0)
    assert 0 < found["resumed_rows"] < 200
    assert again.record["phases_s"]["evaluate"] < 0.2 * (200 - found["resumed_rows"])
