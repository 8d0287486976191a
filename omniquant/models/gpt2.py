"""GPT-2 (Radford et al. 2019): LayerNorm, learned positions, matrices stored [in, out]."""

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
    refuse_quantized,
    refuse_unless,
    stacked_heads,
)
from omniquant.models.gguf_config import GgufMetadata
from omniquant.models.llama import LlamaAdapter
from omniquant.models.spec import BlockSpec


class Gpt2Adapter(LlamaAdapter):
    """GPT-2; q, k and v lie in one tensor."""

    name = "gpt2"
    classes: ClassVar[Mapping[str, str]] = {"gpt2": "GPT2LMHeadModel"}
    gguf_architectures: tuple[str, ...] = ("gpt2",)
    gguf_activation = "gelu_tanh"
    gguf_names = FUSED_GGUF_NAMES
    hf_names = Names(
        "transformer.h.{i}.",
        {
            "norm1": "ln_1",
            **dict.fromkeys(("q", "k", "v"), "attn.c_attn"),
            "o": "attn.c_proj",
            "norm2": "ln_2",
            "up": "mlp.c_fc",
            "down": "mlp.c_proj",
        },
        {
            "embedding": "transformer.wte",
            "positions": "transformer.wpe",
            "final_norm": "transformer.ln_f",
            "lm_head": "lm_head",
        },
    )

    def architecture(self, config: Fields) -> Architecture:
        """Read a config.json."""
        refuse_quantized(config)
        refuse_unless(config, "scale_attn_weights", True)
        refuse_unless(config, "scale_attn_by_inverse_layer_idx", False)
        return Architecture(
            spec=self.spec(config),
            num_layers=config.integer("n_layer"),
            vocab_size=config.integer("vocab_size"),
            max_positions=config.integer("n_positions", 1024),
            tied_embeddings=config.boolean("tie_word_embeddings", True),
            rope=None,
            biases=frozenset(("norm1", "norm2", "final_norm", "q", "k", "v", "o", "up", "down")),
            learned_positions=True,
        )

    def spec(self, config: Fields, **differences: object) -> BlockSpec:
        """Return the spec of a config.json."""
        hidden, heads = config.integer("n_embd"), config.integer("n_head")
        return block_spec(
            config,
            hidden_size=hidden,
            ffn_size=config.integer("n_inner") if config.has("n_inner") else 4 * hidden,
            num_heads=heads,
            num_kv_heads=heads,
            head_dim=head_dim_of(config, "n_embd", "n_head"),
            norm="layer",
            norm_eps=config.positive("layer_norm_epsilon", 1e-5),
            rope=False,
            mlp="plain",
            activation=activation_of(config, "activation_function", "gelu_new"),
        )

    def place(self, architecture: Architecture, part: str, layout: Layout) -> Place:
        """Return where a part lies: q, k and v beside each other; Hugging Face transposes every linear."""
        place = stacked_heads(architecture.spec, part) or Place()
        linear = part in architecture.spec.linear_shapes()
        return replace(place, transposed=linear and layout == "safetensors")

    def config_from_gguf(self, metadata: Fields, source: TensorSource) -> dict[str, object]:
        """Translate GGUF metadata into a config.json."""
        gguf = GgufMetadata(metadata, source)
        return {
            "model_type": "gpt2",
            "n_embd": gguf.integer("embedding_length"),
            "n_inner": gguf.integer("feed_forward_length"),
            "n_layer": gguf.integer("block_count"),
            "n_head": gguf.integer("attention.head_count"),
            "n_positions": gguf.integer("context_length"),
            "vocab_size": gguf.vocab_size(),
            "layer_norm_epsilon": gguf.positive("attention.layer_norm_epsilon"),
            "tie_word_embeddings": gguf.tied(),
        }
