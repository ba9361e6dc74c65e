"""Aliases: a service loads a model by name; what it stands for is checked like any other request."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from app import alias, names
from app.config import CacheConfig
from app.errors import ConfigError, MissError
from app.store import Store, Trust
from app.store.trust import create_key

NO_COMPILER = {"CXX": "/nonexistent"}


@pytest.fixture
def named(run_app, hit_args, store_dir):
    """The session's linear model under a name."""
    run = run_app([*hit_args("linear"), "cache.alias=scorer", "task=compile"], env=NO_COMPILER)
    assert run.code == 0, run.stderr
    return CacheConfig(dir=str(store_dir))


def test_a_named_model_answers_as_eager_does_and_nothing_is_composed(named, loaded, assert_same, monkeypatch):
    import torch

    monkeypatch.setattr("hydra.compose", None)
    model = alias.load("scorer", named)
    value = torch.randn(3, 768)
    with torch.inference_mode():
        assert_same(model(value), loaded("linear").eager(value))


def test_an_unknown_name_lists_the_known_ones(named):
    with pytest.raises(ConfigError, match=r"no alias 'ranker'.*scorer"):
        alias.load("ranker", named)


def test_a_name_whose_artifact_is_gone_is_a_miss_and_compiles_nothing(named, copied_store):
    root = copied_store("linear")
    with Store(root) as store, Store(Path(named.dir)) as first:
        store.write_document("aliases", "scorer", first.documents("aliases")["scorer"])
        (manifest,) = store.manifests()
        store.remove("objects", manifest.digest)
    with pytest.raises(MissError, match="it is a miss"):
        alias.load("scorer", CacheConfig(dir=str(root)))


@pytest.mark.parametrize("text", ["", "{}", "[]", json.dumps({"content": "{}", "signatures": {}})])
def test_a_damaged_alias_is_a_config_error(tmp_path, text):
    with Store(tmp_path / "store") as store:
        (store.root / "aliases" / "scorer.json").write_text(text)
    with pytest.raises(ConfigError, match="the alias 'scorer'"):
        alias.load("scorer", CacheConfig(dir=str(tmp_path / "store")))


def test_an_alias_that_a_stranger_wrote_is_refused(compose_settings, tmp_path):
    create_key(tmp_path / "stranger.pem")
    trusted = create_key(tmp_path / "ours.pem")
    with Store(tmp_path / "store", trust=Trust("signed", (), tmp_path / "stranger.pem")) as store:
        names.save(store, "scorer", compose_settings(["model=linear"]))
    cache = CacheConfig(dir=str(tmp_path / "store"), trust="signed", keys=[trusted])
    with pytest.raises(ConfigError, match=r"not among cache\.keys"):
        alias.load("scorer", cache)
    with Store(tmp_path / "store", trust=Trust("signed", (), tmp_path / "ours.pem")) as store:
        names.save(store, "scorer", compose_settings(["model=linear"]))
    with pytest.raises(MissError):
        alias.load("scorer", cache)


@pytest.fixture
def missing(named, fresh_store):
    """A store that knows the alias, and hasn't its artifact."""
    with Store(fresh_store) as store, Store(Path(named.dir)) as first:
        store.write_document("aliases", "scorer", first.documents("aliases")["scorer"])
    return fresh_store


def test_a_miss_is_served_by_eager_and_by_the_artifact_once_another_process_has_made_it(missing, loaded, assert_same):
    import torch

    model = alias.load("scorer", CacheConfig(dir=str(missing), on_miss="background"))
    value = torch.randn(3, 768)
    with torch.inference_mode():
        assert_same(model(value), loaded("linear").eager(value))
        assert model.stats()["calls"] == {"eager": 1}
        deadline = time.monotonic() + 240
        while "compiled" not in model.stats()["calls"]:
            assert time.monotonic() < deadline
            time.sleep(0.2)
            assert_same(model(value), loaded("linear").eager(value))


def test_a_miss_is_served_by_eager_alone_where_that_is_asked(missing, loaded, assert_same):
    import torch

    model = alias.load("scorer", CacheConfig(dir=str(missing), on_miss="eager"))
    value = torch.randn(3, 768)
    with torch.inference_mode():
        assert_same(model(value), loaded("linear").eager(value))
    assert model.stats()["calls"] == {"eager": 1}
