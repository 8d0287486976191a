"""A model of arrays in memory: no copy, the same numbers as from the files, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from small_run import VOCAB, small_folder, small_tokens
from tokenizers import Tokenizer

import omniquant
from omniquant.checkpoint.text_settings import TextSettings
from omniquant.embedded import embedded_model_path
from omniquant.errors import CheckpointError, ConfigError, UnsupportedError
from omniquant.models.load import load_model

README = Path(__file__).resolve().parents[2] / "README.md"
EMBEDDING = "model.embed_tokens.weight"
NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def folder(tmp_path):
    return small_folder(tmp_path / "model")


def pieces(folder):
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    return tensors, json.loads((folder / "config.json").read_text())


def test_nothing_is_copied_and_nothing_can_be_written(folder):
    tensors, config = pieces(folder)
    model = omniquant.model_from_arrays(tensors, config)
    found = model.block(1)["up.weight"]
    assert np.shares_memory(found, tensors[NAME])
    assert not found.flags.writeable
    assert tensors[NAME].flags.writeable
    assert (model.source, model.files(), model.name) == ("arrays float32", [], "arrays")


def test_the_result_is_that_of_the_files(folder, tmp_path):
    tensors, config = pieces(folder)
    model = omniquant.model_from_arrays(tensors, config, folder / "tokenizer.json")
    options = {"method": "omniquant", "epochs": 1, "progress": False}
    ours = omniquant.calibrate(model, small_tokens(), "W4A8KV16", output=tmp_path / "out", **options)
    files = omniquant.calibrate(load_model(folder), small_tokens(), "W4A8KV16", **options)
    for index in range(2):
        for name, values in files.state(index).folded.items():
            np.testing.assert_array_equal(ours.state(index).folded[name], values, err_msg=name)
    again = omniquant.QuantizedModel.load(tmp_path / "out")
    assert again.tokenizer.to_str() == load_model(folder).tokenizer.to_str()


def test_the_fingerprint_tells_other_numbers(folder):
    tensors, config = pieces(folder)
    one = omniquant.model_from_arrays(tensors, config).fingerprint()
    assert omniquant.model_from_arrays(dict(tensors), config).fingerprint() == one
    tensors[NAME][3, 2] += 1e-3
    assert omniquant.model_from_arrays(tensors, config).fingerprint() != one


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "bits"])
def test_narrow_numbers_widen_exactly(kind, folder):
    tensors, config = pieces(folder)
    dtype = np.float16 if kind == "float16" else ml_dtypes.bfloat16
    narrow = {name: values.astype(dtype) for name, values in tensors.items()}
    expected = {name: values.astype(np.float32) for name, values in narrow.items()}
    if kind == "bits":
        narrow = {name: values.view(np.uint16) for name, values in narrow.items()}
    model = omniquant.model_from_arrays(narrow, config)
    np.testing.assert_array_equal(model.block(1)["up.weight"], expected[NAME])
    np.testing.assert_array_equal(
        model.embed(np.array([5, 3])), expected["model.embed_tokens.weight"][[5, 3]]
    )
    assert model.source == f"arrays {'float16' if kind == 'float16' else 'bfloat16'}"


def test_a_strided_view_is_read_right(folder):
    tensors, config = pieces(folder)
    expected = tensors[NAME].copy()
    tensors[NAME] = np.asfortranarray(tensors[NAME])
    found = omniquant.model_from_arrays(tensors, config).block(1)["up.weight"]
    np.testing.assert_array_equal(found, expected)
    assert found.flags.c_contiguous


class Dlpack:
    """An array of another library."""

    def __init__(self, values):
        self._values = values

    def __dlpack__(self, **options):
        return self._values.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._values.__dlpack_device__()


def test_other_libraries_arrays_are_looked_at(folder):
    tensors, config = pieces(folder)
    model = omniquant.model_from_arrays({name: Dlpack(v) for name, v in tensors.items()}, config)
    assert np.shares_memory(model.block(1)["up.weight"], tensors[NAME])


def test_text_needs_a_tokenizer(folder, tmp_path):
    tensors, config = pieces(folder)
    model = omniquant.model_from_arrays(tensors, config, name="mine")
    with pytest.raises(UnsupportedError, match="mine: came without a tokenizer"):
        _ = model.tokenizer
    result = omniquant.calibrate(model, small_tokens(), "W4A16", method="rtn", progress=False)
    result.save(tmp_path / "out")
    assert not (tmp_path / "out" / "tokenizer.json").exists()
    assert (result.export(tmp_path / "hf", "huggingface") / "config.json").exists()


def test_a_tokenizer_is_copied_and_checked(folder):
    tensors, config = pieces(folder)
    mine = Tokenizer.from_file(str(folder / "tokenizer.json"))
    mine.enable_truncation(3)
    settings = TextSettings(bos=1, chat_template="{{ messages }}")
    model = omniquant.model_from_arrays(tensors, config, mine, text=settings)
    assert model.tokenizer.truncation is None
    assert mine.truncation["max_length"] == 3
    assert model.text == settings
    mine.add_tokens(["one more"])
    with pytest.raises(CheckpointError, match=f"{VOCAB + 1} tokens but the model's vocab_size is {VOCAB}"):
        _ = omniquant.model_from_arrays(tensors, config, mine).tokenizer


def test_what_is_refused(folder):
    tensors, config = pieces(folder)
    cases = [
        ({NAME: tensors[NAME].T}, {}, CheckpointError, "is [16, 20], the configuration says [20, 16]"),
        (
            {NAME: tensors[NAME].astype(float)},
            {},
            CheckpointError,
            "is float64, float32, float16 and",
        ),
        (
            {NAME: [[1.0]]},
            {},
            ConfigError,
            f"arrays: '{NAME}': NumPy cannot look at it without copying",
        ),
        ({}, {"hidden_size": "16"}, CheckpointError, "arrays: config: hidden_size is '16'"),
        ({}, {"model_type": "mine"}, UnsupportedError, "'mine'"),
        ({}, {"extra": object()}, ConfigError, "arrays: config: not what config.json can hold"),
    ]
    for changed, told, error, message in cases:
        with pytest.raises(error, match=re.escape(message)):
            omniquant.model_from_arrays(tensors | changed, config | told).block(1)
    del tensors[NAME]
    with pytest.raises(CheckpointError, match=re.escape(f"arrays: tensor '{NAME}' is missing")):
        omniquant.model_from_arrays(tensors, config)


def test_arrays_come_out_under_the_same_names(folder):
    tensors, config = pieces(folder)
    model = omniquant.model_from_arrays(tensors, config)
    result = omniquant.calibrate(model, small_tokens(), "W4A8", method="rtn", progress=False)
    with pytest.raises(UnsupportedError, match="cannot hold quantized activations"):
        result.arrays()
    out = result.arrays(weights_only=True)
    assert set(out) == set(tensors)
    assert all(out[name].dtype == np.float32 for name in out)
    np.testing.assert_array_equal(out[NAME], result.fold().block(1)["up.weight"])
    again = omniquant.model_from_arrays(out, config)
    np.testing.assert_array_equal(again.lm_head(), model.lm_head())


def test_the_lines_of_the_readme_run(tmp_path, monkeypatch):
    code = next(c for c in re.findall(r"```python\n(.*?)```", README.read_text(), re.S) if "from_arrays" in c)
    (tmp_path / "model").symlink_to(embedded_model_path())
    np.save(tmp_path / "windows.npy", np.random.default_rng(0).integers(0, 2048, (2, 32)))
    monkeypatch.chdir(tmp_path)
    names = {"json": json, "np": np, "omniquant": omniquant, "safetensors": safetensors}
    exec(code, names)
    assert set(names["quantized"]) == set(names["tensors"])
    assert any(not np.array_equal(names["quantized"][k], v) for k, v in names["tensors"].items())
