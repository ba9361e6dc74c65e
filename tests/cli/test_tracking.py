"""What an experiment tracker is told of runs, in MLflow's own SQLite store."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed: pip install 'aot-app[mlflow]'")
pytest.importorskip("sqlalchemy", reason="MLflow's SQLite store is not installed: pip install 'aot-app[mlflow]'")

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's and SQLAlchemy's own

RUN = ["model=linear", "mode=eager", "graphs.batch_sizes=[1,4]", "cache=off", "tracker=mlflow"]


def tracked(uri):
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("aot-app")
    return client, client.search_runs([experiment.experiment_id])


def test_run_is_told_with_its_parameters_figures_and_files(run_app, tmp_path):
    uri = f"sqlite:///{tmp_path}/runs.db"
    run = run_app([*RUN, f"tracker.uri={uri}"], cwd=tmp_path)
    assert run.code == 0, run.stderr
    client, (found,) = tracked(uri)
    assert found.info.status == "FINISHED"
    assert found.data.params["graphs.batch_sizes"] == "[1, 4]"
    assert found.data.params["model.target"] == run.record["resolved_config"]["model"]["target"]
    assert found.data.metrics["latency_ms.eager.4.p50"] == run.record["latency_ms"]["eager"]["4"]["p50"]
    assert found.data.tags["rung"] == "eager"
    assert {"record.json", "samples.npz"} <= {file.path for file in client.list_artifacts(found.info.run_id)}


def test_job_that_is_killed_is_told_too(tmp_path):
    shutil.copy(Path(__file__).parents[1] / "fleet" / "hostile.py", tmp_path)
    uri = f"sqlite:///{tmp_path}/runs.db"
    words = ["model=custom", "model.target=hostile:build", "model.inputs=[{name: input, shape: [batch, 16]}]"]
    words += [
        *RUN[1:],
        "device=cpu",
        "measure.budget_s=0.05",
        f"tracker.uri={uri}",
        "model.kwargs.fate=well,segfault",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "app", "-m", *words], check=False, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 4, done.stderr
    _, runs = tracked(uri)
    assert {run.data.params["model.kwargs.fate"]: run.info.status for run in runs} == {
        "well": "FINISHED",
        "segfault": "FAILED",
    }


def test_tracker_that_is_gone_costs_a_warning(run_app):
    run = run_app([*RUN, "tracker.uri=http://127.0.0.1:9"])
    assert run.code == 0
    assert "the run was not tracked" in run.stderr
