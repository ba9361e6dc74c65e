"""Fleet: the jobs of a sweep that a launcher takes elsewhere, watched by the files that they write."""

from __future__ import annotations

import _thread
import math
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock
from rich.console import Console

from . import collect, jobs
from .config import SweepConfig
from .fallback import EAGER
from .jobs import GRACE_S, HEARTBEAT, RECORD, Job
from .progress import JobsProgress
from .record import Record, RunError
from .sweep import LOCK, Planned, State, finish, good_record, listed

LOST_AFTER_S = 60.0  # without a sign of life; a job's supervisor gives one every jobs.BEAT_S


def run_one(planned: Planned) -> float:
    """Run a single job to its end, where a launcher or a sweeper asks for it; its record says how it went.

    Returns:
        The median latency in ms of what serves the largest batch size, for a sweeper to minimise; infinity where the
        job failed, or measured none.
    """
    record = good_record(planned)
    if record is None:
        ((_, record),) = jobs.run([planned.job], workers=1, on_start=lambda _: None)
    if planned.options.collect is not None:
        collect.put(planned.job.folder, planned.options.collect, str(planned.job.num))
    latencies = (record.latency_ms or {}).get("eager" if record.rung == EAGER else "compiled", {})
    if record.status != "ok" or not latencies:
        return math.inf
    return latencies[max(latencies, key=int)].p50


class Fleet:
    """A sweep whose jobs run wherever a launcher takes them: watched by the files they write, then summed up."""

    def __init__(
        self, folder: Path, overrides: Sequence[Sequence[str]], options: SweepConfig, *, as_json: bool
    ) -> None:
        """Begin to watch; `overrides` has one entry a job, and none where a sweeper makes them up as it goes."""
        self._folder, self._options, self._as_json = folder, options, as_json
        self._jobs = [Job(num, folder / str(num), tuple(words), ()) for num, words in enumerate(overrides)]
        self._ended: set[int] = set()
        self._signs: dict[int, tuple[float, float]] = {}  # of each job: its last sign of life, and when it was seen
        self.is_over = False
        self._stop = threading.Event()
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(folder / LOCK, timeout=0)
        self._lock.acquire()
        self._state = State(jobs=listed(self._jobs, folder))
        self._state.save(folder)
        self._progress = JobsProgress(Console(stderr=True), self._jobs, {})
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def finish(self, code: int | None) -> int:
        """Stop watching, and write the summary; `code` says why the jobs didn't all run. Returns the exit code."""
        self._stop.set()
        self._thread.join()
        if self._options.collect is not None:
            collect.get(self._options.collect, self._folder)
        if not self._jobs:
            found = sorted(self._folder.glob(f"*/{RECORD}"), key=lambda path: path.stat().st_mtime)
            made = [(path.parent, tuple(Record.load(path).overrides)) for path in found]
            self._state.jobs = listed([Job(num, *each, ()) for num, each in enumerate(made)], self._folder)
        self._state.status = "complete" if code is None else "interrupted"
        try:
            return finish(self._state, self._folder, code, as_json=self._as_json)
        finally:
            self._lock.release()

    def _watch(self) -> None:
        with self._progress:
            while not self._stop.wait(1.0):
                for job in self._jobs:
                    if job.num not in self._ended:
                        self._look_at(job)
                is_over = self._jobs and len(self._ended) == len(self._jobs) and self._options.collect is None
                if is_over and self._stop.wait(GRACE_S):  # the launcher knows of it too
                    return
                if is_over:  # it waits for a job that has vanished
                    self.is_over = True
                    _thread.interrupt_main()
                    return

    def _look_at(self, job: Job) -> None:
        try:
            sign = max(
                (job.folder / name).stat().st_mtime for name in (HEARTBEAT, RECORD) if (job.folder / name).exists()
            )
            record = Record.load(job.folder / RECORD)
        except (OSError, ValueError):
            return  # it has not begun
        last, since = self._signs.get(job.num, (0.0, 0.0))
        if sign != last:  # by the clock of whoever writes the file, so it is compared with itself only
            self._signs[job.num] = sign, time.monotonic()
        elif record.status == "running" and time.monotonic() - since > LOST_AFTER_S:
            record.status = "failed"
            record.error = RunError("Lost", record.stage or "start", f"no sign of life for {LOST_AFTER_S:g} s")
            record.save(job.folder / RECORD)
        if record.status == "running":
            self._progress.started(job)
        else:
            self._ended.add(job.num)
            self._progress.ended(job, record)
