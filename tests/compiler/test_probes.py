"""What Inductor found out about compiler and processor is used again whole, or not at all."""

from __future__ import annotations

import os
import shutil

import pytest

from app.compiler import _copy_probes, _keep_probes


@pytest.fixture
def kept(tmp_path):
    """A folder of probes that a worker left."""
    (tmp_path / "worker" / "24").mkdir(parents=True)
    (tmp_path / "worker" / "24" / "avx.so").write_bytes(b"probe")
    (tmp_path / "worker" / "24" / "avx.cpp").write_bytes(b"text")
    _keep_probes(tmp_path / "scratch", "gcc", tmp_path / "worker")
    (folder,) = (tmp_path / "scratch").iterdir()
    return folder


def replace_by_a_pipe(path):
    path.unlink()
    os.mkfifo(path)


DAMAGES = {
    "flipped": lambda path: path.write_bytes(b"Probe"),
    "emptied": lambda path: path.write_bytes(b""),
    "deleted": lambda path: path.unlink(),
    "swapped": lambda path: path.with_suffix(".cpp").replace(path),
    "a pipe": replace_by_a_pipe,
}


def test_probes_are_copied_whole(kept, tmp_path):
    assert _copy_probes(kept.parent, "gcc", tmp_path / "next")
    assert (tmp_path / "next" / "24" / "avx.so").read_bytes() == b"probe"
    assert kept.exists()


def test_probes_of_another_compiler_are_not_taken(kept, tmp_path):
    assert not _copy_probes(kept.parent, "clang", tmp_path / "next")
    assert not (tmp_path / "next").exists()


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_probes_are_thrown_away_and_made_again(kept, tmp_path, caplog, damage):
    DAMAGES[damage](kept / "24" / "avx.so")
    assert not _copy_probes(kept.parent, "gcc", tmp_path / "next")
    assert f"{kept} is damaged" in caplog.text
    assert not kept.exists()
    assert not (tmp_path / "next").exists()


def test_a_copy_that_fails_leaves_nothing_of_it_and_keeps_the_probes(kept, tmp_path, caplog, monkeypatch):
    def full_disk(source, target):
        target.mkdir()
        raise shutil.Error(["No space left on device"])

    monkeypatch.setattr(shutil, "copytree", full_disk)
    assert not _copy_probes(kept.parent, "gcc", tmp_path / "next")
    assert "can't copy" in caplog.text
    assert kept.exists()
    assert not (tmp_path / "next").exists()
