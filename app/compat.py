"""The drop-in names of the older API: code written against it changes its import line and nothing else.

Thin over `compile_model`: what differs is that a second process with the same `cache_dir` starts warm, that no two
models share an artifact unless they are the same, and that other batch sizes than the example's work. Nothing here
raises in the middle of an evaluation: every failure is logged, and served by the next rung.
"""

from __future__ import annotations

import logging
import re
import shutil
import time
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import environment, names
from .api import compile_model, load, session
from .capturing import mechanism_for
from .config import CacheConfig
from .errors import AppError, CaptureError
from .fallback import EAGER
from .files import replaced
from .lookup import open_store
from .monitor import performance_monitor
from .monitor.operation import Tally
from .store import archive

if TYPE_CHECKING:
    import torch
    from torch import nn

    from .runtime.mechanism import GraphMechanism

logger = logging.getLogger(__name__)

MODES = ("eager", "default", "reduce-overhead", "max-autotune")
BATCH_SIZES = (1, 2, 4, 8)
BUNDLE = ".bundle"
DAY_S = 86400.0

_optimizers: weakref.WeakSet[CudaGraphOptimizer] = weakref.WeakSet()


def is_aot_available() -> bool:
    """Whether models can be compiled ahead of time here: torch is there, and a C++ compiler that works."""
    return environment.torch_version()["version"] is not None and shutil.which(environment.compiler()) is not None


def get_aot_info() -> dict[str, Any]:
    """What this machine compiles with."""
    known = environment.torch_version()
    return {
        "available": is_aot_available(),
        "torch_version": known["version"],
        "cuda_version": known["cuda"],
        "cuda_available": bool(environment.gpus()),
        "compiler": environment.compiler(),
        "cpu": environment.cpu_name(),
        "modes": list(MODES),
    }


def _name_of(model_config: Any) -> str:
    """From a string, or the `model_name` or `model_id` of an object or a dict."""
    if isinstance(model_config, str):
        return model_config
    for field in ("model_name", "model_id"):
        found = model_config.get(field) if isinstance(model_config, Mapping) else getattr(model_config, field, None)
        if found:
            return str(found)
    return "model"


class AOTModelCompiler:
    """Compiles models, and keeps what it compiled in `cache_dir`.

    Args:
        cache_dir: The store's folder; another process with the same one starts warm.
        enable_aot: False has `compile_model_aot` return None.
        max_compilation_time: Seconds after which compiling is given up, and eager serves.

    Attributes:
        compiled_cache: What was compiled or loaded, by cache key.
        compilation_stats: A dict for each cache key.
    """

    def __init__(
        self,
        cache_dir: str | Path = "model_cache/compiled",
        enable_aot: bool = True,
        max_compilation_time: float = 600,
    ) -> None:
        self.cache_dir = Path(cache_dir)
        self.enable_aot, self.max_compilation_time = enable_aot, max_compilation_time
        self.compiled_cache: dict[str, Any] = {}
        self.compilation_stats: dict[str, dict[str, Any]] = {}

    def compile_model_aot(
        self, model: nn.Module, example_inputs: Any, model_config: Any, compilation_mode: str = "default"
    ) -> Any:
        """The compiled callable; the model itself where nothing better works; None where AOT is disabled."""
        return self._compile(model, example_inputs, _name_of(model_config), compilation_mode)[1]

    def is_model_supported(self, model_config: Any) -> bool:
        """Whether compiling is tried: what can't be compiled after all is served by eager, and said."""
        return self.enable_aot and model_config is not None and is_aot_available()

    def save_compiled_model(self, cache_key: str, output_path: str | Path | None = None) -> bool:
        """Write what a key names into one file, `cache_dir/KEY.bundle` unless given; whether that was possible."""
        stats = self.compilation_stats.get(cache_key, {})
        if (digest := stats.get("object")) is None:
            logger.warning("nothing compiled is called %r; there are: %s", cache_key, [*self.compiled_cache])
            return False
        path = Path(output_path) if output_path is not None else self.cache_dir / f"{cache_key}{BUNDLE}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open_store(self._cache, self.cache_dir, readonly=False) as store, replaced(path) as stream:
                named = [document for name, document in store.documents("aliases").items() if name == cache_key]
                archive.write(stream, store, [("objects", digest)], named)
        except (AppError, OSError) as error:
            logger.warning("%s can't be written: %s", path, error)
            return False
        return True

    def load_compiled_model(self, cache_key: str, input_path: str | Path | None = None) -> Any:
        """What a key names: from this process, from `cache_dir`, or from a file of `save_compiled_model`; or None.

        A file holds machine code: load one only from a place that you trust.
        """
        if cache_key in self.compiled_cache and input_path is None:
            return self.compiled_cache[cache_key]
        path = Path(input_path) if input_path is not None else self.cache_dir / f"{cache_key}{BUNDLE}"
        try:
            if path.exists():
                anybodys = CacheConfig(dir=str(self.cache_dir), trust="none")
                with open_store(anybodys, self.cache_dir, readonly=False) as store, path.open("rb") as stream:
                    for document in archive.read(stream, store).documents:
                        names.adopt(store, document)
            with session(**self._session):
                found = load(cache_key)
        except Exception as error:  # noqa: BLE001 - as above: a name may be anything, a file hold anything
            logger.warning("%r can't be loaded: %s", cache_key, error)
            return None
        self.compiled_cache[cache_key] = found
        return found

    def get_compilation_stats(self, cache_key: str | None = None) -> dict[str, Any]:
        """Of one key (empty for an unknown one), or of all by key."""
        if cache_key is not None:
            return dict(self.compilation_stats.get(cache_key, {}))
        return {key: dict(stats) for key, stats in self.compilation_stats.items()}

    def clear_cache(self) -> None:
        """Forget what was compiled, here and in `cache_dir`; what is loaded goes on to work."""
        self.compiled_cache.clear()
        self.compilation_stats.clear()
        self._remove(lambda _: True)

    @property
    def _cache(self) -> CacheConfig:
        return CacheConfig(dir=str(self.cache_dir))

    @property
    def _session(self) -> dict[str, Any]:
        return {"cache": {"dir": str(self.cache_dir)}, "compile": {"timeout_s": float(self.max_compilation_time)}}

    def _compile(
        self, model: nn.Module, example_inputs: Any, name: str, mode: str, *overrides: str
    ) -> tuple[str | None, Any]:
        """The cache key and the callable."""
        if not self.enable_aot:
            return None, None
        if mode not in MODES:
            logger.warning("compilation_mode=%r is not one of: %s; default is used", mode, ", ".join(MODES))
            mode = "default"
        began = time.perf_counter()
        try:
            with session(**self._session):
                compiled = compile_model(model, example_inputs, *overrides, mode=mode, name=name)
        except Exception as error:  # noqa: BLE001 - an evaluation goes on, whatever it is
            logger.warning("%s is served as it is: %s: %s", name, type(error).__name__, error)
            return None, _Plain(model)
        info = compiled.info
        key = _key(name, mode, info["key"]["request"] if info["key"] else "")
        try:
            compiled.name(key)
        except (AppError, OSError) as error:
            logger.info("%r can be loaded in this process only: %s", key, error)
        self.compiled_cache[key] = compiled
        self.compilation_stats[key] = {
            "model_name": name,
            "mode": mode,
            "compilation_time": time.perf_counter() - began,
            "cache": (info["cache"] or {}).get("outcome"),
            "rung": info["rung"],
            "fallbacks": info["fallbacks"],
            "object": (info["key"] or {}).get("object"),
            "success": info["rung"] not in {"eager", None},
        }
        return key, compiled

    def _remove(self, wanted: Callable[[float], bool]) -> int:
        """Remove the objects whose age in days is `wanted`; returns how many."""
        removed = 0
        if not self.cache_dir.is_dir():
            return removed
        try:
            with open_store(self._cache, self.cache_dir, readonly=False) as store:
                for manifest in list(store.manifests()):
                    used = (store.noted(f"used/objects/{manifest.digest}") or {}).get("last_used")
                    since = used if used is not None else _unix(manifest.provenance.get("created_at"))
                    if wanted((time.time() - since) / DAY_S):
                        store.remove("objects", manifest.digest)
                        removed += 1
        except (AppError, OSError) as error:
            logger.warning("%s can't be cleaned up: %s", self.cache_dir, error)
        return removed


class _Plain:
    """A module as it is, for what can't even be asked for: inputs that are no tensors, say."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module.eval() if hasattr(module, "eval") else module
        self._calls = Tally()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        import torch

        self._calls.add()
        with torch.no_grad():
            return self._module(*args, **kwargs)

    def stats(self) -> dict[str, Any]:
        return {"calls": {EAGER: self._calls.read()}}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _key(name: str, mode: str, request: str) -> str:
    """A cache key: the model's name, the mode, and what tells models of one name apart."""
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", name)[:60]
    return f"{plain if plain[:1].isalpha() else f'm{plain}'}_{mode}_{request[:12]}"


def _unix(created_at: str | None) -> float:
    try:
        return datetime.fromisoformat(created_at or "").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return 0.0


@dataclass
class CudaGraphConfig:
    """What is captured; `batch_sizes` are 1, 2, 4 and 8 unless given."""

    enabled: bool = True
    batch_sizes: list[int] | None = None
    warmup_steps: int = 3
    max_graphs: int = 10

    def __post_init__(self) -> None:
        self.batch_sizes = list(self.batch_sizes) if self.batch_sizes is not None else list(BATCH_SIZES)


class CudaGraphOptimizer:
    """Graphs of callables by model id, replayed at exactly the batch sizes that were captured.

    Args:
        config: What is captured.
        mechanism: The device's graphs; those of the example inputs' device unless given.
    """

    def __init__(self, config: CudaGraphConfig | None = None, *, mechanism: GraphMechanism | None = None) -> None:
        self.config, self._mechanism = config or CudaGraphConfig(), mechanism
        self._graphs: dict[str, _Graphed] = {}
        self._counts, self._failures = Counter[str](), Counter[str]()
        _optimizers.add(self)

    def enhance_compiled_model(self, compiled_model: Callable[..., Any], example_inputs: Any, model_id: str) -> bool:
        """Capture a model's graphs; whether it has any now. A failure is logged, with its reason."""
        if not self.config.enabled:
            return False
        tensors = _listed(example_inputs)
        if not tensors:
            logger.warning("no CUDA graphs of %s: the example inputs are no tensors", model_id)
            return False
        try:
            mechanism = self._mechanism or mechanism_for(str(tensors[0].device))
            self._graphs[model_id] = _Graphed(compiled_model, tensors, self.config, mechanism)
        except CaptureError as error:
            self._counts["capture_failures"] += 1
            self._failures[error.message] += 1
            logger.warning("no CUDA graphs of %s: %s", model_id, error.message)
            return False
        self._counts["graphs_captured"] += len(self._graphs[model_id].sizes)
        return True

    def try_graph_execution(self, model_id: str, input_batch: Any) -> Any:
        """The output, in the model's own structure, replayed; None where no graph holds a call like this."""
        found = self._graphs.get(model_id)
        tensors = _listed(input_batch)
        if found is None or not found.holds(tensors):
            self._counts["graph_misses"] += 1
            return None
        try:
            output = found.replay(tensors)
        except CaptureError as error:
            self._failures[error.message] += 1
            logger.warning("the CUDA graphs of %s are not replayed any more: %s", model_id, error.message)
            del self._graphs[model_id]
            return None
        self._counts["graph_replays"] += 1
        return output

    def get_statistics(self) -> dict[str, Any]:
        """Counts over all models: graphs held, captured, replayed, calls without one, failures by reason."""
        names = ("graphs_captured", "graph_replays", "graph_misses", "capture_failures")
        return {
            "enabled": self.config.enabled,
            **{name: self._counts[name] for name in names},
            "total_graphs": sum(len(found.sizes) for found in self._graphs.values()),
            "models": {model_id: sorted(found.sizes) for model_id, found in self._graphs.items()},
            "failures": dict(self._failures),
        }

    def cleanup(self) -> None:
        """Drop every graph."""
        for found in self._graphs.values():
            found.graphs.release()
        self._graphs.clear()


def _listed(given: Any) -> list[Any]:
    """Positional tensors; empty where there is anything else."""
    listed = list(given) if isinstance(given, Sequence) else [given]
    return listed if all(hasattr(value, "data_ptr") for value in listed) else []


class _Graphed:
    """The graphs of one callable: positional tensors in, each with the batch in its first dimension."""

    def __init__(
        self,
        model: Callable[..., Any],
        example: list[torch.Tensor],
        config: CudaGraphConfig,
        mechanism: GraphMechanism,
    ) -> None:
        from torch.utils import _pytree as pytree

        from .runtime.graphs import CudaGraphOptimizer as Graphs

        def run(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
            leaves, self._structure = pytree.tree_flatten(model(*tensors))
            return leaves

        def inputs(size: int) -> list[torch.Tensor]:
            return [value[:1].expand(size, *value.shape[1:]).contiguous() for value in example]

        self._model, self._likes = model, [(value.dtype, value.device, value.shape[1:]) for value in example]
        self.graphs = Graphs(run, mechanism, warmup=config.warmup_steps, max_graphs=config.max_graphs)
        self.graphs.capture(config.batch_sizes or BATCH_SIZES, inputs)

    @property
    def sizes(self) -> list[int]:
        return [size for size in self.graphs.sizes if isinstance(size, int)]

    def holds(self, tensors: list[Any]) -> bool:
        """Whether a call is like the examples, at a captured size."""
        rows = {value.shape[0] if getattr(value, "ndim", 0) else -1 for value in tensors}
        if len(rows) != 1 or len(tensors) != len(self._likes) or min(rows) not in self.sizes:
            return False
        return all(
            (value.dtype, value.device, value.shape[1:]) == like
            for value, like in zip(tensors, self._likes, strict=True)
        )

    def replay(self, tensors: list[torch.Tensor]) -> Any:
        from torch.utils import _pytree as pytree

        given = [value.contiguous() for value in tensors]
        return pytree.tree_unflatten(self.graphs.replay(given[0].shape[0], given), self._structure)


class EnhancedCompiledModel:
    """A compiled model with the older API's statistics.

    Attributes:
        metadata: What it was compiled as.
    """

    def __init__(self, model: Any, model_id: str, metadata: Mapping[str, Any]) -> None:
        self._model, self.model_id, self.metadata = model, model_id, dict(metadata)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model; what fails is served by the next rung."""
        return self._model(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._model, name)

    def get_execution_stats(self) -> dict[str, Any]:
        """Calls that graphs served, and calls that they didn't."""
        stats = self._model.stats()
        calls, total = Counter[str](stats["calls"]), sum(stats["calls"].values())
        hits = round(calls["cudagraph"] * (stats.get("graphs", {}).get("hit_rate") or 0.0))
        return {
            "graph_hits": hits,
            "graph_misses": total - hits,
            "total_calls": total,
            "graph_hit_rate": hits / total if total else 0.0,
            "metadata": dict(self.metadata),
        }


class EnhancedAOTModelCompiler:
    """Compiles with CUDA graphs, by model id.

    Args:
        base_compiler: Where artifacts are kept; an `AOTModelCompiler()` unless given.
        graph_config: Which graphs.
    """

    def __init__(
        self, base_compiler: AOTModelCompiler | None = None, graph_config: CudaGraphConfig | None = None
    ) -> None:
        self.base_compiler, self.graph_config = base_compiler or AOTModelCompiler(), graph_config or CudaGraphConfig()
        self.models: dict[str, EnhancedCompiledModel] = {}

    def compile_model(
        self, model: nn.Module, example_inputs: Any, model_id: str, **compile_kwargs: Any
    ) -> EnhancedCompiledModel:
        """Compile, and capture where there is a GPU.

        Args:
            model: Put into eval mode.
            example_inputs: A tensor, a sequence, or a dict.
            model_id: Its name here.
            compile_kwargs: `compilation_mode` or `mode`; others are said to have no effect.
        """
        mode = compile_kwargs.pop("compilation_mode", None) or compile_kwargs.pop("mode", "default")
        if compile_kwargs:
            logger.warning("%s: without effect: %s", model_id, ", ".join(sorted(compile_kwargs)))
        key, compiled = self.base_compiler._compile(  # noqa: SLF001 - one module
            model, example_inputs, model_id, mode, *self._graph_overrides()
        )
        stats = self.base_compiler.get_compilation_stats(key) if key is not None else {}
        metadata = {"model_id": model_id, "cache_key": key, "mode": mode, **stats}
        self.models[model_id] = EnhancedCompiledModel(compiled or _Plain(model), model_id, metadata)
        return self.models[model_id]

    def get_model_info(self, model_id: str) -> dict[str, Any]:
        """Metadata and statistics of a model; empty for an unknown id."""
        found = self.models.get(model_id)
        return {**found.metadata, "execution": found.get_execution_stats()} if found is not None else {}

    def get_optimization_stats(self) -> dict[str, Any]:
        """Totals over all models."""
        every = [model.stats().get("graphs", {}) for model in self.models.values()]
        captured = [len(graphs.get("captured", ())) for graphs in every]
        return {
            "enhanced_models": len(self.models),
            "models_with_graphs": sum(map(bool, captured)),
            "cuda_graphs": {
                "enabled": self.graph_config.enabled,
                "graphs_captured": sum(captured),
                "graph_replays": sum(sum(graphs.get("replayed", {}).values()) for graphs in every),
                "capture_failures": sum(sum(graphs.get("failures", {}).values()) for graphs in every),
                "total_graphs": sum(captured),
            },
        }

    def _graph_overrides(self) -> list[str]:
        config = self.graph_config
        sizes = ",".join(map(str, config.batch_sizes or BATCH_SIZES))
        enabled = "auto" if config.enabled else "false"
        return [
            f"graphs.batch_sizes=[{sizes}]",
            f"graphs.enabled={enabled}",
            f"graphs.max_graphs={config.max_graphs}",
        ]


class IntegratedAOTCompiler(AOTModelCompiler):
    """All of it in one: compiled, with graphs, monitored.

    Args:
        cache_dir: As of `AOTModelCompiler`.
        enable_aot: As of `AOTModelCompiler`.
        max_compilation_time: As of `AOTModelCompiler`.
        enable_cuda_graphs: Whether graphs are captured where there is a GPU.
        batch_sizes: Which sizes are verified, planned by, and captured; 1, 2, 4 and 8 unless given.
    """

    def __init__(
        self,
        cache_dir: str | Path = "model_cache/compiled",
        enable_aot: bool = True,
        max_compilation_time: float = 600,
        enable_cuda_graphs: bool = True,
        batch_sizes: Sequence[int] | None = None,
    ) -> None:
        super().__init__(cache_dir, enable_aot, max_compilation_time)
        config = CudaGraphConfig(enable_cuda_graphs, list(batch_sizes) if batch_sizes is not None else None)
        self.enhanced = EnhancedAOTModelCompiler(self, config)

    def compile_model_aot(
        self, model: nn.Module, example_inputs: Any, model_config: Any, compilation_mode: str = "default"
    ) -> Any:
        """As of `AOTModelCompiler`; the result counts its graphs."""
        if not self.enable_aot:
            return None
        return self.enhanced.compile_model(
            model, example_inputs, _name_of(model_config), compilation_mode=compilation_mode
        )

    def save_compiled_model(
        self, cache_key: str, output_path: Any = None, metadata: Mapping[str, Any] | None = None, **given: Any
    ) -> bool:
        """As of `AOTModelCompiler`; or `(cache_key, model, metadata)`, which keeps a model of one's own by that key.

        Such a model is kept for this process; what was compiled here is in `cache_dir` already.
        """
        model = given.get("model", None if isinstance(output_path, str | Path) else output_path)
        if model is None:
            return super().save_compiled_model(cache_key, output_path)
        self.compiled_cache[cache_key] = model
        self.compilation_stats[cache_key] = {**self.compilation_stats.get(cache_key, {}), **dict(metadata or {})}
        return True

    def cleanup_cache(self, max_age_days: float = 30) -> int:
        """Remove what was not used for so many days; returns how many artifacts."""
        return self._remove(lambda age: age >= max_age_days)

    def get_compilation_stats(self, cache_key: str | None = None) -> dict[str, Any]:
        """Of one key; or of all: `base_aot`, `enhanced_features`, `performance_monitoring`."""
        if cache_key is not None:
            return super().get_compilation_stats(cache_key)
        models = super().get_compilation_stats()
        return {
            "base_aot": {
                "enabled": self.enable_aot,
                "compiled_models": len(models),
                "successful": sum(bool(stats.get("success")) for stats in models.values()),
                "cache_hits": sum("hit" in (stats.get("cache") or "") for stats in models.values()),
                "models": models,
            },
            "enhanced_features": self.enhanced.get_optimization_stats(),
            "performance_monitoring": performance_monitor.get_summary(),
        }


def create_enhanced_compiler(
    base_compiler: AOTModelCompiler | None = None,
    enable_cuda_graphs: bool = True,
    batch_sizes: Sequence[int] | None = None,
) -> EnhancedAOTModelCompiler:
    """An `EnhancedAOTModelCompiler` with these graphs."""
    sizes = list(batch_sizes) if batch_sizes is not None else None
    return EnhancedAOTModelCompiler(base_compiler, CudaGraphConfig(enable_cuda_graphs, sizes))


def create_integrated_compiler(**kwargs: Any) -> IntegratedAOTCompiler:
    """An `IntegratedAOTCompiler`: graphs on, batch sizes 1, 2, 4 and 8, AOT on, unless said otherwise."""
    return IntegratedAOTCompiler(**{"enable_cuda_graphs": True, "batch_sizes": list(BATCH_SIZES), **kwargs})


def get_optimization_summary() -> dict[str, Any]:
    """What the monitor and all graph optimizers of this process have counted."""
    every = [optimizer.get_statistics() for optimizer in list(_optimizers)]
    names = ("graphs_captured", "graph_replays", "graph_misses", "capture_failures", "total_graphs")
    return {
        "performance_monitoring": performance_monitor.get_summary(),
        "cuda_graphs": {"optimizers": len(every), **{name: sum(each[name] for each in every) for name in names}},
    }
