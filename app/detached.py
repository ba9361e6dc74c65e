"""Detached: the compiling process that background.py starts."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rich.console import Console

from . import pipeline
from .background import RECORD
from .config import Settings
from .context import Context
from .errors import AppError
from .progress import Phases
from .record import Record, RunError, now


def main() -> None:
    """The process's side: settings on standard input, the folder as argument."""
    folder, settings = Path(sys.argv[1]), Settings.from_json(json.load(sys.stdin))
    record = Record(status="ok", task="compile", model=settings.model.name, run_dir=str(folder), created_at=now())
    with Phases(Console(stderr=True)) as phases:
        try:
            pipeline.run(Context(settings, folder, record, phases))
        except AppError as error:
            record.status, record.error = "failed", RunError(type(error).__name__, error.stage, error.message)
    record.phases_s = phases.seconds
    record.save(folder / RECORD)
