"""The ladder of rungs, and what its policies make of a failure. Pure: it decides, others act."""

from __future__ import annotations

from .config import FallbackConfig
from .errors import AppError, EagerAskedError
from .record import Fallback

COMPILED = "compiled"
EAGER = "eager"


def step_down(error: AppError, policy: FallbackConfig) -> Fallback:
    """The step that a failure of the compiled rung takes.

    Raises:
        AppError: the error itself, where the policy says `raise` for its stage, or where eager can't serve either
            (the model doesn't build, the config is wrong).
    """
    asked = isinstance(error, EagerAskedError)
    if not asked and getattr(policy, f"on_{error.stage}", "raise") == "raise":
        raise error
    return Fallback(COMPILED, EAGER, error.stage, error.message)
