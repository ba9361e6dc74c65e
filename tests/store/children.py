"""The other process of these tests: `python -m tests.store.children <role> <root> ...`."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

from app.store import Store, staging
from tests.store.conftest import digest_of, publish

# What an audit hook sees of writing a store: every one of these is a moment to die before.
FAULT_POINTS = {"open", "os.mkdir", "os.rename", "os.chmod", "os.remove", "os.rmdir", "sqlite3.connect"}


def say(word: str) -> None:
    print(word, flush=True)


def race(root: Path, name: str, times: int) -> None:
    """Publish the same few objects as another process does, as fast as it goes."""
    with Store(root) as store:
        for number in range(times):
            publish(store, f"{name}-{number}")


def die_at_fault(root: Path, fault: int) -> None:
    seen = 0

    def hook(event: str, _: object) -> None:
        nonlocal seen
        if event in FAULT_POINTS:
            seen += 1
            if seen == fault:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    fsync, os.fsync = os.fsync, lambda descriptor: (hook("open", None), fsync(descriptor))[1]
    with Store(root) as store:
        publish(store, files={"model.so": b"code" * 1000})


def die_at_random(root: Path, _: int) -> None:
    with Store(root) as store:
        for number in range(1000):
            publish(store, f"large-{number}", files={"model.so": os.urandom(1 << 20)})


def killed(work, root: Path, number: int, delay_s: float | None = None) -> bool:
    """Run `work` in a fork of this process; whether it was killed rather than finished."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work(root, number)
            status = 0
        finally:
            os._exit(status)
    if delay_s is not None:
        time.sleep(delay_s)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def fault_points(root: Path) -> None:
    """Kill a publisher before its first, second... step, until one lives; print what was found each time."""
    fault = 1
    while killed(die_at_fault, root / str(fault), fault):
        with Store(root / str(fault)) as store:
            found = type(store.read("objects", digest_of("a"))).__name__
            entries = store.entries(digest_of("request-a"))
            left = list((store.root / "tmp").iterdir())
            say(f"{found} {len(entries)} {len(left)}")
            publish(store)
            assert type(store.read("objects", digest_of("a"))).__name__ == "Hit"
        fault += 1


def random_points(root: Path, kills: int) -> None:
    """Kill a publisher of large files after a random while, in one store."""
    dice = random.Random(0)
    for _ in range(kills):
        assert killed(die_at_random, root, 0, delay_s=dice.uniform(0.0, 0.06))
    say("done")


def hold_lock(root: Path, kind: str, digest: str) -> None:
    with Store(root) as store, store.lock(kind, digest, 1):
        say("held")
        time.sleep(600)


def hold_staging(root: Path) -> None:
    with Store(root) as store, store.staging() as folder:
        (folder / "half.so").write_bytes(b"half")
        say(str(folder))
        time.sleep(600)


def stop_while_staging(root: Path) -> None:
    def stop(**_: object) -> None:
        say("stopped")
        time.sleep(600)

    with Store(root) as store:
        staging.tempfile.mkdtemp = stop
        with store.staging():
            pass


if __name__ == "__main__":
    role, root, *rest = sys.argv[1:]
    globals()[role](Path(root), *(int(word) if word.isdigit() and len(word) < 9 else word for word in rest))
