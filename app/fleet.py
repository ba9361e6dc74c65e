"""Fleet: the jobs of a sweep that a launcher takes elsewhere, watched by the files that they write.

Whatever the launcher knows of its jobs, it tells late or never. So each job has a supervisor beside it, wherever it
runs, that writes its record and a heartbeat into the sweep's folder; the process that launched them reads these.
"""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from filelock import FileLock
from rich.console import Console

from . import collect, jobs
from .config import SweepConfig
from .jobs import GRACE_S, HEARTBEAT, RECORD, Job
from .progress import JobsProgress
from .record import Record, RunError
from .sweep import LOCK, STATE, Planned, State, finish, good_record, listed

logger = logging.getLogger(__name__)


def run_one(planned: Planned) -> float:
    """Run a single job to its end, where a launcher or a sweeper asks for it; its record says how it went.

    Returns:
        What a sweeper may minimise: the latency at the largest batch size as a share of eager's, which was measured
        in turns with it (latencies of different jobs drift apart by more than what is looked for); infinity where the
        job failed, or measured none.
    """
    folder, options = planned.job.folder, planned.options
    with FileLock(folder / LOCK):  # of an interrupted sweep, the same job may still be running elsewhere
        record = good_record(planned)
        if record is None:
            ((_, record),) = jobs.run([planned.job], workers=1, on_start=lambda _: None)
        else:
            (folder / RECORD).touch()  # a sign that it has been looked at
    if options.collect is not None:
        collect.put(folder, options.collect, str(planned.job.num))
    latencies = (record.latency_ms or {}).get("eager", {})
    if record.status != "ok" or not latencies:
        return math.inf
    return 1 / ((record.speedup or {}).get(max(latencies, key=int)) or 1.0)  # none where eager serves


class Fleet:
    """A sweep whose jobs run wherever a launcher takes them: watched by the files they write, then summed up."""

    def __init__(
        self, folder: Path, overrides: Sequence[Sequence[str]], options: SweepConfig, *, as_json: bool
    ) -> None:
        """Take the folder; `overrides` has one entry a job, and none where a sweeper makes them up as it goes.

        Raises:
            filelock.Timeout: another process works on the same sweep.
        """
        self.is_over = False
        self._folder, self._options, self._as_json = folder, options, as_json
        self._jobs = [Job(num, folder / str(num), tuple(words), ()) for num, words in enumerate(overrides)]
        self._is_listed = bool(self._jobs)
        self._signs: dict[int, tuple[float, float]] = {}  # of each job: its last sign of life, and when it was seen
        self._ended: set[int] = set()
        self._before: dict[Path, float] = {}  # signs of an earlier attempt's jobs, which say nothing of this one
        self._launcher_failed, self._stop = False, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(folder / LOCK, timeout=0)
        self._lock.acquire()
        console = Console(stderr=True)
        if (folder / STATE).exists():
            text = f"resuming {folder}: {self._take_stock()} jobs are done"
            console.print(text, markup=False, highlight=False, soft_wrap=True)
        self._state = State(jobs=listed(self._jobs, folder))
        self._state.save(folder)
        if options.fail_fast or options.compile_first:
            logger.warning("sweep.fail_fast and sweep.compile_first are not for a launcher's jobs: they are ignored")
        self._progress = JobsProgress(console, self._jobs, {})

    def watch(self) -> None:
        """Look at the jobs from now on, beside this thread, which is the launcher's.

        Once every job has ended or vanished and the launcher doesn't notice, this thread is interrupted, as by
        Ctrl-C, and `is_over` is set.
        """
        self._thread.start()

    def look(self) -> None:
        """Notice what has become of the jobs since the last look."""
        if not self._is_listed:
            self._discover()
        for job in self._jobs:
            self._look_at(job)

    def outlast(self) -> None:
        """Wait for what runs although the launcher has given up; interrupts this thread when that is over."""
        self._launcher_failed = True
        self._thread.join()

    def stop(self) -> None:
        """Watch no longer."""
        self._stop.set()
        with suppress(KeyboardInterrupt):  # the watch's own, sent in the same moment
            self._thread.join()

    def finish(self, code: int | None) -> int:
        """Stop watching, and write the summary; `code` says why the jobs didn't all run. Returns the exit code."""
        self.stop()
        if self._options.collect is not None:
            collect.get(self._options.collect, self._folder)
        self.look()
        self._state.jobs = listed(self._jobs, self._folder)
        lost = self._silent() - self._ended
        for job in self._jobs:
            if job.num in lost:
                self._give_up(job)
        is_complete = code is None and len(self._ended | lost) == len(self._jobs)
        self._state.status = "complete" if is_complete else "interrupted"
        try:
            return finish(self._state, self._folder, code, as_json=self._as_json)
        finally:
            self._lock.release()

    def _watch(self) -> None:
        pause = 1.0
        with self._progress:
            while not self._stop.wait(pause):
                began = time.monotonic()
                self.look()
                pause = max(1.0, 10 * (time.monotonic() - began))  # however many jobs, and however slow the disk
                if self._is_quiet() and not self._stop.wait(GRACE_S):
                    self.is_over = True
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                    return

    def _discover(self) -> None:
        """Take in the jobs that a sweeper has made up meanwhile."""
        known = {job.folder for job in self._jobs}
        found = sorted(self._folder.glob(f"*/{RECORD}"), key=lambda path: (len(path.parent.name), path.parent.name))
        for path in found:
            with suppress(OSError, ValueError):
                if path.parent not in known:
                    words = tuple(Record.load(path).overrides)
                    self._jobs.append(Job(len(self._jobs), path.parent, words, ()))

    def _take_stock(self) -> int:
        """Remove what an earlier attempt's failed jobs left; the number of the good ones."""
        num_good = 0
        for path in self._folder.glob(f"*/{RECORD}"):
            with suppress(ValueError):
                status = Record.load(path).status
                num_good += status == "ok"
                if status == "failed":
                    path.unlink()
            self._before[path.parent] = _sign(path.parent)
        return num_good

    def _look_at(self, job: Job) -> None:
        sign = _sign(job.folder)
        # by the clock of whoever writes the file, so it is compared with itself only
        if sign in {0.0, self._before.get(job.folder), self._signs.get(job.num, (0.0,))[0]}:
            return
        with suppress(OSError, ValueError):
            record = Record.load(job.folder / RECORD)
            if record.status == "running":
                self._ended.discard(job.num)  # begun again, as clusters do with the jobs of a machine that is lost
                self._progress.started(job)
            elif job.num not in self._ended:
                self._ended.add(job.num)
                self._progress.ended(job, record)
        self._signs[job.num] = sign, time.monotonic()

    def _silent(self) -> set[int]:
        now = time.monotonic()
        return {num for num, (_, seen) in self._signs.items() if now - seen > self._options.lost_after_s}

    def _is_quiet(self) -> bool:
        """Whether nothing more is to be expected; what has not begun yet is, for as long as the launcher waits."""
        silent = self._silent()
        if self._launcher_failed and len(silent) == len(self._signs):
            return True
        return self._is_listed and len(self._ended | silent) == len(self._jobs)

    def _give_up(self, job: Job) -> None:
        with suppress(OSError, ValueError):
            record = Record.load(job.folder / RECORD)
            reason = f"no sign of life for {self._options.lost_after_s:g} s: its machine is gone, or out of reach"
            record.status, record.error = "failed", RunError("Lost", record.stage or "start", reason)
            record.save(job.folder / RECORD)


def _sign(folder: Path) -> float:
    """When a job last showed that it lives, by its machine's clock; 0 where it never did."""
    times = [0.0]
    for name in (HEARTBEAT, RECORD):
        with suppress(OSError):
            times.append((folder / name).stat().st_mtime)
    return max(times)
