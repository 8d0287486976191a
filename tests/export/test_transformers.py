"""transformers reads our Hugging Face and compressed-tensors folders: every key, and to the bit."""

from __future__ import annotations

import numpy as np
import pytest
from exports import embedded_result, model_named, our_logits, tokens_of
from third_party import torch_logits, transformers_model

import omniquant
from omniquant import _core

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["embedded", "stories260K"])
def test_a_plain_folder(name, tmp_path, request):
    shared = request.getfixturevalue("shared") if name == "stories260K" else None
    model = model_named(name, shared)
    result = omniquant.calibrate(model, tokens_of(model), "W4A16", method="rtn", progress=False)
    tokens = tokens_of(result)
    found = torch_logits(transformers_model(result.export(tmp_path / "out", "huggingface")), tokens)
    assert np.abs(found - our_logits(result, tokens)).max() < 1e-4


@pytest.mark.parametrize(
    "scheme", ["W2A16g64", "W3A16", "W3sA16g32", "W4A16g32", "W4sA16", "W6A16", "W8A16g128", "W8sA16"]
)
def test_packed_weights_are_the_dequantized_ones(scheme, tmp_path):
    pytest.importorskip("compressed_tensors")
    result = embedded_result(scheme, "omniquant")
    tokens = tokens_of(result)
    plain = torch_logits(transformers_model(result.export(tmp_path / "plain", "huggingface")), tokens)
    path = result.export(tmp_path / "packed", "compressed-tensors")
    assert np.array_equal(torch_logits(transformers_model(path, dequantize=True), tokens), plain)
    if result.scheme.w_symmetric:
        assert np.array_equal(torch_logits(transformers_model(path), tokens), plain)


@pytest.mark.parametrize("scheme", ["W4A16", "W4A16g4"])
def test_packed_stories(scheme, shared, tmp_path):
    pytest.importorskip("compressed_tensors")
    model = model_named("stories260K", shared)
    result = omniquant.calibrate(model, tokens_of(model), scheme, method="rtn", progress=False)
    tokens = tokens_of(result)
    plain = torch_logits(transformers_model(result.export(tmp_path / "plain", "huggingface")), tokens)
    path = result.export(tmp_path / "packed", "compressed-tensors")
    assert np.array_equal(torch_logits(transformers_model(path, dequantize=True), tokens), plain)


@pytest.mark.parametrize("scheme", ["W8sA8sfKV16", "W8A8sfKV16", "W4sA4sfKV16", "W4A8sfKV16g32"])
def test_linears_with_integer_activations(scheme, tmp_path):
    """Each linear alone: behind a rounding, what differs by one bit may come out a step apart."""
    pytest.importorskip("compressed_tensors")
    result = embedded_result(scheme)
    model = transformers_model(result.export(tmp_path / "out", "compressed-tensors"))
    seen = {}

    def keep(module, inputs, output):
        seen["x"], seen["y"] = inputs[0].numpy(), output.numpy()

    part = model.model.layers[3].mlp.down_proj
    part.register_forward_hook(keep)
    torch_logits(model, tokens_of(result))
    bits = result.scheme.a_bits
    rounded = _core.fake_quantize(seen["x"], bits=bits, symmetric=True, full_range=True)
    expected = rounded.astype(np.float64) @ result.fold().block(3)["down.weight"].T.astype(np.float64)
    assert np.abs(seen["y"] - expected).max() < 2e-6 * np.abs(expected).max()


def test_the_tokenizer_is_the_same(tmp_path):
    result = embedded_result("W4A16")
    path = result.export(tmp_path / "out", "huggingface")
    theirs = transformers.AutoTokenizer.from_pretrained(path)
    text = "Return the number of items.\n    for x in range(10): print(x)"
    assert theirs.encode(text, add_special_tokens=False) == result.fold().tokenizer.encode(text).ids
    assert theirs.eos_token_id == 1
