"""Torch's names: which object stands where in torch, so that a function is told by its place, and a patch is seen.

The version of torch is part of every key and stands for the code of what is torch's own; this sees that what stands
in its places is: functions by their byte code, whatever they say of themselves.
"""

from __future__ import annotations

import hashlib
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

# What a model's code calls, and what that calls; a module of torch that isn't here is no known one.
_MODULES = (
    "torch", "torch.functional", "torch._VF", "torch._tensor", "torch.nn", "torch.nn.functional",
    "torch.nn.parameter", "torch.nn.init", "torch.nn._reduction", "torch._C._nn", "torch.fft", "torch.linalg",
    "torch.special", "torch._jit_internal", "torch.autograd.grad_mode", "torch.amp.autocast_mode",
    "torch.utils._contextlib",
)  # fmt: skip
_PREFIX = "torch.nn.modules."
# What copying, scripting, torch.compile and well-known packages do to classes, and no call depends on.
_ADDED = frozenset((
    "smart_apply", "__slotnames__", "__annotations__", "__init__", "__setstate__", "___needs_generation_tag_patch",
    "manual_seed",
))  # fmt: skip
_OWNERS = frozenset(
    ("torch", "builtins", "typing", "functools", "enum", "abc", "types", "collections", "typing_extensions")
)
_BUILTIN = (
    types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType,
    types.ClassMethodDescriptorType, types.GetSetDescriptorType, types.MemberDescriptorType, types.MethodWrapperType,
)  # fmt: skip
_PLAIN = (type(None), bool, int, float, str, bytes, torch.dtype, torch.device, torch.layout, torch.memory_format)

# Byte code never changes: each is described once.
_codes: dict[int, tuple[types.CodeType, str]] = {}


class PatchedError(Exception):
    """Something in torch isn't torch's; the message says what."""


class TorchNames:
    """Every function and class in the places that models reach.

    Attributes:
        digest: Of which stands where.

    Raises:
        PatchedError: a place holds what isn't torch's and has no code to tell it by.
    """

    def __init__(self) -> None:
        hashed = hashlib.sha256()
        self._names: dict[int, str] = {}
        self._modules: set[int] = set()
        for name in [*_MODULES, *sorted(name for name in sys.modules if name.startswith(_PREFIX))]:
            module = sys.modules.get(name)
            if isinstance(module, types.ModuleType):
                self._modules.add(id(module))
                for text in self._described(name, vars(module)):
                    hashed.update(text.encode("utf-8", "surrogatepass"))
        for kind in (torch._C.TensorBase, torch.Tensor, nn.Parameter):  # noqa: SLF001 - where the methods are
            for text in self._class(kind):
                hashed.update(text.encode("utf-8", "surrogatepass"))
        self.digest = hashed.hexdigest()

    def name_of(self, value: Any) -> str | None:
        """Where an object of torch's stands; None for any other."""
        return self._names.get(id(value))

    def holds(self, module: types.ModuleType) -> bool:
        """Whether it is one of the Python modules that were looked at."""
        return id(module) in self._modules

    def _described(self, where: str, held: Mapping[str, Any]) -> Iterator[str]:
        for name, value in sorted(held.items()):
            if name.startswith("__") or name in _ADDED:
                continue
            place = f"{where}.{name}"
            if isinstance(value, types.ModuleType):
                if value.__name__.startswith("torch") and sys.modules.get(value.__name__) not in (value, None):
                    raise PatchedError(f"{place} is another module than {value.__name__}")
                continue
            if isinstance(value, type) and value.__module__.startswith("torch"):
                yield from self._class(value)
            yield f"{place}={self._word(place, value)};"

    def _class(self, kind: type) -> Iterator[str]:
        where = f"{kind.__module__}.{kind.__qualname__}"
        if id(kind) in self._names:
            return
        found: Any = sys.modules.get(kind.__module__)
        for part in kind.__qualname__.split("."):
            found = getattr(found, part, None)
        if found is not kind and kind is not torch._C.TensorBase:  # noqa: SLF001 - known by another name
            return  # made while torch was imported: no known one
        self._names[id(kind)] = where
        if not issubclass(kind, nn.Module | torch._C.TensorBase) and kind.__module__ not in _MODULES[1:]:  # noqa: SLF001
            return
        for name, value in sorted(vars(kind).items()):
            if name not in _ADDED and name not in {"__dict__", "__weakref__", "__doc__"}:
                yield f"{where}.{name}={self._word(f'{where}.{name}', value)};"

    def _word(self, place: str, value: Any, depth: int = 0) -> str:
        """What stands in a place, as a word; remembers what may be told by it."""
        kind = type(value)
        if kind in (staticmethod, classmethod):
            return f"{kind.__name__} {self._word(place, value.__func__, depth)}"
        if kind is property:
            return " ".join(self._word(place, part, depth) for part in (value.fget, value.fset, value.fdel))
        if isinstance(value, type):
            if value.__module__.partition(".")[0] not in {*sys.stdlib_module_names, *_OWNERS}:
                raise PatchedError(f"{place} is {value.__qualname__}, which isn't torch's")
            return f"{value.__module__}.{value.__qualname__}"
        if kind in _PLAIN:
            return repr(value)
        if kind is not types.FunctionType and kind not in _BUILTIN:
            return self._other(place, value, depth)
        if not depth:
            self._names.setdefault(id(value), place)
        return self._function(place, value, depth) if kind is types.FunctionType else _builtin(value)

    def _function(self, place: str, function: types.FunctionType, depth: int) -> str:
        """A function by its byte code, defaults and attributes, and those of all that it closes over."""
        if depth > 8:
            return "..."
        cells = [cell.cell_contents for cell in function.__closure__ or () if _is_full(cell)]
        parts = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values(), *cells]
        held = [f"{name}={self._word(place, item, depth + 1)}" for name, item in sorted(vars(function).items())]
        return f"{_described(function.__code__)} {[self._word(place, part, depth + 1) for part in parts]} {held}"

    def _other(self, place: str, value: Any, depth: int) -> str:
        """Containers by what is in them; other objects by their class, which has to be torch's or Python's own."""
        kind = type(value)
        if kind in (list, tuple, dict, set, frozenset):
            if depth > 2 or len(value) > 50:
                return f"{kind.__name__} {len(value)}"
            items = [part for item in value.items() for part in item] if kind is dict else value
            words = [self._word(place, item, depth + 1) for item in items]
            return f"{kind.__name__} {sorted(words) if kind in (set, frozenset) else words}"
        foreign = (kind.__module__ or "").partition(".")[0] not in _OWNERS
        if kind is types.MethodType and isinstance(value.__self__, type | types.ModuleType | torch.Generator):
            return f"method {self._word(place, value.__func__, depth + 1)}"
        if callable(value) and (foreign or kind.__name__ in {"partial", "method"} or isinstance(value, nn.Module)):
            raise PatchedError(f"{place} is a {kind.__qualname__}, which isn't torch's")
        if foreign and hasattr(kind, "__get__"):
            raise PatchedError(f"{place} is a {kind.__qualname__}, which isn't torch's")
        wrapped = getattr(value, "__wrapped__", None) or getattr(value, "func", None)
        inner = self._word(place, wrapped, depth + 1) if callable(wrapped) else ""
        return f"{kind.__module__}.{kind.__qualname__} {getattr(value, '__name__', '')} {inner}"


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
