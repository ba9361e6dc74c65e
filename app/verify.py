"""Verification: compiled and eager on the same inputs, each by its distance from a float64 run of the module."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from .verdict import Case
from .workloads import Workload


class Judge:
    """Compares a compiled callable with a workload's module, eager and in float64.

    Args:
        workload: The model and its inputs.
        eager: The module in the artifact's precision; `workload.module` itself for fp32.
    """

    def __init__(self, workload: Workload, eager: nn.Module) -> None:
        self._workload = workload
        self._eager = eager
        self._exact: nn.Module | None = _in_float64(workload)

    def case(self, compiled: Callable[..., Any], batch: int, seed: int) -> Case:
        """Run compiled, eager and float64 on the same inputs, and measure."""
        args, kwargs = self._workload.call(batch, seed)
        with torch.inference_mode():
            try:
                ours = compiled(*args, **kwargs)
            except Exception as error:  # noqa: BLE001 - whatever compiled code raises, eager below doesn't
                ours = error
            eager = self._eager(*args, **kwargs)
            exact = _run_float64(self._exact, args, kwargs) if self._exact is not None else None
        reference, name = (exact, "float64") if exact is not None else (eager, "eager")
        problem = f"it raised {ours!r}" if isinstance(ours, Exception) else _mismatch(ours, eager, reference)
        if problem is not None:
            return Case(batch, seed, name, math.inf, 0.0, math.inf, problem)
        rel_l2, max_abs = _distance(ours, reference)
        return Case(batch, seed, name, rel_l2, _distance(eager, reference)[0], max_abs)


def _in_float64(workload: Workload) -> nn.Module | None:
    try:
        exact = copy.deepcopy(workload.module).double()
        args, kwargs = workload.call()
        with torch.inference_mode():
            _run_float64(exact, args, kwargs)
    except Exception:  # noqa: BLE001 - whatever the user's module raises, the record says it was judged by eager
        return None
    return exact


def _run_float64(module: nn.Module, args: Any, kwargs: Any) -> Any:
    args, kwargs = pytree.tree_map_only(torch.Tensor, _to_double, (args, kwargs))
    return module(*args, **kwargs)


def _to_double(value: torch.Tensor) -> torch.Tensor:
    return value.double() if value.is_floating_point() else value


def _mismatch(ours: Any, eager: Any, reference: Any) -> str | None:
    """What no tolerance excuses."""
    (a, spec_a), (b, spec_b) = pytree.tree_flatten(ours), pytree.tree_flatten(eager)
    exact = pytree.tree_leaves(reference)
    if spec_a != spec_b:
        return f"the output is structured as {spec_a}, eager's as {spec_b}"
    for index, (left, right, ideal) in enumerate(zip(a, b, exact, strict=True)):
        found = _leaf_mismatch(left, right, ideal)
        if found is not None:
            return f"output {index} {found}"
    return None


def _leaf_mismatch(ours: Any, eager: Any, exact: Any) -> str | None:
    if not isinstance(eager, torch.Tensor) or not isinstance(ours, torch.Tensor):
        same = type(ours) is type(eager) and ours == eager
        return None if same else f"is {_words(ours)}, eager's is {_words(eager)}"
    if ours.shape != eager.shape or ours.dtype != eager.dtype:
        return f"is {ours.dtype} {list(ours.shape)}, eager's is {eager.dtype} {list(eager.shape)}"
    if not (ours.is_floating_point() or ours.is_complex()):
        wrong = (ours != eager) & (ours.double() != exact.double())
        return f"differs in {int(wrong.sum())} of {wrong.numel()} integers" if bool(wrong.any()) else None
    left, right = _real(ours), _real(eager)
    if not torch.equal(left.isnan(), right.isnan()):
        return "has NaN in other places than eager's"
    infinite = right.isinf()
    if not torch.equal(left.isinf(), infinite) or not torch.equal(left[infinite], right[infinite]):
        return "has Inf in other places than eager's"
    return None


def _words(leaf: Any) -> str:
    return "a tensor" if isinstance(leaf, torch.Tensor) else repr(leaf)


def _real(value: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(value.resolve_conj()) if value.is_complex() else value


def _distance(output: Any, reference: Any) -> tuple[float, float]:
    """Worst relative L2 distance over the floating-point leaves, and the largest absolute one, finite values only."""
    worst, max_abs = 0.0, 0.0
    for value, ideal in zip(pytree.tree_leaves(output), pytree.tree_leaves(reference), strict=True):
        if not isinstance(value, torch.Tensor) or not (value.is_floating_point() or value.is_complex()):
            continue
        a, b = _real(value).double().flatten(), _real(ideal).double().flatten()
        finite = a.isfinite() & b.isfinite()
        difference = (a - b)[finite]
        if not difference.numel():
            continue
        error, size = float(difference.norm()), float(b[finite].norm())
        # where the truth is all zeros nothing is relative to it: eager's own absolute error is the measure there too
        worst = max(worst, error / size if size else error)
        max_abs = max(max_abs, float(difference.abs().max()))
    return worst, max_abs
