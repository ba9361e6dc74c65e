"""Byte code: what a function asks of the world while it runs; or why that can't be told by looking at it."""

from __future__ import annotations

import builtins
import dis
import itertools
import re
import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# Operations that take names; no other that does is known. And sets, whose order depends on the process.
_NAMING = frozenset((
    "LOAD_GLOBAL", "LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR", "STORE_ATTR", "IMPORT_NAME", "IMPORT_FROM",
))  # fmt: skip
_ATTRIBUTES = frozenset(("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR"))
_OPAQUE = frozenset(("BUILD_SET", "SET_ADD", "SET_UPDATE", "MATCH_CLASS", "LOAD_BUILD_CLASS"))
# Of Python's own, those that reach anything, and are plain only in the ways below.
_WATCHED = frozenset(("getattr", "hasattr", "isinstance", "type", "super", "hash"))
# Ways to write things that are plain, in operations as _token has them.
_OPERAND = r"LOAD_(?:FAST|DEREF) \w+;(?:LOAD_ATTR \w+;)*"
_CALL = r"(?:PRECALL;)?CALL;"
_GETATTR = re.compile(
    rf"LOAD_GLOBAL (?:getattr|hasattr);{_OPERAND}(?P<name>LOAD_CONST str;)"
    rf"(?P<more>LOAD_\w+ \w+;FORMAT_(?:VALUE|SIMPLE);BUILD_STRING;)?(?:LOAD_\w+ \w+;)?{_CALL}"
)
_ISINSTANCE = re.compile(
    rf"LOAD_GLOBAL isinstance;{_OPERAND}(?P<kinds>(?:LOAD_GLOBAL \w+;(?:LOAD_ATTR \w+;)*)+)(?:BUILD_TUPLE;)?{_CALL}"
)
_IDIOM = re.compile(
    r"LOAD_CONST single;IS_OP;"
    rf"|(?:LOAD_ATTR __class__;|LOAD_GLOBAL type;{_OPERAND}{_CALL})"
    r"(?:LOAD_ATTR __(?:qual)?name__;|LOAD_\w+ \w+;(?:LOAD_ATTR __class__;)?IS_OP;)"
    r"|LOAD_GLOBAL super;(?:LOAD_DEREF __class__;)?"
)
_TAKES_CLASS = re.compile(r"LOAD_GLOBAL type;|LOAD_(?:CLASS)?DEREF __class__;|(?:_ATTR|METHOD) __(?:class|init)__;")


class OpaqueError(Exception):
    """What code does can't be told; the message completes "forward ..."."""


@dataclass
class Reading:
    """What code asks for.

    Attributes:
        values: What its names stand for now, with the name; of a Python module, the attribute that is taken.
        compared: Classes among those that are only asked whether something is one.
        attributes: Names of attributes that it reads.
        looked_up: Those that `getattr` and `hasattr` look for; with a `*`, any that start so.
        stored: Those that it sets.
        takes_class: Whether it may get hold of an object's class, and make another instance.
    """

    values: list[tuple[str, Any]] = field(default_factory=list)
    compared: list[tuple[str, Any]] = field(default_factory=list)
    attributes: list[str] = field(default_factory=list)
    looked_up: list[str] = field(default_factory=list)
    stored: list[str] = field(default_factory=list)
    takes_class: bool = False


def read(code: types.CodeType, known: Mapping[str, Any]) -> Reading:
    """What code asks for, other than by the code in its constants.

    Args:
        code: Of a function.
        known: Its globals.

    Raises:
        OpaqueError: it does what these can't tell.
    """
    steps = list(dis.get_instructions(code))
    found = Reading()
    _check(code, steps, known)
    compared = _usages(found, steps)
    modules: dict[str, Any] = {}  # imported into local variables
    position = 0
    while position < len(steps):
        step, start, name = steps[position], position, steps[position].argval
        position += 1
        if step.opname in _ATTRIBUTES:
            found.attributes.append(name)
        elif step.opname == "STORE_ATTR":
            found.stored.append(name)
        elif step.opname == "IMPORT_NAME":
            modules |= _imported(steps, start)
        elif step.opname in {"LOAD_GLOBAL", "IMPORT_FROM"} or (step.opname == "LOAD_FAST" and name in modules):
            if name in _WATCHED and name not in known:
                continue
            value = _loaded(steps[:position], known, modules)
            while type(value) is types.ModuleType and steps[position].opname in _ATTRIBUTES:
                name = f"{value.__name__}.{steps[position].argval}"
                if steps[position].argval not in vars(value):
                    raise OpaqueError(f"uses {name}, which is made when it is asked for")
                value, position = vars(value)[steps[position].argval], position + 1
            (found.compared if start in compared else found.values).append((name, value))
    return found


def _check(code: types.CodeType, steps: Sequence[dis.Instruction], known: Mapping[str, Any]) -> None:
    """Raise OpaqueError for operations that may do anything."""
    of_sets = {"keys", "items"} & set(code.co_names)
    for step in steps:
        if step.opcode in dis.hasname and step.opname not in _NAMING:
            raise OpaqueError(f"sets or looks up the name {step.argval}")
        if step.opname in _OPAQUE or (of_sets and step.argrepr.rstrip("=") in {"&", "|", "^", "-"}):
            raise OpaqueError("makes a set or a class, or matches one, while it runs")
    for step, following in itertools.pairwise(steps):
        if type(step.argval) is frozenset and following.opname != "CONTAINS_OP":
            raise OpaqueError("has a set, whose order depends on the process")
    for name in _WATCHED & set(code.co_names):
        if name in known or not is_c(vars(builtins)[name]) or vars(builtins)[name].__name__ != name:
            raise OpaqueError(f"uses a {name} that isn't Python's")
    if "hash" in code.co_names and code.co_name != "__hash__":
        raise OpaqueError("uses hash")


def _usages(found: Reading, steps: Sequence[dis.Instruction]) -> set[int]:
    """How what could reach anything is used; the positions of classes that are only compared with."""
    text = "".join(map(_token, steps))
    uses = list(_GETATTR.finditer(text))
    if len(re.findall("LOAD_GLOBAL (?:getattr|hasattr);", text)) != len(uses):
        raise OpaqueError("uses getattr by a name that isn't written there")
    for use in uses:
        name = steps[text.count(";", 0, use.start("name"))].argval
        found.looked_up.append(f"{name}*" if use["more"] else name)
    rest = _IDIOM.sub("", text)
    if "IS_OP" in rest:
        raise OpaqueError("asks whether two objects are one")
    found.takes_class = _TAKES_CLASS.search(rest) is not None
    spans = [use.span("kinds") for use in _ISINSTANCE.finditer(text)]
    return {number for a, b in spans for number in range(text.count(";", 0, a), text.count(";", 0, b))}


def _loaded(steps: Sequence[dis.Instruction], known: Mapping[str, Any], modules: Mapping[str, Any]) -> Any:
    """What the last step loads by its name."""
    step = steps[-1]
    if step.opname == "LOAD_FAST":
        return modules[step.argval]
    if step.opname == "IMPORT_FROM":
        package = next(each.argval for each in reversed(steps) if each.opname == "IMPORT_NAME")
        return vars(sys.modules[package])[step.argval]
    return known[step.argval] if step.argval in known else vars(builtins)[step.argval]


def _imported(steps: Sequence[dis.Instruction], position: int) -> dict[str, Any]:
    """The local variable that an import fills with a Python module, if it does."""
    step, following = steps[position], steps[position + 1]
    name = following.argval
    others = [each for each in steps if each.opname != "IMPORT_NAME"]
    # some operations of Python 3.13 take two variables
    uses = [
        each.opname for each in others if name in (each.argval if isinstance(each.argval, tuple) else (each.argval,))
    ]
    if steps[position - 2].argval != 0 or step.argval not in sys.modules or not is_c(vars(builtins)["__import__"]):
        raise OpaqueError(f"imports {step.argval}, which isn't there yet")
    if following.opname == "IMPORT_FROM":
        return {}
    if following.opname != "STORE_FAST" or uses[0] != "STORE_FAST" or {*uses[1:]} - {"LOAD_FAST"}:
        raise OpaqueError(f"imports {step.argval} in a way that isn't plain")
    return {name: sys.modules[step.argval.partition(".")[0]]}


def _token(step: dis.Instruction) -> str:
    """An operation as the idioms above have it; a constant by whether it is a str, or there is only one such."""
    start = "JOIN " if step.is_jump_target else ""
    if step.opname == "LOAD_CONST":
        single = step.argval is None or isinstance(step.argval, bool | types.EllipsisType)
        what = "str" if type(step.argval) is str else "single" if single else "any"
        return f"{start}LOAD_CONST {what};"
    is_named = step.opcode in {*dis.hasname, *dis.haslocal, *dis.hasfree}
    return f"{start}{step.opname} {step.argval};" if is_named else f"{start}{step.opname};"


def is_c(value: Any) -> bool:
    """Whether it is written in C, so that nobody can have changed it or hung anything on it."""
    if isinstance(value, type):
        return bool(value.__flags__ & 1 << 8)  # CPython's flag of a class that takes no new attributes
    return isinstance(value, types.BuiltinFunctionType)
