"""The files that a model was built from: recorded in the worker, compared at every lookup.

After ccache's direct mode: a request leads to recorded sets of files with their digests, and the first set whose
files are all unchanged names the object. A file is found again by what it *is* (a module of this import path, a
setting of this config), so that a copy of the project elsewhere is compared with its own files, never with the
files of the place where the set was recorded.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .config import Settings
from .errors import ConfigError
from .files import Stat, settled, sha256_of, stat_of


@dataclass(frozen=True)
class Dependency:
    """One file: how to find it again, its content, and the stat tuple under which the digest was taken.

    Attributes:
        kind: `module` (where is `top-level/relative path`), `file` (a path as it was opened), `setting` (a field
            of the model config that names a file or folder), or, for what was looked for and is not there,
            `no-module` (a dotted name) and `no-file` (a path).
        where: The place, in the terms of its kind.
        sha256: Digest of the content; empty for what is not there.
        stat: Device, inode, size, mtime and ctime in ns; empty where the file was too young to trust them.
    """

    kind: str
    where: str
    sha256: str
    stat: Stat = field(default_factory=list)

    def to_json(self) -> list[Any]:
        """As it stands in an index entry."""
        return [self.kind, self.where, self.sha256, self.stat]


def take(kind: str, where: str, path: Path) -> Dependency:
    """A dependency as the file is now."""
    path = path.resolve()
    stat = stat_of(path)
    return Dependency(kind, where, sha256_of(path), stat if settled(stat) and not path.is_dir() else [])


def named_files(settings: Settings) -> dict[str, Path]:
    """The files and folders that the model config names, by field.

    Raises:
        ConfigError: one doesn't exist.
    """
    model = settings.model
    named = {"model.program": model.program, "model.checkpoint": model.checkpoint}
    named |= {f"model.depends_on[{index}]": path for index, path in enumerate(model.depends_on)}
    found = {name: Path(path).expanduser() for name, path in named.items() if path}
    for name, path in found.items():
        if not path.exists():
            raise ConfigError(f"{name}={str(path)!r} does not exist")
        if not os.access(path, os.R_OK):
            raise ConfigError(f"{name}={str(path)!r} can't be read by this user")
    return found


def changed(recorded: Iterable[list[Any]], named: dict[str, Path]) -> str | None:
    """The first dependency that differs from what is there now, as a reason; None when all are unchanged."""
    roots: dict[str, list[Path]] = {}
    for kind, where, sha256, stat in recorded:
        if kind in {"no-module", "no-file"}:
            if _is_module(where, roots) if kind == "no-module" else Path(where).exists():
                return f"{where} is there now"
            continue
        path = _find(kind, where, named, roots)
        if path is None:
            return f"{where} is gone"
        shown = where if "/" in where or kind == "setting" else path.name
        if kind == "module" and path.suffix == ".py" and (path.with_suffix("") / "__init__.py").exists():
            return f"{shown} is shadowed by a package of its name"
        try:
            path = path.resolve()
            if stat != stat_of(path) and sha256 != sha256_of(path):
                return f"{shown} changed"
        except OSError as error:
            return f"{shown} can't be read: {error.strerror}"
    return None


def portable(recorded: Iterable[list[Any]]) -> list[list[Any]]:
    """The same for another machine, where a stat tuple says nothing of a file's content."""
    return [[kind, where, sha256, []] for kind, where, sha256, _ in recorded]


def retaken(recorded: Iterable[list[Any]], named: dict[str, Path]) -> list[list[Any]]:
    """The same with the stat tuples of this machine's files, where these have the recorded content."""
    roots: dict[str, list[Path]] = {}
    found = portable(recorded)
    for number, (kind, where, sha256, _) in enumerate(found):
        path = None if kind in {"no-module", "no-file"} else _find(kind, where, named, roots)
        with suppress(OSError):
            if path is not None and (taken := take(kind, where, path)).sha256 == sha256:
                found[number] = taken.to_json()
    return found


def _find(kind: str, where: str, named: dict[str, Path], roots: dict[str, list[Path]]) -> Path | None:
    if kind == "setting":
        return named.get(where)
    if kind == "file":
        return Path(where)
    top, _, rest = where.partition("/")
    return next((path for root in _known(top, roots) if (path := root / rest if rest else root).exists()), None)


def _is_module(name: str, roots: dict[str, list[Path]]) -> bool:
    """Whether a dotted name could be imported now; nothing is imported to find out."""
    top, *rest = name.split(".")
    if not rest:
        return bool(_known(top, roots))
    places = [root.joinpath(*rest) for root in _known(top, roots)]
    suffixes = (".py", *importlib.machinery.EXTENSION_SUFFIXES)
    return any((place / "__init__.py").exists() or _has_suffix(place, suffixes) for place in places)


def _has_suffix(place: Path, suffixes: Iterable[str]) -> bool:
    return any(place.with_name(place.name + suffix).exists() for suffix in suffixes)


def _known(top: str, roots: dict[str, list[Path]]) -> list[Path]:
    if top not in roots:
        roots[top] = _roots(top)
    return roots[top]


def _roots(top: str) -> list[Path]:
    """Where a top-level module or package would be imported from now, without importing it."""
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return []
    if spec is None:
        return []
    if spec.submodule_search_locations is not None:
        return [Path(location) for location in spec.submodule_search_locations]
    return [Path(spec.origin)] if spec.origin else []


class Recorder:
    """What building a model read: every module loaded, every file opened, and what it looked for in vain.

    Modules of the standard library and of torch are left out: the toolchain's factors cover them.
    """

    _active: Recorder | None = None
    _hooked = False

    def __init__(self) -> None:
        self._opened: set[str] = set()
        self._searched: set[str] = set()

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Note the files opened inside; audit hooks can't be removed, so one serves all recorders."""
        if not Recorder._hooked:
            sys.addaudithook(_on_audit)
            _hook_safetensors()
            Recorder._hooked = True
        Recorder._active = self
        try:
            yield
        finally:
            Recorder._active = None

    def opened(self, path: object) -> None:
        """Note a file that was opened for reading."""
        if isinstance(path, bytes | str | os.PathLike):
            self._opened.add(os.fsdecode(path))

    def searched(self, name: str) -> None:
        """Note a module that was looked for."""
        self._searched.add(name)

    def dependencies(self, settings: Settings) -> list[Dependency]:
        """Everything recorded, each file once, with the files that the config names."""
        found = {path.resolve(): ("setting", name) for name, path in named_files(settings).items()}
        roots: dict[str, list[Path]] = {}
        for top, path in _module_files():
            found.setdefault(path, _place(path, str(path), [top], roots))
        tops = sorted({top for top, _ in _module_files()})
        missing = sorted(self._searched - sys.modules.keys())
        # a module whose own import failed was found all the same
        absent = [Dependency("no-module", name, "") for name in missing if not _is_module(name, roots)]
        for text in sorted(self._opened):
            path = Path(text).resolve()
            if path.is_file() and not _covered(path):
                found.setdefault(path, _place(path, text, tops, roots))
            elif not path.exists() and not _covered(path):
                absent.append(Dependency("no-file", text, ""))
        return [take(kind, where, path) for path, (kind, where) in found.items()] + absent


def _place(path: Path, text: str, tops: Iterable[str], roots: dict[str, list[Path]]) -> tuple[str, str]:
    """Kind and place of a file: in terms of the imported package that it is a part of, if it is."""
    for top in tops:
        for root in (root.resolve() for root in _known(top, roots)):
            if path == root:
                return "module", top
            if path.is_relative_to(root):
                return "module", f"{top}/{path.relative_to(root).as_posix()}"
    return "file", text


def _module_files() -> Iterator[tuple[str, Path]]:
    for name, module in sorted(sys.modules.items()):
        origin = getattr(module, "__file__", None)
        if isinstance(origin, str) and name != "__main__":
            path = Path(origin).resolve()
            if path.is_file() and not _covered(path):
                yield name.partition(".")[0], path


def _covered(path: Path) -> bool:
    """Whether a factor of the toolchain, or nothing that lasts, stands for this file."""
    in_stdlib = path.is_relative_to(_STDLIB) and not any(path.is_relative_to(place) for place in _SITE)
    return path.suffix == ".pyc" or in_stdlib or any(path.is_relative_to(place) for place in _COVERED)


_STDLIB = Path(sysconfig.get_path("stdlib")).resolve()
_SITE = [Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")]  # lies inside of it, often
_COVERED = [*_roots("torch"), *map(Path, ("/proc", "/sys", "/dev"))]


def _on_audit(event: str, arguments: tuple[Any, ...]) -> None:
    recorder = Recorder._active  # noqa: SLF001 - this module's own
    if recorder is None:
        return
    if event == "import":
        recorder.searched(arguments[0])
    elif event == "open":
        path, mode, flags = arguments
        if (isinstance(mode, str) and "r" in mode) or (mode is None and not flags & (os.O_WRONLY | os.O_RDWR)):
            recorder.opened(path)


def _hook_safetensors() -> None:
    """Safetensors opens files in native code, where Python's audit events don't reach."""
    import safetensors

    original = safetensors.safe_open

    def safe_open(filename: Any, *args: Any, **kwargs: Any) -> Any:
        if (recorder := Recorder._active) is not None:  # noqa: SLF001 - this module's own
            recorder.opened(filename)
        return original(filename, *args, **kwargs)

    setattr(safetensors, "safe_open", safe_open)  # noqa: B010 - assigning it is what mypy refuses
