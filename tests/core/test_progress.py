"""Phases: their seconds add up, and a watcher sees which one is running."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from app import progress
from app.progress import Phases


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def console(terminal=False):
    return Console(file=io.StringIO(), force_terminal=terminal, width=200, color_system=None)


def test_each_phase_prints_one_plain_line_as_it_begins(clock):
    out = console()
    with Phases(out) as phases:
        clock.sleep(1.5)
        with phases("build"):
            clock.sleep(2)
        with phases("export"):
            assert out.file.getvalue().splitlines() == ["[    1.5 s] build", "[    3.5 s] export"]
            clock.sleep(3)
    assert phases.seconds == {"build": 2, "export": 3}
    assert "\x1b" not in out.file.getvalue()


def test_a_phase_that_runs_twice_accumulates(clock):
    with Phases(console()) as phases:
        for seconds in (1, 2):
            with phases("verify"):
                clock.sleep(seconds)
            clock.sleep(10)
    assert phases.seconds == {"verify": 3}
    assert phases.last == "verify"


def test_an_inner_phase_takes_over_and_the_outer_goes_on_without_another_line(clock):
    out = console()
    with Phases(out) as phases, phases("outer"):
        clock.sleep(1)
        with phases("inner"):
            clock.sleep(10)
            with phases("innermost"):
                clock.sleep(100)
            clock.sleep(20)
        clock.sleep(2)
    assert phases.seconds == {"outer": 3, "inner": 30, "innermost": 100}
    assert [line.split("] ")[1] for line in out.file.getvalue().splitlines()] == ["outer", "inner", "innermost"]


def test_a_worker_that_names_its_phases_shares_the_time_out_among_them(clock):
    with Phases(console()) as phases, phases("worker"):
        clock.sleep(1)
        for name in ("export", "compile"):
            phases.switch(name)
            clock.sleep(5)
    assert phases.seconds == {"worker": 1, "export": 5, "compile": 5}
    assert phases.last == "compile"


def test_a_phase_that_raises_is_timed_and_is_the_last(clock):
    with Phases(console()) as phases, pytest.raises(ValueError, match="no"), phases("export"):
        clock.sleep(4)
        raise ValueError("no")
    assert phases.seconds == {"export": 4}
    assert phases.last == "export"


def test_an_interrupt_that_comes_while_the_line_is_shown_belongs_to_that_phase(clock, monkeypatch):
    out = console()
    phases = Phases(out)
    with phases("build"):
        pass

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(out, "print", interrupted)
    with pytest.raises(KeyboardInterrupt), phases("measure"):
        pass
    assert phases.last == "measure"


def test_leaving_ends_a_phase_that_was_switched_to(clock):
    with Phases(console()) as phases:
        phases.switch("publish")
        clock.sleep(7)
    clock.sleep(7)
    assert phases.seconds == {"publish": 7}


def test_square_brackets_in_a_line_are_no_markup(clock):
    out = console()
    with Phases(out) as phases, phases("measure", about="measure [bold]x[/bold]", still=True):
        pass
    assert out.file.getvalue() == "[    0.0 s] measure [bold]x[/bold]\n"


def test_a_terminal_shows_one_live_line_and_leaves_nothing_behind():
    out = console(terminal=True)
    with Phases(out) as phases:
        with phases("build"):
            time.sleep(0.25)
        shown = out.file.getvalue()
    assert "build" in shown
    assert "[    0." not in shown
    assert not phases._live.live.is_started


def test_a_still_phase_stops_the_live_line_so_that_nothing_runs_beside_it():
    out = console(terminal=True)
    with Phases(out) as phases:
        with phases("build"):
            assert phases._live.live.is_started
        with phases("measure", about="measure: about 8 s", still=True):
            assert not phases._live.live.is_started
            written = out.file.getvalue()
            time.sleep(0.25)
            assert out.file.getvalue() == written
        assert "] measure: about 8 s" in written
        with phases("publish"):
            assert phases._live.live.is_started
    assert phases.seconds.keys() == {"build", "measure", "publish"}


def test_how_far_a_phase_is_is_said_now_and_then(clock):
    out = console()
    with Phases(out) as phases, phases("evaluate"):
        for _ in range(25):
            clock.sleep(1)
            phases.update(f"{clock.now:.0f}")
    assert [line.split("] ")[1] for line in out.file.getvalue().splitlines()] == ["evaluate", "110", "120"]
