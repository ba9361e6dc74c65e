"""Sweep: the jobs that one command came to, run to an end that can be resumed, with one summary of them all.

The jobs run here, side by side or one by one; those that a launcher takes elsewhere are fleet.py's.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

from filelock import FileLock, Timeout
from rich.console import Console

from . import jobs, lookup, structured
from .config import AUTO, Settings, SweepConfig
from .dependencies import named_files
from .environment import resolve_device
from .errors import AppError, ConfigError, TerminatedError
from .fallback import EAGER
from .files import write_text
from .jobs import RECORD, Job
from .keys import request_key
from .progress import JobsProgress
from .record import Record, now
from .report import summary

SCHEMA = 1
STATE, LOCK, NEVER = "sweep.json", ".lock", "never"
FAILED, INTERRUPTED, TERMINATED = 4, 130, 143
SIDE_BY_SIDE = ("compile", "explain", "warm")  # tasks that time nothing


@dataclass(frozen=True)
class Planned:
    """A job of a sweep.

    Attributes:
        job: The command line.
        folder: The sweep's.
        options: How the sweep is run.
        config: All that the command line resolves to.
        settings: The same, typed; None where it can't be right.
    """

    job: Job
    folder: Path
    options: SweepConfig
    config: dict[str, Any]
    settings: Settings | None


@dataclass(kw_only=True)
class State:
    """What `sweep.json` says of a sweep, beside the records of its jobs."""

    schema: int = SCHEMA
    status: Literal["running", "interrupted", "complete"] = "running"
    command: list[str] = field(default_factory=lambda: list(sys.argv))
    directory: str = field(default_factory=lambda: str(Path.cwd()))
    created_at: str = field(default_factory=now)
    ended_at: str | None = None
    jobs: list[dict[str, Any]] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        """Write it into the sweep's folder, whole or not at all."""
        write_text(folder / STATE, json.dumps(structured.encode(self), indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a sweep's; raises OSError or ValueError where there is none."""
        found: Self = structured.decode(cls, json.loads((folder / STATE).read_text(encoding="utf-8")))
        return found


def folder_for(root: str, fresh: str, resume: str) -> str:
    """Where a sweep writes: its own newest folder that is not complete, or a fresh one; see `sweep.resume`.

    Raises:
        ConfigError: `sweep.resume` names a folder that holds no sweep, or another command's.
    """
    mine = _identity(sys.argv)
    if resume not in {AUTO, NEVER}:
        if not (Path(resume) / STATE).is_file():
            raise ConfigError(f"sweep.resume={resume!r} holds no {STATE}: name a sweep's folder, {AUTO} or {NEVER}")
        if _identity((theirs := State.load(Path(resume))).command) != mine:
            raise ConfigError(f"sweep.resume={resume!r} is of another command: {shlex.join(theirs.command[1:])}")
        return resume
    known = Path(root).glob(f"*/*/{STATE}") if resume == AUTO else []
    for path in sorted(known, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            state = State.load(path.parent)
        except ValueError:
            continue
        if (_identity(state.command), state.directory) == (mine, str(Path.cwd())):
            return str(path.parent) if state.status != "complete" and not _is_held(path.parent) else fresh
    return fresh


def _identity(command: Sequence[str]) -> list[str]:
    """The command without what only says how its jobs are run."""
    return sorted(word for word in command[1:] if not word.startswith("sweep."))


def _is_held(folder: Path) -> bool:
    try:
        with _held(folder):
            return False
    except Timeout:
        return True


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold the folder against a second run of the same sweep; the kernel lets go of it when this process dies."""
    with FileLock(folder / LOCK, timeout=0):
        yield


def run(planned: Sequence[Planned]) -> int:
    """Run what a sweep lacks, and write its summary whatever happens; returns the exit code."""
    console, folder, options = Console(stderr=True), planned[0].folder, planned[0].options
    as_json = planned[0].config["output"] == "json"
    state = State(jobs=listed([each.job for each in planned], folder))
    try:
        with _held(folder):
            good = _resume(planned, folder, console)
            state.save(folder)
            code = _run(planned, good, options, JobsProgress(console, [each.job for each in planned], good))
            state.status = "complete" if code is None else "interrupted"
            return finish(state, folder, code, as_json=as_json)
    except Timeout:
        print(f"error at sweep: {folder} is being worked on by another process", file=sys.stderr)
        return 1


def listed(found: Sequence[Job], folder: Path) -> list[dict[str, Any]]:
    """Jobs as `sweep.json` lists them."""
    return [
        {"num": job.num, "folder": os.path.relpath(job.folder, folder), "overrides": list(job.overrides)}
        for job in found
    ]


def _resume(planned: Sequence[Planned], folder: Path, console: Console) -> dict[int, Record]:
    """The good records of an earlier attempt, by the job's number; the rest of it is removed."""
    if not (folder / STATE).exists():
        return {}
    found = ((each.job.num, good_record(each)) for each in planned)
    good = {num: record for num, record in found if record is not None}
    console.print(
        f"resuming {folder}: {len(good)} of {len(planned)} jobs are done",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    for each in planned:
        if each.job.num not in good:
            (each.job.folder / RECORD).unlink(missing_ok=True)
    return good


def good_record(planned: Planned) -> Record | None:
    """The job's record, if it holds for what the job would do now: the same config, the same artifact."""
    try:
        record = Record.load(planned.job.folder / RECORD)
    except (OSError, ValueError):
        return None
    if record.status != "ok" or _what_counts(record.resolved_config) != _what_counts(planned.config):
        return None
    wanted, settings = record.key.object if record.key else None, planned.settings
    if wanted is None or settings is None or settings.cache.dir is None:
        return record
    try:
        root, request = Path(settings.cache.dir).expanduser(), request_key(settings, resolve_device(settings.device))
        with lookup.open_store(settings.cache, root, readonly=settings.cache.readonly) as store:
            found = lookup.find(store, request, named_files(settings))
    except AppError:
        return None
    return record if isinstance(found, lookup.Found) and found.artifact.digest == wanted else None


def _what_counts(config: dict[str, Any] | None) -> Any:
    return json.loads(json.dumps({name: value for name, value in (config or {}).items() if name != "sweep"}))


def _run(
    planned: Sequence[Planned], good: dict[int, Record], config: SweepConfig, progress: JobsProgress
) -> int | None:
    """Run the jobs that have no good record; None when all have ended, or the exit code of why not."""
    left = [each for each in planned if each.job.num not in good]
    cores = config.workers or os.cpu_count() or 1
    times = any(each.settings is None or each.settings.task.name not in SIDE_BY_SIDE for each in left)
    try:
        with progress:
            if config.compile_first and times:
                failed = _compile(left, cores, progress)
                if config.fail_fast and failed:
                    return FAILED
                left = [each for each in left if each.job.num not in failed]
            running = jobs.run([each.job for each in left], workers=1 if times else cores, on_start=progress.started)
            for job, record in running:
                progress.ended(job, record)
                if config.fail_fast and record.status != "ok":
                    running.close()
                    return FAILED
    except KeyboardInterrupt as stop:
        return TERMINATED if isinstance(stop, TerminatedError) else INTERRUPTED
    return None


def _compile(planned: Sequence[Planned], workers: int, progress: JobsProgress) -> set[int]:
    """Compile what the jobs need, side by side; the numbers of those that failed, whose record is that failure's."""
    wanted = {each.job.num: each.job for each in planned if each.settings and each.settings.mode.engine != EAGER}
    compiling = []
    for job in wanted.values():
        folder = job.folder / "compile"
        words = (*job.arguments, "task.name=compile", f"hydra.run.dir={folder}")
        compiling.append(replace(job, folder=folder, arguments=words))
    failed = set()
    for job, record in jobs.run(compiling, workers=workers, on_start=progress.started):
        progress.compiled(job)
        if record.status != "ok":
            shutil.copyfile(job.folder / RECORD, wanted[job.num].folder / RECORD)
            progress.ended(job, record)
            failed.add(job.num)
    return failed


def finish(state: State, folder: Path, code: int | None, *, as_json: bool) -> int:
    """Write the summary, and show it; the exit code of the sweep."""
    state.ended_at = now()
    state.save(folder)
    gathered = summary.gather([folder])
    summary.write(gathered, folder)
    if as_json:
        print((folder / "summary.json").read_text(encoding="utf-8"), flush=True)
    else:
        summary.render(gathered, Console())
    if state.status == "interrupted":
        again = shlex.join(["python", "-m", "app", *state.command[1:]])
        print(f"stopped; the same command goes on with what is missing: {again}", file=sys.stderr)
    if code is not None:
        return code
    return 0 if all(row.status == "ok" for row in gathered.rows) else FAILED
