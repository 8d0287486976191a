"""Phi-2 and Phi-3 (Abdin et al. 2024, arXiv 2404.14219)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from omniquant.checkpoint.fields import Fields
from omniquant.checkpoint.source import Layout
from omniquant.models.adapter import Architecture
from omniquant.models.family import (
    LLAMA_NAMES,
    Names,
    Place,
    activation_of,
    block_spec,
    head_dim_of,
    refuse_unless,
    rows,
)
from omniquant.models.llama import LlamaAdapter
from omniquant.models.rope import rotary_dim_of
from omniquant.models.spec import BlockSpec


class Phi3Adapter(LlamaAdapter):
    """Phi-3: LLaMA's block with a window; q, k, v lie in one tensor, gate and up in another."""

    name = "phi3"
    classes: ClassVar[Mapping[str, str]] = {"phi3": "Phi3ForCausalLM"}
    gguf_architectures: tuple[str, ...] = ()
    hf_names = Names(
        LLAMA_NAMES.block,
        {
            **LLAMA_NAMES.parts,
            **dict.fromkeys(("q", "k", "v"), "self_attn.qkv_proj"),
            **dict.fromkeys(("gate", "up"), "mlp.gate_up_proj"),
        },
        LLAMA_NAMES.outer,
    )

    def spec(self, config: Fields, **differences: object) -> BlockSpec:
        """Return LLaMA's spec with a window and the share of each head that rotates."""
        width = head_dim_of(config, "hidden_size", "num_attention_heads")
        return super().spec(
            config,
            window=config.integer("sliding_window", 0, minimum=0),
            rotary_dim=rotary_dim_of(config, width, 1.0),
            norm_eps=config.positive("rms_norm_eps", 1e-5),
            **differences,
        )

    def biases(self, config: Fields) -> frozenset[str]:
        """Return none."""
        return frozenset()

    def place(self, architecture: Architecture, part: str, layout: Layout) -> Place:
        """Return the rows of a part in its fused tensor."""
        spec = architecture.spec
        query, key = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        ffn, fused = spec.ffn_size, query + 2 * key
        places = {
            "q": rows(0, query, fused),
            "k": rows(query, query + key, fused),
            "v": rows(query + key, fused, fused),
            "gate": rows(0, ffn, 2 * ffn),
            "up": rows(ffn, 2 * ffn, 2 * ffn),
        }
        return places.get(part, Place())


class PhiAdapter(LlamaAdapter):
    """Phi-1 and Phi-2: one LayerNorm for attention and MLP, partial rotation, biases everywhere."""

    name = "phi"
    classes: ClassVar[Mapping[str, str]] = {"phi": "PhiForCausalLM"}
    gguf_architectures: tuple[str, ...] = ()
    hf_names = Names(
        LLAMA_NAMES.block,
        {**LLAMA_NAMES.parts, "o": "self_attn.dense", "up": "mlp.fc1", "down": "mlp.fc2"},
        {**LLAMA_NAMES.outer, "final_norm": "model.final_layernorm"},
    )

    def spec(self, config: Fields, **differences: object) -> BlockSpec:
        """Return the spec of a config.json."""
        refuse_unless(config, "qk_layernorm", False)
        heads = config.integer("num_attention_heads")
        width = head_dim_of(config, "hidden_size", "num_attention_heads")
        return block_spec(
            config,
            hidden_size=config.integer("hidden_size"),
            ffn_size=config.integer("intermediate_size"),
            num_heads=heads,
            num_kv_heads=config.integer("num_key_value_heads", heads),
            head_dim=width,
            norm="layer",
            norm_eps=config.positive("layer_norm_eps", 1e-5),
            mlp="plain",
            activation=activation_of(config, "hidden_act", "gelu_new"),
            rotary_dim=rotary_dim_of(config, width, 0.5),
            residual="shared",
        )

    def biases(self, config: Fields) -> frozenset[str]:
        """Return every linear and norm, the head included."""
        return frozenset(("norm1", "q", "k", "v", "o", "up", "down", "final_norm", "lm_head"))
