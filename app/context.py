"""Context: what one run was told, where it writes, the record it fills, the model as eager runs it."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import collector
from .config import Settings
from .environment import resolve_device
from .errors import InputError
from .fallback import COMPILED, CUDAGRAPH, EAGER, Fallback, served
from .progress import Phases
from .record import Record
from .runtime.ladder import Ladder

if TYPE_CHECKING:
    from torch import nn

    from .verdict import Case
    from .verify import Judge
    from .workloads import Workload

logger = logging.getLogger(__name__)

COMPILE_LOG = "compile.log"  # in a run's folder: all that was printed while its model was exported and compiled


class _Eager:
    """The model itself, in the precision that was asked for."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        import torch
        from torch.utils import _pytree as pytree

        self._context.eager_runs()
        asked = torch.is_grad_enabled() and any(
            isinstance(leaf, torch.Tensor) and leaf.requires_grad for leaf in pytree.tree_leaves((args, kwargs))
        )
        with torch.set_grad_enabled(asked):
            return self._context.same_precision(*args, **kwargs)

    def check_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raise InputError unless the names and shapes are the module's own."""
        own = {name: value.shape for name, value in self._module().state_dict().items()}
        if odd := sorted(own.items() ^ {name: value.shape for name, value in state.items()}.items()):
            raise InputError(
                f"the state dict doesn't fit the model: {', '.join(dict.fromkeys(name for name, _ in odd))}"
            )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take a copy of the weights: those so far may be the memory of a module that the caller goes on using."""
        module = self._module()
        own = module.state_dict()
        module.load_state_dict(
            {name: value.detach().to(own[name], copy=True) for name, value in state.items()}, assign=True
        )
        module.requires_grad_(requires_grad=False)
        self._context.weights_exchanged()

    def _module(self) -> nn.Module:
        from .workloads import unwrapped

        return unwrapped(self._context.same_precision)[0]


class Context:
    """Shared by the stages of one run; what is dear (torch, the model) is made when it is first asked for."""

    def __init__(self, settings: Settings, folder: Path, record: Record, phases: Phases) -> None:
        self.settings, self.folder, self.record, self.phases = settings, folder, record, phases
        self.device = resolve_device(settings.device)
        self.cases: list[Case] = []
        self.uncertain: str | None = None  # why the request may stand for more than one model: then it has no entry
        self.only_exported = False  # torch.compile is not tried: the caller has another way for what doesn't export
        self._torch_is_ready = False

    @property
    def is_live(self) -> bool:
        """Whether the module is this process's own, and no other can build it."""
        return self.settings.model.fingerprint is not None

    @property
    def has_module(self) -> bool:
        """Whether that module is in this process indeed: another may compile what was exported here."""
        return False

    def limit(self) -> float:
        """How far compiled and eager may be apart (relative L2): each may be so far from the truth by its own bar."""
        verify, floor = self.record.verify, self.settings.precision.floor
        eager = max((case.eager_rel_l2 or 0.0 for case in verify.cases), default=0.0) if verify is not None else 0.0
        return max(floor, self.settings.verify.multiple * eager) + eager

    def narrow(self, spec: Mapping[str, Any]) -> None:
        """Learn the inputs' ranges from an artifact, where the config doesn't say them."""

    def changed(self, model: Callable[..., Any]) -> str | None:  # noqa: ARG002 - of use for a live module only
        """Why what was found isn't of this model after all."""
        return None

    def refuse_side_effects(self) -> None:
        """Raise VerifyError where calls of a live module do more than answer."""

    def eager_runs(self) -> None:
        """Called before eager answers a call."""

    def weights_exchanged(self) -> None:
        """Called after eager has got other weights."""

    def beside(self, settings: Settings, folder: Path, record: Record) -> Context:
        """Another run on the same model, which is built now unless it was."""
        _ = self.workload
        other = copy.copy(self)
        other.settings, other.folder, other.record, other.cases = settings, folder, record, []
        for name in ("same_precision", "judge"):  # of this run's precision
            other.__dict__.pop(name, None)
        return other

    def warn(self, text: str) -> None:
        """Say it in the log and in the record."""
        logger.warning(text)
        self.record.warnings.append(text)

    def step(self, step: Fallback) -> None:
        """Say a step down the ladder, once, in the log and in the record."""
        if step not in self.record.fallbacks:
            log = self.folder / COMPILE_LOG
            more = f" (all of it: {log})" if log.exists() else ""
            logger.warning("fallback %s -> %s at %s: %s%s", step.from_, step.to, step.stage, step.reason, more)
            self.note(step)

    def note(self, step: Fallback) -> None:
        """Put a step that the log has already into the record, once."""
        if step not in self.record.fallbacks:
            self.record.fallbacks.append(step)

    def for_worker(self, staging: Path) -> Settings:  # noqa: ARG002 - of use where the model is in this process only
        """The settings that the compile worker builds the model from."""
        return self.settings

    def served(self, model: Callable[..., Any] | None = None) -> str:
        """The rung that serves after the steps so far: the mode's own, if there were none and no CUDA graphs."""
        return served(self.record.fallbacks, CUDAGRAPH if getattr(model, "captured", ()) else self.settings.mode.rung)

    def rungs(self, model: Callable[..., Any] | None) -> list[tuple[str, Callable[..., Any]]]:
        """What a model serves by, best first: with CUDA graphs it is two rungs."""
        if model is None:
            return []
        if getattr(model, "captured", ()):
            return [(CUDAGRAPH, model), (COMPILED, model.as_it_is)]  # type: ignore[attr-defined]
        return [(self.served(), model)]

    def on_ladder(self, model: Callable[..., Any] | None) -> Ladder:
        """The model with the rungs beneath it; eager is built when a call needs it."""
        elsewhere = not (self.settings.model.target or self.settings.model.program or "workload" in self.__dict__)
        eager = [] if elsewhere and model is not None else [(EAGER, _Eager(self))]
        return Ladder(
            [*self.rungs(model), *eager],
            self.settings.fallback,
            self.note,
            self.record.fallbacks,
        )

    def import_torch(self) -> None:
        """Import torch and set its global switches, once."""
        if self._torch_is_ready:
            return
        self._torch_is_ready = True
        with self.phases("import"), collector.paused():
            from .numerics import apply_numerics

            apply_numerics(self.settings)

    @cached_property
    def workload(self) -> Workload:
        """The model as eager runs it, in its own precision."""
        self.import_torch()
        with self.phases("build"):
            from .workloads import build

            return build(self.settings, self.device)

    @cached_property
    def same_precision(self) -> nn.Module:
        """The model in the precision that was asked for; for fp32 the workload's own module."""
        return self.workload.at(self.settings.precision.name)

    @cached_property
    def judge(self) -> Judge:
        """Compares outputs with eager and float64."""
        from .verify import Judge

        return Judge(self.workload, self.same_precision)
