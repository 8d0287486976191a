"""From PyTorch to PyTorch: tensors looked at in place, calibrated, and linears swapped for integer ones."""

from __future__ import annotations

import numpy as np
import pytest
from exports import embedded_result, our_logits, tokens_of
from third_party import torch_logits

import omniquant
from omniquant import _core
from omniquant.config import QuantConfig
from omniquant.embedded import embedded_model_path
from omniquant.errors import ConfigError, UnsupportedError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.slow

UP = "model.layers.2.mlp.up_proj"


def module(dtype=torch.float32):
    return transformers.AutoModelForCausalLM.from_pretrained(embedded_model_path(), dtype=dtype)


def test_float32_and_bfloat16_are_looked_at_in_place():
    from omniquant.torch import load_model

    torch_model = module()
    model = load_model(torch_model)
    weight = torch_model.get_submodule(UP).weight
    assert np.shares_memory(model.block(2)["up.weight"], weight.detach().numpy())
    with torch.no_grad():
        weight[3, 5] = 7.0
    assert model.block(2)["up.weight"][3, 5] == 7.0  # it is a view
    narrow = module(torch.bfloat16)
    model = load_model(narrow)
    expected = narrow.get_submodule(UP).weight.detach().float().numpy()
    np.testing.assert_array_equal(model.block(2)["up.weight"], expected)
    assert model.source == "arrays bfloat16"


def test_a_module_is_calibrated_as_its_folder_is():
    from omniquant.torch import load_model

    tokenizer = transformers.AutoTokenizer.from_pretrained(embedded_model_path())
    model, files = load_model(module(), tokenizer=tokenizer), omniquant.load_model("omniquant-tiny")
    windows = omniquant.calibration_windows(None, model, samples=4, seqlen=64)
    np.testing.assert_array_equal(windows, omniquant.calibration_windows(None, files, samples=4, seqlen=64))
    options = {"method": "omniquant", "epochs": 1, "progress": False}
    ours = omniquant.calibrate(model, windows, "W4A8KV16", **options)
    theirs = omniquant.calibrate(files, windows, "W4A8KV16", **options)
    for index in range(5):
        for name, values in theirs.state(index).folded.items():
            np.testing.assert_array_equal(ours.state(index).folded[name], values, err_msg=name)
    assert (model.text.bos, model.text.eos) == (files.text.bos, files.text.eos)
    np.testing.assert_array_equal(model.lm_head(), files.lm_head())


def test_a_state_dict_needs_its_configuration():
    from omniquant.torch import load_model

    torch_model = module()
    tensors = torch_model.state_dict()
    with pytest.raises(ConfigError, match="a state dict says nothing of its model"):
        load_model(tensors)
    with pytest.raises(ConfigError, match="config is a int, no configuration of transformers"):
        load_model(tensors, 3)
    model = load_model(tensors, torch_model.config.to_dict(), name="mine")
    assert (model.name, model.num_layers) == ("mine", 5)
    with pytest.raises(ConfigError, match="lies on the meta device"):
        load_model(module().to("meta"))
    with pytest.raises(ConfigError, match=f"{UP}.weight is a list, no tensor"):
        load_model({f"{UP}.weight": [1.0]}, torch_model.config)


@pytest.mark.parametrize(
    "scheme", ["W4A16g32", "W3A16", "W4A8KV16", "W4sA8sfKV16", "W4A6KV16g32", "W8sA4sKV16"]
)
def test_swapped_linears_compute_with_integers(scheme):
    """Each alone, on what it is given: a difference of one bit may be a step behind a rounding."""
    from omniquant.torch import PackedLinear, swap_linears

    result, model = embedded_result(scheme, "omniquant"), module()
    swap_linears(result, model)
    bits, seen = QuantConfig.parse(scheme).a_bits, {}
    for index in range(5):
        for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj"):
            layer = model.get_submodule(f"model.layers.{index}.{name}")
            assert isinstance(layer, PackedLinear)
            layer.register_forward_hook(lambda m, x, y, at=(index, name): seen.update({at: (x[0], y)}))
    torch_logits(model, tokens_of(result))
    assert len(seen) == 15
    for (index, name), (x, y) in seen.items():
        ours = {"self_attn.q_proj": "q", "self_attn.o_proj": "o", "mlp.down_proj": "down"}[name]
        given = x.numpy()
        if bits < 16:
            how = {"symmetric": result.scheme.a_symmetric, "full_range": result.scheme.a_full_range}
            given = _core.fake_quantize(given, bits=bits, **how)
        weight = result.fold().block(index)[f"{ours}.weight"].astype(np.float64)
        expected = given.astype(np.float64) @ weight.T
        assert np.abs(y.numpy() - expected).max() < 5e-6 * np.abs(expected).max(), (index, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_swapped_module_computes_our_logits(dtype):
    from omniquant.torch import swap_linears

    result, model = embedded_result("W4A16g32", "affinequant"), module(dtype)
    swap_linears(result.fold(), model, threads=1)
    tokens = tokens_of(result)
    found, expected = torch_logits(model, tokens), our_logits(result, tokens)
    assert np.abs(found - expected).max() < (1e-4 if dtype == torch.float32 else 0.5)  # of 22
    assert model.model.layers[0].mlp.up_proj(torch.zeros(1, 3, 128, dtype=dtype)).dtype == dtype
    assert "in_features=128, out_features=384, kernel=" in repr(model)
    x = torch.ones(1, 128, requires_grad=True)
    with pytest.raises(UnsupportedError, match="packed linears compute forward only"):
        model.model.layers[0].mlp.up_proj(x).sum().backward()


def test_what_linears_cannot_do_is_refused():
    from omniquant.torch import PackedLinear, swap_linears

    model = module()
    with pytest.raises(
        UnsupportedError, match=r"linears cannot round Q, K and V \(W4A4\); nearest: linears_only"
    ):
        swap_linears(embedded_result("W4A4"), model)
    online = embedded_result("W4A16g32", "affinequant", norm_map="online")
    with pytest.raises(UnsupportedError, match="packed linears cannot hold an online map; nearest"):
        swap_linears(online, model)
    with pytest.raises(UnsupportedError, match=r"weights in float \(W16A16\) have no packed linears"):
        swap_linears(embedded_result("W16A16"), model)
    rotated = embedded_result("W4A16", "omniquant", rotation="folded")
    with pytest.raises(UnsupportedError, match="the module's embedding and head are not rotated; nearest"):
        swap_linears(rotated, model)
    result = embedded_result("W4A4")
    with pytest.raises(ConfigError, match=r"the module has no model\.layers\.0\.self_attn\.q_proj"):
        swap_linears(result, torch.nn.Linear(2, 2), linears_only=True)
    model.get_submodule("model.layers.4.mlp").up_proj = torch.nn.Linear(2, 2)
    with pytest.raises(ConfigError, match=r"up_proj is \[2, 2\] in the module, \[384, 128\] in the result"):
        swap_linears(result, model, linears_only=True)
    model.get_submodule("model.layers.4.mlp").up_proj = torch.nn.Identity()
    with pytest.raises(ConfigError, match="up_proj is a Identity in the module, no Linear"):
        swap_linears(result, model, linears_only=True)
    assert not any(isinstance(part, PackedLinear) for part in model.modules())  # nothing half done
    model = module()
    swap_linears(result, model, linears_only=True)
    assert sum(isinstance(part, PackedLinear) for part in model.modules()) == 35


def test_a_biased_norm_without_a_slot_is_refused(monkeypatch):
    from omniquant.blockfile import BlockState
    from omniquant.quantized import QuantizedModel
    from omniquant.torch import swap_linears

    result = embedded_result("W4A16")
    folded = result.state(0).folded | {"norm1.bias": np.zeros(128, np.float32)}
    monkeypatch.setattr(QuantizedModel, "state", lambda self, index: BlockState(folded, {}))
    with pytest.raises(UnsupportedError, match=r"block 0: norm1.bias: a shift left a bias.*shift=False"):
        swap_linears(result, module())


class Logits(torch.nn.Module):
    """A module of one input and one output."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens):
        return self.model(tokens, use_cache=False).logits


def folded():
    from omniquant.torch import write_weights

    result, model = embedded_result("W4A16g32", "affinequant"), module()
    write_weights(result, model)
    return Logits(model.eval()), torch.from_numpy(tokens_of(result).astype(np.int64))


def test_torch_export_takes_the_folded_module():
    model, tokens = folded()
    with torch.no_grad():
        exported = torch.export.export(model, (tokens,)).module()(tokens)
        assert torch.equal(exported, model(tokens))


def test_the_onnx_exporter_takes_the_folded_module(tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model, tokens = folded()
    with torch.no_grad():
        torch.onnx.export(model, (tokens,), tmp_path / "model.onnx", dynamo=True, verbose=False)
        expected = model(tokens).numpy()
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: tokens.numpy()})
    assert np.abs(found - expected).max() < 1e-4
