"""OPT (Zhang et al. 2022, arXiv 2205.01068): LayerNorm, learned positions, ReLU, biases everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from omniquant.checkpoint.fields import Fields
from omniquant.checkpoint.source import Layout
from omniquant.models.adapter import Architecture
from omniquant.models.family import Names, Place, activation_of, block_spec, head_dim_of, refuse_unless
from omniquant.models.llama import LlamaAdapter
from omniquant.models.spec import BlockSpec

_FIRST_POSITION = 2  # rows of the table that no token uses


class OptAdapter(LlamaAdapter):
    """OPT but its 350M model, whose norms stand behind and whose embedding is narrower."""

    name = "opt"
    classes: ClassVar[Mapping[str, str]] = {"opt": "OPTForCausalLM"}
    gguf_architectures: tuple[str, ...] = ()
    tied_by_default = True
    hf_names = Names(
        "model.decoder.layers.{i}.",
        {
            "norm1": "self_attn_layer_norm",
            "q": "self_attn.q_proj",
            "k": "self_attn.k_proj",
            "v": "self_attn.v_proj",
            "o": "self_attn.out_proj",
            "norm2": "final_layer_norm",
            "up": "fc1",
            "down": "fc2",
        },
        {
            "embedding": "model.decoder.embed_tokens",
            "positions": "model.decoder.embed_positions",
            "final_norm": "model.decoder.final_layer_norm",
            "lm_head": "lm_head",
        },
    )

    def architecture(self, config: Fields) -> Architecture:
        """Read a config.json."""
        refuse_unless(config, "do_layer_norm_before", True)
        refuse_unless(config, "word_embed_proj_dim", config.integer("hidden_size"))
        refuse_unless(config, "layer_norm_elementwise_affine", True)
        refuse_unless(config, "_remove_final_layer_norm", False)
        return replace(super().architecture(config), learned_positions=True)

    def spec(self, config: Fields, **differences: object) -> BlockSpec:
        """Return the spec of a config.json."""
        heads = config.integer("num_attention_heads")
        return block_spec(
            config,
            hidden_size=config.integer("hidden_size"),
            ffn_size=config.integer("ffn_dim"),
            num_heads=heads,
            num_kv_heads=heads,
            head_dim=head_dim_of(config, "hidden_size", "num_attention_heads"),
            norm="layer",
            norm_eps=1e-5,
            rope=False,
            mlp="plain",
            activation=activation_of(config, "activation_function", "relu"),
        )

    def biases(self, config: Fields) -> frozenset[str]:
        """Return every norm and, unless the configuration says otherwise, every linear."""
        linears = ("q", "k", "v", "o", "up", "down") if config.boolean("enable_bias", True) else ()
        return frozenset(("norm1", "norm2", "final_norm", *linears))

    def place(self, architecture: Architecture, part: str, layout: Layout) -> Place:
        """Return where a part lies: the first rows of the table of positions are no token's."""
        if part != "positions":
            return Place()
        total = architecture.max_positions + _FIRST_POSITION
        return Place(total, lambda stored: stored[_FIRST_POSITION:])
