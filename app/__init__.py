"""Compile PyTorch models ahead of time: verified, cached by content, loaded in milliseconds, measured.

Importing this is quick, and imports no torch: each name below is imported when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .api import Model, compile_model, load, session

_HOMES = dict.fromkeys(("Model", "compile_model", "load", "session"), "api")

__all__ = ["Model", "compile_model", "load", "session"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
