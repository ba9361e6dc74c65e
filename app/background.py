"""Background: compile in a process of its own that outlives the run which needs the artifact next time."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console

from . import pipeline
from .config import Settings, TaskConfig
from .context import Context
from .errors import AppError
from .progress import Phases
from .record import Record, RunError, now


def start(settings: Settings, folder: Path) -> int:
    """Start a process that compiles; its log and record lie in `folder`.

    Returns:
        The process's id.
    """
    folder.mkdir()
    later = replace(settings, task=TaskConfig("compile"), cache=replace(settings.cache, on_miss="compile"))
    boot = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import main; main()"
    with (folder / "run.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", boot, str(folder)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,  # an interrupt of the run isn't meant for it
        )
    assert process.stdin is not None
    process.stdin.write(json.dumps(asdict(later)).encode())
    process.stdin.close()
    process.returncode = 0  # nobody waits for it
    return process.pid


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
    record.save(folder / "record.json")
