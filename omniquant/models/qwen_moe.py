"""Qwen's mixtures of experts: Qwen2-MoE (arXiv 2407.10671) and Qwen3-MoE (arXiv 2505.09388).

The former has an MLP beside its experts that all tokens share.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from omniquant.checkpoint.fields import Fields
from omniquant.models.adapter import Architecture
from omniquant.models.experts import GGUF_EXPERTS
from omniquant.models.family import GGUF_NAMES, LLAMA_NAMES, refuse_unless
from omniquant.models.gguf_config import GgufMetadata
from omniquant.models.qwen import Qwen2Adapter, Qwen3Adapter
from omniquant.models.spec import BlockSpec

_NAMES = replace(
    LLAMA_NAMES,
    parts={
        **LLAMA_NAMES.parts,
        "router": "mlp.gate",
        "gate": "mlp.experts.{e}.gate_proj",
        "up": "mlp.experts.{e}.up_proj",
        "down": "mlp.experts.{e}.down_proj",
        "shared_router": "mlp.shared_expert_gate",
        "shared_gate": "mlp.shared_expert.gate_proj",
        "shared_up": "mlp.shared_expert.up_proj",
        "shared_down": "mlp.shared_expert.down_proj",
    },
)


_GGUF_NAMES = replace(GGUF_NAMES, parts={**GGUF_NAMES.parts, **GGUF_EXPERTS})


def _experts_from_gguf(gguf: GgufMetadata, normalized: bool) -> dict[str, object]:
    width = gguf.integer("expert_feed_forward_length", gguf.integer("feed_forward_length"))
    return {
        "moe_intermediate_size": width,
        "num_experts": gguf.integer("expert_count"),
        "num_experts_per_tok": gguf.integer("expert_used_count"),
        "norm_topk_prob": normalized,
    }


def _experts(config: Fields, count: int, used: int) -> dict[str, object]:
    """Return the fields both have; blocks with a plain MLP between those with experts are refused."""
    refuse_unless(config, "decoder_sparse_step", 1)
    refuse_unless(config, "mlp_only_layers", [])
    return {
        "ffn_size": config.integer("moe_intermediate_size"),
        # transformers 5 writes the second name for Qwen3-MoE.
        "num_experts": config.integer("num_experts", config.integer("num_local_experts", count)),
        "experts_per_token": config.integer("num_experts_per_tok", used),
        "normalized_experts": config.boolean("norm_topk_prob", False),
    }


class Qwen2MoeAdapter(Qwen2Adapter):
    """Qwen1.5-MoE and Qwen2-MoE."""

    name = "qwen2_moe"
    classes: ClassVar[Mapping[str, str]] = {"qwen2_moe": "Qwen2MoeForCausalLM"}
    gguf_architectures: tuple[str, ...] = ("qwen2moe",)
    gguf_names = _GGUF_NAMES
    hf_names = _NAMES

    def spec(self, config: Fields, **differences: object) -> BlockSpec:
        """Return Qwen2's spec with experts and the shared one."""
        shared = config.integer("shared_expert_intermediate_size")
        return super().spec(config, shared_ffn_size=shared, **_experts(config, 60, 4), **differences)

    def biases(self, config: Fields) -> frozenset[str]:
        """Return the parts that carry biases."""
        return super().biases(config) if config.boolean("qkv_bias", True) else frozenset()

    def experts_from_gguf(self, gguf: GgufMetadata) -> dict[str, object]:
        """Return the fields of the experts and of the shared one."""
        shared = gguf.integer("expert_shared_feed_forward_length")
        biases = gguf.has_tensor("blk.0.attn_q.bias")
        experts = _experts_from_gguf(gguf, normalized=False)
        return {"shared_expert_intermediate_size": shared, "qkv_bias": biases, **experts}

    def gguf_differs(self, architecture: Architecture) -> dict[str, bool]:
        """Return what llama.cpp's graph of the family might lack, and whether the model needs it."""
        return {
            "q, k and v without biases": "q" not in architecture.biases,
            "experts whose shares sum to 1": architecture.spec.normalized_experts,
        }


class Qwen3MoeAdapter(Qwen3Adapter):
    """Qwen3-MoE: norms of heads as in Qwen3."""

    name = "qwen3_moe"
    classes: ClassVar[Mapping[str, str]] = {"qwen3_moe": "Qwen3MoeForCausalLM"}
    gguf_architectures: tuple[str, ...] = ("qwen3moe",)
    gguf_names = _GGUF_NAMES
    hf_names = _NAMES

    def spec(self, config: Fields, **differences: object) -> BlockSpec:
        """Return Qwen3's spec with experts."""
        # Heads are as wide as LLaMA's where the configuration does not say, not as Qwen3's.
        return Qwen2Adapter.spec(self, config, head_norms=True, **_experts(config, 128, 8), **differences)

    def experts_from_gguf(self, gguf: GgufMetadata) -> dict[str, object]:
        """Return the fields of the experts."""
        return _experts_from_gguf(gguf, True)

    def gguf_differs(self, architecture: Architecture) -> dict[str, bool]:
        """Return what llama.cpp's graph of the family might lack, and whether the model needs it."""
        unnormalized = {"experts whose shares do not sum to 1": not architecture.spec.normalized_experts}
        return super().gguf_differs(architecture) | unnormalized
