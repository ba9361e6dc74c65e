"""Settings from overrides, without a command line and without touching anybody's Hydra."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import hydra
import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra

from app import composed
from app.composed import conf_dir, settings_of
from app.errors import ConfigError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "aot-app" / "composed"


def test_overrides_mean_what_they_mean_on_the_command_line():
    settings = settings_of(["model=linear", "mode=max-autotune", "graphs.batch_sizes=[1,3]"])
    assert (settings.model.name, settings.mode.name, settings.graphs.batch_sizes) == (
        "linear",
        "max-autotune",
        [1, 3],
    )


def test_what_was_composed_once_is_not_composed_again(home, monkeypatch):
    first = settings_of(["model=linear"])
    assert len(list(home.iterdir())) == 1
    monkeypatch.setattr("app.compose.compose", None)
    assert settings_of(["model=linear"]) == first


def test_a_known_request_imports_no_hydra(home):
    program = (
        "import sys; from app.composed import settings_of; settings_of(['model=linear']); "
        "print([name for name in ('hydra', 'omegaconf', 'torch') if name in sys.modules])"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    said = [
        subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert said[1].strip() == "[]"


def test_another_override_a_changed_file_or_an_interpolation_is_composed(home, tmp_path):
    (tmp_path / "mine" / "model").mkdir(parents=True)
    path = tmp_path / "mine" / "model" / "wide.yaml"
    path.write_text("name: wide\ntarget: .workloads.reference:linear\ninputs: [{name: x, shape: [batch, 768]}]\n")
    assert settings_of(["model=wide"], tmp_path / "mine").model.name == "wide"
    path.write_text(path.read_text().replace("name: wide", "name: wider"))
    assert settings_of(["model=wide"], tmp_path / "mine").model.name == "wider"
    before = len(list(home.iterdir()))
    settings_of(["model=linear", "model.name=${mode.name}"])
    assert len(list(home.iterdir())) == before


@pytest.mark.parametrize("text", ["", "[]", "{", json.dumps({"model": 3})])
def test_a_damaged_file_is_composed_again(home, text):
    first = settings_of(["model=linear"])
    (path,) = home.iterdir()
    path.write_text(text)
    assert settings_of(["model=linear"]) == first


def test_a_file_that_others_can_write_is_not_read(home):
    settings_of(["model=linear"])
    (path,) = home.iterdir()
    path.write_text(path.read_text().replace('"linear"', '"evil"'))
    path.chmod(0o666)
    assert settings_of(["model=linear"]).model.name == "linear"


def test_a_home_that_can_not_be_written_costs_time_only(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert settings_of(["model=linear"]).model.name == "linear"


@pytest.mark.parametrize("overrides", [["model=nope"], ["no_such=1"], ["graphs.batch_sizes=[0]"], ["=="]])
def test_what_does_not_compose_is_a_config_error(overrides):
    with pytest.raises(ConfigError):
        settings_of(overrides)


def test_somebody_elses_hydra_is_left_as_it_was(tmp_path):
    (tmp_path / "theirs.yaml").write_text("a: 1\n")
    ConfigStore.instance().store(name="settings", node={"theirs": True})
    try:
        with hydra.initialize_config_dir(str(tmp_path), version_base="1.3"):
            before = GlobalHydra.instance().hydra
            assert settings_of(["model=linear", "mode=eager"]).mode.name == "eager"
            assert GlobalHydra.instance().hydra is before
            assert hydra.compose("theirs").a == 1
        assert ConfigStore.instance().load("settings.yaml").node.theirs is True
    finally:
        del ConfigStore.instance().repo["settings.yaml"]


def test_every_variable_that_conf_reads_is_part_of_what_is_kept():
    read = {
        name
        for path in conf_dir().rglob("*.yaml")
        for name in re.findall(r"oc\.env:(\w+)", path.read_text(encoding="utf-8"))
    }
    assert read <= set(composed.ENVIRONMENT)
