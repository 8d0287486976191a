"""A result's weights in a transformers model: it computes what the result computes, and exports as ever."""

from __future__ import annotations

import numpy as np
import pytest
from exports import embedded_result, our_logits, tokens_of
from third_party import torch_logits

from omniquant.embedded import embedded_model_path
from omniquant.errors import ConfigError, UnsupportedError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.slow


def module():
    return transformers.AutoModelForCausalLM.from_pretrained(embedded_model_path(), dtype=torch.float32)


def test_weights_are_written_in_place():
    from omniquant.torch import write_weights

    result, model = embedded_result("W3A16", "affinequant"), module()
    tokens, places = tokens_of(result), {n: p.data_ptr() for n, p in model.named_parameters()}
    before = torch_logits(model, tokens)
    write_weights(result, model)
    assert places == {name: values.data_ptr() for name, values in model.named_parameters()}
    after = torch_logits(model, tokens)
    assert np.abs(after - our_logits(result, tokens)).max() < 1e-4
    assert np.abs(after - before).max() > 0.1


def test_half_precision_keeps_its_type():
    from omniquant.torch import write_weights

    result, model = embedded_result("W4A16g32"), module().to(torch.bfloat16)
    write_weights(result, model)
    weight = model.model.layers[0].mlp.up_proj.weight
    assert weight.dtype == torch.bfloat16
    expected = torch.from_numpy(result.fold().block(0)["up.weight"].copy()).to(torch.bfloat16)
    assert torch.equal(weight, expected)


def test_what_linears_cannot_hold_is_refused():
    from omniquant.torch import write_weights

    model = module()
    with pytest.raises(UnsupportedError, match="quantized activations"):
        write_weights(embedded_result("W4A4"), model)
    write_weights(embedded_result("W4A4"), model, weights_only=True)
    online = embedded_result("W4A16g32", "affinequant", norm_map="online")
    with pytest.raises(UnsupportedError, match="cannot hold an online map"):
        write_weights(online, model)
    with pytest.raises(UnsupportedError, match="are not rotated"):
        write_weights(embedded_result("W4A16g32", rotation="folded"), model)


def test_another_model_is_refused_and_left_alone():
    from omniquant.torch import write_weights

    config = transformers.LlamaConfig(
        hidden_size=128, intermediate_size=96, num_hidden_layers=5, num_attention_heads=8, vocab_size=64
    )
    model = transformers.LlamaForCausalLM(config)
    before = {name: values.clone() for name, values in model.state_dict().items()}
    with pytest.raises(ConfigError, match=r"is \[.*\] in the module, \[.*\] in the result"):
        write_weights(embedded_result("W4A16g32"), model)
    assert all(torch.equal(before[name], values) for name, values in model.state_dict().items())
    with pytest.raises(ConfigError, match="the module has no parameter model"):
        write_weights(embedded_result("W4A16g32"), torch.nn.Linear(2, 2))
