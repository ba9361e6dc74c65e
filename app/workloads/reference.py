"""The three reference models, fixed so that figures can be compared from run to run."""

from __future__ import annotations

import torch
from torch import nn


def linear() -> nn.Module:
    """Three linear layers, [batch, 768] -> [batch, 5]."""
    return nn.Sequential(
        nn.Linear(768, 512), nn.ReLU(), nn.Dropout(0.1), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 5)
    )


def cnn() -> nn.Module:
    """Two convolutions over time, [batch, 64, 100] -> [batch, 8]."""
    return nn.Sequential(
        nn.Conv1d(64, 128, 3, padding=1),
        nn.ReLU(),
        nn.Conv1d(128, 256, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(256, 8),
    )


class Transformer(nn.Module):
    """Four encoder layers over 32 tokens of a vocabulary of 1000, int64 [batch, 32] -> [batch, 10]."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(256, 8, dim_feedforward=512, batch_first=True)
        self.embedding = nn.Embedding(1000, 256)
        self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(256, 10)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Class scores of each sequence."""
        hidden: torch.Tensor = self.head(self.encoder(self.embedding(tokens)).mean(dim=1))
        return hidden
