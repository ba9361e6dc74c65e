"""Changes of a model project, its config, its environment and its machine, and what each must do to a lookup."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.keys import KEY_SCHEMA

from . import shop

Edit = Callable[[Path], None]

MISS, DIRECT, GRAPH = "miss", "direct-hit", "graph-hit"


@dataclass(frozen=True, eq=False)
class Change:
    """One change, against a base that the store was seeded with.

    Attributes:
        kind: What sort of change it is.
        name: Which of its sort.
        outcome: What the lookup must say: `miss` where it alters what should run.
        base: The name of the seeded request that it is a change of.
        edits: Done to the project's folder.
        overrides: Added to the base's command line.
        env: Set in the environment; None takes a variable out. `{root}` is the project's folder.
        facts: What the machine and the toolchain pretend to be.
        cwd: The working directory, relative to the project's folder.
        path: Folders before the project's on the import path, relative to it.
        umask: Of the process.
        moved: The project lies in another folder, with the edits, while the first one is as it was.
        store: Done to the store's folder, a copy, before the lookup.
        hash_seed: The seed of string hashes in the probing process.
        readonly: The store is opened for reading only.
        reorder: The command line is shuffled.
        other_weights: The hit must name other external weights than the base's.
    """

    kind: str
    name: str
    outcome: str = MISS
    base: str = "frozen"
    edits: tuple[Edit, ...] = ()
    overrides: tuple[str, ...] = ()
    env: Mapping[str, str | None] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    cwd: str = "."
    path: tuple[str, ...] = ()
    umask: int = 0o022
    moved: bool = False
    store: Edit | None = None
    hash_seed: int = 0
    readonly: bool = False
    reorder: bool = False
    other_weights: bool = False

    def __str__(self) -> str:
        return f"{self.kind}-{self.name}" + ("" if self.base == "frozen" else f"-{self.base}")


# Edits


def swap(name: str, old: str, new: str) -> Edit:
    """Replace a text that is there once."""

    def edit(root: Path) -> None:
        text = (root / name).read_text()
        assert text.count(old) == 1, f"{name} holds {old!r} {text.count(old)} times"
        (root / name).write_text(text.replace(old, new))

    return edit


def put(name: str, text: str) -> Edit:
    """Write a file."""

    def edit(root: Path) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)

    return edit


def append(name: str, text: str) -> Edit:
    """Write at the end of a file."""
    return lambda root: put(name, (root / name).read_text() + text)(root)


def drop(name: str) -> Edit:
    """Remove a file or folder."""
    return lambda root: shutil.rmtree(root / name) if (root / name).is_dir() else (root / name).unlink()


def keep_stamps(name: str, edit: Edit) -> Edit:
    """Edit a file and put its modification time back."""

    def edited(root: Path) -> None:
        before = (root / name).stat()
        edit(root)
        os.utime(root / name, ns=(before.st_atime_ns, before.st_mtime_ns))

    return edited


def link(name: str, target: str) -> Edit:
    """Move a file and leave a symbolic link to it, or to another where `target` is there already."""

    def edit(root: Path) -> None:
        if (root / target).exists():
            (root / name).unlink()
        else:
            (root / name).rename(root / target)
        (root / name).symlink_to(root / target)

    return edit


def flip(tensor: str, index: int, bit: int) -> Edit:
    """Flip one bit of one number of the checkpoint."""

    def edit(root: Path) -> None:
        path = root / shop.CHECKPOINT
        data = bytearray(path.read_bytes())
        (length,) = struct.unpack("<Q", data[:8])
        start, end = json.loads(data[8 : 8 + length])[tensor]["data_offsets"]
        at = 8 + length + start + 4 * index + bit // 8
        assert at < 8 + length + end
        data[at] ^= 1 << bit % 8
        path.write_bytes(data)

    return edit


def resave(name: str = shop.CHECKPOINT, **metadata: str) -> Edit:
    """Write the checkpoint's values in another form: with other metadata, or as a file of torch.save."""

    def edit(root: Path) -> None:
        import torch
        from safetensors.torch import load, save

        tensors = load((root / shop.CHECKPOINT).read_bytes())
        if name.endswith(".pt"):
            torch.save(tensors, root / name)
        else:
            (root / name).write_bytes(save(tensors, metadata))

    return edit


def program(scale: float = 1.0, *, bias: float = 0.0, largest: int = 32) -> Edit:
    """Save an exported program."""

    def edit(root: Path) -> None:
        import torch

        class Scaled(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = torch.nn.Parameter(torch.full((4,), 2.0))
                self.bias = torch.nn.Parameter(torch.full((4,), bias))

            def forward(self, x):
                return (x * self.weight + self.bias) * scale

        batch = torch.export.Dim("batch", min=1, max=largest)
        made = torch.export.export(Scaled().eval(), (torch.ones(3, 4),), dynamic_shapes=({0: batch},), strict=False)
        buffer = io.BytesIO()
        torch.export.save(made, buffer)
        (root / "program.pt2").write_bytes(buffer.getvalue())

    return edit


# Bases: what the store is seeded with

GPU = {"gpus": ["9.0", "9.0"], "torch": {"cuda": "13.0"}, "triton": "3.6.0"}


@dataclass(frozen=True)
class Base:
    """A request that the store has an answer for."""

    overrides: tuple[str, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    edits: tuple[Edit, ...] = ()


_PROJECT = ("hydra.searchpath=[file://{root}/conf]", "experiment=soak", "model.depends_on=[{root}/steps]")
_CHECKPOINT = "model.checkpoint={root}/weights.safetensors"
BASES = {
    "frozen": Base((*_PROJECT, _CHECKPOINT, "device=cpu")),
    "plain": Base((*_PROJECT, "device=cpu")),
    "external": Base((*_PROJECT, _CHECKPOINT, "device=cpu", "weights=external")),
    "cuda": Base((*_PROJECT, _CHECKPOINT, "device=cuda"), facts=GPU),
    "program": Base(("model=exported", "model.program={root}/program.pt2", "device=cpu"), edits=(program(),)),
}


# What alters what should run


def altering() -> list[Change]:
    """Changes that must never hit."""
    return [*_texts(), *_files(), *_shadows(), *_weights(), *_settings(), *_numerics(), *_machines(), *_others()]


def _edits(kind: str, edits: Mapping[str, Edit], **more: Any) -> Iterator[Change]:
    for name, edit in edits.items():
        yield Change(kind, name, edits=(edit,), **more)


def _texts() -> Iterator[Change]:
    model, head = "shop/model.py", "shop/parts/head.py"
    for value in ("1.25", "1.75", "-1.5", "0.0", "1.5000001", "3", "1e-3", "15"):
        yield Change(
            "imported constant", value, edits=(swap("shop/constants.py", "SCALE = 1.5", f"SCALE = {value}"),)
        )
    for value in ("1.0", "2.5", "4"):
        edit = swap("shop/constants.py", "TEMPERATURE = 2.0", f"TEMPERATURE = {value}")
        yield Change("constant of a constant's importer", value, edits=(edit,))
    for value in ("1", "3", "2.5", "-2"):
        yield Change("constant of a single module", value, edits=(put("single.py", f"DEPTH = {value}\n"),))
    yield from _edits(
        "operation",
        {
            "gelu": swap(model, "F.relu(", "F.gelu("),
            "tanh": swap(model, "F.relu(", "torch.tanh("),
            "minus": swap(model, "+ self.offset", "- self.offset"),
            "max": swap(model, "hidden.mean(1)", "hidden.amax(1)"),
            "other dimension": swap(model, "hidden.mean(1)", "hidden.mean(2)"),
            "no residual": swap(model, ".flatten(2) + hidden)", ".flatten(2))"),
            "product": swap(head, "logits / TEMPERATURE", "logits * TEMPERATURE"),
            "causal": swap(model, "attention(query, key, value)", "attention(query, key, value, is_causal=True)"),
            "no scale": swap(model, "attention(query, key, value)", "attention(query, key, value, scale=1.0)"),
        },
    )
    yield from _edits(
        "output's structure",
        {
            "another name": swap(model, '"scores":', '"logits":'),
            "another order": swap(model, '"scores": self.head(hidden), "pooled": pooled', '"pooled": pooled'),
            "a tuple": swap(model, '"version": 7', '"version": (7,)'),
            "a list": swap(model, '"version": 7', '"version": [7]'),
            "nothing": swap(model, '"version": 7', '"version": None'),
        },
    )
    for value in ("8", "7.0", "'7'", "True"):
        yield Change("output's constant", value, edits=(swap(model, '"version": 7', f'"version": {value}'),))
    yield from _edits(
        "buffer",
        {
            "value": swap(model, "[0.25, 0.75]", "[0.5, 0.75]"),
            "unused value": swap(model, "[0.25, 0.75]", "[0.25, 0.5]"),
            "last bit": swap(model, "[0.25, 0.75]", "[0.25000003, 0.75]"),
            "length": swap(model, "[0.25, 0.75]", "[0.25, 0.75, 1.0]"),
        },
    )
    yield from _edits(
        "buffer's dtype", {"float64": swap(model, "tensor([0.25, 0.75])", "tensor([0.25, 0.75]).double()")}
    )
    same_size = swap("shop/constants.py", "SCALE = 1.5", "SCALE = 2.5")
    yield Change("old time stamps", "constant", edits=(keep_stamps("shop/constants.py", same_size),))
    yield Change("old time stamps", "bit", edits=(keep_stamps(shop.CHECKPOINT, flip("norm.weight", 0, 3)),))
    yield Change("package's file", "init", edits=(append("shop/parts/__init__.py", "from .. import constants\nconstants.SCALE = 9\n"),))  # fmt: skip


def _files() -> Iterator[Change]:
    for text in ("0.5 0.25 -2", "0.5 0.25", "0.25 0.5 -1", "0.5 0.25 -1 1", "", "0.5000001 0.25 -1"):
        yield Change("file read in the constructor", text or "empty", edits=(put("shop/table.txt", text + "\n"),))
    for text in ("0.25", "0.1250001", ""):
        yield Change("file beside the package", text or "empty", edits=(put("beside.txt", text + "\n"),))
    for text in ("0.5", ""):
        yield Change("file of the working directory", text or "empty", edits=(put("running.txt", text + "\n"),))
    yield Change("file of another working directory", "other", edits=(put("there/running.txt", "5"),), cwd="there")
    yield Change("file of another working directory", "none", edits=(put("there/other.txt", "5"),), cwd="there")
    yield Change("file of another home", "other", edits=(put("home/.shop.txt", "5"),), env={"HOME": "{root}/home"})
    yield Change("file that was absent", "override", edits=(put("shop/override.txt", "4"),))
    yield Change("file that is gone", "table", edits=(drop("shop/table.txt"),))
    yield Change("file that is gone", "beside", edits=(drop("beside.txt"),))
    yield Change("link", "retargeted", edits=(put("other.txt", "8 8"), link("shop/table.txt", "other.txt")))
    yield Change("listed folder", "one more", edits=(put("steps/third.txt", "3"),))
    yield Change("listed folder", "one less", edits=(drop("steps/second.txt"),))
    yield from _edits(
        "changed copy",
        {
            "constant": swap("shop/constants.py", "SCALE = 1.5", "SCALE = 2.5"),
            "table": put("shop/table.txt", "7"),
            "beside": put("beside.txt", "7"),
            "absent": put("shop/override.txt", "7"),
            "bit": flip("attention.weight", 5, 9),
        },
        moved=True,
    )


def _shadows() -> Iterator[Change]:
    scale, first = "SCALE = 3.0\nTEMPERATURE = 2.0\n", ("before",)
    yield Change("shadowing module", "package", edits=(put("shop/constants/__init__.py", scale),))
    yield Change("shadowing module", "single's package", edits=(put("single/__init__.py", "DEPTH = 5\n"),))
    yield Change(
        "shadowing module", "earlier on the path", edits=(put("before/single.py", "DEPTH = 5\n"),), path=first
    )
    yield Change("shadowing module", "of the standard library", edits=(put("wave.py", "WAVE_FORMAT_PCM = 2\n"),))
    yield Change("shadowing module", "of the standard library, earlier", edits=(put("before/wave.py", "WAVE_FORMAT_PCM = 2\n"),), path=first)  # fmt: skip
    yield Change("module that was absent", "single", edits=(put("shop_speedups.py", "FASTER = 2.0\n"),))
    yield Change("module that was absent", "package", edits=(put("shop_speedups/__init__.py", "FASTER = 2.0\n"),))
    yield Change("module that was absent", "elsewhere", edits=(put("before/shop_speedups.py", "FASTER = 2.0\n"),), path=first)  # fmt: skip
    yield Change("module that was absent", "of a package", edits=(put("shop/parts/extra.py", "MORE = 2.0\n"),))
    yield Change("module that was absent", "namespace", edits=(put("shop/parts/extra/data.txt", ""),))


def _weights() -> Iterator[Change]:
    for bit in range(32):
        yield Change("weight's bit", f"{bit}", edits=(flip("attention.weight", 17, bit),))
    for tensor in ("attention.bias", "head.layer.weight", "head.layer.bias", "norm.weight", "norm.bias"):
        for index in (0, -1):
            at = index % math.prod(shop.TENSORS[tensor])
            yield Change("weight's bit", f"{tensor} {at}", edits=(flip(tensor, at, 0),))
    model = "shop/model.py"
    for base in ("frozen", "external"):
        yield Change("stride", "kwargs", overrides=("+model.kwargs.transposed=true",), base=base)
        yield Change("stride", "text", edits=(swap(model, "transposed=False", "transposed=True"),), base=base)
        yield Change("tied weights untied", "kwargs", overrides=("+model.kwargs.tied=false",), base=base)
        yield Change("tied weights untied", "text", edits=(swap(model, "tied=True", "tied=False"),), base=base)
        yield Change("tied weights untied", "memory", overrides=("+model.kwargs.shared=false",), base=base)
        double = swap(model, "self.norm = nn.LayerNorm(width, eps=eps)", "self.norm = nn.LayerNorm(width, eps=eps, dtype=torch.float64)")  # fmt: skip
        cast = swap(model, "self.norm(mixed.transpose(1, 2).flatten(2) + hidden)", "self.norm((mixed.transpose(1, 2).flatten(2) + hidden).double()).float()")  # fmt: skip
        yield Change("weight's dtype", "float64", edits=(double, cast), base=base)
    yield Change("checkpoint", "none", overrides=("model.checkpoint=null",))
    yield Change("checkpoint", "one", overrides=(_CHECKPOINT,), base="plain")
    yield Change("placement", "external", overrides=("weights=external",))
    yield Change("placement", "frozen", overrides=("weights=frozen",), base="external")
    yield from _edits(
        "saved program",
        {"constant": program(1.5), "weight": program(bias=0.5), "range": program(largest=48)},
        base="program",
    )


def _settings() -> Iterator[Change]:
    for seed in (0, 1, 2, 4, 5, 1000, 2**31, 2**63 - 1):
        yield Change("seed", str(seed), overrides=(f"model.seed={seed}",))
    for value in ("eps=1e-4", "eps=1e-6", "heads=4", "heads=1", "transposed=true"):
        yield Change("argument", value, overrides=(f"++model.kwargs.{value}",))
    yield Change("target", "another", overrides=("model.target=shop.model:build_deep",))
    for value in ("2", "0.5", "-1", "1.0000001", "0"):
        yield Change("listed variable", value, env={"SHOP_GAIN": value})
    for low, high in ((1, 32), (1, 65), (2, 64), (4, 64), (1, 1000)):
        yield Change("range of a dimension", f"{low} to {high}", overrides=(f"model.dims.batch={{min: {low}, max: {high}}}", "graphs.batch_sizes=[4]"))  # fmt: skip
    inputs = shop.EXPERIMENT[shop.EXPERIMENT.index("    - name: ids") : shop.EXPERIMENT.index("  dims:")]
    for kind, name, old, new in (
        ("input's dtype", "int32", "int64", "int32"),
        ("input's dtype", "float64", "shape: [batch, 6, 8]", "shape: [batch, 6, 8]\n      dtype: float64"),
        ("input's dtype", "float16", "shape: [batch, 6, 8]", "shape: [batch, 6, 8]\n      dtype: float16"),
        ("input's dtype", "bfloat16", "shape: [batch, 6, 8]", "shape: [batch, 6, 8]\n      dtype: bfloat16"),
        ("input's integer range", "from 1", "low: 0", "low: 1"),
        ("input's integer range", "to 11", "high: 12", "high: 11"),
        ("input's shape", "length 7", "batch, 6", "batch, 7"),
        ("input's shape", "length 5", "batch, 6", "batch, 5"),
        ("input's shape", "dynamic length", "batch, 6", "batch, length"),
        ("input's shape", "fixed batch", "batch, ", "2, "),
        ("input by keyword", "x", "- name: x", "- keyword: true\n      name: x"),
    ):
        changed = (put("conf/experiment/soak.yaml", shop.EXPERIMENT.replace(inputs, inputs.replace(old, new))),)
        yield Change(kind, name, edits=changed, overrides=("graphs.batch_sizes=[2]",))
    yield Change("precision", "bf16", overrides=("precision=bf16",))


OPTIONS = (
    ("epilogue_fusion", "false"),
    ("max_autotune", "true"),
    ("max_autotune_gemm", "true"),
    ("coordinate_descent_tuning", "true"),
    ("shape_padding", "false"),
    ("permute_fusion", "true"),
    ("split_reductions", "false"),
    ("reorder_for_locality", "false"),
    ("layout_optimization", "false"),
    ("emulate_precision_casts", "true"),
    ("fallback_random", "true"),
    ("inplace_buffers", "false"),
    ("realize_reads_threshold", "2"),
    ("max_fusion_size", "1"),
    ("unroll_reductions_threshold", "1"),
    ("cpp.simdlen", "256"),
    ("cpp.min_chunk_size", "64"),
    ("cpp.weight_prepack", "false"),
    ("cpp.enable_floating_point_contract_flag", "fast"),
    ("cpp.enable_unsafe_math_opt_flag", "true"),
)


def _numerics() -> Iterator[Change]:
    for option, value in OPTIONS:
        yield Change("inductor option", option, overrides=(f"++mode.inductor={{{option}: {value}}}",))
    yield Change("mode", "max-autotune", overrides=("mode=max-autotune",))
    for backends in ("[math]", "[flash, math]", "[mem_efficient, math]"):
        yield Change("attention switch", backends, overrides=(f"numerics.sdpa={backends}",))
    for precision in ("high", "medium"):
        yield Change("matmul precision", precision, overrides=(f"numerics.matmul_precision={precision}",))
    yield Change("deterministic", "true", overrides=("numerics.deterministic=true",))
    for threads in (1, 2, 8):
        yield Change("compiled threads", str(threads), overrides=(f"compile.threads={threads}",))


def _machines() -> Iterator[Change]:
    for version in ("2.12.0", "2.13.1", "2.13.0+cu130", "2.14.0.dev20260701"):
        yield Change("version of torch", version, facts={"torch": {"version": version}})
    for commit in ("0" * 40, None):
        yield Change("build of torch", str(commit), facts={"torch": {"git_version": commit}})
    for version in ("12.9", "13.1"):
        yield Change("version of CUDA", version, facts={**GPU, "torch": {"cuda": version}}, base="cuda")
    for version in ("3.5.1", "3.7.0", None):
        yield Change("version of Triton", str(version), facts={**GPU, "triton": version}, base="cuda")
    from app.environment import cpu_flags

    flags = cpu_flags()
    for flag in [name for name in flags if name.startswith(("avx", "sse", "amx", "fma", "bmi", "f16c"))] or flags[:1]:
        yield Change("instruction set", f"no {flag}", facts={"flags": [name for name in flags if name != flag]})
    for flag in ("avx10_2", "sve2", "zz"):
        yield Change("instruction set", f"with {flag}", facts={"flags": sorted([*flags, flag])})
    yield Change("instruction set", "unknown", facts={"flags": []})
    yield from _devices()


def _devices() -> Iterator[Change]:
    for machine in ("aarch64", "riscv64"):
        yield Change("machine", machine, facts={"machine": machine})
    for system in ("Darwin", "Windows"):
        yield Change("system", system, facts={"system": system})
    for gpu in ("8.0", "10.0"):
        yield Change("architecture of the GPU", gpu, facts={**GPU, "gpus": [gpu]}, base="cuda")
    yield Change("architecture of the GPU", "second device", facts={**GPU, "gpus": ["9.0", "8.9"]}, overrides=("device=cuda:1",), base="cuda")  # fmt: skip
    yield Change("device", "cuda", facts=GPU, overrides=("device=cuda",))
    yield Change("device", "cpu", facts=GPU, overrides=("device=cpu",), base="cuda")
    for name, schema in (("earlier", KEY_SCHEMA - 1), ("later", KEY_SCHEMA + 1)):
        yield Change("schema of the key", name, facts={"schema": schema})


def _others() -> Iterator[Change]:
    """The commonest changes, against the other bases."""
    for base in ("external", "plain", "cuda"):
        facts = BASES[base].facts
        edit = swap("shop/constants.py", "SCALE = 1.5", "SCALE = 2.5")
        yield Change("imported constant", "2.5", edits=(edit,), base=base, facts=facts)
        yield Change("file read in the constructor", "7", edits=(put("shop/table.txt", "7"),), base=base, facts=facts)
    for base in ("external", "program"):
        yield Change("version of torch", "2.12.0", facts={"torch": {"version": "2.12.0"}}, base=base)
        yield Change("instruction set", "unknown", facts={"flags": []}, base=base)
        yield Change(
            "inductor option", "shape_padding", overrides=("++mode.inductor.shape_padding=false",), base=base
        )


# What is harmless


def harmless() -> list[Change]:
    """Changes that must hit, at the level that `outcome` names."""
    return [*_same_program(), *_same_request(), *_same_place()]


def _same_program() -> Iterator[Change]:
    """Text that changed, and the program did not: the graph level."""
    model, head = "shop/model.py", "shop/parts/head.py"
    for name in ("shop/__init__.py", model, "shop/constants.py", "shop/parts/__init__.py", head, "single.py"):
        yield Change("comment", name, GRAPH, edits=(append(name, "# a comment\n"),))
    yield from _edits(
        "comment",
        {
            "at the top": swap(model, "import os\n", "# the first\n\nimport os\n"),
            "inside": swap(model, "        pooled =", "        # inside\n        pooled ="),
            "at a line's end": swap(head, "/ TEMPERATURE", "/ TEMPERATURE  # as agreed"),
        },
        outcome=GRAPH,
    )
    yield from _edits(
        "local rename",
        {
            "logits": lambda root: put(head, (root / head).read_text().replace("logits", "raw"))(root),
            "hidden": lambda root: put(head, (root / head).read_text().replace("hidden", "states"))(root),
            "strided": lambda root: put(model, (root / model).read_text().replace("strided", "turned"))(root),
            "mixed": lambda root: put(model, (root / model).read_text().replace("mixed", "attended"))(root),
        },
        outcome=GRAPH,
    )
    edits = {
        "docstring": swap(model, '"""A shop\'s model:', '"""The model of a shop:'),
        "annotation": swap(head, "def forward(self, hidden):", "def forward(self, hidden: object) -> object:"),
        "blank lines": swap(model, "def build(", "\n\n\n\ndef build("),
        "another way to write a number": swap("shop/constants.py", "1.5", "15e-1"),
        "unused constant": swap("shop/constants.py", "UNUSED = 10", "UNUSED = 11"),
        "unused function": append(model, "\n\ndef unused():\n    return 1\n"),
        "unused import": swap(model, "import os\n", "import os\nimport sys\n"),
        "order of imports": swap(model, "import os\nimport wave\n", "import wave\nimport os\n"),
        "line ends": lambda root: (root / model).write_bytes((root / model).read_bytes().replace(b"\n", b"\r\n")),
    }
    yield from _edits("text", edits, outcome=GRAPH)
    yield from _edits("comment", {"external": append(model, "# a comment\n")}, outcome=GRAPH, base="external")
    yield Change("spaces of a data file", "table", GRAPH, edits=(put("shop/table.txt", " 0.50\n0.25 -1.0"),))
    yield Change("listed file's content", "steps", GRAPH, edits=(put("steps/first.txt", "one"),))
    yield Change("default spelled out", "eps", GRAPH, overrides=("++model.kwargs.eps=1e-5",))
    yield Change("default spelled out", "tied", GRAPH, overrides=("++model.kwargs.tied=true",))
    yield Change("example's size", "5", GRAPH, overrides=("++model.dims.batch.example=5",))
    yield Change("form of the checkpoint", "metadata", GRAPH, edits=(resave(author="somebody"),))
    yield Change("form of the checkpoint", "torch.save", GRAPH, edits=(resave("w.pt"),), overrides=("model.checkpoint={root}/w.pt",))  # fmt: skip
    for version in ("3.12.1", "3.14.0"):
        yield Change("version of Python", version, GRAPH, facts={"python_version": version})
    yield Change("version of NumPy", "1.26.4", GRAPH, facts={"numpy": "1.26.4"})
    for tensor, bit in (("attention.weight", 0), ("norm.bias", 31), ("head.layer.weight", 20)):
        yield Change("other external weights", tensor, GRAPH, edits=(flip(tensor, 1, bit),), base="external", other_weights=True)  # fmt: skip
    yield Change("other external weights", "seed", GRAPH, overrides=("model.seed=8",), base="external", other_weights=True)  # fmt: skip


STEERING = (
    "graphs=dense", "graphs.batch_sizes=[1]", "graphs.batch_sizes=[64, 3]",
    "fallback=strict", "fallback.on_compile=raise", "fallback.on_verify=raise",
    "cache=user", "cache.lock_timeout_s=1", "cache.on_miss=fail",
    "verify.seeds=[5, 6]", "verify.multiple=9", "precision.floor=0.01",
    "measure.warmup=1", "measure.budget_s=9",
    "runtime.threads=1", "task=compile", "output=json", "debug=true",
    "model.name=other", "model.trusted=true", "model.inputs.1.seed=4", "mode.name=other", "device=auto", "mode=reduce-overhead",
)  # fmt: skip

VARIABLES = (
    ("CXX", "/nonexistent"), ("CXX", "clang++"), ("CC", "clang"), ("PATH", "/nonexistent"),
    ("PYTHONHASHSEED", "77"), ("OMP_NUM_THREADS", "1"), ("MKL_NUM_THREADS", "1"), ("LANG", "de_DE.UTF-8"),
    ("TZ", "Asia/Tokyo"), ("USER", "somebody"), ("TORCHINDUCTOR_MAX_AUTOTUNE", "1"), ("TORCHINDUCTOR_FREEZING", "1"),
    ("TORCH_COMPILE_DEBUG", "1"), ("CUDA_VISIBLE_DEVICES", ""), ("SHOP_LOSS", "2"), ("HOSTNAME", "other"),
)  # fmt: skip


def _same_request() -> Iterator[Change]:
    """Settings that only steer, and the same settings written otherwise: the direct level."""
    for override in STEERING:
        yield Change("steering setting", override, DIRECT, overrides=(override,))
    yaml = "conf/experiment/soak.yaml"
    sdpa, inductor = "  sdpa: [flash, mem_efficient, math]\n", "    epilogue_fusion: true\n    max_autotune: false\n"
    head, rest = shop.EXPERIMENT.split("model:\n")
    model, others = rest.split("numerics:")
    yield from _edits(
        "reordered YAML",
        {
            "arguments": swap(yaml, "    width: 8\n    heads: 2\n", "    heads: 2\n    width: 8\n"),
            "options": swap(yaml, inductor, "    max_autotune: false\n    epilogue_fusion: true\n"),
            "groups": put(yaml, f"{head}numerics:{others}model:\n{model}"),
            "input's fields": swap(yaml, "      low: 0\n      high: 12\n", "      high: 12\n      low: 0\n"),
            "flow style": swap(
                yaml, "  dims:\n    batch:\n      min: 1\n      max: 64\n", "  dims: {batch: {max: 64, min: 1}}\n"
            ),
            "quotes and comments": swap(yaml, "name: ids", "name: 'ids'  # the items"),
            "block list": swap(yaml, sdpa, "  sdpa:\n    - flash\n    - mem_efficient\n    - math\n"),
        },
        outcome=DIRECT,
    )
    yield Change("shuffled command line", "frozen", DIRECT, reorder=True)
    for name, value in VARIABLES:
        yield Change("unlisted variable", f"{name}={value}", DIRECT, env={name: value})
    yield Change("unlisted variable", "no PATH", DIRECT, env={"PATH": None})
    yield Change("device's index", "1", DIRECT, overrides=("device=cuda:1",), facts=GPU, base="cuda")


def _same_place() -> Iterator[Change]:
    """The same files elsewhere, or seen by another process."""
    for umask in (0o000, 0o027, 0o077):
        yield Change("umask", f"{umask:03o}", DIRECT, umask=umask)
    yield Change("working directory", "with the same file", GRAPH, edits=(put("there/running.txt", shop.FILES["running.txt"]),), cwd="there")  # fmt: skip
    yield Change("working directory", "of a program", DIRECT, edits=(put("there/a.txt", ""),), cwd="there", base="program")  # fmt: skip
    yield Change("moved checkout", "project", GRAPH, moved=True)
    yield Change("moved checkout", "program", DIRECT, moved=True, base="program")
    yield Change("moved checkout", "comment", GRAPH, moved=True, edits=(append("single.py", "# a comment\n"),))
    yield Change("moved file", "checkpoint", DIRECT, edits=(link(shop.CHECKPOINT, "elsewhere.safetensors"),))
    yield Change("hash seed", "1", DIRECT, hash_seed=1)
    yield Change("hash seed", "1, comment", GRAPH, edits=(append("single.py", "# a comment\n"),), hash_seed=1)
    yield Change("rewritten file", "constants", DIRECT, edits=(drop("shop/constants.py"), put("shop/constants.py", shop.CONSTANTS)))  # fmt: skip
    yield Change("rewritten file", "table", DIRECT, edits=(lambda root: (root / "shop/table.txt").touch(),))
    yield Change("file that is not read", "unused module", DIRECT, edits=(append("shop/unused.py", "WIDTH = 5\n"),))
    yield Change("file that is not read", "README", DIRECT, edits=(put("README.md", "Closed.\n"),))
    yield Change("file that is not read", "new module", DIRECT, edits=(put("shop/new.py", "raise SystemExit\n"),))
    yield Change("file's mode", "read only", DIRECT, edits=(lambda root: (root / "shop/model.py").chmod(0o400),))
    yield Change("store", "no index", DIRECT, store=lambda store: shutil.rmtree(store / "index"))
    yield Change("store", "read only", DIRECT, readonly=True)


def sample(changes: list[Change], size: int) -> list[Change]:
    """The first of every kind, then others evenly spread; equal in every run."""
    firsts = list({change.kind: change for change in reversed(changes)}.values())
    rest = [change for change in changes if change not in firsts]
    step = max(1, len(rest) // max(1, size - len(firsts)))
    chosen = {id(change) for change in [*firsts, *rest[::step]]}
    return [change for change in changes if id(change) in chosen]
