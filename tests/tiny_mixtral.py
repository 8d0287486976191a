"""A tiny Mixtral of random numbers, in memory; with outlier channels, or experts hardly any token goes to."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

import omniquant

VOCAB, HIDDEN, FFN, EXPERTS, LAYERS = 64, 32, 48, 4, 2
CONFIG: dict[str, Any] = {
    "model_type": "mixtral",
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "num_local_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}

Tensors = dict[str, npt.NDArray[np.float32]]


def random_tensors(seed: int = 0) -> Tensors:
    """Return the tensors of a model by their Hugging Face names."""
    rng = np.random.default_rng(seed)

    def matrix(rows: int, columns: int, size: float = 1.3) -> npt.NDArray[np.float32]:
        return (size * rng.standard_normal((rows, columns)) / np.sqrt(columns)).astype(np.float32)

    tensors = {
        "model.embed_tokens.weight": matrix(VOCAB, HIDDEN, 6),
        "lm_head.weight": matrix(VOCAB, HIDDEN, 2),
    }
    tensors["model.norm.weight"] = np.ones(HIDDEN, np.float32)
    for layer in range(LAYERS):
        stem = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{stem}.{norm}.weight"] = np.exp(0.2 * rng.standard_normal(HIDDEN)).astype(np.float32)
        for name, rows in (("q", HIDDEN), ("k", HIDDEN // 2), ("v", HIDDEN // 2), ("o", HIDDEN)):
            tensors[f"{stem}.self_attn.{name}_proj.weight"] = matrix(rows, HIDDEN)
        tensors[f"{stem}.block_sparse_moe.gate.weight"] = matrix(EXPERTS, HIDDEN, 2)
        for expert in range(EXPERTS):
            one = f"{stem}.block_sparse_moe.experts.{expert}"
            for name, shape in (("w1", (FFN, HIDDEN)), ("w2", (HIDDEN, FFN)), ("w3", (FFN, HIDDEN))):
                tensors[f"{one}.{name}.weight"] = matrix(*shape)
    return tensors


def model_of(tensors: Tensors) -> omniquant.Model:
    """Return the model of some tensors."""
    return omniquant.model_from_arrays(tensors, CONFIG, name="tiny-mixtral")


READERS = {"input_layernorm": "self_attn.", "post_attention_layernorm": "block_sparse_moe."}


def plant_outliers(
    tensors: Tensors, channels: tuple[int, ...], factor: float = 32.0, norms: tuple[str, ...] = tuple(READERS)
) -> Tensors:
    """Return a model that computes the same, whose norms give some channels `factor` times as large.

    The factor is a power of two: gains times it, columns of everything that reads them, routers too, over it.
    """
    planted = {name: values.copy() for name, values in tensors.items()}
    for name, values in planted.items():
        for norm in norms:
            if norm in name:
                values[list(channels)] *= np.float32(factor)
            elif READERS[norm] in name and not name.endswith(("o_proj.weight", "w2.weight")):
                values[:, list(channels)] /= np.float32(factor)
    return planted


def tokens_of(seed: int, windows: int, length: int) -> npt.NDArray[np.int32]:
    """Return random windows."""
    return np.random.default_rng(seed).integers(0, VOCAB, (windows, length)).astype(np.int32)
