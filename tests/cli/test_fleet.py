"""A sweep whose jobs a launcher takes away: what becomes of jobs that vanish and launchers that fail.

The launcher and the sweeper are plugins as Hydra finds them, and real processes; tests/fleet/ has real clusters.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
PLUGINS = '''
import multiprocessing, os, signal, time
from hydra.core.config_store import ConfigStore
from hydra.core.utils import run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext


class Elsewhere(Launcher):
    """Each job in a process of its own; the one that VANISHES is killed, and waited for all the same."""

    def setup(self, *, hydra_context, task_function, config):
        self.context, self.task, self.config = hydra_context, task_function, config

    def launch(self, job_overrides, initial_job_idx):
        if os.environ.get("FAILS") == "before":
            raise RuntimeError("the cluster is gone")
        queue = multiprocessing.SimpleQueue()
        for num, overrides in enumerate(job_overrides, initial_job_idx):
            process = multiprocessing.get_context("fork").Process(target=self.work, args=(num, overrides, queue))
            process.start()
            while num == 0 and not os.path.exists(f"{self.config.hydra.sweep.dir}/0/record.json"):
                time.sleep(0.1)
            if str(num) == os.environ.get("VANISHES"):
                process.kill()
        if os.environ.get("FAILS") == "after":
            raise RuntimeError("the cluster is gone")
        return [queue.get() for _ in job_overrides]

    def work(self, num, overrides, queue):
        setup_globals()
        config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
        config.hydra.job.num, config.hydra.job.id = num, str(num)
        found = run_job(
            hydra_context=self.context, task_function=self.task, config=config,
            job_dir_key="hydra.sweep.dir", job_subdir_key="hydra.sweep.subdir",
        )
        queue.put(found)


class Guessing(Sweeper):
    """Two jobs, the second of which depends on what the first one gave."""

    def setup(self, *, hydra_context, task_function, config):
        from hydra.core.plugins import Plugins

        self.launcher = Plugins.instance().instantiate_launcher(
            config=config, hydra_context=hydra_context, task_function=task_function
        )

    def sweep(self, arguments):
        (first,) = self.launcher.launch([arguments], initial_job_idx=0)
        assert 0 < first.return_value < 1000
        self.launcher.launch([[*arguments, f"measure.max_samples={100 + round(first.return_value)}"]], 1)


store = ConfigStore.instance().store
store(group="hydra/launcher", name="elsewhere", node={"_target_": f"{__name__}.Elsewhere"})
store(group="hydra/sweeper", name="guessing", node={"_target_": f"{__name__}.Guessing"})
'''
QUICK = ["model=linear", "mode=eager", "device=cpu", "measure.budget_s=0.05", "measure.warmup=1"]
QUICK += ["measure.min_samples=3", "graphs.batch_sizes=[1]", "cache=off"]


@pytest.fixture
def sweep(tmp_path):
    """Run a sweep there; its exit code, what it said, and its folder."""
    (tmp_path / "hydra_plugins" / "odd").mkdir(parents=True)
    (tmp_path / "hydra_plugins" / "odd" / "__init__.py").write_text(PLUGINS)

    def run(*words: str, **env: str) -> tuple[int, str, Path]:
        command = [sys.executable, "-m", "app", "-m", *QUICK, *words]
        env = {**os.environ, **env}
        done = subprocess.run(
            command, check=False, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=200
        )
        folder = max((path.parent for path in tmp_path.glob("outputs/**/sweep.json")), default=tmp_path)
        return done.returncode, done.stdout + done.stderr, folder

    return run


def rows(folder):
    return json.loads((folder / "summary.json").read_text())["rows"]


def state(folder):
    return json.loads((folder / "sweep.json").read_text())


TWO = ("hydra/launcher=elsewhere", "measure.max_samples=10,11", "sweep.lost_after_s=12")


def test_job_that_vanishes_is_a_row_and_holds_up_nothing(sweep):
    code, said, folder = sweep(*TWO, VANISHES="0")
    assert code == 4, said
    assert [row["status"] for row in rows(folder)] == ["failed", "ok"]
    assert rows(folder)[0]["error"]["type"] == "Lost"
    assert state(folder)["status"] == "complete"


def test_what_runs_is_waited_for_when_the_launcher_fails(sweep):
    code, said, folder = sweep(*TWO, FAILS="after")
    assert code == 0, said
    assert "the launcher failed" in said
    assert [row["status"] for row in rows(folder)] == ["ok", "ok"]


def test_same_command_goes_on_where_the_launcher_began_nothing(sweep):
    code, said, first = sweep(*TWO, FAILS="before")
    assert code == 4, said
    assert [row["status"] for row in rows(first)] == ["lost", "lost"]
    assert state(first)["status"] == "interrupted"
    code, said, second = sweep(*TWO)
    assert (code, second) == (0, first), said
    assert "0 jobs are done" in said


def test_sweeper_that_makes_up_its_jobs_gets_their_latency_and_a_summary(sweep):
    code, said, folder = sweep("hydra/sweeper=guessing")
    assert code == 0, said
    assert [job["num"] for job in state(folder)["jobs"]] == [0, 1]
    assert [row["status"] for row in rows(folder)] == ["ok", "ok"]


def test_sweep_is_one_process_at_a_time(sweep, tmp_path):
    from filelock import FileLock

    (tmp_path / "mine").mkdir()
    with FileLock(tmp_path / "mine" / ".lock"):
        code, said, _ = sweep("hydra/launcher=elsewhere", "hydra.sweep.dir=mine", "measure.max_samples=10,11")
    assert code == 1
    assert "another process" in said


def test_invalid_choice_runs_nothing(sweep):
    code, said, folder = sweep("hydra/launcher=elsewhere", "mode=eager,nonsense")
    assert code == 2
    assert "nonsense" in said
    assert not list(folder.glob("0/*"))
