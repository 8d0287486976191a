"""A result's weights and packed linears in modules with fused tensors, Conv1D, gains stored less 1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import omniquant
from families.oracle import SIZES, VOCABULARY, logits_of, random_model, transformers
from omniquant.errors import UnsupportedError
from omniquant.forward import float_logits
from omniquant.torch import PackedLinear, load_model, swap_linears, write_weights

ENDS = {"bos_token_id": 1, "eos_token_id": 1}
NARROW = {key: value for key, value in SIZES.items() if key != "intermediate_size"} | ENDS
GROUPS = {"new_decoder_architecture": True, "num_kv_heads": 2}
GEMMA = {**SIZES, "num_key_value_heads": 2, "head_dim": 16, "query_pre_attn_scalar": 16}

# class of the configuration, its fields, linears of a block in the module
CASES: dict[str, tuple[str, dict[str, Any], int]] = {
    "phi3": ("Phi3Config", {**SIZES, **ENDS, "num_key_value_heads": 2, "pad_token_id": 0}, 4),
    "gpt2": ("GPT2Config", {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, **ENDS}, 4),
    "gpt_neox": ("GPTNeoXConfig", {**SIZES, **ENDS}, 4),
    "falcon": ("FalconConfig", {**NARROW, "ffn_hidden_size": 48}, 4),
    "falcon, grouped": ("FalconConfig", {**NARROW, **GROUPS, "ffn_hidden_size": 48}, 4),
    "bloom": ("BloomConfig", {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4}, 4),
    "gemma2": ("Gemma2Config", GEMMA, 7),
    "opt": ("OPTConfig", {**NARROW, "ffn_dim": 48, "word_embed_proj_dim": 32, "pad_token_id": 1}, 6),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_modules_compute_what_results_do(name: str) -> None:
    kind, fields, linears = CASES[name]
    module = random_model(getattr(transformers, kind)(**fields))
    tokens = np.random.default_rng(2).integers(0, VOCABULARY, (2, 16)).astype(np.int32)
    # Maps and shifts, so that norms and biases change too.
    result = omniquant.calibrate(
        load_model(module), tokens, "W4A16g16", method="omniquant", epochs=1, progress=False
    )
    expected = float_logits(result.fold(), tokens)
    before = logits_of(module, tokens)
    assert np.abs(before - expected).max() > 1e-2 * np.abs(expected).max()
    swapped = random_model(getattr(transformers, kind)(**fields))
    swap_linears(result, swapped, threads=1)
    assert sum(isinstance(each, PackedLinear) for each in swapped.modules()) == 2 * linears
    write_weights(result, module)
    for each in (module, swapped):
        found = logits_of(each, tokens)
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_experts_are_refused(tmp_path: Path) -> None:
    module = random_model(transformers.MixtralConfig(**SIZES, num_local_experts=2, num_key_value_heads=2))
    module.save_pretrained(tmp_path)
    model, tokens = omniquant.load_model(tmp_path), np.arange(16).reshape(1, 16)
    result = omniquant.calibrate(model, tokens, "W4A16", method="rtn", progress=False)
    with pytest.raises(UnsupportedError, match="packed linears cannot hold experts"):
        swap_linears(result, module)


def test_linears_that_share_a_tensor_must_share_a_scheme() -> None:
    kind, fields, _ = CASES["phi3"]
    module = random_model(getattr(transformers, kind)(**fields))
    overrides = {"layers.1.q": "W8sA16g16"}
    result = omniquant.calibrate(
        load_model(module), np.arange(16).reshape(1, 16), "W4sA16g16", method="rtn", progress=False,
        overrides=overrides,
    )  # fmt: skip
    with pytest.raises(UnsupportedError, match=r"block 1: .*qkv_proj.*, which have W8sA16g16, W4sA16g16"):
        swap_linears(result, module)
    assert not any(isinstance(each, PackedLinear) for each in module.modules())
