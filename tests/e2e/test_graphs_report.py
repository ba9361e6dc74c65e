"""The report that `nox -s gpu` writes: made here without a GPU, it says so and claims nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "benchmarks" / "graphs.py"


def report(*args):
    return subprocess.run([sys.executable, PROGRAM, *args], capture_output=True, text=True, check=False, timeout=240)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device: nox -s gpu makes the real report")
def test_without_a_device_nothing_is_measured():
    done = report()
    assert (done.returncode, "no CUDA device" in done.stdout) == (0, True)


def test_a_run_without_graphs_is_reported_with_its_reason(hit_args, tmp_path):
    cache = hit_args("linear")[-1].removeprefix("cache.dir=")
    args = ["--device", "cpu", "--quick", "--models", "linear", "--modes", "default", "--batch-sizes", "1,4"]
    done = report(*args, "--cache", cache, "--folder", str(tmp_path))
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "report.md").read_text()
    assert text in done.stdout
    assert "capture: graphs.enabled=true needs a CUDA device, and the device is cpu" in text
    assert "| batch | eager | compiled | speed-up of graphs |" in text
    (run,) = json.loads((tmp_path / "report.json").read_text())["runs"]
    assert set(run["latency_ms"]) == {"eager", "compiled"}
    assert (tmp_path / "linear-default.svg").read_text().startswith("<svg")
