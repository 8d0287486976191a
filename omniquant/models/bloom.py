"""BLOOM (Scao et al. 2022, arXiv 2211.05100): ALiBi, a norm of the embedding, biases everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from omniquant.checkpoint.fields import Fields
from omniquant.checkpoint.source import Layout, TensorSource
from omniquant.models.adapter import Architecture
from omniquant.models.family import (
    FUSED_GGUF_NAMES,
    Names,
    Place,
    block_spec,
    head_dim_of,
    refuse_quantized,
    refuse_unless,
)
from omniquant.models.gguf_config import GgufMetadata
from omniquant.models.gpt_neox import place_head_by_head
from omniquant.models.llama import LlamaAdapter
from omniquant.models.spec import BlockSpec


class BloomAdapter(LlamaAdapter):
    """BLOOM."""

    name = "bloom"
    classes: ClassVar[Mapping[str, str]] = {"bloom": "BloomForCausalLM"}
    gguf_architectures: tuple[str, ...] = ("bloom",)
    gguf_activation = "gelu_tanh"
    gguf_names = FUSED_GGUF_NAMES
    hf_names = Names(
        "transformer.h.{i}.",
        {
            "norm1": "input_layernorm",
            "norm2": "post_attention_layernorm",
            **dict.fromkeys(("q", "k", "v"), "self_attention.query_key_value"),
            "o": "self_attention.dense",
            "up": "mlp.dense_h_to_4h",
            "down": "mlp.dense_4h_to_h",
        },
        {
            "embedding": "transformer.word_embeddings",
            "embedding_norm": "transformer.word_embeddings_layernorm",
            "final_norm": "transformer.ln_f",
            "lm_head": "lm_head",
        },
    )

    def architecture(self, config: Fields) -> Architecture:
        """Read a config.json."""
        refuse_quantized(config)
        refuse_unless(config, "apply_residual_connection_post_layernorm", False)
        linears = ("q", "k", "v", "o", "up", "down")
        return Architecture(
            spec=self.spec(config),
            num_layers=config.integer("n_layer"),
            vocab_size=config.integer("vocab_size"),
            max_positions=config.integer("seq_length", 2048),
            tied_embeddings=config.boolean("tie_word_embeddings", True),
            rope=None,
            biases=frozenset(("norm1", "norm2", "final_norm", "embedding_norm", *linears)),
            embedding_norm=True,
        )

    def spec(self, config: Fields, **differences: object) -> BlockSpec:
        """Return the spec of a config.json."""
        hidden, heads = config.integer("hidden_size"), config.integer("n_head")
        return block_spec(
            config,
            hidden_size=hidden,
            ffn_size=4 * hidden,
            num_heads=heads,
            num_kv_heads=heads,
            head_dim=head_dim_of(config, "hidden_size", "n_head"),
            norm="layer",
            norm_eps=config.positive("layer_norm_epsilon", 1e-5),
            rope=False,
            alibi=True,
            mlp="plain",
            activation="gelu_tanh",
        )

    def place(self, architecture: Architecture, part: str, layout: Layout) -> Place:
        """Return where q, k and v lie: a head's three parts behind each other, head after head.

        In GGUF all of q, all of k, all of v.
        """
        return place_head_by_head(architecture.spec, part, layout)

    def config_from_gguf(self, metadata: Fields, source: TensorSource) -> dict[str, object]:
        """Translate GGUF metadata into a config.json."""
        gguf = GgufMetadata(metadata, source)
        return {
            "model_type": "bloom",
            "hidden_size": gguf.integer("embedding_length"),
            "n_layer": gguf.integer("block_count"),
            "n_head": gguf.integer("attention.head_count"),
            "seq_length": gguf.integer("context_length"),
            "vocab_size": gguf.vocab_size(),
            "layer_norm_epsilon": gguf.positive("attention.layer_norm_epsilon"),
            "tie_word_embeddings": gguf.tied(),
        }
