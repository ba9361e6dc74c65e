"""Tracking: a finished run told to an experiment tracker: its parameters, figures and files."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from . import structured
from .record import Record

logger = logging.getLogger(__name__)

FIGURES = ("latency_ms", "speedup", "throughput_per_s", "phases_s", "memory", "evaluation")
# A tracker that is gone may cost seconds, not the quarter of an hour that MLflow tries for; and nobody else is told.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def track(record: Record, folder: Path) -> None:
    """Tell the tracker that the record's own config names; one that fails costs a warning."""
    tracker = (record.resolved_config or {}).get("tracker") or {"name": "none"}
    if tracker["name"] == "none":
        return
    try:
        _tell_mlflow(tracker, record, folder)
    except ImportError as error:
        logger.warning("tracker=mlflow: %s (pip install 'aot-app[mlflow]')", error)
    except Exception as error:  # noqa: BLE001 - of whatever kind the tracker, its database and its network raise
        logger.warning("tracker=mlflow: the run was not tracked: %s", str(error).strip().split("\n")[0])


def _tell_mlflow(tracker: Mapping[str, Any], record: Record, folder: Path) -> None:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunStatus, RunTag

    encoded = structured.encode(record)
    figures = dict(_leaves({name: encoded[name] for name in FIGURES}))
    told = {"model": record.model, "rung": record.rung, "cache": record.cache.outcome if record.cache else None}
    if record.error is not None:
        told |= {"error.stage": record.error.stage, "error": record.error.message}
    if record.key is not None:
        told |= {"request": record.key.request, "object": record.key.object}
    client = MlflowClient(tracker["uri"])
    run = client.create_run(_experiment(client, tracker["experiment"]), run_name=" ".join(record.overrides) or None)
    client.log_batch(
        run.info.run_id,
        metrics=[Metric(name, value, run.info.start_time, 0) for name, value in figures.items() if _is_number(value)],
        params=[Param(name, str(value)) for name, value in _leaves(record.resolved_config)],
        tags=[RunTag(name, str(value)) for name, value in told.items() if value is not None],
    )
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.name.startswith("."):
            client.log_artifact(run.info.run_id, str(path))
    status = RunStatus.FINISHED if record.status == "ok" else RunStatus.FAILED
    client.set_terminated(run.info.run_id, RunStatus.to_string(status))


def _experiment(client: Any, name: str) -> str:
    """The id of an experiment, which is made where there is none."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    try:
        return str(found.experiment_id if found is not None else client.create_experiment(name))
    except MlflowException:  # another job was first
        return str(client.get_experiment_by_name(name).experiment_id)


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as one, whose names are joined by dots; lists are values."""
    if not isinstance(value, Mapping):
        yield name, value
        return
    for key, item in value.items():
        yield from _leaves(item, f"{name}.{key}" if name else str(key))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
