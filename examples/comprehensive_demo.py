"""The three reference models through `IntegratedAOTCompiler`, with the older API's report at the end.

python examples/comprehensive_demo.py [CACHE_DIR]
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from torch import nn

from app import create_integrated_compiler, get_optimization_summary, performance_monitor
from app.workloads import reference

BATCH = 4


def models() -> dict[str, tuple[nn.Module, torch.Tensor]]:
    """Each model with an example batch."""
    torch.manual_seed(0)
    return {
        "cnn": (reference.cnn(), torch.randn(BATCH, 64, 100)),
        "linear": (reference.linear(), torch.randn(BATCH, 768)),
        "transformer": (reference.Transformer(), torch.randint(0, 1000, (BATCH, 32))),
    }


def median_ms(call: Any, name: str, times: int = 50) -> float:
    """Median of so many calls, which the monitor sees too."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        with performance_monitor.time_operation(name):
            call()
        taken.append(time.perf_counter() - began)
    return 1000 * sorted(taken)[times // 2]


def main() -> None:
    """Compile, compare with eager, and report."""
    compiler = create_integrated_compiler(cache_dir=sys.argv[1] if len(sys.argv) > 1 else "model_cache/compiled")
    print(f"{'model':<14}{'cache':<12}{'rung':<11}{'eager ms':>9}{'ours ms':>9}{'speed-up':>10}")
    for name, (model, example) in models().items():
        compiled = compiler.compile_model_aot(model, example, {"model_name": name})
        with torch.inference_mode():
            torch.testing.assert_close(compiled(example), model(example), rtol=1e-3, atol=1e-4)
            eager = median_ms(lambda model=model, example=example: model(example), f"eager {name}")
            ours = median_ms(lambda compiled=compiled, example=example: compiled(example), f"compiled {name}")
        info = compiled.info
        outcome = info["cache"]["outcome"] if info["cache"] else "-"
        print(f"{name:<14}{outcome:<12}{info['rung']:<11}{eager:>9.3f}{ours:>9.3f}{eager / ours:>9.2f}x")
    report(compiler.get_compilation_stats())


def report(stats: dict[str, Any]) -> None:
    """What the older API's statistics say, category by category."""
    base, enhanced, monitored = (stats[name] for name in ("base_aot", "enhanced_features", "performance_monitoring"))
    graphs = enhanced["cuda_graphs"]
    print(f"base_aot: {base['compiled_models']} compiled, {base['cache_hits']} from the cache")
    print(f"enhanced_features: {enhanced['enhanced_models']} models, {enhanced['models_with_graphs']} with graphs")
    print(f"cuda_graphs: {graphs['graphs_captured']} captured, {graphs['graph_replays']} replayed")
    print(f"performance_monitoring: {monitored['total_calls']} calls of {monitored['total_operations']} operations")
    print(f"optimizers: {get_optimization_summary()['cuda_graphs']['optimizers']}")


if __name__ == "__main__":
    main()
