"""The ladder: what each policy makes of a failure at each stage."""

from __future__ import annotations

import dataclasses

import pytest

from app import errors
from app.config import FallbackConfig
from app.errors import AppError
from app.fallback import COMPILED, EAGER, JIT, Fallback, jit_stages, served, step_down, step_to_jit

GRACEFUL = FallbackConfig()
STAGES = [field.name for field in dataclasses.fields(FallbackConfig) if field.name.startswith("on_")]
STRICT = FallbackConfig("strict", **dict.fromkeys(STAGES, "raise"))

SERVED = [errors.StoreError, errors.ExportError, errors.CompileError, errors.VerifyError, errors.LoadError]
SERVED += [errors.CaptureError, errors.ServeError]
NEVER = [errors.ConfigError, errors.BuildError, errors.OutputError, errors.MissError, errors.InputError]
NEVER += [errors.SweepError, errors.CorruptError, errors.UntrustedError, errors.UnreadableError]
NEVER += [errors.DataError, errors.EvaluationError]


def test_every_error_is_in_one_of_the_lists():
    kinds = {item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, AppError)}
    special = {errors.EagerAskedError, errors.TrapError}  # the latter is an ExportError, of the same stage
    assert kinds == {*SERVED, *NEVER, *special, AppError}


@pytest.mark.parametrize("kind", SERVED)
def test_graceful_serves_eager_and_says_why(kind):
    assert step_down(kind("it broke"), GRACEFUL) == Fallback(COMPILED, EAGER, kind.stage, "it broke")


@pytest.mark.parametrize("kind", SERVED)
def test_strict_raises_the_error_itself(kind):
    error = kind("it broke")
    with pytest.raises(kind) as caught:
        step_down(error, STRICT)
    assert caught.value is error


@pytest.mark.parametrize("kind", SERVED)
def test_each_stage_is_decided_by_its_own_field(kind):
    field = f"on_{kind.stage}"
    only = dataclasses.replace(GRACEFUL, **{field: "raise"})
    with pytest.raises(kind):
        step_down(kind("it broke"), only)
    assert step_down(kind("it broke"), dataclasses.replace(STRICT, **{field: "warn"})).stage == kind.stage
    others = [other for other in SERVED if other is not kind]
    assert [step_down(other("x"), only).stage for other in others] == [other.stage for other in others]


@pytest.mark.parametrize("kind", NEVER)
def test_what_eager_could_not_serve_either_is_raised_by_every_policy(kind):
    for policy in (GRACEFUL, STRICT):
        with pytest.raises(kind):
            step_down(kind("it broke"), policy)


def test_eager_on_a_miss_is_what_was_asked_for_even_under_strict():
    step = step_down(errors.EagerAskedError("cache.on_miss=eager"), STRICT)
    assert step == Fallback(COMPILED, EAGER, "lookup", "cache.on_miss=eager")


def test_jit_serves_what_does_not_export_or_lower_and_eager_what_jit_can_not():
    step = step_to_jit("export", "it broke", GRACEFUL)
    assert step == Fallback(COMPILED, JIT, "export", "it broke")
    assert served([]) == COMPILED
    assert served([step]) == JIT
    last = step_down(errors.CompileError("this too"), GRACEFUL, served([step]))
    assert last == Fallback(JIT, EAGER, "compile", "this too")
    assert served([step, last]) == EAGER


@pytest.mark.parametrize("kind", [errors.ExportError, errors.CompileError])
@pytest.mark.parametrize("policy", [STRICT, dataclasses.replace(GRACEFUL, rungs=["compiled", "eager"])])
def test_what_jit_may_not_serve_is_the_failure_itself(kind, policy):
    assert kind.stage not in jit_stages(policy)
    with pytest.raises(kind, match="it broke"):
        step_to_jit(kind.stage, "it broke", policy)


def test_a_wrong_result_is_not_answered_by_jit():
    assert jit_stages(GRACEFUL) == ["export", "compile"]


def test_every_field_of_the_policy_belongs_to_a_stage():
    assert set(STAGES) == {f"on_{kind.stage}" for kind in SERVED}


def test_exit_codes_are_those_that_are_documented():
    assert {kind.__name__: kind.exit_code for kind in (*SERVED, *NEVER)} == {
        "ConfigError": 2, "BuildError": 1, "ExportError": 1, "CompileError": 1, "VerifyError": 3,
        "StoreError": 1, "LoadError": 1, "CaptureError": 1, "ServeError": 1, "MissError": 9, "OutputError": 1, "InputError": 1,
        "SweepError": 4, "CorruptError": 6, "UntrustedError": 7, "UnreadableError": 8,
        "DataError": 1, "EvaluationError": 3,
    }  # fmt: skip
