"""The command: compose the config, make it typed, run one task, save its record, exit with a code that says how."""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

import hydra
from filelock import Timeout
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.conf import HydraConf
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from . import sweep, tracking
from .compose import explain_composition, register, sweep_options, typed
from .composed import conf_dir
from .config import Settings
from .context import Context
from .errors import AppError, ConfigError, OutputError, TerminatedError
from .fleet import Fleet, run_one
from .jobs import RECORD, Job
from .monitor.export import monitored
from .progress import Phases
from .record import Record, RunError, now
from .sweep import Planned

logger = logging.getLogger(__name__)

INTERRUPTED, TERMINATED = 130, 143
# A sweep's jobs are known only when Hydra has named them all; until then those that will run here wait in this list.
_planned: list[Planned] = []
_codes: list[int] = []
_fleet: list[Fleet] = []  # at most one: the sweep whose jobs run elsewhere
# Hydra's words that say how a sweep is made, and not what a job of it is.
_OF_THE_SWEEP = ("hydra.mode", "hydra.sweep.", "hydra.sweeper", "hydra.launcher", "hydra/launcher", "hydra/sweeper")

# Here, since a launcher's worker imports this module and nothing else of the program.
register()
# Absolute, since the machines that a launcher takes jobs to may stand in another directory.
OmegaConf.register_new_resolver(
    "app.sweep_dir", lambda *words: str(Path(sweep.folder_for(*words)).absolute()), use_cache=True, replace=True
)


def main() -> NoReturn:
    """`python -m app`, and the console script `app`."""
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)  # as `python -m app` has it: model.target may lie in this directory
    sys.exit(_guarded())


def _guarded() -> int:
    """Run what the command says; the exit code, of what goes wrong outside of any job too."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra raises, and does not print and exit 1 by itself
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = _expand()
        if _planned:
            return sweep.run(_planned)
        if _fleet:
            return _fleet[0].finish(code)
    except (HydraException, OmegaConfBaseException, AppError, OSError) as error:
        return _complain(*_told(error))
    except KeyboardInterrupt:
        return INTERRUPTED
    return _codes[0] if _codes else 0


def _expand() -> int | None:
    """Let Hydra call `task` for each job, here or elsewhere; the exit code where that was cut short."""
    try:
        _launch()
    except (KeyboardInterrupt, SystemExit) as stop:  # Ray makes the latter of SIGTERM
        if not _fleet:
            raise
        if not _fleet[0].is_over:
            return INTERRUPTED if type(stop) is KeyboardInterrupt else TERMINATED
    return None


def _launch() -> None:
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(task)()
    except Exception as error:  # a launcher's own, whatever that is
        if not _fleet:
            raise
        if isinstance(error, HydraException | OmegaConfBaseException):  # so no job was launched
            _fleet[0].stop()
            raise
        logger.warning("the launcher failed; what it has begun is waited for", exc_info=True)
        _fleet[0].outlast()


class Sweeping(Callback):
    """Hydra's news of a sweep, before its jobs are taken away."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Watch the sweep, unless its jobs will run here."""
        if _runs_here(config.hydra):
            return
        folder = Path(config.hydra.sweep.dir)
        try:  # what is raised here, Hydra turns into a warning
            fleet = Fleet(folder, _jobs_of(config.hydra), sweep_options(config), as_json=config.output == "json")
        except (HydraException, OmegaConfBaseException, ConfigError) as error:
            sys.exit(_complain(ConfigError.exit_code, ConfigError.stage, explain_composition(error)))
        except Timeout:
            sys.exit(_complain(1, "sweep", f"{folder} is being worked on by another process"))
        _fleet.append(fleet)
        fleet.watch()


def _jobs_of(hydra_config: HydraConf) -> list[list[str]]:
    """The overrides of each job, as Hydra's own sweeper makes them; none of another's: they may depend on results."""
    if not _is_basic("Sweeper", hydra_config.sweeper):
        return []
    params = [f"{name}={value}" for name, value in (hydra_config.sweeper.params or {}).items()]
    # As they were written: an interpolation may stand for what only the jobs' machines have.
    words: Any = OmegaConf.to_container(hydra_config.overrides.task)
    loader = GlobalHydra.instance().config_loader()  # glob() asks it for names
    parsed = OverridesParser.create(config_loader=loader).parse_overrides([*params, *words])
    return BasicSweeper.split_arguments(parsed, None)[0]


def _runs_here(hydra_config: HydraConf) -> bool:
    return _is_basic("Launcher", hydra_config.launcher) and _is_basic("Sweeper", hydra_config.sweeper)


def _is_basic(kind: str, plugin: Any) -> bool:
    return str(plugin._target_).endswith(f".Basic{kind}")


def _terminate(*_: object) -> NoReturn:
    raise TerminatedError


def task(config: DictConfig) -> float | None:
    """What Hydra calls for each job: runs the only one here, and a sweep's in processes of their own.

    Returns:
        For a sweeper that asks, what it may minimise: the latency that `fleet.run_one` found.
    """
    hydra_config = HydraConfig.get()
    if hydra_config.mode is not RunMode.MULTIRUN:
        _codes.append(run_job(config))
        return None
    planned = _plan(config, hydra_config)
    if _runs_here(hydra_config):
        _planned.append(planned)
        return None
    return run_one(planned)


def _plan(config: DictConfig, hydra_config: HydraConf) -> Planned:
    """The job as a command line of its own."""
    num, folder = int(hydra_config.job.num), Path(hydra_config.runtime.output_dir)
    hydras = [word for word in hydra_config.overrides.hydra if not word.lstrip("+~").startswith(_OF_THE_SWEEP)]
    own = [f"hydra.run.dir={folder}", f"hydra.job.num={num}", f"hydra.job.id={num}", "hydra.mode=RUN"]
    given = [source.path for source in hydra_config.runtime.config_sources if source.provider == "command-line"]
    overrides = tuple(hydra_config.overrides.task)
    arguments = (*(f"--config-dir={path}" for path in given), *overrides, *hydras, *own)
    try:
        settings = typed(config)
    except ConfigError:
        settings = None  # the job itself will say so
    resolved: Any = OmegaConf.to_container(config, resolve=settings is not None)
    options = sweep_options(config)
    job = Job(num, folder, overrides, arguments, options.timeout_s, hydra_config.runtime.cwd)
    return Planned(job, Path(hydra_config.sweep.dir).absolute(), options, resolved, settings)


def _told(error: Exception) -> tuple[int, str, str]:
    """Exit code, stage and words for what went wrong outside of any job."""
    if isinstance(error, HydraException | OmegaConfBaseException):  # some of Hydra's are an OSError too
        return ConfigError.exit_code, ConfigError.stage, explain_composition(error)
    if isinstance(error, AppError):
        return error.exit_code, error.stage, error.message
    return OutputError.exit_code, OutputError.stage, f"the run directory can't be written: {error}"


def _complain(code: int, stage: str, text: str) -> int:
    print(f"error at {stage}: {text}", file=sys.stderr)
    return code


def run_job(config: DictConfig) -> int:
    """Run one job in its own output directory; returns its exit code, and always leaves a record there."""
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    record = Record(
        status="running",
        task="unknown",
        overrides=list(hydra_config.overrides.task),
        run_dir=str(folder),
        created_at=now(),
        command=sys.argv,
    )

    def save(stage: str | None, *, durable: bool = False) -> None:
        record.stage, record.phases_s = stage, phases.seconds
        record.save(folder / RECORD, durable=durable)

    try:
        with Phases(Console(stderr=True), on_begin=save) as phases:  # whatever the process dies of, its stage is told
            code = _attempt(config, folder, record, phases)
        save(None, durable=True)
    except OutputError as error:
        return _complain(error.exit_code, error.stage, error.message)
    tracking.track(record, folder)
    _show(config, record)
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
    except TerminatedError:
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
    record.status, record.error = "failed", error
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
