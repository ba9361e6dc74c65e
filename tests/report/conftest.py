"""Records and their samples as runs leave them, made in a moment."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from app.measure.samples import Samples, save_samples
from app.measure.statistics import speedup, summarise
from app.record import CacheInfo, Memory, Record
from app.verdict import VerifyCase, VerifyInfo

MACHINE = {
    "cpu": "Fast Processor",
    "cores": 2,
    "machine": "x86_64",
    "torch": "2.13.0",
    "python": "3.11.7",
    "gpus": [],
}
PHASES = {"key": 0.01, "export": 1.0, "compile": 9.0, "load": 0.1, "first_call": 0.2, "measure": 3.0}


def times(median_ms: float, seed: int, spread: float = 0.02) -> Samples:
    values = np.random.default_rng(seed).lognormal(np.log(median_ms / 1e3), spread, 300)
    return Samples(values[:5], values, min_samples=10)


def put(
    folder: Path, ms=0.5, *, eager_ms=1.0, batches=("1", "8"), mode="default", model="cnn", precision="fp32", **fields
) -> Path:
    """A record of one run at `ms`, eager where it is None, with its samples; `fields` are the record's own."""
    folder.mkdir(parents=True, exist_ok=True)
    seed = sum(map(ord, "".join(folder.parts[-2:])))  # the same in every directory that tests run in
    samples = {}
    for batch in batches:
        samples[f"eager/{batch}"] = times(eager_ms * int(batch), seed)
        if ms is not None:
            samples[f"compiled/{batch}"] = times(ms * int(batch), seed + 1)
    save_samples(folder / "samples.npz", samples)
    latency: dict = {}
    for name, one in samples.items():
        latency.setdefault(name.partition("/")[0], {})[name.partition("/")[2]] = summarise(one)
    gains = {b: speedup(samples[f"eager/{b}"], samples[f"compiled/{b}"]) if ms is not None else None for b in batches}
    case = VerifyCase(4, 0, 1e-7, 1e-7, 1e-5, 1e-6, passed=True)
    record = {
        "status": "ok",
        "task": "benchmark",
        "model": model,
        "mode": mode,
        "precision": precision,
        "weights": "frozen",
        "device": "cpu",
        "overrides": [f"model={model}", f"mode={mode}", f"precision={precision}"],
        "cache": CacheInfo("miss") if ms is not None else None,
        "rung": "eager" if ms is None else "compiled",
        "phases_s": PHASES if ms is not None else {"build": 0.1, "first_call": 0.1, "measure": 3.0},
        "verify": VerifyInfo(passed=True, reference="float64", cases=[case], multiple=3.0, floor=1e-5)
        if ms is not None
        else None,
        "latency_ms": latency,
        "speedup": {b: gain and gain.ratio for b, gain in gains.items()},
        "speedup_interval": {b: gain and [gain.low, gain.high] for b, gain in gains.items()},
        "memory": Memory(300 << 20, 2 << 20),
        "environment": MACHINE,
        "created_at": "2026-11-24T10:00:00+00:00",
        "command": ["/somewhere/app/__main__.py", "-m", "model=cnn"],
    }
    Record(**record | fields).save(folder / "record.json")
    return folder


def fail(folder: Path, at="compile", message="killed by SIGSEGV", **fields) -> Path:
    """The record of a job that came to nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    error = {"type": "JobError", "stage": at, "message": message}
    content = {"schema": 1, "status": "failed", "task": "benchmark", "error": error, "model": "cnn", **fields}
    (folder / "record.json").write_text(json.dumps(content))
    return folder


def plan(root: Path, folders, status="complete", **overrides) -> Path:
    """A sweep's own file over these jobs."""
    jobs = [
        {"num": number, "folder": str(name), "overrides": overrides.get(f"job{name}", ["model=cnn", f"mode=m{name}"])}
        for number, name in enumerate(folders)
    ]
    content = {
        "schema": 1,
        "command": ["/x/app/__main__.py", "-m", "model=cnn,linear", "mode=a b"],
        "directory": "/x",
        "created_at": "2026-11-24T10:00:00+00:00",
        "ended_at": None,
        "status": status,
        "jobs": jobs,
    }
    root.mkdir(parents=True, exist_ok=True)
    (root / "sweep.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="session")
def runs():
    """The three ways to leave something in a directory: `runs.put`, `runs.fail`, `runs.plan`."""
    return type("Runs", (), {"put": staticmethod(put), "fail": staticmethod(fail), "plan": staticmethod(plan)})


@pytest.fixture
def sweep(tmp_path):
    """A sweep of all kinds of ends: two good rows of cnn, eager, and one each that failed, is lost, and is hostile."""
    root = plan(tmp_path / "sweep", range(7))
    put(root / "0", None, mode="eager")
    put(root / "1", 0.5)
    put(root / "2", 0.25, mode="max-autotune")
    put(root / "3", 0.4, precision="bf16", verify=None)
    fail(root / "4", message="killed by SIGSEGV <b>hard</b>")
    (root / "5").mkdir()
    hostile = ["model=cnn", "mode=default", 'model.kwargs.x=</script><script>alert("x")</script>|`*\n=cmd()']
    put(root / "6", 0.9, overrides=hostile)
    return root
