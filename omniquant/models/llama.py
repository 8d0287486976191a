"""The LLaMA family: RMSNorm, RoPE, grouped-query attention, gated SiLU MLP (Touvron et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from omniquant.checkpoint.errors import UnsupportedCheckpointError
from omniquant.checkpoint.fields import Fields
from omniquant.checkpoint.source import Layout, TensorSource
from omniquant.models.adapter import Architecture
from omniquant.models.family import (
    Family,
    Place,
    activation_of,
    block_spec,
    head_dim_of,
    refuse_quantized,
)
from omniquant.models.gguf_config import GgufMetadata
from omniquant.models.rope import partial_rotary_factor, rope_from_config
from omniquant.models.spec import BlockSpec
from omniquant.models.tensors import Array

ATTENTION = ("q", "k", "v", "o")
MLP = ("gate", "up", "down")


class LlamaAdapter(Family):
    """LLaMA 1 to 3, SmolLM, TinyLlama and everything else whose model_type is llama.

    Families of its kind are subclasses that say what differs.
    """

    name = "llama"
    classes: ClassVar[Mapping[str, str]] = {"llama": "LlamaForCausalLM"}
    gguf_architectures: tuple[str, ...] = ("llama",)
    tied_by_default = False  # where a config.json does not say
    gguf_rotates_neighbours = True  # llama.cpp orders rows of q and k as Meta's own code does
    gguf_scales_each_frequency = True

    def architecture(self, config: Fields) -> Architecture:
        """Read a config.json."""
        refuse_quantized(config)
        max_positions, spec = config.integer("max_position_embeddings", 2048), self.spec(config)
        return Architecture(
            spec=spec,
            num_layers=config.integer("num_hidden_layers"),
            vocab_size=config.integer("vocab_size"),
            max_positions=max_positions,
            tied_embeddings=config.boolean("tie_word_embeddings", self.tied_by_default),
            rope=rope_from_config(config, max_positions, spec.rotary) if spec.rope else None,
            biases=self.biases(config),
        )

    def spec(self, config: Fields, **differences: object) -> BlockSpec:
        """Return the spec of a config.json; `differences` are fields other than LLaMA's."""
        if "rotary_dim" not in differences and partial_rotary_factor(config) != 1.0:
            raise UnsupportedCheckpointError(
                f"{config.where}: partial_rotary_factor other than 1 is not supported"
            )
        num_heads = config.integer("num_attention_heads")
        fields: dict[str, object] = {
            "hidden_size": config.integer("hidden_size"),
            "ffn_size": config.integer("intermediate_size"),
            "num_heads": num_heads,
            "num_kv_heads": config.integer("num_key_value_heads", num_heads),
            "head_dim": head_dim_of(config, "hidden_size", "num_attention_heads"),
            "norm_eps": config.positive("rms_norm_eps", 1e-6),
            "activation": activation_of(config, "hidden_act", "silu"),
        }
        return block_spec(config, **(fields | differences))

    def biases(self, config: Fields) -> frozenset[str]:
        """Return the parts that carry biases."""
        attention = ATTENTION if config.boolean("attention_bias", False) else ()
        return frozenset(attention + (MLP if config.boolean("mlp_bias", False) else ()))

    def config_from_gguf(self, metadata: Fields, source: TensorSource) -> dict[str, object]:
        """Translate GGUF metadata into a config.json."""
        gguf = GgufMetadata(metadata, source)
        self.check_gguf(gguf)
        config = {
            "model_type": next(iter(self.classes)),
            **gguf.sizes(),
            "rms_norm_eps": gguf.positive("attention.layer_norm_rms_epsilon"),
            "rope_parameters": gguf.rope(),
            "hidden_act": "silu",
            "attention_bias": gguf.has_tensor("blk.0.attn_q.bias"),
            "mlp_bias": gguf.has_tensor("blk.0.ffn_up.bias"),
        }
        return config | self.experts_from_gguf(gguf)

    def experts_from_gguf(self, gguf: GgufMetadata) -> dict[str, object]:
        """Return the fields of a mixture of experts: that of the architecture "llama" is Mixtral."""
        if gguf.prefix != "llama" or not gguf.experts():
            gguf.refuse_unless("expert_count")
            return {}
        return {
            "model_type": "mixtral",
            "num_local_experts": gguf.experts(),
            "num_experts_per_tok": gguf.integer("expert_used_count"),
        }

    def check_gguf(self, gguf: GgufMetadata) -> None:
        """Refuse metadata the family does not know."""
        if gguf.rotary_dim() != gguf.head_dim():
            raise UnsupportedCheckpointError(
                f"{gguf.fields.where}: {gguf.prefix}.rope.dimension_count is {gguf.rotary_dim()}, "
                f"heads have {gguf.head_dim()}"
            )

    def place(self, architecture: Architecture, part: str, layout: Layout) -> Place:
        """Return where a part lies: in GGUF, the rows of q and k are in another order."""
        spec = architecture.spec
        heads = {"q": spec.num_heads, "k": spec.num_kv_heads}.get(part)
        if heads is None or layout != "gguf" or not self.gguf_rotates_neighbours:
            return Place()
        return Place(view=lambda rows: _halves(heads, rows))


def _halves(heads: int, rows: Array) -> Array:
    # llama.cpp rotates neighbours (2i, 2i + 1), Hugging Face the halves (i, i + d/2): its converter
    # reorders the rows of each head of q and k; this is the inverse. rows: [heads * d] or [heads * d, H]
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2)
