"""precision=auto keeps the fastest that passes, by the data or by float64 at one tolerance for all; nothing compiled here."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from app import pipeline
from app.choose import resolve
from app.config import FLOORS
from app.errors import ConfigError
from app.evaluate import prepare
from app.keys import request_key

SPEC = "model.inputs=[{name: x, shape: [batch, 16]}]"


@pytest.fixture
def context(context_of, module_file, tmp_path):
    """A run's context on a model whose bf16 copy is told apart by its dtype, and takes as long as it is told."""
    module_file(
        "paced",
        """
        import time, torch
        SLEEP = {torch.float32: 0.04, torch.bfloat16: 0.0, torch.float16: 0.06}
        class Paced(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.linear = torch.nn.Linear(16, 4)
            def forward(self, x):
                time.sleep(SLEEP.get(x.dtype, 0.0))
                return self.linear(x)
        """,
    )
    values = np.random.default_rng(0).normal(size=(64, 16)).astype(np.float32)
    np.savez(tmp_path / "rows.npz", x=values, y=np.zeros(64, int))

    def made(*args, data=False):
        rows = ["data=npz", f"data.path={tmp_path}/rows.npz"] if data else []
        base = [
            "precision=auto",
            "mode=eager",
            "model=custom",
            "model.target=paced:Paced",
            SPEC,
            "evaluate.batch_size=16",
        ]
        return context_of([*base, *rows, *args])

    return made


def kept(context, job=None):
    resolve(context, job)
    choice = context.record.precision_choice
    assert choice.kept == context.record.precision == context.settings.precision.name
    return choice, {each.precision: each for each in choice.candidates}


def test_at_the_tolerance_of_fp32_the_faster_bf16_does_not_pass(context):
    choice, tried = kept(context())
    assert (choice.kept, choice.judge) == ("fp32", "float64")
    assert (tried["fp32"].passed, tried["bf16"].passed) == (True, False)
    assert "relative L2 error" in tried["bf16"].reason
    assert "allowed 1.00e-05" in tried["bf16"].reason
    assert tried["fp32"].rel_l2 < 1e-5 < tried["bf16"].rel_l2 < 1e-1


def test_at_a_wider_tolerance_the_faster_one_is_kept(context):
    asked = context("precision.floor=0.1")
    choice, tried = kept(asked)
    assert choice.kept == "bf16", choice
    assert tried["bf16"].p50_ms < tried["fp32"].p50_ms
    assert choice.batch == 8
    assert asked.settings.precision.floor == FLOORS["bf16"]  # what its artifact is verified by


def test_with_data_the_evaluation_judges(context):
    asked = context("evaluate.tolerance=0.1", data=True)
    choice, tried = kept(asked, prepare(asked))
    assert (choice.kept, choice.judge, choice.batch) == ("bf16", "evaluation", 16)
    assert (tried["bf16"].disagreement, tried["bf16"].rel_l2) == (0.0, None)
    tight = context("evaluate.tolerance=1e-5", data=True)
    choice, tried = kept(tight, prepare(tight))
    assert (choice.kept, tried["bf16"].disagreement) == ("fp32", 1.0)
    assert "100.0000% of the rows disagree, evaluate.max_disagreement allows 0.0000%" in tried["bf16"].reason


def test_a_limit_that_is_given_is_the_one_that_counts(context):
    asked = context("evaluate.tolerance=1e-5", "evaluate.max_disagreement=1", data=True)
    assert kept(asked, prepare(asked))[0].kept == "bf16"


def test_a_slower_one_is_not_kept(context, monkeypatch):
    asked = context("precision.floor=0.1")
    _ = asked.workload
    import paced

    paced.SLEEP.update({torch.float32: 0.0, torch.bfloat16: 0.04})
    assert kept(asked)[0].kept == "fp32"


def test_the_key_holds_what_was_resolved(context):
    asked = context("precision.floor=0.1")
    with pytest.raises(ConfigError, match="precision=auto is resolved by"):
        request_key(asked.settings, "cpu")
    pipeline.run(asked)
    assert request_key(asked.settings, "cpu").factors["precision"] == {"name": "bf16"}
    assert asked.record.latency_ms.keys() == {"eager", "eager_bf16"}
