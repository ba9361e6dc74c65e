"""The parent's side of `prober.py`: seeded stores, projects made and changed, and the answers of the real lookup."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from . import shop
from .mutations import BASES, Change

# By import, since torch opens the file of a script that runs, and the compile worker has none.
START = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import prober; prober.main()"
REPOSITORY = Path(__file__).parents[2]
SEEDED = Change("nothing", "as seeded")


class Probes:
    """Fork servers, one for each hash seed, and the folders that their probes see."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seeded = folder, folder / "seeded"
        self.project, self.elsewhere, self.home = (folder / name for name in ("project", "elsewhere", "home"))
        for place in (self.project, self.elsewhere, self.home):
            place.mkdir()
        self._servers: dict[int, subprocess.Popen[str]] = {}
        self._contents: dict[str, dict[str, bytes]] = {}
        # a store for each: of a change from one base to another, the other's object would be the right answer
        self.bases = {name: self.seed(self.seeded / name, [name])[name] for name in BASES}

    def close(self) -> None:
        for server in self._servers.values():
            server.stdin.close()
            server.wait(30)
            server.stdout.close()

    def seed(self, store: Path, bases: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Put the answers to these bases into a store, as compiles would."""
        return {name: self._ask(self._entered(SEEDED, name), store, seed=True) for name in bases}

    def seed_lacking(self, store: Path, base: str, lacks: Sequence[str]) -> None:
        """Put the answer to a base into a store under digests that lack some factors."""
        self._ask(self._entered(SEEDED, base), store, seed=True, lacks=lacks, known=self.bases[base])

    def probe(self, change: Change, store: Path | None = None, lacks: Sequence[str] = ()) -> dict[str, Any]:
        """What the lookup says after a change."""
        message = self._entered(change, change.base)
        store = store or self.seeded / change.base
        if change.store is not None:
            shutil.copytree(store, store := self.folder / "copied")
            change.store(store)
        try:
            return self._ask(message, store, lacks=lacks, readonly=change.readonly, hash_seed=change.hash_seed)
        finally:
            shutil.rmtree(self.folder / "copied", ignore_errors=True)

    def make(self, change: Change) -> tuple[Path, list[str]]:
        """The project as the change wants it, and the command line."""
        message = self._entered(change, change.base)
        return self.project, message["overrides"]

    def _files_of(self, base: str) -> dict[str, bytes]:
        """The base's project, made once: saved programs differ from one saving to the next."""
        if base not in self._contents:
            shop.restore(self.project, shop.contents())
            for edit in BASES[base].edits:
                edit(self.project)
            found = (path for path in self.project.rglob("*") if path.is_file())
            self._contents[base] = {path.relative_to(self.project).as_posix(): path.read_bytes() for path in found}
        return self._contents[base]

    def _entered(self, change: Change, base: str) -> dict[str, Any]:
        """Make the project as the change wants it; what a process that is started there sees."""
        files, root = self._files_of(base), self.elsewhere if change.moved else self.project
        shop.restore(self.project, files)
        if change.moved:
            shop.restore(root, files)
        for edit in change.edits:
            edit(root)
        arguments = [item.replace("{root}", str(root)) for item in (*BASES[base].overrides, *change.overrides)]
        if change.reorder:
            random.Random(1).shuffle(arguments)
        env: dict[str, str | None] = {"PATH": os.environ["PATH"], "HOME": str(self.home), **change.env}
        return {
            "overrides": arguments,
            "facts": {**BASES[base].facts, **change.facts},
            "env": {name: value.replace("{root}", str(root)) for name, value in env.items() if value is not None},
            "cwd": str(root / change.cwd),
            "path": [*(str(root / place) for place in change.path), str(root)],
            "umask": change.umask,
        }

    def _ask(
        self,
        message: dict[str, Any],
        store: Path,
        *,
        seed: bool = False,
        lacks: Sequence[str] = (),
        known: dict[str, Any] | None = None,
        readonly: bool = False,
        hash_seed: int = 0,
    ) -> dict[str, Any]:
        asked = {"store": str(store), "seed": seed, "lacks": list(lacks), "known": known, "readonly": readonly}
        server = self._server(hash_seed)
        server.stdin.write(json.dumps({**message, **asked}) + "\n")
        server.stdin.flush()
        answer: dict[str, Any] = json.loads(server.stdout.readline())
        assert "error" not in answer, answer["error"]
        return answer

    def _server(self, hash_seed: int) -> subprocess.Popen[str]:
        if hash_seed not in self._servers:
            env = {**os.environ, "PYTHONHASHSEED": str(hash_seed), "PYTHONDONTWRITEBYTECODE": "1"}
            self._servers[hash_seed] = subprocess.Popen(
                [sys.executable, "-c", START],
                cwd=REPOSITORY,
                env=env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        return self._servers[hash_seed]
