"""Programs saved by `torch.export.save`: read without running what a stranger planted in the archive."""

from __future__ import annotations

import ast
import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import BuildError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

# Members that torch reads as text, whatever they hold; so are those under extra/.
_TEXTS = ("archive_format", "archive_version", "byteorder", ".data/version", ".data/serialization_id")


def load_program(path: Path, *, trusted: bool) -> ExportedProgram:
    """Load a saved program.

    `torch.export.load` unpickles sample inputs, script objects and some tensors without restriction, and evaluates
    symbolic sizes as Python (torch 2.13, `export/pt2_archive/_package.py` and `_export/serde/serialize.py`). Unless
    `trusted`, an archive with a pickle that `weights_only=True` refuses, or with a size that is no plain
    expression, is refused here, before torch sees it. Torch then reads a copy made of the bytes that were checked:
    its own zip reader may see other members in the file than Python's does.

    Raises:
        BuildError: it isn't such a program, or its archive holds what could run code.
    """
    try:
        return torch.export.load(path if trusted else _checked_copy(path))
    except BuildError:
        raise
    except Exception as error:  # on a damaged archive torch raises whatever it trips over
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BuildError(f"{path} can't be loaded as a program of torch.export.save: {reason}") from error


def _checked_copy(path: Path) -> io.BytesIO:
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        root = infos[0].filename.partition("/")[0] if infos else ""
        members = {info.filename.removeprefix(f"{root}/"): archive.read(info) for info in infos}
    names = {name.casefold() for name in members}  # as torch's reader finds them
    if "archive_format" not in members or len(names) != len(infos):
        raise BuildError(
            f"{path} is not an archive of a recent torch.export.save; save it again, "
            "or set model.trusted=true to run what it may hold"
        )
    raw = _raw_tensors(members)
    for name, data in members.items():
        if not _is_harmless(name, data, raw):
            raise BuildError(
                f"{path} holds what could run code when it is loaded ({root}/{name}: a pickle, or a size that is no "
                "plain expression); set model.trusted=true only if you trust its author"
            )
    copy = io.BytesIO()
    with zipfile.ZipFile(copy, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"{root}/{name}", data)
    copy.seek(0)
    return copy


def _raw_tensors(members: Mapping[str, bytes]) -> set[str]:
    """The members that torch takes for the bytes of a tensor, and that no entry has it unpickle."""
    raw: set[str] = set()
    pickled: set[str] = set()
    for folder, prefix in (("data/weights/", ""), ("data/constants/", "tensor_")):
        for name in members:
            if name.startswith(folder) and name.endswith("_config.json"):
                for entry in json.loads(members[name])["config"].values():
                    kept_raw = entry["use_pickle"] is False and entry["path_name"].startswith(prefix)
                    (raw if kept_raw else pickled).add((folder + entry["path_name"]).casefold())
    # by this older name torch unpickles a whole state dict, whatever the entries say
    return {name for name in raw - pickled if not name.endswith(".pt")}


def _is_harmless(name: str, data: bytes, raw: set[str]) -> bool:
    if name in _TEXTS or name.startswith("extra/") or name.casefold() in raw or not data:
        return True
    try:
        if name.endswith(".json"):  # no JSON text is a pickle
            return all(map(_is_plain, _expressions(json.loads(data))))
        torch.load(io.BytesIO(data), weights_only=True)
    except Exception:  # noqa: BLE001 - what isn't understood isn't harmless
        return False
    return True


def _expressions(value: Any) -> Iterator[str]:
    """Every symbolic size in a program's JSON; sympy evaluates it as Python."""
    if isinstance(value, dict):
        yield from (text for name, text in value.items() if name == "expr_str")
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _expressions(item)


_ARITHMETIC = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.Compare, ast.operator, ast.unaryop, ast.cmpop, ast.Load)
_HEADS = frozenset(
    (
        "Symbol Dummy Integer Rational Float Add Mul Pow Max Min Mod Abs floor ceiling sqrt Piecewise "
        "ExprCondPair Tuple Eq Ne Lt Le Gt Ge Equality Unequality StrictLessThan LessThan StrictGreaterThan "
        "GreaterThan And Or Not FloorDiv ModularIndexing Where PythonMod CleanDiv CeilToInt FloorToInt "
        "CeilDiv LShift RShift PowByNatural FloatPow FloatTrueDiv IntTrueDiv "
        "IsNonOverlappingAndDenseIndicator TruncToFloat TruncToInt RoundToInt RoundDecimal ToFloat Identity"
    ).split()
)


def _is_plain(text: str) -> bool:
    """Whether an expression is arithmetic on numbers and symbols, and calls nothing but sympy's own classes."""
    for node in ast.walk(ast.parse(text, mode="eval")):
        if isinstance(node, ast.Call):
            plain = isinstance(node.func, ast.Name) and node.func.id in _HEADS
        elif isinstance(node, ast.Constant):
            plain = not isinstance(node.value, str) or _is_number_or_name(node.value)
        else:
            plain = isinstance(node, (*_ARITHMETIC, ast.Name, ast.keyword, ast.Tuple))
        if not plain:
            return False
    return True


def _is_number_or_name(text: str) -> bool:
    return text.isidentifier() or text.replace(".", "", 1).isdigit()
