"""An export is a complete folder or none, and holds nothing but what its readers know."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.numpy
from exports import embedded_result
from small_run import small_model, small_tokens

import omniquant
from omniquant.cli import main
from omniquant.errors import CheckpointError
from omniquant.export import folder as folders
from omniquant.models.load import load_model


@pytest.fixture(scope="module")
def result():
    return embedded_result("W4A16g32")


def test_a_plain_folder_is_a_model_of_its_own(result, tmp_path):
    path = result.export(tmp_path / "out", "huggingface")
    assert {entry.name for entry in path.iterdir()} == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    again, folded = load_model(path), result.fold()
    for index in range(folded.num_layers):
        for name, values in folded.block(index).items():
            np.testing.assert_array_equal(again.block(index)[name], values, err_msg=name)
    np.testing.assert_array_equal(again.lm_head(), folded.lm_head())
    windows = omniquant.evaluation_windows(None, again, 64, 512)
    assert omniquant.perplexity(again, windows) == omniquant.perplexity(result, windows)
    assert again.tokenizer.encode("def main").ids == folded.tokenizer.encode("def main").ids


def test_the_tokenizer_knows_begin_and_end(result, tmp_path):
    path = result.export(tmp_path / "out", "huggingface")
    config = json.loads((path / "tokenizer_config.json").read_text())
    tokenizer = result.fold().tokenizer
    assert (config["bos_token"], config["eos_token"]) == (tokenizer.id_to_token(0), tokenizer.id_to_token(1))
    generation = json.loads((path / "generation_config.json").read_text())
    assert (generation["bos_token_id"], generation["eos_token_id"]) == (0, 1)


def test_no_tensor_of_ours_leaks(tmp_path):
    learned = embedded_result("W4A16g32", "affinequant")
    assert learned.state(0).learnables
    for name in ("huggingface", "compressed-tensors"):
        path = learned.export(tmp_path / name, name)
        tensors = safetensors.numpy.load_file(path / "model.safetensors")
        kinds = {key.rpartition(".")[2] for key in tensors}
        packed = {"weight_packed", "weight_scale", "weight_zero_point", "weight_shape"}
        assert kinds == ({"weight"} if name == "huggingface" else {"weight"} | packed)
        assert all(key.startswith("model.") for key in tensors)


def test_packed_codes_come_back(result, tmp_path):
    path = result.export(tmp_path / "out", "compressed-tensors")
    tensors = safetensors.numpy.load_file(path / "model.safetensors")
    state = result.state(2).folded
    at = "model.layers.2.mlp.down_proj"
    bits = np.unpackbits(tensors[f"{at}.weight_packed"].view(np.uint8), axis=1, bitorder="little")
    weights = 1 << np.arange(4)
    np.testing.assert_array_equal(bits.reshape(128, 384, 4) @ weights, state["down.codes"])
    zeros = np.ascontiguousarray(tensors[f"{at}.weight_zero_point"].T).view(np.uint8)
    bits = np.unpackbits(zeros, axis=1, bitorder="little")
    np.testing.assert_array_equal((bits.reshape(12, 128, 4) @ weights).T, state["down.zero_point"])
    np.testing.assert_array_equal(tensors[f"{at}.weight_scale"], state["down.scale"])
    assert tensors[f"{at}.weight_shape"].tolist() == [128, 384]


def test_the_card_tells_recipe_cost_and_perplexity(tmp_path):
    result = embedded_result("W4A4", "affinequant", seed=3)
    path = result.export(
        tmp_path / "out", "huggingface", weights_only=True, perplexity={"some text": 12.34567}
    )
    card = (path / "README.md").read_text()
    for text in (
        "omniquant-tiny, W4A16 by affinequant",
        "1 epoch on 4 windows of 64 tokens, seed 3",
        "calibrated as W4A4, whose activations were left out",
        "every learned map is folded",
        "APPROXIMATE",
        "| some text | 12.3457 |",
        "AutoModelForCausalLM",
    ):
        assert text in card


def test_nothing_is_left_of_a_failed_export(result, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folders, "atomic_save_safetensors", full)
    with pytest.raises(CheckpointError, match=r"out: cannot write: .*No space left"):
        result.export(tmp_path / "out", "huggingface")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_left_alone(result, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="out: exists already"):
        result.export(tmp_path / "out", "huggingface")
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["mine.txt"]
    with pytest.raises(CheckpointError, match="cannot write"):
        result.export(tmp_path / "missing" / "out", "huggingface")


def test_large_models_come_in_shards(result, tmp_path, monkeypatch):
    monkeypatch.setattr(folders.Shards.__init__, "__defaults__", (1 << 20,))
    path = result.export(tmp_path / "out", "huggingface")
    shards = sorted(path.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    folded = result.fold()
    np.testing.assert_array_equal(load_model(path).block(4)["down.weight"], folded.block(4)["down.weight"])


def test_a_model_without_tokenizer_comes_without(tmp_path):
    model = small_model(tmp_path / "model", tokenizer=False)
    result = omniquant.calibrate(model, small_tokens(), "W4A16", method="rtn", progress=False)
    path = result.export(tmp_path / "out", "huggingface")
    assert not (path / "tokenizer.json").exists()
    assert (path / "config.json").exists()


def test_biases_find_their_slots(tmp_path):
    model = small_model(tmp_path / "model", attention_bias=True, mlp_bias=True)
    options = {"method": "omniquant", "epochs": 1, "progress": False}
    result = omniquant.calibrate(model, small_tokens(), "W4A8KV16", **options)
    path = result.export(tmp_path / "out", "huggingface", weights_only=True)
    folded = result.fold().block(1)
    assert any(name.endswith(".bias") for name in folded)
    for name, values in load_model(path).block(1).items():
        np.testing.assert_array_equal(values, folded[name], err_msg=name)


def test_the_command_line_exports(tmp_path, capsys):
    result = embedded_result("W4A16g32")
    result.save(tmp_path / "result")
    out = tmp_path / "out"
    arguments = ["export", str(tmp_path / "result"), "--format", "huggingface", "--output", str(out)]
    assert main([*arguments, "--perplexity", "a = b=3.5", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["format"] == "huggingface"
    assert {entry["file"] for entry in data["files"]} == {entry.name for entry in out.iterdir()}
    assert "| a = b | 3.5000 |" in (out / "README.md").read_text()
    assert main(arguments) == 2
    assert "exists already" in capsys.readouterr().err
    assert main([*arguments, "--perplexity", "nonsense"]) == 2
    assert "TEXT=VALUE" in capsys.readouterr().err
    assert main(["export", str(tmp_path), "--format", "gguf", "--output", str(out)]) == 2
    assert "no result of omniquant quantize" in capsys.readouterr().err
