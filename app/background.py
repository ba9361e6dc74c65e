"""Background: compile in a process of its own that outlives the run which needs the artifact.

A run of the command finds it the next time; a model that was loaded by name serves by it as soon as it is verified.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

from .config import ModelConfig, Settings, TaskConfig

FOLDER, RECORD = "background", "record.json"


def start(settings: Settings, model: ModelConfig, folder: Path) -> int:
    """Start a process that compiles; its log and record lie in `folder`.

    Args:
        settings: The run's, which the request is made of.
        model: What the process builds: the settings' own, or the program that a live module was exported to.
        folder: Is there already.

    Returns:
        The process's id.
    """
    later = replace(settings, task=TaskConfig("compile"), cache=replace(settings.cache, on_miss="compile"))
    boot = f"import sys; sys.path[:] = {sys.path!r}; from {__package__}.detached import main; main()"
    with (folder / "run.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", boot, str(folder)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,  # an interrupt of the run isn't meant for it
        )
    assert process.stdin is not None
    process.stdin.write(json.dumps({"settings": asdict(later), "model": asdict(model)}).encode())
    process.stdin.close()
    process.returncode = 0  # nobody waits for it
    return process.pid
