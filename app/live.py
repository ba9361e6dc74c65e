"""Live: a module of this process as a run: named by its digest, exported here, compiled elsewhere."""

from __future__ import annotations

import copy
import inspect
import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .config import BATCH, DimConfig, InputConfig, ModelConfig, Settings
from .context import COMPILE_LOG, Context
from .errors import ConfigError, ExportError, VerifyError, first_line
from .identity import UncertainError, digest_of
from .progress import Phases
from .record import Record
from .verify import Judge, compared
from .workloads import AtPrecision, Workload
from .workloads import examples as examples_of
from .workloads.inputs import TensorInput

PROGRAM, LOWERED, EXAMPLES = "program.pt2", "lowered.pt2", "examples.safetensors"
STRUCTURE = "structure.json"
# A batch of at least two, for a size of one is traced as one.
_LEAST_TRACED, _MOST = 2, 1024
_ONE_AT_A_TIME = threading.RLock()

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Signature:
    """What a live module is called with.

    Attributes:
        inputs: Named tensors in the order of `forward`, without values.
        dims: Ranges of their dynamic dimensions.
        tensors: The example of each.
    """

    inputs: tuple[InputConfig, ...]
    dims: Mapping[str, DimConfig]
    tensors: Mapping[str, torch.Tensor]

    @property
    def static(self) -> Signature:
        """The same with every dimension as the examples have it."""
        inputs = tuple(replace(item, shape=list(self.tensors[item.name].shape)) for item in self.inputs)
        return Signature(inputs, {}, self.tensors)


def signature(
    module: nn.Module,
    example_inputs: Any,
    dynamic: Mapping[str, Any] | None = None,
    ranges: Mapping[str, tuple[int, int]] | None = None,
) -> Signature:
    """Read a call's inputs off examples.

    Args:
        module: What is called.
        example_inputs: A tensor, a sequence of positional ones, or a dict by argument name.
        dynamic: By argument, which axes vary and their names: `{"x": {0: "batch"}}`, a `torch.export.Dim` instead of
            a name gives the range. None: the first axis of every input, where they agree on its size.
        ranges: Lowest and upper bound (exclusive) of integer inputs.

    Raises:
        ConfigError: an input is no tensor, or an argument that is named is none of the module's.
    """
    tensors, keywords = _bound(module, example_inputs)
    axes = _axes(tensors, dynamic)
    for given, what in ((dynamic, "dynamic"), (ranges, "ranges")):
        for name in given or {}:
            if name not in tensors:
                raise ConfigError(f"{what} names {name!r}, which is not among the inputs: {', '.join(tensors)}")
    dims = {dim.name: dim.config for each in axes.values() for dim in each.values()}
    inputs = []
    for name, value in tensors.items():
        low, high = (ranges or {}).get(name, (None, None))
        shape = [axes[name][axis].name if axis in axes[name] else size for axis, size in enumerate(value.shape)]
        dtype = str(value.dtype).removeprefix("torch.")
        inputs.append(InputConfig(name=name, shape=shape, dtype=dtype, keyword=name in keywords, low=low, high=high))
    detached = {name: value.detach().cpu().resolve_conj().resolve_neg() for name, value in tensors.items()}
    return Signature(tuple(inputs), dims, detached)


def _bound(module: nn.Module, example_inputs: Any) -> tuple[dict[str, torch.Tensor], set[str]]:
    """Examples by argument in the signature's order, and which of them are given by keyword only."""
    positional, keyword = _split(example_inputs)
    where = f"{type(module).__name__}.forward"
    try:
        parameters = inspect.signature(module.forward)
        where += str(parameters)
        bound = parameters.bind(*positional, **keyword)
    except (TypeError, ValueError) as error:  # a scripted module has no signature
        raise ConfigError(f"the example inputs don't fit {where}: {error}") from error
    tensors = dict(zip(_names(parameters, len(positional)), positional, strict=True))
    # in the signature's order, and by position where that can be: then a call may give them either way
    for name, parameter in parameters.parameters.items():
        if name in tensors:
            continue
        if name not in keyword or parameter.kind is not parameter.POSITIONAL_OR_KEYWORD:
            break
        tensors[name] = keyword.pop(name)
    tensors |= {name: keyword[name] for name in bound.arguments if name in keyword}
    tensors |= {name: value for name, value in keyword.items() if name not in tensors}
    for name, value in tensors.items():
        if not isinstance(value, torch.Tensor):
            raise ConfigError(f"the example input {name!r} is a {type(value).__name__}; every input must be a tensor")
    return tensors, set(keyword)


def _split(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example_inputs, torch.Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, Sequence) and not isinstance(example_inputs, str) and example_inputs:
        return tuple(example_inputs), {}
    raise ConfigError(
        f"example_inputs is a {type(example_inputs).__name__}; give a tensor, a sequence of them, or a dict by name"
    )


def _names(parameters: inspect.Signature, count: int) -> list[str]:
    """The arguments that the first `count` positional values are given to."""
    names: list[str] = []
    for parameter in parameters.parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            names += [f"{parameter.name}_{number}" for number in range(count - len(names))]
        names.append(parameter.name)
    return names[:count]


@dataclass(frozen=True)
class _Dim:
    name: str
    config: DimConfig


def _axes(tensors: Mapping[str, torch.Tensor], dynamic: Mapping[str, Any] | None) -> dict[str, dict[int, _Dim]]:
    """For each input its dynamic axes."""
    if dynamic is None:
        sizes = {value.shape[0] if value.ndim else -1 for value in tensors.values()}
        one = len(sizes) == 1 and min(sizes) > 0
        return {name: {0: _dim(BATCH, value.shape[0])} if one else {} for name, value in tensors.items()}
    found = {}
    for name, value in tensors.items():
        given = dynamic.get(name) or {}
        for axis in given:
            if not isinstance(axis, int) or not 0 <= axis < value.ndim:
                raise ConfigError(f"dynamic[{name!r}] names the axis {axis!r}; the input has {value.ndim}")
        found[name] = {axis: _dim(dim, value.shape[axis]) for axis, dim in given.items() if dim is not None}
    return found


def _dim(given: Any, size: int) -> _Dim:
    """From a name, or from a `torch.export.Dim` with its range."""
    name = given if isinstance(given, str) else getattr(given, "__name__", None)
    if not isinstance(name, str) or not name.isidentifier():
        raise ConfigError(f"{given!r} is no name of a dimension: give a str or a torch.export.Dim")
    low = max(1, getattr(given, "min", 1) or 1)
    high = getattr(given, "max", None) or max(_MOST, size)
    high = high if isinstance(high, int) else max(_MOST, size)  # torch's "no limit" is no int
    return _Dim(name, DimConfig(min=low, max=high, example=min(max(size, low, _LEAST_TRACED), high)))


def settings_for(settings: Settings, given: Signature, name: str, digest: str) -> Settings:
    """The run's settings with a live module in the place of a configured one."""
    model = ModelConfig(name=name, fingerprint=digest, inputs=list(given.inputs), dims=dict(given.dims))
    sizes = settings.graphs.batch_sizes
    if BATCH in given.dims:
        low, high = given.dims[BATCH].min, given.dims[BATCH].max
        sizes = [size for size in sizes if low <= size <= high] or [given.dims[BATCH].example]
    return replace(settings, model=model, graphs=replace(settings.graphs, batch_sizes=sizes))


def name_of(module: nn.Module, settings: Settings, key: str | None = None) -> tuple[str, str | None]:
    """What the request calls the module, and why that doesn't name it for certain, where it doesn't.

    Args:
        module: The module.
        settings: The run's settings.
        key: The caller's own word for it, instead of a digest.
    """
    if settings.cache.live == "export":
        return "none", "cache.live=export"
    try:
        digest = f"key {key}" if key is not None else digest_of(module)
    except UncertainError as error:
        return "none", f"the module has no digest: {error}"
    allowed = "" if settings.verify.side_effects == "refuse" else ", side effects allowed"
    return digest + allowed, None


def private_copy(module: nn.Module) -> nn.Module:
    """A copy that later changes of the module's structure don't reach; its weights are the module's own memory.

    A module that can't be copied (one that holds a lock, say) is itself what eager runs.
    """
    memo: dict[int, Any] = {}
    for part in module.modules():
        memo |= {
            id(each): nn.Parameter(each.detach(), requires_grad=False) for each in part.parameters(recurse=False)
        }
        memo |= {id(each): each.detach() for each in part.buffers(recurse=False)}
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:  # noqa: BLE001 - the user's classes may refuse by anything
        logger.warning("%s can't be copied, so eager runs it as it is: %s", type(module).__name__, error)
        return module


@contextmanager
def _printed_into(log: Path) -> Iterator[None]:
    """What torch prints of a program that it can't export, whole graphs, goes where the worker's output goes.

    One thread at a time: standard error is the whole process's, and so is what torch.export notes of what it traces.
    """
    with _ONE_AT_A_TIME, log.open("a", encoding="utf-8") as stream, redirect_stderr(stream):
        # torch's own handlers only: one of the user's may write to a file
        loggers = [
            each for name, each in logging.root.manager.loggerDict.items() if name.partition(".")[0] == "torch"
        ]
        handlers = (each for logger in loggers for each in getattr(logger, "handlers", ()))  # a placeholder has none
        own = {each: each.stream for each in handlers if type(each) is logging.StreamHandler}
        for each in own:
            each.setStream(stream)
        try:
            yield
        finally:
            for each, before in own.items():
                each.setStream(before)


class LiveContext(Context):
    """A run whose model is here already; the worker gets it as an exported program.

    Args:
        uncertain: Why the request doesn't name the module for certain, so that no later one may be answered by it.
    """

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        record: Record,
        phases: Phases,
        *,
        module: nn.Module,
        given: Signature,
        uncertain: str | None,
    ) -> None:
        super().__init__(settings, folder, record, phases)
        self.uncertain = uncertain
        inputs = tuple(
            TensorInput(item.name, tuple(item.shape or ()), item.dtype, item.keyword, item.low, item.high)
            for item in given.inputs
        )
        self._examples = examples_of.Examples(given.tensors, inputs)
        # an attribute of the instance takes the place of the cached property
        self.__dict__["workload"] = Workload(private_copy(module), inputs, given.dims, self.device, self._examples)
        self._untouched = private_copy(module)
        self._versions: int | None = self._counted()

    def weights_exchanged(self) -> None:
        """Take note of the new ones."""
        self._versions = self._counted()

    def eager_runs(self) -> None:
        """Say once that eager answers by weights which were changed in place, and compiled code by those before."""
        if self._versions is not None and self._counted() != self._versions:
            self._versions = None
            self.warn(
                "the module's weights were changed in place after it was compiled: eager answers by the new ones, "
                "compiled code by those before; compile the module again"
            )

    def _counted(self) -> int:
        """How often the parameters were written; they share torch's count with the module's own."""
        return sum(each._version for each in self.workload.module.parameters() if not each.is_inference())  # noqa: SLF001 - documented

    @property
    def has_module(self) -> bool:
        """Yes: it is judged here."""
        return True

    def check_examples(self) -> None:
        """Raise ConfigError for example inputs that the module itself rejects; it is called once."""
        args, kwargs = self.workload.call()
        try:
            with torch.no_grad():
                self.workload.module(*args, **kwargs)
        except Exception as error:
            given = ", ".join(f"{item.name}: {item}" for item in self.workload.inputs)
            raise ConfigError(f"the module rejects its example inputs ({given}): {first_line(error)}") from error

    @cached_property
    def _cast(self) -> nn.Module:
        """The module at the precision that was asked for; as it is, where it doesn't run so."""
        args, kwargs = self.workload.call()
        try:
            with torch.no_grad():
                self.same_precision(*args, **kwargs)
        except Exception:  # noqa: BLE001 - the user's code; what it raises as it is, too, is raised to whoever calls
            return self.workload.module
        return self.same_precision

    @cached_property
    def judge(self) -> Judge:
        """Compares outputs with the module, cast where it can be, and its float64 copy."""
        return Judge(self.workload, self._cast)

    def narrow(self, spec: Mapping[str, Any]) -> None:
        """Draw integers from the ranges that the program's own tables give; examples say nothing of them."""
        found = {item["name"]: (item["low"], item["high"]) for item in spec["inputs"]}
        inputs = tuple(
            replace(item, low=found[item.name][0], high=found[item.name][1]) if item.holds_integers else item
            for item in self.workload.inputs
        )
        self._examples = examples_of.Examples(self._examples.tensors, inputs)
        self.__dict__["workload"] = replace(self.workload, inputs=inputs, make_inputs=self._examples)
        self.__dict__.pop("judge", None)

    def changed(self, model: Callable[..., Any]) -> str | None:
        """How the artifact of a direct hit answers the example inputs differently; None where it doesn't."""
        args, kwargs = self.workload.call()
        with torch.no_grad():
            try:
                far, problem = compared(model(*args, **kwargs), self._cast(*args, **kwargs))
            except Exception as error:  # noqa: BLE001 - either may raise anything
                far, problem = 0.0, f"{type(error).__name__}: {error}"
        if problem is None and far > (limit := self.limit()):
            problem = f"relative distance {far:.2g}, more than {limit:.2g}"
        return problem and f"the artifact of this digest answers the examples differently: {problem}"

    def for_worker(self, staging: Path) -> Settings:
        """Export the module into `staging`; settings that build it from there.

        Raises:
            ConfigError: the module rejects its example inputs.
            ExportError: torch can't export it, or can't save what it exported.
            VerifyError: its calls do more than answer.
        """
        from .compiler.export import export  # it imports torch.export, which a hit does without

        self.import_torch()
        self.check_examples()
        workload, model = self.workload, self.settings.model
        with self.phases("export"), _printed_into(self.folder / COMPILE_LOG):
            exported = export(workload, workload.module)
            programs = {PROGRAM: exported}
            lowered = self._lowered()
            with suppress(ExportError):  # then it is the program that is cast
                programs |= {LOWERED: export(lowered, lowered.module)} if lowered else {}
        self.narrow(exported.spec.to_json())
        self.refuse_side_effects()
        ranged = zip(model.inputs, exported.spec.inputs, strict=True)
        inputs = [replace(item, low=spec.low, high=spec.high) for item, spec in ranged]
        try:
            with _ONE_AT_A_TIME:  # saving replaces how the whole process pickles
                for name, each in programs.items():
                    torch.export.save(each.flat(), staging / name)
        except Exception as error:  # torch serialises what it can, and raises whatever it trips over
            raise ExportError(
                f"the exported program can't be saved: {type(error).__name__}: {error}"[:500]
            ) from error
        (staging / STRUCTURE).write_text(json.dumps(exported.spec.structure), encoding="utf-8")
        examples_of.save(self._examples.tensors, staging / EXAMPLES)
        live = replace(
            model,
            inputs=inputs,
            program=str(staging / PROGRAM),
            lowered=str(staging / LOWERED) if LOWERED in programs else None,
            structure=str(staging / STRUCTURE),
            examples=str(staging / EXAMPLES),
            trusted=True,
        )
        return replace(self.settings, model=live)

    def refuse_side_effects(self) -> None:
        """Raise VerifyError where a call of the module does more than answer, and nobody allows it."""
        if self.settings.verify.side_effects == "allow":
            return
        try:
            effect = self.judge.side_effect()
        except Exception as error:  # the user's module, on draws that are like its examples
            raise VerifyError(f"the module raises on inputs like the examples: {first_line(error)}") from error
        if effect is not None:  # eager begins where the caller's module is, not where these calls have taken a copy
            self.__dict__["workload"] = replace(self.workload, module=self._untouched)
            for name in ("_cast", "judge", "same_precision"):
                self.__dict__.pop(name, None)
            raise VerifyError(
                f"{effect}, which compiled code would not do; verify.side_effects=allow serves it all the same"
            )

    def _lowered(self) -> Workload | None:
        """The module's copy at the precision that was asked for, given inputs of it: to be traced as it is called."""
        copy = self._cast
        if not isinstance(copy, AtPrecision):
            return None
        narrow = str(copy.dtype).removeprefix("torch.")
        inputs = tuple(
            replace(item, dtype=narrow) if item.torch_dtype == torch.float32 else item
            for item in self.workload.inputs
        )
        draws = examples_of.Examples(
            {name: copy.cast_in(value) for name, value in self._examples.tensors.items()}, inputs
        )
        return replace(self.workload, module=copy.module, inputs=inputs, make_inputs=draws)
