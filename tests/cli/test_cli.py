"""The command line, run for real: exit codes, what is said, what is written, and where."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
CASES = [
    case
    for path in sorted((REPOSITORY / "tests" / "configs").glob("*.yaml"))
    for case in yaml.safe_load(path.read_text(encoding="utf-8"))
]
QUICK = ["measure.budget_s=0.05", "measure.warmup=1", "measure.min_samples=3", "device=cpu"]
EAGER = ["model=linear", "mode=eager", "graphs.batch_sizes=[1,2]"]
ENDLESS = ["measure.budget_s=600", "measure.max_samples=100000000"]


def start(tmp_path, *args):
    """The command in a new process; Hydra wants `-m` before all overrides, and takes the last of equal ones."""
    options = [arg for arg in args if arg.startswith("-")]
    overrides = [arg for arg in args if not arg.startswith("-")]
    given = {arg.partition("=")[0] for arg in overrides}
    defaults = [arg for arg in (*QUICK, f"cache.dir={tmp_path}/store") if arg.partition("=")[0] not in given]
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-m", "app", *options, *defaults, *overrides],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "XDG_CACHE_HOME": str(tmp_path / "xdg")},
    )


def run(tmp_path, *args):
    process = start(tmp_path, *args)
    try:
        out, err = process.communicate(timeout=100)
    finally:
        process.kill()
        process.wait()
    return process.returncode, out, err


def records(tmp_path):
    """Every record that was written, by its directory."""
    found = sorted((tmp_path / "outputs").rglob("record.json")) if (tmp_path / "outputs").exists() else []
    return {path.parent: json.loads(path.read_text()) for path in found}


def matches(found, expected):
    """That what is expected is there: mappings may have more, lists may not."""
    if isinstance(expected, dict):
        return isinstance(found, dict) and all(n in found and matches(found[n], e) for n, e in expected.items())
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(matches, found, expected))
    return found == expected


def errors_in(stderr):
    return [line for line in stderr.splitlines() if line.startswith("error at ")]


# Cases


def test_the_cases_are_all_different():
    assert len({case["name"] for case in CASES}) == len(CASES) >= 30
    assert {case["code"] for case in CASES} == {0, 1, 2, 9}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"].replace(" ", "-"))
def test_the_command_ends_as_the_case_says(tmp_path, case):
    (tmp_path / "garbage").write_bytes(b"neither a checkpoint nor a program")
    code, out, err = run(tmp_path, *(arg.replace("{tmp}", str(tmp_path)) for arg in case["args"]))
    assert code == case["code"], err
    for text in case["stderr"]:
        assert text in err
    for text in case.get("stdout", []):
        assert text in out
    for text in case.get("must_not", ["Traceback"]):
        assert text not in out + err
    if "--nonsense" not in case["args"]:  # argparse has its own words
        assert len(errors_in(err)) == (1 if code else 0)
    if code:
        assert out == ""
    written = list(records(tmp_path).values())
    assert len(written) <= 1
    if "record" in case:
        assert len(written) == 1
        assert matches(written[0], case["record"]), json.dumps(written[0], indent=1)
    else:
        assert [record["status"] for record in written] in ([], ["failed"])
    assert {path.name for path in tmp_path.iterdir()} <= {"garbage", "outputs", "store"}


# Output


@pytest.mark.smoke
def test_json_prints_the_record_alone_on_standard_output(tmp_path):
    code, out, err = run(tmp_path, *EAGER, "output=json")
    assert code == 0
    (written,) = records(tmp_path).values()
    assert json.loads(out) == written
    assert "measure eager" in err
    assert written["speedup"] == {"1": None, "2": None}
    assert written["throughput_per_s"].keys() == {"1", "2"}
    assert written["latency_ms"]["eager"]["2"]["count"] >= 3
    assert {"import", "build", "measure"} <= written["phases_s"].keys()


def test_json_prints_the_record_of_a_failure_too(tmp_path):
    code, out, err = run(tmp_path, "mode.engine=tvm", "output=json")
    assert code == 2
    assert json.loads(out) == next(iter(records(tmp_path).values()))
    assert json.loads(out)["error"]["type"] == "ConfigError"
    assert len(errors_in(err)) == 1


def test_debug_shows_the_traceback_and_the_run_log_always_has_it(tmp_path):
    bad = ["mode=eager", "model=linear", "model.inputs=[{name: input, shape: [batch, 7]}]"]
    code, _, err = run(tmp_path, *bad)
    assert (code, "Traceback" in err) == (1, False)
    (folder,) = records(tmp_path)
    assert "Traceback" in (folder / "run.log").read_text()
    code, _, err = run(tmp_path, *bad, "debug=true")
    assert (code, "Traceback" in err, "BuildError" in err) == (1, True, True)


def test_two_runs_write_into_two_directories_and_nowhere_else(tmp_path):
    processes = [start(tmp_path, *EAGER) for _ in range(2)]
    for process in processes:
        _, err = process.communicate(timeout=100)
        assert process.returncode == 0, err
    found = records(tmp_path)
    assert len(found) == 2
    for folder, record in found.items():
        assert record["run_dir"] == str(folder)
        assert {path.name for path in folder.iterdir()} == {".hydra", "record.json", "run.log", "samples.npz"}
        assert folder.is_relative_to(tmp_path / "outputs" / "runs")
    assert {path.name for path in tmp_path.iterdir()} == {"outputs"}


def test_the_console_script_is_the_same_command(tmp_path):
    code = "import sys; from app.cli import main; sys.argv = ['app', 'model=nope']; main()"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "model/nope" in done.stderr
    assert "Traceback" not in done.stderr


# Signals


def interrupted(tmp_path, number, *args):
    """Send the signal as soon as the run measures; its code and what it said."""
    process = start(tmp_path, *args, *ENDLESS)
    guard = threading.Timer(100, process.kill)
    guard.start()
    said = []
    try:
        for line in process.stderr:
            said.append(line)
            if "] measure " in line:
                process.send_signal(number)
        out = process.stdout.read()
        process.wait()
    finally:
        guard.cancel()
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
    return process.returncode, out, "".join(said)


@pytest.mark.parametrize(
    ("number", "code", "kind"),
    [(signal.SIGINT, 130, "KeyboardInterrupt"), (signal.SIGTERM, 143, "SIGTERM")],
)
def test_a_signal_ends_the_run_with_its_code_and_a_failed_record(tmp_path, number, code, kind):
    ended, out, err = interrupted(tmp_path, number, *EAGER)
    assert (ended, out) == (code, ""), err
    assert "Traceback" not in err
    assert len(errors_in(err)) == 1
    (record,) = records(tmp_path).values()
    assert record["status"] == "failed"
    assert (record["error"]["type"], record["error"]["stage"]) == (kind, "measure")
    assert record["phases_s"]["build"] > 0


# Sweeps


@pytest.mark.smoke
def test_a_sweep_of_good_jobs_exits_0_with_a_record_each(tmp_path):
    code, _, err = run(tmp_path, "-m", *EAGER, "model.seed=1,2")
    assert code == 0, err
    found = records(tmp_path)
    assert [record["status"] for record in found.values()] == ["ok", "ok"]
    assert [folder.name for folder in found] == ["0", "1"]
    assert all(folder.is_relative_to(tmp_path / "outputs" / "multirun") for folder in found)
    assert [record["overrides"][-1] for record in found.values()] == ["model.seed=1", "model.seed=2"]


def test_a_sweep_with_a_failing_job_finishes_the_others_and_exits_4(tmp_path):
    code, _, err = run(tmp_path, "-m", *EAGER, "device=tpu,cpu")
    assert code == 4, err
    assert "Traceback" not in err
    assert "1/2 FAILED device=tpu · at config: device=tpu is not here" in err
    assert [record["status"] for record in records(tmp_path).values()] == ["failed", "ok"]


def test_a_sweep_over_an_option_that_there_is_not_exits_2_with_the_choices(tmp_path):
    code, _, err = run(tmp_path, "-m", "mode=eager", "model=linear,nope")
    assert code == 2
    assert "model/nope" in err
    assert "transformer" in err
    assert "Traceback" not in err
