"""A file that was hashed once is not read again until its stat tuple says that it may have changed."""

from __future__ import annotations

import os

import pytest

from app import files
from app.store import Corrupt, Hit, Store, objects


@pytest.fixture
def hashed(monkeypatch):
    """The names of the files that are hashed, from now on."""
    names = []
    original = objects._fingerprint

    def counting(path, **options):
        names.append(path.name)
        return original(path, **options)

    monkeypatch.setattr(objects, "_fingerprint", counting)
    return names


@pytest.fixture
def settled(monkeypatch):
    """Every file counts as old enough."""
    monkeypatch.setattr(files, "SETTLED_NS", -(10**18))


def test_unchanged_file_is_hashed_once(store, publish, hashed, settled):
    artifact = publish(store)
    assert isinstance(store.read("objects", artifact.digest), Hit)
    hashed.clear()
    assert isinstance(store.read("objects", artifact.digest), Hit)
    assert hashed == []


def test_young_file_is_hashed_each_time(store, publish, hashed):
    artifact = publish(store)
    store.read("objects", artifact.digest)
    hashed.clear()
    assert isinstance(store.read("objects", artifact.digest), Hit)
    assert sorted(hashed) == ["constants.bin", "model.so"]


def test_change_that_keeps_size_and_mtime_is_noticed(store, publish, settled):
    artifact = publish(store)
    store.read("objects", artifact.digest)
    path = artifact.file("model.so")
    before = path.stat()
    path.chmod(0o600)
    path.write_bytes(b"cOde")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert isinstance(store.read("objects", artifact.digest), Corrupt)


def test_file_replaced_by_a_symlink_to_itself_is_noticed(store, publish, settled, tmp_path):
    artifact = publish(store)
    store.read("objects", artifact.digest)
    path = artifact.file("model.so")
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert isinstance(store.read("objects", artifact.digest), Corrupt)


def test_malformed_memory_is_ignored(store, publish, hashed, settled):
    artifact = publish(store)
    store.note(f"hashed/objects/{artifact.digest}", ["nonsense"])
    hashed.clear()
    assert isinstance(store.read("objects", artifact.digest), Hit)
    assert "model.so" in hashed


def test_read_only_store_reads_without_remembering(store, publish, hashed, settled):
    artifact = publish(store)
    with Store(store.root, readonly=True) as reader:
        reader.read("objects", artifact.digest)
        hashed.clear()
        assert isinstance(reader.read("objects", artifact.digest), Hit)
    assert "model.so" in hashed
