"""Phases: how long each part of a run takes, shown while it works."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


class Phases:
    """Seconds by phase, and the line that says which one is running.

    On a terminal it is one live line; elsewhere each phase prints a plain line as it begins.
    """

    def __init__(self, console: Console) -> None:
        self.seconds: dict[str, float] = {}
        self._console = console
        self.current: str | None = None
        self.last: str | None = None
        self._since = self._began = self._updated = time.perf_counter()
        self._live: Progress | None = None
        if console.is_terminal:
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
        self.current, self._since = name, time.perf_counter()
        if self._live is not None and not still:
            self._live.start()
            self._live.reset(self._task, description=about or name)
            return
        self._hide()
        if not quiet:
            began = time.perf_counter() - self._began
            self._console.print(f"[{began:7.1f} s] {about or name}", markup=False, highlight=False)

    def update(self, about: str, every_s: float = 10.0) -> None:
        """Say how far the current phase is: at once on a terminal, elsewhere once in `every_s` seconds."""
        if self._live is not None:
            self._live.update(self._task, description=about)
            return
        now = time.perf_counter()
        if now - max(self._since, self._updated) >= every_s:
            self._updated = now
            self._console.print(f"[{now - self._began:7.1f} s] {about}", markup=False, highlight=False)

    def _close(self) -> None:
        if self.current is not None:
            spent = time.perf_counter() - self._since
            self.seconds[self.current] = self.seconds.get(self.current, 0.0) + spent
            self.last, self.current = self.current, None

    def _hide(self) -> None:
        if self._live is not None:
            self._live.stop()
