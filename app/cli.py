"""The command: compose the config, make it typed, run one task, save its record, exit with a code that says how."""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from .compose import explain_composition, register, typed
from .composed import conf_dir
from .config import Settings
from .context import Context
from .errors import AppError, ConfigError, OutputError
from .monitor.export import monitored
from .progress import Phases
from .record import Record, RunError, now

logger = logging.getLogger(__name__)

INTERRUPTED, TERMINATED, SWEEP_FAILED = 130, 143, 4


def main() -> NoReturn:
    """`python -m app`, and the console script `app`."""
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)  # as `python -m app` has it: model.target may lie in this directory
    register()
    codes: list[int] = []

    def task(config: DictConfig) -> None:
        codes.append(run_job(config))

    sys.exit(_outcome(_guarded(task), codes))


def _guarded(task: Callable[[DictConfig], None]) -> int:
    """Run Hydra with the task; the exit code of what goes wrong outside of any job."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra raises, and does not print and exit 1 by itself
    signal.signal(signal.SIGTERM, _terminate)
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(task)()
    except (HydraException, OmegaConfBaseException, ConfigError) as error:
        return _complain(ConfigError.exit_code, ConfigError.stage, explain_composition(error))
    except OSError as error:
        return _complain(OutputError.exit_code, OutputError.stage, f"the run directory can't be written: {error}")
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _terminate(*_: object) -> NoReturn:
    raise _TerminatedError


class _TerminatedError(KeyboardInterrupt):
    """SIGTERM; a KeyboardInterrupt, so that everything that cleans up after Ctrl-C does so after this."""


def _outcome(outside: int, codes: list[int]) -> int:
    if outside or not codes:
        return outside
    stopped = [code for code in codes if code in (INTERRUPTED, TERMINATED)]
    if len(codes) == 1 or stopped:
        return stopped[0] if stopped else codes[0]
    return SWEEP_FAILED if any(codes) else 0


def _complain(code: int, stage: str, text: str) -> int:
    print(f"error at {stage}: {text}", file=sys.stderr)
    return code


def run_job(config: DictConfig) -> int:
    """Run one job in its own output directory; returns its exit code, and always leaves a record there."""
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    record = Record(
        status="failed",
        task="unknown",
        overrides=list(hydra_config.overrides.task),
        run_dir=str(folder),
        created_at=now(),
        command=sys.argv,
    )
    errors = Console(stderr=True)
    with Phases(errors) as phases:
        code = _attempt(config, folder, record, phases)
    record.phases_s = phases.seconds
    try:
        record.save(folder / "record.json")
    except OutputError as error:
        return _complain(error.exit_code, error.stage, error.message)
    _show(config, record)
    if code in (INTERRUPTED, TERMINATED) and hydra_config.mode is RunMode.MULTIRUN:
        raise KeyboardInterrupt  # the jobs after this one are not wanted either
    return code


def _attempt(config: DictConfig, folder: Path, record: Record, phases: Phases) -> int:
    """Run the task; failures become the record's error and an exit code."""
    try:
        settings = typed(config)
        record.resolved_config = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
        _describe(record, settings)
        context = Context(settings, folder, record, phases)
        record.device = context.device
        from . import tasks

        with monitored(context):
            tasks.run(context)
    except AppError as error:
        return _failed(config, record, error.exit_code, RunError(type(error).__name__, error.stage, error.message))
    except _TerminatedError:
        return _failed(config, record, TERMINATED, RunError("SIGTERM", _stage(phases), "terminated"))
    except KeyboardInterrupt:
        return _failed(config, record, INTERRUPTED, RunError("KeyboardInterrupt", _stage(phases), "interrupted"))
    except Exception as error:  # noqa: BLE001 - whatever it is, the record says so and the log has the traceback
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        return _failed(config, record, 1, RunError(type(error).__name__, _stage(phases), first))
    record.status = "ok"
    return 0


def _describe(record: Record, settings: Settings) -> None:
    record.task, record.model, record.mode = settings.task.name, settings.model.name, settings.mode.name
    record.precision, record.weights = settings.precision.name, settings.weights.placement


def _stage(phases: Phases) -> str:
    return phases.last or "start"


def _failed(config: DictConfig, record: Record, code: int, error: RunError) -> int:
    record.error = error
    logger.debug("failed", exc_info=sys.exc_info())  # the run's log file has the traceback
    if config.get("debug"):
        traceback.print_exc()
    return code


def _show(config: DictConfig, record: Record) -> None:
    try:
        if config.get("output") == "json":
            print(record.to_json(), flush=True)
        elif record.status == "ok" or record.result is not None or record.evaluation is not None:
            from .report.console import render

            render(record, Console())
            sys.stdout.flush()
    except BrokenPipeError:  # the reader, `| head` say, has seen enough; the record is saved
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if record.error is not None:
        _complain(1, record.error.stage, f"{record.error.message} (record: {record.run_dir}/record.json)")
