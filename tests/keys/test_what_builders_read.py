"""What a builder reads besides modules and files it opens: variables, folders, databases, other programs."""

from __future__ import annotations

import glob
import os
import socket
import sqlite3
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from app import dependencies
from app.config import InputConfig, ModelConfig, Settings
from app.dependencies import Recorder

SETTINGS = Settings(model=ModelConfig(target="m:f", inputs=[InputConfig(name="x", shape=["batch", 4])]))


def recorded(build, environment=None):
    """What building reads, as JSON, and what it reads that can't be recorded."""
    recorder = Recorder(environment)
    with recorder.recording():
        build()
    return [item.to_json() for item in recorder.dependencies(SETTINGS)], recorder.unrecorded


def places(found, kind):
    return {where for each, where, *_ in found if each == kind}


READING = {
    "get": lambda: os.environ.get("SHOP_SCALE", "1"),
    "getenv": lambda: os.getenv("SHOP_SCALE"),
    "in": lambda: "SHOP_SCALE" in os.environ,
    "item": lambda: os.environ["SHOP_SCALE"],
}


@pytest.mark.parametrize("way", READING)
@pytest.mark.parametrize("changed", ["3", None])
def test_a_variable_is_a_dependency_by_its_value(monkeypatch, way, changed):
    monkeypatch.setenv("SHOP_SCALE", "2")
    found, _ = recorded(READING[way])
    assert places(found, "variable") == {"SHOP_SCALE"}
    assert dependencies.changed(found, {}) is None
    assert "2" not in [sha256 for _, _, sha256, _ in found], "its value may be a secret"
    monkeypatch.delenv("SHOP_SCALE")
    if changed is not None:
        monkeypatch.setenv("SHOP_SCALE", changed)
    assert dependencies.changed(found, {}) == "the environment variable SHOP_SCALE changed"


def test_a_variable_that_is_not_set_is_one_too(monkeypatch):
    monkeypatch.delenv("SHOP_SCALE", raising=False)
    found, _ = recorded(READING["get"])
    assert dependencies.changed(found, {}) is None
    monkeypatch.setenv("SHOP_SCALE", "1")
    assert dependencies.changed(found, {}) == "the environment variable SHOP_SCALE changed"


def test_the_builder_finds_the_variables_of_the_process_that_asked(monkeypatch):
    monkeypatch.delenv("SHOP_SCALE", raising=False)
    seen = []
    found, _ = recorded(lambda: seen.append(os.environ["SHOP_SCALE"]), {"SHOP_SCALE": "7"})
    assert seen == ["7"]
    assert "SHOP_SCALE" not in os.environ, "only while it builds"
    monkeypatch.setenv("SHOP_SCALE", "7")
    assert dependencies.changed(found, {}) is None


def test_what_an_installed_package_asks_for_is_its_own_matter():
    package = types.ModuleType("package")
    where = Path(torch.__file__).with_name("reads.py")
    exec(  # noqa: S102 - its file is where a package would be
        compile("import os\ndef read():\n    return os.environ.get('SHOP_SCALE')", str(where), "exec"),
        package.__dict__,
    )
    found, _ = recorded(package.read, {"SHOP_SCALE": "7"})
    assert places(found, "variable") == set()


@pytest.mark.parametrize(
    "read",
    [
        lambda: glob.glob("points/*.pt"),  # noqa: PTH207 - as people write it
        lambda: list(Path("points").iterdir()),
        lambda: os.listdir("points"),  # noqa: PTH208 - as above
    ],
    ids=["glob", "iterdir", "listdir"],
)
def test_a_folder_that_is_listed_for_the_newest_checkpoint_is_a_dependency(tmp_path, monkeypatch, read):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "points").mkdir()
    (tmp_path / "points" / "001.pt").write_text("1")
    found, _ = recorded(read)
    assert places(found, "listing") == {"points"}
    assert dependencies.changed(found, {}) is None
    (tmp_path / "points" / "002.pt").write_text("2")
    assert dependencies.changed(found, {}) == "points holds other files"
    (tmp_path / "points" / "002.pt").unlink()
    (tmp_path / "points" / "__pycache__").mkdir()
    assert dependencies.changed(found, {}) is None


def test_what_python_lists_to_import_is_none(tmp_path, monkeypatch):
    (tmp_path / "shelf").mkdir()
    (tmp_path / "shelf" / "__init__.py").write_text("from . import book\n")
    (tmp_path / "shelf" / "book.py").write_text("PAGES = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    found, _ = recorded(lambda: __import__("shelf"))
    assert places(found, "listing") == set()
    for name in ("shelf", "shelf.book"):
        del sys.modules[name]


def test_a_database_a_scripted_module_and_a_file_of_numbers_are_files(tmp_path):
    database, scripted, numbers = tmp_path / "a.db", tmp_path / "a.pt", tmp_path / "a.bin"
    with sqlite3.connect(database) as connection:
        connection.execute("create table t (x)")
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), scripted)
    numbers.write_bytes(bytes(16))

    def build():
        sqlite3.connect(database).close()
        torch.jit.load(str(scripted))
        torch.from_file(str(numbers), size=4, dtype=torch.float32)

    found, _ = recorded(build)
    assert {str(database), str(scripted), str(numbers)} <= places(found, "file")


def connect():
    with socket.socket() as asking, pytest.raises(OSError):  # noqa: PT011 - nobody listens there
        asking.connect(("127.0.0.1", 9))


@pytest.mark.parametrize(
    ("build", "words"),
    [(lambda: subprocess.run(["true"], check=True), "runs another program"), (connect, "asks another machine")],
    ids=["program", "machine"],
)
def test_what_another_program_or_machine_says_cannot_be_recorded(build, words):
    assert recorded(build)[1] == f"building the model {words}"
    assert recorded(lambda: None)[1] is None
