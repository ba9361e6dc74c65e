"""Programs saved by `torch.export.save`: read without running a pickle that a stranger planted in the archive."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..errors import BuildError

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def load_program(path: Path, *, trusted: bool) -> ExportedProgram:
    """Load a saved program.

    `torch.export.load` unpickles sample inputs, script objects and some tensors without restriction (torch 2.13,
    `export/pt2_archive/_package.py`). Unless `trusted`, an archive with a pickle that `weights_only=True` refuses is
    refused here, before torch sees it.

    Raises:
        BuildError: it isn't such a program, or its archive holds a pickle that could run code.
    """
    try:
        if not trusted:
            _refuse_pickles(path)
        return torch.export.load(path)
    except (OSError, RuntimeError, ValueError, KeyError, zipfile.BadZipFile, AssertionError) as error:
        reason = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
        raise BuildError(f"{path} can't be loaded as a program of torch.export.save: {reason}") from error


def _refuse_pickles(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if not any(name.endswith("archive_format") for name in names):
            raise BuildError(
                f"{path} is not an archive of a recent torch.export.save; save it again, "
                "or set model.trusted=true to run what it may hold"
            )
        for name in (name for name in names if _may_be_pickled(archive, name)):
            try:
                torch.load(io.BytesIO(archive.read(name)), weights_only=True)
            except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError) as error:
                raise BuildError(
                    f"{path} holds a pickle ({name}) that could run code when loaded; "
                    "set model.trusted=true only if you trust its author"
                ) from error


def _may_be_pickled(archive: zipfile.ZipFile, name: str) -> bool:
    """Whether torch would unpickle this member: all that isn't known to be text or the raw bytes of a tensor."""
    folder, _, base = name.rpartition("/")
    if base.endswith(".json") or not archive.getinfo(name).file_size:
        return False
    kind = folder.partition("/")[2]
    if kind in {"data/weights", "data/constants"}:
        return base not in _raw_tensors(archive, folder)
    return kind not in {"", ".data"}


def _raw_tensors(archive: zipfile.ZipFile, folder: str) -> set[str]:
    raw: set[str] = set()
    pickled: set[str] = set()
    for name in archive.namelist():
        if name.startswith(f"{folder}/") and name.endswith("_config.json"):
            entries = json.loads(archive.read(name)).get("config", {}).values()
            for entry in entries:
                (raw if entry.get("use_pickle") is False else pickled).add(entry["path_name"])
    return raw - pickled
