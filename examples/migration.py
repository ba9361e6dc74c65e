"""A script written against the older API, after its only change: the import line.

    python examples/migration.py [CACHE_DIR]

Run it twice: the second process compiles nothing.
"""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace

import torch
from torch import nn

# Before: from aot_compiler import AOTModelCompiler, is_aot_available
from app import AOTModelCompiler, is_aot_available


def main() -> None:
    """Compile a classifier, and run it at batch sizes that nobody announced."""
    if not is_aot_available():
        print("no C++ compiler: every call below is answered by eager")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    compiler = AOTModelCompiler(cache_dir=sys.argv[1] if len(sys.argv) > 1 else "model_cache/compiled")
    began = time.perf_counter()
    compiled = compiler.compile_model_aot(
        model, torch.randn(4, 64), SimpleNamespace(model_name="classifier"), compilation_mode="default"
    )
    seconds = time.perf_counter() - began
    for rows in (1, 4, 7):
        value = torch.randn(rows, 64)
        with torch.no_grad():
            torch.testing.assert_close(compiled(value), model(value), rtol=1e-4, atol=1e-5)
    (stats,) = compiler.get_compilation_stats().values()
    print(f"{stats['model_name']}: {stats['cache']}, rung {stats['rung']}, ready in {seconds:.2f} s")


if __name__ == "__main__":
    main()
