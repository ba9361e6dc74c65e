"""A profile says what pays for the calls that were seen, and the next run uses what it wrote."""

from __future__ import annotations

import json

CALLS = [{"t": index / 100, "batch": size} for index, size in enumerate([1, 1, 3, 3, 6] * 20)]


def test_a_profile_is_written_and_the_next_run_uses_it(run_app, hit_args, tmp_path):
    calls = tmp_path / "calls.jsonl"
    calls.write_text("\n".join(map(json.dumps, CALLS)))
    written = tmp_path / "mine" / "experiment" / "seen.yaml"
    run = run_app(
        [*hit_args("linear"), "task=profile", "data=workload", f"data.path={calls}", f"profile.write={written}"]
    )
    assert run.code == 0, run.stderr
    rows = {row["setting"]: row for row in run.record["result"]}
    assert rows["precision"]["choice"] == "fp32"  # at its own tolerance nothing else passes
    assert "bf16 refused" in rows["precision"]["why"]
    assert (rows["graphs.enabled"]["choice"], rows["graphs.enabled"]["why"]) == ("false", "there is no GPU")
    sizes = json.loads(rows["graphs.batch_sizes"]["choice"])
    assert set(sizes) <= {1, 3, 6}
    assert max(sizes) == 6
    assert "padded to 6" in rows["size of batch"]["why"]
    assert "101" not in rows["second process"]["why"]
    assert "100 calls a second" in rows["second process"]["why"]
    assert rows["file"]["choice"] == str(written)

    program = ["-m", "app", "--config-dir", str(tmp_path / "mine")]
    again = run_app([*hit_args("linear"), "experiment=seen"], program=program)
    assert again.code == 0, again.stderr
    assert set(map(int, again.record["rungs"])) == set(sizes)
    assert again.record["cache"]["outcome"] == "direct-hit"


def test_a_file_that_no_run_would_find_is_refused(run_app, tmp_path):
    run = run_app(
        ["model=linear", "task=profile", "data=workload", "data.path=x", f"profile.write={tmp_path}/a.yaml"]
    )
    assert run.code == 2
    assert "FOLDER/experiment/NAME.yaml" in run.stderr


def test_calls_are_no_rows_of_an_evaluation(run_app):
    run = run_app(["model=linear", "task=evaluate", "data=workload", "data.path=calls.jsonl"])
    assert run.code == 2
    assert "data=workload holds calls, not rows" in run.stderr
