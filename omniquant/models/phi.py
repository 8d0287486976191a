"""Phi-2 and Phi-3 (Abdin et al. 2024, arXiv 2404.14219)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from omniquant.checkpoint.errors import UnsupportedCheckpointError
from omniquant.checkpoint.fields import Fields
from omniquant.checkpoint.source import Layout, TensorSource
from omniquant.models.adapter import Architecture
from omniquant.models.family import (
    FUSED_GGUF_NAMES,
    LLAMA_NAMES,
    Names,
    Place,
    activation_of,
    block_spec,
    head_dim_of,
    refuse_unless,
    rows,
    stacked_heads,
)
from omniquant.models.gguf_config import GgufMetadata
from omniquant.models.llama import LlamaAdapter
from omniquant.models.rope import rotary_dim_of
from omniquant.models.spec import BlockSpec

_LONG_FACTORS = "rope_factors_long.weight"


class Phi3Adapter(LlamaAdapter):
    """Phi-3: LLaMA's block with a window; q, k, v lie in one tensor, gate and up in another."""

    name = "phi3"
    classes: ClassVar[Mapping[str, str]] = {"phi3": "Phi3ForCausalLM"}
    gguf_architectures: tuple[str, ...] = ("phi3",)
    gguf_scales_each_frequency = False
    gguf_names = replace(
        FUSED_GGUF_NAMES, parts={**FUSED_GGUF_NAMES.parts, **dict.fromkeys(("gate", "up"), "ffn_up")}
    )
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
        """Return the rows of a part in its fused tensor, the same in either layout."""
        ffn = architecture.spec.ffn_size
        places = {"gate": rows(0, ffn, 2 * ffn), "up": rows(ffn, 2 * ffn, 2 * ffn)}
        return stacked_heads(architecture.spec, part) or places.get(part, Place())

    def config_from_gguf(self, metadata: Fields, source: TensorSource) -> dict[str, object]:
        """Translate GGUF metadata into a config.json."""
        gguf = GgufMetadata(metadata, source)
        if gguf.has_tensor(_LONG_FACTORS):
            raise UnsupportedCheckpointError(f"{metadata.where}: tensor {_LONG_FACTORS} is not supported")
        config = super().config_from_gguf(metadata, source)
        window = {"sliding_window": gguf.integer("attention.sliding_window", 0, minimum=0) or None}
        return config | window | gguf.partial_rotation()

    def gguf_differs(self, architecture: Architecture) -> dict[str, bool]:
        """Return what llama.cpp's graph of the family might lack, and whether the model needs it."""
        spec = architecture.spec
        other = spec.num_heads * spec.head_dim != spec.hidden_size
        return {"heads that together are not as wide as the hidden size": other}

    def check_gguf(self, gguf: GgufMetadata) -> None:
        """Take any share of the heads to rotate."""


class PhiAdapter(LlamaAdapter):
    """Phi-1 and Phi-2: one LayerNorm for attention and MLP, partial rotation, biases everywhere."""

    name = "phi"
    classes: ClassVar[Mapping[str, str]] = {"phi": "PhiForCausalLM"}
    gguf_architectures: tuple[str, ...] = ("phi2",)
    gguf_activation = "gelu_tanh"
    gguf_rotates_neighbours = False
    gguf_scales_each_frequency = False
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

    def config_from_gguf(self, metadata: Fields, source: TensorSource) -> dict[str, object]:
        """Translate GGUF metadata into a config.json."""
        gguf = GgufMetadata(metadata, source)
        return {
            "model_type": "phi",
            **gguf.sizes(),
            "layer_norm_eps": gguf.positive("attention.layer_norm_epsilon"),
            "rope_parameters": gguf.rope(),
            **gguf.partial_rotation(),
        }
