"""Lookup: a request finds its artifact, or a sentence says why not."""

from __future__ import annotations

import os
import platform
import time

import pytest

from app import dependencies, files, lookup
from app.dependencies import take
from app.keys import Key, digest
from app.lookup import Found, NotFound, find, open_objects, remember
from app.store import Store

FACTORS = {"target": {"machine": platform.machine(), "flags": []}}
REQUEST = Key({"toolchain": {"torch": "2.13.0"}, "mode": {"inductor": {"freezing": True}}})


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "cache") as opened:
        yield opened


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "model.py"
    path.write_text("WIDTH = 4\n")
    return path


def publish(store, name, kind="objects", data=b"code"):
    with store.staging() as folder:
        (folder / "model.so").write_bytes(data)
        return store.publish(
            kind, digest(name), folder, factors=FACTORS, content={}, verified={}, provenance={}, requests=[]
        )


def entry(name, *paths, weights=None):
    files = [take("file", str(path), path).to_json() for path in paths]
    return {"object": digest(name), "weights": weights and digest(weights), "dependencies": files}


def test_an_unchanged_request_hits(store, source):
    artifact = publish(store, "a")
    remember(store, REQUEST, entry("a", source), "shop")
    found = find(store, REQUEST, {})
    assert found == Found("direct-hit", artifact, None)
    assert found.size_bytes == 4


def test_external_weights_come_with_the_artifact(store, source):
    artifact, weights = publish(store, "a"), publish(store, "w", "weights", b"numbers")
    remember(store, REQUEST, entry("a", source, weights="w"), "shop")
    found = find(store, REQUEST, {})
    assert found == Found("direct-hit", artifact, weights)
    assert found.size_bytes == 4 + 7


def test_a_young_file_is_read_again_only_until_it_has_settled(store, source, monkeypatch):
    publish(store, "a")
    remember(store, REQUEST, entry("a", source), "shop")
    assert store.entries(REQUEST.digest)[0]["dependencies"][0][3] == []
    assert isinstance(find(store, REQUEST, {}), Found)
    monkeypatch.setattr(files, "SETTLED_NS", -(10**18))
    assert isinstance(find(store, REQUEST, {}), Found)
    monkeypatch.setattr(dependencies, "sha256_of", None)
    assert isinstance(find(store, REQUEST, {}), Found)
    os.utime(source, ns=(0, 0))
    with pytest.raises(TypeError):  # now it would be read
        dependencies.changed(store.entries(REQUEST.digest)[0]["dependencies"], {})


def test_the_entry_survives_a_rebuilt_index(store, source):
    with store.staging() as folder:
        (folder / "model.so").write_bytes(b"code")
        artifact = store.publish(
            "objects", digest("a"), folder, factors=FACTORS, content={}, verified={}, provenance={},
            requests=[{"request": REQUEST.digest, "entry": entry("a", source)}],
        )  # fmt: skip
    store.rebuild_index()
    assert find(store, REQUEST, {}) == Found("direct-hit", artifact, None)


def test_a_changed_dependency_is_the_reason_of_the_miss(store, source):
    publish(store, "a")
    remember(store, REQUEST, entry("a", source), "shop")
    source.write_text("WIDTH = 5\n")
    assert find(store, REQUEST, {}) == NotFound([f"{source} changed"])


def test_any_recorded_set_of_files_that_matches_will_do(store, source):
    old, new = publish(store, "old"), publish(store, "new")
    remember(store, REQUEST, entry("old", source), "shop")
    text = source.read_text()
    source.write_text("WIDTH = 5\n")
    remember(store, REQUEST, entry("new", source), "shop")
    assert find(store, REQUEST, {}).artifact == new
    source.write_text(text)
    assert find(store, REQUEST, {}).artifact == old
    source.write_text("WIDTH = 6\n")
    # one reason, however many sets fail for it
    assert find(store, REQUEST, {}) == NotFound([f"{source} changed"])


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"dependencies": None},
        {"dependencies": [["file", "x"]], "object": "o", "weights": None},
        {"dependencies": [5], "object": "o", "weights": None},
        {"dependencies": [["module", 5, "x", []]], "object": "o", "weights": None},
        {"dependencies": [["file", "a\0b", "x", []]], "object": "o", "weights": None},
        {"dependencies": []},
        {"dependencies": [], "object": digest("a")},
    ],
    ids=str,
)
def test_a_malformed_entry_is_a_miss_and_does_not_hide_the_others(store, source, broken):
    artifact = publish(store, "a")
    store.remember(REQUEST.digest, broken)
    assert find(store, REQUEST, {}) == NotFound(["an entry of the index is malformed"])
    remember(store, REQUEST, entry("a", source), "shop")
    store.remember(REQUEST.digest, broken)
    assert find(store, REQUEST, {}) == Found("direct-hit", artifact, None)


@pytest.mark.parametrize("name", ["../../etc", 5, "abc"])
def test_an_entry_that_names_no_digest_is_a_miss(store, source, name):
    store.remember(REQUEST.digest, {**entry("a", source), "object": name})
    found = find(store, REQUEST, {})
    assert isinstance(found, NotFound)
    assert "gone" in found.reasons[0]
    assert "not a digest" in found.reasons[0]


def test_an_object_that_is_gone_is_said(store, source):
    remember(store, REQUEST, entry("a", source), "shop")
    found = find(store, REQUEST, {})
    assert found.reasons == [f"the artifact is gone: no objects/{digest('a')[:12]}"]


def test_weights_that_are_gone_are_said(store, source):
    publish(store, "a")
    remember(store, REQUEST, entry("a", source, weights="w"), "shop")
    assert find(store, REQUEST, {}).reasons == [f"the artifact is gone: no weights/{digest('w')[:12]}"]


@pytest.mark.parametrize("kind", ["objects", "weights"])
def test_a_damaged_object_is_a_miss_and_is_quarantined(store, source, kind):
    publish(store, "a")
    publish(store, "w", "weights")
    remember(store, REQUEST, entry("a", source, weights="w"), "shop")
    name = {"objects": "a", "weights": "w"}[kind]
    path = store.root / kind / digest(name)[:2] / digest(name) / "model.so"
    path.chmod(0o600)
    path.write_bytes(b"cod3")
    (reason,) = find(store, REQUEST, {}).reasons
    assert "damaged and is quarantined" in reason
    assert "model.so" in reason
    assert not path.exists()
    assert [cell.name for cell in (store.root / "quarantine").iterdir()] == [f"{digest(name)}-0"]
    assert "gone" in find(store, REQUEST, {}).reasons[0]


def test_open_objects_says_how_it_was_found(store):
    artifact = publish(store, "a")
    assert open_objects(store, artifact.digest, None, "graph-hit") == Found("graph-hit", artifact, None)


# Explanations


def test_an_empty_cache_says_so(store):
    assert find(store, REQUEST, {}) == NotFound(["the cache is empty"])


def test_a_miss_names_what_differs_from_the_nearest_request(store, source):
    far = Key({"toolchain": {"torch": "2.11.0"}, "mode": {"inductor": {"freezing": False}}})
    near = Key({"toolchain": {"torch": "2.12.0"}, "mode": {"inductor": {"freezing": True}}})
    remember(store, near, entry("near", source), "near-model")
    remember(store, far, entry("far", source), "far-model")
    assert find(store, REQUEST, {}) == NotFound(["toolchain.torch 2.12.0 -> 2.13.0 (nearest: near-model, just now)"])


def test_every_factor_that_differs_is_named(store, source):
    far = Key({"toolchain": {"torch": "2.11.0"}, "mode": {"inductor": {"freezing": False}}})
    remember(store, far, entry("far", source), "far")
    assert find(store, REQUEST, {}).reasons == [
        "mode.inductor.freezing false -> true",
        "toolchain.torch 2.11.0 -> 2.13.0 (nearest: far, just now)",
    ]


def test_a_request_that_was_seen_but_whose_entry_is_lost_says_so(store, source):
    remember(store, Key({**REQUEST.factors, "x": 1}), entry("a", source), "shop")
    store.remember(lookup._RECENT, {"model": "shop", "factors": dict(REQUEST.factors)})
    assert find(store, REQUEST, {}) == NotFound(["its entry was dropped (nearest: shop)"])


def test_the_nearest_request_has_an_age(store):
    factors = {**REQUEST.factors, "x": 1}
    store.remember(lookup._RECENT, {"model": "shop", "factors": factors, "at": time.time() - 2.1 * 3600})
    assert find(store, REQUEST, {}).reasons == ["x 1 -> nothing (nearest: shop, 2 h ago)"]


def test_another_model_is_named_and_its_many_differences_only_counted(store, source):
    other = Key({"model": {"target": "m:other", **{f"field{n}": n for n in range(9)}}})
    remember(store, other, entry("other", source), "other")
    request = Key({"model": {"target": "m:mine", **{f"field{n}": -n for n in range(9)}}})
    (reason,) = find(store, request, {}).reasons
    assert reason == "model.target m:other -> m:mine, and 8 more (nearest: other, just now)"


@pytest.mark.parametrize(
    ("target", "told"),
    [({"machine": "riscv64"}, "it is for riscv64"), ({"flags": ["avx1024"]}, "this processor lacks avx1024")],
)
def test_machine_code_that_this_processor_lacks_is_a_miss_with_the_reason(store, source, target, told):
    with store.staging() as folder:
        (folder / "model.so").write_bytes(b"code")
        store.publish(
            "objects", digest("a"), folder, factors={"target": {**FACTORS["target"], **target}}, content={}, verified={},
            provenance={}, requests=[],
        )  # fmt: skip
    remember(store, REQUEST, entry("a", source), "shop")
    (reason,) = find(store, REQUEST, {}).reasons
    assert reason.startswith("the artifact can't run here: ")
    assert told in reason


@pytest.mark.parametrize("broken", [{}, {"factors": 5, "model": "x"}, {"model": "x"}], ids=str)
def test_a_malformed_recent_request_does_not_end_the_run(store, broken):
    store.remember(lookup._RECENT, broken)
    found = find(store, REQUEST, {})
    assert isinstance(found, NotFound)
    assert found.reasons
