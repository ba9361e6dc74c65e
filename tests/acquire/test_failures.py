"""A failure costs once: it is kept under its key, and forgotten when the key, a file or the bar changes, or on request."""

from __future__ import annotations

from dataclasses import replace

import pytest

from app import failures
from app.config import InputConfig, ModeConfig, ModelConfig, Settings
from app.dependencies import take
from app.errors import CompileError, ExportError, VerifyError
from app.keys import Key
from app.store import Store

X = InputConfig(name="x", shape=["batch", 4])
REQUEST = Key({"toolchain": {"torch": "2.13.0"}})


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "cache") as opened:
        yield opened


@pytest.fixture
def settings():
    return Settings(model=ModelConfig(name="shop", target="shop:Model", inputs=[X]), mode=ModeConfig())


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "model.py"
    path.write_text("WIDTH = 4\n")
    return path


def failed(source, kind=ExportError, message="a branch on data"):
    error = kind(message)
    error.dependencies = [take("file", str(source), source).to_json()]
    return error


@pytest.mark.parametrize("kind", [ExportError, CompileError, VerifyError])
def test_the_same_request_meets_the_same_failure(store, settings, source, kind):
    failures.keep(store, REQUEST, settings, failed(source, kind))
    error, why = failures.find(store, REQUEST, settings, {})
    assert (type(error), error.message) == (kind, "a branch on data")
    assert why == f"it failed before, just now, at {kind.stage}; cache.retry=true tries again"


def test_nothing_is_known_of_another_request_or_without_a_failure(store, settings, source):
    assert failures.find(store, REQUEST, settings, {}) is None
    failures.keep(store, REQUEST, settings, failed(source))
    assert failures.find(store, Key({"toolchain": {"torch": "2.14.0"}}), settings, {}) is None


def test_a_changed_file_may_have_mended_it(store, settings, source):
    failures.keep(store, REQUEST, settings, failed(source))
    source.write_text("WIDTH = 5\n")
    assert failures.find(store, REQUEST, settings, {}) is None


def test_what_may_be_the_machines_own_is_not_kept(store, settings):
    failures.keep(store, REQUEST, settings, CompileError("stopped after compile.timeout_s=1"))
    assert failures.find(store, REQUEST, settings, {}) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda s: replace(s, verify=replace(s.verify, multiple=9.0)),
        lambda s: replace(s, verify=replace(s.verify, side_effects="allow")),
        lambda s: replace(s, precision=replace(s.precision, floor=0.5)),
        lambda s: replace(s, graphs=replace(s.graphs, batch_sizes=[2])),
        lambda s: replace(s, fallback=replace(s.fallback, on_export="raise")),
        lambda s: replace(s, cache=replace(s.cache, trust="none")),
        lambda s: replace(s, cache=replace(s.cache, retry=True)),
    ],
    ids=["tolerance", "side-effects", "floor", "sizes", "policy", "trust", "retry"],
)
def test_another_bar_or_a_request_to_retry_tries_again(store, settings, source, change):
    failures.keep(store, REQUEST, settings, failed(source))
    assert failures.find(store, REQUEST, change(settings), {}) is None
    assert failures.find(store, REQUEST, settings, {}) is not None


def test_clearing_forgets_those_of_a_model_or_all(store, settings, source):
    other = Key({"toolchain": {"torch": "2.14.0"}})
    failures.keep(store, REQUEST, settings, failed(source))
    failures.keep(
        store,
        other,
        replace(settings, model=ModelConfig(name="else", target="shop:Model", inputs=[X])),
        failed(source),
    )
    assert failures.forget(store, ["shop"]) == [{"kind": "failures", "digest": REQUEST.digest, "model": "shop"}]
    assert failures.find(store, REQUEST, settings, {}) is None
    assert [row["digest"] for row in failures.forget(store, [])] == [other.digest]
    assert failures.forget(store, []) == []


def test_the_oldest_are_forgotten_beyond_a_number(store, settings, source, monkeypatch):
    monkeypatch.setattr(failures, "MOST", 3)
    requests = [Key({"number": number}) for number in range(5)]
    for request in requests:
        failures.keep(store, request, settings, failed(source))
    assert [failures.find(store, each, settings, {}) is not None for each in requests] == [False] * 2 + [True] * 3


@pytest.mark.parametrize("damage", [5, {"x": 3}, {REQUEST.digest: {"type": "ExportError"}}, {REQUEST.digest: None}])
def test_a_damaged_note_says_nothing(store, settings, damage):
    store.note(failures.NOTE, damage)
    assert failures.find(store, REQUEST, settings, {}) is None
    assert failures.forget(store, []) == []
