"""Models of one's own: several inputs, keyword inputs, nested outputs, checkpoints, saved programs."""

from __future__ import annotations

import pytest
import torch

from app.errors import InputError

# Every output structure in one model: a compile costs seconds.
EVERYTHING = """
    import collections
    import torch
    from torch import nn

    Pair = collections.namedtuple("Pair", ["first", "second"])

    class Everything(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.layer = nn.Linear(width, width)
            self.register_buffer("offset", torch.arange(float(width)))

        def forward(self, x, ids, *, scale, mask):
            hidden = self.layer(x) * scale + self.offset
            return {
                "tuple": (hidden, hidden.argmax(-1)),
                "none": None,
                "int": 7,
                "nested": [{"mask": hidden.masked_fill(mask, -1.0), "rest": (None, 3)}],
                "ids": ids + 1,
                "same": x,
                "ordered": collections.OrderedDict(b=hidden.sum(), a=hidden.mean(0)),
                "scalar": hidden.new_tensor(3.0),
                "bool": hidden > 0,
                "pair": Pair(hidden * 2, Pair(3.5, "text")),
            }

    def build(width=8):
        return Everything(width)
"""
INPUTS = (
    "model.inputs=[{name: x, shape: [batch, 8]}, {name: ids, shape: [batch], dtype: int64, low: 0, high: 9},"
    "{name: scale, shape: [batch, 1], keyword: true, low: 1, high: 2},"
    "{name: mask, shape: [batch, 8], dtype: bool, keyword: true}]"
)


def test_inputs_outputs_and_checkpoint_of_a_custom_model_survive_compilation(
    acquire_here, module_file, fresh_store, tmp_path, assert_same
):
    from safetensors.torch import save_file

    module_file("everything", EVERYTHING)
    weights = {"layer.weight": torch.eye(8) * 3, "layer.bias": torch.ones(8), "offset": torch.zeros(8)}
    save_file(weights, tmp_path / "weights.safetensors")
    args = ["model=custom", "model.target=everything:build", "+model.kwargs.width=8", INPUTS]
    args += [f"model.checkpoint={tmp_path / 'weights.safetensors'}", f"cache.dir={fresh_store}"]
    job = acquire_here(args)
    assert job.found.outcome == "miss"
    for batch in (1, 3, 8):
        (x, ids), kwargs = job.context.workload.call(batch, seed=5)
        ours, eager = job.model(x, ids, **kwargs), job.eager(x, ids, **kwargs)
        assert_same(ours, eager)
        assert (ours["none"], ours["int"]) == (None, 7)
        assert type(ours["ordered"]) is type(eager["ordered"])
        assert type(ours["pair"]) is type(eager["pair"])
        assert ours["pair"].second == (3.5, "text")
        assert_same(job.model(mask=kwargs["mask"], ids=ids, x=x, scale=kwargs["scale"]), eager)
        torch.testing.assert_close(ours["tuple"][0], (3 * x + 1) * kwargs["scale"])  # the checkpoint's weights
    with pytest.raises(InputError, match="missing input 'mask'"):
        job.model(x, ids, scale=kwargs["scale"])
    assert acquire_here(args).found.outcome == "direct-hit"


def test_saved_program_is_compiled_with_its_own_dimensions(acquire_here, fresh_store, tmp_path, assert_same):
    class Pair(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(6, 2)

        def forward(self, left, right):
            return self.layer(left + right), left.sum()

    example = (torch.randn(3, 6), torch.randn(3, 6))
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(Pair().eval(), example, dynamic_shapes=({0: batch}, {0: batch}))
    path = tmp_path / "pair.pt2"
    torch.export.save(program, path)
    args = ["model=exported", f"model.program={path}", f"cache.dir={fresh_store}"]
    job = acquire_here(args)
    assert job.found.outcome == "miss"
    for size in (1, 5, 64):
        given = (torch.randn(size, 6), torch.randn(size, 6))
        with torch.no_grad():
            assert_same(job.model(*given), program.module()(*given))
    with pytest.raises(InputError, match="batch=65"):
        job.model(torch.randn(65, 6), torch.randn(65, 6))
    assert acquire_here(args).found.outcome == "direct-hit"
