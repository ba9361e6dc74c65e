"""The store between processes: races, kills, locks, full disks and what may not be written."""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from app.errors import StoreError
from app.store import Corrupt, Hit, LockTimeout, Miss, Store
from app.store.staging import sweep

NOBODY = 65534
NOTHING_SAID = {"factors": {}, "content": {}, "verified": {}, "provenance": {}, "requests": []}


@contextmanager
def unprivileged():
    """As a user whom permission bits bind: root, in CI, is bound by none."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def public_path():
    """A directory that any user can reach, unlike pytest's own."""
    path = Path(tempfile.mkdtemp(prefix="store-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@contextmanager
def mounted(*arguments):
    """A mount for as long as it's needed, where this process may mount."""
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"can't mount here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", arguments[-1]], check=True)


def picture(root):
    """Every path with what a write would change of it."""
    paths = sorted(root.rglob("*"))
    return {path: (path.lstat().st_mtime_ns, path.lstat().st_size, path.lstat().st_mode) for path in paths}


def give_to_nobody(root):
    for path in [root, *root.rglob("*")]:
        os.chown(path, NOBODY, NOBODY)


def fill(path):
    """Write until the disk is full."""
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass


# Processes


def test_two_processes_publish_the_same_objects(store, digest_of, child):
    racers = [child("race", store.root, "same", 20) for _ in range(2)]
    assert [racer.wait() for racer in racers] == [0, 0]
    for number in range(20):
        assert isinstance(store.read("objects", digest_of(f"same-{number}")), Hit)
        assert len(store.entries(digest_of(f"request-same-{number}"))) == 1
    assert not list((store.root / "quarantine").iterdir())
    assert not list((store.root / "tmp").iterdir())


def test_a_publisher_killed_before_any_of_its_steps_leaves_a_store_that_works(tmp_path, child):
    process = child("fault_points", tmp_path)
    lines = process.communicate()[0].splitlines()
    assert process.returncode == 0
    findings = [line.split() for line in lines]
    assert len(findings) > 30
    assert {tuple(finding) for finding in findings} == {("Miss", "0", "0"), ("Hit", "1", "0")}
    assert sorted(findings, key=lambda finding: finding[0], reverse=True) == findings  # one commit point


def test_a_publisher_killed_at_random_leaves_only_sound_objects(tmp_path, digest_of, child):
    process = child("random_points", tmp_path, 20)
    assert process.communicate()[0] == "done\n"
    with Store(tmp_path) as store:
        found = [store.read("objects", manifest.digest) for manifest in store.manifests()]
        assert found
        assert all(isinstance(one, Hit) for one in found)
        objects = {path.name for path in (tmp_path / "objects").glob("??/*")}
        assert objects == {one.artifact.digest for one in found}
        assert not list((tmp_path / "tmp").iterdir())


def test_abandoned_staging_is_swept_and_a_live_one_is_not(store, child):
    process = child("hold_staging", store.root)
    folder = Path(process.stdout.readline().strip())
    with store.staging() as ours:
        Store(store.root).close()
        assert (folder / "half.so").exists()
        assert ours.exists()
        process.send_signal(signal.SIGKILL)
        process.wait()
        Store(store.root).close()
        assert not folder.parent.exists()
        assert ours.exists()
    assert not list((store.root / "tmp").iterdir())


def test_what_is_staged_while_others_sweep_stays(store):
    done = threading.Event()

    def sweep_on():
        while not done.is_set():
            sweep(store.root / "tmp")

    sweepers = [threading.Thread(target=sweep_on) for _ in range(3)]
    for sweeper in sweepers:
        sweeper.start()
    try:
        for _ in range(300):
            with store.staging() as ours:
                (ours / "half.so").write_bytes(b"half")
                time.sleep(0)
                assert (ours / "half.so").exists()
    finally:
        done.set()
        for sweeper in sweepers:
            sweeper.join()
    sweep(store.root / "tmp")
    assert not list((store.root / "tmp").iterdir())


def test_a_process_stopped_while_it_begins_to_stage_keeps_nobody_else_from_it(store, child):
    assert child("stop_while_staging", store.root).stdout.readline() == "stopped\n"
    # a lock that the other one holds would be given up in the end, and raise
    with Store(store.root) as again, again.staging() as ours:
        assert ours.exists()


def test_whatever_lies_among_what_is_written_is_swept(store, tmp_path):
    (tmp_path / "precious").mkdir()
    (store.root / "tmp" / "file").write_text("")
    (store.root / "tmp" / "link").symlink_to(tmp_path / "precious")
    (store.root / "tmp" / "folder").mkdir()
    os.mkfifo(store.root / "tmp" / "pipe")
    Store(store.root).close()
    assert not list((store.root / "tmp").iterdir())
    assert (tmp_path / "precious").exists()


# Locks


def test_a_lock_excludes_another_process_until_that_is_killed(store, digest_of, child):
    process = child("hold_lock", store.root, "objects", digest_of("a"))
    assert process.stdout.readline() == "held\n"
    with (
        pytest.raises(LockTimeout, match="no heartbeat"),
        store.lock("objects", digest_of("a"), 0.05),
    ):
        pass
    with store.lock("requests", digest_of("a"), 0.05):  # another level: not in its way
        process.send_signal(signal.SIGKILL)
        process.wait()
        with store.lock("objects", digest_of("a"), 5):
            pass
    assert (store.root / "locks" / "objects" / f"{digest_of('a')[:2]}.lock").exists()


def test_a_holder_that_beats_is_waited_for_and_one_that_is_stopped_is_given_up(store, digest_of, child):
    process = child("hold_lock", store.root, "requests", digest_of("a"))
    assert process.stdout.readline() == "held\n"
    waited = []
    taken = threading.Event()

    def wait():
        with Store(store.root) as own, own.lock("requests", digest_of("a"), 2.5, lambda: waited.append(True)):
            taken.set()

    waiter = threading.Thread(target=wait)
    waiter.start()
    assert not taken.wait(4)  # longer than the heartbeat may stand still
    process.send_signal(signal.SIGKILL)
    assert taken.wait(5)
    waiter.join()
    assert waited == [True]

    process = child("hold_lock", store.root, "requests", digest_of("a"))
    assert process.stdout.readline() == "held\n"
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(LockTimeout, match="no heartbeat"), store.lock("requests", digest_of("a"), 1.5):
        pass


def test_locks_of_one_prefix_nest_in_a_thread_and_exclude_other_threads(store):
    first, second = "ab" + "0" * 62, "ab" + "1" * 62
    outcome = []

    def other_thread():
        try:
            with store.lock("objects", second, 0.05):
                outcome.append("held")
        except LockTimeout:
            outcome.append("timeout")

    with store.lock("requests", first, 1), store.lock("objects", first, 1):
        with store.lock("objects", second, 1), Store(store.root).lock("objects", second, 1):
            pass
        thread = threading.Thread(target=other_thread)
        thread.start()
        thread.join()
    other_thread()
    assert outcome == ["timeout", "held"]


def test_publishing_and_quarantine_work_under_the_callers_own_locks(store, publish, digest_of):
    with store.lock("requests", digest_of("a"), 1), store.lock("objects", digest_of("a"), 1):
        artifact = publish(store)
        store.quarantine("objects", digest_of("a"), "tried")
    assert not artifact.path.exists()


def test_a_lock_of_no_known_kind_is_refused(store, digest_of):
    with (
        pytest.raises(ValueError, match="requests, private, objects"),
        store.lock("request", digest_of("a"), 1),
    ):
        pass


# What can't be written


def test_a_root_beneath_a_file_is_refused_with_the_mend(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"not writable: Not a directory; set cache\.dir or cache=off"):
        Store(tmp_path / "file" / "cache")


def test_a_directory_without_write_permission_is_refused_with_the_mend(public_path):
    (public_path / "locked").mkdir(mode=0o500)
    give_to_nobody(public_path) if os.geteuid() == 0 else None
    with unprivileged(), pytest.raises(StoreError, match=r"not writable: Permission denied; set cache\.dir"):
        Store(public_path / "locked" / "cache")
    assert not list((public_path / "locked").iterdir())


def test_parents_that_the_store_creates_are_private(tmp_path):
    Store(tmp_path / "a" / "b" / "cache").close()
    for path in [tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "cache"]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_an_object_that_may_not_be_read_is_an_error_and_not_damage(public_path, publish, digest_of):
    with Store(public_path / "cache") as store:
        path = publish(store).path
    if os.geteuid() == 0:
        give_to_nobody(store.root)
    (path / "model.so").chmod(0)
    with unprivileged(), Store(store.root) as again, pytest.raises(StoreError, match="Permission denied"):
        again.read("objects", digest_of("a"))
    assert path.exists()


def test_a_full_disk_fails_the_publish_and_leaves_the_rest(tmp_path, publish, digest_of):
    with mounted("-t", "tmpfs", "-o", "size=2m", "none", str(tmp_path)):
        with Store(tmp_path / "cache") as store:
            kept = publish(store, "kept")
            with store.staging() as folder:
                (folder / "model.so").write_bytes(b"x" * 4096)
                fill(tmp_path / "filler")
                with pytest.raises(StoreError, match=r"can't publish .* No space left"):
                    store.publish("objects", digest_of("lost"), folder, **NOTHING_SAID)
                assert not folder.exists()
            assert not list((store.root / "tmp").iterdir())
            assert isinstance(store.read("objects", digest_of("lost")), Miss)
        with Store(tmp_path / "cache") as store:
            (tmp_path / "rest").write_bytes(b"")
            assert store.read("objects", digest_of("kept")) == Hit(kept)
            assert store.entries(digest_of("request-kept")) == [{"object": digest_of("kept")}]
            store.remember(digest_of("request-kept"), {"object": "x" * 100_000})
            assert len(store.entries(digest_of("request-kept"))) == 2
            (tmp_path / "filler").unlink()
            assert store.read("objects", digest_of("lost")) == Miss(f"no objects/{digest_of('lost')[:12]}")
            assert Hit(publish(store, "lost")) == store.read("objects", digest_of("lost"))


# Read-only


def check_readonly(root, artifact, digest_of):
    with Store(root, readonly=True) as store:
        assert store.read("objects", digest_of("a")) == Hit(artifact)
        assert isinstance(store.read("objects", digest_of("b")), Corrupt)
        assert isinstance(store.read("objects", digest_of("none")), Miss)
        assert store.entries(digest_of("request-a")) == [{"object": digest_of("a")}]
        store.remember(digest_of("request-a"), {"object": "new"})
        store.used("objects", digest_of("a"))
        assert store.noted(f"used/objects/{digest_of('a')}")["count"] == 1
        assert store.rebuild_index() == 2
        for writes in (
            store.staging(),
            store.lock("objects", digest_of("a"), 1),
        ):
            with pytest.raises(StoreError, match="read-only"), writes:
                pass
        with pytest.raises(StoreError, match="read-only"):
            store.quarantine("objects", digest_of("b"), "bad")


@pytest.fixture
def image(public_path, publish):
    """A store with a sound object `a` and a corrupt one `b`; its root, and the artifact of `a`."""
    with Store(public_path / "cache") as store:
        artifact, corrupt = publish(store, "a"), publish(store, "b")
    (corrupt.path / "model.so").chmod(0o600)
    (corrupt.path / "model.so").write_bytes(b"other")
    return store.root, artifact


def test_a_readonly_store_reads_and_changes_nothing(image, digest_of):
    root, artifact = image
    before = picture(root)
    check_readonly(root, artifact, digest_of)
    assert picture(root) == before


def test_a_readonly_store_needs_no_permission_to_write(image, digest_of):
    root, artifact = image
    if os.geteuid() == 0:
        give_to_nobody(root)
    folders = [root, *(path for path in root.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o500)
    try:
        with unprivileged():
            check_readonly(root, artifact, digest_of)
            with pytest.raises(StoreError, match="not writable"):
                Store(root)
    finally:
        for folder in folders:
            folder.chmod(0o700)


def test_a_readonly_mount_is_read_and_refused_for_writing(image, digest_of):
    root, artifact = image
    with mounted("--bind", str(root), str(root)):
        subprocess.run(["mount", "-o", "remount,ro,bind", str(root)], check=True)
        check_readonly(root, artifact, digest_of)
        with pytest.raises(StoreError, match=r"not writable: Read-only file system; set cache\.dir"):
            Store(root)


def test_a_readonly_store_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(StoreError, match=re.escape(str(tmp_path / "none"))):
        Store(tmp_path / "none", readonly=True)
    assert not (tmp_path / "none").exists()


def test_the_store_does_not_import_torch():
    program = "import sys, app.store; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], check=False).returncode == 0
