"""A stored artifact called with numpy arrays, in a process that never imports torch: a start of tenths of a second.

    from app import instant
    model = instant.load("classifier")          # an alias, or overrides as on the command line
    y = model(x)                                # numpy arrays in, numpy arrays out

    python -m app.instant classifier x.npy

The same store, keys, checks, batch plans and monitor as `app.load`; what isn't stored is not compiled here, and there
is no eager beneath, so whatever fails raises. Values that numpy has no type for are passed as their bits: bfloat16 as
uint16 (`x.view("uint16")`), an 8-bit float as uint8; arrays of `ml_dtypes` are taken too.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import dependencies, environment, lookup, names, planning, structured
from .beyond import Beyond
from .composed import settings_of
from .config import BATCH, CacheConfig, NumericsConfig, Settings, user_cache_dir
from .errors import AppError, ConfigError, InputError, LoadError, MissError, OutputError, VerifyError
from .fallback import COMPILED
from .keys import request_key
from .lookup import Found, NotFound
from .runtime.ladder import InEvalMode, Ladder
from .store import Store
from .verdict import VerifyInfo, summarise

if TYPE_CHECKING:
    from .runtime.model import CompiledModel


logger = logging.getLogger(__name__)


class Model(InEvalMode):
    """A compiled model that is called with numpy arrays. It may be called from any number of threads.

    Args:
        ladder: What serves; one rung.
        info: Where it came from, in the words of a run's record.

    Attributes:
        info: The model, its key and artifact, and what was verified.
    """

    def __init__(self, ladder: Ladder, info: dict[str, Any]) -> None:
        self._ladder, self.info = ladder, info

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model.

        Raises:
            InputError: an input differs from what was compiled; the message names it.
            RuntimeError: the compiled code failed.
        """
        return self._ladder(*args, **kwargs)

    def stats(self) -> dict[str, Any]:
        """Calls, and calls by batch size."""
        return self._ladder.stats()

    def unload(self) -> None:
        """Let go of the library and its weights; calls raise InputError from now on."""
        self._ladder.unload()


def load(*overrides: str, config_dir: str | Path | None = None) -> Model:
    """The stored model that an alias or a command line names, ready to be called with numpy arrays.

    Args:
        overrides: As after `python -m app`: `"model=minilm", "mode=max-autotune"`. Or an alias first, and then
            overrides that say where the cache is and whom to trust: `"classifier", "cache.dir=/srv/cache"`.
        config_dir: A folder of config groups of one's own.

    Raises:
        ConfigError: the overrides don't compose, there is no such alias, or it asks for what needs torch in Python.
        MissError: the artifact isn't stored, or something that it was made from has changed; the message says what.
        VerifyError: by these settings' tolerances the artifact isn't good enough.
        LoadError: it doesn't load in this process.
    """
    alias, told = (overrides[0], overrides[1:]) if overrides and "=" not in overrides[0] else (None, overrides)
    asked = settings_of(told, config_dir) if alias is None or told else None  # for an alias alone nothing is composed
    cache = asked.cache if asked is not None else CacheConfig(dir=user_cache_dir())
    if cache.dir is None:
        raise ConfigError("cache.dir is null: there is no cache to load from")
    with lookup.open_store(cache, Path(cache.dir).expanduser(), readonly=cache.readonly) as store:
        settings = asked if alias is None else names.read(store, alias, cache)
        assert settings is not None
        _check(settings)
        found = _find(store, settings)
        found, verify = _verified(store, found, settings)
        model = _loaded(store, found, settings)
        if not store.readonly:
            store.used("objects", found.artifact.digest)
            if found.weights is not None:
                store.used("weights", found.weights.digest)
            lookup.count(store, found.outcome, [], found.artifact.manifest.provenance["seconds"])
    info = {
        "model": settings.model.name,
        "mode": settings.mode.name,
        "precision": settings.precision.name,
        "weights": settings.weights.placement,
        "device": "cpu",
        "key": {"object": found.artifact.digest},
        "cache": {"outcome": found.outcome},
        "rung": COMPILED,
        "verify": structured.encode(verify),
        "artifact_dir": str(found.artifact.path),
    }
    return Model(Ladder([(COMPILED, model)], settings.fallback, lambda _: None), info)


def _check(settings: Settings) -> None:
    """Raise ConfigError for what can't be had without Python's torch."""
    why = None
    if (device := environment.resolve_device(settings.device)) != "cpu":
        why = f"device={settings.device} is {device} here"
    elif settings.has_auto:
        why = "mode=auto and precision=auto choose while torch is there: name what they chose"
    elif settings.mode.rung != COMPILED:
        why = f"mode={settings.mode.name} is served by {settings.mode.rung}"
    elif settings.numerics != NumericsConfig():
        why = "numerics are switches of Python's torch"
    if why is not None:
        raise ConfigError(f"{settings.model.name} can't be loaded without torch: {why}; use app.load")


def _find(store: Store, settings: Settings) -> Found:
    found = lookup.find(store, request_key(settings, "cpu"), dependencies.named_files(settings))
    if isinstance(found, NotFound):
        why = "; ".join(found.reasons) or "nothing is stored"
        raise MissError(f"{settings.model.name} is not in {store.root}: {why}; compile it first: task=compile")
    if found.artifact.manifest.holds_pickles:
        raise LoadError(f"{settings.model.name} is served by torch.compile, which needs torch: use app.load")
    return found


def _verified(store: Store, found: Found, settings: Settings) -> tuple[Found, VerifyInfo]:
    """The artifact with the sizes that it serves, and its verification, judged by these settings' tolerances."""
    cases, missing = lookup.verified(store, found, settings)
    multiple, floor = settings.verify.multiple, settings.precision.floor
    if missing:
        sizes = ", ".join(str(size) for size in sorted({draw.sizes.get(BATCH, 1) for draw in missing}))
        raise VerifyError(f"nobody has verified batch sizes {sizes}, which needs torch: run task=compile once")
    extent = lookup.extent_of(found, cases, multiple, floor)
    if extent.refusal is not None:
        raise VerifyError(extent.refusal)
    return replace(found, extent=extent), summarise(cases, multiple, floor, extent)


def _loaded(store: Store, found: Found, settings: Settings) -> CompiledModel:
    from .runtime import arrays

    threads = settings.compile.threads or settings.runtime.threads
    if threads is not None:
        arrays.set_num_threads(threads)
    model = arrays.load(
        found.artifact.path,
        found.artifact.manifest.content,
        weights=found.weights.path if found.weights else None,
        num_runners=settings.runtime.num_runners,
        buckets=settings.graphs.buckets,
        extent=found.extent,
    )
    model.boundary.beyond = Beyond(settings.verify.beyond, logger.warning)
    subject = planning.subject(settings, found, "cpu", arrays.num_threads())
    timed = planning.kept(store, subject) if settings.graphs.plan != "off" else None
    if timed is not None and not timed.captured and list(timed.latencies) == model.others:
        model.use(timed.latencies)
    return model


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m app.instant`; returns its exit code, those of `python -m app`."""
    parser = argparse.ArgumentParser(
        prog="python -m app.instant",
        description="Run a stored model on .npy files, without importing torch.",
        epilog="An example: python -m app.instant classifier x.npy mask=mask.npy --out y.npy",
    )
    parser.add_argument(
        "words",
        nargs="+",
        metavar="WORD",
        help="an alias or overrides (model=cnn mode=max-autotune cache.dir=...), and inputs: FILE.npy in order, "
        "NAME=FILE.npy by name",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="where the output goes: .npy, or .npz where there are several"
    )
    given = parser.parse_args(arguments)
    files = [word for word in given.words if word.endswith(".npy")]
    try:
        began = time.perf_counter()
        model = load(*[word for word in given.words if word not in files])
        loaded = time.perf_counter()
        args = [_read(word) for word in files if "=" not in word]
        kwargs = {name: _read(path) for name, _, path in (word.partition("=") for word in files if "=" in word)}
        ready = time.perf_counter()
        outputs = dict(_leaves("output", model(*args, **kwargs)))
        done = time.perf_counter()
        if given.out is not None:
            _write(given.out, outputs)
    except AppError as error:
        print(f"error at {error.stage}: {error.message}", file=sys.stderr)
        return error.exit_code
    for name, value in outputs.items():
        print(f"{name} {value.dtype} {list(value.shape)}\n{value}" if hasattr(value, "dtype") else f"{name} {value}")
    times = f"loaded in {loaded - began:.3f} s, answered in {1e3 * (done - ready):.2f} ms"
    print(times, f"written to {given.out}" if given.out else "", sep=", " if given.out else "", file=sys.stderr)
    return 0


def _read(path: str) -> Any:
    import numpy as np

    try:
        with Path(path).open("rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} can't be read as a .npy file: {error}") from error


def _leaves(name: str, value: Any) -> list[tuple[str, Any]]:
    """A structure's leaves by where they stand in it: `output.logits`, `output.0`."""
    if isinstance(value, dict):
        return [leaf for key, item in value.items() for leaf in _leaves(f"{name}.{key}", item)]
    if isinstance(value, list | tuple):
        return [leaf for index, item in enumerate(value) for leaf in _leaves(f"{name}.{index}", item)]
    return [(name, value)]


def _write(path: Path, outputs: dict[str, Any]) -> None:
    import numpy as np

    try:
        if path.suffix == ".npz":
            np.savez(path, allow_pickle=False, **outputs)
        elif path.suffix == ".npy" and len(outputs) == 1:
            np.save(path, next(iter(outputs.values())), allow_pickle=False)
        else:
            raise ConfigError(f"--out {path}: an .npz file holds {len(outputs)} outputs, and .npy one of them")
    except OSError as error:
        raise OutputError(f"{path} can't be written: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
