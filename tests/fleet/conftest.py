"""A sweep of 12 jobs that clusters of two nodes are given, one of which dies; it should end as if it had not."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
BUILD = ["model=custom", "model.target=hostile:build", "model.environment=[FATES]", "graphs.batch_sizes=[1]"]
BUILD += ["model.inputs=[{name: input, shape: [batch, 16]}]", "device=cpu"]
BUILD += ["measure.budget_s=0.05", "measure.warmup=1", "measure.min_samples=3"]
# The first two jobs want the same artifact, and the node of the one that compiles it dies meanwhile.
JOBS = {
    **{f"a{turn}": {"width": 6, "fate": "slow"} for turn in range(3)},
    **{f"b{turn}": {"width": 4} for turn in range(4)},
    **{f"c{turn}": {"width": 5} for turn in range(4)},
    "d0": {"fate": "segfault"},
}
NUM_KEYS = 3


class Node:
    """A program that is a machine: all that it starts ends with it, however it was started."""

    def __init__(self, *command: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def processes(self) -> list[int]:
        """All that runs on it."""
        return below(self._process.pid)

    def kill(self) -> None:
        while found := self.processes():
            for pid in found:
                with_signal(pid, signal.SIGSTOP)  # so that none sees another die, and tells
            for pid in found:
                with_signal(pid, signal.SIGKILL)
            time.sleep(0.05)
        self._process.kill()
        self._process.wait()


def below(ancestor: int) -> list[int]:
    """The living processes that one has started, and those that they have."""
    parents = _parents()

    def is_below(pid: int) -> bool:
        return pid in parents and (parents[pid] == ancestor or is_below(parents[pid]))

    return [pid for pid in parents if is_below(pid)]


def with_signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _parents() -> dict[int, int]:
    """Each living process's parent."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state != "Z":
            found[int(path.parent.name)] = int(parent)
    return found


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Where the sweep is started: the model, and each job as a config."""
    shutil.copy(Path(__file__).with_name("hostile.py"), tmp_path)
    (tmp_path / "fates").mkdir()
    monkeypatch.setenv("FATES", str(tmp_path / "fates"))
    (tmp_path / "config" / "job").mkdir(parents=True)
    for name, kwargs in JOBS.items():
        mode = "eager" if kwargs.get("fate") == "segfault" else "default"
        content = {"defaults": [{"override /mode": mode}], "model": {"kwargs": kwargs}}
        text = "# @package _global_\n" + yaml.safe_dump(content)
        (tmp_path / "config" / "job" / f"{name}.yaml").write_text(text)
    return tmp_path


@pytest.fixture
def run_sweep(place):
    """Run the sweep with a launcher's words, kill a node in its midst, and look at what is left of it."""

    def run(*words: str, nodes: list[Node], log: Path) -> Counter[str]:
        command = [sys.executable, "-m", "app", "-m", "--config-dir=config", *BUILD, "+job=glob(*)", *words]
        with log.open("wb") as stream:
            sweep = subprocess.Popen(command, cwd=place, stdout=stream, stderr=stream)
        try:
            until((place / "fates" / "slow").exists, 180, log)
            (builder,) = (int(path.name) for path in (place / "fates").glob("[0-9]*"))
            next(node for node in nodes if builder in node.processes()).kill()
            assert sweep.wait(timeout=600) == 4, log.read_text()
        finally:
            sweep.terminate()
            sweep.wait()
        (folder,) = (path.parent for path in place.glob("outputs/**/sweep.json"))
        return outcomes(folder)

    return run


def outcomes(folder: Path) -> Counter[str]:
    """How often the cache answered how, of a sweep that is complete."""
    assert json.loads((folder / "sweep.json").read_text())["status"] == "complete"
    rows = json.loads((folder / "summary.json").read_text())["rows"]
    assert len(rows) == len(JOBS)
    (failed,) = (row for row in rows if row["status"] != "ok")
    assert failed["error"]["type"] == "SIGSEGV"
    assert "job=d0" in str(failed["overrides"])
    return Counter(row["cache"] for row in rows if row["status"] == "ok")


def until(condition: Callable[[], bool], seconds: float, log: Path) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, log.read_text() if log.exists() else log
        time.sleep(0.2)


if __name__ == "__main__":  # a Node: what is orphaned below it becomes its own child
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    child = subprocess.Popen(sys.argv[1:])
    while True:
        try:
            os.wait()
        except ChildProcessError:
            break
