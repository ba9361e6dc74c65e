"""The size limit: what leaves, what stays, and that nobody sees half of it."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from app import environment
from app.store import Hit, Miss, Store
from app.store.collect import Item, leaving

ITEMS = st.lists(
    st.builds(
        Item,
        st.sampled_from(["objects", "weights", "quarantine"]),
        st.text("abc", min_size=1, max_size=3),
        st.integers(0, 50),
        st.floats(0, 9),
        st.booleans(),
    ),
    max_size=8,
    unique_by=lambda item: item.digest,
)


@given(ITEMS, st.integers(0, 200))
def test_as_little_as_possible_leaves_and_the_rest_is_within_the_limit(items, limit):
    gone = leaving(items, limit)
    kept = [item for item in items if item not in gone]
    size = sum(item.size_bytes for item in kept)
    assert not any(item.pinned for item in gone)
    assert size <= limit or all(item.pinned for item in kept)
    if gone:
        assert size + gone[-1].size_bytes > limit  # the last one had to leave too
    in_use = [item for item in kept if not item.pinned and item.kind != "quarantine"]
    left = [item.last_used for item in gone if item.kind != "quarantine"]
    assert not in_use or not left or max(left) <= min(item.last_used for item in in_use)


def test_publishing_beyond_the_limit_removes_what_was_used_longest_ago(tmp_path, publish, digest_of):
    with Store(tmp_path / "cache") as store:
        for name in "abc":
            publish(store, name, files={"model.so": b"x" * 10_000})
        for name in "bca":
            store.used("objects", digest_of(name))
    with Store(tmp_path / "cache", size_limit=35_000) as store:
        publish(store, "d", files={"model.so": b"x" * 10_000})
        assert isinstance(store.read("objects", digest_of("b")), Miss)
        assert all(isinstance(store.read("objects", digest_of(name)), Hit) for name in "acd")
        assert not list((store.root / "tmp").iterdir())


def test_what_was_just_published_stays_however_small_the_limit(tmp_path, publish, digest_of):
    with Store(tmp_path / "cache", size_limit=1) as store:
        publish(store, "w", kind="weights")
        publish(store, "a")
        assert isinstance(store.read("objects", digest_of("a")), Hit)
        assert isinstance(store.read("weights", digest_of("w")), Hit)
    with Store(tmp_path / "cache", size_limit=1) as store:
        publish(store, "b")
        assert isinstance(store.read("objects", digest_of("a")), Miss)


def test_what_is_pinned_survives_a_lost_index_and_any_limit(tmp_path, publish, digest_of):
    with Store(tmp_path / "cache") as store:
        publish(store, "a")
        store.pin("objects", digest_of("a"))
        store.rebuild_index()
    with Store(tmp_path / "cache", size_limit=1) as store:
        publish(store, "b")
        assert isinstance(store.read("objects", digest_of("a")), Hit)


def test_a_mapped_library_outlives_its_removal(tmp_path, publish, digest_of):
    program = (
        "import mmap, sys\n"
        "with open(sys.argv[1], 'rb') as file:\n"
        "    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)\n"
        "print('mapped', flush=True)\n"
        "sys.stdin.readline()\n"
        "print(mapped[:4].decode(), flush=True)\n"
    )
    with Store(tmp_path / "cache") as store:
        path = publish(store).path / "model.so"
        command = [sys.executable, "-c", program, str(path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "mapped\n"
            store.remove("objects", digest_of("a"))
            assert not path.exists()
            assert process.communicate("\n")[0] == "code\n"


def test_readers_meanwhile_see_all_of_an_object_or_nothing(tmp_path, publish, digest_of):
    done, seen = threading.Event(), set()

    def read():
        with Store(tmp_path / "cache") as own:
            while not done.is_set():
                seen.add(type(own.read("objects", digest_of("a"))).__name__)

    with Store(tmp_path / "cache") as store:
        reader = threading.Thread(target=read)
        reader.start()
        for _ in range(30):
            publish(store)
            store.remove("objects", digest_of("a"))
        done.set()
        reader.join()
        assert seen <= {"Hit", "Miss"}
        assert not list((store.root / "quarantine").iterdir())


def test_on_a_network_file_system_the_index_is_kept_elsewhere_and_that_is_said(
    tmp_path, publish, digest_of, monkeypatch, caplog
):
    monkeypatch.setattr("app.store.filesystem_of", lambda path: "nfs4")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    with caplog.at_level("INFO"), Store(tmp_path / "cache") as store:
        publish(store)
        assert store.entries(digest_of("request-a"))
    assert not (tmp_path / "cache" / "index").exists()
    assert list((tmp_path / "home").rglob("cache.db"))
    assert "is on nfs4" in caplog.text


def test_the_file_system_is_that_of_the_longest_mount_point():
    mounts = "none / ext4 rw 0 0\nhost:/x /data nfs4 rw 0 0\nnone /data/a\\040b tmpfs rw 0 0\n"
    for path, kind in [("/data/x", "nfs4"), ("/database", "ext4"), ("/data/a b/c", "tmpfs"), ("/", "ext4")]:
        assert environment.filesystem_of(Path(path), mounts) == kind
