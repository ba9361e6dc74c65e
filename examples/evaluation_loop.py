"""A model compiled into an evaluation loop that exists already: shadowed first, then trusted.

    python examples/evaluation_loop.py [CACHE_DIR]

One call in ten is answered by eager too, and compared. `enabled=False` would switch back without another change.
"""

from __future__ import annotations

import sys

import torch
from torch import nn

import app
from app import monitor_evaluation


class Classifier(nn.Module):
    """Stands for the model that is evaluated."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(32, 64), nn.GELU()), nn.Linear(64, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores of shape [batch, 5]."""
        return self.head(self.body(x))


@monitor_evaluation
def evaluate(model: app.Model | nn.Module, data: torch.Tensor, labels: torch.Tensor, batch_size: int = 16) -> float:
    """Accuracy, by a loop that knows nothing of compiling; the last batch is smaller."""
    right = 0
    with torch.inference_mode():
        for rows, wanted in zip(data.split(batch_size), labels.split(batch_size), strict=True):
            right += int((model(rows).argmax(-1) == wanted).sum())
    return right / len(data)


def main() -> None:
    """Evaluate eager and compiled on the same rows."""
    torch.manual_seed(0)
    model = Classifier().eval()
    data = torch.randn(1000, 32)
    labels = model(data).argmax(-1)
    labels[::7] = 0  # a model that is always right would prove little
    with app.session(cache={"dir": sys.argv[1] if len(sys.argv) > 1 else "model_cache/compiled"}):
        compiled = app.compile_model(model, data[:4], mode="default", shadow=0.1)
    eager, ours = evaluate(model, data, labels), evaluate(compiled, data, labels)
    shadow = compiled.stats()["shadow"]
    print(f"accuracy: eager {eager:.4f}, compiled {ours:.4f} ({compiled.info['cache']['outcome']})")
    print(
        f"shadowed {shadow['calls']} calls: {shadow['disagreements']} disagree, at most {shadow['worst']:.1e} apart"
    )


if __name__ == "__main__":
    main()
