"""Evaluation: the model over a data set, what serves beside eager in fp32, and proof of what moved.

Every batch runs through both, so their rows a second are of the same minutes; which comes first alternates.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import data, structured
from .agreement import Array, Metric, Part, compare, has_accuracy, judge_of, listed, summarise
from .chunks import FOLDER, Chunks
from .config import BATCH, resolve_callable
from .context import Context
from .environment import cpu_name
from .errors import ConfigError, EvaluationError
from .fallback import EAGER
from .files import write_text
from .measure.clock import Clock, clock_for
from .monitor import performance_monitor
from .record import EvaluationInfo

if TYPE_CHECKING:
    from .workloads import Call

Model = Callable[..., Any]
EVALUATE = "evaluate"


@dataclass(frozen=True)
class Job:
    """What is evaluated: read and checked before anything is compiled for it."""

    dataset: data.Dataset
    metric: Metric | None


def prepare(context: Context) -> Job:
    """Read the data, and see that it can be judged as the config says.

    Raises:
        ConfigError, DataError: it can't.
    """
    settings = context.settings
    config, model = settings.evaluate, settings.model
    metric = resolve_callable(config.metric, "evaluate.metric") if config.metric else None
    with context.phases("data", about=f"data: read {settings.data.path or settings.data.name}"):
        program = context.workload if model.program else None
        inputs: Sequence[data.Input] = program.inputs if program else model.inputs
        dims = program.dims if program else model.ranges
        dataset = data.read(settings.data, inputs, dims)
    low, high = dims[BATCH].min, dims[BATCH].max
    if not low <= config.batch_size <= high:
        raise ConfigError(f"evaluate.batch_size={config.batch_size} must be within model.dims.batch, {low} to {high}")
    if len(dataset) < low:
        raise ConfigError(f"{dataset.name} has {len(dataset)} rows, and model.dims.batch.min={low} a call")
    for name, value in (("metric", config.metric), ("max_metric_drop", config.max_metric_drop)):
        if value is not None and dataset.labels is None:
            raise ConfigError(f"evaluate.{name}={value!r} needs labels: name their column or array by data.label")
    return Job(dataset, metric)


def evaluate(context: Context, job: Job, model: Model | None) -> None:
    """Evaluate what serves, put the figures into the record, and write them and the disagreeing rows to files.

    Raises:
        EvaluationError: a limit of the config is passed; the figures are in the record.
    """
    ladder, precision = context.on_ladder(model), context.settings.precision.name
    if model is None:
        what = "with itself, which proves nothing" if precision == "fp32" else f"in {precision} with eager in fp32"
        context.warn(f"nothing compiled serves: eager is compared {what}")
    info, stats = run(context, job, ladder), ladder.stats()
    context.record.evaluation, context.record.monitor = info, stats
    if model is not None and (by_eager := stats["calls"].get(EAGER)):
        context.warn(f"eager answered {by_eager} of {sum(stats['calls'].values())} calls: their rows prove nothing")
    lines = [json.dumps(structured.encode(each)) + "\n" for each in info.disagreements]
    write_text(context.folder / "evaluation.json", json.dumps(structured.encode(info), indent=2) + "\n")
    write_text(context.folder / "disagreements.jsonl", "".join(lines))
    if info.refusal is not None:
        raise EvaluationError(info.refusal)


def run(context: Context, job: Job, served: Model) -> EvaluationInfo:
    """The figures of all rows; those that `evaluate.resume` has already are not run again."""
    import torch

    config, rows = context.settings.evaluate, len(job.dataset)
    place = Path(config.resume or context.folder).expanduser()
    chunks = Chunks(place / FOLDER, _identity(context, job))
    (chunks.resume if config.resume else chunks.begin)()
    done = f", {chunks.num_rows:,} of them done in {config.resume}" if config.resume else ""
    try:
        with torch.inference_mode(), context.phases(EVALUATE, about=f"evaluate {rows:,} rows{done}"):
            for part in _parts(context, job, served, chunks.num_rows):
                chunks.add(part)
        return summarise(
            chunks.joined(),
            job.dataset.labels,
            config,
            job.metric,
            data=job.dataset.name,
            data_sha256=job.dataset.digest,
            resumed_rows=chunks.num_resumed,
            batch_size=config.batch_size,
        )
    except BaseException:  # Ctrl-C, or the user's model or metric
        if chunks.num_rows:
            context.warn(f"{chunks.num_rows} of {rows} rows are done: go on with evaluate.resume={place}")
        raise
    finally:
        chunks.save()


def batches(first: int, rows: int, size: int, low: int = 1) -> Iterator[tuple[int, int]]:
    """Start and end of each call's rows, from `first`; none has fewer than `low`, so the last may begin early."""
    for start in range(first, rows, size):
        stop = min(start + size, rows)
        yield min(start, max(0, stop - low)), stop


def _parts(context: Context, job: Job, served: Model, first: int) -> Iterator[Part]:
    """What each batch comes to, from row `first`; every row once."""
    config, rows = context.settings.evaluate, len(job.dataset)
    clock, eager = clock_for(context.device), context.workload.module
    models: dict[str, Model] = {EAGER: performance_monitor.monitor(f"inference/{EAGER}")(eager), "compiled": served}
    done = first
    for number, (start, stop) in enumerate(batches(first, rows, config.batch_size, context.workload.dims[BATCH].min)):
        call = _call(context, job, start, stop)
        if number == 0:
            for model in models.values():  # what only the first call costs says nothing of the others
                model(*call[0], **call[1])
            began = time.perf_counter()
        outputs: dict[str, Array] = {}
        seconds: dict[str, float] = {}
        for name in sorted(models, reverse=bool(number % 2)):
            seconds[name], answer = _timed(clock, models[name], _call(context, job, start, stop))
            outputs[name] = _output(answer, config.output, stop - start)[done - start :]
        judge = judge_of(config, outputs[EAGER], job.dataset.labels)
        _check_labels(job, outputs[EAGER], done, stop)
        part = compare(outputs[EAGER], outputs["compiled"], judge, config.tolerance)
        part |= listed(outputs[EAGER], outputs["compiled"], part["differs"], done, config.listed)
        part["batch_rows"] = np.array([stop - start])
        for name in models:
            part[f"{name}_s"] = np.array([seconds[name]])
            if job.metric is not None:
                part[f"{name}_output"] = outputs[name]
        yield part
        done = stop
        left = (time.perf_counter() - began) / (done - first) * (rows - done)
        context.phases.update(f"evaluate: {done:,} of {rows:,} rows, about {left:.0f} s left")


def _timed(clock: Clock, model: Model, given: Call) -> tuple[float, Any]:
    answers: list[Any] = []
    seconds = clock.time(lambda: answers.append(model(*given[0], **given[1])))
    return seconds, answers[0]


def _call(context: Context, job: Job, start: int, stop: int) -> Call:
    """The arguments of `forward` for some rows."""
    import torch

    workload = context.workload
    values = {
        spec.name: torch.tensor(job.dataset.inputs[spec.name][start:stop]).to(workload.device, spec.torch_dtype)
        for spec in workload.inputs
    }
    positional = tuple(values[spec.name] for spec in workload.inputs if not spec.keyword)
    return positional, {spec.name: values[spec.name] for spec in workload.inputs if spec.keyword}


def _output(answer: Any, index: int, rows: int) -> Array:
    """The judged output tensor as an array of its own, one element a row."""
    import torch
    from torch.utils import _pytree as pytree

    tensors = [leaf for leaf in pytree.tree_leaves(answer) if isinstance(leaf, torch.Tensor)]
    if index >= len(tensors):
        raise ConfigError(f"evaluate.output={index}: the model gives {len(tensors)} tensors, counted from 0")
    value = tensors[index].detach().cpu()
    if value.ndim == 0 or value.shape[0] != rows:
        raise ConfigError(f"evaluate.output={index} is {list(value.shape)}: it doesn't have one element for each row")
    if value.dtype == torch.bfloat16:
        value = value.float()
    if value.is_complex():
        value = torch.view_as_real(value)
    found: Array = value.clone().numpy()  # a copy: the model may overwrite its output
    return found


def _check_labels(job: Job, output: Array, start: int, stop: int) -> None:
    if job.dataset.labels is None or job.metric is not None or not has_accuracy(output, job.dataset.labels):
        return
    labels = job.dataset.labels[start:stop]
    wrong = (labels < 0) | (labels >= output.shape[1])
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise ConfigError(
            f"{job.dataset.name}, row {start + row}: label {labels[row]} is no class of the model, "
            f"which gives {output.shape[1]} scores a row"
        )


def _identity(context: Context, job: Job) -> dict[str, Any]:
    """What kept rows are true of."""
    import torch

    config, record = asdict(context.settings.evaluate), context.record
    sha256 = hashlib.sha256()
    for name, value in sorted(context.workload.module.state_dict().items()):
        sha256.update(name.encode())
        if hasattr(value, "cpu"):
            sha256.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return {
        "request": record.key.request if record.key else [asdict(context.settings.model), record.precision],
        "object": record.key.object if record.key else None,
        "weights": sha256.hexdigest(),
        "data": job.dataset.digest,
        "machine": [context.device, cpu_name()],
        "rung": record.rung,
        **{name: config[name] for name in ("batch_size", "metric", "output", "judge", "tolerance", "listed")},
    }
