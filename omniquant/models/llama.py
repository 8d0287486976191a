"""The LLaMA family: RMSNorm, RoPE, grouped-query attention, gated SiLU MLP (Touvron et al. 2023)."""

from __future__ import annotations

import re
from functools import partial

import numpy as np

from omniquant.checkpoint.errors import UnsupportedCheckpointError
from omniquant.checkpoint.fields import Fields
from omniquant.checkpoint.source import F32, Layout, TensorSource
from omniquant.checkpoint.text import shown
from omniquant.errors import CheckpointError, ConfigError
from omniquant.models.adapter import Architecture, TensorRef
from omniquant.models.rope import rope_from_config, rope_from_factors
from omniquant.models.spec import Activation, BlockSpec

# config.json hidden_act -> ours. gelu_new and gelu_pytorch_tanh are two names of the tanh form.
_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}

# Ours -> Hugging Face, GGUF; {i} is the layer.
_BLOCK_KEYS: dict[str, tuple[str, str]] = {
    "norm1": ("model.layers.{i}.input_layernorm", "blk.{i}.attn_norm"),
    "q": ("model.layers.{i}.self_attn.q_proj", "blk.{i}.attn_q"),
    "k": ("model.layers.{i}.self_attn.k_proj", "blk.{i}.attn_k"),
    "v": ("model.layers.{i}.self_attn.v_proj", "blk.{i}.attn_v"),
    "o": ("model.layers.{i}.self_attn.o_proj", "blk.{i}.attn_output"),
    "norm2": ("model.layers.{i}.post_attention_layernorm", "blk.{i}.ffn_norm"),
    "gate": ("model.layers.{i}.mlp.gate_proj", "blk.{i}.ffn_gate"),
    "up": ("model.layers.{i}.mlp.up_proj", "blk.{i}.ffn_up"),
    "down": ("model.layers.{i}.mlp.down_proj", "blk.{i}.ffn_down"),
}
_OUTER_KEYS: dict[str, tuple[str, str]] = {
    "embedding": ("model.embed_tokens", "token_embd"),
    "final_norm": ("model.norm", "output_norm"),
    "lm_head": ("lm_head", "output"),
}
_ROPE_FACTORS = "rope_freqs.weight"
_COLUMN: dict[Layout, int] = {"safetensors": 0, "gguf": 1}
_LAYER_PATTERN: dict[Layout, re.Pattern[str]] = {
    "safetensors": re.compile(r"model\.layers\.(\d{1,9})\."),
    "gguf": re.compile(r"blk\.(\d{1,9})\."),
}
_ATTENTION = ("q", "k", "v", "o")
_MLP = ("gate", "up", "down")


def _rows_from_gguf(heads: int, rows: F32) -> F32:
    # llama.cpp rotates neighbours (2i, 2i + 1), Hugging Face the halves (i, i + d/2): its converter
    # reorders the rows of each head of q and k; this is the inverse. rows: [heads * d] or [heads * d, H]
    pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


class LlamaAdapter:
    """LLaMA 1 to 3, SmolLM, TinyLlama and everything else whose model_type is llama."""

    name = "llama"
    model_types = ("llama",)
    gguf_architectures = ("llama",)

    def architecture(self, config: Fields) -> Architecture:
        """Read a config.json of model_type llama."""
        if config.has("quantization_config"):
            raise UnsupportedCheckpointError(
                f"{config.where}: quantization_config: the model is already quantized"
            )
        max_positions, spec = config.integer("max_position_embeddings", 2048), self._spec(config)
        return Architecture(
            spec=spec,
            num_layers=config.integer("num_hidden_layers"),
            vocab_size=config.integer("vocab_size"),
            max_positions=max_positions,
            tied_embeddings=config.boolean("tie_word_embeddings", False),
            rope=rope_from_config(config, max_positions, spec.head_dim),
            attention_bias=config.boolean("attention_bias", False),
            mlp_bias=config.boolean("mlp_bias", False),
        )

    def _spec(self, config: Fields) -> BlockSpec:
        hidden_size = config.integer("hidden_size")
        num_heads = config.integer("num_attention_heads")
        activation = config.text("hidden_act", "silu")
        if activation not in _ACTIVATIONS:
            known = ", ".join(_ACTIVATIONS)
            raise UnsupportedCheckpointError(
                f"{config.where}: hidden_act is {shown(activation)}, supported are {known}"
            )
        if not config.has("head_dim") and hidden_size % num_heads:
            raise CheckpointError(
                f"{config.where}: hidden_size {hidden_size} is no multiple of num_attention_heads {num_heads}"
            )
        try:
            return BlockSpec(
                hidden_size=hidden_size,
                ffn_size=config.integer("intermediate_size"),
                num_heads=num_heads,
                num_kv_heads=config.integer("num_key_value_heads", num_heads),
                head_dim=config.integer("head_dim", max(1, hidden_size // num_heads)),
                norm_eps=config.positive("rms_norm_eps", 1e-6),
                activation=_ACTIVATIONS[activation],
            )
        except ConfigError as error:
            raise CheckpointError(f"{config.where}: {error}") from error

    def config_from_gguf(self, metadata: Fields, source: TensorSource) -> dict[str, object]:
        """Translate GGUF metadata of the llama architecture into a config.json."""
        for field, kinds in (("rope.scaling.type", ("none", "linear")), ("expert_count", ())):
            value = metadata.values.get(f"llama.{field}")
            if value not in (None, 0, *kinds):
                raise UnsupportedCheckpointError(
                    f"{metadata.where}: llama.{field} {shown(value)} is not supported"
                )
        names = set(source.names())
        heads = metadata.integer("llama.attention.head_count")
        hidden_size = metadata.integer("llama.embedding_length")
        head_dim = _gguf_head_dim(metadata, hidden_size, heads)
        return {
            "model_type": "llama",
            "hidden_size": hidden_size,
            "intermediate_size": metadata.integer("llama.feed_forward_length"),
            "num_hidden_layers": metadata.integer("llama.block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": metadata.integer("llama.attention.head_count_kv", heads),
            "head_dim": head_dim,
            "vocab_size": source.shape("token_embd.weight")[0],
            "max_position_embeddings": metadata.integer("llama.context_length"),
            "rms_norm_eps": metadata.positive("llama.attention.layer_norm_rms_epsilon"),
            "rope_parameters": _gguf_rope(metadata, source, head_dim),
            "hidden_act": "silu",
            "tie_word_embeddings": "output.weight" not in names,
            "attention_bias": "blk.0.attn_q.bias" in names,
            "mlp_bias": "blk.0.ffn_up.bias" in names,
        }

    def block_tensors(self, architecture: Architecture, layer: int, layout: Layout) -> dict[str, TensorRef]:
        """Map our names of one block to the checkpoint's tensors."""
        biased = _ATTENTION * architecture.attention_bias + _MLP * architecture.mlp_bias
        refs = {}
        for part, shape in _block_shapes(architecture.spec).items():
            key = _BLOCK_KEYS[part][_COLUMN[layout]].format(i=layer)
            heads = {"q": architecture.spec.num_heads, "k": architecture.spec.num_kv_heads}.get(part)
            convert = partial(_rows_from_gguf, heads) if heads and layout == "gguf" else None
            refs[f"{part}.weight"] = TensorRef(f"{key}.weight", shape, convert)
            if part in biased:
                refs[f"{part}.bias"] = TensorRef(f"{key}.bias", shape[:1], convert)
        return refs

    def outer_tensors(self, architecture: Architecture, layout: Layout) -> dict[str, TensorRef]:
        """Map the embedding, the final norm and, if untied, the head."""
        hidden, vocab = architecture.spec.hidden_size, architecture.vocab_size
        shapes = {"embedding": (vocab, hidden), "final_norm": (hidden,), "lm_head": (vocab, hidden)}
        if architecture.tied_embeddings:
            del shapes["lm_head"]
        return {
            f"{part}.weight": TensorRef(f"{_OUTER_KEYS[part][_COLUMN[layout]]}.weight", shape)
            for part, shape in shapes.items()
        }

    def layer_of(self, key: str, layout: Layout) -> int | None:
        """Return the block a checkpoint's tensor belongs to, by its name."""
        match = _LAYER_PATTERN[layout].match(key)
        return int(match[1]) if match else None


def _gguf_head_dim(metadata: Fields, hidden_size: int, heads: int) -> int:
    head_dim = metadata.integer("llama.attention.key_length", max(1, hidden_size // heads))
    for field in ("llama.attention.value_length", "llama.rope.dimension_count"):
        found = metadata.integer(field, head_dim)
        if found != head_dim:
            raise UnsupportedCheckpointError(f"{metadata.where}: {field} is {found}, heads have {head_dim}")
    return head_dim


def _gguf_rope(metadata: Fields, source: TensorSource, head_dim: int) -> dict[str, object]:
    theta = metadata.positive("llama.rope.freq_base", 10000.0)
    linear = metadata.values.get("llama.rope.scaling.type") == "linear"
    if _ROPE_FACTORS in source.names():
        if linear:
            raise UnsupportedCheckpointError(
                f"{metadata.where}: {_ROPE_FACTORS} beside llama.rope.scaling.type 'linear' is not supported"
            )
        where = f"{source.file_of(_ROPE_FACTORS)}: tensor {_ROPE_FACTORS!r}"
        return rope_from_factors(theta, source.load(_ROPE_FACTORS), head_dim, where)
    if linear:
        factor = metadata.positive("llama.rope.scaling.factor")
        return {"rope_theta": theta, "rope_type": "linear", "factor": factor}
    return {"rope_theta": theta}


def _block_shapes(spec: BlockSpec) -> dict[str, tuple[int, ...]]:
    hidden, ffn = spec.hidden_size, spec.ffn_size
    queries, keys = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    return {
        "norm1": (hidden,),
        "q": (queries, hidden),
        "k": (keys, hidden),
        "v": (keys, hidden),
        "o": (hidden, queries),
        "norm2": (hidden,),
        "gate": (ffn, hidden),
        "up": (ffn, hidden),
        "down": (hidden, ffn),
    }
