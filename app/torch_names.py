"""Torch's names: which object stands where in torch, so that a function is told by its place, and a patch is seen.

The version of torch is part of every key and stands for the code of what is torch's own; this sees that what stands
in its places is: functions by their byte code, whatever they say of themselves.
"""

from __future__ import annotations

import functools
import hashlib
import re
import sys
import types
from collections.abc import Iterator, Mapping
from importlib.abc import InspectLoader
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .bytecode import is_c

# What a model's code calls, and what that calls; a module of torch that isn't here is no known one.
_MODULES = (
    "torch", "torch.functional", "torch._VF", "torch._tensor", "torch.nn", "torch.nn.functional",
    "torch.nn.parameter", "torch.nn.init", "torch.nn._reduction", "torch._C._nn", "torch.fft", "torch.linalg",
    "torch.special", "torch._jit_internal", "torch.autograd.grad_mode", "torch.amp.autocast_mode",
    "torch.utils._contextlib", "torch.overrides", "torch.backends.mha", "torch.compiler",
)  # fmt: skip
_PREFIX = "torch.nn.modules."
# What of these a model may hold or name: operators, and what else answers the same arguments alike. None: all of it.
_PUBLIC: dict[str, frozenset[str] | None] = {
    "torch": frozenset(name for name in dir(torch._C._VariableFunctions) if not name.startswith("_"))  # noqa: SLF001
    - {"from_file", "is_inference", "cudnn_is_acceptable", "is_vulkan_available"}
    | {"is_tensor", "broadcast_shapes", "no_grad", "enable_grad", "inference_mode", "set_grad_enabled", "autocast",
       "vmap", "Tensor", "Size", "device", "dtype", "finfo", "iinfo"},
    "torch.functional": frozenset(torch.functional.__all__),
    "torch.jit": frozenset(("is_scripting", "is_tracing")),
    "torch.compiler": frozenset(("is_compiling", "is_dynamo_compiling", "is_exporting")),
    **dict.fromkeys(("torch.nn", "torch.nn.functional", "torch.nn.init", "torch._C._nn", "torch.fft", "torch.linalg",
                     "torch.special", "torch.autograd.grad_mode")),
}  # fmt: skip
_OPERATORS = {
    name.removeprefix("aten::").partition(".")[0]
    for name in torch._C._dispatch_get_all_op_names()  # noqa: SLF001
}  # of other libraries' only with their own prefix
# A tensor's methods that are operators, or ask what a tensor's values and shape tell; the rest ask for its state.
TENSOR_NAMES = {name for name in dir(torch.Tensor) if not name.startswith("_") and name in _OPERATORS} - {
    "is_leaf", "output_nr", "retain_grad", "retains_grad", "requires_grad_", "is_inference", "is_pinned", "names",
    "is_distributed", "backward",
} | {
    "H", "T", "bfloat16", "bool", "byte", "cdouble", "cfloat", "char", "cpu", "cuda", "device", "dim_order",
    "double", "dtype", "element_size", "float", "half", "int", "is_cpu", "is_cuda", "is_meta", "is_mkldnn", "is_mps",
    "is_nested", "is_quantized", "is_sparse", "is_xpu", "itemsize", "layout", "long", "lu", "name", "nbytes", "ndim",
    "ndimension", "nelement", "new", "new_tensor", "shape", "short", "tolist", "type", "unique",
}  # fmt: skip
TENSOR_STATE = frozenset(dir(torch.Tensor)) - TENSOR_NAMES
# What copying, scripting, torch.compile and well-known packages do to classes, and no call depends on.
_ADDED = frozenset((
    "smart_apply", "__slotnames__", "__annotations__", "__setstate__", "___needs_generation_tag_patch", "manual_seed",
))  # fmt: skip
_OWNERS = frozenset(
    ("torch", "builtins", "typing", "functools", "enum", "abc", "types", "collections", "typing_extensions")
)
_HOMES = _OWNERS | sys.stdlib_module_names
_BUILTIN = (
    types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType,
    types.ClassMethodDescriptorType, types.GetSetDescriptorType, types.MemberDescriptorType, types.MethodWrapperType,
)  # fmt: skip
_PLAIN = (type(None), bool, int, float, str, bytes, torch.dtype, torch.device, torch.layout, torch.memory_format)

_DEEPEST = 8
# Torch itself has this one's kernel registered by its relay.
_RELAYED = frozenset(("aten::_foreach_mm",))

# Byte code never changes: each is described once.
_codes: dict[int, tuple[types.CodeType, str]] = {}


class PatchedError(Exception):
    """Something in torch isn't torch's; the message says what."""


class TorchNames:
    """What stands where in torch.

    Attributes:
        digest: Of every function, class and constant in the places that models reach.
        attributes: Names that the classes of its modules hold, all of them in the digest.

    Raises:
        PatchedError: a place holds what isn't torch's and has no code to tell it by.
    """

    def __init__(self) -> None:
        hashed = hashlib.sha256()
        self._names: dict[int, str] = {}
        self._met: set[type] = set()
        self._functions: dict[int, int] = {}
        self.attributes: set[str] = set()
        layers = sorted(name for name in sys.modules if name.startswith(_PREFIX))
        held = {name: vars(sys.modules[name]) for name in (*_MODULES, *layers) if name in sys.modules}
        held["torch.jit"] = {name: getattr(torch.jit, name) for name in _PUBLIC["torch.jit"] or ()}
        held["torch._C"] = {"TensorBase": torch._C.TensorBase}  # noqa: SLF001 - where the methods are
        for name, given in held.items():
            for text in self._described(name, given):
                hashed.update(text.encode("utf-8", "surrogatepass"))
        for place, public in {**_PUBLIC, **dict.fromkeys(layers)}.items():
            for name in sorted(vars(sys.modules[place]).keys() & public if public else vars(sys.modules[place])):
                self._name(f"{place}.{name}", vars(sys.modules[place])[name])
        self.digest = hashed.hexdigest()

    def name_of(self, value: Any) -> str | None:
        """Where an object of torch's stands; None for any other."""
        return self._names.get(id(value))

    def _name(self, place: str, value: Any) -> None:
        if not isinstance(value, type | types.FunctionType | types.BuiltinFunctionType):
            return
        is_told = not isinstance(value, type) or value in self._met or is_c(value)
        if not (value.__module__ or "torch").startswith("torch") or id(value) in self._names or not is_told:
            return
        self._names[id(value)] = f"{place} {value.__name__} {value.__qualname__}"
        known = TENSOR_NAMES if value is torch.Tensor else vars(value) if value in self._met else ()
        for name in sorted(vars(value).keys() & known if known else ()):
            self._names.setdefault(id(vars(value)[name]), f"{place}.{name}")

    def _described(self, where: str, held: Mapping[str, Any]) -> Iterator[str]:
        for name, value in sorted(held.items()):
            if name.startswith("__") or name in _ADDED:
                continue
            place = f"{where}.{name}"
            if isinstance(value, types.ModuleType):
                if sys.modules.get(value.__name__) is not value:
                    raise PatchedError(f"{place} is another module than {value.__name__}")
                continue
            if isinstance(value, type) and value.__module__.startswith("torch") and value not in self._met:
                yield from self._class(value)
            yield f"{place}={self._word(place, value)};"

    def _class(self, kind: type) -> Iterator[str]:
        is_model = issubclass(kind, nn.Module | torch._C.TensorBase)  # noqa: SLF001
        if not is_model and (kind.__module__ not in _MODULES[1:] or type(kind) is not type):
            return
        self._met.add(kind)
        where = f"{kind.__module__}.{kind.__qualname__}"
        for name, value in sorted(vars(kind).items()):
            if name not in _ADDED and name not in {"__dict__", "__weakref__", "__doc__"}:
                held = _untagged(value) if kind is nn.Module and name == "__init__" else value
                yield f"{where}.{name}={self._word(f'{where}.{name}', held, whole=name[:2] != '__')};"
                if issubclass(kind, nn.Module) and not name.startswith("__"):
                    self.attributes.add(name)

    def _word(self, place: str, value: Any, depth: int = 0, *, whole: bool = False) -> str:
        """What stands in a place, as a word; all of it if `whole`, for there a model's code may read it."""
        kind = type(value)
        if kind in (staticmethod, classmethod):
            return f"{kind.__name__} {self._word(place, value.__func__, depth)}"
        if kind is property:
            return " ".join(self._word(place, part, depth) for part in (value.fget, value.fset, value.fdel))
        if isinstance(value, type):
            if value.__module__.partition(".")[0] not in _HOMES:
                raise PatchedError(f"{place} is {value.__qualname__}, which isn't torch's")
            return f"{value.__module__}.{value.__qualname__}"
        if kind in _PLAIN:
            return repr(value)
        if kind is types.FunctionType:
            return self._function(place, value, depth)
        return _builtin(value) if kind in _BUILTIN else self._other(place, value, depth, whole=whole)

    def _function(self, place: str, function: types.FunctionType, depth: int) -> str:
        """A function by its byte code, defaults and attributes, and those of all that it closes over."""
        if id(function) in self._functions:
            return f"again {self._functions[id(function)]}"
        self._functions[id(function)] = len(self._functions)
        home = function.__globals__.get("__name__", "")
        module = sys.modules.get(home)
        is_own = type(module) is not types.ModuleType or function.__globals__ is vars(module)
        if home.partition(".")[0] not in _HOMES or not is_own or not _is_written(home, function.__code__):
            raise PatchedError(f"{place} is a function that isn't torch's")
        cells = [cell.cell_contents for cell in function.__closure__ or () if _is_full(cell)]
        parts = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values(), *cells]
        held = [
            f"{name}={self._word(place, item, depth + 1, whole=True)}"
            for name, item in sorted(vars(function).items())
        ]
        return f"{_described(function.__code__)} {[self._word(place, part, depth + 1) for part in parts]} {held}"

    def _other(self, place: str, value: Any, depth: int, *, whole: bool) -> str:
        """Containers by what is in them; other objects by their class, which has to be torch's or Python's own."""
        kind = type(value)
        if kind in (list, tuple, dict, set, frozenset):
            if depth > _DEEPEST:
                raise PatchedError(f"{place} is nested too deeply")
            items = [part for item in value.items() for part in item] if kind is dict else value
            words = [self._word(place, item, depth + 1, whole=whole) for item in items]
            return f"{kind.__name__} {sorted(words) if kind in (set, frozenset) else words}"
        if kind is types.MethodType and isinstance(value.__self__, type | types.ModuleType | torch.Generator):
            return f"method {self._word(place, value.__func__, depth + 1)}"
        is_read = whole and kind.__module__ not in {"typing", "_abc"}
        if is_read or not _is_torchs(kind) or isinstance(value, torch.Tensor | nn.Module | functools.partial):
            raise PatchedError(f"{place} is a {kind.__qualname__}, which isn't torch's")
        wrapped = getattr(value, "__wrapped__", None)
        inner = self._word(place, wrapped, depth + 1) if callable(wrapped) else ""
        return f"{kind.__module__}.{kind.__qualname__} {getattr(value, '__name__', '')} {inner}"


def check_kernels() -> None:
    """Raise PatchedError if an operator of torch's has a kernel that isn't torch's.

    The dispatcher is asked: it knows from which file each came, of torch.library's, of C++ extensions', of private
    calls'. Other operators than ATen's are only in `torch.ops`, which is no known name.
    """
    names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("aten::")]  # noqa: SLF001
    operators = {name: torch._C._dispatch_dump(name) for name in names}  # noqa: SLF001
    root = operators["aten::relu"].partition("\ndebug: registered at ")[2].partition("build/aten/")[0]
    package = re.escape(str(Path(torch.__file__).parent))
    # of the package's files, these register what others hand to them
    relays = r"library\.py|_library/|_native/registry\.py"
    others = re.compile(rf"registered at (?!{re.escape(root)}|{package}/(?!{relays}))")
    for name, text in operators.items():
        if name not in _RELAYED and others.search(text):
            raise PatchedError(f"{name} has a kernel that isn't torch's")
    if any(map(torch._C._dispatch_has_backend_fallback, (torch._C.DispatchKey.CPU, torch._C.DispatchKey.CUDA))):  # noqa: SLF001
        raise PatchedError("operators have a fallback that isn't torch's")


def _untagged(function: Any) -> Any:
    """`nn.Module.__init__` without the wrapper that torch.compile puts around it, if it is that one."""
    home = "torch._dynamo.mutation_guard"
    is_tag = home in sys.modules and getattr(function, "__globals__", None) is vars(sys.modules[home])
    return function.__closure__[0].cell_contents if is_tag and _is_written(home, function.__code__) else function


@functools.cache
def _written(home: str) -> dict[tuple[str, int], types.CodeType]:
    """All code in a module's file, as it is imported, by qualified name and first line."""
    parent = home.rpartition(".")[0]
    spec = PathFinder.find_spec(home, sys.modules[parent].__path__ if parent else None)
    code = spec.loader.get_code(home) if spec and isinstance(spec.loader, InspectLoader) else None
    found, left = {}, [code] if code else []
    while left:
        code = left.pop()
        found[code.co_qualname, code.co_firstlineno] = code
        left += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return found


def _is_written(home: str, code: types.CodeType) -> bool:
    """Whether this is the code of one of a module's own functions, whatever it says of itself."""
    own = _written(home).get((code.co_qualname, code.co_firstlineno))
    return own is not None and (own == code or _described(own) == _described(code))


def _is_torchs(kind: type) -> bool:
    """Whether a class is torch's or Python's own, and stands where it says."""
    found: Any = sys.modules.get(kind.__module__)
    for part in kind.__qualname__.split("."):
        found = getattr(found, part, None)
    if kind.__module__ == "types":
        return kind in (types.GenericAlias, types.UnionType)
    is_own = kind.__module__.partition(".")[0] in {*_OWNERS, "_thread", "weakref", "__future__"}
    return is_own and (found is kind or is_c(kind)) and kind is not types.MethodType


def _builtin(value: Any) -> str:
    holder = getattr(value, "__self__", None)
    if holder is not None and not isinstance(holder, type | types.ModuleType):
        holder = type(holder)
    return f"{type(value).__name__} {getattr(holder, '__name__', '')} {value.__qualname__}"


def _described(code: types.CodeType) -> str:
    if id(code) not in _codes:
        hashed = hashlib.sha256(code.co_code)
        hashed.update(repr((code.co_names, code.co_freevars, code.co_argcount, code.co_flags)).encode())
        for constant in code.co_consts:
            text = _described(constant) if isinstance(constant, types.CodeType) else _constant(constant)
            hashed.update(text.encode("utf-8", "surrogatepass"))
        _codes[id(code)] = (code, hashed.hexdigest())
    return _codes[id(code)][1]


def _constant(value: Any) -> str:
    return repr(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)


def _is_full(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False
