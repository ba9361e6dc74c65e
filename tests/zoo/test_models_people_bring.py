"""Models that people bring, by `compile_model`: right at several sizes, cold and warm, with the rung that each reaches.

APP_ZOO=full visits them, and writes the table of docs/models.md to outputs/zoo/models.md.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import app

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The tensor attributes"),
    pytest.mark.skipif(os.environ.get("APP_ZOO") != "full", reason="APP_ZOO=full visits them"),
]
TABLE = Path(__file__).parents[2] / "outputs" / "zoo" / "models.md"
HEAD = "| model | rung | warm | left to eager, or fallen back |\n|---|---|---|---|\n"


class UNet(nn.Module):
    """Two levels, images of any height and width."""

    def __init__(self):
        super().__init__()
        self.down, self.deep, self.up = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Conv2d(16, 4, 1),
        )

    def forward(self, x):
        high = self.down(x).relu()
        deep = self.deep(nn.functional.max_pool2d(high, 2)).relu()
        wide = nn.functional.interpolate(deep, size=high.shape[2:], mode="bilinear", align_corners=False)
        return self.up(torch.cat([high, wide], 1))


class Tagger(nn.Module):
    """An LSTM over embedded words."""

    def __init__(self):
        super().__init__()
        self.embedding, self.net = nn.Embedding(50, 8), nn.LSTM(8, 8, batch_first=True, bidirectional=True)
        self.head = nn.Linear(16, 5)

    def forward(self, ids):
        return self.head(self.net(self.embedding(ids))[0])


def words(batch, length):
    return torch.randint(0, 50, (batch, length))


def padded(batch, length):
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[0, length // 2 :] = 0
    return {"input_ids": words(batch, length), "attention_mask": mask}


def bert(t):
    config = t.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    return t.BertModel(config)


def gpt2(t):
    return t.GPT2LMHeadModel(t.GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=2, use_cache=False))


def t5(t):
    return t.T5EncoderModel(t.T5Config(vocab_size=50, d_model=32, d_ff=64, d_kv=16, num_layers=2, num_heads=2))


def vit(t):
    config = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return t.ViTModel(t.ViTConfig(image_size=32, patch_size=8, **config))


def whisper(t):
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    config = {"encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64, "max_source_positions": 50}
    return WhisperEncoder(t.WhisperConfig(d_model=32, num_mel_bins=8, **config))


SEQUENCES = {"input_ids": {0: "batch", 1: "seq"}, "attention_mask": {0: "batch", 1: "seq"}}
# Name: how it is built, inputs of a size, the sizes, what is dynamic.
MODELS = {
    "BERT (transformers), padded": (bert, padded, [(3, 8), (1, 5), (5, 16), (2, 1)], SEQUENCES),
    "GPT-2 logits (transformers)": (gpt2, padded, [(3, 8), (1, 5), (5, 16), (2, 1)], SEQUENCES),
    "T5 encoder (transformers)": (t5, padded, [(3, 8), (1, 5), (5, 16)], SEQUENCES),
    "ViT (transformers)": (vit, lambda n, _: torch.randn(n, 3, 32, 32), [(3, 0), (1, 0), (5, 0)], None),
    "Whisper encoder (transformers)": (whisper, lambda n, _: torch.randn(n, 8, 100), [(3, 0), (1, 0), (5, 0)], None),
    "U-Net, any height and width": (
        lambda _: UNet(),
        lambda n, s: torch.randn(n, 3, s, s + 2),
        [(2, 16), (1, 4), (3, 30), (1, 9)],
        {"x": {0: "batch", 2: "h", 3: "w"}},
    ),
    "LSTM tagger, fixed length": (lambda _: Tagger(), lambda n, _: words(n, 6), [(3, 0), (1, 0), (5, 0)], None),
    "LSTM tagger, any length": (
        lambda _: Tagger(), words, [(3, 6), (1, 4), (5, 9)], {"ids": {0: "batch", 1: "seq"}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_it_is_right_at_every_size_cold_and_warm(name, tmp_path):
    build, inputs, sizes, dynamic = MODELS[name]
    transformers = pytest.importorskip("transformers") if "transformers" in name else None
    torch.manual_seed(0)
    module = build(transformers).eval()
    rows = []
    for _ in range(2):
        with app.session(cache={"dir": str(tmp_path / "store")}):
            model = app.compile_model(module, inputs(*sizes[0]), dynamic=dynamic)
        for size in sizes:
            given = inputs(*size)
            args, kwargs = ((), given) if isinstance(given, dict) else ((given,), {})
            with torch.no_grad():
                ours, expected = model(*args, **kwargs), module(*args, **kwargs)
            assert type(ours) is type(expected)
            for a, b in zip(pytree.tree_leaves(ours), pytree.tree_leaves(expected), strict=True):
                assert torch.allclose(a, b, atol=1e-4, rtol=1e-3)
        rows.append(model.info)
    cold, warm = rows
    assert warm["rung"] == cold["rung"]
    assert warm["cache"]["outcome"] == "direct-hit" or "failed before" in warm["cache"]["miss_reasons"][0]
    told = [*cold["warnings"], *(step["reason"] for step in cold["fallbacks"])]
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    known = TABLE.read_text() if TABLE.exists() else HEAD
    others = [line for line in known.splitlines(keepends=True) if not line.startswith(f"| {name} |")]
    row = f"| {name} | `{cold['rung']}` | {warm['cache']['outcome']} | {'; '.join(told).replace('|', '/')[:300]} |\n"
    TABLE.write_text("".join([*others, row]))
