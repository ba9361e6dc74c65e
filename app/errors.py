"""AppError and one subclass for each stage that can fail; each knows its stage and its exit code."""

from __future__ import annotations

from typing import Any


class AppError(Exception):
    """A failure with a cause that a user can act on.

    Attributes:
        stage: The phase of the run that failed, as it stands in the record.
        exit_code: What `python -m app` exits with.
        dependencies: The files that led to it, where it would happen again as long as they are the same; None where
            another try may go well.
    """

    stage = "run"
    exit_code = 1
    dependencies: list[list[Any]] | None = None

    @property
    def message(self) -> str:
        """The cause in one paragraph, without the stage."""
        return str(self.args[0]) if self.args else type(self).__name__


class TerminatedError(KeyboardInterrupt):
    """SIGTERM; a KeyboardInterrupt, so that everything that cleans up after Ctrl-C does so after this."""


class ConfigError(AppError):
    """A value in the config that can't be right, with the valid choices in the message."""

    stage = "config"
    exit_code = 2


class OutputError(AppError):
    """The run's own output can't be written."""

    stage = "output"


class BuildError(AppError):
    """The model can't be built, or its checkpoint doesn't fit, or it rejects its inputs."""

    stage = "build"


class ExportError(AppError):
    """`torch.export` refuses the model."""

    stage = "export"


class TrapError(ExportError):
    """A value that eager raises at would end the process in compiled code, torch.compile's too."""


class CompileError(AppError):
    """The compiler fails, crashes, or outlasts its time limit."""

    stage = "compile"


class VerifyError(AppError):
    """A compiled artifact is further from the truth than it may be."""

    stage = "verify"
    exit_code = 3


class DataError(AppError):
    """What a data source holds can't be what the model takes; the message names the place."""

    stage = "data"


class EvaluationError(AppError):
    """What served moved further from eager on the data than `evaluate.max_*` allows."""

    stage = "evaluate"
    exit_code = 3


class StoreError(AppError):
    """The artifact store can't be read or written."""

    stage = "store"


class LoadError(AppError):
    """An artifact can't be loaded into this process."""

    stage = "load"


class CaptureError(AppError):
    """A CUDA graph can't be captured, or must not be replayed."""

    stage = "capture"


class ServeError(AppError):
    """A rung failed while it served a call."""

    stage = "run"


class MissError(AppError):
    """`cache.on_miss=fail`, and it was a miss."""

    stage = "lookup"
    exit_code = 9


class EagerAskedError(AppError):
    """`cache.on_miss=eager`, and it was a miss: what the config asks for, so no policy turns it into a failure."""

    stage = "lookup"


class InputError(AppError, ValueError):
    """A call's input doesn't match the artifact's input spec; the message names the input."""

    stage = "call"


class SweepError(AppError):
    """Some of many jobs failed; what was finished is kept."""

    stage = "sweep"
    exit_code = 4


class CorruptError(AppError):
    """`task=cache.verify` found bytes that are not what the manifest says."""

    stage = "cache"
    exit_code = 6


class UntrustedError(AppError):
    """`task=cache.verify` found objects that nobody who is trusted vouches for."""

    stage = "cache"
    exit_code = 7


class UnreadableError(AppError):
    """`task=cache.verify` found objects that this user may not read."""

    stage = "cache"
    exit_code = 8


def first_line(error: BaseException) -> str:
    """Type and first line of somebody else's exception, which may go on for pages."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
