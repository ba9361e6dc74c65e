"""A real sweep and the summary of it: what the page says is what the records say."""

from __future__ import annotations

import json

from app.report import __main__ as command


def test_a_sweep_ends_with_its_summary_and_the_command_makes_the_same_again(run_app, hit_args, tmp_path):
    words = [word for word in hit_args("linear") if not word.startswith("mode=")]
    sweep = tmp_path / "sweep"
    first = run_app([*words, "mode=eager,default", f"hydra.sweep.dir={sweep}", "-m"])
    assert first.code == 0, first.stderr
    written = {path.name: path.read_bytes() for path in sweep.glob("summary.*")}
    summary = json.loads(written["summary.json"])
    assert summary["counts"] == {"ok": 2}
    assert summary["cache"] == {"direct-hit": 1}
    records = [json.loads((sweep / str(number) / "record.json").read_text()) for number in (0, 1)]
    (compiled,) = [row for row in summary["rows"] if row["mode"] == "default"]
    for batch, timing in compiled["batches"].items():
        assert timing["latency_ms"] == records[1]["latency_ms"]["compiled"][batch]
        assert timing["speedup"] == records[1]["speedup"][batch]
    for answer in summary["answers"]:
        beats_eager = records[1]["speedup"][answer["batch"]] > 1
        assert answer["label"].startswith("default" if beats_eager else "eager")
    assert command.main([str(sweep), "--out", str(tmp_path / "again")]) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()} == written
