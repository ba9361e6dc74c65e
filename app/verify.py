"""Verification: compiled and eager on the same inputs, each by its distance from a float64 run of the module."""

from __future__ import annotations

import copy
import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from . import side_effects
from .config import BATCH
from .errors import first_line
from .monitor import performance_monitor
from .runtime.spec import CallSpec
from .runtime.tensors import widen
from .verdict import RANDOM, Case, Draw
from .workloads import Workload

logger = logging.getLogger(__name__)

# Relative L2 distance that rounding may make between two batch sizes, where float64 can't be asked.
MIXING_LIMIT = 1e-2


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
        self._asked_twice = False

    def case(self, compiled: Callable[..., Any], draw: Draw) -> Case:
        """Run compiled, eager and float64 on the same inputs, and measure.

        What the module itself raises drops the draw; compiled code isn't run on what it refuses. The first case, and
        those of other seeds than the first, call eager twice, to see whether it keeps a state.
        """
        try:
            args, kwargs = self._workload.any_call(draw)
        except Exception as error:  # noqa: BLE001 - the user's make_inputs, asked for sizes that it may not have
            return _dropped(draw, f"there are no inputs of these sizes: {first_line(error)}")
        watched = performance_monitor.monitor("inference/verify")
        module = watched(self._eager)
        with torch.inference_mode():
            random = _random_state(self._workload.device)
            try:
                eager = module(*args, **kwargs)
                again = module(*args, **kwargs) if draw.seed or not self._asked_twice else eager
                self._asked_twice = True
            except Exception as error:  # noqa: BLE001 - the user's module, on inputs that nobody promised it
                return _dropped(draw, f"the module itself raises {first_line(error)}")
            drew = not torch.equal(random, _random_state(self._workload.device)) and self._draws(args, kwargs)
            reference, name = self._reference(eager, args, kwargs)
            if draw.kind != RANDOM and not _equally_finite(eager, reference):
                return _dropped(draw, f"rounding decides: eager isn't finite in the same places as {name}")
            try:
                ours = watched(compiled)(*args, **kwargs)
            except Exception as error:  # noqa: BLE001 - whatever compiled code raises, eager above did not
                ours = error
        problem = f"it raised {ours!r}" if isinstance(ours, Exception) else _mismatch(ours, eager, reference)
        if problem is None and drew:  # then eager's distance from float64 is no rounding, and no bar
            problem = "the model is random: eager draws from torch's generators"
        elif problem is None and (_mismatch(again, eager, eager) or _distance(again, eager)[0] > MIXING_LIMIT):
            problem = "the model keeps a state: eager answers the same inputs differently when called again"
        if problem is not None:
            return Case(draw, name, math.inf, 0.0, math.inf, problem)
        rel_l2, max_abs = _distance(ours, reference)
        return Case(draw, name, rel_l2, _distance(eager, reference)[0], max_abs)

    def _reference(self, eager: Any, args: Any, kwargs: Any) -> tuple[Any, str]:
        """What both are measured against, and its name."""
        watched = performance_monitor.monitor("inference/verify")
        if self._exact is not None:
            try:
                return watched(_run_float64)(self._exact, args, kwargs), "float64"
            except Exception:  # the user's module may raise anything; the case names its reference
                logger.debug("float64 can't run what eager ran", exc_info=True)
        if self._eager is not self._workload.module:
            return watched(self._workload.module)(*args, **kwargs), "original"
        return eager, "eager"

    def bytes(self, draw: Draw) -> int:
        """Roughly the memory that a call of eager takes, in bytes: that of all the places its tensors lie in."""
        args, kwargs = self._workload.any_call(draw)
        with torch.inference_mode(), _Places() as places:
            self._eager(*args, **kwargs)
        return sum(places.sizes.values())

    def side_effect(self) -> str | None:
        """What calls of the module do beside answering, in words; None where they do nothing else."""
        module = self._workload.module

        def called(seed: int) -> None:
            args, kwargs = self._workload.call(seed=seed)
            with torch.no_grad():
                module(*args, **kwargs)

        called(0)
        return side_effects.of_calls(module, [functools.partial(called, seed) for seed in (1, 2)])

    def _draws(self, args: Any, kwargs: Any) -> bool:
        """Whether every call of eager moves torch's generators: other threads draw from them too, now and then."""
        for _ in range(3):
            before = _random_state(self._workload.device)
            self._eager(*args, **kwargs)
            if torch.equal(before, _random_state(self._workload.device)):
                return False
        return True

    def mixing(self, spec: CallSpec, seed: int = 0, *, any_weights: bool = False) -> dict[str, str]:
        """The dimensions that calls can't be padded in, and why: an output depends on what lies beyond its own part.

        The model itself is asked, in float64 where it can be, so that rounding doesn't look like dependence. With
        `any_weights` it is asked with others too: a gate that is zero today hides what lies behind it.
        """
        found = self._mixings(spec, seed)
        if any_weights:
            weights = {**dict(self._asked.named_parameters()), **dict(self._asked.named_buffers())}
            before = {name: value.detach().clone() for name, value in weights.items()}
            generator = torch.Generator(self._workload.device).manual_seed(seed)
            with torch.no_grad():
                for value in weights.values():
                    if value.is_floating_point():  # upwards, for there are variances among them
                        value.add_(0.1 * torch.rand(value.shape, generator=generator, device=value.device).to(value))
                try:
                    found = {**self._mixings(spec, seed), **found}
                finally:
                    for name, value in weights.items():
                        value.copy_(before[name])
        return found

    def _mixings(self, spec: CallSpec, seed: int) -> dict[str, str]:
        found = {
            dim: self._mixing_rows(spec, seed) if dim == BATCH else self._mixing(spec, dim, seed)
            for dim in spec.out_axes
        }
        return {dim: why for dim, why in found.items() if why is not None}

    def _mixing_rows(self, spec: CallSpec, seed: int) -> str | None:
        """Each half of a batch is run with garbage in the other half, and alone: a batch mean would show."""
        low, high = spec.dims[BATCH]
        half = max(2, low)
        if 2 * half > high:
            return f"a batch of at most {high} has no two halves to compare"
        axes, outs, limit = spec.in_axes(), spec.out_axes[BATCH], self._limit
        inputs, others = self._named(spec, 2 * half, seed), self._named(spec, 2 * half, seed + 1)
        try:
            whole = self._run(spec, inputs)
            for start in (0, half):
                expected = _rows(pytree.tree_leaves(whole), outs, start, half)
                spoilt = _spoilt(inputs, others, axes, half - start, half)
                if all(map(torch.equal, spoilt, inputs)):
                    return "all inputs that could be tried are alike: whether rows are independent can't be told"
                found = _rows(pytree.tree_leaves(self._run(spec, spoilt)), outs, start, half)
                if _differ(found, expected, limit):
                    return "a row's output depends on the other rows' values"
                alone = pytree.tree_leaves(self._run(spec, _rows(inputs, axes, start, half)))
                if _differ(_rows(alone, outs, 0, half), expected, limit):
                    return "a row's output depends on the number of rows"
        except Exception as error:  # noqa: BLE001 - the user's module, on inputs that nobody promised it
            return f"whether rows are independent can't be told: {type(error).__name__}: {error}"[:300]
        return None

    def _mixing(self, spec: CallSpec, dim: str, seed: int) -> str | None:
        """Padded as calls are, a sequence answers as it does alone: a mean without a mask would show."""
        (low, high), example = spec.dims[dim], self._workload.sizes()[dim]
        size = min(example, max(low, high - 1))
        if size == high:
            return f"the {dim} is always {high}"
        axes, outs = spec.in_axes(dim), spec.out_axes[dim]
        try:
            inputs = self._named(spec, None, seed, {dim: size})
            expected = pytree.tree_leaves(self._run(spec, inputs))
            for wider in {size + 1, min(2 * size + 1, high)}:
                padded = widen(inputs, axes, wider, [item.padding for item in spec.inputs])
                found = pytree.tree_leaves(self._run(spec, padded))
                if _differ(_rows(found, outs, 0, size), expected, self._limit):
                    return f"an output depends on what the {dim} is padded with"
        except Exception as error:  # noqa: BLE001 - as above
            return f"whether the {dim} can be padded can't be told: {type(error).__name__}: {error}"[:300]
        return None

    @property
    def _asked(self) -> nn.Module:
        return self._exact if self._exact is not None else self._eager

    @property
    def _limit(self) -> float:
        return 1e-6 if self._exact is not None else MIXING_LIMIT

    def _named(
        self, spec: CallSpec, batch: int | None, seed: int, others: Mapping[str, int] | None = None
    ) -> list[torch.Tensor]:
        args, kwargs = self._workload.call(batch, seed, others)
        positional = iter(args)
        return [kwargs[item.name] if item.keyword else next(positional) for item in spec.inputs]

    def _run(self, spec: CallSpec, values: list[torch.Tensor]) -> Any:
        given = list(zip(spec.inputs, values, strict=True))
        args = tuple(value for item, value in given if not item.keyword)
        kwargs = {item.name: value for item, value in given if item.keyword}
        with torch.inference_mode():
            if self._exact is not None:
                return _run_float64(self._exact, args, kwargs)
            return self._eager(*args, **kwargs)


class _Places(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes where the tensors of a call lie, and how large they are; memory that is used again counts once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(found):
            if isinstance(leaf, torch.Tensor) and leaf.layout is torch.strided:
                storage = leaf.untyped_storage()
                self.sizes[storage.data_ptr()] = max(storage.nbytes(), self.sizes.get(storage.data_ptr(), 0))
        return found


Axes = Sequence[int | None]


def _spoilt(
    values: Sequence[torch.Tensor], others: Sequence[torch.Tensor], axes: Axes, start: int, rows: int
) -> list[torch.Tensor]:
    """Copies with garbage in some rows: NaN, or another draw's values where there is no NaN."""
    spoilt = [value.clone() for value in values]
    for value, other, axis in zip(spoilt, others, axes, strict=True):
        if axis is not None:
            garbage = torch.full_like(other, math.nan) if other.is_floating_point() else other
            value.narrow(axis, start, rows).copy_(garbage.narrow(axis, start, rows))
    return spoilt


def _rows(values: Sequence[Any], axes: Axes, start: int, rows: int) -> list[Any]:
    return [v if axis is None else v.narrow(axis, start, rows) for v, axis in zip(values, axes, strict=True)]


def _random_state(device: str) -> torch.Tensor:
    """Where torch's generators stand: a call that moves them is random, however little its output shows it."""
    states = [torch.get_rng_state()]
    if device.startswith("cuda"):
        states.append(torch.cuda.get_rng_state(device))
    return torch.cat(states)


def _differ(ours: Sequence[Any], expected: Sequence[Any], limit: float) -> bool:
    return any(map(_leaf_mismatch, ours, expected, expected)) or _distance(ours, expected)[0] > limit


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


def _dropped(draw: Draw, why: str) -> Case:
    return Case(draw, "eager", 0.0, 0.0, 0.0, dropped=why)


def _equally_finite(eager: Any, reference: Any) -> bool:
    pairs = zip(pytree.tree_leaves(eager), pytree.tree_leaves(reference), strict=True)
    return all(
        torch.equal(a.isfinite(), b.isfinite())
        for a, b in pairs
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and a.shape == b.shape
    )


def compared(ours: Any, eager: Any) -> tuple[float, str | None]:
    """Worst relative L2 distance of two outputs, and what no tolerance excuses."""
    problem = _mismatch(ours, eager, eager)
    return (math.inf, problem) if problem is not None else (_distance(ours, eager)[0], None)


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
        try:
            same = type(ours) is type(eager) and bool(ours == eager)
        except Exception:  # noqa: BLE001 - the user's class, which may hold tensors: nobody can tell
            same = False
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
