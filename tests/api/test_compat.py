"""Code written against the older API runs as it is: its names, its arguments, its return values; and never raises."""

from __future__ import annotations

import inspect
import logging
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import app
from app import compat
from tests.runtime.simulator import Simulator


def classifier(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 3)).eval()


EXAMPLE = torch.randn(4, 16)


class Branches(nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x - 1


@pytest.fixture(scope="module")
def cache_dir(compiled, store_dir):
    compiled("linear")
    return store_dir


@pytest.fixture(scope="module")
def first(cache_dir):
    compiler = app.AOTModelCompiler(cache_dir=str(cache_dir))
    return compiler, compiler.compile_model_aot(classifier(), EXAMPLE, SimpleNamespace(model_name="clf"))


# The names, as they were


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("AOTModelCompiler", {"cache_dir": "model_cache/compiled", "enable_aot": True, "max_compilation_time": 600}),
        (
            "IntegratedAOTCompiler",
            {
                "cache_dir": "model_cache/compiled",
                "enable_aot": True,
                "max_compilation_time": 600,
                "enable_cuda_graphs": True,
                "batch_sizes": None,
            },
        ),
        ("EnhancedAOTModelCompiler", {"base_compiler": None, "graph_config": None}),
        ("create_enhanced_compiler", {"base_compiler": None, "enable_cuda_graphs": True, "batch_sizes": None}),
        ("CudaGraphConfig", {"enabled": True, "batch_sizes": None, "warmup_steps": 3, "max_graphs": 10}),
        ("get_aot_info", {}),
        ("is_aot_available", {}),
        ("get_optimization_summary", {}),
    ],
)
def test_names_and_defaults_are_those_of_the_older_api(name, parameters):
    found = inspect.signature(getattr(app, name)).parameters.values()
    assert {item.name: item.default for item in found} == parameters


def test_every_name_that_is_offered_is_there():
    for name in app.__all__:
        assert getattr(app, name) is not None


def test_the_machine_is_described():
    info = app.get_aot_info()
    assert info["available"] is app.is_aot_available() is True
    assert info["torch_version"] == torch.__version__


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ("plain", "plain"),
        (SimpleNamespace(model_name="a"), "a"),
        (SimpleNamespace(model_id="b"), "b"),
        ({"model_name": "c"}, "c"),
        ({"model_id": "d"}, "d"),
        (object(), "model"),
    ],
)
def test_model_configs_are_strings_objects_or_dicts(config, name):
    assert compat._name_of(config) == name


# Compiling


def test_it_returns_the_compiled_callable_and_keeps_statistics(first, assert_same):
    compiler, model = first
    for rows in (1, 4, 9):
        value = torch.randn(rows, 16)
        with torch.inference_mode():
            assert_same(model(value), classifier()(value))
    ((key, stats),) = compiler.get_compilation_stats().items()
    assert compiler.compiled_cache == {key: model}
    assert compiler.get_compilation_stats(key) == stats
    assert (stats["model_name"], stats["rung"], stats["success"]) == ("clf", "compiled", True)
    assert compiler.get_compilation_stats("nothing") == {}


def test_a_second_compiler_of_the_same_folder_starts_warm(first, cache_dir):
    compiler = app.AOTModelCompiler(cache_dir)
    compiler.compile_model_aot(classifier(), EXAMPLE, "clf", "default")
    (stats,) = compiler.get_compilation_stats().values()
    assert stats["cache"] == "direct-hit"


def test_models_of_one_name_and_other_weights_do_not_share_anything(first, cache_dir, assert_same):
    compiler, model = first
    other = compiler.compile_model_aot(
        model=classifier(1), example_inputs=EXAMPLE, model_config="clf", compilation_mode="default"
    )
    assert len(compiler.compiled_cache) == 2
    with torch.inference_mode():
        assert_same(other(EXAMPLE), classifier(1)(EXAMPLE))
        assert_same(model(EXAMPLE), classifier()(EXAMPLE))


def test_what_was_saved_is_loaded_by_a_compiler_of_another_folder(first, cache_dir, tmp_path, assert_same):
    compiler, model = first
    key = next(iter(compiler.compiled_cache))
    assert compiler.load_compiled_model(key) is model
    assert compiler.save_compiled_model(key, tmp_path / "out" / "clf.bundle")
    other = app.AOTModelCompiler(tmp_path / "elsewhere")
    assert other.load_compiled_model(key) is None  # it isn't there yet
    found = other.load_compiled_model(key, tmp_path / "out" / "clf.bundle")
    assert_same(found(EXAMPLE), model(EXAMPLE))
    again = app.AOTModelCompiler(cache_dir)
    assert_same(again.load_compiled_model(key)(EXAMPLE), model(EXAMPLE))


def test_nothing_is_saved_or_loaded_of_an_unknown_key(tmp_path, caplog):
    compiler = app.AOTModelCompiler(tmp_path / "store")
    with caplog.at_level(logging.WARNING):
        assert not compiler.save_compiled_model("nobody")
        assert compiler.load_compiled_model("nobody") is None
    assert "nobody" in caplog.text


def test_disabled_it_returns_none(tmp_path):
    compiler = app.AOTModelCompiler(tmp_path, enable_aot=False)
    assert compiler.compile_model_aot(classifier(), EXAMPLE, "clf") is None
    assert not compiler.is_model_supported("clf")
    assert app.IntegratedAOTCompiler(tmp_path, False).compile_model_aot(classifier(), EXAMPLE, "clf") is None


@pytest.mark.parametrize(
    ("model", "example", "mode"),
    [
        (Branches(), torch.ones(2, 3), "default"),  # does not export
        (Branches(), [torch.ones(2, 3), "text"], "default"),  # no tensors
        (Branches(), None, "default"),
        (Branches(), torch.ones(2, 3), "no-such-mode"),
        (torch.jit.script(Branches()), torch.ones(2, 3), "default"),
    ],
)
@pytest.mark.parametrize("kind", [app.AOTModelCompiler, app.IntegratedAOTCompiler])
def test_nothing_raises_and_every_failure_is_logged_and_served(tmp_path, caplog, kind, model, example, mode):
    with caplog.at_level(logging.WARNING):
        served = kind(tmp_path / "store").compile_model_aot(model, example, "awkward", mode)
    assert caplog.records
    assert torch.equal(served(-torch.ones(2, 3)), -torch.ones(2, 3) - 1)


def test_a_model_that_is_served_as_it_is_counts_its_calls(tmp_path):
    compiler = app.IntegratedAOTCompiler(tmp_path / "store")
    served = compiler.compile_model_aot(classifier(), None, "clf")
    served(EXAMPLE)
    assert served.get_execution_stats()["total_calls"] == 1
    assert compiler.get_compilation_stats()["enhanced_features"]["models_with_graphs"] == 0


def test_a_folder_that_can_not_be_written_is_served_by_eager(caplog):
    with caplog.at_level(logging.WARNING):
        served = app.AOTModelCompiler("/proc/nowhere").compile_model_aot(classifier(), EXAMPLE, "clf")
    assert served(EXAMPLE).shape == (4, 3)
    assert "/proc/nowhere" in caplog.text


def test_cleaning_up_removes_what_was_not_used_for_long(first, cache_dir, copied_store):
    root = copied_store("linear")
    compiler = app.IntegratedAOTCompiler(root)
    assert compiler.cleanup_cache(max_age_days=30) == 0
    assert compiler.cleanup_cache(max_age_days=0) == 1
    compiler.clear_cache()
    assert compiler.compiled_cache == {}
    assert compiler.get_compilation_stats()["base_aot"]["compiled_models"] == 0


# Integrated and enhanced


def test_the_integrated_compiler_reports_by_category(first, cache_dir):
    compiler = app.create_integrated_compiler(cache_dir=cache_dir)
    model = compiler.compile_model_aot(classifier(), EXAMPLE, {"model_id": "clf"})
    model(EXAMPLE)
    stats = compiler.get_compilation_stats()
    assert set(stats) == {"base_aot", "enhanced_features", "performance_monitoring"}
    assert stats["base_aot"]["cache_hits"] == 1
    assert stats["enhanced_features"]["enhanced_models"] == 1
    assert stats["enhanced_features"]["models_with_graphs"] == 0  # there is no GPU here
    assert set(stats["enhanced_features"]["cuda_graphs"]) == {
        "enabled", "graphs_captured", "graph_replays", "capture_failures", "total_graphs",
    }  # fmt: skip
    assert stats["performance_monitoring"]["total_calls"] >= 1
    assert stats["performance_monitoring"]["total_operations"] >= 1


def test_a_model_of_ones_own_is_kept_by_its_key(tmp_path):
    compiler = app.IntegratedAOTCompiler(tmp_path)
    assert compiler.save_compiled_model("mine", classifier(), {"note": "kept"})
    assert compiler.get_compilation_stats("mine") == {"note": "kept"}
    assert compiler.load_compiled_model("mine") is not None


def test_the_enhanced_compiler_names_models_and_counts_their_calls(first, cache_dir):
    enhanced = app.create_enhanced_compiler(app.AOTModelCompiler(cache_dir), batch_sizes=[1, 4])
    model = enhanced.compile_model(classifier(), EXAMPLE, "clf", compilation_mode="default")
    for _ in range(3):
        model(EXAMPLE)
    stats = model.get_execution_stats()
    assert (stats["total_calls"], stats["graph_hits"], stats["graph_misses"], stats["graph_hit_rate"]) == (3, 0, 3, 0)
    assert stats["metadata"]["model_id"] == "clf"
    assert enhanced.get_model_info("clf")["execution"]["total_calls"] == 3
    assert enhanced.get_model_info("nobody") == {}
    assert enhanced.get_optimization_stats()["enhanced_models"] == 1


# CUDA graphs, over the simulator


def test_without_a_gpu_nothing_is_enhanced_and_the_reason_is_counted(caplog):
    optimizer = app.CudaGraphOptimizer()
    with caplog.at_level(logging.WARNING):
        assert not optimizer.enhance_compiled_model(classifier(), EXAMPLE, "clf")
    assert "needs a CUDA device" in caplog.text
    assert optimizer.try_graph_execution("clf", EXAMPLE) is None
    stats = optimizer.get_statistics()
    assert (stats["capture_failures"], stats["graph_misses"], stats["total_graphs"]) == (1, 1, 0)
    assert app.get_optimization_summary()["cuda_graphs"]["capture_failures"] >= 1


def test_graphs_are_captured_at_each_size_and_replayed_at_those_only(assert_same):
    optimizer = app.CudaGraphOptimizer(app.CudaGraphConfig(batch_sizes=[1, 4]), mechanism=Simulator())
    model = classifier()
    assert optimizer.enhance_compiled_model(model, EXAMPLE, "clf")
    for rows in (1, 4):
        value = torch.randn(rows, 16)
        assert_same(optimizer.try_graph_execution("clf", value), model(value).detach())
    assert optimizer.try_graph_execution("clf", torch.randn(3, 16)) is None
    assert optimizer.try_graph_execution("clf", EXAMPLE.double()) is None
    stats = optimizer.get_statistics()
    assert (stats["graphs_captured"], stats["graph_replays"], stats["graph_misses"]) == (2, 2, 2)
    assert stats["models"] == {"clf": [1, 4]}
    optimizer.cleanup()
    assert optimizer.get_statistics()["total_graphs"] == 0
    assert optimizer.try_graph_execution("clf", EXAMPLE) is None


def test_disabled_graphs_are_not_captured():
    optimizer = app.CudaGraphOptimizer(app.CudaGraphConfig(enabled=False), mechanism=Simulator())
    assert not optimizer.enhance_compiled_model(classifier(), EXAMPLE, "clf")
