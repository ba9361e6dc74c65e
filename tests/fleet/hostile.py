"""A model that ends its process, or never gets done the first time that it is built; FATES is where it says so."""

import ctypes
import os
import time
from pathlib import Path

from torch import nn


def build(width: int = 4, fate: str = "well") -> nn.Module:
    if fate == "segfault":
        ctypes.string_at(0)
    if fate == "slow" and first():
        time.sleep(3600)
    return nn.Linear(16, width)


def first() -> bool:
    try:
        (Path(os.environ["FATES"]) / str(os.getpid())).symlink_to("nowhere")
        os.mkdir(Path(os.environ["FATES"], "slow"))  # noqa: PTH102 - a name that is taken is not looked for
    except FileExistsError:
        return False
    return True
