"""Evidence is believed while what was measured is what would run, and only there; the fastest of it is kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.config import FLOORS, ModeConfig
from app.environment import installed
from app.evidence import EAGER, FOLDER, MOST_RUNS, Candidate, Evidence, Profile, Question, Run, best, candidates
from app.keys import request_key
from app.record import PrecisionCandidate, Traits
from app.store import Store, Trust
from app.trial import ordered

AT_8 = Question(batch=8, judge=None, budget_s=60.0)
# A candidate where it is installed.
OPENVINO = ["openvino"] if installed("openvino") else []
OBJECT, OTHER = "a" * 64, "b" * 64


def ran(p50_ms, eager_ms=1.0, batch=8, at="2026-11-24T10:00:00+00:00"):
    return Run(at, {str(batch): p50_ms}, {str(batch): eager_ms})


def known(*runs, **others):
    return Evidence(["request", OBJECT], list(runs), **others)


# The choice


@given(st.dictionaries(st.text(min_size=1), st.floats(0.01, 100), min_size=1))
def test_the_fastest_is_kept(p50_ms):
    assert p50_ms[best({name: known(ran(each)) for name, each in p50_ms.items()}, AT_8)] == min(p50_ms.values())


def test_each_run_counts_against_the_eager_of_its_own_minutes():
    slow_minutes, fast_minutes = known(ran(2.0, 4.0)), known(ran(1.0, 1.5))
    assert best({"a": slow_minutes, "b": fast_minutes}, AT_8) == "a"


def test_one_disturbed_run_of_three_sways_nothing():
    assert known(ran(0.5), ran(50.0), ran(0.5)).speedup(8) == 2.0


def test_what_is_refused_is_not_kept_however_fast():
    refused = PrecisionCandidate("bf16", passed=False, reason="too far")
    judged = replace(AT_8, judge="float64")
    options = {"fast": known(ran(0.1), judged={"float64": refused}), "failed": known(reason="it crashed")}
    assert best(options, judged) is None
    assert all(each.answers(judged) for each in options.values())
    assert (options["fast"].refusal(judged), options["failed"].refusal(judged)) == ("too far", "it crashed")


def test_what_was_measured_at_another_batch_or_never_judged_is_no_answer():
    passed = {"rows": PrecisionCandidate("bf16", passed=True, reason=None)}
    assert known(ran(1.0)).answers(AT_8)
    assert not known(ran(1.0, batch=4)).answers(AT_8)
    assert not known(ran(1.0)).answers(replace(AT_8, judge="rows"))
    assert known(ran(1.0), judged=passed).answers(replace(AT_8, judge="rows"))


def test_what_a_budget_left_out_is_tried_with_a_larger_one():
    late = known(reason="over", budget_s=60.0)
    assert [late.answers(replace(AT_8, budget_s=seconds)) for seconds in (1.0, 60.0, 61.0)] == [True, True, False]


# The candidates


def test_auto_stands_for_the_portfolio_in_each_precision(compose_settings):
    found = candidates(compose_settings(["model=linear", "mode=auto", "precision=auto"]), "cpu")
    modes = ("max-autotune", "default", "eager", *OPENVINO)
    assert set(found) == {f"{mode}/{precision}" for mode in modes for precision in FLOORS}
    assert set(candidates(compose_settings(["model=linear", "mode=auto"]), "cpu")) == {
        f"{mode}/fp32" for mode in modes
    }


def test_modes_of_the_same_code_are_tried_once(compose_settings):
    more = ["model=linear", "mode=auto", "+mode@auto.portfolio.again=reduce-overhead"]
    unlike = [*more, "+auto.portfolio.again.inductor.epilogue_fusion=false"]
    names = {"max-autotune/fp32", "default/fp32", "eager/fp32", *(f"{mode}/fp32" for mode in OPENVINO)}
    assert set(candidates(compose_settings(more), "cpu")) == names
    assert set(candidates(compose_settings(unlike), "cpu")) == {*names, "reduce-overhead/fp32"}


@pytest.mark.parametrize("argument", ["weights=external", "target=x86-64-v2", "fallback.rungs=[compiled,eager]"])
def test_what_cannot_be_had_here_is_no_candidate(compose_settings, monkeypatch, argument):
    monkeypatch.setattr("app.compiler.installed", lambda _: "2026.4.1")
    asked = ["model=linear", "mode=auto"]
    assert "openvino/fp32" in candidates(compose_settings(asked), "cpu")
    assert "openvino/fp32" not in candidates(compose_settings([*asked, argument]), "cpu")


def test_auto_weights_are_tried_in_both_places_where_the_mode_allows_it(compose_settings, monkeypatch):
    monkeypatch.setattr("app.compiler.installed", lambda _: "2026.4.1")  # OpenVINO, which bakes weights in
    asked = ["model=linear", "mode=auto", "weights=auto", "+auto.portfolio.default.inductor.freezing=true"]
    found = candidates(compose_settings(asked), "cpu")
    names = {
        "max-autotune/fp32/frozen",
        "max-autotune/fp32/external",
        "default/fp32/frozen",
        "openvino/fp32/frozen",
        "eager/fp32",
    }
    assert set(found) == names
    frozen = request_key(compose_settings(["model=linear", "mode=max-autotune"]), "cpu").digest
    assert request_key(found["max-autotune/fp32/frozen"].of(compose_settings(asked)), "cpu").digest == frozen


@pytest.mark.parametrize(("external_ms", "kept"), [(0.9, "external"), (1.02, "external"), (1.1, "frozen")])
def test_external_weights_are_kept_unless_frozen_ones_are_clearly_faster(external_ms, kept):
    found = {"tuned/fp32/frozen": known(ran(1.0)), "tuned/fp32/external": known(ran(external_ms))}
    assert best({**found, "plain/fp32/external": known(ran(2.0))}, Question(8, None, 1.0)) == f"tuned/fp32/{kept}"


def test_a_portfolio_changes_no_key(compose_settings):
    tuned = compose_settings(["model=linear", "mode=max-autotune"])
    option = candidates(compose_settings(["model=linear", "mode=auto"]), "cpu")["max-autotune/fp32"]
    asked = compose_settings(["model=linear", "mode=auto"])
    assert request_key(option.of(asked), "cpu").digest == request_key(tuned, "cpu").digest


@pytest.mark.parametrize(
    ("device", "kind", "bound", "tuned_first"),
    [
        ("cpu", "dense", "memory", True),
        ("cpu", "attention", "compute", False),
        ("cpu", "convolutional", "memory", False),
        ("cuda:0", "convolutional", "compute", True),
        ("cuda:0", "dense", "memory", False),
        ("cuda:0", "elementwise", "compute", False),
    ],
)
def test_what_the_model_is_like_says_what_is_tried_first(device, kind, bound, tuned_first):
    options = {
        each.name: each
        for each in (
            EAGER,
            *(
                Candidate(ModeConfig(name, inductor={"max_autotune": tuned}), "fp32")
                for name, tuned in (("plain", False), ("tuned", True))
            ),
        )
    }
    compiled = [name for name in ordered(options, Traits(kind, bound, 1, 1), device) if name != EAGER.name]
    assert compiled[0] == ("tuned/fp32" if tuned_first else "plain/fp32")


# What is kept


@pytest.fixture
def asked(compose_settings):
    return compose_settings(["model=linear", "mode=auto"])


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "store") as opened:
        yield opened


def profile(store, asked, **changed):
    return Profile(store, asked, **{"device": "cpu", "graphs": False, **changed})


def stands_for(store, asked, found):
    """Let the request of mode=default stand for an object; returns candidate and request."""
    option = candidates(asked, "cpu")["default/fp32"]
    request = request_key(option.of(asked), "cpu").digest
    store.remember(request, {"object": found, "weights": None, "dependencies": []})
    return option, request


def test_evidence_is_believed_while_its_request_stands_for_the_measured_object(store, asked):
    option, request = stands_for(store, asked, OBJECT)
    assert profile(store, asked).of(option) is None
    profile(store, asked).add(option, Evidence([request, OBJECT], [ran(0.5)]))
    assert profile(store, asked).of(option).speedup(8) == 2.0
    stands_for(store, asked, OTHER)  # the source was edited, and another run compiled it
    assert profile(store, asked).of(option) is None


def test_runs_are_joined_and_the_oldest_leave(store, asked):
    option, request = stands_for(store, asked, OBJECT)
    for number in range(MOST_RUNS + 2):
        evidence = Evidence([request, OBJECT], [ran(0.5, at=str(number))])
        joined = profile(store, asked).add(option, evidence)
    assert [run.at for run in joined.runs] == [str(number) for number in range(2, MOST_RUNS + 2)]
    alone = profile(store, asked).add(option, evidence, alone=True)
    assert alone == evidence == profile(store, asked).of(option)


@pytest.mark.parametrize("change", ["threads", "environment", "graphs"])
def test_another_machine_knows_nothing_of_it(store, asked, monkeypatch, change):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    option, request = stands_for(store, asked, OBJECT)
    profile(store, asked).add(option, Evidence([request, OBJECT], [ran(0.5)]))
    if change == "threads":
        asked = replace(asked, runtime=replace(asked.runtime, threads=1))
    if change == "environment":
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert profile(store, asked, graphs=change == "graphs").of(option) is None


@pytest.mark.parametrize("damage", [b"", b"{}", b"[1]", None])
def test_what_is_damaged_or_a_strangers_is_no_evidence(store, asked, damage):
    option, request = stands_for(store, asked, OBJECT)
    profile(store, asked).add(option, Evidence([request, OBJECT], [ran(0.5)]))
    (path,) = (store.root / FOLDER).glob("*.json")
    if damage is not None:
        path.write_bytes(damage)
        assert profile(store, asked).of(option) is None
    else:
        store.trust = Trust("signed")
        assert profile(store, asked).of(option) is None


def test_figures_that_no_clock_gives_are_no_evidence(store, asked):
    option, request = stands_for(store, asked, OBJECT)
    for run in (ran(0.0), ran(-1.0), Run("", {"8": 1.0}, {})):
        profile(store, asked).add(option, Evidence([request, OBJECT], [run]), alone=True)
        assert profile(store, asked).of(option) is None


def test_a_store_that_is_only_read_is_not_written(store, asked):
    option, request = stands_for(store, asked, OBJECT)
    store.readonly = True
    evidence = Evidence([request, OBJECT], [ran(0.5)])
    assert profile(store, asked).add(option, evidence) == evidence
    assert list((store.root / FOLDER).iterdir()) == []
