"""Jobs: command lines of this program, each run in a process of its own that is watched to its end.

Whatever becomes of the process (an exception, a segfault, an OOM kill, a time limit), its folder holds a record that
says so, and no job inherits another's threads, memory or CUDA state.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import tracking
from .record import Record, RunError, now

RECORD, LOG, HEARTBEAT = "record.json", "job.log", "alive"
POLL_S = 0.05
BEAT_S = 5.0
GRACE_S = 10.0  # between SIGTERM, after which a job saves what it has, and SIGKILL
_PR_SET_PDEATHSIG = 1  # prctl(2)


@dataclass(frozen=True)
class Job:
    """One command line: its number, where it writes, what tells it apart, and the words after `python -m app`.

    `directory` is where it runs, if there is one of that name.
    """

    num: int
    folder: Path
    overrides: tuple[str, ...]
    arguments: tuple[str, ...]
    timeout_s: float | None = None
    directory: str | None = None

    @property
    def label(self) -> str:
        """What a line of progress calls it."""
        return " ".join(self.overrides) or f"job {self.num}"


class Supervised:
    """A job's process."""

    def __init__(self, job: Job) -> None:
        self.job, self._began, self._beaten, self._is_late = job, time.monotonic(), 0.0, False
        job.folder.mkdir(parents=True, exist_ok=True)
        (job.folder / RECORD).unlink(missing_ok=True)  # an earlier attempt's
        self._oom_kills = _oom_kills()
        with (job.folder / LOG).open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.jobs", str(os.getpid()), *job.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=job.directory if job.directory and Path(job.directory).is_dir() else None,
                start_new_session=True,  # a process group of its own, killed as one; Ctrl-C is not meant for it
            )

    def ended(self) -> Record | None:
        """The job's record once it has ended; stops it when its time is over."""
        seconds = time.monotonic() - self._began
        if self._process.poll() is None:
            if self.job.timeout_s is not None and seconds > self.job.timeout_s:
                self._is_late = True
                self.stop()
            elif seconds >= self._beaten:
                (self.job.folder / HEARTBEAT).touch()
                self._beaten = seconds + BEAT_S
                return None
            else:
                return None
        with contextlib.suppress(OSError):
            (self.job.folder / HEARTBEAT).unlink(missing_ok=True)
        return self._settle()

    def stop(self) -> None:
        """Terminate it, so that it saves what it has; kill what is left of its group."""
        self.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def terminate(self) -> None:
        """Ask it to end."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    def _settle(self) -> Record:
        """The record that the job left, with the reason of its end where the job itself couldn't tell it."""
        path, code = self.job.folder / RECORD, self._process.returncode
        try:
            record = Record.load(path)
        except (OSError, ValueError):
            record = Record(status="running", stage="start", task="unknown", overrides=list(self.job.overrides))
            record.run_dir, record.created_at = str(self.job.folder), now()
        if record.status != "running" and not self._is_late:
            return record
        kind, reason = self._reason(code)
        stage = record.error.stage if record.error else record.stage
        record.status, record.stage = "failed", None
        record.error = RunError(kind, stage or "start", f"{reason} (see {LOG})")
        record.save(path)
        tracking.track(record, self.job.folder)
        return record

    def _reason(self, code: int) -> tuple[str, str]:
        if self._is_late:
            return "Timeout", f"stopped after sweep.timeout_s={self.job.timeout_s:g}"
        if code >= 0:
            return "Exit", f"ended with exit code {code}: {_last_line(self.job.folder / LOG)}"
        name = signal.Signals(-code).name
        oom = " for want of memory" if -code == signal.SIGKILL and _oom_kills() > self._oom_kills else ""
        return name, f"killed by {name}{oom}"


def run(
    jobs: Sequence[Job], *, workers: int, on_start: Callable[[Job], None]
) -> Generator[tuple[Job, Record], None, None]:
    """Run jobs, at most `workers` side by side; yields each as it ends, with its record.

    When the caller goes away (closes the iterator, is interrupted), what runs is terminated, and then killed.
    """
    waiting, running = deque(jobs), list[Supervised]()
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.popleft()
                on_start(job)
                running.append(Supervised(job))
            for each in list(running):
                if (record := each.ended()) is not None:
                    running.remove(each)
                    yield each.job, record
            time.sleep(POLL_S)
    finally:
        for each in running:
            each.terminate()  # all of them first: they save what they have side by side
        for each in running:
            each.stop()


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")


def _oom_kills() -> int:
    """How many processes this machine's kernel has killed for want of memory; 0 where it doesn't say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/vmstat").read_text("ascii").splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def main() -> None:
    """The job's side: `python -m app.jobs PARENT WORDS` is `python -m app WORDS`, and dies with its parent."""
    parent, *arguments = sys.argv[1:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):  # it died before that
        sys.exit(1)
    faulthandler.enable()  # a segfault leaves its traceback in the job's log
    sys.argv = [str(Path(__file__).with_name("__main__.py")), *arguments]
    from .cli import main as command

    command()


if __name__ == "__main__":
    main()
