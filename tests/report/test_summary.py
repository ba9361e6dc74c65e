"""The answer, and every row behind it: whatever state the directories are in, what they hold is told, and no more."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from app.measure.statistics import Latency
from app.record import EvaluationInfo, Memory, RunError
from app.report import __main__ as command
from app.report import compare as comparing
from app.report.rows import by_size
from app.report.summary import escaped, gather, markdown, render, write
from app.verdict import VerifyInfo

OTHER = {"cpu": "Slow Processor", "cores": 64, "machine": "x86_64", "torch": "2.13.0", "python": "3.11.7", "gpus": []}


def shown(summary, width=80) -> str:
    stream = io.StringIO()
    render(summary, Console(file=stream, width=width))
    return stream.getvalue()


def answers(summary) -> dict[tuple[str, str], str]:
    return {(answer.model, answer.batch): answer.label for answer in summary.answers}


def test_the_answer_is_the_fastest_that_passed_verification(sweep):
    summary = gather([sweep])
    assert {label.partition(" · ")[0] for label in answers(summary).values()} == {"max-autotune"}
    answer = summary.answers[0]
    assert answer.batch == "1"
    assert answer.timing.speedup == pytest.approx(4, rel=0.05)
    assert answer.runner_up.startswith("default · fp32")
    assert answer.lead.low < answer.lead.ratio < answer.lead.high
    assert answer.lead.ratio == pytest.approx(2, rel=0.05)
    assert not answer.within_noise
    assert answer.num_candidates == 4  # bf16 was not verified
    assert "as fast as eager fp32 (95 %" in answer.sentence
    assert "beyond the noise" in answer.sentence


def test_a_refused_run_never_wins(tmp_path, runs):
    refused = VerifyInfo(passed=False, reference="float64", cases=[], multiple=3.0, floor=1e-5)
    runs.put(tmp_path / "0", 0.1, mode="fast-and-wrong", verify=refused)
    runs.put(tmp_path / "1", 0.9)
    assert set(answers(gather([tmp_path])).values()) == {"default · fp32"}


def test_eager_in_another_precision_is_no_reference(tmp_path, runs):
    runs.put(tmp_path / "0", None, mode="eager", precision="bf16")
    assert gather([tmp_path]).answers == []
    runs.put(tmp_path / "0", None, mode="eager", precision="fp32")
    assert set(answers(gather([tmp_path])).values()) == {"eager · fp32"}


def test_a_lead_that_its_interval_does_not_bear_out_is_noise(tmp_path, runs):
    runs.put(tmp_path / "0", 0.500)
    runs.put(tmp_path / "1", 0.5003, mode="reduce-overhead")
    for answer in gather([tmp_path]).answers:
        assert answer.within_noise
        assert answer.sentence.endswith("within the noise.")


def test_runs_on_a_disturbed_machine_are_told_apart_by_what_eager_took_beside_them(tmp_path, runs):
    runs.put(tmp_path / "0", 1.0, eager_ms=4.0, mode="better")  # everything took twice as long just then
    runs.put(tmp_path / "1", 0.8, eager_ms=2.0, mode="worse")
    assert set(answers(gather([tmp_path])).values()) == {"better · fp32"}


def test_where_nothing_beats_eager_eager_is_the_answer(tmp_path, runs):
    runs.put(tmp_path / "0", 1.3)
    runs.put(tmp_path / "1", None, mode="eager")
    (answer, _) = gather([tmp_path]).answers
    assert answer.label == "eager · fp32"
    assert answer.timing.speedup is None
    assert answer.lead.ratio == pytest.approx(1.3, rel=0.05)


def test_break_even_is_what_making_took_over_what_a_call_gains(tmp_path, runs):
    runs.put(tmp_path / "0", 0.5)
    row = gather([tmp_path]).rows[0]
    timing = row.batches["1"]
    assert row.make_s == pytest.approx(10.0)  # export and compile
    gained_s = (timing.eager_ms.p50 - timing.latency_ms.p50) / 1e3
    assert timing.break_even_calls * gained_s == pytest.approx(10.0, abs=gained_s)
    runs.put(tmp_path / "0", 1.5)
    assert gather([tmp_path]).rows[0].batches["1"].break_even_calls is None


def test_unlike_machines_are_kept_apart(tmp_path, runs):
    runs.put(tmp_path / "0", 0.5)
    runs.put(tmp_path / "1", 0.4, environment=OTHER)
    summary = gather([tmp_path])
    assert [machine["cpu"] for machine in summary.machines] == ["Fast Processor", "Slow Processor"]
    assert sorted((answer.machine, answer.batch, answer.num_candidates) for answer in summary.answers) == [
        (0, "1", 1),
        (0, "8", 1),
        (1, "1", 1),
        (1, "8", 1),
    ]


def test_every_end_of_a_job_is_a_row_with_its_reason(sweep):
    summary = gather([sweep])
    assert [row.status for row in summary.rows] == ["ok", "ok", "ok", "ok", "failed", "lost", "ok"]
    assert summary.counts == {"ok": 5, "failed": 1, "lost": 1}
    failed, lost = summary.failed
    assert failed.error == RunError("JobError", "compile", "killed by SIGSEGV <b>hard</b>")
    assert (lost.model, lost.mode, lost.error.message) == ("cnn", "m5", "it left no record")
    assert summary.commands[0] == "python -m app -m model=cnn,linear 'mode=a b'"


@pytest.mark.parametrize(
    ("status", "expected"), [("running", "running"), ("complete", "lost"), ("interrupted", "lost")]
)
def test_a_record_that_still_says_running_is_lost_once_its_sweep_has_ended(tmp_path, runs, status, expected):
    runs.plan(tmp_path, ["0", "1"], status)
    runs.fail(tmp_path / "0", status="running", stage="export", error=None)
    first, second = gather([tmp_path]).rows
    assert (first.status, second.status) == (expected, expected)
    assert first.error.stage == "export"


def test_records_that_cannot_be_read_cost_one_row_each(tmp_path, runs):
    runs.put(tmp_path / "0")
    for number, text in enumerate(
        ["", "{", '{"schema": 99}', '{"schema": 1, "task": "x", "status": "ok", "rung": 5}', "[NaN]"]
    ):
        (tmp_path / f"1{number}").mkdir()
        (tmp_path / f"1{number}" / "record.json").write_text(text)
    summary = gather([tmp_path])
    assert summary.counts == {"ok": 1, "unreadable": 5}
    assert "newer than 1" in summary.rows[3].error.message
    write(summary, tmp_path)


def test_an_old_record_without_the_later_fields_is_read(tmp_path):
    latency = {"p50": 1, "p90": 2, "p99": 3, "mean": 1.5, "stdev": 0.5, "min": 1, "count": 9}
    old = {"schema": 1, "status": "ok", "task": "benchmark", "model": "cnn", "latency_ms": {"eager": {"4": latency}}}
    (tmp_path / "record.json").write_text(json.dumps(old))
    (row,) = gather([tmp_path]).rows
    assert row.batches["4"].latency_ms.p50 == 1
    write(gather([tmp_path]), tmp_path / "out")


NOTHING = Latency(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0)


@pytest.mark.parametrize(
    "absurd",
    [
        {"speedup": {"1": 0.0, "8": -1.0}, "speedup_interval": {"1": [], "8": [0.0, 1.0, 2.0]}},
        {"speedup": {}, "speedup_interval": None, "throughput_per_s": {}, "rungs": {}},
        {"latency_ms": {"compiled": {"x": NOTHING, "": NOTHING}, "eager": {"x": NOTHING}}},
        {"latency_ms": {"compiled": {"4": NOTHING}}, "phases_s": {}, "memory": Memory()},
        {"latency_ms": {}, "phases_s": {"first_call": 0.0}, "environment": {}, "overrides": ["", "=", "~"]},
        {"model": None, "mode": None, "precision": None, "overrides": [], "command": []},
        {"overrides": ["model=\ud800", "mode=\x1b[31m", "x=\0"], "mode": "\udcff\x1b[31mred", "model": "\0"},
    ],
)
def test_an_absurd_record_costs_no_more_than_its_own_row(tmp_path, runs, absurd):
    runs.put(tmp_path / "0", 0.5)
    runs.put(tmp_path / "1", 0.4, **{"mode": "other"} | absurd)
    summary = gather([tmp_path])
    write(summary, tmp_path)
    assert "\x1b" not in shown(summary)
    assert len(summary.rows) == 2
    assert "default · fp32" in {row.label for row in summary.rows}
    runs.put(tmp_path / "again" / "0", 0.5)
    assert comparing.markdown(comparing.compare(tmp_path, tmp_path / "again", 0.05))


def test_a_damaged_sweep_file_is_said_and_its_records_are_shown(tmp_path, runs):
    runs.put(tmp_path / "0")
    (tmp_path / "sweep.json").write_text("{")
    summary = gather([tmp_path])
    assert len(summary.rows) == 1
    assert "sweep.json" in summary.warnings[0]


@pytest.mark.parametrize("damage", ["absent", "cut", "text"])
def test_samples_that_cannot_be_read_cost_the_distribution_only(tmp_path, runs, damage):
    path = runs.put(tmp_path / "0") / "samples.npz"
    if damage == "absent":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:200] if damage == "cut" else b"no archive")
    write(gather([tmp_path]), tmp_path)
    assert "Distribution" not in (tmp_path / "summary.html").read_text()
    assert "Latency by batch size" in (tmp_path / "summary.html").read_text()


def test_the_last_run_of_a_configuration_counts_and_all_are_listed(tmp_path, runs):
    runs.put(tmp_path / "a", 0.9, created_at="2026-11-24T12:00:00+00:00")
    runs.put(tmp_path / "b", 0.3, created_at="2026-11-23T12:00:00+00:00")
    summary = gather([tmp_path])
    assert len(summary.rows) == 2
    assert {answer.job for answer in summary.answers} == {"a"}


def test_what_varies_tells_configurations_apart_and_what_only_steers_does_not(tmp_path, runs):
    common = ["model=cnn", "mode=default", "graphs=off"]
    runs.put(tmp_path / "0", overrides=[*common, "runtime.threads=1", "cache.dir=/a"])
    runs.put(tmp_path / "1", overrides=[*common, "+runtime.threads=2", "cache.dir=/b"])
    assert [row.label for row in gather([tmp_path]).rows] == [
        "default · fp32 · runtime.threads=1",
        "default · fp32 · runtime.threads=2",
    ]


def test_csv_has_a_line_for_every_batch_of_every_job(sweep):
    write(gather([sweep]), sweep)
    with (sweep / "summary.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 5 * 2 + 2
    assert {line["status"] for line in lines} == {"ok", "failed", "lost"}
    by_job = {(line["job"], line["batch"]): line for line in lines}
    record = json.loads((sweep / "2" / "record.json").read_text())
    assert float(by_job["2", "8"]["p50_ms"]) == record["latency_ms"]["compiled"]["8"]["p50"]
    assert by_job["6", "1"]["overrides"].endswith("|`*\n=cmd()")


def test_json_is_the_whole_summary(sweep):
    summary = gather([sweep])
    write(summary, sweep)
    content = json.loads((sweep / "summary.json").read_text(), parse_constant=pytest.fail)
    assert content["schema"] == 1
    assert [row["status"] for row in content["rows"]] == [row.status for row in summary.rows]
    assert content["answers"][0]["sentence"] == summary.answers[0].sentence


def test_markdown_keeps_its_tables_whatever_an_override_holds(sweep):
    text = markdown(gather([sweep]))
    widths = {}
    for line in text.splitlines():
        if line.startswith("|"):
            widths.setdefault(line.replace("\\|", "").count("|"), 0)
    assert len(widths) == 2  # of failures, and of runs
    assert "<script" not in text.replace("\\<", "")


@given(st.text())
def test_escaped_text_stays_on_one_line_of_one_cell(text):
    found = escaped(text)
    assert len(found.splitlines()) <= 1
    assert "|" not in found.replace("\\\\", "").replace("\\|", "")
    assert "<" not in found.replace("\\\\", "").replace("\\<", "")


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_terminal_shows_answers_failures_and_counts_within_its_width(sweep, width):
    text = shown(gather([sweep]), width)
    assert max(map(len, text.splitlines())) <= width
    flat = " ".join(text.split())
    assert "4 (model=cnn mode=m4) at compile: killed by SIGSEGV <b>hard</b>" in flat
    assert "7 jobs · 5 ok · 1 failed · 1 lost" in flat


def test_an_evaluation_is_a_row_and_a_picture(tmp_path, runs):
    evaluation = EvaluationInfo(
        **dict.fromkeys((field.name for field in dataclasses.fields(EvaluationInfo)), None)
        | {"rows": 9, "metric": "accuracy", "metric_values": {"eager": 1.0, "compiled": 0.9}, "metric_drop": 0.1}
        | {"disagreement": 0.1, "rows_per_s": {"eager": 10.0, "compiled": 30.0}, "disagreements": []}
        | {
            "data": "d",
            "data_sha256": "0",
            "resumed_rows": 0,
            "batch_size": 3,
            "judge": "argmax",
            "num_disagreements": 1,
        }
    )
    runs.put(tmp_path / "0", evaluation=evaluation, task="evaluate", latency_ms=None)
    write(gather([tmp_path]), tmp_path)
    assert "Metric against speed" in (tmp_path / "summary.html").read_text()


SPEEDS = st.tuples(st.floats(0.1, 10), st.booleans())


@settings(max_examples=25, deadline=None)
@given(st.lists(SPEEDS, min_size=1, max_size=5))
def test_the_answer_is_the_largest_speedup_of_the_trusted(tmp_path_factory, runs, rows):
    root = tmp_path_factory.mktemp("drawn")
    for number, (ms, passed) in enumerate(rows):
        verdict = VerifyInfo(passed=passed, reference="float64", cases=[], multiple=3.0, floor=1e-5)
        runs.put(root / str(number), ms, batches=("1",), mode=f"m{number}", verify=verdict)
    summary = gather([root])
    trusted = [row for row in summary.rows if row.verified]
    assert bool(summary.answers) == bool(trusted)
    for answer in summary.answers:
        best = max(row.batches["1"].speedup for row in trusted)
        assert answer.timing.speedup == best
        assert answer.num_candidates == len(trusted)


def test_batch_sizes_come_in_order():
    assert sorted(["16", "4", "128", "1"], key=by_size) == ["1", "4", "16", "128"]


def test_the_command_writes_beside_the_records_and_shows_the_answer(sweep, capsys):
    assert command.main([str(sweep)]) == 0
    assert {path.name for path in sweep.glob("summary.*")} == {
        f"summary.{each}" for each in ("json", "csv", "md", "html")
    }
    assert "max-autotune" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name directories"),
        (["{tmp}", "--compare", "a", "b"], "name directories"),
        (["{tmp}/absent"], "is no directory"),
        (["{tmp}"], "holds no record.json"),
        (["{tmp}", "{tmp}"], "--out"),
        (["--compare", "{tmp}", "{tmp}", "--tolerance", "5"], "no share from 0 to 1"),
        (["--compare", "{tmp}", "{tmp}", "--tolerance", "x"], "invalid"),
        (["--compare", "{tmp}", "{tmp}", "--out", "{tmp}"], "--out is for a summary"),
    ],
)
def test_bad_arguments_are_exit_code_2_and_say_what_is_wrong(tmp_path, capsys, arguments, said):
    with pytest.raises(SystemExit) as stopped:
        command.main([each.format(tmp=tmp_path) for each in arguments])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_one_line(sweep, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert command.main([str(sweep), "--out", str(tmp_path / "file")]) == 1
    assert "can't write the summary" in capsys.readouterr().err


def test_neither_torch_nor_hydra_is_imported(sweep):
    program = f"""
import sys
from app.report.__main__ import main
assert main([{str(sweep)!r}]) == 0
print([name for name in ("torch", "hydra", "omegaconf") if name in sys.modules])
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "[]"
