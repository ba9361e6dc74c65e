"""Data: every source gives the model's inputs, and what can't be one says what, where, and what to do."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from app.config import DataConfig, DimConfig, InputConfig
from app.data import digits, read
from app.errors import ConfigError, DataError

X = InputConfig(name="x", shape=["batch", 3])
TOKENS = InputConfig(name="tokens", shape=["batch", "seq"], dtype="int64", low=0, high=50)
MASK = InputConfig(name="mask", shape=["batch", "seq"], dtype="bool")
DIMS = {"batch": DimConfig(), "seq": DimConfig(min=2, max=8)}
TABLE = "a,b,c,class\n1,2,3,0\n4,5,6,1\n\n7,8,9.5,2\n"


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def read_csv(tmp_path, text, specs=(X,), **config):
    path = write(tmp_path, "rows.csv", text)
    return read(DataConfig(**{"name": "csv", "path": path, "label": "class", **config}), specs, DIMS)


def read_npz(tmp_path, inputs=(X,), config=None, **arrays):
    path = tmp_path / "rows.npz"
    np.savez(path, **arrays)
    return read(DataConfig(name="npz", path=str(path), **(config or {})), inputs, DIMS)


def read_jsonl(tmp_path, rows, inputs=(X,), **config):
    text = rows if isinstance(rows, str) else "\n".join(map(json.dumps, rows))
    return read(DataConfig(name="jsonl", path=write(tmp_path, "rows.jsonl", text), **config), inputs, DIMS)


# What is read


def test_a_tables_columns_but_the_label_are_the_only_input(tmp_path):
    found = read_csv(tmp_path, TABLE)
    assert found.inputs["x"].tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9.5]]
    assert (found.inputs["x"].dtype, found.labels.tolist()) == (np.float32, [0, 1, 2])
    assert found.labels.dtype == np.int64


def test_columns_are_given_to_inputs_by_name_and_others_may_hold_anything(tmp_path):
    text = "id,a,b,c,d,class\nfirst,1,2,3,7,0\nsecond,4,5,6,8,1\n"
    other = InputConfig(name="y", shape=["batch"], dtype="int64", low=0, high=10)
    found = read_csv(tmp_path, text, [X, other], inputs={"x": ["c", "b", "a"], "y": "d"})
    assert (found.inputs["x"].tolist(), found.inputs["y"].tolist()) == ([[3, 2, 1], [6, 5, 4]], [7, 8])


def test_a_tables_columns_are_laid_out_as_the_model_wants_them(tmp_path):
    image = InputConfig(name="image", shape=["batch", 1, 3, 1])
    assert read_csv(tmp_path, TABLE, [image]).inputs["image"].shape == (3, 1, 3, 1)


def test_a_spreadsheets_byte_order_mark_is_no_part_of_a_name(tmp_path):
    assert len(read_csv(tmp_path, "\ufeff" + TABLE, inputs={"x": ["a", "b", "c"]})) == 3


def test_arrays_are_found_by_the_inputs_names(tmp_path):
    tokens = np.arange(12).reshape(3, 4)
    found = read_npz(tmp_path, [TOKENS, MASK], {"label": "y"}, tokens=tokens, mask=tokens > 3, y=[0.5, 1.5, 2.0])
    assert [found.inputs[name].dtype for name in ("tokens", "mask")] == [np.int64, bool]
    assert found.labels.tolist() == [0.5, 1.5, 2.0]


def test_a_json_object_a_line_is_a_row(tmp_path):
    rows = [{"x": [1, 2, 3], "label": 1}, {"x": [4, 5, 6], "label": 0}]
    found = read_jsonl(tmp_path, rows, label="label")
    assert (found.inputs["x"].tolist(), found.labels.tolist()) == ([[1, 2, 3], [4, 5, 6]], [1, 0])


@pytest.mark.parametrize("shape", ["arrays", "rows"])
def test_a_callable_gives_arrays_or_rows(module_file, shape):
    module_file(
        "mydata",
        """
        import torch
        def arrays(count): return {"x": torch.ones(count, 3), "label": [0] * count}
        def rows(count): return ({"x": [1.0, 1.0, 1.0], "label": 0} for _ in range(count))
        """,
    )
    config = DataConfig(name="custom", target=f"mydata:{shape}", kwargs={"count": 5}, label="label")
    found = read(config, [X], DIMS)
    assert (found.inputs["x"].tolist(), found.labels.tolist()) == ([[1, 1, 1]] * 5, [0] * 5)


def test_sentences_are_what_the_callable_makes_of_the_lines(tmp_path, module_file):
    module_file("mytokens", "def tokenize(texts, length): return {'tokens': [[len(t)] * length for t in texts]}")
    path = write(tmp_path, "lines.txt", "one\n\n three \n")
    config = DataConfig(name="sentences", path=path, target="mytokens:tokenize", length=2)
    assert read(config, [TOKENS], DIMS).inputs["tokens"].tolist() == [[3, 3], [5, 5]]


def test_the_digits_are_those_that_were_not_trained_on():
    pytest.importorskip("sklearn")
    images, labels = digits.load()
    chosen = digits.held_out(len(images))
    found = read(DataConfig(name="digits", label="label"), [InputConfig(name="p", shape=["batch", 1, 8, 8])], DIMS)
    assert (len(images), len(found), chosen[:8].tolist()) == (1797, 449, [False, False, False, True] * 2)
    assert (found.labels == labels[chosen]).all()
    assert (found.inputs["p"].min(), found.inputs["p"].max()) == (0, 1)


def test_a_limit_keeps_the_first_rows(tmp_path):
    found = read_csv(tmp_path, TABLE, limit=2)
    assert (len(found), found.labels.tolist()) == (2, [0, 1])


def test_equal_rows_have_equal_digests_and_any_change_another(tmp_path):
    one, again = read_csv(tmp_path, TABLE), read_csv(tmp_path, TABLE.replace("\n\n", "\n"))
    others = [TABLE.replace("9.5", "9.6"), TABLE.replace("6,1", "6,0"), TABLE.replace("7,8,9.5,2\n", "")]
    assert one.digest == again.digest
    assert one.digest not in [read_csv(tmp_path, text).digest for text in others]
    assert one.digest != read_csv(tmp_path, TABLE, label=None, inputs={"x": ["a", "b", "c"]}).digest


# What is refused


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("", DataError, ["rows.csv is empty"]),
        ("a,b,c,class\n", DataError, ["rows.csv", "header and no rows"]),
        ("a,b,c,class\n1,2,3,0\n1,2,0\n", DataError, ["line 3", "3 cells", "4"]),
        ("a,b,c,class\n1,2,3,0\n\n1,x,3,0\n", DataError, ["line 4", "'b'", "'x'", "not a number"]),
        ("a,b,c,class\n1,,3,0\n", DataError, ["line 2", "'b'", "empty"]),
        ("a,b,c,class\n1,nan,3,0\n", DataError, ["line 2", "input 'x'", "NaN"]),
        ("a,b,c,class\n1,2,3,nan\n", DataError, ["line 2", "'class'", "not a number"]),
        (
            "a,b,c,class\n1,2,3,cat\n",
            DataError,
            ["line 2, 'class' is 'cat'", "a label is one, such as the class's place"],
        ),
        ("a,b,c,kind\n1,2,3,0\n", ConfigError, ["no column 'class'", "a, b, c, kind", "data.label="]),
        ("a,b,class\n1,2,0\n", DataError, ["input 'x'", "[2]", "[3]"]),
        ("a,a,c,class\n1,2,3,0\n", DataError, ["more than one column 'a'"]),
        ('a,b,c,class\n1,2,"3,0\n', DataError, ["rows.csv", "line"]),
        (b"a,b,c,class\n1,2,\xff,0\n", DataError, ["UTF-8", "byte"]),
    ],
)
def test_a_bad_table_says_what_is_wrong_and_where(tmp_path, text, error, said):
    with pytest.raises(error) as caught:
        read_csv(tmp_path, text)
    assert [each for each in said if each not in caught.value.message] == []
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("arrays", "error", "said"),
    [
        ({"y": [[1, 2, 3]]}, ConfigError, ["no array 'x'", "it has y", "data.inputs.x=NAME"]),
        ({"x": np.ones((2, 4))}, DataError, ["input 'x'", "[4]", "[3]"]),
        ({"x": np.float64(1)}, DataError, ["'x'", "one value"]),
        ({"x": np.ones((0, 3))}, DataError, ["no rows"]),
        ({"x": np.array([["a", "b", "c"]])}, DataError, ["'x'", "not"]),
        ({"x": [[1, 2, 3], [4, np.nan, 6]]}, DataError, ["row 1", "NaN", "such values: 1"]),
    ],
)
def test_a_bad_array_says_what_is_wrong_and_where(tmp_path, arrays, error, said):
    with pytest.raises(error) as caught:
        read_npz(tmp_path, **arrays)
    assert [each for each in said if each not in caught.value.message] == []


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        ([[1, 50]], ["0 <= value < 50", "row 0"]),
        ([[1, 2.5]], ["whole numbers", "int64"]),
        ([[1] * 9], ["seq", "from 2 to 8"]),
        ([[1, 2, 3]], ["'mask'", "seq is 2 here", "3 in 'tokens'"]),
    ],
)
def test_integers_must_be_what_the_model_was_compiled_for(tmp_path, tokens, said):
    with pytest.raises(DataError) as caught:
        read_npz(tmp_path, [TOKENS, MASK], tokens=tokens, mask=[[1, 0]])
    assert [each for each in said if each not in caught.value.message] == []


def test_inputs_of_different_length_are_refused(tmp_path):
    with pytest.raises(DataError, match="x has 2, label has 3"):
        read_npz(tmp_path, config={"label": "y"}, x=np.ones((2, 3)), y=[0, 1, 2])


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ('{"x": [1, 2, 3]}\n{"x": [1, 2, 3}', ["line 2", "not JSON"]),
        ('{"x": [1, 2, 3]}\n[1, 2, 3]', ["line 2", "no mapping"]),
        ('{"x": [1, 2, 3]}\n\n{"y": 1}', ["line 3", "no 'x'", "the first row has"]),
        ('{"x": [1, 2, 3]}\n{"x": [1, 2]}', ["line 2", "[2]", "[3]", "pad"]),
        ('{"x": [[1, 2], [3]]}', ["line 1", "ragged"]),
        ('{"x": ["a", "b", "c"]}', ["line 1", "not numbers"]),
        ('{"x": [1, NaN, 3]}', ["line 1", "NaN"]),
        (" \n", ["is empty"]),
    ],
)
def test_a_bad_line_says_what_is_wrong_and_where(tmp_path, rows, said):
    with pytest.raises(DataError) as caught:
        read_jsonl(tmp_path, rows)
    assert [each for each in said if each not in caught.value.message] == []


@pytest.mark.parametrize("name", ["csv", "npz", "jsonl"])
def test_a_file_that_is_not_there_is_a_mistake_in_the_config(tmp_path, name):
    with pytest.raises(ConfigError, match=r"data\.path=.*none.* does not exist"):
        read(DataConfig(name=name, path=str(tmp_path / "none")), [X], DIMS)


@pytest.mark.parametrize("name", ["csv", "npz", "jsonl"])
def test_a_folder_is_no_file(tmp_path, name):
    with pytest.raises(ConfigError, match=r"data\.path=.* can't be read"):
        read(DataConfig(name=name, path=str(tmp_path)), [X], DIMS)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"no archive"])
def test_a_damaged_archive_is_refused(tmp_path, content):
    path = write(tmp_path, "rows.npz", content)
    with pytest.raises(DataError, match=r"rows\.npz can't be read as numpy.savez"):
        read(DataConfig(name="npz", path=path), [X], DIMS)


def test_a_single_array_has_no_name(tmp_path):
    np.save(tmp_path / "rows.npy", np.ones((2, 3)))
    with pytest.raises(DataError, match=r"rows\.npy is a single array.*numpy.savez"):
        read(DataConfig(name="npz", path=str(tmp_path / "rows.npy")), [X], DIMS)


def test_an_archive_never_runs_what_was_pickled_into_it(tmp_path):
    with pytest.raises(DataError, match="can't be read"):
        read_npz(tmp_path, x=np.array([print, print], dtype=object))


@pytest.mark.parametrize(
    ("body", "error", "said"),
    [
        ("raise ValueError('no such luck')", DataError, ["mydata:rows", "ValueError: no such luck"]),
        ("import no_such_package", ConfigError, ["no_such_package", "not installed"]),
        ("return 3", DataError, ["gave a int"]),
        ("return []", ConfigError, ["no array 'x'", "it has none"]),
        ("return {'x': [[1, 2], [3]]}", DataError, ["'x'", "no array"]),
        ("yield 1", DataError, ["row 0", "no mapping"]),
    ],
)
def test_a_callable_that_fails_is_named(module_file, body, error, said):
    module_file("mydata", f"def rows():\n    {body}\n")
    with pytest.raises(error) as caught:
        read(DataConfig(name="custom", target="mydata:rows"), [X], DIMS)
    assert [each for each in said if each not in caught.value.message] == []


def test_without_scikit_learn_the_digits_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ConfigError, match=r"scikit-learn.*pip install 'aot-app\[digits\]'"):
        read(DataConfig(name="digits"), [X], DIMS)


def test_data_that_is_not_given_names_the_choices():
    with pytest.raises(ConfigError, match=r"data=digits\|csv\|npz\|jsonl\|custom\|sentences$"):
        read(DataConfig(), [X], DIMS)


def test_an_input_that_the_model_does_not_have_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.inputs\.z is no input of the model: it takes x"):
        read_csv(tmp_path, TABLE, inputs={"z": "a"})


def test_a_model_without_a_batch_can_not_be_evaluated(tmp_path):
    with pytest.raises(ConfigError, match=r"\[batch, \.\.\.\]: x is \[4, 3\]"):
        read_csv(tmp_path, TABLE, [InputConfig(name="x", shape=[4, 3])])
