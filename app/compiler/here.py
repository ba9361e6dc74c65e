"""Here: torch.compile of a module of this process, which no worker can build; it can't be timed out there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..config import Settings
from ..runtime.jit import fresh_artifacts, private_cache
from ..workloads import Workload
from . import Compiled
from .worker import ARTIFACT, Built, by_jit


def compile_here(
    settings: Settings,
    factors: Mapping[str, Any],
    workload: Workload,
    *,
    staging: Path,
    on_phase: Callable[[str], None],
    reason: Mapping[str, str],
) -> Compiled:
    """Compile and verify; what it needs again in a later process is in `staging`.

    Args:
        settings: The run's settings.
        factors: The request's factors.
        workload: The module and its inputs.
        staging: An empty folder on the store's file system.
        on_phase: Called with the name of each phase as it begins.
        reason: Stage and message of what failed before.

    Raises:
        CompileError: torch can't compile it.
        VerifyError: what it compiled is wrong.
    """
    built = Built(workload, workload.at(settings.precision.name), [], None)
    with private_cache(), fresh_artifacts():
        result = by_jit(settings, factors, staging, built, on_phase)
    result["content"]["reason"] = dict(reason)
    return Compiled(**result, artifact=staging / ARTIFACT, weights_folder=None)
