"""Sweeps, run for real: what becomes of good jobs beside bad ones, of a sweep that is stopped, and of its second try."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from app.errors import ConfigError
from app.sweep import STATE, State, folder_for

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).parents[2]
MODEL = """
import ctypes, os, time
from torch import nn

def build(fate):
    if fate == "segfault":
        ctypes.string_at(0)
    if fate == "hang":
        time.sleep(600)
    if fate == "raise":
        raise RuntimeError("no such luck")
    if fate == "exit":
        print("leaving early", flush=True)
        os._exit(7)
    if fate == "slow":
        time.sleep(2)
    return nn.Linear(16, 4)
"""


@pytest.fixture
def project(tmp_path):
    """A user's own directory: a module with models, and an experiment for each fate."""
    (tmp_path / "fated.py").write_text(MODEL)
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    for fate in ("good", "other", "slow", "segfault", "raise", "exit", "hang"):
        inputs = [{"name": "input", "shape": ["batch", 16]}]
        config = {
            "defaults": [{"override /model": "custom"}],
            "model": {"target": "fated:build", "kwargs": {"fate": fate}, "inputs": inputs},
            "sweep": {"timeout_s": 12 if fate == "hang" else 200},
        }
        text = "# @package _global_\n" + yaml.safe_dump(config, sort_keys=False)
        (tmp_path / "conf" / "experiment" / f"{fate}.yaml").write_text(text)
    return tmp_path


def start(project, *overrides):
    quick = ["measure.budget_s=0.05", "measure.warmup=1", "measure.min_samples=3", "graphs.batch_sizes=[1]"]
    words = ["--config-dir=conf", "-m", "device=cpu", "cache.dir=store", *quick, *overrides]
    return subprocess.Popen(
        [sys.executable, "-m", "app", *words],
        cwd=project,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "XDG_CACHE_HOME": str(project / "xdg")},
    )


def run(project, *overrides):
    process = start(project, *overrides)
    out, err = process.communicate(timeout=250)
    return process.returncode, out, err


def sweeps(project):
    return sorted(path.parent for path in project.glob(f"outputs/multirun/*/*/{STATE}"))


def records(folder):
    return {int(path.parent.name): json.loads(path.read_text()) for path in folder.glob("[0-9]/record.json")}


def wait_for(found, process, seconds=100):
    end = time.monotonic() + seconds
    while not found():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


def processes_with(word):
    """Command lines of running processes that hold a word."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:
            continue
        found += [line] if word.encode() in line else []
    return found


def test_each_bad_job_costs_one_row(project):
    code, _, err = run(project, "mode=eager", "experiment=good,segfault,raise,exit,hang,other")
    assert code == 4, err
    (folder,) = sweeps(project)
    found = records(folder)
    assert [found[num]["status"] for num in range(6)] == ["ok", "failed", "failed", "failed", "failed", "ok"]
    errors = {num: record["error"] for num, record in found.items() if record["error"]}
    assert {num: (error["type"], error["stage"]) for num, error in errors.items()} == {
        1: ("SIGSEGV", "build"),
        2: ("BuildError", "build"),
        3: ("Exit", "build"),
        4: ("Timeout", "build"),
    }
    assert "no such luck" in errors[2]["message"]
    assert "exit code 7: leaving early" in errors[3]["message"]
    assert "sweep.timeout_s=12" in errors[4]["message"]
    crash = (folder / "1" / "job.log").read_text()
    assert "Segmentation fault" in crash
    assert "fated.py" in crash
    assert "RuntimeError: no such luck" in (folder / "2" / "run.log").read_text()
    assert "2/6 FAILED experiment=segfault" in err.replace("\n", " ")
    assert all((folder / f"summary.{kind}").stat().st_size for kind in ("json", "csv", "md", "html"))
    assert State.load(folder).status == "complete"
    assert not processes_with(str(project))


def test_a_killed_sweep_takes_its_jobs_with_it_and_goes_on_where_it_was(project):
    words = ("mode=eager", "experiment=good,slow,other")
    process = start(project, *words)
    wait_for(
        lambda: sweeps(project) and 0 in records(sweeps(project)[0]) and processes_with("experiment=slow"), process
    )
    process.kill()
    process.communicate()
    time.sleep(0.5)
    assert not processes_with(str(project))
    (folder,) = sweeps(project)
    first = (folder / "0" / "record.json").read_bytes()

    code, _, err = run(project, *words)
    assert code == 0, err
    assert sweeps(project) == [folder]
    assert f"resuming {folder}: 1 of 3 jobs are done" in err.replace("\n", " ").replace("  ", " ")
    assert (folder / "0" / "record.json").read_bytes() == first
    assert [record["status"] for record in records(folder).values()] == ["ok"] * 3

    code, _, err = run(project, *words, "sweep.resume=auto")
    assert code == 0, err
    assert len(sweeps(project)) == 2  # the first is complete


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_sweep_leaves_its_summary_and_says_how_to_go_on(project, number, expected):
    process = start(project, "mode=eager", "experiment=good,hang")
    wait_for(lambda: sweeps(project) and 1 in records(sweeps(project)[0]), process)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == expected, err
    (folder,) = sweeps(project)
    assert State.load(folder).status == "interrupted"
    assert "python -m app --config-dir=conf -m" in err
    summary = json.loads((folder / "summary.json").read_text())
    assert next(row["status"] for row in summary["rows"]) == "ok"
    assert not processes_with(str(project))


def test_fail_fast_stops_at_the_first_failure(project):
    code, _, err = run(project, "mode=eager", "experiment=raise,good", "sweep.fail_fast=true")
    assert code == 4, err
    (folder,) = sweeps(project)
    assert list(records(folder)) == [0]
    assert "the same command goes on" in err


def test_what_a_resumed_job_would_do_differently_is_done_again(project):
    words = ("mode=eager,default", "experiment=good", "sweep.compile_first=true", "+hydra.job.env_set.X=1")
    code, _, err = run(project, *words)
    assert code == 0, err
    (folder,) = sweeps(project)
    assert [records(folder)[num]["rung"] for num in (0, 1)] == ["eager", "compiled"]
    assert records(folder)[1]["cache"]["outcome"] == "direct-hit"  # it was compiled before anything was measured
    assert (folder / "1" / "compile" / "record.json").exists()

    def again():
        replace(State.load(folder), status="interrupted").save(folder)
        code, _, err = run(project, *words)
        assert code == 0, err
        return err.replace("\n", " ")

    assert "2 of 2 jobs are done" in again()
    (project / "fated.py").write_text(MODEL.replace("16, 4", "16, 4, bias=False"))
    assert "1 of 2 jobs are done" in again()
    assert [record["status"] for record in records(folder).values()] == ["ok"] * 2
    (project / "fated.py").write_text(MODEL.replace("16, 4", "16, 4, bias=False") + "# a comment\n")
    assert "1 of 2 jobs are done" in again()  # found by its program, which writes a new entry
    assert records(folder)[1]["cache"]["outcome"] == "direct-hit"
    assert "2 of 2 jobs are done" in again()
    assert sweeps(project) == [folder]


# Which folder a sweep writes to


@pytest.fixture
def known(tmp_path, monkeypatch):
    """A sweep of `app -m model=cnn`, which was stopped."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["app", "-m", "model=cnn"])
    folder = tmp_path / "multirun" / "day" / "time"
    folder.mkdir(parents=True)
    state = State(status="interrupted")
    state.save(folder)
    return folder, state


def test_an_incomplete_sweep_of_the_same_command_is_gone_on_with(known, monkeypatch):
    folder, _ = known
    assert Path(folder_for("multirun", "fresh", "auto")).resolve() == folder
    monkeypatch.setattr(sys, "argv", ["app", "model=cnn", "-m", "sweep.resume=auto"])
    assert Path(folder_for("multirun", "fresh", "auto")).resolve() == folder


@pytest.mark.parametrize("change", ["complete", "command", "directory", "never", "damaged"])
def test_any_other_sweep_is_left_alone(known, monkeypatch, change):
    folder, state = known
    if change == "command":
        monkeypatch.setattr(sys, "argv", ["app", "-m", "model=linear"])
    elif change == "damaged":
        (folder / STATE).write_text("{")
    elif change != "never":
        setattr(state, *{"complete": ("status", "complete"), "directory": ("directory", "/else")}[change])
        state.save(folder)
    assert folder_for("multirun", "fresh", "never" if change == "never" else "auto") == "fresh"


def test_a_sweep_that_another_process_works_on_is_left_alone(known):
    folder, _ = known
    program = "import sys, time\nfrom filelock import FileLock\nwith FileLock(sys.argv[1]):\n print(flush=True)\n time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", program, str(folder / ".lock")], stdout=subprocess.PIPE)
    try:
        holder.stdout.readline()
        assert folder_for("multirun", "fresh", "auto") == "fresh"
    finally:
        holder.kill()
        holder.communicate()
    assert Path(folder_for("multirun", "fresh", "auto")).resolve() == folder


def test_a_folder_may_be_named_unless_it_is_of_another_command(known, monkeypatch):
    folder, _ = known
    monkeypatch.setattr(sys, "argv", ["app", "-m", "model=cnn", f"sweep.resume={folder}", "sweep.timeout_s=9"])
    assert folder_for("multirun", "fresh", str(folder)) == str(folder)
    monkeypatch.setattr(sys, "argv", ["app", "-m", "model=linear", f"sweep.resume={folder}"])
    with pytest.raises(ConfigError, match="of another command: -m model=cnn"):
        folder_for("multirun", "fresh", str(folder))


def test_a_folder_that_holds_no_sweep_can_not_be_named(tmp_path):
    with pytest.raises(ConfigError, match=r"sweep\.resume='.*' holds no sweep\.json"):
        folder_for("multirun", "fresh", str(tmp_path))
