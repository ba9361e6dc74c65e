"""The library's face: `load`, `compile_model`, `session`, and the Model that they return."""

from __future__ import annotations

import inspect
import itertools
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import lookup, names, serving
from .capturing import rung_of
from .composed import settings_of
from .config import BATCH, CacheConfig, require
from .errors import ConfigError, ExportError, InputError
from .fallback import EAGER, JIT
from .monitor import performance_monitor
from .runtime.ladder import InEvalMode
from .structured import encode

if TYPE_CHECKING:
    import torch
    from torch import nn

    from .config import Settings
    from .context import Context
    from .live import Signature
    from .runtime.ladder import Ladder

logger = logging.getLogger(__name__)

_DEFAULTS: ContextVar[tuple[str, ...]] = ContextVar("app_session", default=())
# What `info` holds of a record.
_INFO = (
    "model", "mode", "precision", "weights", "device", "key", "cache", "rung", "fallbacks", "phases_s", "verify",
    "mode_choice", "precision_choice", "weights_choice", "warnings", "artifact_dir",
)  # fmt: skip


class Model(InEvalMode):
    """A compiled model that is called like the eval-mode module it replaces, on the best rung that works.

    Attributes of the module that this class hasn't are passed on; of a model that was loaded by config they are read
    from an eager copy, which is built when the first is asked for. It may be called from any number of threads, and
    is loaded anew in a process that it is pickled to.

    Args:
        context: The run that led here.
        ladder: What serves.
        shadow: Share of the calls, 0 to 1, that eager answers too; disagreements are logged and in `stats()`.
        enabled: Whether compiled code serves at all; may be switched at any time.
        again: What `_again` makes the same model of in another process.

    Attributes:
        enabled: False lets eager answer every call.
    """

    training = False

    def __init__(
        self, context: Context, ladder: Ladder, *, shadow: float, enabled: bool, again: tuple[Any, ...]
    ) -> None:
        require("shadow", shadow, 0.0 <= shadow <= 1.0, "0 to 1")
        self.enabled = enabled
        self._context, self._ladder, self._again = context, ladder, again
        self._every = round(1 / shadow) if shadow else 0
        self._calls = itertools.count(1)
        self._switched_off = performance_monitor.monitor(f"inference/{EAGER}")(self._eager)
        self._shadowed = {"calls": 0, "disagreements": 0, "failed": 0, "worst": 0.0}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model; whatever only the compiled form would raise is answered by the next rung.

        Raises:
            Exception: the model's own, or with `fallback.on_run=raise` what a rung raised.
        """
        if not self.enabled:
            return self._switched_off(*args, **kwargs)
        if self._every and next(self._calls) % self._every == 0:
            return self._shadow(args, kwargs)
        return self._ladder(*args, **kwargs)

    forward = __call__

    @property
    def info(self) -> dict[str, Any]:
        """Where the model came from, in the words of a run's record; with the rung of each configured batch size."""
        record = self._context.record
        record.phases_s = self._context.phases.seconds
        found: dict[str, Any] = {name: encode(getattr(record, name), name) for name in _INFO}
        settings, (rung, call) = self._context.settings, self._ladder.best
        others = {dim: item.example for dim, item in settings.model.ranges.items()}
        found["rung"] = rung
        found["rungs"] = {
            str(size): rung_of(call, rung, size, {**others, BATCH: size}) for size in settings.graphs.batch_sizes
        }
        return found

    def stats(self) -> dict[str, Any]:
        """Calls by rung and batch size, failures, circuits, graphs; what shadowing found."""
        return {**self._ladder.stats(), "shadow": dict(self._shadowed)}

    def ready(self, timeout_s: float = 0.0) -> bool:
        """Whether every batch size is on its final rung: nothing is compiling in the background any more.

        Args:
            timeout_s: How long to wait for it, in seconds.
        """
        if (pending := self._ladder.pending) is not None:
            pending.join(timeout_s)
            return not pending.is_alive()
        return True

    def name(self, alias: str) -> None:
        """Let `load(alias)` find it from now on, from the same cache.

        Raises:
            ConfigError: it has no cache, or no digest by which another process could know it; or the alias is
                no name.
        """
        context = self._context
        cache = replace(context.settings.cache, alias=alias)
        if context.uncertain is not None or cache.dir is None:
            why = f"can't be found again: {context.uncertain}" if context.uncertain else "is kept in no cache"
            raise ConfigError(f"{context.record.model} can't be called {alias!r}: it {why}")
        with lookup.open_store(cache, Path(cache.dir).expanduser(), readonly=cache.readonly) as store:
            names.save(store, alias, context.settings)

    def unload(self) -> None:
        """Let go of the library, its graphs and weights; calls raise InputError from now on."""
        self._ladder.unload()

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Exchange external weights in place, on every rung; nobody has verified the new ones.

        Raises:
            InputError: the weights are baked in (compile with `weights=external`), or the state doesn't fit.
        """
        if not strict:
            raise InputError("load_state_dict of a compiled model is strict: every weight must be given")
        self._ladder.load_state_dict(state)

    @property
    def module(self) -> nn.Module:
        """The model as eager runs it."""
        return self._context.workload.module

    @property
    def __signature__(self) -> inspect.Signature:
        """The module's own."""
        return inspect.signature(self.module.forward)

    def __getattr__(self, name: str) -> Any:
        """What the module has and this class hasn't."""
        if name.startswith("_"):  # Python and libraries probe for these
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.module, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, self._again

    def __repr__(self) -> str:
        record = self._context.record
        how = f"{record.mode}, {record.precision}, {record.device}, rung {self._ladder.best[0]}"
        return f"<compiled {record.model}: {how}>"

    def _eager(self, *args: Any, **kwargs: Any) -> Any:
        import torch

        with torch.no_grad():
            return self._context.same_precision(*args, **kwargs)

    def _shadow(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Answer as always, and compare with eager; nothing that goes wrong with comparing reaches the caller."""
        answer = self._ladder(*args, **kwargs)
        try:
            from .verify import compared

            far, problem = compared(answer, self._eager(*args, **kwargs))
            limit = self._context.limit()
        except Exception as error:  # noqa: BLE001 - the user's module may raise anything; the caller has an answer
            self._shadowed["failed"] += 1
            if self._shadowed["failed"] == 1:
                self._context.warn(f"shadow: eager can't be compared: {type(error).__name__}: {error}")
            return answer
        self._shadowed["calls"] += 1
        self._shadowed["worst"] = max(self._shadowed["worst"], far)
        if problem is not None or not far <= limit:
            self._shadowed["disagreements"] += 1
            why = problem or f"relative distance {far:.2g}, more than {limit:.2g}"
            logger.warning("shadow: %s disagrees with eager: %s", self._context.record.model, why)
        return answer


def _again(
    function: Callable[..., Model], defaults: tuple[str, ...], arguments: tuple[Any, ...], options: dict[str, Any]
) -> Model:
    with session(*defaults):
        return function(*arguments, **options)


def load(*overrides: str, config_dir: str | Path | None = None, shadow: float = 0.0, enabled: bool = True) -> Model:
    """The model that a command line names, compiled if it has to be, ready to be called.

    Args:
        overrides: As after `python -m app`: `"model=minilm", "mode=max-autotune"`. Or one word without `=`: an alias,
            which is found and never compiled unless `session` says otherwise.
        config_dir: A folder of config groups of one's own.
        shadow: Share of the calls that eager answers too, and that are compared.
        enabled: False lets eager answer; the attribute of that name switches later.

    Returns:
        The model. Under `fallback=graceful` whatever goes wrong is served by a lower rung, and `info["fallbacks"]`
        says what.

    Raises:
        ConfigError: the overrides don't compose, or there is no such alias.
        AppError: a stage failed and the policy says `raise`, or an alias's artifact isn't there.
    """
    options = {"config_dir": config_dir, "shadow": shadow, "enabled": enabled}
    if len(overrides) == 1 and "=" not in overrides[0]:
        from . import alias

        context, ladder = alias.serve(overrides[0], _alias_cache())
    else:
        context = serving.context_for(settings_of((*_DEFAULTS.get(), *overrides), config_dir))
        ladder = serving.serve(context)
    again = (load, _DEFAULTS.get(), overrides, options)
    return Model(context, ladder, shadow=shadow, enabled=enabled, again=again)


def _alias_cache() -> CacheConfig | None:
    """Where the session says that aliases are."""
    return settings_of(_DEFAULTS.get()).cache if _DEFAULTS.get() else None


def compile_model(
    module: nn.Module,
    example_inputs: Any,
    *overrides: str,
    mode: str = "default",
    precision: str = "fp32",
    dynamic: Mapping[str, Mapping[int, Any]] | None = None,
    ranges: Mapping[str, tuple[int, int]] | None = None,
    name: str | None = None,
    key: str | None = None,
    shadow: float = 0.0,
    enabled: bool = True,
) -> Model:
    """A live module, compiled as it is now; later changes to it are not seen. It is put into eval mode.

    It is found by a digest of the sources of its classes, its attributes and its weights, and what is found so is
    tried on the example inputs before it serves. Where there is no digest (hooks, attributes that are no plain data)
    it is exported, and found by its program. What can't be exported is served by eager, and so is a module that
    answers otherwise than its program, or whose calls change it.

    Args:
        module: Its inputs and outputs may be on the CPU or a CUDA device.
        example_inputs: A tensor, a sequence of positional ones, or a dict by argument name.
        overrides: Further config: `"weights=external"`, `"cache=project"`.
        mode: As `torch.compile`'s.
        precision: `fp32`, `bf16` or `fp16`.
        dynamic: Axes that vary, by argument, with the names of their dimensions: `{"x": {0: "batch"}}`; or with a
            `torch.export.Dim`, which has a range too (1 to 1024 otherwise). None: the first axis of all inputs, if
            they agree on its size and the module exports so; `{}`: nothing varies.
        ranges: Lowest and upper bound (exclusive) of integer inputs that are used as indices in a way that the
            program doesn't show.
        name: A label for tables and messages; the class's unless given.
        key: The caller's own name of the module's version, like `"scorer-v3"`, instead of the digest: whoever gives
            it answers for changing it when the module changes.
        shadow: As for `load`.
        enabled: As for `load`.

    Raises:
        ConfigError: an argument can't be right.
        AppError: a stage failed and the policy says `raise`.
    """
    from . import live

    if not callable(getattr(module, "forward", None)) or not callable(getattr(module, "eval", None)):
        raise ConfigError(f"compile_model takes an nn.Module, and this is a {type(module).__name__}")
    module.eval()
    settings = settings_of((*_DEFAULTS.get(), f"mode={mode}", f"precision={precision}", *overrides))
    given = live.signature(module, example_inputs, dynamic, ranges)
    device = _device_of(module, given.tensors, settings.device)
    settings = replace(settings, device=device)
    digest, uncertain = live.name_of(module, settings, key)
    if settings.cache.on_miss == "background" and uncertain is not None:
        raise ConfigError(f"cache.on_miss=background needs a module that can be found again, and {uncertain}")
    label = name or type(module).__name__
    contexts = [
        live.LiveContext(
            mine := live.settings_for(settings, each, label, digest),
            serving.new_folder(),
            serving.new_record(mine),
            serving.context_for(mine).phases,
            module=module,
            given=each,
            uncertain=uncertain,
        )
        for each in _ways(given, settings, any_batch=dynamic is None)
    ]
    context, ladder = _first_that_exports(contexts)
    options = {
        "mode": mode, "precision": precision, "dynamic": dynamic, "ranges": ranges, "name": name, "key": key,
        "shadow": shadow, "enabled": enabled,
    }  # fmt: skip
    again = (compile_model, _DEFAULTS.get(), (module, example_inputs, *overrides), options)
    return Model(context, ladder, shadow=shadow, enabled=enabled, again=again)


def _ways(given: Signature, settings: Settings, *, any_batch: bool) -> list[Signature]:
    """How a module is tried: with a batch of any size, of the examples', and at last by torch.compile, with any."""
    if not (any_batch and given.dims):
        return [given]
    return [given, given.static, *([given] if JIT in settings.fallback.rungs else [])]


def _first_that_exports(contexts: Sequence[Context]) -> tuple[Context, Ladder]:
    """The first of several ways to compile a module that its export takes.

    The last serves in any case: by torch.compile, or eager.
    """
    *others, last = contexts
    why = ""
    for context in others:
        try:
            ladder = serving.serve(context, exporting=True)
        except ExportError as error:
            why = why or error.message
            continue
        if why and context.record.rung != EAGER:
            context.warn(f"compiled for the examples' sizes alone: with a batch of any size, {why}")
        return context, ladder
    return last, serving.serve(last)


def _device_of(module: nn.Module, tensors: Mapping[str, torch.Tensor], asked: str) -> str:
    first = next(itertools.chain(module.parameters(), module.buffers(), tensors.values()), None)
    return str(first.device) if first is not None and asked == "auto" else asked


@contextmanager
def session(*overrides: str, **groups: Any) -> Iterator[None]:
    """Config that every `load` and `compile_model` inside starts from, in this thread or task.

    Args:
        overrides: As on the command line.
        groups: An option by group, `cache="project"`; or fields of one, `cache={"dir": "/srv/cache"}`.
    """
    told = [*overrides]
    for group, value in groups.items():
        if isinstance(value, Mapping):
            told += [f"{group}.{field}={quoted(item)}" for field, item in value.items()]
        else:
            told.append(f"{group}={quoted(value)}")
    token = _DEFAULTS.set((*_DEFAULTS.get(), *told))
    try:
        yield
    finally:
        _DEFAULTS.reset(token)


def quoted(value: Any) -> str:
    """A value as an override has it."""
    if isinstance(value, (str, Path)):
        # a backslash is itself unless it stands before a quote, so those there are doubled
        escaped = re.sub(r"(\\*)'", r"\1\1\\'", str(value))
        return "'" + re.sub(r"(\\+)$", r"\1\1", escaped) + "'"
    return json.dumps(value)
