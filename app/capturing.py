"""Capturing: the CUDA graphs of a loaded model, compared with eager; or a step down that says why."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .context import Context
from .errors import AppError, CaptureError, VerifyError
from .fallback import COMPILED, CUDAGRAPH, step_down
from .monitor import performance_monitor
from .verdict import Draw, refusal

if TYPE_CHECKING:
    from .runtime.jit import JitModel
    from .runtime.mechanism import GraphMechanism
    from .runtime.model import CompiledModel


def mechanism_for(device: str) -> GraphMechanism:
    """The graphs of a device; raises CaptureError where it has none."""
    if not device.startswith("cuda"):
        raise CaptureError(f"graphs.enabled=true needs a CUDA device, and the device is {device}")
    from .runtime.cuda import CudaMechanism

    return CudaMechanism(device)


def wanted(context: Context) -> bool:
    """Whether this run is to capture graphs."""
    settings = context.settings
    rungs, enabled = settings.fallback.rungs, settings.graphs.enabled
    return CUDAGRAPH in rungs and enabled != "false" and (enabled == "true" or context.device.startswith("cuda"))


def say_limits(context: Context) -> None:
    """Say what the mode asks for that isn't done: graphs never don't happen in silence."""
    mode = context.settings.mode
    if mode.wants_graphs and not wanted(context):
        why = (
            "which need a GPU: on the CPU it compiles without them"
            if context.device == "cpu"
            else "which graphs.enabled or fallback.rungs turn off"
        )
        context.warn(f"mode={mode.name} asks for CUDA graphs, {why}")


def capture(context: Context, model: CompiledModel | JitModel, *, comparing: bool = True) -> None:
    """Capture a model's graphs where they are wanted.

    Args:
        context: The run; it takes the step down to `compiled`.
        model: Loaded single-threaded.
        comparing: Compare each captured batch size with eager, and not only with the artifact itself.

    Raises:
        CaptureError, VerifyError: they can't be captured, or answer wrongly, and the policy says `raise`.
    """
    from .runtime.model import CompiledModel

    if not wanted(context) or not isinstance(model, CompiledModel):
        return
    graphs = context.settings.graphs
    if graphs.enabled == "auto" and model.uncapturable is not None:
        context.warn(f"no CUDA graphs: {model.uncapturable}")
        return
    try:
        with context.phases("capture"):
            model.capture(
                mechanism_for(context.device),
                graphs.batch_sizes,
                outputs=graphs.outputs,
                max_graphs=graphs.max_graphs,
                max_bytes=graphs.memory_limit_bytes,
            )
        _compare(context, model, with_eager=comparing)
    except (CaptureError, VerifyError) as error:
        give_up(context, model, error)
    for size, why in model.stats().get("graphs", {}).get("skipped", {}).items():
        context.warn(f"no CUDA graph of batch {size}: {why}")


def give_up(context: Context, model: CompiledModel | JitModel, error: AppError) -> None:
    """Drop the graphs, and say why; what is loaded for them goes on to serve one call at a time.

    Raises:
        AppError: the error itself, where the policy says `raise`.
    """
    from .runtime.model import CompiledModel

    if isinstance(model, CompiledModel):
        model.release()
    context.step(step_down(error, context.settings.fallback, CUDAGRAPH, COMPILED))
    if context.settings.runtime.num_runners > 1:
        context.warn("runtime.num_runners is not used: graphs.enabled=false loads the artifact for many calls")


def _compare(context: Context, model: CompiledModel, *, with_eager: bool) -> None:
    with performance_monitor.time_operation("inference/verify"):
        wrong = model.first_wrong_replay()
    if wrong is not None:
        raise VerifyError(f"replayed CUDA graphs are wrong: {wrong} answers otherwise than the artifact itself")
    if not with_eager:
        return
    seed, settings, judge = max(context.settings.verify.seeds) + 2, context.settings, context.judge
    with context.phases("verify"):
        sizes = [context.workload.sizes(size[0], model.sizes(size[1:])) for size in model.captured]
        cases = [judge.case(model, Draw(each, seed)) for each in sizes]
    if (why := refusal(cases, settings.verify.multiple, settings.precision.floor)) is not None:
        raise VerifyError(f"replayed CUDA graphs are wrong: {why}")


def rung_of(model: Callable[..., Any] | None, rung: str, rows: int, sizes: dict[str, int]) -> str:
    """The rung that a call really ran on: where no graph holds its size, the one beneath."""
    from .runtime.model import CompiledModel

    if rung != CUDAGRAPH or not isinstance(model, CompiledModel):
        return rung
    return CUDAGRAPH if model.replays(rows, model.others_of(sizes)) else COMPILED
