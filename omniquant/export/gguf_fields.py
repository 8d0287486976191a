"""A model's architecture as GGUF metadata: what its spec says, by the names llama.cpp reads."""

from __future__ import annotations

from typing import Any

import numpy as np

from omniquant.models.adapter import Architecture
from omniquant.models.gemma import gguf_pattern
from omniquant.models.gguf_config import ROPE_FACTORS
from omniquant.models.rope import Rope
from omniquant.models.spec import BlockSpec


def add_architecture(writer: Any, library: Any, architecture: Architecture) -> None:
    """Add sizes, norms, positions, caps and windows; what a family never has llama.cpp does not ask for."""
    spec = architecture.spec
    writer.add_vocab_size(architecture.vocab_size)
    writer.add_context_length(architecture.max_positions)
    writer.add_embedding_length(spec.hidden_size)
    writer.add_block_count(architecture.num_layers)
    writer.add_feed_forward_length(spec.ffn_size)
    writer.add_head_count(spec.num_heads)
    writer.add_head_count_kv(spec.num_kv_heads)
    writer.add_key_length(spec.head_dim)
    writer.add_value_length(spec.head_dim)
    if spec.num_experts:
        writer.add_expert_count(spec.num_experts)
        writer.add_expert_used_count(spec.experts_per_token)
        writer.add_expert_feed_forward_length(spec.ffn_size)
    if spec.shared_ffn_size:
        writer.add_expert_shared_feed_forward_length(spec.shared_ffn_size)
    if spec.norm == "rms":
        writer.add_layer_norm_rms_eps(spec.norm_eps)
    else:
        writer.add_layer_norm_eps(spec.norm_eps)
        writer.add_parallel_residual(spec.residual != "sequential")  # GPT-NeoX asks
    if architecture.rope is not None:
        _add_rope(writer, library, architecture.rope, spec)
    if spec.score_cap:
        writer.add_attn_logit_softcapping(spec.score_cap)
    if architecture.logit_cap:
        writer.add_final_logit_softcapping(architecture.logit_cap)
    other = architecture.other
    if other is not None:
        writer.add_sliding_window(other.spec.window)
        writer.add_sliding_window_pattern(gguf_pattern(architecture))
        if other.rope is not None:
            writer.add_rope_freq_base_swa(other.rope.theta)


def _add_rope(writer: Any, library: Any, rope: Rope, spec: BlockSpec) -> None:
    writer.add_rope_dimension_count(spec.rotary)
    writer.add_rope_freq_base(rope.theta)
    if isinstance(rope.scaling, float):
        writer.add_rope_scaling_type(library.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope.scaling)
    elif rope.scaling is not None:
        # llama.cpp divides each pair's frequency by a factor of this tensor.
        plain = Rope(rope.theta).inverse_frequencies(spec.rotary)
        factors = plain / rope.inverse_frequencies(spec.rotary)
        writer.add_tensor(ROPE_FACTORS, factors.astype(np.float32))
