"""What changed between two sets of runs: no more is called a change than the samples and the runs bear out."""

from __future__ import annotations

import pytest

from app.measure.statistics import Speedup, quotient, scatter, widened
from app.report import __main__ as command
from app.report.compare import compare, markdown

OTHER = {"cpu": "Slow Processor", "cores": 64, "machine": "x86_64", "torch": "2.13.0", "python": "3.11.7", "gpus": []}


def verdicts(comparison) -> dict[tuple[str, str], str]:
    return {(change.label.partition(" · ")[0], change.batch): change.verdict for change in comparison.changes}


@pytest.fixture
def sides(tmp_path, runs):
    """Two directories of three modes each; the function makes the second, with the given times."""

    def made(after: dict[str, float], **fields):
        for mode in ("default", "max-autotune", "reduce-overhead"):
            runs.put(tmp_path / "a" / mode, 0.5, mode=mode)
            runs.put(tmp_path / "b" / mode, after.get(mode, 0.5), mode=mode, **fields)
        return tmp_path / "a", tmp_path / "b"

    return made


def test_the_same_again_is_the_same(sides):
    found = compare(*sides({}), tolerance=0.05)
    assert set(verdicts(found).values()) == {"same"}
    assert len(found.changes) == 6
    assert not found.has_regression
    assert not found.missing


def test_faster_slower_and_regression_are_told_apart(sides):
    after = {"default": 0.40, "max-autotune": 0.52, "reduce-overhead": 0.60}
    found = compare(*sides(after), tolerance=0.1)
    assert verdicts(found) == {
        (mode, batch): verdict
        for mode, verdict in {"default": "faster", "max-autotune": "slower", "reduce-overhead": "regression"}.items()
        for batch in ("1", "8")
    }
    assert found.has_regression
    text = markdown(found)
    assert text.startswith("### Regression: 2 regression, 2 slower, 2 faster")
    assert text.index("| regression |") < text.index("| slower |") < text.index("| faster |")


def test_the_tolerance_is_what_the_whole_interval_must_pass(sides):
    places = sides({"default": 0.55})
    found = next(each.gain for each in compare(*places, tolerance=0).changes if each.label.startswith("default"))
    slowdown = 1 / found.high - 1  # at least so much
    assert compare(*places, tolerance=slowdown * 0.9).has_regression
    assert verdicts(compare(*places, tolerance=1 / found.low - 1))["default", "1"] == "slower"


def test_what_eager_did_from_run_to_run_is_no_change(tmp_path, runs):
    for number, (eager_ms, ms) in enumerate([(1.0, 0.5), (1.1, 0.55), (0.9, 0.45), (1.15, 0.57)]):
        runs.put(tmp_path / "a" / str(number), 0.5, mode=f"m{number}")
        runs.put(tmp_path / "b" / str(number), ms, eager_ms=eager_ms, mode=f"m{number}")
    found = compare(tmp_path / "a", tmp_path / "b", tolerance=0.05)
    assert found.scatter["cnn"] == pytest.approx(0.1, rel=0.5)
    assert set(verdicts(found).values()) == {"same"}


def test_what_eager_did_in_all_runs_alike_is_shown_beside_a_change(sides):
    found = compare(
        *sides(dict.fromkeys(("default", "max-autotune", "reduce-overhead"), 1.0), eager_ms=2.0), tolerance=0.05
    )
    assert set(verdicts(found).values()) == {"regression"}
    assert all(change.eager == pytest.approx(0.5, rel=0.05) for change in found.changes)


def test_without_samples_nothing_is_claimed(sides):
    before, after = sides({"default": 5.0})
    for path in after.rglob("samples.npz"):
        path.unlink()
    found = compare(before, after, tolerance=0.05)
    assert set(verdicts(found).values()) == {"untested"}
    assert not found.has_regression


def test_unlike_machines_are_refused(sides, capsys):
    before, after = sides({}, environment=OTHER)
    with pytest.raises(ValueError, match=r"unlike machines aren't compared: .*Fast Processor.*Slow Processor"):
        compare(before, after, tolerance=0.05)
    with pytest.raises(SystemExit, match="2"):
        command.main(["--compare", str(before), str(after)])
    assert "unlike machines" in capsys.readouterr().err


def test_what_one_machine_of_two_has_is_kept_apart(sides, runs):
    before, after = sides({})
    runs.put(before / "far", 0.5, mode="default", environment=OTHER)
    runs.put(after / "far", 5.0, mode="far", environment=OTHER)
    found = compare(before, after, tolerance=0.05)
    assert set(verdicts(found).values()) == {"same"}
    assert any("Slow Processor" in text for text in found.missing)


def test_another_torch_is_a_difference_that_is_compared(sides):
    newer = {
        "cpu": "Fast Processor",
        "cores": 2,
        "machine": "x86_64",
        "torch": "2.14.0",
        "python": "3.11.7",
        "gpus": [],
    }
    found = compare(*sides({}, environment=newer), tolerance=0.05)
    assert found.differences == ["torch: 2.13.0 → 2.14.0"]
    assert len(found.changes) == 6


def test_an_override_of_all_runs_of_a_side_is_the_change_that_is_compared(tmp_path, runs):
    for side, threads in (("a", 1), ("b", 2)):
        for mode in ("x", "y"):
            words = ["model=cnn", f"mode={mode}", f"runtime.threads={threads}", f"cache.dir=/{side}"]
            runs.put(tmp_path / side / mode, 0.5, mode=mode, overrides=words)
    runs.fail(
        tmp_path / "b" / "z", overrides=["model=cnn", "graphs=off"]
    )  # what came to nothing says nothing of the rest
    found = compare(tmp_path / "a", tmp_path / "b", tolerance=0.05)
    assert found.differences == ["runtime.threads: 1 → 2"]
    assert len(found.changes) == 4


def test_rows_of_one_side_are_listed_and_what_fails_now_is_a_regression(sides, runs):
    before, after = sides({})
    runs.put(after / "new", 0.1, mode="brand-new")
    assert not compare(before, after, tolerance=0.05).has_regression
    broken = {"mode": "default", "precision": "fp32", "weights": "frozen", "device": "cpu"}
    runs.fail(after / "default", message="no | kernel", **broken)
    found = compare(before, after, tolerance=0.05)
    assert len(found.changes) == 4
    assert found.has_regression
    assert found.broken == [
        f"cnn, default · fp32, batch {batch}, only in {before}: in {after} it failed at compile: no | kernel"
        for batch in "18"
    ]
    assert found.missing == [f"cnn, brand-new · fp32, batch {batch}, only in {after}" for batch in "18"]
    assert "no \\| kernel" in markdown(found)
    assert not compare(after, before, tolerance=0.05).has_regression  # mended


def test_a_comparison_of_nothing_is_no_pass(tmp_path, runs):
    runs.put(tmp_path / "a", 0.5, mode="x")
    runs.put(tmp_path / "b", 0.5, mode="y")
    with pytest.raises(ValueError, match=r"no configuration in common: .*only in"):
        compare(tmp_path / "a", tmp_path / "b", tolerance=0.05)


def test_the_command_prints_markdown_and_exits_5_for_a_regression(sides, capsys):
    before, after = sides({"default": 0.7})
    assert command.main(["--compare", str(before), str(after)]) == 5
    assert capsys.readouterr().out.startswith("### Regression")
    assert command.main(["--compare", str(before), str(after), "--tolerance", "0.9"]) == 0
    assert command.main(["--compare", str(after), str(before)]) == 0


def test_a_quotient_of_speedups_is_one_of_their_ratios_and_as_uncertain_as_both():
    found = quotient(Speedup(2.0, 1.9, 2.1), Speedup(1.0, 1.0, 1.0))
    assert (found.ratio, found.low, found.high) == pytest.approx((2.0, 1.9, 2.1))
    wider = quotient(Speedup(2.0, 1.9, 2.1), Speedup(1.0, 0.9, 1.1))
    assert wider.low < 1.9
    assert wider.high > 2.1


def test_scatter_is_a_relative_standard_deviation_that_a_common_shift_does_not_move():
    assert scatter([[1.0, 1.1, 0.9], [5.0, 5.5, 4.5]]) == pytest.approx(0.1, rel=0.02)
    assert scatter([[2.0], []]) == 0.0
    same = Speedup(1.0, 0.99, 1.01)
    assert widened(same, 0.0) == same
    assert widened(same, 0.1).low == pytest.approx(0.82, abs=0.01)
