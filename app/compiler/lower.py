"""Lower: an exported program -> a shared library, by AOTInductor and the C++ compiler."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from ..environment import compiler
from ..errors import CompileError, ConfigError
from ..runtime.aoti import OPERATORS, constant_names
from ..runtime.model import LIBRARY, WEIGHTS
from .export import Exported


def check_compiler() -> str:
    """The C++ compiler's version line.

    Raises:
        CompileError: there is none; the message names what was tried.
    """
    command = compiler()
    asked = f"CXX={os.environ['CXX']}" if os.environ.get("CXX") else command
    try:
        done = subprocess.run(
            [*shlex.split(command), "--version"], capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise CompileError(f"no C++ compiler: {asked} does not run; install g++ or set CXX to one") from error
    return done.stdout.partition("\n")[0].strip()


def check_options(options: Mapping[str, Any]) -> None:
    """Raise ConfigError for an option that this torch's Inductor doesn't have."""
    import torch._inductor

    known = torch._inductor.list_options()  # noqa: SLF001 - public by its documentation, not by its name
    for name in options:
        if name not in known:
            near = [other for other in known if name.rpartition(".")[2] in other][:5]
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            raise ConfigError(f"mode.inductor.{name} is not an option of torch {torch.__version__}'s Inductor{hint}")


def lower(exported: Exported, options: Mapping[str, Any], folder: Path, scratch: Path) -> None:
    """Compile into `folder`: the library, and on a GPU its kernels.

    Raises:
        CompileError: Inductor or the compiler fails.
        ConfigError: an option that Inductor doesn't have.
    """
    import torch._inductor

    check_options(options)
    # sets Inductor's own switch too: `apply_numerics` doesn't, because that imports Inductor
    torch.use_deterministic_algorithms(torch.are_deterministic_algorithms_enabled())
    program = exported.program
    external = not options["freezing"]
    args, kwargs = program.example_inputs or ((), {})
    scratch.mkdir(parents=True, exist_ok=True)
    configs = {
        **options,
        "aot_inductor.package": True,  # no absolute path in the library
        "aot_inductor.output_path": str(scratch),
        "aot_inductor.package_constants_in_so": not external,
        # 300 MB in the system's temporary folder that a killed compiler leaves half-written: then no model ever
        # compiles again. Nor do they save time: docs/adr/0016-before-inductor.md
        "aot_inductor.precompile_headers": False,
        "post_grad_custom_pre_pass": _keep_nan,
    }
    try:
        module = program.module(check_guards=False)
        _drop_constants(module)
        _flatten_products(module)
        _turn_convolutions(module)
        with torch.no_grad(), _built_faster():  # with gradients Inductor takes `freezing` for False, and says nothing
            files = torch._inductor.aot_compile(module, args, kwargs, options=configs)  # noqa: SLF001
    except Exception as error:  # Inductor raises whatever its passes raise
        raise CompileError(_cause(error)) from error
    assert isinstance(files, list), "with aot_inductor.package a list of files comes back"
    paths = [Path(name) for name in files if isinstance(name, str)]
    for file in paths:
        if file.suffix == ".so":
            shutil.copyfile(file, folder / LIBRARY)
        elif file.suffix == OPERATORS and file.with_suffix(".cpp") in paths:  # others are about the compilation
            shutil.copyfile(file, (folder / LIBRARY).with_suffix(OPERATORS))
        elif file.suffix in {".cubin", ".hsaco", ".spv"}:
            shutil.copyfile(file, folder / file.name)
    if not (folder / LIBRARY).exists():
        raise CompileError("Inductor gave no shared library")


@contextmanager
def _built_faster() -> Iterator[None]:
    """Let Inductor compile a library's wrapper beside its kernels, and read each of its templates once.

    It compiles one after the other, each on one core, and parses the same template anew for every product.
    """
    from torch._inductor.codegen.common import KernelTemplate
    from torch._inductor.cpp_builder import CppBuilder

    alone = CppBuilder.build
    begun: list[Future[None]] = []

    def build(builder: Any) -> None:
        target = builder.get_target_file_path()
        if target.endswith(".wrapper.o"):
            begun.append(pool.submit(alone, builder))
            return
        if target.endswith(".kernel.o"):
            alone(builder)
        while begun:
            begun.pop().result()
        if not target.endswith(".kernel.o"):  # it may link them
            alone(builder)

    template = staticmethod(cache(KernelTemplate._template_from_string))  # noqa: SLF001
    with (
        ThreadPoolExecutor(1) as pool,
        patch.object(CppBuilder, "build", build),
        patch.object(KernelTemplate, "_template_from_string", template),
    ):
        yield


def _drop_constants(module: torch.fx.GraphModule) -> None:
    """Numbers and strings in the output stand in the manifest; Inductor knows what to do with some of them only."""
    (output,) = module.graph.find_nodes(op="output")
    output.args = torch.fx.node.map_aggregate(
        output.args, lambda leaf: leaf if isinstance(leaf, torch.fx.Node) else None
    )
    module.recompile()


def _flatten_products(module: torch.fx.GraphModule) -> None:
    """Make products of a batch with one matrix products of two matrices.

    Inductor decomposes them as eager does: where the rows aren't contiguous, as those that nn.MultiheadAttention
    projects are with `batch_first`, into a batched product with a copy of the weights for each row of the batch.
    """
    aten, graph = torch.ops.aten, module.graph
    for node in [
        *graph.find_nodes(op="call_function", target=aten.linear.default),
        *graph.find_nodes(op="call_function", target=aten.matmul.default),
    ]:
        rows, matrix = node.args[:2]
        values = [each.meta.get("val") for each in (rows, matrix, node)]
        if any(each is None for each in values):
            continue
        given, by, gives = (tuple(each.shape) for each in values)
        if len(given) < 3 or len(by) != 2 or not isinstance(given[-1], int) or not isinstance(gives[-1], int):
            continue
        with graph.inserting_before(node):
            sizes = [
                size if isinstance(size, int) else graph.call_function(aten.sym_size.int, (rows, axis))
                for axis, size in enumerate(given[:-1])
            ]
            flat = graph.call_function(aten.reshape.default, (rows, [-1, given[-1]]))
            product = graph.call_function(node.target, (flat, *node.args[1:]), node.kwargs)
            batch = graph.call_function(aten.reshape.default, (product, [*sizes, gives[-1]]))
        batch.meta.update(node.meta)  # the next one may look at it
        node.replace_all_uses_with(batch)
        graph.erase_node(node)
    graph.lint()
    module.recompile()


def _turn_convolutions(module: torch.fx.GraphModule) -> None:
    """Make convolutions of signals those of an image one pixel high: the same numbers in the same order.

    Inductor packs weights for oneDNN where the input is an image, so that what nn.Conv1d makes would be left to ATen,
    which has a slow loop for it. And oneDNN's kernels run along the width: a signal that lies along the height, in an
    image one pixel wide as audio models have it, takes them seven times as long, of one channel and a kernel of 512.
    """
    aten, graph = torch.ops.aten, module.graph
    of_images = {aten.conv1d.default: aten.conv2d.default, aten.conv1d.padding: aten.conv2d.padding}
    of_images |= {target: target for target in of_images.values()}
    for node in [each for each in graph.nodes if each.op == "call_function" and each.target in of_images]:
        image, kernel, *rest = node.args
        values = [each.meta.get("val") for each in (image, kernel, node)]
        if any(each is None or each.device.type != "cpu" for each in values):
            continue
        sizes = rest[1:4]  # strides, padding, dilation by dimension; or how it is padded, in a word
        if values[1].dim() == 3:
            by: tuple[int, ...] = (-2,)
            turn, back = aten.unsqueeze.default, aten.squeeze.dim
            sizes = [
                size if isinstance(size, str) else [one, *size] for one, size in zip((1, 0, 1), sizes, strict=False)
            ]
        elif all(_is_one(each.shape[-1]) for each in values) and not _is_one(values[0].shape[-2]):
            by = (-2, -1)
            turn = back = aten.transpose.int
            sizes = [size if isinstance(size, str) else size[::-1] for size in sizes]
        else:
            continue
        with graph.inserting_before(node):
            turned = [graph.call_function(turn, (each, *by)) for each in (image, kernel)]
            along = graph.call_function(of_images[node.target], (*turned, *rest[:1], *sizes, *rest[4:]), node.kwargs)
            answer = graph.call_function(back, (along, *by))
        answer.meta.update(node.meta)
        node.replace_all_uses_with(answer)
        graph.erase_node(node)
    graph.lint()
    module.recompile()


def _is_one(size: Any) -> bool:
    """Whether a size is 1, without asking that of one that varies, which would fix it."""
    return isinstance(size, int) and size == 1


def _keep_nan(graph: torch.fx.Graph) -> None:
    """Write ReLU and clamp so that Inductor doesn't fuse them into oneDNN's convolutions and products.

    There they are the processor's `max(x, 0)`, which is 0 where x is NaN: a poisoned input would be answered with
    plausible numbers. Written as here they mean the same, and become Inductor's own code, which keeps NaN.
    """
    aten = torch.ops.aten

    def bounded(target: Any, value: Any, bound: Any) -> torch.fx.Node:
        made = graph.call_function(target, (value, bound))
        made.meta.update(node.meta)
        return made

    for node in graph.find_nodes(op="call_function", target=aten.relu.default):
        with graph.inserting_before(node):
            node.replace_all_uses_with(bounded(aten.clamp_min.default, node.args[0], 0))
        graph.erase_node(node)
    for node in graph.find_nodes(op="call_function", target=aten.clamp_max.default):
        above, high = node.args
        value, low = above.args if above.target is aten.clamp_min.default else (None, None)
        if isinstance(low, int | float) and isinstance(high, int | float) and low <= high:
            with graph.inserting_before(node):
                below = bounded(aten.clamp_max.default, value, high)
                node.replace_all_uses_with(bounded(aten.clamp_min.default, below, low))
            graph.erase_node(node)


def _cause(error: BaseException) -> str:
    """The lines that say why: of a compiler's own output, where there is some."""
    _, _, text = str(error).strip().rpartition("\nOutput:\n")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if "error" in line.lower() or "failed" in line.lower()] or lines
    return f"{type(error).__name__}: {'; '.join(telling[:2])}"[:500]


def save_weights(exported: Exported, artifact: Path, device: str, folder: Path, prefix: str) -> dict[str, Any]:
    """Write all weights of the program into `folder`, tied ones once: any artifact of the same weights can use them.

    Args:
        exported: The program.
        artifact: Where its library lies.
        device: `cpu` or `cuda:N`.
        folder: Where the weights are written.
        prefix: What stands before the user's own names, where the module is wrapped.

    Returns:
        For each constant that the library borrows: the tensor's name in the file, its strides where they matter, and
        its name in the module's state dict, if it is there.

    Raises:
        CompileError: the library asks for a constant that the program doesn't have.
    """
    from safetensors.torch import save_file

    weights = exported.weights()
    first: dict[tuple[Any, ...], str] = {}
    stored_as = {name: first.setdefault(_alias(tensor), name) for name, tensor in sorted(weights.items())}
    save_file({name: weights[name].contiguous().cpu() for name in set(stored_as.values())}, folder / WEIGHTS)
    constants: dict[str, Any] = {}
    for constant, fqn in sorted(constant_names(artifact / LIBRARY, device).items()):
        if fqn not in weights:
            raise CompileError(f"the library asks for the constant {fqn}, which the program doesn't have")
        stride = None if weights[fqn].is_contiguous() else list(weights[fqn].stride())
        known = fqn.removeprefix(prefix) if fqn in exported.program.state_dict else None
        constants[constant] = {"stored": stored_as[fqn], "stride": stride, "name": known}
    return constants


def weights_content(exported: Exported) -> dict[str, Any]:
    """Digest of names, metadata and bytes of all weights: a factor where they are baked in."""
    import hashlib

    total = hashlib.sha256(str(weights_meta(exported)).encode())
    for _, tensor in sorted(exported.weights().items()):
        total.update(tensor.contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return {"sha256": total.hexdigest()}


def weights_meta(exported: Exported) -> dict[str, Any]:
    """Names, dtypes, shapes, strides and aliasing: all that code with external weights depends on."""
    first: dict[tuple[Any, ...], str] = {}
    meta: dict[str, Any] = {}
    for name, tensor in sorted(exported.weights().items()):
        meta[name] = [
            str(tensor.dtype),
            list(tensor.shape),
            list(tensor.stride()),
            first.setdefault(_alias(tensor), name),
        ]
    return {"meta": meta}


def _alias(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Equal for tensors that are one and the same memory."""
    return (
        tensor.data_ptr(),
        tuple(tensor.shape),
        tuple(tensor.stride()),
        tensor.dtype,
        tensor.numel() > 0 or id(tensor),
    )
