"""Detached: the compiling process that background.py starts."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from . import pipeline, structured
from .background import RECORD
from .config import ModelConfig, Settings
from .context import Context
from .errors import AppError
from .progress import Phases
from .record import Record, RunError, now

if TYPE_CHECKING:
    from .workloads import Workload


class _Handed(Context):
    """A run whose model is built from another config than its request has: a live module's, by its program."""

    def __init__(self, model: ModelConfig, *args: Any) -> None:
        super().__init__(*args)
        self._model = model

    def for_worker(self, staging: Path) -> Settings:  # noqa: ARG002 - the program is exported already
        return replace(self.settings, model=self._model)

    @cached_property
    def workload(self) -> Workload:
        return Context(self.for_worker(self.folder), self.folder, self.record, self.phases).workload


def main() -> None:
    """The process's side: settings and model on standard input, the folder as argument."""
    folder, given = Path(sys.argv[1]), json.load(sys.stdin)
    settings, model = Settings.from_json(given["settings"]), structured.decode(ModelConfig, given["model"])
    record = Record(status="ok", task="compile", model=settings.model.name, run_dir=str(folder), created_at=now())
    with Phases(Console(stderr=True)) as phases:
        try:
            pipeline.run(_Handed(model, settings, folder, record, phases))
        except AppError as error:
            record.status, record.error = "failed", RunError(type(error).__name__, error.stage, error.message)
    record.phases_s = phases.seconds
    record.save(folder / RECORD)
