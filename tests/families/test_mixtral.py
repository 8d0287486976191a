"""Mixtral: experts in place of the MLP, a router in float."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import omniquant
from families.oracle import SIZES, VOCABULARY, check_family, random_model, transformers
from omniquant.errors import ConfigError, UnsupportedError

TINY = {**SIZES, "num_key_value_heads": 2, "head_dim": 16, "num_local_experts": 5, "num_experts_per_tok": 2}


@pytest.mark.parametrize("window", [5, None])
def test_mixtral(tmp_path: Path, window: int | None) -> None:
    config = transformers.MixtralConfig(**TINY, sliding_window=window)
    spec = check_family(config, tmp_path / "m").spec
    assert (spec.num_experts, spec.experts_per_token, spec.window) == (5, 2, window or 0)


def test_experts_of_a_block_share_a_scheme(tmp_path: Path) -> None:
    random_model(transformers.MixtralConfig(**TINY)).save_pretrained(tmp_path / "m")
    model = omniquant.load_model(tmp_path / "m")
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (3, 16)).astype(np.int32)
    options = {"method": "rtn", "progress": False, "average_bits": 5}
    wishes = {"*.0.*.experts.*.w2": "W3A16g16", "layers.0.gate": "float"}
    result = omniquant.calibrate(model, tokens, "W4A16", overrides=wishes, **options)
    blocks = [result.scheme.block(index) for index in range(model.num_layers)]
    assert (blocks[0]["down"].bits, blocks[0]["down"].group_size) == (3, 16)
    assert not blocks[0]["gate"].quantized
    assert not blocks[1]["router"].quantized
    folded = result.fold()
    integer = folded.perplexity(tokens[0], 16, runtime="integer")
    assert integer == pytest.approx(folded.perplexity(tokens[0], 16, runtime="fake"), rel=5e-3)
    with pytest.raises(ConfigError, match=r"matches some experts of layers\.0\.down"):
        omniquant.calibrate(model, tokens, "W4A16", overrides={"*.0.*.experts.1.w2": "W8A16"}, **options)
    with pytest.raises(ConfigError, match="matches no linear"):
        omniquant.calibrate(model, tokens, "W4A16", overrides={"*.router": "W8A16"}, **options)


def test_what_experts_cannot(tmp_path: Path) -> None:
    random_model(transformers.MixtralConfig(**TINY)).save_pretrained(tmp_path / "m")
    model = omniquant.load_model(tmp_path / "m")
    tokens = np.arange(16).reshape(1, 16) % VOCABULARY
    with pytest.raises(UnsupportedError, match=r"rotation: inputs of down .* rotation folded"):
        omniquant.calibrate(model, tokens, "W4A16", method="rtn", rotation="online", progress=False)
    with pytest.raises(UnsupportedError, match=r"experts: Gram matrices .* nearest: start paper"):
        omniquant.calibrate(model, tokens, "W4A16", method="gptq", progress=False)
    for scheme, kind in (("W4A16", "asymmetric weights"), ("W8sA8sKV16", "quantized activations")):
        result = omniquant.calibrate(model, tokens, scheme, method="rtn", progress=False)
        with pytest.raises(UnsupportedError, match=f"experts with {kind}.*nearest: scheme W.sA16, or hugg"):
            result.export(tmp_path / "ct", "compressed-tensors")
    result = omniquant.calibrate(model, tokens, "W4sA16g32", method="rtn", progress=False)
    for name in ("gptq", "awq", "onnx", "openvino"):
        with pytest.raises(UnsupportedError, match=r"experts.*nearest: .*huggingface"):
            result.export(tmp_path / name, name)
