"""Doctor: what this machine can do rung by rung, and why not. Every "no" says what to do; none is an error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from . import environment
from .config import RUNGS
from .context import Context
from .errors import AppError
from .fallback import CUDAGRAPH, JIT
from .findings import CHECKS, Finding

STORING = ("cache folder", "cache privacy", "cache file system", "trust")
NEEDS: Mapping[str, Sequence[str]] = {
    "cudagraph": ("GPU", "torch CUDA", "torch", "loaders", "target", "compiler", *STORING),
    "compiled": ("torch", "loaders", "target", "compiler", *STORING),
    "openvino": ("torch", "target", "extra openvino", *STORING),
    "jit": ("torch", "compiler", *STORING),
    "eager": ("torch",),
}


def examine(context: Context) -> list[dict[str, Any]]:
    """One row a rung, then one a finding; no oddity of a machine raises."""
    context.record.environment = environment.describe(context.device)
    findings = [_guarded(name, check, context) for name, check in CHECKS.items()]
    known = {finding.name: finding for finding in findings}
    return [asdict(finding) for finding in (*(_rung(rung, context, known) for rung in RUNGS), *findings)]


def _guarded(name: str, check: Callable[[Context], Finding], context: Context) -> Finding:
    try:
        return check(context)
    except AppError as error:  # its message ends in what mends it
        found, _, advice = error.message.partition("; ")
        return Finding(name, False, found.removeprefix("cache: "), advice or "correct the setting that it names")
    except Exception as error:  # noqa: BLE001 - machines are odd in ways that nobody can list
        return Finding(name, False, f"{type(error).__name__}: {error}", "mend what it names, and run this again")


def _rung(rung: str, context: Context, known: Mapping[str, Finding]) -> Finding:
    name, asked = f"rung {rung}", context.settings.fallback.rungs
    if rung == CUDAGRAPH and context.settings.graphs.enabled == "false":
        return Finding(name, False, "graphs.enabled=false", "graphs.enabled=auto")
    if rung not in asked:
        return Finding(name, False, "switched off", f"fallback.rungs=[{','.join([rung, *asked])}]")
    lacking = [known[need] for need in NEEDS[rung] if not known[need].ok]
    if lacking:
        advice = "; ".join(dict.fromkeys(each.advice for each in lacking if each.advice))
        # a hit needs no compiler
        only = "only what is in the cache: " if [each.name for each in lacking] == ["compiler"] else ""
        return Finding(name, False, only + "; ".join(f"{each.name}: {each.found}" for each in lacking), advice)
    if rung == JIT and context.settings.cache.trust != "own":
        return Finding(name, False, "what it keeps are pickles, never a stranger's", "cache.trust=own")
    return Finding(name, True, "all that it needs is here")
