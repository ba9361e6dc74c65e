"""Fingerprint: what a live module computes, as a digest; or why that can't be told without exporting it.

A module that lives in a process has no config to name it by. Its digest is made of what its `forward` reaches: the
byte code of each function (not its text: what a notebook defines, or a patch puts in a class, is seen as it is), the
attributes, globals and closures that this code names, and the content of every tensor. Whatever has no value that can
be written down (a live object, a hook, code that looks names up at run time) makes the module uncertain, and an
uncertain module is exported: guessing would serve another model's code.
"""

from __future__ import annotations

import builtins
import dis
import enum
import functools
import hashlib
import inspect
import math
import sys
import types
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as module_globals

_TORCH = str(Path(torch.__file__).parent) + "/"
# Modules of the standard library whose functions answer the same arguments alike, always.
_STEADY = frozenset((
    "builtins", "math", "cmath", "operator", "_operator", "functools", "_functools", "typing", "itertools",
    "collections", "enum", "abc", "copy",
))  # fmt: skip
# Names through which code reaches what its names don't say.
_OPAQUE = frozenset((
    "getattr", "hasattr", "setattr", "eval", "exec", "globals", "locals", "vars", "compile", "__import__",
    "__dict__", "__code__",
))  # fmt: skip
_OPAQUE_OPERATIONS = frozenset(("IMPORT_NAME", "IMPORT_STAR"))
_PLAIN = (type(None), bool, int, str, bytes, complex, type(...), torch.dtype, torch.device, torch.memory_format)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks")
# What nn.Module keeps in every instance, and a call doesn't read.
_BOOKKEEPING = (frozenset(vars(nn.Module())) | {"_flat_weight_refs"}) - {"training", *_HOOKS}
# Special methods that only making or showing an object calls.
_UNCALLED = frozenset((
    "__init__", "__new__", "__init_subclass__", "__repr__", "__str__", "__doc__", "__module__",
    "__annotations__", "__dict__", "__weakref__", "__qualname__", "__firstlineno__", "__static_attributes__",
    "__annotate__", "__parameters__", "__orig_bases__", "__abstractmethods__", "__dir__", "__getstate__",
    "__setstate__", "__reduce__", "__deepcopy__",
))  # fmt: skip


class UncertainError(Exception):
    """The module can't be told by a digest; the message says what in it."""


def fingerprint(module: nn.Module) -> str:
    """The digest, 64 hex digits, of what an eval-mode module computes; equal for equal modules in every process.

    Raises:
        UncertainError: something that `forward` reaches has no value that could be written down.
    """
    walk = _Walk()
    for name in _GLOBAL_HOOKS:
        if getattr(module_globals, name, None):
            raise UncertainError("hooks on all modules are registered")
    if torch._C._len_torch_function_stack() or torch._C._len_torch_dispatch_stack():  # noqa: SLF001
        raise UncertainError("a torch function or dispatch mode is active")
    walk.module(module)
    walk.finish()
    return walk.digest()


class _Walk:
    """One pass over a module and what it reaches: every object once, in an order that depends on nothing else."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._seen: dict[int, tuple[int, Any]] = {}  # with the object itself, so that no id is used twice
        self._names: set[str] = {"forward", "__call__"}
        self._owners: list[tuple[str, Any]] = []  # what names are looked up in: classes, instances, Python modules
        self._taken: set[tuple[int, str]] = set()

    def digest(self) -> str:
        return self._hash.hexdigest()

    def _say(self, *parts: object) -> None:
        for part in parts:
            text = str(part).encode("utf-8", "surrogatepass")
            self._hash.update(f"{len(text)}:".encode() + text)  # lengths keep neighbours apart

    def _is_new(self, value: object) -> bool:
        if (known := self._seen.get(id(value))) is not None:
            self._say("same", known[0])
            return False
        self._seen[id(value)] = (len(self._seen), value)
        return True

    def finish(self) -> None:
        """Take whatever the names in the code so far reach, until they reach nothing new."""
        before = -1
        while before != len(self._taken):
            before = len(self._taken)
            for where, owner in list(self._owners):
                for name in sorted(self._names):
                    self._look_up(where, owner, name)

    def _look_up(self, where: str, owner: Any, name: str) -> None:
        known = owner if isinstance(owner, Mapping) else vars(owner)
        if name not in known or (id(owner), name) in self._taken:
            return
        self._taken.add((id(owner), name))
        self._say("name", where, name)
        self.value(f"{where}.{name}", known[name])

    # What a module is

    def module(self, module: nn.Module) -> None:
        """A module: its class, its own attributes, its tensors, its parts."""
        if not self._is_new(module):
            return
        kind, own = type(module), vars(module)
        where = kind.__qualname__
        for name in _HOOKS:
            if own.get(name):
                raise UncertainError(f"{where} has hooks")
        if isinstance(module, torch.jit.ScriptModule):
            raise UncertainError(f"{where} is a script")
        self._say("module", module.training)
        self.cls(kind)
        attributes = {name: value for name, value in own.items() if name not in _BOOKKEEPING}
        if _is_torchs(kind):  # its own code isn't read here, so all that it may read is
            for name in sorted(attributes):
                self._say("attribute", name)
                self.value(f"{where}.{name}", attributes[name])
        else:
            self._seen[id(attributes)] = (len(self._seen), attributes)
            self._owners.append((f"{where} object {self._seen[id(module)][0]}", attributes))
        for group in ("_parameters", "_buffers"):
            for name, tensor in own[group].items():
                self._say(group, name, name in own["_non_persistent_buffers_set"])
                self.value(f"{where}.{name}", tensor)
        for name, part in own["_modules"].items():
            self._say("part", name)
            self.value(f"{where}.{name}", part)

    def cls(self, kind: type) -> None:
        """A class: what its name stands for where torch made it, otherwise its methods, as they are reached."""
        self._say("class", kind.__module__ if _is_torchs(kind) else "", kind.__qualname__)
        for base in kind.__mro__:
            if base is object or id(base) in self._seen:
                continue
            self._seen[id(base)] = (len(self._seen), base)
            if _is_torchs(base):
                self._check_torchs(base)
            elif base.__module__ not in _STEADY:
                self._owners.append((f"class {base.__qualname__}", base))
                special = (name for name in vars(base) if name.startswith("__") and name.endswith("__"))
                self._names |= set(special) - _UNCALLED
        if isinstance(inspect.getattr_static(kind, "__slots__", None), (list, tuple)):
            return  # what is in the slots is looked up as an attribute of the class: a descriptor, so uncertain

    def _check_torchs(self, kind: type) -> None:
        """The version stands for torch's own classes, unless somebody has patched them."""
        found: Any = sys.modules.get(kind.__module__)
        for part in kind.__qualname__.split("."):
            found = getattr(found, part, None)
        if found is not kind:
            raise UncertainError(f"{kind.__qualname__} was made while the program runs")
        for name, value in sorted(vars(kind).items()):
            method = inspect.unwrap(value) if isinstance(value, types.FunctionType) else value
            if not isinstance(method, types.FunctionType) or name in _UNCALLED or _is_generated(method):
                continue
            if not _is_in_torch(method.__code__) or not _is_found_as(method, method.__qualname__, unwrapped=True):
                raise UncertainError(f"{kind.__qualname__}.{name} is patched")
            self._say("method", name, method.__module__, method.__qualname__)  # of another class, maybe
            self._check_calls(method)

    def _check_calls(self, function: types.FunctionType) -> None:
        """See that what torch.nn's own code calls by name is torch's own, too."""
        if id(function) in self._seen:
            return
        self._seen[id(function)] = (len(self._seen), function)
        if not function.__module__.startswith("torch.nn"):
            return
        names = set(_names_of(function.__code__))
        self._check_methods(names)
        for name in sorted(names):
            found = function.__globals__.get(name)
            values = [found]
            if isinstance(found, types.ModuleType) and found.__name__.startswith("torch"):
                values = [vars(found).get(inner) for inner in names]
            for value in values:
                if isinstance(value, types.FunctionType):
                    if not _is_in_torch(value.__code__) and value.__module__ not in _STEADY:
                        raise UncertainError(f"{name} is patched")
                    self._check_calls(value)

    def _check_methods(self, names: Iterable[str]) -> None:
        for name in names:
            method = inspect.getattr_static(torch.Tensor, name, None)
            if isinstance(method, types.FunctionType) and not _is_in_torch(inspect.unwrap(method).__code__):
                raise UncertainError(f"torch.Tensor.{name} is patched")

    # What code reaches

    def function(self, where: str, function: types.FunctionType) -> None:
        """A function: its name where it is torch's or Python's own, otherwise its byte code and all it names."""
        if not self._is_new(function):
            return
        module = function.__module__ or ""
        if _is_in_torch(function.__code__) or module in _STEADY:
            if not _is_found_as(function, function.__qualname__) and not _is_found_as(function, function.__name__):
                raise UncertainError(f"{where} was made while the program runs")
            self._say("known", module, function.__qualname__)
            self._check_calls(function)
            return
        self._say("function", function.__qualname__)
        for kind, value in (("defaults", function.__defaults__), ("keywords", function.__kwdefaults__)):
            self._say(kind)
            self.value(f"{where}'s {kind}", value)
        self.code(where, function.__code__, function.__globals__)
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            self._say("closure", name)
            try:
                self.value(f"{where}'s {name}", cell.cell_contents)
            except ValueError as error:  # an empty cell
                raise UncertainError(f"{where} is not finished: {error}") from error

    def code(self, where: str, code: types.CodeType, known: dict[str, Any]) -> None:
        """Byte code and constants; its names are looked up in its globals, and in all classes and instances."""
        self._say("code", code.co_code.hex(), code.co_flags, code.co_names, code.co_varnames, code.co_freevars)
        self._say(code.co_cellvars, code.co_argcount, code.co_kwonlyargcount, code.co_exceptiontable.hex())
        if opaque := _OPAQUE & set(code.co_names):
            raise UncertainError(f"{where} uses {min(opaque)}")
        if any(step.opname in _OPAQUE_OPERATIONS for step in dis.get_instructions(code)):
            raise UncertainError(f"{where} imports while it runs")
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self.code(where, constant, known)
            else:
                self.value(f"a constant of {where}", constant)
        self._check_methods(code.co_names)
        self._names |= set(code.co_names)
        for name in sorted(set(code.co_names)):
            if name in known and (id(known), name) not in self._taken:
                self._taken.add((id(known), name))
                self._say("global", name)
                self.value(name, known[name])
            elif name not in known and name in vars(builtins):
                self.value(name, vars(builtins)[name])

    # Values

    def value(self, where: str, value: Any) -> None:
        """Any value, by what it is; raises UncertainError for what can't be written down."""
        kind = type(value)
        if kind in _PLAIN or kind in (torch.Size, range, slice):
            self._say(kind.__name__, repr(value))
        elif kind is float:
            self._say("float", value.hex() if math.isfinite(value) else repr(value))
        elif isinstance(value, torch.Tensor):
            self.tensor(where, value)
        elif isinstance(value, nn.Module):
            self.module(value)
        elif kind in (list, tuple, dict, OrderedDict, set, frozenset, deque):
            self._container(where, value)
        elif isinstance(value, enum.Enum):
            self._say("enum", kind.__module__, kind.__qualname__, value.name)
            self.value(where, value.value)
        elif isinstance(value, type):
            self._class_value(where, value)
        elif not self._callable(where, value):
            raise UncertainError(f"{where} is a live {kind.__qualname__}")

    def _container(self, where: str, value: Any) -> None:
        if not value:
            self._say("empty", type(value).__name__)
            return
        if not self._is_new(value):
            return
        self._say(type(value).__name__, len(value))
        if isinstance(value, (set, frozenset)):
            if not all(type(item) in (bool, int, str) for item in value):
                raise UncertainError(f"{where} is a set, whose order isn't known")
            self._say(sorted(map(repr, value)))
            return
        for item in _flat(value):
            self.value(where, item)

    def _class_value(self, where: str, value: type) -> None:
        if _is_torchs(value) or value.__module__ in _STEADY:
            self._say("class", value.__module__, value.__qualname__)
            if isinstance(sys.modules.get(value.__module__), types.ModuleType) and not _is_found_as(
                value, value.__qualname__
            ):
                raise UncertainError(f"{where} was made while the program runs")
            return
        raise UncertainError(f"{where} is a class")  # which code may make objects of

    def _callable(self, where: str, value: Any) -> bool:
        match value:
            case types.FunctionType():
                self.function(where, value)
            case types.MethodType():
                if not isinstance(value.__self__, nn.Module):
                    return False
                self._say("method")
                self.module(value.__self__)
                self.function(where, value.__func__)  # type: ignore[arg-type]
            case staticmethod() | classmethod():
                self._say(type(value).__name__)
                self.value(where, value.__func__)
            case property():
                self._say("property")
                self.value(where, [value.fget, value.fset, value.fdel])
            case functools.partial():
                self._say("partial")
                self.value(where, [value.func, value.args, value.keywords])
            case types.BuiltinFunctionType() | types.MethodDescriptorType() | types.WrapperDescriptorType():
                return self._builtin(value)
            case types.ModuleType():
                self._python_module(where, value)
            case _:
                return False
        return True

    def _builtin(self, value: Any) -> bool:
        owner = getattr(value, "__objclass__", None)
        module = getattr(value, "__module__", None) or (owner.__module__ if owner is not None else "")
        bound = getattr(value, "__self__", None)
        steady = module in _STEADY and (bound is None or isinstance(bound, type | types.ModuleType))
        if not steady and module.partition(".")[0] != "torch":
            return False
        self._say("builtin", module, value.__qualname__)
        return True

    def _python_module(self, where: str, value: types.ModuleType) -> None:
        """A Python module's attributes are looked up by the names that the code has."""
        top = value.__name__.partition(".")[0]
        if value is torch.ops or value.__name__.startswith("torch.ops"):
            raise UncertainError(f"{where} holds operators that anybody may register")
        file = getattr(value, "__file__", None)
        if file is None or (top not in _STEADY and file.startswith(_stdlib())):
            if top not in _STEADY:
                raise UncertainError(f"{where} is Python's module {value.__name__}, which may depend on anything")
            return
        if id(value) not in self._seen:
            self._seen[id(value)] = (len(self._seen), value)
            self._owners.append((value.__name__, value))
        self._say("python", value.__name__)

    def tensor(self, where: str, tensor: torch.Tensor) -> None:
        """Metadata, storage (which tensors share), and every byte."""
        if type(tensor) not in (torch.Tensor, nn.Parameter) or tensor.layout is not torch.strided or tensor.is_meta:
            raise UncertainError(f"{where} is a {type(tensor).__name__} that isn't plain")
        if tensor.is_conj() or tensor.is_neg() or tensor.is_quantized:
            raise UncertainError(f"{where} is a view that isn't plain")
        self._say("tensor", tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.device.type)
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if not tensor.numel():
            return
        number, _ = self._seen.setdefault(-address, (len(self._seen), tensor))
        self._say("storage", number, tensor.storage_offset())
        if self._is_new(tensor):
            plain = tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8)
            self._hash.update(hashlib.sha256(plain.numpy().data).digest())


def _flat(value: Any) -> Iterator[Any]:
    for item in value:
        yield item
        if isinstance(value, dict):
            yield value[item]


def _names_of(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names_of(constant)


def _is_torchs(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == "torch"


def _is_in_torch(code: types.CodeType) -> bool:
    return code.co_filename.startswith(_TORCH)


def _is_generated(function: types.FunctionType) -> bool:
    """Methods that Python's own dataclasses and named tuples write."""
    return function.__code__.co_filename.startswith("<string>")


def _is_found_as(value: Any, name: str, *, unwrapped: bool = False) -> bool:
    found: Any = sys.modules.get(value.__module__)
    for part in name.split("."):
        found = inspect.getattr_static(found, part, None)
    return (inspect.unwrap(found) if unwrapped and callable(found) else found) is value


def _stdlib() -> str:
    return str(Path(math.__file__ if hasattr(math, "__file__") else inspect.__file__).parent.parent) + "/"
