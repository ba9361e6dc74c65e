"""Progress: how long each phase of a run takes, and how far a sweep's jobs are, shown while they work."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from .jobs import Job
    from .record import Record


class Phases:
    """Seconds by phase, and the line that says which one is running.

    On a terminal it is one live line; elsewhere each phase prints a plain line as it begins. Without a
    console nothing is shown, and rich isn't imported.
    """

    def __init__(self, console: Console | None, on_begin: Callable[[str], None] = lambda _: None) -> None:
        self.seconds: dict[str, float] = {}
        self._console, self._on_begin = console, on_begin
        self.current: str | None = None
        self.last: str | None = None
        self._since = self._began = self._updated = time.perf_counter()
        self._live: Progress | None = None
        if console is not None and console.is_terminal:
            from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

            columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
            self._live = Progress(*columns, console=console, transient=True)
            self._task = self._live.add_task("starting", total=None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        self._hide()

    @contextmanager
    def __call__(self, name: str, *, about: str = "", still: bool = False) -> Iterator[None]:
        """Time a phase; one inside another takes over until it ends.

        Args:
            name: The phase, as it stands in the record.
            about: What is shown instead of the name.
            still: Nothing may run beside this phase, not even the live line: a plain one stands for it.
        """
        outer = self.current
        try:
            # inside, so that an interrupt that comes as soon as it is shown is its own
            self.switch(name, about=about, still=still)
            yield
        finally:
            self._close()
            if outer is not None:
                self.switch(outer, quiet=True)

    def switch(self, name: str, *, about: str = "", still: bool = False, quiet: bool = False) -> None:
        """End the current phase and begin another; the same one again is no news."""
        self._close()
        quiet = quiet or (name == self.last and not about)
        self._on_begin(name)
        self.current, self._since = name, time.perf_counter()
        if self._live is not None and not still:
            self._live.start()
            self._live.reset(self._task, description=about or name)
            return
        self._hide()
        if not quiet:
            self._print(about or name)

    def update(self, about: str, every_s: float = 10.0) -> None:
        """Say how far the current phase is: at once on a terminal, elsewhere once in `every_s` seconds."""
        if self._live is not None:
            self._live.update(self._task, description=about)
            return
        now = time.perf_counter()
        if now - max(self._since, self._updated) >= every_s:
            self._updated = now
            self._print(about)

    def _print(self, text: str) -> None:
        if self._console is not None:
            self._console.print(f"[{time.perf_counter() - self._began:7.1f} s] {text}", markup=False, highlight=False)

    def _close(self) -> None:
        if self.current is not None:
            spent = time.perf_counter() - self._since
            self.seconds[self.current] = self.seconds.get(self.current, 0.0) + spent
            self.last, self.current = self.current, None

    def _hide(self) -> None:
        if self._live is not None:
            self._live.stop()


class JobsProgress:
    """What a sweep shows while it runs: a line for each job that ends; on a terminal also what runs and is left.

    `found` is empty where nobody knows how many jobs there will be. A job may begin again after it has ended.
    """

    def __init__(self, console: Console, found: Sequence[Job], good: dict[int, Record]) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._console, self._began, self._total = console, time.monotonic(), len(found)
        shared = set.intersection(*(set(job.overrides) for job in found)) if len(found) > 1 else set()
        self._labels = {
            job.num: " ".join(word for word in job.overrides if word not in shared) or job.label for job in found
        }
        self._skipped, self._failed, self._hits = len(good), 0, 0
        self._ended, self._running = dict(good), dict[int, str]()
        columns = (BarColumn(20), MofNCompleteColumn(), TextColumn("{task.description}"))
        self._live = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._live.add_task("", total=self._total or None, completed=len(good))

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def started(self, job: Job) -> None:
        """A job begins."""
        if job.num in self._ended:
            self._count(self._ended.pop(job.num), -1)
        self._running[job.num] = self._labels.get(job.num, job.label)
        self._show()

    def compiled(self, job: Job) -> None:
        """A job's artifact is there."""
        self._running.pop(job.num, None)
        self._show()

    def ended(self, job: Job, record: Record) -> None:
        """A job has ended; how, is a line of its own."""
        self._running.pop(job.num, None)
        self._ended[job.num] = record
        self._count(record, 1)
        label, error = self._labels.get(job.num, job.label), record.error
        parts = [label, record.cache.outcome if record.cache else None, record.rung]
        if record.status != "ok":
            parts = [label, f"at {error.stage}: {error.message}" if error else "lost"]
        word, style = ("ok", "") if record.status == "ok" else ("FAILED", "bold red")
        of = f"/{self._total}" if self._total else ""
        text = f"[{time.monotonic() - self._began:7.1f} s] {len(self._ended)}{of} {word} "
        self._live.console.print(
            text + " · ".join(part for part in parts if part),
            style=style,
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        self._show()

    def _count(self, record: Record, by: int) -> None:
        self._failed += by * (record.status != "ok")
        self._hits += by * (record.cache is not None and "hit" in record.cache.outcome)

    def _show(self) -> None:
        done = len(self._ended)
        finished, left = done - self._skipped, self._total - done
        about = [f"{self._failed} failed, {self._hits} hits"]
        if finished > 0 and left >= 0:
            about.append(f"{_duration(left * (time.monotonic() - self._began) / finished)} left")
        running = list(self._running.values())
        about.append(", ".join(running[:2]) + (f" and {len(running) - 2} more" if len(running) > 2 else ""))
        self._live.update(self._task, completed=done, description=" · ".join(part for part in about if part))


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
