"""The ladder of rungs, and what its policies make of a failure. Pure: it decides, others act."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .config import FallbackConfig
from .errors import AppError, CompileError, EagerAskedError, ExportError

CUDAGRAPH = "cudagraph"
COMPILED = "compiled"
JIT = "jit"
EAGER = "eager"


@dataclass(frozen=True)
class Fallback:
    """One step down the ladder; in JSON `from_` is `from`."""

    from_: str
    to: str
    stage: str
    reason: str


# What torch.compile may serve nevertheless. A wrong result is not among them: both rungs share the code generator.
_ANSWERED_BY_JIT = {kind.stage: kind for kind in (ExportError, CompileError)}


def jit_stages(policy: FallbackConfig) -> list[str]:
    """The stages whose failure leads to the jit rung."""
    allowed = JIT in policy.rungs
    return [stage for stage in _ANSWERED_BY_JIT if allowed and getattr(policy, f"on_{stage}") != "raise"]


def step_to_jit(stage: str, message: str, policy: FallbackConfig) -> Fallback:
    """The step from compiled to jit.

    Raises:
        AppError: the failure itself, where the policy lets jit not serve it.
    """
    if stage not in jit_stages(policy):
        raise _ANSWERED_BY_JIT.get(stage, CompileError)(message)
    return Fallback(COMPILED, JIT, stage, message)


def served(steps: Sequence[Fallback], best: str = COMPILED) -> str:
    """The rung that serves after these steps."""
    return steps[-1].to if steps else best


def step_down(error: AppError, policy: FallbackConfig, rung: str = COMPILED, to: str = EAGER) -> Fallback:
    """The step that a failure of a rung takes.

    Raises:
        AppError: the error itself, where the policy says `raise` for its stage, or where eager can't serve either
            (the model doesn't build, the config is wrong).
    """
    asked = isinstance(error, EagerAskedError)
    if not asked and getattr(policy, f"on_{error.stage}", "raise") == "raise":
        raise error
    return Fallback(rung, to, error.stage, error.message)
