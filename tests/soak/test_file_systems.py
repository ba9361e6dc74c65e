"""Disks that are full, read-only or noexec, and clocks that jump: a clear line, and a run that is served all the same."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import contextmanager, suppress

import pytest

NO_COMPILER = {"CXX": "/nonexistent"}
# The program under a clock of its own: `time.time` and `time.time_ns` are off by what `shift` says, in seconds.
ANOTHER_CLOCK = """
import itertools, sys, time
from app.cli import main
now, now_ns, year = time.time, time.time_ns, 365 * 86400
shift = {"ahead": itertools.repeat(year), "behind": itertools.repeat(-year),
         "jumping": itertools.cycle([0, year, -year, 3600])}[sys.argv.pop(1)]
time.time = lambda: now() + next(shift)
time.time_ns = lambda: now_ns() + next(shift) * 10**9
main()
"""


@contextmanager
def mounted(*arguments):
    """A mount for as long as it is needed, where this process may mount."""
    try:
        done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"can't mount here: {error}")
    if done.returncode:
        pytest.skip(f"can't mount here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", arguments[-1]], check=True)


@contextmanager
def disk(path, options):
    """A small file system in memory."""
    path.mkdir()
    with mounted("-t", "tmpfs", "-o", options, "tmpfs", str(path)):
        yield path


def fill(path):
    """Write until the disk is full."""
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass


def told(run):
    """What the user is told of it: one line."""
    assert "Traceback" not in run.stderr
    (line,) = (line for line in run.stderr.splitlines() if line.startswith(("WARNING: fallback", "error at")))
    return line


def check_served_by_eager(run, stage, *words):
    assert run.code == 0, run.stderr
    assert run.record["rung"] == "eager"
    assert [(step["to"], step["stage"]) for step in run.record["fallbacks"]] == [("eager", stage)]
    assert all(word in told(run) for word in words), told(run)


def check_failed(run, stage, *words):
    assert run.code == 1
    assert (run.record["status"], run.record["error"]["stage"]) == ("failed", stage)
    assert all(word in told(run) for word in words), told(run)


def check_hit(run):
    assert run.code == 0, run.stderr
    assert (run.record["cache"]["outcome"], run.record["rung"]) == ("direct-hit", "compiled")
    assert run.record["fallbacks"] == []


@pytest.fixture
def args(hit_args, copied_store, tmp_path):
    """Arguments of a hit in a copy of the session's store that is on this disk; the copy is made when it's called."""

    def on(place):
        shutil.copytree(copied_store("linear"), place / "store")
        return [*hit_args("linear"), f"cache.dir={place}/store"]

    return on


# Full


@pytest.mark.parametrize("policy", ["graceful", "strict"])
def test_full_disk_is_told_in_one_line_and_leaves_nothing_half_written(run_app, tmp_path, policy):
    with disk(tmp_path / "disk", "size=300k") as place:
        store = place / "store"
        run = run_app(["model=linear", f"fallback={policy}", f"cache.dir={store}"])
        check = check_failed if policy == "strict" else check_served_by_eager
        check(run, "compile", "No space left")
        assert not list(store.glob("objects/??/*"))
        assert not list(store.glob("tmp/*"))


def test_disk_that_filled_up_serves_its_hits_and_a_miss_is_served_by_eager(run_app, args, tmp_path):
    with disk(tmp_path / "disk", "size=16m") as place:
        arguments = args(place)
        fill(place / "filler")
        check_hit(run_app(arguments, env=NO_COMPILER))
        check_served_by_eager(run_app([*arguments, "model.seed=9"]), "compile", "No space left")
        assert not list((place / "store").glob("tmp/*"))
        (place / "filler").unlink()
        check_hit(run_app(arguments, env=NO_COMPILER))


@pytest.mark.parametrize("policy", ["graceful", "strict"])
def test_disk_without_room_for_another_file_is_told_in_one_line(run_app, tmp_path, policy):
    with disk(tmp_path / "disk", "nr_inodes=6") as place:
        run = run_app(["model=linear", f"fallback={policy}", f"cache.dir={place}/store"])
        check = check_failed if policy == "strict" else check_served_by_eager
        check(run, "store", "No space left", "set cache.dir or cache=off")


def test_disk_that_ran_out_of_files_is_served_by_eager_and_then_again_by_its_hits(run_app, args, tmp_path):
    with disk(tmp_path / "disk", "nr_inodes=300") as place:
        arguments = args(place)
        fillers = [place / f"filler-{number}" for number in range(300)]
        with suppress(OSError):
            for path in fillers:
                path.touch()
        check_served_by_eager(run_app(arguments), "store", "No space left", "set cache.dir or cache=off")
        for path in fillers:
            path.unlink(missing_ok=True)
        check_hit(run_app(arguments, env=NO_COMPILER))


# Read-only and noexec


def test_read_only_disk_is_served_by_eager_with_the_mend_or_its_hits_when_told_that_it_is(run_app, args, tmp_path):
    arguments = args(tmp_path)
    store = str(tmp_path / "store")
    with mounted("--bind", store, store):
        subprocess.run(["mount", "-o", "remount,ro,bind", store], check=True)
        check_served_by_eager(run_app(arguments), "store", "Read-only file system", "set cache.dir or cache=off")
        check_hit(run_app([*arguments, "cache.readonly=true"], env=NO_COMPILER))


def test_disk_that_runs_no_code_is_served_by_eager_and_loses_nothing(run_app, args, tmp_path):
    with disk(tmp_path / "disk", "noexec") as place:
        arguments = args(place)
        check_served_by_eager(run_app(arguments), "load", "can't be loaded", "mounted noexec", "set cache.dir")
        check_failed(run_app([*arguments, "fallback=strict"]), "load", "mounted noexec")
        check_served_by_eager(run_app([*arguments, "model.seed=9"]), "load", "mounted noexec")
        assert not list((place / "store" / "quarantine").iterdir())
        subprocess.run(["mount", "-o", "remount,exec", str(place)], check=True)
        check_hit(run_app(arguments, env=NO_COMPILER))


# Clocks


@pytest.mark.parametrize("year", [1970, 2000, 2100])
def test_files_of_another_time_are_hits(run_app, args, tmp_path, year):
    arguments = args(tmp_path)
    moment = (year - 1970) * 365.25 * 86400
    for path in (tmp_path / "store").rglob("*"):
        os.utime(path, (moment, moment))
    for _ in range(2):
        run = run_app(arguments, env=NO_COMPILER)
        check_hit(run)
        assert "WARNING: cache" not in run.stderr


@pytest.mark.parametrize("clock", ["ahead", "behind", "jumping"])
def test_process_whose_clock_is_wrong_hits_and_leaves_a_store_that_others_hit(run_app, args, tmp_path, clock):
    arguments = args(tmp_path)
    for program in (("-c", ANOTHER_CLOCK, clock), ("-m", "app"), ("-c", ANOTHER_CLOCK, clock)):
        run = run_app(arguments, env=NO_COMPILER, program=program)
        check_hit(run)
        assert "WARNING: cache" not in run.stderr
        assert all(seconds >= 0 for seconds in run.record["phases_s"].values())


def test_clock_that_jumps_while_it_compiles_changes_nothing(run_app, fresh_store):
    arguments = ["model=linear", "model.seed=9", "task=compile", f"cache.dir={fresh_store}"]
    run = run_app(arguments, program=("-c", ANOTHER_CLOCK, "jumping"))
    assert run.code == 0, run.stderr
    assert (run.record["cache"]["outcome"], run.record["rung"], run.record["fallbacks"]) == ("miss", "compiled", [])
    assert 0 < sum(run.record["phases_s"].values()) < 600
    check_hit(run_app(arguments, env=NO_COMPILER))
