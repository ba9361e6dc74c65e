"""Context: what one run was told, where it writes, the record it fills, the model as eager runs it."""

from __future__ import annotations

import logging
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from .config import Settings
from .environment import resolve_device
from .progress import Phases
from .record import Record

if TYPE_CHECKING:
    from torch import nn

    from .verdict import Case
    from .verify import Judge
    from .workloads import Workload

logger = logging.getLogger(__name__)


class Context:
    """Shared by the stages of one run; what is dear (torch, the model) is made when it is first asked for."""

    def __init__(self, settings: Settings, folder: Path, record: Record, phases: Phases) -> None:
        self.settings, self.folder, self.record, self.phases = settings, folder, record, phases
        self.device = resolve_device(settings.device)
        self.cases: list[Case] = []
        self._torch_is_ready = False

    def warn(self, text: str) -> None:
        """Say it in the log and in the record."""
        logger.warning(text)
        self.record.warnings.append(text)

    def import_torch(self) -> None:
        """Import torch and set its global switches, once."""
        if self._torch_is_ready:
            return
        self._torch_is_ready = True
        with self.phases("import"):
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
        from .workloads import at_precision

        return at_precision(self.workload.module, self.settings.precision.name)

    @cached_property
    def judge(self) -> Judge:
        """Compares outputs with eager and float64."""
        from .verify import Judge

        return Judge(self.workload, self.same_precision)
