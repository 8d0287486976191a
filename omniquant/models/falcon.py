"""Falcon (Almazrouei et al. 2023, arXiv 2311.16867): attention and MLP side by side, few keys and values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from omniquant.checkpoint.fields import Fields
from omniquant.checkpoint.source import Layout, TensorSource
from omniquant.models.adapter import Architecture
from omniquant.models.family import (
    FUSED_GGUF_NAMES,
    Names,
    Place,
    activation_of,
    block_spec,
    head_dim_of,
    refuse_unless,
    stacked_heads,
)
from omniquant.models.gguf_config import GgufMetadata
from omniquant.models.llama import LlamaAdapter
from omniquant.models.spec import BlockSpec
from omniquant.models.tensors import Array, TensorRef

_PARTS = {
    **dict.fromkeys(("q", "k", "v"), "self_attention.query_key_value"),
    "o": "self_attention.dense",
    "up": "mlp.dense_h_to_4h",
    "down": "mlp.dense_4h_to_h",
}
_OUTER = {"embedding": "transformer.word_embeddings", "final_norm": "transformer.ln_f", "lm_head": "lm_head"}


class FalconAdapter(LlamaAdapter):
    """Falcon 7B (one norm, one head of keys and values) and 40B (two norms, groups); not those with ALiBi."""

    name = "falcon"
    classes: ClassVar[Mapping[str, str]] = {"falcon": "FalconForCausalLM"}
    gguf_architectures: tuple[str, ...] = ("falcon",)
    gguf_activation = "gelu"  # which llama.cpp computes by its tanh form
    gguf_scales_each_frequency = False
    gguf_names = replace(FUSED_GGUF_NAMES, parts={**FUSED_GGUF_NAMES.parts, "norm2": "attn_norm"})
    tied_by_default = True
    hf_names = Names("transformer.h.{i}.", {**_PARTS, "norm1": "input_layernorm", "norm2": "ln_mlp"}, _OUTER)

    def architecture(self, config: Fields) -> Architecture:
        """Read a config.json."""
        refuse_unless(config, "alibi", False)
        refuse_unless(config, "bias", False)
        refuse_unless(config, "parallel_attn", True)
        if config.boolean("new_decoder_architecture", False):
            refuse_unless(config, "num_ln_in_parallel_attn", 2)
        return super().architecture(config)

    def spec(self, config: Fields, **differences: object) -> BlockSpec:
        """Return the spec of a config.json."""
        hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
        grouped = config.boolean("new_decoder_architecture", False)
        single = 1 if config.boolean("multi_query", True) else heads
        return block_spec(
            config,
            hidden_size=hidden,
            ffn_size=config.integer("ffn_hidden_size", 4 * hidden),
            num_heads=heads,
            num_kv_heads=config.integer("num_kv_heads", heads) if grouped else single,
            head_dim=head_dim_of(config, "hidden_size", "num_attention_heads"),
            norm="layer",
            norm_eps=config.positive("layer_norm_epsilon", 1e-5),
            mlp="plain",
            activation=activation_of(config, "activation", "gelu"),
            residual="parallel" if grouped else "shared",
        )

    def biases(self, config: Fields) -> frozenset[str]:
        """Return the norms; linears have none."""
        return frozenset(("norm1", "norm2", "final_norm"))

    def block_tensors(self, architecture: Architecture, layer: int, layout: Layout) -> dict[str, TensorRef]:
        """Map our names of one block: with two norms the first goes by another name."""
        refs = super().block_tensors(architecture, layer, layout)
        if architecture.spec.residual == "parallel":
            for name in ("norm1.weight", "norm1.bias"):
                key = refs[name].key.replace("input_layernorm", "ln_attn").replace("attn_norm", "attn_norm_2")
                refs[name] = replace(refs[name], key=key)
        return refs

    def place(self, architecture: Architecture, part: str, layout: Layout) -> Place:
        """Return where q, k and v lie: behind the queries of each group its key and its value.

        In GGUF all of q, all of k, all of v.
        """
        if layout == "gguf":
            return stacked_heads(architecture.spec, part) or Place()
        spec = architecture.spec
        if part not in ("q", "k", "v"):
            return Place()
        total = (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
        return Place(total, lambda stored: _of_groups(spec, part, stored))

    def config_from_gguf(self, metadata: Fields, source: TensorSource) -> dict[str, object]:
        """Translate GGUF metadata into a config.json."""
        gguf = GgufMetadata(metadata, source)
        heads = gguf.integer("attention.head_count")
        groups = gguf.integer("attention.head_count_kv", heads)
        return {
            "model_type": "falcon",
            "hidden_size": gguf.integer("embedding_length"),
            "ffn_hidden_size": gguf.integer("feed_forward_length"),
            "num_hidden_layers": gguf.integer("block_count"),
            "num_attention_heads": heads,
            "num_kv_heads": groups,
            "multi_query": groups == 1,
            "new_decoder_architecture": gguf.has_tensor("blk.0.attn_norm_2.weight"),
            "vocab_size": gguf.vocab_size(),
            "max_position_embeddings": gguf.integer("context_length"),
            "layer_norm_epsilon": gguf.positive("attention.layer_norm_epsilon"),
            "tie_word_embeddings": gguf.tied(),
            "rope_parameters": gguf.rope(),
        }


def _of_groups(spec: BlockSpec, part: str, stored: Array) -> Array:
    # [groups, queries + 2, d, ...]
    queries = spec.num_heads // spec.num_kv_heads
    groups = stored.reshape(spec.num_kv_heads, queries + 2, spec.head_dim, *stored.shape[1:])
    begin, end = {"q": (0, queries), "k": (queries, queries + 1), "v": (queries + 1, queries + 2)}[part]
    return groups[:, begin:end]
