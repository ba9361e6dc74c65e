"""No factor of the key is there in vain: without it, the mutation suite fails."""

from __future__ import annotations

import pytest

from app import dependencies

from .conftest import FULL
from .mutations import BASES, altering, harmless

CHANGES = {str(change): change for change in [*altering(), *harmless()]}

# For each factor a change that the suite tries, and that is answered wrongly once the key lacks the factor.
GUARDS = {
    "request:schema": "schema of the key-later",
    "request:model.target": "target-another",
    "request:model.kwargs": "argument-eps=1e-4",
    "request:model.seed": "seed-0",
    "request:model.inputs": "input's dtype-int32",
    "request:model.dims": "range of a dimension-1 to 32",
    "request:model.files": "checkpoint-one-plain",
    "request:mode.inductor": "inductor option-shape_padding",
    "request:precision.name": "precision-bf16",
    "request:numerics.matmul_precision": "matmul precision-high",
    "request:numerics.deterministic": "deterministic-true",
    "request:numerics.sdpa": "attention switch-[math]",
    "request:toolchain.torch": "version of torch-2.12.0",
    "request:toolchain.torch_git": "build of torch-None",
    "request:toolchain.cuda": "version of CUDA-12.9-cuda",
    "request:toolchain.triton": "version of Triton-3.5.1-cuda",
    "request:toolchain.python": "version of Python-3.12.1",
    "request:toolchain.numpy": "version of NumPy-1.26.4",
    "request:target.system": "system-Darwin",
    "request:target.flags": "instruction set-with zz",
    "request:target.gpu": "architecture of the GPU-second device-cuda",
    "object:schema": "schema of the key-later",
    "object:numerics.matmul_precision": "matmul precision-high",
    "object:numerics.deterministic": "deterministic-true",
    "object:numerics.sdpa": "attention switch-[flash, math]",
    "object:inductor": "inductor option-shape_padding",
    "object:toolchain.torch": "version of torch-2.12.0",
    "object:toolchain.torch_git": "build of torch-None",
    "object:toolchain.cuda": "version of CUDA-12.9-cuda",
    "object:toolchain.triton": "version of Triton-3.5.1-cuda",
    "object:target.machine": "machine-aarch64",
    "object:target.system": "system-Darwin",
    "object:target.flags": "instruction set-unknown",
    "object:target.gpu": "architecture of the GPU-8.0-cuda",
    "object:graph.sha256": "operation-gelu",
    "object:graph.inputs": "output's structure-another name",
    "object:weights.sha256": "weight's bit-0",
    "object:weights.meta": "tied weights untied-memory-external",
    "dependency:module": "imported constant-1.25",
    "dependency:file": "file beside the package-0.25",
    "dependency:setting": "weight's bit-1",
    "dependency:no-module": "module that was absent-single",
    "dependency:no-file": "file that was absent-override",
    "dependency:covered": "shadowing module-of the standard library",
}
# Factors that say in clear what others hold too: without it alone nothing is answered wrongly, without them all it is.
TWINS = {
    # a variable is read where a file of the home folder is looked for, and where a listed one decides
    "dependency:variable": (["dependency:anchor"], "file of another home-other"),
    "dependency:anchor": (["dependency:variable"], "file of another home-other"),
    "request:model.environment": (["dependency:variable"], "listed variable-2"),
    "dependency:listing": (["dependency:setting"], "listed folder-one more"),
    "request:compile.threads": (["request:mode.inductor"], "compiled threads-2"),
    "request:weights.placement": (["request:mode.inductor"], "placement-external"),
    "request:device": (["request:target.gpu"], "device-cpu-cuda"),
    "object:device": (["object:target.gpu"], "device-cpu-cuda"),
    "object:weights.placement": (
        ["object:inductor", "object:weights.sha256", "object:weights.meta"],
        "placement-external",
    ),
}
# An eager run asks no store; and a machine is compared again, by name, before an artifact of another is opened.
# A live module has no shop to change: tests/api changes it.
UNASKED = {"request:mode.engine", "request:target.machine", "request:model.fingerprint"}


def tried(table):
    """All, or in reduced size one of each level."""
    return list(table) if FULL else list({name.partition(":")[0]: name for name in table}.values())


def wrongly(probes, change, store, lacks):
    """Whether the suite would fail on this change with keys that lack these factors."""
    if not all(name.startswith("dependency:") for name in lacks):
        probes.seed_lacking(store, change.base, lacks)
        return probes.probe(change, store, lacks)["outcome"] != change.outcome
    return probes.probe(change, None, lacks)["outcome"] != change.outcome


def leaves(factors, level):
    """Every factor by name: a group's members, and what is no group."""
    for name, value in factors.items():
        if isinstance(value, dict) and name != "inductor":
            yield from (f"{level}:{name}.{inner}" for inner in value)
        else:
            yield f"{level}:{name}"


def test_every_factor_has_a_change_that_needs_it(probes):
    found = set()
    for base in BASES:
        made = probes.bases[base]
        found |= {*leaves(made["factors"], "request"), *leaves(made["object_factors"], "object")}
        found |= {f"dependency:{kind}" for kind, *_ in made["dependencies"] if kind not in dependencies._SHORTCUTS}
    assert found == {*GUARDS, *TWINS, *UNASKED}


@pytest.mark.parametrize("factor", tried(GUARDS))
def test_without_any_one_factor_the_suite_fails(probes, tmp_path, counts, factor):
    assert wrongly(probes, CHANGES[GUARDS[factor]], tmp_path / "store", [factor])
    counts["factors removed"] = str(int(counts.get("factors removed", 0)) + 1)


@pytest.mark.parametrize("factor", tried(TWINS))
def test_what_several_factors_hold_is_missed_once_they_are_all_gone(probes, tmp_path, factor):
    twins, change = TWINS[factor]
    assert not wrongly(probes, CHANGES[change], tmp_path / "one", [factor])
    assert wrongly(probes, CHANGES[change], tmp_path / "all", [factor, *twins])
