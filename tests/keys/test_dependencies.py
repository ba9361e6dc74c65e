"""Dependencies: what a model read while it was built is recorded, and every change of it is found."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from app import dependencies, files
from app.config import InputConfig, ModelConfig, Settings
from app.dependencies import changed, named_files, sha256_of, stat_of, take
from app.errors import ConfigError

# Builds `shop.model` as the compile worker would, and prints what it read.
CHILD = """
import importlib, json, sys
from app.config import InputConfig, ModelConfig, Settings
from app.dependencies import Recorder

arguments = json.loads(sys.argv[1])
recorder = Recorder()
with recorder.recording():
    importlib.import_module("shop.model").build()
open(arguments.pop("later")).close()
spec = InputConfig(name="x", shape=["batch", 4])
settings = Settings(model=ModelConfig(target="shop.model:build", inputs=[spec], **arguments))
print(json.dumps([item.to_json() for item in recorder.dependencies(settings)]))
"""

# Asks in a fresh process, as a lookup does, what changed.
ASK = """
import json, sys
from pathlib import Path
from app.dependencies import changed
recorded, named = json.loads(sys.stdin.read())
print(json.dumps(changed(recorded, {name: Path(path) for name, path in named.items()})))
"""


def test_stat_tuples_of_another_machine_are_replaced_by_this_one_s(tmp_path, monkeypatch):
    same, other = tmp_path / "same.txt", tmp_path / "other.txt"
    for path in (same, other):
        path.write_text("1")
        os.utime(path, (0, 0))
    recorded = [
        ["file", str(same), sha256_of(same), [1, 2, 3, 4, 5]],
        ["setting", "model.checkpoint", sha256_of(other), [1, 2, 3, 4, 5]],
        ["file", str(tmp_path / "gone"), "0" * 64, [1, 2, 3, 4, 5]],
        ["no-module", "nothing", "", []],
    ]
    other.write_text("2")
    assert [stat for *_, stat in dependencies.portable(recorded)] == [[], [], [], []]
    monkeypatch.setattr(files, "SETTLED_NS", -1)  # as if they were old: a younger file's stat tuple isn't trusted
    found = dependencies.retaken(dependencies.portable(recorded), {"model.checkpoint": other})
    assert [stat for *_, stat in found] == [stat_of(same), [], [], []]
    assert [item[:3] for item in found] == [item[:3] for item in recorded]


def test_what_python_finds_on_its_path_is_not_looked_for_while_the_path_stays(project, monkeypatch):
    record(project)  # writes its __pycache__
    time.sleep(2.1)  # a younger place may change without its stat tuple
    recorded = record(project)
    (path,) = [item for item in recorded if item[0] == "path"]
    roots = {where.partition("/")[2] for kind, where, _, _ in recorded if kind == "root"}
    assert {"shop", "single.py"} <= roots
    monkeypatch.chdir(project)
    monkeypatch.setattr(sys, "path", path[1].split(os.pathsep))
    looked_for = []
    monkeypatch.setattr(dependencies, "_roots", lambda top: looked_for.append(top) or [])
    importable = dependencies._Importable(recorded)
    assert importable.only_root("shop") == str(project / "shop")
    assert importable.only_root("single") == str(project / "single.py")
    assert not looked_for


@pytest.mark.parametrize("name", ["single/__init__.py", f"single{EXTENSION_SUFFIXES[0]}"])
def test_a_top_level_module_that_is_shadowed_where_it_lies_is_a_change(project, name):
    recorded = [item for item in record(project) if item[0] != "anchor"]
    assert ask(project, recorded) is None
    (project / name).parent.mkdir(exist_ok=True)
    (project / name).write_text("")
    assert "single" in ask(project, recorded)


def settings_for(**model):
    return Settings(model=ModelConfig(target="m:f", inputs=[InputConfig(name="x", shape=["batch", 4])], **model))


@pytest.fixture
def project(tmp_path):
    """A package whose model reads a constant of another module, a table beside it, and a safetensors file."""
    from safetensors.numpy import save_file

    package = tmp_path / "project" / "shop"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "constants.py").write_text("WIDTH = 4\n")
    (package / "unused.py").write_text("WIDTH = 5\n")
    (package / "table.txt").write_text("1 2 3\n")
    (package.parent / "beside.txt").write_text("beside\n")
    (package.parent / "later.txt").write_text("not the model's\n")
    (package.parent / "single.py").write_text("DEPTH = 2\n")
    import numpy as np

    save_file({"w": np.zeros(2, dtype="float32")}, package.parent / "outside.safetensors")
    (package / "model.py").write_text(
        "import sys, wave, random\n"
        "from pathlib import Path\n"
        "from shop.constants import WIDTH\n"
        "import single\n"
        "from safetensors import safe_open\n"
        "def build():\n"
        "    here = Path(__file__).parent\n"
        "    (here / 'table.txt').read_text()\n"
        "    open(here.parent / 'beside.txt').close()\n"
        "    with open(here.parent / 'written.txt', 'w') as out:\n"
        "        out.write('x')\n"
        "    with safe_open(here.parent / 'outside.safetensors', framework='np') as file:\n"
        "        return file.keys()\n"
    )
    return package.parent


def child(code, project, *arguments, given=None):
    done = subprocess.run(
        [sys.executable, "-B", "-c", code, *arguments],
        cwd=project,
        input=given,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(project), os.environ.get("PYTHONPATH")]))},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def record(project, **model):
    return child(CHILD, project, json.dumps({"later": str(project / "later.txt"), **model}))


def ask(project, recorded, **named):
    return child(ASK, project, given=json.dumps([recorded, named]))


# Recording


def test_everything_the_model_read_is_recorded_and_nothing_else(project):
    (project / "weights.bin").write_bytes(b"weights")
    recorded = record(project, checkpoint="weights.bin")
    places = {(kind, where) for kind, where, _, _ in recorded}
    assert places >= {
        ("module", "shop/__init__.py"),
        ("module", "shop/model.py"),
        ("module", "shop/constants.py"),
        ("module", "shop/table.txt"),
        ("module", "single"),
        ("file", str(project / "beside.txt")),
        ("file", str(project / "outside.safetensors")),
        ("setting", "model.checkpoint"),
        ("module", "app/config.py"),
    }
    wheres = [where for _, where in places]
    assert not [w for w in wheres if any(name in w for name in ("unused", "later", "written"))]
    assert len(places) == len(recorded)
    digests = {where: sha256 for _, where, sha256, _ in recorded}
    assert digests["shop/constants.py"] == sha256_of(project / "shop" / "constants.py")


def test_the_standard_library_and_torch_are_left_to_the_toolchains_factors(project):
    with (project / "shop" / "model.py").open("a") as file:
        file.write("import torch\n")
    tops = {where.partition("/")[0] for kind, where, _, _ in record(project) if kind == "module"}
    assert tops >= {"shop", "single", "app"}
    assert not tops & {"torch", "torchgen", "numpy", "json", "wave", "random", "pathlib", "os", "encodings"}
    files = [where for kind, where, _, _ in record(project) if kind == "file"]
    assert not [path for path in files if path.startswith(("/proc", "/sys", "/dev")) or path.endswith(".pyc")]


def test_a_safetensors_file_read_through_its_torch_side_is_recorded(project):
    (project / "shop" / "model.py").write_text(
        "from pathlib import Path\n"
        "def build():\n"
        "    from safetensors.torch import load_file\n"
        "    return load_file(Path(__file__).parent.parent / 'outside.safetensors')\n"
    )
    assert ("file", str(project / "outside.safetensors")) in {(kind, where) for kind, where, _, _ in record(project)}


# Comparing


def test_an_untouched_project_is_unchanged(project):
    assert ask(project, record(project)) is None


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("shop/constants.py", "shop/constants.py changed"),
        ("single.py", "single.py changed"),
        ("shop/table.txt", "shop/table.txt changed"),
        ("outside.safetensors", "outside.safetensors changed"),
    ],
)
def test_any_change_is_found_and_named(project, path, said):
    recorded = record(project)
    with (project / path).open("ab") as file:
        file.write(b"# more")
    assert ask(project, recorded).endswith(said)


@pytest.mark.parametrize("path", ["shop/table.txt", "beside.txt", "shop/constants.py", "single.py"])
def test_a_file_that_is_gone_is_named(project, path):
    recorded = record(project)
    (project / path).unlink()
    said = ask(project, recorded)
    assert path.removesuffix(".py") in said
    assert "gone" in said or "can't be read" in said


def test_a_change_of_what_the_model_does_not_read_does_not_matter(project):
    recorded = record(project)
    (project / "shop" / "unused.py").write_text("WIDTH = 6\n")
    (project / "later.txt").write_text("changed\n")
    assert ask(project, recorded) is None


def test_a_moved_copy_of_the_project_is_compared_by_its_own_files(project, tmp_path):
    recorded = [item for item in record(project) if item[0] == "module"]
    copy = tmp_path / "moved"
    shutil.copytree(project, copy)
    (project / "shop" / "constants.py").write_text("WIDTH = 7\n")
    assert ask(copy, recorded) is None
    (copy / "shop" / "table.txt").write_text("9\n")
    assert ask(copy, recorded) == "shop/table.txt changed"


def test_a_touched_file_of_the_same_content_is_unchanged(tmp_path):
    path = tmp_path / "a"
    path.write_text("same")
    recorded = [take("file", str(path), path).to_json()]
    path.unlink()
    path.write_text("same")
    assert changed(recorded, {}) is None


def test_a_young_file_is_not_trusted_by_its_stat(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_text("one")
    young = take("file", str(path), path)
    assert young.stat == []
    monkeypatch.setattr(files, "SETTLED_NS", -1)
    settled = take("file", str(path), path)
    assert settled.stat == stat_of(path)
    read = []
    monkeypatch.setattr(dependencies, "sha256_of", lambda path: read.append(path) or young.sha256)
    assert changed([settled.to_json()], {}) is None
    assert read == []
    assert changed([young.to_json()], {}) is None
    assert read == [path]


def test_a_settled_file_that_changed_without_its_size_or_time_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "SETTLED_NS", -1)
    path = tmp_path / "a"
    path.write_text("one")
    before = path.stat()
    recorded = [take("file", str(path), path).to_json()]
    path.write_text("two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert changed(recorded, {}) == f"{path} changed"


def test_a_copy_of_the_project_is_not_answered_by_the_first_ones_files(project, tmp_path):
    recorded = record(project)
    assert ask(project, recorded) is None
    copy = tmp_path / "moved"
    shutil.copytree(project, copy)
    (copy / "beside.txt").write_text("another\n")
    assert "another place" in ask(copy, recorded)


@pytest.mark.parametrize("variable", ["HOME", "XDG_CACHE_HOME", "TORCH_HOME", "HF_HOME"])
def test_another_users_files_are_not_taken_for_the_first_ones(project, monkeypatch, variable):
    recorded = record(project)
    monkeypatch.setenv(variable, str(project))
    assert ask(project, recorded) == f"${variable} is another place now"


def test_a_project_that_reads_its_own_packages_only_hits_from_anywhere(project):
    text = (project / "shop" / "model.py").read_text().partition("    open(")[0]
    (project / "shop" / "model.py").write_text(text)
    recorded = record(project)
    assert not [item for item in recorded if item[0] == "anchor"]
    assert ask(project, recorded) is None


def test_a_module_that_shadows_the_standard_librarys_is_a_change(project):
    recorded = record(project)
    (covered,) = [where.split() for kind, where, _, _ in recorded if kind == "covered"]
    assert "wave" in covered
    (project / "wave.py").write_text("WAVE_FORMAT_PCM = 2\n")
    assert ask(project, recorded) == "wave is shadowed by a module of its name"


# Settings


def test_a_folder_is_its_files(tmp_path):
    folder = tmp_path / "data"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "a").write_text("a")
    named = named_files(settings_for(depends_on=[str(folder)]))
    assert named == {"model.depends_on[0]": folder}
    recorded = [take("setting", name, path).to_json() for name, path in named.items()]
    assert changed(recorded, named) is None
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "a.pyc").write_text("x")
    assert changed(recorded, named) is None
    (folder / "inner" / "b").write_text("")
    assert changed(recorded, named) == "model.depends_on[0] changed"
    (folder / "inner" / "b").unlink()
    assert changed(recorded, named) is None
    (folder / "inner" / "a").rename(folder / "a")
    assert changed(recorded, named) == "model.depends_on[0] changed"


def test_a_setting_is_compared_with_the_file_that_it_names_now(tmp_path):
    first, second, other = tmp_path / "1", tmp_path / "2", tmp_path / "3"
    for path, text in ((first, "same"), (second, "same"), (other, "other")):
        path.write_text(text)
    recorded = [take("setting", "model.checkpoint", first).to_json()]
    assert changed(recorded, {"model.checkpoint": second}) is None
    assert changed(recorded, {"model.checkpoint": other}) == "model.checkpoint changed"
    assert changed(recorded, {}) == "model.checkpoint is gone"


@pytest.mark.parametrize("field", ["program", "checkpoint", "depends_on"])
def test_a_named_file_that_does_not_exist_is_refused_by_its_field(tmp_path, field):
    missing = str(tmp_path / "none")
    model = {"checkpoint": missing} if field == "checkpoint" else {"depends_on": [missing]}
    settings = settings_for(**model)
    if field == "program":
        settings = Settings(model=ModelConfig(program=missing))
    with pytest.raises(ConfigError, match=rf"model\.{field}.*none.*does not exist"):
        named_files(settings)


def test_a_home_relative_path_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "w").write_text("w")
    assert named_files(settings_for(checkpoint="~/w")) == {"model.checkpoint": tmp_path / "w"}


def test_a_module_that_no_longer_imports_is_gone():
    assert changed([["module", "no_such_top_level/x.py", "0" * 64, []]], {}) == "no_such_top_level/x.py is gone"


def test_a_folder_where_a_file_was_is_a_change(tmp_path):
    path = tmp_path / "a"
    path.write_text("a")
    recorded = [take("file", str(path), path).to_json()]
    path.unlink()
    Path(path).mkdir()
    assert changed(recorded, {}) == f"{path} changed"


# What was looked for and is not there


def test_a_module_that_was_searched_in_vain_and_appears_is_a_change(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    absent = [["no-module", "surely_not_installed_yet", "", []]]
    assert changed(absent, {}) is None
    (tmp_path / "surely_not_installed_yet.py").write_text("")
    assert changed(absent, {}) == "surely_not_installed_yet is there now"


@pytest.mark.parametrize("then", ["", "import sys; sys.path[:] = [p for p in sys.path if '_vendor' not in p]"])
def test_the_copies_of_packages_that_setuptools_brings_for_itself_are_not_looked_at(project, then):
    (project / "shop" / "model.py").write_text(
        (project / "shop" / "model.py").read_text() + "\ntry:\n    import backports\nexcept ImportError:\n    pass\n"
    )
    recorded = record(project)
    assert ["no-module", "backports", "", []] in recorded
    service = f"import setuptools, backports.tarfile\n{then}\n{ASK}"
    assert child(service, project, given=json.dumps([recorded, {}])) is None


def test_a_part_of_a_package_that_is_loaded_under_a_name_of_its_own_is_told_by_its_place(project):
    (project / "shop" / "part.py").write_text("x = 1\n")
    (project / "shop" / "model.py").write_text(
        (project / "shop" / "model.py").read_text()
        + "\nimport importlib.util as u, sys, pathlib\n"
        + "s = u.spec_from_file_location('own_name', pathlib.Path(__file__).with_name('part.py'))\n"
        + "sys.modules['own_name'] = u.module_from_spec(s)\ns.loader.exec_module(sys.modules['own_name'])\n"
    )
    recorded = record(project)
    assert [where for kind, where, *_ in recorded if where.endswith("part.py")] == ["shop/part.py"]
    assert child(ASK, project, given=json.dumps([recorded, {}])) is None


def test_a_folder_that_now_imports_as_a_namespace_is_a_change(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "spaced").mkdir()
    (tmp_path / "spaced" / "__init__.py").write_text("")
    absent = [["no-module", "spaced.extra", "", []]]
    assert changed(absent, {}) is None
    (tmp_path / "spaced" / "extra").mkdir()
    assert changed(absent, {}) == "spaced.extra is there now"


def test_a_file_that_was_opened_in_vain_and_appears_is_a_change(tmp_path):
    path = tmp_path / "optional.yaml"
    recorder = dependencies.Recorder()
    with recorder.recording(), pytest.raises(FileNotFoundError):
        path.open()
    settings = Settings(model=ModelConfig(target="m:f", inputs=[InputConfig(name="x", shape=["batch"])]))
    recorded = [item.to_json() for item in recorder.dependencies(settings)]
    assert ["no-file", str(path), "", []] in recorded
    only = [item for item in recorded if item[1] == str(path)]
    assert changed(only, {}) is None
    path.write_text("x: 1")
    assert changed(only, {}) == f"{path} is there now"


@pytest.mark.parametrize(
    "name", ["part/__init__.py", f"part{EXTENSION_SUFFIXES[0]}", f"part{EXTENSION_SUFFIXES[-1]}"]
)
@pytest.mark.parametrize("with_folder", [True, False])
def test_what_python_would_import_instead_of_a_recorded_module_is_a_change(tmp_path, monkeypatch, name, with_folder):
    package = tmp_path / "shadowed_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    module = package / "part.py"
    module.write_text("x = 1")
    for path in (module, package):
        os.utime(path, (1, 1))
    monkeypatch.setattr(files, "SETTLED_NS", 0)  # as if it were old
    monkeypatch.syspath_prepend(tmp_path)
    recorded = [take("module", "shadowed_package/part.py", module).to_json()]
    if with_folder:
        recorded.append(take("folder", "shadowed_package", package).to_json())
    assert all(stat for *_, stat in recorded)
    assert changed(recorded, {}) is None
    (package / name).parent.mkdir(exist_ok=True)
    (package / name).write_text("x = 2")
    assert changed(recorded, {}) == f"shadowed_package/part.py is shadowed by {Path(name).parts[0]}"


def test_a_new_file_that_shadows_nothing_is_no_change(tmp_path, monkeypatch):
    package = tmp_path / "steady_package"
    package.mkdir()
    module = package / "part.py"
    module.write_text("x = 1")
    monkeypatch.setattr(files, "SETTLED_NS", 0)
    monkeypatch.syspath_prepend(tmp_path)
    recorded = [
        take("folder", "steady_package", package).to_json(),
        take("module", "steady_package/part.py", module).to_json(),
    ]
    (package / "results.json").write_text("{}")
    (package / "part_two.py").write_text("")
    assert changed(recorded, {}) is None
