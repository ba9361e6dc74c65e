"""Models that a user might name: good ones, and each kind of bad one."""

from __future__ import annotations

import torch
from torch import nn


def linear(size=4):
    return nn.Linear(size, 2)


def normed():
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))


def with_positions():
    """Makes a buffer itself that older checkpoints hold."""
    module = nn.Linear(4, 2)
    module.register_buffer("position_ids", torch.arange(4), persistent=False)
    return module


def raises():
    raise RuntimeError("no such luck\nand more lines")


def gives_a_dict():
    return {"not": "a module"}


def halves(sizes, seed):
    return {"x": torch.full((sizes["batch"], 4), 0.5 + seed)}


def lists(sizes, seed):
    return {"x": [[1.0] * 4] * sizes["batch"], "spare": None}


def too_narrow(sizes, seed):
    return {"x": torch.zeros(sizes["batch"], 3)}


def too_precise(sizes, seed):
    return {"x": torch.zeros(sizes["batch"], 4, dtype=torch.float64)}


def other_name(sizes, seed):
    return {"y": torch.zeros(sizes["batch"], 4)}
