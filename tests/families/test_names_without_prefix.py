"""Checkpoints on the hub that were saved without their head: names lack the first part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import omniquant
from families.oracle import SIZES, VOCABULARY, logits_of, random_model, transformers
from omniquant.errors import CheckpointError
from omniquant.forward import float_logits

ENDS = {"bos_token_id": 1, "eos_token_id": 1}
NARROW = {key: value for key, value in SIZES.items() if key != "intermediate_size"}
HEADS = ("lm_head.weight", "embed_out.weight")

# class of the configuration, its fields, the first part of the names, a tensor some files hold beside weights
CASES: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "gpt2": (
        "GPT2Config",
        {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, **ENDS},
        "transformer.", "h.0.attn.bias",
    ),
    "bloom": (
        "BloomConfig",
        {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4, **ENDS},
        "transformer.", "h.0.self_attention.masked_bias",
    ),
    "falcon": (
        "FalconConfig", {**NARROW, "ffn_hidden_size": 48, **ENDS},
        "transformer.", "h.0.self_attention.rotary.inv_freq",
    ),
    "opt": (
        "OPTConfig", {**NARROW, "ffn_dim": 48, "word_embed_proj_dim": 32, "pad_token_id": 1},
        "model.", "decoder.version",
    ),
    "gpt_neox": ("GPTNeoXConfig", {**SIZES, **ENDS}, "gpt_neox.", "layers.0.attention.bias"),
    "llama, untied": ("LlamaConfig", {**SIZES, "tie_word_embeddings": False}, "model.", "rotary.inv_freq"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_names_without_their_first_part(name: str, tmp_path: Path) -> None:
    kind, fields, prefix, mask = CASES[name]
    module = random_model(getattr(transformers, kind)(**fields))
    module.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    stored = safetensors.numpy.load_file(file)
    shorter = {key if key in HEADS else key.removeprefix(prefix): value for key, value in stored.items()}
    assert len(shorter.keys() - stored.keys()) == len(stored) - len(stored.keys() & set(HEADS))
    safetensors.numpy.save_file(shorter | {mask: np.ones((2, 2), np.bool_)}, file)
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, (2, 12)).astype(np.int32)
    expected = logits_of(module, tokens)
    model = omniquant.load_model(tmp_path)
    np.testing.assert_allclose(float_logits(model, tokens), expected, atol=1e-4 * np.abs(expected).max())
    config = json.loads((tmp_path / "config.json").read_text())
    held = omniquant.model_from_arrays(shorter, config)
    np.testing.assert_array_equal(float_logits(held, tokens), float_logits(model, tokens))


def test_a_tensor_that_is_missing_is_named_in_full(tmp_path: Path) -> None:
    kind, fields, prefix, _ = CASES["gpt2"]
    random_model(getattr(transformers, kind)(**fields)).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    stored = {key.removeprefix(prefix): value for key, value in safetensors.numpy.load_file(file).items()}
    del stored["h.1.ln_1.weight"]
    safetensors.numpy.save_file(stored, file)
    with pytest.raises(CheckpointError, match=r"h\.1\.ln_1\.weight"):
        omniquant.load_model(tmp_path)
    # More layers than the configuration says are found under the shorter names, too.
    stored |= {"h.1.ln_1.weight": stored["h.0.ln_1.weight"], "h.2.ln_1.weight": stored["h.0.ln_1.weight"]}
    safetensors.numpy.save_file(stored, file)
    with pytest.raises(CheckpointError, match="the configuration says 2 layers"):
        omniquant.load_model(tmp_path)
