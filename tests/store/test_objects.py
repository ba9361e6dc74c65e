"""Objects come back byte for byte, or as Corrupt with the reason, and are healed by the next publish."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import StoreError
from app.store import Corrupt, FileInfo, Hit, Manifest, Miss
from app.store.objects import _with_checksum

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
OBJECT = st.dictionaries(st.text(), JSON, max_size=3)
DIGEST = st.text("0123456789abcdef", min_size=64, max_size=64)
NAME = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1).filter(
    lambda name: name not in {".", "..", "manifest.json"}
)
MANIFEST = st.builds(
    Manifest,
    kind=st.sampled_from(["objects", "weights"]),
    digest=DIGEST,
    factors=OBJECT,
    files=st.dictionaries(NAME, st.builds(FileInfo, DIGEST, st.integers(0)), max_size=3),
    content=OBJECT,
    verified=OBJECT,
    provenance=OBJECT,
    requests=st.lists(st.fixed_dictionaries({"request": DIGEST, "entry": OBJECT}), max_size=2),
)


def rewrite(path, data):
    path.chmod(0o600)
    path.write_bytes(data)


def flip_a_byte(path):
    data = bytearray((path / "model.so").read_bytes())
    data[1] ^= 1
    rewrite(path / "model.so", data)


def swap_files(path):
    (path / "model.so").rename(path / "other")
    (path / "extra/constants.bin").rename(path / "model.so")
    (path / "other").rename(path / "extra/constants.bin")


def replace_by_symlink(path, name="model.so"):
    (path / name).rename(path.parent / "elsewhere")
    (path / name).symlink_to(path.parent / "elsewhere")


def replace_by_pipe(path):
    (path / "model.so").unlink()
    os.mkfifo(path / "model.so")


def replace_all_by_symlink(path):
    path.rename(path.parent / "elsewhere")
    path.symlink_to(path.parent / "elsewhere")


def replace_all_by_file(path):
    path.rename(path.parent / "elsewhere")
    path.write_bytes(b"")


def edit_manifest(changes):
    """As somebody would who knows the format: the checksum is right again afterwards."""

    def edit(path):
        body = {**json.loads((path / "manifest.json").read_bytes()), **changes}
        del body["checksum"]
        rewrite(path / "manifest.json", _with_checksum(body).encode())

    return edit


NOTHING_SAID = {"factors": {}, "content": {}, "verified": {}, "provenance": {}, "requests": []}
NOTHING = {"sha256": hashlib.sha256().hexdigest(), "size_bytes": 0}
DAMAGES = {
    "flipped byte": (flip_a_byte, "model.so"),
    "truncated": (lambda path: rewrite(path / "model.so", b"cod"), "3 bytes"),
    "emptied": (lambda path: rewrite(path / "model.so", b""), "0 bytes"),
    "deleted": (lambda path: (path / "model.so").unlink(), "No such file"),
    "extra": (lambda path: (path / "extra/new.so").write_bytes(b"x"), "not in its manifest"),
    "swapped": (swap_files, "extra/constants.bin"),
    "symlink": (replace_by_symlink, "symbolic link"),
    "symlink to a directory": (lambda path: replace_by_symlink(path, "extra"), "not in its manifest"),
    "pipe": (replace_by_pipe, "not a regular file"),
    "all a symlink": (replace_all_by_symlink, "symlink"),
    "all a file": (replace_all_by_file, "Not a directory"),
    "manifest deleted": (lambda path: (path / "manifest.json").unlink(), "No such file"),
    "manifest emptied": (lambda path: rewrite(path / "manifest.json", b""), "manifest.json"),
    "manifest garbage": (lambda path: rewrite(path / "manifest.json", b"\xff\0garbage"), "manifest.json"),
    "manifest deep": (lambda path: rewrite(path / "manifest.json", b"[" * 100_000), "manifest.json"),
    "manifest of another schema": (edit_manifest({"schema": 2}), "schema"),
    "manifest of another object": (edit_manifest({"digest": "0" * 64}), "0" * 64),
    "manifest names a parent": (edit_manifest({"files": {"../../x": NOTHING}}), "unsafe path"),
    "manifest names an absolute path": (edit_manifest({"files": {"/etc/passwd": NOTHING}}), "unsafe path"),
}


def test_what_is_published_is_read_and_only_by_its_owner(store, publish, digest_of):
    published = publish(store)
    found = store.read("objects", digest_of("a"))
    assert found == Hit(published)
    assert published.file("model.so").read_bytes() == b"code"
    assert published.size_bytes == len(b"code" + b"numbers")
    assert published.manifest.content == {"inputs": [1, None, "x"]}
    assert published.path == store.root / "objects" / digest_of("a")[:2] / digest_of("a")
    assert not list((store.root / "tmp").iterdir())
    modes = {stat.S_IMODE(path.stat().st_mode) for path in published.path.rglob("*") if path.is_file()}
    assert modes == {0o400}
    assert stat.S_IMODE(store.root.stat().st_mode) == 0o700


def test_kinds_are_apart(store, publish, digest_of):
    publish(store, kind="weights", files={"weights.safetensors": b"w"})
    assert isinstance(store.read("weights", digest_of("a")), Hit)
    assert isinstance(store.read("objects", digest_of("a")), Miss)


def test_what_is_not_there_is_a_miss_and_what_is_no_digest_too(store, digest_of):
    assert store.read("objects", digest_of("never")) == Miss(f"no objects/{digest_of('never')[:12]}")
    assert store.read("objects", "../../etc") == Miss("'../../etc' is not a digest")
    with pytest.raises(ValueError, match="objects, weights"):
        store.read("things", digest_of("a"))


def test_a_file_that_is_not_part_of_the_artifact_is_refused(store, publish):
    with pytest.raises(ValueError, match=r"no file 'other'.*model\.so"):
        publish(store).file("other")


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_corrupt_quarantined_with_its_reason_and_healed(store, publish, digest_of, damage):
    inflict, reason = DAMAGES[damage]
    artifact = publish(store)
    inflict(artifact.path)
    found = store.read("objects", digest_of("a"))
    assert isinstance(found, Corrupt)
    assert reason in found.reason
    assert found.reason in (store.root / "quarantine" / f"{digest_of('a')}-0" / "reason.txt").read_text()
    assert isinstance(store.read("objects", digest_of("a")), Miss)
    healed = publish(store)
    assert store.read("objects", digest_of("a")) == Hit(healed)


def test_publishing_keeps_what_reads_well(store, publish):
    first = publish(store)
    inode = first.path.stat().st_ino
    second = publish(store, files={"model.so": b"compiled again, a little different"})
    assert second == first
    assert first.path.stat().st_ino == inode
    assert first.file("model.so").read_bytes() == b"code"
    assert not list((store.root / "quarantine").iterdir())


def test_publishing_replaces_what_reads_badly_and_numbers_the_quarantine(store, publish, digest_of):
    for _ in range(2):
        flip_a_byte(publish(store).path)
    artifact = publish(store)
    assert store.read("objects", digest_of("a")) == Hit(artifact)
    assert {path.name for path in (store.root / "quarantine").iterdir()} == {
        f"{digest_of('a')}-0",
        f"{digest_of('a')}-1",
    }


def test_a_sound_object_can_be_quarantined_for_what_it_did(store, publish, digest_of):
    publish(store)
    store.quarantine("objects", digest_of("a"), "it crashed")
    store.quarantine("objects", digest_of("a"), "again")
    assert isinstance(store.read("objects", digest_of("a")), Miss)
    (cell,) = (store.root / "quarantine").iterdir()
    assert "it crashed" in (cell / "reason.txt").read_text()
    assert (cell / "object" / "model.so").read_bytes() == b"code"


@pytest.mark.parametrize("plant", ["symlink", "manifest", "pipe"])
def test_what_may_not_be_in_an_object_is_not_published(store, digest_of, plant):
    with store.staging() as folder:
        if plant == "symlink":
            (folder / "model.so").symlink_to("/etc/passwd")
        elif plant == "pipe":
            os.mkfifo(folder / "model.so")
        else:
            (folder / "manifest.json").write_text("{}")
        with pytest.raises((StoreError, ValueError)):
            store.publish("objects", digest_of("a"), folder, **NOTHING_SAID)
        assert not folder.exists()
    assert isinstance(store.read("objects", digest_of("a")), Miss)


@given(MANIFEST)
def test_a_manifest_survives_its_text(manifest):
    assert Manifest.from_json(manifest.to_json()) == manifest


@given(st.binary() | st.text() | JSON.map(json.dumps))
def test_any_other_text_is_refused_by_value_error(text):
    with pytest.raises(ValueError):  # noqa: PT011 - whatever the text, whatever the words
        Manifest.from_json(text)


@given(MANIFEST, st.data())
def test_no_changed_byte_makes_another_manifest(manifest, data):
    text = bytearray(manifest.to_json().encode())
    position = data.draw(st.integers(0, len(text) - 1))
    text[position] ^= data.draw(st.integers(1, 255))
    with suppress(ValueError):
        assert Manifest.from_json(bytes(text)) == manifest


@given(
    MANIFEST,
    st.sampled_from(["..", ".", "", "/", "a/../b", "a//b", "./a", "a/", "/a", "..\0", "manifest.json"]),
)
def test_unsafe_paths_are_refused(manifest, name):
    with pytest.raises(ValueError, match="unsafe path"):
        Manifest(**{**vars(manifest), "files": {name: FileInfo("0" * 64, 0)}})


def test_objects_that_are_not_json_are_refused_before_anything_is_published(store, digest_of):
    with store.staging() as folder, pytest.raises(TypeError):
        store.publish("objects", digest_of("a"), folder, **{**NOTHING_SAID, "factors": {"path": store.root}})
    assert isinstance(store.read("objects", digest_of("a")), Miss)
