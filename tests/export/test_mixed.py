"""Mixed precision in the formats that hold it: their engines compute our logits."""

from __future__ import annotations

import json

import numpy as np
import pytest
from exports import embedded_result, nll, our_logits, tokens_of
from third_party import (
    LlamaCpp,
    OnnxSession,
    OpenvinoSession,
    difference,
    feed,
    torch_logits,
    transformers_model,
)

import omniquant
from omniquant import _core
from omniquant.errors import UnsupportedError
from omniquant.models.load import load_model

MIXED = {
    "overrides": [
        "layers.1.*=W8sA16g32",
        "*.down_proj=W2A16g64",
        "model.layers.3.mlp.up_proj=W8A16",
        "*.0.*.o_proj=float",
    ]
}


@pytest.mark.parametrize(
    ("format", "variant", "own"),
    [
        ("onnx", "matmul-nbits", {"overrides": [*MIXED["overrides"][:2], "layers.0.o=float"]}),
        ("onnx", "dequantize-linear", {"overrides": [*MIXED["overrides"], "layers.4.q=W3A16"]}),
        ("openvino", None, {"overrides": [*MIXED["overrides"], "layers.4.q=W5A16"]}),
    ],
)
def test_graphs_hold_a_number_of_bits_a_node(format, variant, own, tmp_path):
    pytest.importorskip("onnx" if format == "onnx" else "openvino")
    result = embedded_result("W4A16g32", **own)
    path = result.export(tmp_path / "out", format, variant=variant)
    session = (OnnxSession if format == "onnx" else OpenvinoSession)(path)
    tokens = tokens_of(result)
    found = session.run(feed(result.architecture, tokens))["logits"]
    assert difference(found, our_logits(result, tokens)) < 1e-5
    if variant == "matmul-nbits":
        onnx = pytest.importorskip("onnx")
        nodes = [node for node in onnx.load(path / "model.onnx").graph.node if node.op_type == "MatMulNBits"]
        bits = [a.i for node in nodes for a in node.attribute if a.name == "bits"]
        assert [bits.count(b) for b in (2, 4, 8)] == [5, 5 * 6 - 7, 6]


GGUF = {"overrides": ["layers.1.*=W8sA16", "*.down=W4sA16g32", "layers.2.gate=float"]}


def test_gguf_has_a_type_a_tensor(tmp_path):
    gguf = pytest.importorskip("gguf")
    result = embedded_result("W4A16g32", "omniquant", target="gguf", **GGUF)
    path = result.export(tmp_path / "out", "gguf") / "model.gguf"
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    assert [types[f"blk.{i}.attn_q.weight"] for i in range(5)] == ["Q4_1", "Q8_0", "Q4_1", "Q4_1", "Q4_1"]
    assert {types[f"blk.{i}.ffn_down.weight"] for i in range(5)} == {"Q4_0"}
    assert types["blk.2.ffn_gate.weight"] == "F32"
    again, folded = load_model(path), result.fold()
    for index in range(folded.num_layers):
        for name, values in folded.block(index).items():
            np.testing.assert_array_equal(again.block(index)[name], values, err_msg=name)
    assert "GGUF Q4_1, " in (path.parent / "README.md").read_text()


@pytest.mark.slow
def test_llama_cpp_runs_it(tmp_path):
    result = embedded_result("W4A16g32", "omniquant", target="gguf", **GGUF)
    server = LlamaCpp(result.export(tmp_path / "out", "gguf") / "model.gguf")
    windows = omniquant.evaluation_windows(None, result.fold(), 64, 128)
    theirs = np.mean([server.nats(window) for window in windows])
    assert abs(np.expm1(theirs - nll(our_logits(result, windows), windows))) < 5e-3


PACKED = {
    "overrides": [
        "layers.1.*=W8sA16g32",
        "*.down_proj=W2sA16g64",
        "model.layers.3.mlp.up_proj=W8sA16",
        "*.0.*.o_proj=float",
    ]
}


def test_compressed_tensors_have_a_group_a_scheme(tmp_path):
    result = embedded_result("W4sA16g32", **PACKED)
    config = json.loads((result.export(tmp_path / "out", "compressed-tensors") / "config.json").read_text())
    quantization = config["quantization_config"]
    assert quantization["ignore"] == ["lm_head", "model.layers.0.self_attn.o_proj"]
    groups = quantization["config_groups"].values()
    found = {target: group["weights"]["num_bits"] for group in groups for target in group["targets"]}
    assert len(found) == 5 * 7 - 1
    assert found["model.layers.1.self_attn.q_proj"] == found["model.layers.3.mlp.up_proj"] == 8
    assert found["model.layers.1.mlp.down_proj"] == 2
    assert found["model.layers.2.mlp.gate_proj"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rtn", "omniquant"])
def test_transformers_load_every_group(method, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    pytest.importorskip("compressed_tensors")
    result = embedded_result("W4sA16g32", method, **PACKED)
    tokens = tokens_of(result)
    plain = torch_logits(transformers_model(result.export(tmp_path / "plain", "huggingface")), tokens)
    path = result.export(tmp_path / "packed", "compressed-tensors")
    assert np.array_equal(torch_logits(transformers_model(path), tokens), plain)
    assert np.abs(plain - our_logits(result, tokens)).max() < 1e-4


@pytest.mark.slow
def test_transformers_round_activations_beside_mixed_weights(tmp_path):
    """Each linear alone: behind a rounding, what differs by one bit may come out a step apart."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    pytest.importorskip("compressed_tensors")
    wishes = ["layers.1.*=W4sA4sf", "*.down=W4A8sf", "layers.1.down=W8sA4sf"]
    result = embedded_result("W8A8sfKV16", overrides=wishes)
    model = transformers_model(result.export(tmp_path / "out", "compressed-tensors"))
    seen = {}

    def keep(module, inputs, output):
        seen[module] = inputs[0].numpy(), output.numpy()

    places = [(index, name) for index in (0, 1) for name in ("gate", "down")]
    parts = {place: getattr(model.model.layers[place[0]].mlp, f"{place[1]}_proj") for place in places}
    for part in parts.values():
        part.register_forward_hook(keep)
    torch_logits(model, tokens_of(result))
    for (index, name), part in parts.items():
        x, y = seen[part]
        bits = result.scheme.activation(index)["bits"]
        rounded = _core.fake_quantize(x, bits=bits, symmetric=True, full_range=True).astype(np.float64)
        expected = rounded @ result.fold().block(index)[f"{name}.weight"].T.astype(np.float64)
        assert np.abs(y - expected).max() < 2e-6 * np.abs(expected).max()


def test_a_torch_module_takes_packed_linears_of_several_bits():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from omniquant.torch import swap_linears

    result = embedded_result("W4A16g32", overrides=MIXED["overrides"][:3])
    tokens = tokens_of(result)
    module = transformers_model(omniquant.load_model("omniquant-tiny").files()[0].parent)
    swap_linears(result, module)
    assert np.abs(torch_logits(module, tokens) - our_logits(result, tokens)).max() < 1e-4
    with pytest.raises(UnsupportedError, match=r"weights in float \(W4A16g32 mixed\) have no packed linears"):
        swap_linears(embedded_result("W4A16g32", **MIXED), module)
