"""CompiledModel: a loaded artifact that is called like the eval-mode module it replaces.

Imports no torch before its tensors, graphs or weights are asked for: arrays.py serves numpy's arrays by it.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import BATCH, OPENVINO
from ..errors import CaptureError, InputError, LoadError
from ..verdict import Extent
from .ladder import InEvalMode
from .plans import Latencies, Plan, Planner, Step
from .runner import Runner
from .spec import Boundary, CallSpec

if TYPE_CHECKING:
    import torch

    from .graphs import CudaGraphOptimizer
    from .mechanism import GraphMechanism

LIBRARY = "model.so"
WEIGHTS = "weights.safetensors"

# What graphs count for each size.
_BY_SIZE = ("replayed", "skipped", "bytes_by_size")
# The bucket of every dimension but the batch, in their order.
Others = tuple[int, ...]


class CompiledModel(InEvalMode):
    """Tensors in, the module's own output structure out; every call is checked against the artifact's spec.

    Args:
        runner: The loaded library.
        boundary: What it may be called with, and by what: torch's tensors or numpy's arrays.
        mixing: Dimensions that calls can't be padded in, and why, as verification found it.
        buckets: Sizes of named dimensions beyond the batch, to which a call that replays a graph is padded.
        constants: The manifest's, where the weights are external.

    Attributes:
        boundary: What its calls are checked by.
        unpaddable: Why calls are not padded in a dimension; for the batch nor split.
        sizes_seen: How many calls each batch size had; those that compare and time the model are no traffic.
    """

    def __init__(
        self,
        runner: Runner,
        boundary: Boundary,
        *,
        mixing: Mapping[str, str] | None = None,
        buckets: Mapping[str, Sequence[int]] | None = None,
        constants: Mapping[str, Any] | None = None,
    ) -> None:
        spec = self.spec = boundary.spec
        self.unpaddable = {**spec.unpaddable, **(mixing or {})}
        self.sizes_seen: Counter[int] = Counter()
        self._runner, self.boundary, self._constants = runner, boundary, constants
        self._axes = spec.in_axes()
        self._batch = next(((number, axis) for number, axis in enumerate(self._axes) if axis is not None), None)
        self._buckets = {
            dim: sorted(sizes)
            for dim, sizes in sorted((buckets or {}).items())
            if dim in spec.dims and dim not in self.unpaddable
        }
        self._places = {dim: _place(spec.in_axes(dim)) for dim in self._buckets}
        self._planners: dict[Others | None, Planner] = {}
        self._graphs: CudaGraphOptimizer | None = None

    @property
    def others(self) -> list[Others]:
        """Every combination of the other dimensions' buckets, smallest first; one of nothing where there are none."""
        return list(itertools.product(*self._buckets.values()))

    def sizes(self, others: Others) -> dict[str, int]:
        """A combination by the dimensions' names."""
        return dict(zip(self._buckets, others, strict=True))

    @property
    def batch_range(self) -> tuple[int, int]:
        """Smallest and largest batch size that is served; a batch of one where there is no such dimension."""
        return self.boundary.extent.possible.get(BATCH, (1, 1))

    @property
    def whole(self) -> CompiledModel:
        """The same artifact at all sizes that were compiled, to be compared at one that isn't served."""
        return CompiledModel(self._runner, self.boundary.whole)

    def use(self, latencies: Mapping[Others, Latencies]) -> None:
        """Plan calls by these latencies from now on, by the other dimensions' buckets; before, each runs as it is."""
        if BATCH in self.unpaddable:
            return
        least, most = self.batch_range
        self._planners = {others: Planner(known, most, least) for others, known in latencies.items()}
        # beyond the largest buckets only the dynamic artifact runs
        beyond = latencies[max(latencies, key=math.prod)]
        self._planners[None] = Planner(replace(beyond, buckets={}) if beyond.dynamic else beyond, most, least)

    def plan(self, rows: int, others: Others | None = ()) -> Plan:
        """How a call of this size runs."""
        planner = self._planners.get(others)
        return planner.plan(rows) if planner is not None else Plan((Step(rows, rows),), math.nan)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model.

        Raises:
            InputError: an input differs from what was compiled; the message names it.
            CaptureError: the CUDA graphs must not be replayed any more.
        """
        boundary = self.boundary
        tensors = boundary.check(boundary.bind(args, kwargs))
        if self._batch is None:
            return self.boundary.restore(self._runner(tensors))
        number, axis = self._batch
        rows = tensors[number].shape[axis]
        planner = self._planners.get(self._others_of(tensors) if self._buckets else ()) if self._planners else None
        found = self._run(tensors, rows) if planner is None else self._run_plan(planner.plan(rows), tensors)
        self.sizes_seen[rows] += 1
        return boundary.restore(found)

    def as_it_is(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model through the dynamic artifact: no plan, no graph; raises as a call does."""
        tensors = self._checked(args, kwargs)
        found = self._runner(tensors)
        if self._batch is not None:
            number, axis = self._batch
            self.sizes_seen[tensors[number].shape[axis]] += 1
        return self.boundary.restore(found)

    def by(self, plan: Plan, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run the model by a plan that covers the call's rows; raises as a call does."""
        tensors = self._checked(args, kwargs)
        return self.boundary.restore(self._run_plan(plan, tensors))

    def overheads(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Callable[[], object]]:
        """What padding and splitting such a call cost besides running it: the same steps around nothing."""
        assert self._batch is not None
        number, axis = self._batch
        tensors = self._checked(args, kwargs)
        rows, outputs, outs = tensors[number].shape[axis], self._runner(tensors), self.spec.out_axes[BATCH]

        def nothing(given: list[torch.Tensor], _: int | None) -> list[torch.Tensor]:
            size = given[number].shape[axis]
            return [v if out is None else v.narrow(out, 0, size) for v, out in zip(outputs, outs, strict=True)]

        def around(*steps: Step) -> Callable[[], object]:
            return lambda: self.boundary.arrays.run(Plan(steps, 0.0), tensors, self._axes, outs, nothing)

        if rows == 1:
            return {}
        return {"pad": around(Step(rows - 1, rows)), "split": around(Step(rows - rows // 2), Step(rows // 2))}

    # CUDA graphs

    @property
    def captured(self) -> list[tuple[int, ...]]:
        """What has a graph: batch sizes, each followed by the other dimensions' buckets."""
        sizes = self._graphs.sizes if self._graphs is not None else ()
        return [size for size in sizes if isinstance(size, tuple)]

    @property
    def uncapturable(self) -> str | None:
        """Why no graph can hold the model's calls; None where one can be tried."""
        for dim in self.spec.dims:
            if dim != BATCH and dim not in self._buckets:
                why = self.unpaddable.get(dim, f"graphs.buckets has no sizes of it: graphs.buckets.{dim}=[...]")
                return f"a graph holds one size of each dimension, and {dim} varies: {why}"
        if self._batch is None:
            return f"no input has a dimension named {BATCH}"
        return self._runner.uncapturable

    def capture(self, mechanism: GraphMechanism, batch_sizes: Sequence[int], **options: Any) -> None:
        """Capture a CUDA graph at each batch size and each combination of the other dimensions' buckets.

        Args:
            mechanism: The device's graphs.
            batch_sizes: Those outside of the artifact's range are left out.
            options: As `CudaGraphOptimizer` takes them.

        Raises:
            CaptureError: the model can't be captured; the message says why.
        """
        if self.uncapturable is not None:
            raise CaptureError(self.uncapturable)
        from .graphs import CudaGraphOptimizer

        low, high = self.batch_range
        names = [item.name for item in self.spec.inputs]
        graphs = CudaGraphOptimizer(self._runner, mechanism, addresses=self._runner.addresses, names=names, **options)
        within = [size for size in batch_sizes if low <= size <= high]
        graphs.capture(list(itertools.product(within, *self._buckets.values())), self._blank)
        self._graphs = graphs

    def first_wrong_replay(self) -> str | None:
        """The first captured size whose replay differs from the artifact's own answer to the same inputs."""
        import torch

        assert self._graphs is not None
        with torch.inference_mode():
            for size in self.captured:
                inputs = self.spec.drawn({BATCH: size[0], **self.sizes(size[1:])}, self.boundary.device)
                pairs = zip(self._graphs.replay(size, inputs, clone=True), self._runner(inputs), strict=True)
                if not all(a is b or _close(a, b) for a, b in pairs):
                    return f"batch {_text(size)}"
        return None

    def release(self) -> None:
        """Drop the CUDA graphs; calls run as before."""
        graphs, self._graphs = self._graphs, None
        if graphs is not None:
            graphs.release()

    def replays(self, rows: int, others: Others | None = ()) -> bool:
        """Whether a call of this size is replayed from graphs, all of its steps."""
        steps = self.plan(rows, others).steps
        return others is not None and all((step.bucket, *others) in self.captured for step in steps)

    def stats(self) -> dict[str, Any]:
        """Calls by batch size, and how many were of sizes that nobody has compared.

        With graphs, what they did, the share of calls they serve, and of rows that pad.

        Where other dimensions have buckets, shares are those of calls at the largest.
        """
        seen = dict(sorted(self.sizes_seen.items()))
        found: dict[str, Any] = {"batch_sizes": {str(size): calls for size, calls in seen.items()}}
        found["beyond"] = self.boundary.num_beyond
        if self._graphs is not None:
            others = self.others[-1]
            computed = sum((size + self.plan(size, others).padding) * calls for size, calls in seen.items())
            hits = sum(calls for size, calls in seen.items() if self.replays(size, others))
            graphs = self._graphs.stats()
            texts = {name: {_text(size): of for size, of in graphs[name].items()} for name in _BY_SIZE}
            found["graphs"] = {
                **graphs,
                **texts,
                "captured": [_text(size) for size in graphs["captured"]],
                "hit_rate": hits / sum(seen.values()) if seen else None,
                "padding_waste": 1 - sum(size * n for size, n in seen.items()) / computed if computed else None,
            }
        return found

    def _checked(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
        return self.boundary.check(self.boundary.bind(args, kwargs))

    def _blank(self, size: tuple[int, ...]) -> list[torch.Tensor]:
        return self.spec.blank({BATCH: size[0], **self.sizes(size[1:])}, self.boundary.device)

    def others_of(self, sizes: Mapping[str, int]) -> Others | None:
        """The buckets that hold these sizes of the other dimensions; None beyond the largest."""
        found = []
        for dim, buckets in self._buckets.items():
            index = bisect_left(buckets, sizes[dim])
            if index == len(buckets):
                return None
            found.append(buckets[index])
        return tuple(found)

    def _others_of(self, tensors: Sequence[torch.Tensor]) -> Others | None:
        return self.others_of({dim: tensors[n].shape[axis] for dim, (n, axis) in self._places.items()})

    def _run_plan(self, plan: Plan, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        first, *others = plan.steps
        if not others and (first.bucket is None or first.bucket == first.rows):
            return self._run(tensors, first.bucket)
        run = partial(self._run, clone=len(plan.steps) > 1)  # a step's outputs outlive the next step's replay
        return self.boundary.arrays.run(plan, tensors, self._axes, self.spec.out_axes[BATCH], run)

    def _run(self, tensors: list[torch.Tensor], bucket: int | None, *, clone: bool = False) -> list[torch.Tensor]:
        """Replay the bucket's graph; where it has none, the dynamic artifact runs."""
        graphs = self._graphs
        if graphs is None or bucket is None or (others := self._others_of(tensors)) is None:
            return self._runner(tensors)
        if (bucket, *others) not in graphs.sizes and not graphs.lost:
            return self._runner(tensors)
        from .tensors import widen

        fills, before = [item.padding for item in self.spec.inputs], []
        for (dim, (number, axis)), size in zip(self._places.items(), others, strict=True):
            before.append(tensors[number].shape[axis])
            tensors = widen(tensors, self.spec.in_axes(dim), size, fills)
        outputs = graphs.replay((bucket, *others), tensors, clone=clone)
        for dim, size in zip(self._buckets, before, strict=True):
            axes = self.spec.out_axes[dim]
            outputs = [self.boundary.arrays.cut(value, axis, size) for value, axis in zip(outputs, axes, strict=True)]
        return outputs

    def check_state_dict(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The state's tensors as the library wants them, by its own names; raises as `load_state_dict` does."""
        if self._constants is None:
            raise InputError(
                "the weights are baked into the artifact: compile with weights=external to exchange them"
            )
        given = dict(self._runner.constants)
        for name, item in self._constants.items():
            if item["name"] is None:  # a constant of the code, which no state dict holds
                continue
            if item["name"] not in state:
                raise InputError(f"the state dict lacks {item['name']!r}")
            tensor, value = given[name], state[item["name"]].detach()
            if value.shape != tensor.shape:
                raise InputError(f"{item['name']!r} has the shape {list(value.shape)}, expected {list(tensor.shape)}")
            given[name] = _restride(value.to(tensor.device, tensor.dtype).contiguous(), item["stride"])
        return given

    def load_state_dict(self, state: Mapping[str, torch.Tensor], *, assign: bool = False) -> None:
        """Exchange external weights, in place, so that graphs go on; nobody has verified the new ones.

        Not while another thread calls. Names that the program doesn't read are left alone.

        Args:
            state: The module's state dict: names to tensors.
            assign: Take the tensors themselves instead of copying their values; graphs are captured again.

        Raises:
            InputError: the weights are baked into the artifact, or a tensor lacks or has another shape.
            CaptureError: the graphs can't be captured again.
        """
        import torch

        given = self.check_state_dict(state)
        if assign:
            self._runner.borrow(given)
            if self._graphs is not None:
                self._graphs.capture_again()
            return
        with torch.inference_mode():  # where tensors of either kind may be written
            for name, value in given.items():
                if value is not (tensor := self._runner.constants[name]):
                    tensor.copy_(value)


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    import torch

    inexact = a.is_floating_point() or a.is_complex()
    return torch.equal(a, b) or (inexact and torch.allclose(a, b, rtol=1e-3, atol=1e-4, equal_nan=True))


def _text(size: tuple[int, ...]) -> str:
    """Like `4`, or `4x16` with other dimensions."""
    return "x".join(map(str, size))


def _place(axes: Sequence[int | None]) -> tuple[int, int]:
    """The first input that has a dimension, and where."""
    return next((number, axis) for number, axis in enumerate(axes) if axis is not None)


def load(
    folder: Path,
    content: Mapping[str, Any],
    device: str,
    *,
    weights: Path | None = None,
    num_runners: int = 1,
    single_threaded: bool = False,
    buckets: Mapping[str, Sequence[int]] | None = None,
    extent: Extent | None = None,
) -> CompiledModel:
    """Load an artifact by its engine.

    Args:
        folder: Where the artifact's files are.
        content: The manifest's content: `spec`, `constants` where the weights are external, and another engine than
            AOTInductor.
        device: `cpu` or `cuda:N`.
        weights: The folder of the weights' object, for external weights.
        num_runners: How many calls may run at the same time.
        single_threaded: Load it so that CUDA graphs can be captured: one call at a time.
        buckets: Sizes of named dimensions beyond the batch.
        extent: The sizes that are served; None serves all that were compiled.

    Raises:
        LoadError: the library or the weights can't be loaded.
    """
    from .aoti import AotiRunner
    from .tensors import TensorBoundary

    constants = None
    if content["constants"] is not None:
        if weights is None:
            raise LoadError("the artifact's weights are external, and none were given")
        constants = load_constants(weights / WEIGHTS, content["constants"], device)
    runner: Runner
    if content.get("engine") == OPENVINO:
        from .openvino import BLOB, OpenVinoRunner

        runner = OpenVinoRunner(folder / BLOB, content["precision"], num_runners=num_runners)
    else:
        runner = AotiRunner(
            folder / LIBRARY, device, num_runners=num_runners, constants=constants, single_threaded=single_threaded
        )
    return CompiledModel(
        runner,
        TensorBoundary(CallSpec.from_json(content["spec"]), device, extent),
        mixing=content.get("mixing"),
        buckets=buckets,
        constants=content["constants"],
    )


def load_constants(path: Path, constants: Mapping[str, Any], device: str) -> dict[str, torch.Tensor]:
    """External weights by the library's own names, memory-mapped: all processes share one copy.

    Raises:
        LoadError: the file can't be read, or lacks a tensor.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        stored = load_file(path, device=device)
        return {name: _restride(stored[item["stored"]], item["stride"]) for name, item in constants.items()}
    except (OSError, SafetensorError, KeyError) as error:
        raise LoadError(f"the weights {path.parent.name} can't be loaded: {error}") from error


def _restride(tensor: torch.Tensor, stride: list[int] | None) -> torch.Tensor:
    """Safetensors holds contiguous tensors only; compiled code reads the strides it was compiled for."""
    if stride is None:
        return tensor
    import torch

    return torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype, device=tensor.device).copy_(tensor)
