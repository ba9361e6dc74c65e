"""Fingerprint: what a live module computes, as a digest; or why that can't be told without exporting it.

A module that lives in a process has no config to name it by. Its digest is made of all that its classes and instances
hold: the byte code of each method (not its text: what a notebook defines, or a patch puts in a class, is seen as it
is), attributes, the globals and closures that the code names, and every tensor's bytes. Torch's own functions are
told by where they stand (torch_names.py), which a patch changes. Whatever has no value that can be written down, a
live object, a hook, another Python module, makes the module uncertain, and an uncertain module is exported: guessing
would serve another model's code. See docs/adr/0012-live-modules.md.
"""

from __future__ import annotations

import abc
import builtins
import collections
import dis
import functools
import hashlib
import itertools
import math
import operator
import re
import struct
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as module_globals

from .torch_names import PatchedError, TorchNames

# Python modules that code may name: what they hold answers the same arguments alike, always.
_STEADY = (math, operator, functools, itertools, typing, collections)
_BUILTINS = frozenset((
    "abs", "all", "any", "bool", "callable", "dict", "divmod", "enumerate", "filter", "float", "getattr", "hasattr",
    "int", "isinstance", "issubclass", "iter", "len", "list", "map", "max", "min", "next", "object", "pow", "print",
    "property", "range", "reversed", "round", "slice", "sorted", "staticmethod", "str", "sum", "super", "tuple",
    "type", "zip", "__build_class__",
))  # fmt: skip
# Names by which code reaches what isn't written down here: the world, torch's switches, what a tensor hides.
_OPAQUE = frozenset((
    "backends", "ops", "library", "initial_seed", "manual_seed", "seed", "load", "save", "from_file", "grad", "_grad",
    "grad_fn", "requires_grad", "is_leaf", "untyped_storage", "_typed_storage", "storage", "data_ptr", "_version",
    "gi_frame", "cr_frame", "f_globals", "f_locals", "f_back", "tb_frame", "smart_apply", "id", "hash", "eval",
    "exec", "globals", "locals", "vars", "compile", "input", "open", "dir", "get_type_hints",
))  # fmt: skip
# Special names that say nothing but what an operation or a class is.
_HARMLESS = frozenset((
    "__class__", "__name__", "__len__", "__getitem__", "__setitem__", "__contains__", "__iter__", "__next__",
    "__call__", "__enter__", "__exit__", "__build_class__", "__version__",
))  # fmt: skip
# What of torch's switches a name reads.
_SWITCH = re.compile(r"(get|are)_\w+|is_\w+_enabled")
# Imports at run time, writes to globals, and sets, whose order depends on the process.
_OPAQUE_OPERATIONS = frozenset((
    "IMPORT_NAME", "IMPORT_STAR", "IMPORT_FROM", "STORE_GLOBAL", "DELETE_GLOBAL", "BUILD_SET", "SET_ADD",
    "SET_UPDATE",
))  # fmt: skip
_PLAIN = (type(None), bool, int, str, bytes, type(...), torch.dtype, torch.device, torch.memory_format, torch.layout)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_compiled_call_impl")
_GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks")
# What nn.Module and RNNs keep in every instance, and a call doesn't read.
_BOOKKEEPING = (frozenset(vars(nn.Module())) | {"_flat_weight_refs"}) - {"training", *_HOOKS}
_KEPT = {name: type(value) for name, value in vars(nn.Module()).items()}
_GROUPS = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training")
_UNREAD = frozenset((
    "__init__", "__module__", "__doc__", "__dict__", "__weakref__", "__annotations__", "__firstlineno__",
    "__static_attributes__", "__annotate__", "__annotate_func__", "__annotations_cache__", "__parameters__",
    "__orig_bases__", "__abstractmethods__", "_abc_impl", "__qualname__", "__slotnames__",
))  # fmt: skip
_ROOTS = (object, abc.ABC, typing.Generic)
_MET = "_dynamo_static_input_type"


class UncertainError(Exception):
    """The module can't be told by a digest; the message says what in it."""


def fingerprint(module: nn.Module) -> str:
    """The digest, 64 hex digits, of what an eval-mode module computes; equal for equal modules in every process.

    Raises:
        UncertainError: something in the module, or that its code names, has no value that could be written down.
    """
    for name in _GLOBAL_HOOKS:
        if getattr(module_globals, name, None):
            raise UncertainError("hooks on all modules are registered")
    if torch._C._len_torch_function_stack() or torch._C._len_torch_dispatch_stack():  # noqa: SLF001
        raise UncertainError("a torch function or dispatch mode is active")
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        raise UncertainError("autocast is on")
    try:
        walk = _Walk(TorchNames())
        walk.module(module)
        return walk.finished()
    except UncertainError:
        raise
    except PatchedError as error:
        raise UncertainError(str(error)) from error
    except Exception as error:  # the user's objects may do anything while they are looked at
        raise UncertainError(f"it can't be looked at: {type(error).__name__}: {error}"[:200]) from error


class _Walk:
    """One pass over a module and all that it holds, in an order that depends on nothing else."""

    def __init__(self, torch_names: TorchNames) -> None:
        self._torch = torch_names
        self._hash = hashlib.sha256()
        # by id, with the object itself, so that no id is used twice
        self._seen: dict[int, tuple[int, Any]] = {}
        self._storages: dict[int, tuple[int, int]] = {}  # by address: a number, and the end
        self._say(torch_names.digest, torch.get_default_dtype())

    def finished(self) -> str:
        """The digest; raises UncertainError where storages overlap, so that a write to one is one to the other."""
        spans = sorted((start, end) for start, (_, end) in self._storages.items())
        if any(following < end for (_, end), (following, _) in itertools.pairwise(spans)):
            raise UncertainError("tensors share memory in a way that isn't plain")
        return self._hash.hexdigest()

    def _say(self, *parts: object) -> None:
        for part in parts:
            text = str(part).encode("utf-8", "surrogatepass")
            self._hash.update(f"{len(text)}:".encode() + text)  # lengths keep neighbours apart

    def _is_new(self, value: object) -> bool:
        """Whether it wasn't met before; says which one it is."""
        is_new = id(value) not in self._seen
        number, _ = self._seen.setdefault(id(value), (len(self._seen), value))
        self._say("new" if is_new else "again", number)
        return is_new

    # What a module is

    def module(self, module: nn.Module) -> None:
        """A module: its class, its own attributes, its tensors, its parts."""
        if not self._is_new(module):
            return
        kind, own = type(module), vars(module)
        if isinstance(module, torch.jit.ScriptModule):
            raise UncertainError(f"{kind.__qualname__} is a script")
        for name in _HOOKS:
            if own.get(name):
                what = "hooks" if name.endswith("hooks") else "a call that torch.compile made"
                raise UncertainError(f"{kind.__qualname__} has {what}")
        for name, expected in _KEPT.items():
            if type(own.get(name)) is not expected or (name not in _GROUPS and own[name]):
                raise UncertainError(f"{kind.__qualname__} has another {name} than modules have")
        self._say("module", module.training)
        self.cls(kind)
        attributes = {name: value for name, value in own.items() if name not in _BOOKKEEPING}
        self._say(sorted(own["_non_persistent_buffers_set"]))
        for group in (attributes, own["_parameters"], own["_buffers"], own["_modules"]):
            names = sorted(group) if group is attributes else list(group)  # the order of parts is that of a loop
            self._say("group", len(names))
            for name in names:
                self._say(name)
                self.value(f"{kind.__qualname__}.{name}", group[name])

    def cls(self, kind: type) -> None:
        """A class: torch's by its name; any other by everything in it, and which class it is among those seen."""
        if type(kind) not in (type, abc.ABCMeta):
            raise UncertainError(f"{kind.__qualname__} has a metaclass")
        self._say("mro", len(kind.__mro__))
        for base in kind.__mro__:
            if base in _ROOTS:
                self._say("root", base.__qualname__)
            elif (name := self._torch.name_of(base)) is not None:
                self._say("torch", name)
            elif self._is_new(base):
                held = {name: value for name, value in vars(base).items() if name not in _UNREAD}
                self._say("class", base.__qualname__, base.__name__, len(held))
                if "__slots__" in held:
                    raise UncertainError(f"{base.__qualname__} has slots")
                for name in sorted(held):
                    self._say(name)
                    self.value(f"{base.__qualname__}.{name}", held[name])

    # What code names

    def function(self, where: str, function: types.FunctionType) -> None:
        """A function: its byte code, and all that this names."""
        if not self._is_new(function):
            return
        if getattr(function, "__builtins__", None) is not vars(builtins):
            raise UncertainError(f"{where} has builtins of its own")
        self._say("function", function.__qualname__, function.__name__)
        self.value(f"{where}'s defaults", function.__defaults__)
        self.value(f"{where}'s keyword defaults", function.__kwdefaults__)
        self.value(f"{where}'s attributes", vars(function))
        self.code(where, function.__code__, function.__globals__)
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            self._say("closure", name)
            if name == "__class__":  # what super() needs
                self.cls(cell.cell_contents)
            else:
                self.value(f"{where}'s {name}", cell.cell_contents)

    def code(self, where: str, code: types.CodeType, known: Mapping[str, Any]) -> None:
        """Byte code and constants, and what its names stand for in its globals."""
        self._say("code", code.co_code.hex(), code.co_flags, code.co_names, code.co_varnames, code.co_freevars)
        self._say(code.co_cellvars, code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount)
        self._say(code.co_exceptiontable.hex(), len(code.co_consts))
        if opaque := sorted(filter(_is_opaque, code.co_names)):
            raise UncertainError(f"{where} uses {opaque[0]}")
        steps = list(dis.get_instructions(code))
        of_sets = {"keys", "items"} & set(code.co_names)
        if any(step.opname in _OPAQUE_OPERATIONS or (of_sets and step.argrepr in {"&", "|", "^"}) for step in steps):
            raise UncertainError(f"{where} imports, sets a global, or makes a set while it runs")
        # only asked whether they hold something
        asked = {id(a.argval) for a, b in itertools.pairwise(steps) if b.opname == "CONTAINS_OP"}
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self.code(where, constant, known)
            elif type(constant) is frozenset and id(constant) in asked:
                self._say("held", sorted(map(repr, constant)))
            else:
                self.value(f"a constant of {where}", constant)
        for position, step in enumerate(steps):
            if step.opname in {"LOAD_GLOBAL", "LOAD_NAME"}:
                self._global(where, str(step.argval), known, steps[position + 1 :])

    def _global(self, where: str, name: str, known: Mapping[str, Any], following: Sequence[dis.Instruction]) -> None:
        """What a name stands for; of a Python module, the attribute that the code takes of it."""
        if name not in known:
            self._builtin_name(where, name)
            return
        self._say("global", name)
        value = known[name]
        for step in following:
            if not isinstance(value, types.ModuleType) or step.opname not in {"LOAD_ATTR", "LOAD_METHOD"}:
                break
            owner, name = value, str(step.argval)
            if self._torch.holds(owner) and _SWITCH.fullmatch(name):
                raise UncertainError(f"{where} uses {name}")
            if type(owner) is not types.ModuleType or (owner not in _STEADY and not self._torch.holds(owner)):
                raise UncertainError(f"{where} uses the Python module {owner.__name__}, which may depend on anything")
            value = vars(owner).get(name, self)
            self._say("attribute", owner.__name__, name)
            if owner in _STEADY and callable(value):
                self._say("steady", _steady_name(owner, name, value))
                return
        self.value(name, value)

    def _builtin_name(self, where: str, name: str) -> None:
        value = vars(builtins).get(name)
        is_error = isinstance(value, type) and issubclass(value, BaseException)
        genuine = value.__name__ == name if isinstance(value, type | types.BuiltinFunctionType) else False
        genuine = genuine and value.__module__ == "builtins"
        if not genuine or (name not in _BUILTINS and not is_error):
            raise UncertainError(f"{where} uses {name}")
        self._say("builtin", name)

    # Values

    def value(self, where: str, value: Any) -> None:
        """Any value, by what it is; raises UncertainError for what can't be written down."""
        kind = type(value)
        if kind in _PLAIN or kind in (torch.Size, range):
            self._plain(where, value)
        elif kind is slice:
            self.value(where, (value.start, value.stop, value.step))
        elif kind in (float, complex):
            number = complex(value)
            self._say(kind.__name__, struct.pack("<dd", number.real, number.imag).hex())
        elif isinstance(value, torch.Tensor):
            self.tensor(where, value)
        elif isinstance(value, nn.Module):
            self.module(value)
        elif kind is tuple:  # by value: whether two are one object depends on what has run before
            self._items(where, value, value)
        elif kind in (list, dict, collections.OrderedDict) and not getattr(value, "__dict__", None):
            if self._is_new(value):
                self._items(
                    where, value, value if kind is list else [part for item in value.items() for part in item]
                )
        elif (name := self._torch.name_of(value)) is not None:
            self._say("torch", name)
        else:
            self._callable(where, value)

    def _plain(self, where: str, value: Any) -> None:
        if type(value) is str and (opaque := [part for part in value.split(".") if _is_opaque(part)]):
            raise UncertainError(f"{where} may name {opaque[0]}")
        self._say(type(value).__name__, repr(value))

    def _items(self, where: str, value: Any, items: Any) -> None:
        self._say(type(value).__name__, len(value))
        for item in items:
            self.value(where, item)

    def _callable(self, where: str, value: Any) -> None:
        kind = type(value)
        if kind is types.FunctionType:
            self.function(where, value)
        elif kind is types.MethodType and isinstance(value.__self__, nn.Module):
            self._say("method")
            self.module(value.__self__)
            self.value(where, value.__func__)
        elif kind in (staticmethod, classmethod):
            self._say(kind.__name__)
            self.value(where, value.__func__)
        elif kind is property:
            self._say("property")
            self.value(where, (value.fget, value.fset, value.fdel))
        elif kind is functools.partial and not vars(value):
            self._say("partial")
            self.value(where, (value.func, value.args, value.keywords))
        elif home := next(
            (module for module in _STEADY if any(each is value for each in vars(module).values())), None
        ):
            self._say("steady", _steady_name(home, getattr(value, "__name__", ""), value))
        else:
            raise UncertainError(f"{where} is a live {kind.__qualname__}")

    def tensor(self, where: str, tensor: torch.Tensor) -> None:
        """Metadata, storage (which tensors share), and every byte."""
        if type(tensor) not in (torch.Tensor, nn.Parameter) or tensor.layout is not torch.strided or tensor.is_meta:
            raise UncertainError(f"{where} is a {type(tensor).__name__} that isn't plain")
        # torch.compile leaves a mark on tensors that it has met
        if tensor.is_conj() or tensor.is_neg() or tensor.is_quantized or vars(tensor).keys() - {_MET}:
            raise UncertainError(f"{where} isn't a plain tensor")
        self._say("tensor", type(tensor).__name__, tensor.dtype, tuple(tensor.shape), tensor.stride())
        self._say(tensor.device.type, tensor.storage_offset())
        if not tensor.numel():
            return
        storage = tensor.untyped_storage()
        start = storage.data_ptr()
        is_new = start not in self._storages
        number, _ = self._storages.setdefault(start, (len(self._storages), start + storage.nbytes()))
        self._say("storage", number)
        if is_new:  # all of it: code may look beyond a view
            plain = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage).cpu()
            self._hash.update(hashlib.sha256(plain.numpy().data).digest())


def _is_opaque(name: str) -> bool:
    special = name.startswith("__") and name.endswith("__") and len(name) > 4
    return name in _OPAQUE or (special and name not in _HARMLESS)


def _steady_name(home: types.ModuleType, name: str, value: Any) -> str:
    """What a function of Python's own is called; raises UncertainError for what somebody put in its place."""
    is_own = isinstance(value, type | types.BuiltinFunctionType) or (
        isinstance(value, types.FunctionType) and value.__code__.co_filename == getattr(home, "__file__", None)
    )
    module = (getattr(value, "__module__", None) or home.__name__).lstrip("_")
    if not is_own or module not in {home.__name__, "builtins"}:
        raise UncertainError(f"{home.__name__}.{name} isn't plainly Python's own")
    return f"{home.__name__}.{getattr(value, '__qualname__', name)}"
