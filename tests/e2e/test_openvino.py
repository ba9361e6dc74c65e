"""mode=openvino, each run a process of its own: compiled and verified once, found ever after; or eager, and why."""

from __future__ import annotations

import importlib.util

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("openvino") is None,
        reason="openvino is not installed: pip install 'aot-app[openvino]'",
    ),
]
NO_COMPILER = {"CXX": "/nonexistent"}
TRANSFORMER = ("model=transformer", "mode=openvino", "graphs.batch_sizes=[1,3]")
UNCONVERTED = """
    import torch
    class Singular(torch.nn.Module):
        def forward(self, x):
            return torch.linalg.svdvals(x)
"""
# The command in a process that finds another version of it installed.
OTHERWISE = """
import sys
from app import environment
installed = environment.installed
environment.installed = lambda name: {version!r} if name == "openvino" else installed(name)
{then}
from app.cli import main
main()
"""
UNINSTALLED = OTHERWISE.format(version=None, then='sys.modules["openvino"] = None')
UPGRADED = OTHERWISE.format(version="2031.1", then="")


@pytest.fixture
def run(run_app, tmp_path):
    def started(*args, **how):
        return run_app([f"cache.dir={tmp_path}/store", *args], **how)

    return started


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_second_process_finds_what_the_first_compiled_without_a_compiler(run, num_objects, tmp_path, precision):
    first = run(*TRANSFORMER, f"precision={precision}", env=NO_COMPILER)
    assert (first.code, first.record["cache"]["outcome"]) == (0, "miss"), first.stderr
    again = run(*TRANSFORMER, f"precision={precision}", env=NO_COMPILER)
    for record in (first.record, again.record):
        assert (record["rung"], record["rungs"]) == ("openvino", {"1": "openvino", "3": "openvino"})
        assert (record["fallbacks"], record["verify"]["passed"]) == ([], True)
        assert record["latency_ms"]["openvino"]["3"]["p50"] > 0
        assert record["speedup"]["3"] > 0
        assert record["monitor"]["calls"].keys() == {"openvino"}
    assert again.record["cache"]["outcome"] == "direct-hit"
    assert "worker" not in again.record["phases_s"]
    assert again.record["key"] == first.record["key"]
    assert num_objects(tmp_path / "store") == 1


def test_auto_knows_it_after_one_trial(run):
    auto = ("model=linear", "mode=auto", "~auto.portfolio.max-autotune", "~auto.portfolio.default", "task=compile")
    choices = [run(*auto).record["mode_choice"], run(*auto, "cache.on_miss=fail").record["mode_choice"]]
    assert [choice["evidence"] for choice in choices] == ["measured", "known"]
    for choice in choices:
        assert {each["mode"]: each["reason"] for each in choice["candidates"]} == {"openvino": None, "eager": None}
        assert choice["kept"] in {"openvino", "eager"}


def test_another_version_of_it_is_another_request(run):
    run(*TRANSFORMER, "task=compile")
    found = run(*TRANSFORMER, "task=compile", "cache.on_miss=fail", program=("-c", UPGRADED))
    assert found.code == 9
    assert "toolchain.openvino" in found.record["cache"]["miss_reasons"][0]


def test_what_does_not_convert_is_eagers_and_no_other_compilers(run, module_file):
    module_file("unconverted", UNCONVERTED)
    asked = ("model=custom", "model.target=unconverted:Singular", "model.inputs=[{name: x, shape: [batch, 4, 4]}]")
    found = run(*asked, "mode=openvino", env=module_file.env)
    (step,) = found.record["fallbacks"]
    assert (found.code, found.record["rung"]) == (0, "eager")
    assert (step["from"], step["to"], step["stage"]) == ("openvino", "eager", "compile")
    assert "aten._linalg_svd" in step["reason"]
    assert run(*asked, "mode=openvino", "fallback=strict", env=module_file.env).code == 1


@pytest.mark.parametrize(
    ("arguments", "how", "said"),
    [
        ((), {"program": ("-c", UNINSTALLED)}, "pip install 'aot-app[openvino]'"),
        (("weights=external",), {}, "set weights=frozen"),
        (("target=x86-64-v2",), {}, "target=x86-64-v2"),
    ],
)
def test_where_it_cannot_be_had_eager_serves_and_says_what_to_do(run, arguments, how, said):
    found = run("model=linear", "mode=openvino", "task=compile", *arguments, **how)
    (step,) = found.record["fallbacks"]
    assert (found.code, found.record["rung"], step["from"], step["to"]) == (0, "eager", "openvino", "eager")
    assert said in step["reason"]
    assert said in found.stderr
    strict = run("model=linear", "mode=openvino", "task=compile", "fallback=strict", *arguments, **how)
    assert strict.code == 1
