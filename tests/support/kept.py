"""What tests keep between runs, below outputs/tests: what the compiler compiled, and a store with the first runs.

Both are named by digests of all that they depend on, so a change gets a new folder and never an old answer.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from app.environment import cpu_flags

ROOT = Path(__file__).parents[2]
PLACE = ROOT / "outputs" / "tests"
UNUSED_S = 7 * 24 * 3600.0
# The compiler that was asked for, which workers of pytest-xdist would take this one for.
ASKED = "APP_TESTS_COMPILER"


def compiler() -> Path:
    """Make the session's compiler, a script for CXX; it lies in a folder named by compiler, torch and processor."""
    asked = os.environ.setdefault(ASKED, os.environ.get("CXX") or "g++")
    try:
        version = subprocess.run([*asked.split(), "-v"], capture_output=True, text=True, check=False).stderr
    except OSError:
        version = "none"
    folder = PLACE / "compiler" / _digest([asked, version, importlib.metadata.version("torch"), *cpu_flags()])
    kept, script = folder / "kept", folder / "c++"
    kept.mkdir(parents=True, exist_ok=True)
    text = (
        f"#!/bin/sh\nexec '{sys.executable}' -I -S '{Path(__file__).with_name('cxx.py')}' '{kept}' '{asked}' \"$@\"\n"
    )
    if not script.exists() or script.read_text() != text:
        temporary = folder / f"c++.{os.getpid()}"
        temporary.write_text(text)
        temporary.chmod(0o700)
        temporary.replace(script)
    return script


def first_runs(asked: Iterable[str]) -> Path:
    """The folder for the store and the records of first runs: named by this program, its packages, and what is asked."""
    total = hashlib.sha256()
    for path in sorted([*ROOT.glob("app/**/*"), *ROOT.glob("conf/**/*.yaml")]):
        if path.is_file() and path.suffix != ".pyc":
            total.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    packages = sorted(f"{each.name} {each.version}" for each in importlib.metadata.distributions())
    name = _digest([total.hexdigest(), sys.version, sys.prefix, *packages, *cpu_flags(), *asked])
    folder = PLACE / "runs" / name
    folder.mkdir(parents=True, mode=0o700, exist_ok=True)
    os.utime(folder)
    return folder


def prune() -> None:
    """Remove what no test has used for a week."""
    old = time.time() - UNUSED_S
    for path in [*PLACE.glob("runs/*"), *PLACE.glob("compiler/*/kept/*")]:
        if path.stat().st_mtime < old:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _digest(values: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(values).encode()).hexdigest()[:16]
