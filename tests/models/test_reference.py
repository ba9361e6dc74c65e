"""The reference models, fixed: a changed one would make every recorded figure incomparable."""

from __future__ import annotations

import hydra
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from torch import nn

from app import compose
from app.composed import conf_dir
from app.workloads import build, reference


def settings_for(name, *more):
    GlobalHydra.instance().clear()
    compose.register()
    with hydra.initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
        return compose.typed(hydra.compose("config", overrides=[f"model={name}", *more]))


def described(module):
    return [f"{type(layer).__name__}({layer.extra_repr()})" for layer in module.children()]


def test_the_linear_model_is_as_designed():
    assert described(reference.linear()) == [
        "Linear(in_features=768, out_features=512, bias=True)",
        "ReLU()",
        "Dropout(p=0.1, inplace=False)",
        "Linear(in_features=512, out_features=256, bias=True)",
        "ReLU()",
        "Linear(in_features=256, out_features=5, bias=True)",
    ]


def test_the_cnn_is_as_designed():
    assert described(reference.cnn()) == [
        "Conv1d(64, 128, kernel_size=(3,), stride=(1,), padding=(1,))",
        "ReLU()",
        "Conv1d(128, 256, kernel_size=(3,), stride=(1,), padding=(1,))",
        "ReLU()",
        "AdaptiveAvgPool1d(output_size=1)",
        "Flatten(start_dim=1, end_dim=-1)",
        "Linear(in_features=256, out_features=8, bias=True)",
    ]


def test_the_transformer_is_as_designed():
    model = reference.Transformer().eval()
    assert model.embedding.weight.shape == (1000, 256)
    assert len(model.encoder.layers) == 4
    for layer in model.encoder.layers:
        assert (layer.self_attn.embed_dim, layer.self_attn.num_heads) == (256, 8)
        assert layer.linear1.weight.shape == (512, 256)
        assert layer.self_attn.batch_first
    assert model.head.weight.shape == (10, 256)
    tokens = torch.randint(0, 1000, (3, 32))
    with torch.inference_mode():
        expected = model.head(model.encoder(model.embedding(tokens)).mean(1))
        assert torch.equal(model(tokens), expected)


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "output", "parameters"),
    [
        ("linear", (4, 768), torch.float32, (4, 5), 526_341),
        ("cnn", (4, 64, 100), torch.float32, (4, 8), 125_320),
        ("transformer", (4, 32), torch.int64, (4, 10), 2_366_986),
    ],
)
def test_each_is_built_in_eval_mode_with_its_input_and_reference_batch(name, shape, dtype, output, parameters):
    workload = build(settings_for(name), "cpu")
    args, kwargs = workload.call()
    assert (tuple(args[0].shape), args[0].dtype, kwargs) == (shape, dtype, {})
    assert not any(module.training for module in workload.module.modules())
    assert not any(value.requires_grad for value in workload.module.parameters())
    assert sum(value.numel() for value in workload.module.parameters()) == parameters
    with torch.inference_mode():
        assert tuple(workload.module(*args).shape) == output
        assert tuple(workload.module(*workload.call(7)[0]).shape) == (7, *output[1:])


def weights(workload):
    return torch.cat([value.flatten() for value in workload.module.parameters()])


def test_the_seed_alone_decides_the_weights_and_leaves_the_callers_generator_alone():
    torch.manual_seed(99)
    state = torch.get_rng_state()
    first = weights(build(settings_for("linear"), "cpu"))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(weights(build(settings_for("linear"), "cpu")), first)
    assert not torch.equal(weights(build(settings_for("linear", "model.seed=1"), "cpu")), first)
    torch.manual_seed(0)
    assert torch.equal(torch.cat([value.flatten() for value in reference.linear().parameters()]), first)


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_a_precision_casts_in_and_out_and_leaves_the_model_alone(name, dtype):
    from app.workloads import at_precision

    module = nn.Linear(4, 2)
    half = at_precision(module, name)
    x = torch.rand(3, 4)
    assert half(x).dtype == torch.float32
    assert torch.equal(half(x), nn.Linear.forward(half.module, x.to(dtype)).float())
    assert half.module.weight.dtype == dtype
    assert module.weight.dtype == torch.float32
    assert at_precision(module, "fp32") is module


class Upcasting(nn.Module):
    """Says in which dtype it computes, as models of transformers do; an exported program asserts what it was before."""

    def forward(self, x):
        return x.to(torch.float32).softmax(-1).to(x.dtype)


def test_an_exported_program_runs_at_another_precision():
    from app.workloads import at_precision

    module, value = Upcasting(), torch.randn(2, 4)
    program = torch.export.export(module, (value,)).module(check_guards=False)
    assert any("_assert_tensor_metadata" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(at_precision(program, "bf16")(value), module(value), rtol=0, atol=1e-2)
