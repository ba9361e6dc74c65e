"""Compile PyTorch models ahead of time: verified, cached by content, loaded in milliseconds, measured.

Importing this is quick, and imports no torch: each name below is imported when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import collector

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .api import Model, compile_model, load, session
    from .compat import (
        AOTModelCompiler,
        CudaGraphConfig,
        CudaGraphOptimizer,
        EnhancedAOTModelCompiler,
        EnhancedCompiledModel,
        IntegratedAOTCompiler,
        create_enhanced_compiler,
        create_integrated_compiler,
        get_aot_info,
        get_optimization_summary,
        is_aot_available,
    )
    from .monitor import (
        SimplePerformanceMonitor,
        monitor_compilation,
        monitor_evaluation,
        monitor_inference,
        performance_monitor,
    )

__all__ = [
    "AOTModelCompiler",
    "CudaGraphConfig",
    "CudaGraphOptimizer",
    "EnhancedAOTModelCompiler",
    "EnhancedCompiledModel",
    "IntegratedAOTCompiler",
    "Model",
    "SimplePerformanceMonitor",
    "compile_model",
    "create_enhanced_compiler",
    "create_integrated_compiler",
    "get_aot_info",
    "get_optimization_summary",
    "is_aot_available",
    "load",
    "monitor_compilation",
    "monitor_evaluation",
    "monitor_inference",
    "performance_monitor",
    "session",
]
_API = ("Model", "compile_model", "load", "session")


def __getattr__(name: str) -> Any:
    if name == "instant":  # a module of its own face
        home = name
    elif name in __all__:
        home = "api" if name in _API else "monitor" if "monitor" in name.lower() else "compat"
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with collector.paused():
        module = importlib.import_module(f".{home}", __name__)
    return module if home == name else getattr(module, name)
