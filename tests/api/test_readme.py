"""The README's program runs as it stands there."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

import app

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.slow
def test_the_program_in_the_readme_runs(fresh_store, tmp_path, monkeypatch, capsys):
    (block,) = re.findall(
        r"(?:^    .*\n|^\n)*^    from app import compile_model.*\n(?:^    .*\n|^\n)*",
        README.read_text(),
        re.MULTILINE,
    )
    monkeypatch.chdir(tmp_path)
    program = textwrap.dedent(block)
    assert 'cache="project"' in program
    with app.session(cache={"dir": str(fresh_store)}):
        exec(program.replace('cache="project", ', ""), {})  # noqa: S102 - the README is this project's
    assert capsys.readouterr().out.startswith("torch.Size([9, 32])")


def test_every_name_that_the_readme_imports_is_there():
    for names in re.findall(r"^\s*from app import (.+)$", README.read_text(), re.MULTILINE):
        for name in names.split(","):
            assert hasattr(app, name.strip())
