from __future__ import annotations

import dataclasses
import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from app.fallback import Fallback
from app.measure.statistics import Latency
from app.record import CacheInfo, ModeCandidate, ModeChoice, Record, RunError
from app.report.console import figure, render
from app.verdict import VerifyCase, VerifyInfo

BATCHES = ("1", "2", "4", "16")


def latencies(scale: float) -> dict[str, Latency]:
    p50 = {batch: scale * int(batch) ** 0.9 for batch in BATCHES}
    return {b: Latency(p, 1.07 * p, 1.4 * p, 1.02 * p, 0.05 * p, 0.97 * p, 500) for b, p in p50.items()}


REASON = "capture failed for [batch, 64, 100]: operation not permitted when stream is capturing"
RECORD = Record(
    status="ok",
    task="benchmark",
    model="cnn",
    mode="max-autotune",
    precision="fp32",
    device="cpu",
    cache=CacheInfo("miss", ["torch 2.12.0 -> 2.13.0", "threads 2 -> 4"]),
    rung="compiled",
    rungs=dict.fromkeys(BATCHES, "compiled"),
    fallbacks=[Fallback("cudagraph", "compiled", "capture", REASON)],
    phases_s={"key": 0.0004, "export": 1.53, "compile": 8.4, "first_call": 0.0021},
    verify=VerifyInfo(
        passed=True,
        reference="float64",
        cases=[VerifyCase(4, seed, seed * 2e-8, 1.1e-7, 1e-5, 3e-6, passed=True) for seed in range(1, 7)],
        multiple=2.0,
        floor=1e-6,
    ),
    latency_ms={"compiled": latencies(0.16), "eager": latencies(0.25)},
    speedup=dict.fromkeys(BATCHES, 1.56),
    speedup_interval={batch: [1.51, 1.62] for batch in BATCHES},
    throughput_per_s={batch: int(batch) / 0.00016 for batch in BATCHES},
    warnings=["eager, batch 4: stdev is 14 % of mean; the figures may be unstable"],
    run_dir="outputs/runs/2026-11-03/12-00-00-123456",
)
BF16 = dataclasses.replace(
    RECORD,
    precision="bf16",
    latency_ms={**RECORD.latency_ms, "eager_bf16": latencies(0.0444)},
    speedup_same_precision={"1": 1.12, "16": None},
    rungs={"1": "compiled", "2": "compiled", "16": "eager"},
)
EAGER = dataclasses.replace(RECORD, rung="eager", rungs=dict.fromkeys(BATCHES, "eager"), speedup=None)
SLOW = dataclasses.replace(RECORD, latency_ms={"compiled": latencies(4321), "eager": latencies(54321)})


def rendered(record: Record, width: int = 80, encoding: str = "utf-8", **options) -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="\n")
    render(record, Console(file=stream, width=width, **options))
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)


def joined(record: Record, width: int = 80) -> str:
    """The output as one line, so that a test doesn't depend on where lines break."""
    return " ".join(rendered(record, width).split())


@pytest.mark.parametrize("record", [RECORD, BF16, EAGER, SLOW], ids=["fp32", "bf16", "eager", "slow"])
@pytest.mark.parametrize("width", [60, 80, 120])
def test_fits_the_width_and_cuts_no_figure(record, width) -> None:
    lines = rendered(record, width).splitlines()
    assert all(len(line) <= width or line.startswith("record ") for line in lines)  # a path is for copying
    assert RECORD.run_dir in lines[-1]
    assert "…" not in "".join(lines)


def test_is_plain_where_there_is_no_terminal() -> None:
    assert "\x1b" not in rendered(RECORD)


def test_has_no_colour_under_no_color(monkeypatch) -> None:
    coloured = re.compile(r"\x1b\[(\d+;)*3\d")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert coloured.search(rendered(RECORD, force_terminal=True))
    monkeypatch.setenv("NO_COLOR", "1")
    assert not coloured.search(rendered(RECORD, force_terminal=True))


def test_the_whole_run_at_a_glance() -> None:
    assert rendered(RECORD) == (
        "cnn · max-autotune · fp32 · cpu · latency in ms\n"
        "\n"
        "             eager             compiled                         inferences\n"
        "batch    p50   p90   p99    p50   p90   p99           speed-up    a second\n"
        "    1  0.250 0.268 0.350  0.160 0.171 0.224  1.56x (1.51-1.62)       6,250\n"
        "    2  0.467 0.499 0.653  0.299 0.319 0.418  1.56x (1.51-1.62)      12,500\n"
        "    4  0.871 0.931  1.22  0.557 0.596 0.780  1.56x (1.51-1.62)      25,000\n"
        "   16   3.03  3.24  4.24   1.94  2.08  2.72  1.56x (1.51-1.62)     100,000\n"
        "\n"
        "rung      compiled\n"
        "fallback  cudagraph -> compiled at capture: capture failed for [batch, 64, 100]:\n"
        "          operation not permitted when stream is capturing\n"
        "verify    passed: 6 cases, worst 1.2e-07 against float64, eager's own 1.1e-07,\n"
        "          limit 1.0e-05\n"
        "time      export 1.53 s · compile 8.40 s · first call 2.10 ms\n"
        "cache     miss: torch 2.12.0 -> 2.13.0; threads 2 -> 4\n"
        "warning   eager, batch 4: stdev is 14 % of mean; the figures may be unstable\n"
        "record    outputs/runs/2026-11-03/12-00-00-123456/record.json\n"
    )


def test_an_eager_run_shows_only_eager() -> None:
    text = joined(EAGER)
    assert "rung eager" in text
    assert "speed-up" not in text
    assert text.count("p50") == 1


def test_another_precision_shows_eager_in_it_and_the_speedup_against_it() -> None:
    text = joined(BF16)
    assert "eager bf16" in text
    assert "0.0444" in text
    assert "speed-up against eager in bf16: 1.12x (batch 1)" in text


def test_batches_on_different_rungs_are_told_apart() -> None:
    assert "rung compiled (batch 1, 2) · eager (batch 16)" in joined(BF16)


def test_a_batch_that_was_not_measured_is_a_dash() -> None:
    compiled = {"1": latencies(0.16)["1"]}
    record = dataclasses.replace(
        RECORD, latency_ms={**RECORD.latency_ms, "compiled": compiled}, speedup={"1": 1.56, "16": None}
    )
    assert re.search(r"16 +3.03 +3.24 +4.24 +- +- +- +- +100,000", rendered(record))


def test_a_failed_verification_says_how_many_and_how_far() -> None:
    good, bad = RECORD.verify.cases[0], dataclasses.replace(RECORD.verify.cases[1], rel_l2=None, passed=False)
    verify = dataclasses.replace(RECORD.verify, passed=False, cases=[good, bad])
    text = joined(dataclasses.replace(RECORD, verify=verify))
    assert "failed: 1 of 2 cases, worst not finite against float64" in text


@pytest.mark.parametrize(("percent", "said"), [(6.5, "6 % less than 1, 4"), (-13.0, "13 % more than 1, 4")])
def test_chosen_batch_sizes_say_what_they_save(percent, said) -> None:
    chosen = {"buckets": [3, 8], "expected_ms": 0.0632, "hit_rate": 0.75, "padding_waste": 0.125}
    row = {
        "chosen": chosen,
        "today": {"buckets": [1, 4]},
        "saving_percent": percent,
        "histogram": {"3": 1200, "7": 5},
    }
    shown = joined(dataclasses.replace(RECORD, tuned=row), 118)
    assert f"buckets 3, 8: 0.0632 ms a call expected, {said} · 75% of calls are a bucket" in shown
    assert "calls by batch 3: 1,200, 7: 5" in shown


def test_a_hit_says_what_it_saved() -> None:
    record = dataclasses.replace(RECORD, cache=CacheInfo("direct-hit", [], 8.4))
    assert "cache direct-hit, saved 8.40 s" in joined(record)


def test_a_run_without_figures_has_no_table() -> None:
    record = dataclasses.replace(RECORD, latency_ms=None, speedup=None, throughput_per_s=None, task="compile")
    assert "p50" not in rendered(record)
    assert "verify    passed" in rendered(record)


def test_a_failed_run_prints_its_stage_and_its_reason_and_nothing_else() -> None:
    error = RunError("CompileError", "compile", "\x1b[31mg++ failed\x1b[0m:\n  expected ';' before [[unlikely]]")
    record = dataclasses.replace(RECORD, status="failed", error=error)
    assert rendered(record) == "failed    at compile: g++ failed: expected ';' before [[unlikely]]\n"


def test_a_terminal_that_knows_only_ascii_is_no_obstacle() -> None:
    assert "cnn ? max-autotune" in rendered(RECORD, encoding="ascii")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (0.0444, "0.0444"),
        (0.25, "0.250"),
        (9.999, "10.0"),
        (42.16, "42.2"),
        (999.6, "1,000"),
        (123456, "123,000"),
        (None, "-"),
    ],
)
def test_figures_have_three_digits(value, shown) -> None:
    assert figure(value) == shown


@given(st.floats(1e-9, 1e12))
def test_a_figure_is_within_half_a_percent(value) -> None:
    assert float(figure(value).replace(",", "")) == pytest.approx(value, rel=0.0051)
    assert "e" not in figure(value)


DIGEST = "0123456789abcdef" * 4
ADVICE = "install a CUDA build of torch: https://pytorch.org/get-started/locally/previous-versions"


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_table_breaks_between_words_only(width) -> None:
    rows = [
        {"name": "rung cudagraph", "digest": DIGEST, "found": "no GPU was found on this machine", "advice": ADVICE},
        {"name": "rung eager", "digest": DIGEST, "found": "all that it needs", "advice": None},
    ]
    lines = rendered(dataclasses.replace(RECORD, result=rows), width).splitlines()
    words = " ".join(lines).split()
    assert {*ADVICE.split(), DIGEST[:12], "cudagraph", "machine"} <= set(words)
    assert all(len(line) <= width or line.endswith(ADVICE.rpartition(" ")[2]) for line in lines)
    assert lines[0].split()[:3] == ["name", "digest", "found"]


def test_one_row_is_a_list_with_what_is_nested_beneath_its_name() -> None:
    row = {
        "objects": {"count": 3, "bytes": 2_000_000},
        "limit": 7,
        "answers": {"misses": {"rates.py": 2}, "seconds_saved": 9.0},
    }
    assert rendered(dataclasses.replace(RECORD, result=[row])).splitlines() == [
        "objects          count 3 · bytes 2.0 MB",
        "limit            7",
        "answers",
        "  misses         rates.py 2",
        "  seconds saved  9.00",
    ]


@pytest.mark.parametrize(
    ("choice", "line"),
    [
        (
            {},
            "auto: tuned, 1.31x eager at batch 8, from 3 verified runs, the last of 2026-11-24 (plain refused; eager 1.00x)",
        ),
        ({"evidence": "measured"}, "auto: tuned, 1.31x eager at batch 8, measured now (plain refused; eager 1.00x)"),
        (
            {"kept": "eager", "num_runs": 1},
            "auto: eager, no compiled one is faster at batch 8, from 1 verified run, the last of 2026-11-24 (tuned 0.900x; plain refused)",
        ),
    ],
)
def test_a_chosen_mode_is_said_with_its_evidence(choice, line) -> None:
    candidates = [
        ModeCandidate("tuned", "fp32", 0.9 if "kept" in choice else 1.31, None),
        ModeCandidate("plain", "fp32", None, "refused"),
        ModeCandidate("eager", "fp32", 1.0, None),
    ]
    found = {"kept": "tuned", "evidence": "known", "num_runs": 3, **choice}
    made = ModeChoice(
        precision="fp32", batch=8, last_run="2026-11-24T10:00:00+00:00", traits=None, candidates=candidates, **found
    )
    assert f"mode {line} rung" in joined(dataclasses.replace(RECORD, mode_choice=made))
