"""The digits model: its shipped weights are small and right, and the script that made them makes such ones again."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from app import workloads
from app.data.digits import held_out, load
from app.workloads.digits import build

SHIPPED = Path(workloads.__file__).with_name("digits.safetensors")
SCRIPT = Path(__file__).parents[2] / "examples" / "train_digits.py"


def num_right(path):
    images, digits = map(torch.from_numpy, load())
    chosen = torch.from_numpy(held_out(len(images)))
    model = build().eval()
    model.load_state_dict(load_file(path))
    with torch.inference_mode():
        return int((model(images[chosen]).argmax(dim=1) == digits[chosen]).sum())


def test_the_shipped_weights_are_small_and_know_digits_that_they_never_saw():
    pytest.importorskip("sklearn")
    assert SHIPPED.stat().st_size < 1_000_000
    assert num_right(SHIPPED) == 443  # of 449


@pytest.mark.slow
def test_the_example_trains_such_weights_again(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn")
    path = tmp_path / "again.safetensors"
    monkeypatch.setattr(sys, "argv", ["train_digits.py", str(path)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert num_right(path) >= 436  # another processor rounds otherwise, and comes to other weights
    assert f"{path}: accuracy 0.9" in capsys.readouterr().out
