"""Chunks: what an evaluation has finished, kept in files, so that an interrupted one goes on where it ended."""

from __future__ import annotations

import json
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .agreement import Part, join
from .errors import ConfigError, OutputError
from .files import replaced, write_text

FOLDER = "evaluation"
IDENTITY = "identity.json"
# A killed process loses no more than this; an interrupted one nothing.
FLUSH_S = 5.0


class Chunks:
    """Parts in the order of their rows; those that are on disk outlive the process.

    Args:
        folder: Where they lie.
        identity: What they are true of: the request, the weights, the data, how it is judged.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self._folder, self._identity = folder, dict(identity)
        self._parts: list[Part] = []
        self._unsaved: list[Part] = []
        self._saved_at = time.monotonic()
        self.num_rows = 0
        self.num_resumed = 0

    def begin(self) -> None:
        """Make the folder."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"can't write {self._folder}: {error.strerror or error}") from error
        write_text(self._folder / IDENTITY, json.dumps(self._identity, indent=2))

    def resume(self) -> None:
        """Take up what an earlier run left.

        Raises:
            ConfigError: there is nothing, or it is of another request, model or data; the message says which.
        """
        name = f"evaluate.resume={str(self._folder.parent)!r}"
        try:
            known = json.loads((self._folder / IDENTITY).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{name}: no evaluation was begun there") from error
        mine = json.loads(json.dumps(self._identity))
        if other := sorted(key for key in known.keys() | mine.keys() if known.get(key) != mine.get(key)):
            raise ConfigError(f"{name} can't be gone on with: another {', '.join(other)} than this run's")
        for path in sorted(self._folder.glob("rows-*.npz")):
            part = _read(path)
            if part is None or int(path.stem.partition("-")[2]) != self.num_rows:
                break  # damaged, or after a gap: it is evaluated again
            self._take(part)
        self.num_resumed = self.num_rows

    def add(self, part: Part) -> None:
        """Take what one batch came to, and save now and then."""
        self._take(part)
        self._unsaved.append(part)
        if time.monotonic() - self._saved_at >= FLUSH_S:
            self.save()

    def save(self) -> None:
        """Write what isn't on disk yet."""
        if self._unsaved:
            joined = join(self._unsaved)
            with replaced(self._folder / f"rows-{self.num_rows - len(joined['differs']):012d}.npz") as file:
                np.savez(file, allow_pickle=False, **joined)
        self._unsaved = []
        self._saved_at = time.monotonic()

    def joined(self) -> Part:
        """All rows."""
        return join(self._parts)

    def _take(self, part: Part) -> None:
        self._parts.append(part)
        self.num_rows += len(part["differs"])


def _read(path: Path) -> Part | None:
    try:
        # opened here: numpy.load doesn't close what it can't read
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            part = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None
    return part if "differs" in part else None
