"""Planted outliers that a family's own maps undo: shifts of OPT, maps of the one key head of Falcon."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import omniquant
from families.oracle import SIZES, VOCABULARY, random_model, torch, transformers
from omniquant.forward import float_logits

NARROW = {key: value for key, value in SIZES.items() if key != "intermediate_size"}
D = 8  # width of a head


def tokens(seed: int) -> npt.NDArray[np.int32]:
    return np.random.default_rng(seed).integers(0, VOCABULARY, (8, 24)).astype(np.int32)


def opt(planted: bool) -> Any:
    """Return an OPT; planted: two channels behind every norm have large means, which biases take back."""
    config = transformers.OPTConfig(**NARROW, ffn_dim=48, word_embed_proj_dim=32, pad_token_id=VOCABULARY - 1)
    module, mean = random_model(config), torch.zeros(32)
    mean[[3, 17]] = torch.tensor([12.0, -9.0])
    for layer in module.model.decoder.layers if planted else ():
        attention = layer.self_attn
        for norm, readers in (
            (layer.self_attn_layer_norm, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (layer.final_layer_norm, (layer.fc1,)),
        ):
            norm.bias.data += mean
            for reader in readers:
                reader.bias.data -= reader.weight.data @ mean
    return module


def falcon(planted: bool) -> Any:
    """Return a Falcon of 4 heads and one of keys and values; planted: large channels of keys and values.

    The pair (2, 6) of rotary positions of k, which all queries take back, and channels 1 and 6 of v, `o`.
    """
    config = transformers.FalconConfig(
        **NARROW, ffn_hidden_size=48, multi_query=True, bos_token_id=1, eos_token_id=1
    )
    module = random_model(config)
    for layer in module.transformer.h if planted else ():
        fused, output = (
            layer.self_attention.query_key_value.weight.data,
            layer.self_attention.dense.weight.data,
        )
        for channel in (1, 6):
            fused[5 * D + channel] *= 20
            output[:, channel::D] /= 20
        for channel in (2, 6):
            fused[4 * D + channel] *= 10
            fused[channel : 4 * D : D] /= 10
    return module


def opened(module: Any, folder: Path) -> omniquant.Model:
    module.save_pretrained(folder)
    return omniquant.load_model(folder)


def error(model: omniquant.Model, scheme: str, method: str, **options: Any) -> float:
    """Return the relative error of the logits of held-out tokens."""
    result = omniquant.calibrate(
        model, tokens(1), scheme, method=method, epochs=10, progress=False, threads=1, **options
    )
    expected = float_logits(model, tokens(2))
    return float(np.linalg.norm(float_logits(result.fold(), tokens(2)) - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("make", [opt, falcon])
def test_planting_changes_nothing(make: Any, tmp_path: Path) -> None:
    plain, planted = (float_logits(opened(make(on), tmp_path / str(on)), tokens(2)) for on in (False, True))
    np.testing.assert_allclose(planted, plain, atol=2e-5 * np.abs(plain).max())


@pytest.mark.parametrize("scheme", ["W4A4", "W4A8"])
def test_shifts_help_opt(scheme: str, tmp_path: Path) -> None:
    model = opened(opt(True), tmp_path)
    with_shifts = error(model, scheme, "omniquant")
    assert with_shifts < 0.7 * error(model, scheme, "omniquant", shift=False)


@pytest.mark.parametrize("scheme", ["W4A16", "W4A4"])
def test_maps_of_one_head_of_keys_and_values_help_falcon(scheme: str, tmp_path: Path) -> None:
    model = opened(falcon(True), tmp_path)
    assert model.spec.num_kv_heads == 1
    both = error(model, scheme, "affinequant")
    assert both < 0.6 * error(model, scheme, "affinequant", vo_map="none", qk_map="none")
    if scheme == "W4A4":
        assert both < 0.98 * error(model, scheme, "affinequant", qk_map="none")
