"""The files that a model was built from: recorded in the worker, compared at every lookup.

After ccache's direct mode: a request leads to recorded sets of files with their digests, and the first set whose
files are all unchanged names the object. A file is found again by what it *is* (a module of this import path, a
setting of this config), so that a copy of the project elsewhere is compared with its own files, never with the
files of the place where the set was recorded.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache, cached_property, wraps
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import Any
from unittest.mock import patch

from .config import Settings
from .environment import VENDORED, import_path
from .errors import ConfigError
from .files import Stat, settled, sha256_of, stat_of, stat_tuple


@dataclass(frozen=True)
class Dependency:
    """One file: how to find it again, its content, and the stat tuple under which the digest was taken.

    Attributes:
        kind: `module` (where is `top-level/relative path`), `file` (a path as it was opened), `setting` (a field
            of the model config that names a file or folder), or, for what was looked for and is not there,
            `no-module` (a dotted name) and `no-file` (a path). `covered` are the top-level modules that the
            toolchain's factors stand for, unless others shadow them; `anchor` is a place that absolute paths may
            be made from; `listing` is a folder whose names were read, and `variable` one of the environment. The rest
            only saves time: `folder` is one that modules lie in, `path` are all places that they are imported from,
            and while their own stat tuples stay, nothing that shadows a module was added there; `root` is where a
            top-level module lies, `<index in path>/<name>`.
        where: The place, in the terms of its kind.
        sha256: Digest of the content, of an anchor's path, of names or a value; empty for a folder and what is not
            there or is covered.
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
    if kind == "folder":
        return Dependency(kind, where, "", stat if settled(stat) else [])
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
    recorded = list(recorded)
    importable = _Importable(recorded)
    # a top-level module lies in no package's folder: whatever shadows it is what `importable` finds
    as_before = {""} | {
        where for kind, where, _, stat in recorded if kind == "folder" and _is_untouched(where, stat, importable)
    }
    for kind, where, sha256, stat in recorded:
        if kind in _SHORTCUTS:
            continue
        if kind in _SURROUNDINGS:
            said = _surroundings_changed(kind, where, sha256, importable)
        elif kind == "module" and where.rpartition("/")[0] in as_before and _is_untouched(where, stat, importable):
            continue
        else:
            said = _file_changed(kind, where, sha256, stat, _find(kind, where, named, importable))
        if said is not None:
            return said
    return None


def portable(recorded: Iterable[list[Any]]) -> list[list[Any]]:
    """The same for another machine, where a stat tuple says nothing of a file's content."""
    return [[kind, where, sha256, []] for kind, where, sha256, _ in recorded if kind not in {"path", "root"}]


def were_young(recorded: Iterable[list[Any]]) -> bool:
    """Whether a file was so young when it was recorded that its stat tuple could not be trusted."""
    return any(not stat and kind not in {*_SURROUNDINGS, "path", "root"} for kind, _, _, stat in recorded)


def retaken(recorded: Iterable[list[Any]], named: dict[str, Path]) -> list[list[Any]]:
    """The same with the missing stat tuples, those of this machine's files where these have the recorded content."""
    importable, found = _Importable(), list(recorded)
    for number, (kind, where, sha256, stat) in enumerate(found):
        if kind == "path" and where == os.pathsep.join(import_path()):
            found[number] = _path().to_json()
        path = None if stat or kind in {*_SURROUNDINGS, "path", "root"} else _find(kind, where, named, importable)
        with suppress(OSError):
            if path is not None and (taken := take(kind, where, path)).sha256 == sha256:
                found[number] = taken.to_json()
    return found


def _surroundings_changed(kind: str, where: str, sha256: str, importable: _Importable) -> str | None:
    said: str | None = None
    match kind:
        case "no-module" if _is_module(where, importable):
            said = f"{where} is there now"
        case "no-file" if Path(where).exists():
            said = f"{where} is there now"
        case "covered" if shadowed := importable.early & set(where.split()):
            foreign = [top for top in sorted(shadowed) if not _is_covered(top, importable)]
            said = f"{foreign[0]} is shadowed by a module of its name" if foreign else None
        case "listing" if sha256 != _listed(where):
            said = f"{where} holds other files"
        case "variable" if sha256 != _value(where):
            said = f"the environment variable {where} changed"
        case "anchor" if sha256 != _anchored(where, importable):
            said = f"{where} is another place now"
    return said


def _is_untouched(where: str, stat: Stat, importable: _Importable) -> bool:
    """Whether a module's file or folder is as it was recorded, by its stat tuple: quickly, for there are many."""
    top, _, rest = where.partition("/")
    if (place := importable.only_root(top)) is None:
        return False
    try:
        found = os.stat(f"{place}/{rest}" if rest else place)  # noqa: PTH116 - pathlib would cost more than the call
    except (OSError, ValueError):
        return False
    return stat == stat_tuple(found)


def _file_changed(kind: str, where: str, sha256: str, stat: Stat, path: Path | None) -> str | None:
    if path is None:
        return f"{where} is gone"
    shown = where if "/" in where or kind == "setting" else path.name
    if kind == "module" and (by := _shadow(path)) is not None:
        return f"{shown} is shadowed by {by.name}"
    try:
        path = path.resolve()
        return f"{shown} changed" if stat != stat_of(path) and sha256 != sha256_of(path) else None
    except OSError as error:
        return f"{shown} can't be read: {error.strerror}"


def _shadow(path: Path) -> Path | None:
    """What Python would import instead of the module at `path`, from the same folder."""
    place = path.with_name(path.name.partition(".")[0])
    suffixes = importlib.machinery.EXTENSION_SUFFIXES
    first = [place] if any((place / f"__init__{suffix}").exists() for suffix in (".py", *suffixes)) else []
    others = [place.with_name(place.name + suffix) for suffix in suffixes] if path.suffix == ".py" else []
    return next((other for other in (*first, *others) if other.exists()), None)


def _find(kind: str, where: str, named: dict[str, Path], importable: _Importable) -> Path | None:
    if kind == "setting":
        return named.get(where)
    if kind == "file":
        return Path(where)
    top, _, rest = where.partition("/")
    return next((path for root in importable.roots(top) if (path := root / rest if rest else root).exists()), None)


def _is_module(name: str, importable: _Importable) -> bool:
    """Whether a dotted name could be imported now; nothing is imported to find out."""
    top, *rest = name.split(".")
    if not rest:
        return bool(importable.roots(top))
    places = [root.joinpath(*rest) for root in importable.roots(top)]
    suffixes = (".py", *importlib.machinery.EXTENSION_SUFFIXES)
    return any(place.is_dir() or _has_suffix(place, suffixes) for place in places)


def _has_suffix(place: Path, suffixes: Iterable[str]) -> bool:
    return any(place.with_name(place.name + suffix).exists() for suffix in suffixes)


class _Importable:
    """Where top-level modules would be imported from now; each is looked for once.

    Looking is slow, so what was `recorded` stands while nothing was added to or removed from the import path.
    """

    def __init__(self, recorded: Iterable[list[Any]] = ()) -> None:
        self._path = import_path()
        self._found: dict[str, list[Path]] = {}
        self._only: dict[str, str | None] = {}
        self._listed: dict[int, frozenset[str]] = {}
        self._touched: list[int] | None = None  # the places that something may have been added to
        for kind, where, _, stat in recorded:
            if kind == "path" and where == os.pathsep.join(self._path):
                before, now = _by_place(stat), _by_place(_path_stat())
                self._touched = [index for index, found in enumerate(now) if before[index] != found]
            elif kind == "root" and self._touched is not None:
                index, _, name = where.partition("/")
                top = name.partition(".")[0]
                if not any(number == int(index) or top in self._tops_in(number) for number in self._touched):
                    self._only[top] = f"{self._path[int(index)]}/{name}"

    def roots(self, top: str) -> list[Path]:
        """The folders of a package, or the file of a module; empty where there is none."""
        if top not in self._found:
            self._found[top] = _roots(top)
        return self._found[top]

    def only_root(self, top: str) -> str | None:
        """The same where there is just one, as text."""
        if top not in self._only:
            known = self.roots(top)
            self._only[top] = str(known[0]) if len(known) == 1 else None
        return self._only[top]

    @cached_property
    def early(self) -> frozenset[str]:
        """Names that could be found before the standard library's and torch's, which lie at the end of the path."""
        ends = [index for index, place in enumerate(self._path) if place in _LAST]
        before = range(max(ends, default=len(self._path)))
        # a place that goes by another name here is listed too, which only costs time
        foreign = [index for index in before if not f"{self._path[index]}/".startswith(_LAST)]
        listed = foreign if self._touched is None else [index for index in foreign if index in self._touched]
        return frozenset(top for index in listed for top in self._tops_in(index))

    def _tops_in(self, index: int) -> frozenset[str]:
        """What may be a top-level module in a place on the import path."""
        if index not in self._listed:
            names: list[str] = []
            with suppress(OSError):
                names = os.listdir(self._path[index] or ".")  # noqa: PTH208 - the names are all that is asked for
            self._listed[index] = frozenset(name.partition(".")[0] for name in names)
        return self._listed[index]


def _path_stat() -> Stat:
    """The stat tuples of all places on the import path, one after the other; zeros for what isn't there."""
    found = []
    for place in import_path():
        try:
            found += stat_tuple(os.stat(place or "."))  # noqa: PTH116 - pathlib would cost more than the call
        except OSError:
            found += [0] * 5
    return found


def _by_place(stat: Stat) -> list[Stat]:
    return [stat[start : start + 5] for start in range(0, len(stat), 5)]


def _path() -> Dependency:
    """The import path as it is now, without the stat tuples of places that are too young to trust them."""
    known = [number for stat in _by_place(_path_stat()) for number in (stat if settled(stat) else [-1] * 5)]
    return Dependency("path", os.pathsep.join(import_path()), "", known)


def _roots(top: str) -> list[Path]:
    """Where a top-level module or package would be imported from now, without importing it."""
    # not by importlib.util, which answers from sys.modules: a compiled part of a package may be there by a name of
    # its own, under which no other process finds it
    finders = (getattr(finder, "find_spec", None) for finder in sys.meta_path)
    try:
        spec = next((found for find in finders if find and (found := find(top, None, None)) is not None), None)
    except (ImportError, ValueError):
        return []
    if spec is None:
        return []
    found = [spec.origin] if spec.origin else []
    if spec.submodule_search_locations is not None:
        found = list(spec.submodule_search_locations)
    # what was imported from there is found even where sys.path is as it was before
    return [Path(place) for place in found if not str(Path(place).parent).endswith(VENDORED)]


def _is_covered(top: str, importable: _Importable) -> bool:
    return top not in importable.early or all(map(_covered, importable.roots(top)))


def _listed(place: str) -> str:
    """The digest of the names in a folder; empty where there is none."""
    try:
        names = sorted(name for name in os.listdir(place) if name != "__pycache__")  # noqa: PTH208 - as above
    except OSError:
        return ""
    return hashlib.sha256("\0".join(names).encode(errors="surrogateescape")).hexdigest()


def _value(name: str, otherwise: Mapping[str, str] = MappingProxyType({})) -> str:
    """The digest of a variable's value, which may be a secret; empty where it isn't set."""
    value = os.environ.get(name, otherwise.get(name))
    return hashlib.sha256(value.encode(errors="surrogateescape")).hexdigest() if value is not None else ""


def _anchored(name: str, importable: _Importable) -> str:
    """The digest of a place: where packages are installed, the working directory, a variable's, or a module's."""
    if name == _INSTALLED:
        found = os.pathsep.join(map(str, _SITE))
    elif name == ".":
        found = str(Path.cwd())
    elif name.startswith("$"):
        found = os.environ.get(name.removeprefix("$"), "")
    else:
        found = os.pathsep.join(map(str, importable.roots(name)))
    return hashlib.sha256(found.encode()).hexdigest()


class Recorder:
    """What building a model read: every module loaded, every file opened, and what it looked for in vain.

    Of the user's own code also the folders that it lists and the variables that it asks for, and that it asks another
    program or machine, whose answer can't be recorded. Installed packages do so for reasons of their own.

    Modules of the standard library and of torch are covered by the toolchain's factors: only that they are the ones
    found is recorded. The places that absolute paths may be made from are recorded with such a path: the copy of a
    project, or another user, has files of its own there.
    """

    _active: Recorder | None = None
    _hooked = False

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._opened: set[str] = set()
        self._searched: set[str] = set()
        self._listed: set[str] = set()
        self._asked: set[str] = set()
        self._environment = environment or {}
        self.unrecorded: str | None = None

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Note the files opened inside; audit hooks can't be removed, so one serves all recorders."""
        if not Recorder._hooked:
            sys.addaudithook(_on_audit)
            _hook_safetensors()
            _hook_torch()
            Recorder._hooked = True
        Recorder._active = self
        try:
            with patch.object(type(os.environ), "__getitem__", _variable):
                yield
        finally:
            Recorder._active = None

    def asked(self, name: str) -> str | None:
        """Note a variable, and give the one of the process that asked, where this one lacks it."""
        self._asked.add(name)
        return self._environment.get(name)

    def listed(self, place: object) -> None:
        """Note a folder whose names were read."""
        if place is None or isinstance(place, bytes | str | os.PathLike):
            self._listed.add(os.fsdecode(place) if place is not None else ".")

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
        importable = _Importable()
        modules = list(_module_files())
        tops = sorted({top for top, _ in modules})
        for top, path in modules:
            found.setdefault(path, _place(path, str(path), [top, *tops], importable))
        missing = sorted(self._searched - sys.modules.keys())
        # a module whose own import failed was found all the same
        absent = [Dependency("no-module", name, "") for name in missing if not _is_module(name, importable)]
        for text in sorted(self._opened):
            path = Path(text).resolve()
            if path.is_file() and not _covered(path):
                found.setdefault(path, _place(path, text, tops, importable))
            elif not path.exists() and not _covered(path):
                absent.append(Dependency("no-file", text, ""))
        for path, (kind, where) in list(found.items()):
            if kind == "module" and "/" in where:
                found.setdefault(path.parent, ("folder", where.rpartition("/")[0]))
        surroundings = [
            Dependency("listing", place, _listed(place))
            for place in sorted(self._listed)
            if not _covered(Path(place).resolve()) and not _is_installed(Path(place).resolve())
        ]
        surroundings += [
            Dependency("variable", name, _value(name, self._environment)) for name in sorted(self._asked)
        ]
        files = [take(kind, where, path) for path, (kind, where) in found.items()]
        paths = [Path(item.where) for item in [*files, *absent, *surroundings] if item.kind in _WITH_PATHS]
        installed = {_is_installed(path) for path in paths if path.is_absolute()}
        places = ([_INSTALLED] if True in installed else []) + ([".", *_PLACES, *tops] if False in installed else [])
        anchors = [Dependency("anchor", name, _anchored(name, importable)) for name in places]
        covered = [top for top in _covered_tops() if _is_covered(top, importable)]
        roots = (
            _root(top, importable)
            for top in {item.where.partition("/")[0] for item in files if item.kind == "module"}
        )
        shortcuts = [_path(), *filter(None, roots)]
        return [*files, *absent, *surroundings, *anchors, Dependency("covered", " ".join(covered), ""), *shortcuts]


def _root(top: str, importable: _Importable) -> Dependency | None:
    """Where on the import path a top-level module lies, if it simply lies there."""
    path = import_path()
    for root in importable.roots(top):
        if str(root.parent) in path:
            return Dependency("root", f"{path.index(str(root.parent))}/{root.name}", "")
    return None


def _place(path: Path, text: str, tops: Iterable[str], importable: _Importable) -> tuple[str, str]:
    """Kind and place of a file: in terms of the imported package that it is a part of, if it is."""
    for top in tops:
        for root in (root.resolve() for root in importable.roots(top)):
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


def _covered_tops() -> list[str]:
    found = ((name, getattr(module, "__file__", None)) for name, module in sys.modules.items() if "." not in name)
    return sorted(name for name, origin in found if isinstance(origin, str) and _covered(Path(origin).resolve()))


def _is_installed(path: Path) -> bool:
    return any(path.is_relative_to(place) for place in _SITE)


def _covered(path: Path) -> bool:
    """Whether a factor of the toolchain, or nothing that lasts, stands for this file."""
    text = f"{path}/"
    in_stdlib = text.startswith(f"{_STDLIB}/") and not _is_installed(path)
    return path.suffix == ".pyc" or in_stdlib or text.startswith(_COVERED)


_STDLIB = Path(sysconfig.get_path("stdlib")).resolve()
_SITE = [Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")]  # lies inside of it, often
# As sys.path spells them, and resolved.
_LAST = tuple({str(_STDLIB), *map(str, _SITE), *map(sysconfig.get_path, ("stdlib", "purelib", "platlib"))})
# what is no file
_SURROUNDINGS = frozenset(("no-module", "no-file", "covered", "anchor", "listing", "variable"))
_WITH_PATHS = frozenset(("file", "no-file", "listing"))
_SHORTCUTS = frozenset(("folder", "path", "root"))  # what matters there was recorded file by file
_INSTALLED = "site-packages"
# Variables that reach the compile worker and say where a user's files are.
_PLACES = ("$HOME", "$XDG_CACHE_HOME", "$TORCH_HOME", "$HF_HOME")
_ZIPPED = _STDLIB.parent / f"python{sys.version_info.major}{sys.version_info.minor}.zip"  # searched before it
# By their versions; the last three are what `import torch` brings along, and compute nothing.
_TOOLCHAIN = ("torch", "torchgen", "numpy", "tqdm", "typing_extensions", "_distutils_hack")
_PLACES_COVERED = (*(root for top in _TOOLCHAIN for root in _roots(top)), _ZIPPED)
_COVERED = (*(f"{place}/" for place in _PLACES_COVERED), "/proc/", "/sys/", "/dev/")


_ENVIRONMENT = type(os.environ).__getitem__
_LISTING = frozenset(("os.listdir", "os.scandir"))
_UNRECORDED = {
    "subprocess.Popen": "runs another program",
    "os.system": "runs another program",
    "os.posix_spawn": "runs another program",
    "socket.connect": "asks another machine",
}


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
    elif event in _LISTING:
        if not _caller().f_code.co_filename.startswith("<frozen") and _is_users():
            recorder.listed(arguments[0])
    elif event == "sqlite3.connect":
        recorder.opened(arguments[0])
    elif event in _UNRECORDED and recorder.unrecorded is None and _is_users():
        recorder.unrecorded = f"building the model {_UNRECORDED[event]}"


def _variable(environment: Any, name: str | bytes) -> Any:
    """What `os.environ[name]` gives while a model is built."""
    recorder = Recorder._active  # noqa: SLF001 - this module's own
    given = recorder.asked(name) if recorder is not None and isinstance(name, str) and _is_users() else None
    try:
        return _ENVIRONMENT(environment, name)  # type: ignore[arg-type] # the same class holds bytes
    except KeyError:
        if given is None:
            raise
        return given


def _caller() -> FrameType:
    return sys._getframe(2)  # noqa: SLF001 - public by its documentation


def _is_users() -> bool:
    """Whether the user's own code asks: the nearest that is neither of the standard library nor of this package."""
    frame: FrameType | None = sys._getframe(2)  # noqa: SLF001 - as above
    while frame is not None:
        if (found := _owner(frame.f_code.co_filename)) is not None:
            return found
        frame = frame.f_back
    return False


@cache
def _owner(filename: str) -> bool | None:
    """True of the user's code, False of an installed package; None of what is asked on behalf of others."""
    if filename.startswith("<frozen"):
        return None
    path = Path(filename).resolve()
    if _is_installed(path) or f"{path}".startswith(_COVERED):
        return False
    return None if path.is_relative_to(Path(__file__).parent) or path.is_relative_to(_STDLIB) else True


def _hook_safetensors() -> None:
    """Safetensors opens files in native code, where Python's audit events don't reach."""
    import safetensors

    original = safetensors.safe_open

    def safe_open(filename: Any, *args: Any, **kwargs: Any) -> Any:
        if (recorder := Recorder._active) is not None:  # noqa: SLF001 - this module's own
            recorder.opened(filename)
        return original(filename, *args, **kwargs)

    setattr(safetensors, "safe_open", safe_open)  # noqa: B010 - assigning it is what mypy refuses


def _hook_torch() -> None:
    """So does torch with a scripted module, and with a file of numbers."""
    import torch

    def noted(original: Any) -> Any:
        @wraps(original)
        def call(file: Any, *args: Any, **kwargs: Any) -> Any:
            if (recorder := Recorder._active) is not None:  # noqa: SLF001 - this module's own
                recorder.opened(file)
            return original(file, *args, **kwargs)

        return call

    setattr(torch.jit, "load", noted(torch.jit.load))  # noqa: B010 - as above
    setattr(torch, "from_file", noted(torch.from_file))  # noqa: B010 - as above
