"""The project whose model the mutation suite changes: it reads all that a model can read while it is built."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors.numpy import save

MODEL = '''\
"""A shop's model: attention over items, with a tied head."""

import os
import wave
from pathlib import Path

import single
import torch
from torch import nn
from torch.nn import functional as F

from . import constants
from .parts.head import Head

try:
    import shop_speedups
except ImportError:
    shop_speedups = None

try:
    from .parts import extra
except ImportError:
    extra = None

HERE = Path(__file__).parent


def numbers(path):
    try:
        return [float(word) for word in path.read_text().split()]
    except FileNotFoundError:
        return []


class Net(nn.Module):
    def __init__(self, width=8, heads=2, eps=1e-5, tied=True, shared=True, transposed=False):
        super().__init__()
        self.heads = heads
        self.embedding = nn.Embedding(12, width)
        self.attention = nn.Linear(width, 3 * width)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.head = Head(width, 12)
        if tied:
            self.head.layer.weight = self.embedding.weight
        if transposed:
            strided = self.attention.weight.detach().t().contiguous().t()
            self.attention.weight = nn.Parameter(strided)
        self.register_buffer("offset", torch.randn(width), persistent=False)
        self.register_buffer("limits", torch.tensor([0.25, 0.75]), persistent=False)
        half = torch.full((width,), 0.5)
        self.register_buffer("factor", half, persistent=False)
        self.register_buffer("summand", half[:] if shared else half.clone(), persistent=False)
        table = numbers(HERE / "table.txt") + numbers(HERE / "override.txt")
        table += numbers(HERE.parent / "beside.txt") + numbers(Path("running.txt"))
        table += numbers(Path.home() / ".shop.txt")
        self.scale = sum(weight * 2.0**-index for index, weight in enumerate(table))
        self.gain = float(os.environ.get("SHOP_GAIN", "1"))
        self.steps = len(os.listdir(HERE.parent / "steps"))
        if shop_speedups is not None:
            self.gain *= shop_speedups.FASTER
        if extra is not None:
            self.gain *= getattr(extra, "MORE", 3.0)

    def forward(self, ids, x):
        hidden = self.embedding(ids) * constants.SCALE + x.to(torch.float32)
        query, key, value = self.attention(hidden).chunk(3, -1)
        split = (ids.shape[0], ids.shape[1], self.heads, -1)
        query, key, value = (item.view(split).transpose(1, 2) for item in (query, key, value))
        mixed = F.scaled_dot_product_attention(query, key, value)
        hidden = self.norm(mixed.transpose(1, 2).flatten(2) + hidden)
        hidden = hidden * self.factor + self.summand
        for _ in range(self.steps):
            hidden = F.relu(hidden * self.scale + self.offset)
        pooled = hidden.mean(1) * (self.gain * single.DEPTH * wave.WAVE_FORMAT_PCM)
        return {"scores": self.head(hidden), "pooled": pooled.clamp(min=self.limits[0]), "version": 7}


def build(**kwargs):
    return Net(**kwargs)


def build_deep(**kwargs):
    net = Net(**kwargs)
    net.steps += 1
    return net
'''
HEAD = '''\
"""The head."""

from torch import nn

from ..constants import TEMPERATURE


class Head(nn.Module):
    def __init__(self, width, size):
        super().__init__()
        self.layer = nn.Linear(width, size)

    def forward(self, hidden):
        logits = self.layer(hidden)
        return logits / TEMPERATURE
'''
CONSTANTS = '''\
"""What the shop agreed on."""

SCALE = 1.5
TEMPERATURE = 2.0
UNUSED = 10
'''
EXPERIMENT = """\
# @package _global_
defaults:
  - override /model: custom
  - override /weights: frozen
model:
  name: shop
  target: shop.model:build
  kwargs:
    width: 8
    heads: 2
  seed: 3
  environment: [SHOP_GAIN]
  inputs:
    - name: ids
      shape: [batch, 6]
      dtype: int64
      low: 0
      high: 12
    - name: x
      shape: [batch, 6, 8]
  dims:
    batch:
      min: 1
      max: 64
numerics:
  sdpa: [flash, mem_efficient, math]
mode:
  inductor:
    epilogue_fusion: true
    max_autotune: false
graphs:
  batch_sizes: [1, 2]
"""
FILES = {
    "shop/__init__.py": '"""The shop."""\n',
    "shop/model.py": MODEL,
    "shop/constants.py": CONSTANTS,
    "shop/unused.py": "WIDTH = 4\n",
    "shop/parts/__init__.py": "",
    "shop/parts/head.py": HEAD,
    "shop/table.txt": "0.5 0.25 -1\n",
    "single.py": "DEPTH = 2\n",
    "beside.txt": "0.125\n",
    "running.txt": "0.0625\n",
    "README.md": "A shop.\n",
    "steps/first.txt": "1\n",
    "steps/second.txt": "2\n",
    "conf/experiment/soak.yaml": EXPERIMENT,
}
CHECKPOINT = "weights.safetensors"
WIDTH = 8
# the head's weight is the embedding's: of the two, the one that is loaded last counts
TENSORS = {
    "attention.weight": (3 * WIDTH, WIDTH),
    "attention.bias": (3 * WIDTH,),
    "embedding.weight": (12, WIDTH),
    "head.layer.weight": (12, WIDTH),
    "head.layer.bias": (12,),
    "norm.weight": (WIDTH,),
    "norm.bias": (WIDTH,),
}


def checkpoint() -> bytes:
    """The model's state dict as safetensors, equal in every run."""
    import numpy as np

    dice = np.random.default_rng(7)
    tensors = {name: dice.normal(size=shape).astype("float32") for name, shape in TENSORS.items()}
    tensors["embedding.weight"] = tensors["head.layer.weight"].copy()
    return save(tensors)


def contents() -> dict[str, bytes]:
    """Every file of the project by its relative path."""
    return {name: text.encode() for name, text in FILES.items()} | {CHECKPOINT: checkpoint()}


def restore(root: Path, wanted: dict[str, bytes]) -> None:
    """Make the folder hold exactly these files; one that is right already keeps its time stamps."""
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder) / name
            expected = wanted.get(path.relative_to(root).as_posix())
            read_only = not path.lstat().st_mode & 0o200
            if path.is_symlink() or read_only or path.read_bytes() != expected:
                path.unlink()
    for name, data in wanted.items():
        path = root / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    for folder, _, _ in os.walk(root, topdown=False):
        if not any(Path(folder).iterdir()):
            Path(folder).rmdir()
