"""The example workflow: a real one, whose commands this version takes, and whose steps end as they say they do."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

WORKFLOW = Path(__file__).parents[2] / "examples" / "ci" / "compare.yml"


@pytest.fixture(scope="module")
def workflow():
    return yaml.safe_load(WORKFLOW.read_text())


def script(workflow, name: str) -> str:
    (step,) = [each for each in workflow["jobs"]["compare"]["steps"] if each.get("name") == name]
    return step["run"]


def test_it_runs_on_pull_requests_and_every_step_does_something(workflow):
    assert workflow[True] == "pull_request"  # YAML reads the key `on` so
    assert all("uses" in step or "run" in step for step in workflow["jobs"]["compare"]["steps"])


def test_its_sweep_is_composed_by_this_version(workflow, tmp_path):
    words = shlex.split(workflow["env"]["SWEEP"])
    one = [word if "[" in word else word.partition(",")[0] for word in words]
    found = subprocess.run(
        [sys.executable, "-m", "app", "--cfg", "job", *one], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    assert "name: cnn" in found.stdout


@pytest.mark.parametrize(("ms", "code"), [(0.5, 0), (0.9, 5)])
def test_its_comparison_fails_the_check_for_a_regression(workflow, tmp_path, runs, ms, code):
    runs.put(tmp_path / "results" / "base" / "0", 0.5)
    runs.put(tmp_path / "results" / "head" / "0", ms)
    text = re.sub(r"venv-\w+/bin/python", shlex.quote(sys.executable), script(workflow, "Compare"))
    summary = tmp_path / "step-summary.md"
    env = {**os.environ, "GITHUB_STEP_SUMMARY": str(summary), "TOLERANCE": workflow["env"]["TOLERANCE"]}
    found = subprocess.run(
        ["bash", "-e", "-c", text], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert found.returncode == code, found.stderr
    assert summary.read_text() == found.stdout
    assert found.stdout.startswith("### Regression" if code else "### No regression")


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (4, 0), (1, 1)])
def test_its_sweep_goes_on_for_failed_rows_and_for_nothing_else(workflow, tmp_path, code, expected):
    for side in ("base", "head"):  # what the step makes with venv and pip
        fake = tmp_path / f"venv-{side}" / "bin" / "python"
        fake.parent.mkdir(parents=True)
        fake.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/called\nexit {code}\n')
        fake.chmod(0o755)
    text = re.sub(r"python -m venv .* && .*", ":", script(workflow, "Measure both"))
    env = {**os.environ, "SWEEP": workflow["env"]["SWEEP"]}
    found = subprocess.run(
        ["bash", "-e", "-c", text], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert found.returncode == expected, found.stderr
    calls = (tmp_path / "called").read_text().splitlines()
    assert len(calls) == (1 if expected else 2)
    assert f"hydra.sweep.dir={tmp_path}/results/base" in calls[0]
