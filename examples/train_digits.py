"""Train the digits model anew: python examples/train_digits.py [FILE]. It takes less than a minute.

The weights that the package ships, app/workloads/digits.safetensors, were made by this script. Every fourth image is
held out: it is no part of the training, and all that `task=evaluate model=digits data=digits` looks at.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from app.data.digits import held_out, load
from app.workloads.digits import build

EPOCHS, BATCH_SIZE, LEARNING_RATE = 20, 64, 2e-3


def train() -> tuple[nn.Module, float]:
    """The trained model, and its accuracy on the rows that are held out."""
    torch.manual_seed(0)
    images, digits = map(torch.from_numpy, load())
    is_test = torch.from_numpy(held_out(len(images)))
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    for _ in range(EPOCHS):
        for rows in (~is_test).nonzero().flatten()[torch.randperm(int((~is_test).sum()))].split(BATCH_SIZE):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[rows]), digits[rows]).backward()
            optimizer.step()
    model.eval()
    with torch.inference_mode():
        right = model(images[is_test]).argmax(dim=1) == digits[is_test]
    return model, float(right.float().mean())


def main() -> None:
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "digits.safetensors")
    model, accuracy = train()
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
    print(f"{path}: accuracy {accuracy:.4f} on {int(held_out(1797).sum())} held-out rows")


if __name__ == "__main__":
    main()
