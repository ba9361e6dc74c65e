"""Every program in examples/ runs, and starts warm the second time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[2] / "examples"
# What the first and the second run say.
SAID = {
    "migration": ("classifier: miss, rung compiled", "classifier: direct-hit, rung compiled"),
    "comprehensive_demo": ("base_aot: 3 compiled, 0 from the cache", "base_aot: 3 compiled, 3 from the cache"),
    "evaluation_loop": ("(miss)", "(direct-hit)"),
}


def run(name, cache, tmp_path):
    found = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:app", str(FOLDER / f"{name}.py"), str(cache)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(FOLDER.parent), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


@pytest.mark.parametrize("name", SAID)
def test_an_example_runs_and_starts_warm_the_second_time(name, fresh_store, tmp_path):
    for expected in SAID[name]:
        out = run(name, fresh_store, tmp_path)
        assert expected in out
    if name == "evaluation_loop":
        eager, compiled = (part.split()[1] for part in out.splitlines()[0].removeprefix("accuracy: ").split(", "))
        assert eager == compiled
        assert "shadowed 6 calls: 0 disagree" in out
