"""The digits model: two convolutions over 8 x 8 grey values, with weights that were trained on real handwriting.

examples/train_digits.py made the weights that lie beside this file.
"""

from __future__ import annotations

from torch import nn


def build() -> nn.Module:
    """The network without its weights: float32 [batch, 1, 8, 8], values 0 to 1 -> class scores [batch, 10]."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.25),
        nn.Linear(64 * 4 * 4, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
